"""The manager in memory, where a test says what becomes of units, and what is reported of them.

It answers what the other one does, of the same units, but at once: there is no connection, and no job runs.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from fakes.kernel import FakeProcesses, Faults, Kernel
from fakes.link import Connection
from fakes.manager import FakeManager
from fakes.pid1 import Pid1
from fakes.units import Job as QueuedJob
from fakes.units import Unit
from moorage.pid1.errors import NoSuchUnit
from moorage.pid1.manager import Job, Json, ServiceSpec, UnitHint, UnitStatus

ATTRIBUTES: Final = {
    "active_state": "active",
    "sub_state": "sub",
    "result": "result",
    "control_group": "group",
    "invocation_id": "invocation",
}
"""Attributes of a unit, by the names that they have in a status."""


class Direct(Connection):
    """A connection on which calls are answered before anything else happens."""

    async def call(self, call: Callable[[], Any]) -> Any:
        """Return what a call is answered with."""
        await trio.lowlevel.checkpoint()
        return call()


class PlayedManager(FakeManager):
    """A manager of which the test is the other end.

    Attributes:
        asked: names of the units whose status was asked for.
        read: names of the properties that were asked for.
        values: of properties, by unit; others have none.
        making: called when a service is about to be made.
        starting: called when a service is to be started; the job is done when it returns.
        ordered: what else was ordered, each with the unit.
        resetting: called with a unit that is to be reset.
    """

    def __init__(self) -> None:
        kernel = Kernel()
        super().__init__(Pid1(kernel, random.Random(0)), FakeProcesses(kernel, Faults()), version=257)
        self.asked: list[str] = []
        self.read: set[str] = set()
        self.values: dict[str, dict[str, Json]] = {}
        self.starting: Callable[[ServiceSpec], Awaitable[object]] | None = None
        self.making: Callable[[ServiceSpec], None] = lambda _spec: None
        self.ordered: list[tuple[str, str]] = []
        self.resetting: Callable[[str], None] = lambda _unit: None
        self._link = Direct(self.pid1, self._take, self.delay)

    def is_wanted(self, unit: str) -> bool:
        """Whether hints about a unit are wanted."""
        return self._interest(unit)

    def tell(self, hint: UnitHint) -> None:
        """Send a hint, should anybody want it."""
        self._take(hint)

    def is_loaded(self, unit: str) -> bool:
        """Whether there is a unit."""
        return self.pid1.units.get(unit) is not None

    def unload(self, unit: str) -> None:
        """Forget a unit, if there is one."""
        found = self.pid1.units.get(unit)
        if found is not None:
            self.pid1.units.remove(found)

    def set(self, unit: str, *, job: int = 0, documentation: Any = (), **values: str) -> None:
        """Change a unit, or make one that is active.

        Args:
            unit: its name.
            job: number of the one that is queued for it.
            documentation: its Documentation=.
            values: of its status.
        """
        found = self.pid1.units.get(unit)
        if found is None:
            found = self.pid1.units.add(Unit(unit))
            found.active, found.sub, found.transient = "active", "running", True
        for name, value in values.items():
            setattr(found, ATTRIBUTES[name], value)
        if documentation:
            found.properties["Documentation"] = list(documentation)
        if job:
            found.job = QueuedJob(job, found, "stop", alone=False)

    async def status(self, unit: str, *, deadline: float) -> UnitStatus | None:
        """See `Manager`."""
        self.asked.append(unit)
        return await super().status(unit, deadline=deadline)

    async def start_service(
        self, spec: ServiceSpec, *, deadline: float, made: Callable[[], None] | None = None
    ) -> Job:
        """See `Manager`."""
        assert self.starting is not None
        self.making(spec)
        if made is not None:
            made()
        await self.starting(spec)
        return Job("done", spec.unit, 1)

    async def properties(self, unit: str, names: Sequence[str], *, deadline: float) -> dict[str, Json]:
        """See `Manager`."""
        self.read.update(names)
        await trio.lowlevel.checkpoint()
        return {name: value for name, value in self.values.get(unit, {}).items() if name in names}

    async def stop(self, unit: str, *, alone: bool = False, deadline: float) -> Job:
        """See `Manager`."""
        self.ordered.append(("stop", unit))
        await trio.lowlevel.checkpoint()
        if not self.is_loaded(unit):
            raise NoSuchUnit(unit)
        return Job("done", unit, 1)

    async def kill(self, unit: str, whom: str, signal: int, *, deadline: float) -> None:
        """See `Manager`."""
        self.ordered.append(("kill", unit))
        await trio.lowlevel.checkpoint()

    async def reset_failed(self, unit: str, *, deadline: float) -> None:
        """See `Manager`."""
        self.ordered.append(("reset", unit))
        await trio.lowlevel.checkpoint()
        self.resetting(unit)
        self.unload(unit)
