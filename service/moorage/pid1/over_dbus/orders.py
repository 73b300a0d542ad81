"""The calls of `moorage.pid1.manager.Manager` that order something of a unit that is there, without a job."""

from typing import Literal

from moorage.pid1.over_dbus.deadlines import errors
from moorage.pid1.over_dbus.session import Endpoints, LinkKind, Session, manager_call


class UnitOrders:
    """Part of the manager."""

    def __init__(self, endpoints: Endpoints, link: LinkKind = "auto") -> None:
        self._session = Session(endpoints, link)

    async def kill(
        self, unit: str, whom: Literal["all", "main", "control"], signal: int, *, deadline: float
    ) -> None:
        """See `Manager`."""
        with errors(f"kill of {unit}", deadline, unit):
            bus = await self._session.up()
            await bus.call(manager_call("KillUnit", "ssi", (unit, whom, signal)), deadline=deadline)

    async def kill_subgroup(self, unit: str, subgroup: str, signal: int, *, deadline: float) -> None:
        """See `Manager`."""
        with errors(f"kill of {unit}", deadline, unit):
            bus = await self._session.up()
            call = manager_call("KillUnitSubgroup", "sssi", (unit, "cgroup", subgroup, signal))
            await bus.call(call, deadline=deadline)

    async def freeze(self, unit: str, *, deadline: float) -> None:
        """See `Manager`."""
        with errors(f"freeze of {unit}", deadline, unit):
            await self._session.ask_one(manager_call("FreezeUnit", "s", (unit,)), deadline=deadline)

    async def thaw(self, unit: str, *, deadline: float) -> None:
        """See `Manager`."""
        with errors(f"thaw of {unit}", deadline, unit):
            await self._session.ask_one(manager_call("ThawUnit", "s", (unit,)), deadline=deadline)

    async def reset_failed(self, unit: str, *, deadline: float) -> None:
        """See `Manager`."""
        with errors(f"reset of {unit}", deadline, unit):
            await self._session.ask_one(manager_call("ResetFailedUnit", "s", (unit,)), deadline=deadline)
