"""Units and jobs of the service manager in memory, and how a call becomes jobs (systemd's src/core/transaction.c)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal, TypeAlias

import trio

from fakes.kernel import Process
from moorage.pid1.errors import NoSuchUnit, UnitBusy

JobKind: TypeAlias = Literal["start", "stop"]
Mode: TypeAlias = Literal["fail", "replace", "ignore-dependencies"]

DEPENDENCIES: Final = (
    "Requires", "Requisite", "Wants", "BindsTo", "PartOf", "Upholds", "Conflicts", "Before", "After", "OnFailure",
    "PropagatesStopTo", "StopPropagatedFrom",
)  # fmt: skip
"""Properties of units that name others."""

LISTS: Final = frozenset({*DEPENDENCIES, "Documentation"})
"""Properties that grow by what is set later."""

UP: Final = frozenset({"active", "activating", "reloading"})
DOWN: Final = frozenset({"inactive", "failed"})


class Freezing:
    """A unit that is being frozen.

    Attributes:
        ended: set when it is, or will not be.
        cancelled: it was thawed, or has ended, before it was.
    """

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.cancelled = False

    def cancel(self) -> None:
        """Give up."""
        self.cancelled = True
        self.ended.set()


class Unit:
    """A unit that is loaded.

    Attributes:
        name: with its suffix, which is its kind.
        properties: as they were given.
        active: its state.
        sub: the finer state of its kind.
        result: why it ended.
        by_itself: it has ended, and was active until then.
        transient: it was made by a call.
        invocation: of its last start, 32 hexadecimal digits.
        group: its control group; empty while it has none.
        job: what is queued for it.
        given: processes to be moved into it at its start.
        main: the main process of a service.
        restarts: how often it was restarted by itself.
        references: clients on the bus that keep it loaded.
        timer: number of the timeout that counts; older ones do not.
        starts: when it was started, for the start limit, s.
        killed: SIGKILL was sent since its stop began.
        missed: the manager has lost the event that it is empty.
        oom: a process of it was killed for lack of memory.
        remains: it is active also without a process.
        freezing: it is being frozen.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind = name.rpartition(".")[2]
        self.properties: dict[str, object] = {}
        self.active, self.sub, self.result = "inactive", "dead", "success"
        self.by_itself = False
        self.transient = False
        self.fragment = ""
        self.invocation = ""
        self.group = ""
        self.job: Job | None = None
        self.given: tuple[Process, ...] = ()
        self.main: Process | None = None
        self.restarts = 0
        self.references = 0
        self.timer = 0
        self.starts: list[float] = []
        self.killed = False
        self.missed = False
        self.oom = False
        self.remains = False
        self.freezing: Freezing | None = None

    def __repr__(self) -> str:
        return f"<{self.name} {self.active}/{self.sub}>"

    def set(self, properties: Iterable[tuple[str, object]]) -> None:
        """Set properties; an empty list resets one that grows."""
        for name, value in properties:
            if name in LISTS and isinstance(value, list) and value:
                before = self.properties.get(name)
                self.properties[name] = [*before, *value] if isinstance(before, list) else list(value)
            else:
                self.properties[name] = value

    def names(self, dependency: str) -> tuple[str, ...]:
        """Return the names that one of its dependencies has."""
        value = self.properties.get(dependency)
        return tuple(dict.fromkeys(map(str, value))) if isinstance(value, list) else ()


class Job:
    """Something that is to be done with a unit.

    Attributes:
        id: the manager's number of it.
        alone: it heeds no order (``ignore-dependencies``).
        running: it has begun.
    """

    def __init__(self, number: int, unit: Unit, kind: JobKind, *, alone: bool) -> None:
        self.id = number
        self.unit = unit
        self.kind = kind
        self.alone = alone
        self.running = False


