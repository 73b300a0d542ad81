"""A service manager that has the units which a test gives it, so that the core can be tested without systemd.

It knows what those tests need and nothing else: anything else that is called is an AttributeError.
"""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import msgspec
import trio

from moorage.pid1.manager import (
    Job,
    Json,
    Manager,
    NoSuchUnit,
    ServiceSpec,
    TypedProperty,
    UnitHint,
    UnitStatus,
)

STATUS = UnitStatus(
    unit="", description="", load_state="loaded", active_state="active", sub_state="running", result="success",
    slice="machine.slice", control_group="", invocation_id="", fragment_path="",
    transient=True, job_id=0,
)  # fmt: skip
"""A unit that runs."""


class AnyProperties:
    """Takes every property as it is."""

    def convert(self, properties: Mapping[str, Json]) -> tuple[TypedProperty, ...]:
        """Convert nothing."""
        return tuple(TypedProperty(name, "v", value) for name, value in properties.items())


class FakeManager:
    """A manager of which the test is the other end.

    Attributes:
        version: of systemd.
        loaded: what `status` is answered from, by name.
        asked: names of the units that were asked about.
        read: names of the properties that were asked for; none has a value.
        starting: called when a service is to be started; the job is done when it returns.
        ordered: what else was ordered, each with the unit.
        resetting: called with a unit that is to be reset.
    """

    def __init__(self) -> None:
        self.version = 257
        self.loaded: dict[str, UnitStatus] = {}
        self.asked: list[str] = []
        self.read: set[str] = set()
        self.starting: Callable[[ServiceSpec], Any] | None = None
        self.ordered: list[tuple[str, str]] = []
        self.resetting: Callable[[str], None] = lambda _unit: None
        self._callback: Callable[[UnitHint], None] = lambda _hint: None
        self._interest: Callable[[str], bool] = lambda _unit: False

    @property
    def manager(self) -> Manager:
        """What takes it for a real one."""
        return cast("Manager", self)

    def watch(self, callback: Callable[[UnitHint], None], interest: Callable[[str], bool]) -> None:
        """See `Manager`."""
        self._callback, self._interest = callback, interest

    def is_wanted(self, unit: str) -> bool:
        """Whether hints about a unit are wanted."""
        return self._interest(unit)

    def tell(self, hint: UnitHint) -> None:
        """Send a hint, should anybody want it."""
        if not hint.unit or self._interest(hint.unit):
            self._callback(hint)

    def set(self, unit: str, **values: Any) -> None:
        """Change a unit, or make it."""
        self.loaded[unit] = msgspec.structs.replace(self.loaded.get(unit, STATUS), unit=unit, **values)

    async def status(self, unit: str, *, deadline: float) -> UnitStatus | None:
        """See `Manager`."""
        self.asked.append(unit)
        await trio.lowlevel.checkpoint()
        return self.loaded.get(unit)

    async def units(self, pattern: str, *, deadline: float) -> list[str]:
        """See `Manager`."""
        return fnmatch.filter(self.loaded, pattern)

    async def property_types(self, unit_type: str, *, deadline: float) -> AnyProperties:
        """See `Manager`."""
        return AnyProperties()

    async def start_service(self, spec: ServiceSpec, *, deadline: float) -> Job:
        """See `Manager`."""
        assert self.starting is not None
        await self.starting(spec)
        return Job("done", spec.unit, 1)

    async def properties(self, unit: str, names: Sequence[str], *, deadline: float) -> dict[str, Json]:
        """See `Manager`."""
        self.read.update(names)
        await trio.lowlevel.checkpoint()
        return {}

    async def stop(self, unit: str, *, alone: bool = False, deadline: float) -> Job:
        """See `Manager`."""
        self.ordered.append(("stop", unit))
        await trio.lowlevel.checkpoint()
        if unit not in self.loaded:
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
        self.loaded.pop(unit, None)
