"""The calls of `moorage.pid1.manager.Manager` that order something of a unit that is there, without a job."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Literal

from moorage.dbus.bus import CallFailed
from moorage.pid1.blame import Sent
from moorage.pid1.errors import FreezerCancelled, InvalidProperty, NoSuchUnit
from moorage.pid1.manager import TypedProperty
from moorage.pid1.over_dbus.deadlines import errors
from moorage.pid1.over_dbus.session import Endpoints, LinkKind, Session, get, manager_call, unwrap
from moorage.pid1.over_dbus.translate import NO_SUCH_UNIT, UNIT, path_of

_IMPOSSIBLE: Final = "DryRun"
"""A property that no unit has."""

_FIXED: Final = "Cannot set property "
"""How the manager begins to refuse what cannot be set, or not any more."""


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
            call = manager_call("KillUnit", "ssi", (unit, whom, signal))
            unwrap(*await self._session.make(bus, call, deadline=deadline))

    async def kill_subgroup(self, unit: str, subgroup: str, signal: int, *, deadline: float) -> None:
        """See `Manager`."""
        with errors(f"kill of {unit}", deadline, unit):
            bus = await self._session.up()
            call = manager_call("KillUnitSubgroup", "sssi", (unit, "cgroup", subgroup, signal))
            unwrap(*await self._session.make(bus, call, deadline=deadline))

    async def set_properties(
        self, unit: str, properties: Sequence[TypedProperty], *, check: bool = False, deadline: float
    ) -> None:
        """See `Manager`.

        The manager judges all of them before it sets the first (``bus_unit_set_properties()`` of systemd's
        src/core/dbus-unit.c). The last one of a check is none that there could be: by then it has judged the others.
        What it sets is written to the control group before it reads the next call (``manager_loop()``).
        """
        sent = Sent(None, [each.name for each in properties], [each.name for each in properties])
        body = [(name, (signature, value)) for name, signature, value in properties]
        if check:
            body.append((_IMPOSSIBLE, ("b", True)))
        call = manager_call("SetUnitProperties", "sba(sv)", (unit, True, body))
        with errors(f"change of {unit}", deadline, unit, [sent]):
            done, _ = await self._session.ask(call, get(path_of(unit), UNIT, "Id"), deadline=deadline)
            if isinstance(done, CallFailed) and done.text.startswith(_FIXED):
                name = done.text.removeprefix(_FIXED).partition(",")[0]
                if name == _IMPOSSIBLE:
                    return
                raise InvalidProperty(name, "it cannot be changed once the unit has been started")
            if isinstance(done, CallFailed) and done.name in NO_SUCH_UNIT:
                raise NoSuchUnit(unit)
            unwrap(done)

    async def freeze(self, unit: str, *, deadline: float) -> None:
        """See `Manager`."""
        with errors(f"freeze of {unit}", deadline, unit):
            await self._session.ask_one(manager_call("FreezeUnit", "s", (unit,)), deadline=deadline)

    async def thaw(self, unit: str, *, deadline: float) -> None:
        """See `Manager`."""
        while True:  # it may give up a thaw, too, for what it reads late, and take the unit for a frozen one
            with suppress(FreezerCancelled), errors(f"thaw of {unit}", deadline, unit):
                await self._session.ask_one(manager_call("ThawUnit", "s", (unit,)), deadline=deadline)
                return

    async def reset_failed(self, unit: str, *, deadline: float) -> None:
        """See `Manager`."""
        with errors(f"reset of {unit}", deadline, unit):
            await self._session.ask_one(manager_call("ResetFailedUnit", "s", (unit,)), deadline=deadline)