class Units:
    """The units that are loaded, and what they are to one another."""

    def __init__(self) -> None:
        self._units: dict[str, Unit] = {}
        self._named: dict[tuple[str, str], list[Unit]] = {}  # by dependency and the name that it has

    def __iter__(self) -> Iterator[Unit]:
        return iter(list(self._units.values()))

    def get(self, name: str) -> Unit | None:
        """Return a unit that is loaded."""
        return self._units.get(name)

    def add(self, unit: Unit) -> Unit:
        """Load a unit, whose dependencies do not change any more."""
        self._units[unit.name] = unit
        for dependency in DEPENDENCIES:
            for name in unit.names(dependency):
                if name != unit.name:
                    self._named.setdefault((dependency, name), []).append(unit)
        return unit

    def remove(self, unit: Unit) -> None:
        """Unload a unit."""
        del self._units[unit.name]
        for dependency in DEPENDENCIES:
            for name in unit.names(dependency):
                if name != unit.name:
                    self._named[dependency, name].remove(unit)

    def of(self, unit: Unit, *dependencies: str) -> list[Unit]:
        """Return those that a unit names and that are loaded."""
        found: dict[Unit, None] = {}
        for dependency in dependencies:
            for name in unit.names(dependency):
                if (other := self._units.get(name)) is not None:
                    found[other] = None
        return list(found)

    def naming(self, unit: Unit, *dependencies: str) -> list[Unit]:
        """Return those that name a unit."""
        found: dict[Unit, None] = {}
        for dependency in dependencies:
            found.update(dict.fromkeys(self._named.get((dependency, unit.name), ())))
        return list(found)

    def after(self, unit: Unit) -> list[Unit]:
        """Return those that come before a unit."""
        return [*self.of(unit, "After"), *self.naming(unit, "Before")]

    def before(self, unit: Unit) -> list[Unit]:
        """Return those that come after a unit."""
        return [*self.of(unit, "Before"), *self.naming(unit, "After")]

    def stopped_with(self, unit: Unit) -> list[Unit]:
        """Return those that a stop of a unit is passed on to."""
        return [
            *self.naming(unit, "Requires", "BindsTo", "PartOf", "Requisite", "StopPropagatedFrom"),
            *self.of(unit, "PropagatesStopTo"),
        ]

    def is_runnable(self, job: Job) -> bool:
        """Whether no other job comes first (``job_compare()``: stops go first, in the opposite order)."""
        if job.alone:
            return True
        if job.kind == "start" and any(
            other.job is not None and not other.job.alone for other in self.after(job.unit)
        ):
            return False
        return not any(
            other.job is not None and other.job.kind == "stop" and not other.job.alone
            for other in self.before(job.unit)
        )


class Transaction:
    """The jobs that one call amounts to: all of them or none."""

    def __init__(self, units: Units, anchor: Unit, kind: JobKind, mode: Mode) -> None:
        """Collect the jobs.

        Raises:
            NoSuchUnit: something is required that there is not.
            UnitBusy: jobs of one unit conflict.
        """
        self._units = units
        self._mode: Mode = mode
        self._anchor = anchor
        self.jobs: dict[Unit, JobKind] = {}
        self._matters: dict[Unit, bool] = {}
        self._add(anchor, kind, matters=True)
        self._drop_redundant()
        if mode == "fail":
            for unit, wanted in self.jobs.items():
                if unit.job is not None and unit.job.kind != wanted:
                    raise UnitBusy(unit.name, "TransactionIsDestructive")

    def _add(self, unit: Unit, kind: JobKind, *, matters: bool) -> None:
        known = self.jobs.get(unit)
        if known == kind:
            self._matters[unit] |= matters
            return
        if known is not None:
            if self._matters[unit] and matters:
                raise UnitBusy(unit.name, "TransactionJobsConflicting")
            if not matters:
                return
        self.jobs[unit] = kind
        self._matters[unit] = matters
        if self._mode == "ignore-dependencies":
            return
        if kind == "start":
            self._pull_in(unit, matters=matters)
        else:
            for other in self._units.stopped_with(unit):
                self._add(other, "stop", matters=matters)

    def _pull_in(self, unit: Unit, *, matters: bool) -> None:
        for name in unit.names("Requires") + unit.names("BindsTo"):
            other = self._units.get(name)
            if other is None:
                raise NoSuchUnit(name)
            self._add(other, "start", matters=matters)
        for other in self._units.of(unit, "Wants", "Upholds"):
            try:
                self._add(other, "start", matters=False)
            except NoSuchUnit:
                self.jobs.pop(other, None)
        for other in [*self._units.of(unit, "Conflicts"), *self._units.naming(unit, "Conflicts")]:
            self._add(other, "stop", matters=True)

    def _drop_redundant(self) -> None:
        for unit, kind in list(self.jobs.items()):
            states = {"active", "reloading"} if kind == "start" else DOWN
            if unit is not self._anchor and unit.job is None and unit.active in states:
                del self.jobs[unit]

    def apply(self, cancel: Callable[[Job], None], install: Callable[[Unit, JobKind], Job]) -> Job:
        """Queue the jobs.

        Args:
            cancel: takes a job out of the queue that is in the way.
            install: makes one.

        Returns:
            That of the unit that the call is about.
        """
        for unit, kind in self.jobs.items():
            if unit.job is not None and unit.job.kind != kind:
                cancel(unit.job)
            if unit.job is None:
                unit.job = install(unit, kind)
        found = self._anchor.job
        assert found is not None
        return found
