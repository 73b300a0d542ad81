"""The service manager in memory: units, jobs and what follows from a change of state.

One thing at a time, as PID 1 does it: a call that was read, a job that may run, an event of the kernel, a timeout.
Which of those that are due comes first is drawn by the seed; what has to keep its order does so: the messages of one
connection, and the signals about one unit. The rules are those of systemd's src/core/{unit,job}.c.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, Final

import trio

from fakes import services
from fakes.journal import FakeJournal
from fakes.kernel import Group, Kernel, Process
from fakes.link import Connection
from fakes.services import Program
from fakes.units import DOWN, UP, Freezing, Job, JobKind, Mode, Transaction, Unit, Units
from moorage.machines.foreseen import slice_path
from moorage.pid1.errors import ManagerRefused, NoSuchUnit, UnitBusy, UnitExists
from moorage.pid1.jobs import JobEnd
from moorage.pid1.manager import UnitHint

RACE_SECONDS: Final = 0.005
"""For how long after its start PID 1 may lose the event that a scope is empty (its own race)."""


class Pid1:
    """The service manager.

    Attributes:
        units: those that are loaded.
        kernel: of the host.
        journal: what it writes.
        connections: who is connected.
        program: what a command of a service does.
        work: seconds that one thing takes; asked each time.
        loses: whether the event that a scope is empty is lost, within RACE_SECONDS of its start.
        fails: whether the start of a unit fails for lack of something.
        freezing: seconds that it takes to freeze a unit; asked each time.
        late: whether news from before a unit is frozen are read only then; asked each time.
        stop_seconds: the default of TimeoutStopUSec=.
        start_seconds: the default of TimeoutStartUSec=.
        stopped_by_call: names of units that calls have asked to stop.
        stored: the file descriptor store of moored: of each connection to the bus in it, the units that it keeps.
    """

    def __init__(self, kernel: Kernel, random: Random) -> None:
        self.units = Units()
        self.kernel = kernel
        self.random = random
        self.journal = FakeJournal()
        self.connections: list[Connection] = []
        self.program: Callable[[Unit, Sequence[str]], Program] = services.usual
        self.work: Callable[[], float] = lambda: 0.0
        self.loses: Callable[[], bool] = lambda: False
        self.fails: Callable[[Unit], bool] = lambda _unit: False
        self.freezing: Callable[[], float] = lambda: 0.0
        self.late: Callable[[], bool] = lambda: False
        self.stop_seconds = self.start_seconds = 90.0
        self.stopped_by_call: list[str] = []
        self.stored: list[list[Unit]] = []
        self.busy_until = -math.inf
        self._numbers = 0
        self._events: list[Callable[[], None]] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._dirty: dict[Unit, None] = {}
        self._woken = trio.Event()
        self._collecting = False
        kernel.emptied.append(self._group_emptied)

    # The loop

    def wake(self) -> None:
        """Note that there is something to do."""
        self._woken.set()

    def post(self, event: Callable[[], None]) -> None:
        """Have something done when it is its turn."""
        self._events.append(event)
        self.wake()

    def after(self, seconds: float, unit: Unit, event: Callable[[], None]) -> None:
        """Have something done after a while, unless the unit gets another timeout by then."""
        unit.timer = self.number()
        number = unit.timer

        def due() -> None:
            if unit.timer == number and self.units.get(unit.name) is unit:
                event()

        self._timers.append((trio.current_time() + seconds, number, due))
        self.wake()

    def later(self, seconds: float, event: Callable[[], None]) -> None:
        """Have something done after a while."""
        self._timers.append((trio.current_time() + seconds, self.number(), event))
        self.wake()

    def number(self) -> int:
        """Return a number that was never used before."""
        self._numbers += 1
        return self._numbers

    async def run(self) -> None:
        """Work for ever."""
        while True:
            if not self._is_due():
                for unit in list(self._dirty):
                    self._flush(unit)
                due = min((due for due, _, _ in self._timers), default=math.inf)
                with trio.move_on_at(due):
                    await self._woken.wait()
                self._woken = trio.Event()
            if trio.current_time() < self.busy_until:
                await trio.sleep_until(self.busy_until)
            await trio.sleep(self.work())
            self._step()

    def _runnable(self) -> list[Job]:
        return [
            unit.job
            for unit in self.units
            if unit.job is not None
            and not unit.job.running
            and not (unit.job.kind == "start" and unit.active == "deactivating")
            and self.units.is_runnable(unit.job)
        ]

    def _is_due(self) -> bool:
        return (
            bool(self._events)
            or any(connection.inbox for connection in self.connections)
            or any(due <= trio.current_time() for due, _, _ in self._timers)
            or bool(self._runnable())
        )

    def _step(self) -> None:
        """Do one of the things that are due."""
        timers = sorted(each for each in self._timers if each[0] <= trio.current_time())
        messages = [connection for connection in self.connections if connection.inbox]
        jobs = self._runnable()
        kinds = [*("timer",) * bool(timers), *("message",) * bool(messages)]
        kinds += [*("event",) * bool(self._events), *("job",) * bool(jobs)]
        match self.random.choice(kinds) if kinds else None:
            case "timer":
                self._timers.remove(timers[0])
                timers[0][2]()
            case "message":
                self.random.choice(messages).read()
            case "event":
                self._events.pop(self.random.randrange(min(3, len(self._events))))()
            case "job":
                self._run_job(self.random.choice(jobs))
            case _:
                pass
        if self._dirty and self.random.random() < 0.5:
            self._flush(self.random.choice(list(self._dirty)))

    # Signals

    def _send(self, item: UnitHint | JobEnd) -> None:
        for connection in self.connections:
            connection.send(item)

    def _flush(self, unit: Unit) -> None:
        """Signal that a unit has changed."""
        if unit not in self._dirty:
            return
        del self._dirty[unit]
        service = unit.kind == "service"
        self._send(
            UnitHint(
                "changed",
                unit.name,
                unit.active,
                unit.sub,
                unit.invocation,
                unit.result if service or unit.kind == "scope" else "",
                main_pid=(0 if unit.main is None else unit.main.pid) if service else None,
                restarts=unit.restarts if service else 0,
                by_itself=unit.by_itself,
            )
        )

    def changed(self, unit: Unit) -> None:
        """Note that there is something to be signalled of a unit."""
        self._dirty[unit] = None
        self.wake()

    # Jobs

    def begin(self, anchor: Unit, kind: JobKind, mode: Mode) -> Job:
        """Queue a job with all that follows from it.

        Raises:
            UnitBusy, NoSuchUnit: as `Transaction` says.
        """
        transaction = Transaction(self.units, anchor, kind, mode)

        def install(unit: Unit, wanted: JobKind) -> Job:
            return Job(self.number(), unit, wanted, alone=mode == "ignore-dependencies")

        def cancel(job: Job) -> None:
            self.finish(job, "canceled", recursive=False)

        self.wake()
        return transaction.apply(cancel, install)

    def finish(self, job: Job, result: str, *, recursive: bool = True) -> None:
        """End a job, and those that needed it."""
        unit = job.unit
        unit.job = None
        self._flush(unit)
        self._send(JobEnd(job.id, unit.name, result))
        if job.kind == "start" and result != "done" and recursive:
            for other in self.units.naming(unit, "Requires", "BindsTo", "Requisite"):
                if other.job is not None and other.job.kind == "start":
                    self.finish(other.job, "dependency")
            if result in {"timeout", "dependency"}:
                self._trigger(unit)
        self.collect()

    def _trigger(self, unit: Unit) -> None:
        for other in self.units.of(unit, "OnFailure"):
            self.begin(other, "start", "replace")

    def _run_job(self, job: Job) -> None:
        job.running = True
        unit = job.unit
        done = self._start(unit) if job.kind == "start" else self._stop(unit)
        if done is not None and unit.job is job:
            self.finish(job, done)

    def _start(self, unit: Unit) -> str | None:
        if unit.active == "active":
            return "done"
        if unit.active == "activating":
            return None
        before = self.units.after(unit)
        for other in self.units.of(unit, "BindsTo"):
            if other in before and other.active in DOWN:
                return "dependency"
        if unit.properties.get("Conditions"):  # those of the tests are never met
            return "done"
        return services.start(self, unit)

    def _stop(self, unit: Unit) -> str | None:
        if unit.active in DOWN:
            return "done"
        if unit.freezing is not None or (unit.group and self.kernel.is_frozen(unit.group)):
            return "frozen"
        if unit.active == "deactivating":
            return None
        services.stop(self, unit)
        return None

    # States

    def enter(self, unit: Unit, active: str, sub: str) -> None:
        """Change the state of a unit, with all that follows (``unit_notify()``)."""
        before, unit.active, unit.sub = unit.active, active, sub
        unit.by_itself = (
            active in DOWN and before in {"active", *DOWN} and (before == "active" or unit.by_itself)
        )
        self.changed(unit)
        job, unexpected = unit.job, True
        if job is not None and job.kind == "start":
            if active == "active":
                unexpected = False
                self.finish(job, "done")
            elif job.running and active in DOWN:
                self.finish(job, "failed" if active == "failed" else "done")
        elif job is not None:
            if active in DOWN:
                unexpected = False
                self.finish(job, "done")
            elif active == "deactivating":
                unexpected = False
        if active == before:
            return
        if unexpected and before in UP and active not in UP:
            for other in [*self.units.naming(unit, "BindsTo"), *self.units.of(unit, "PropagatesStopTo")]:
                if other.active not in DOWN:
                    self.begin(other, "stop", "replace")
        if active == "failed":
            self._trigger(unit)
        if active in DOWN:
            for other in self.units.of(unit, "Requires", "Wants", "BindsTo", "Upholds"):
                self.post(lambda other=other: self._stop_unneeded(other))
            for other in self.units.naming(unit, "BindsTo"):
                self.post(lambda other=other: self._stop_bound(other))
            self.collect()
        elif active == "active":
            self.post(lambda: self._stop_unneeded(unit))
            self.post(lambda: self._stop_bound(unit))

    def _stop_unneeded(self, unit: Unit) -> None:
        if not unit.properties.get("StopWhenUnneeded") or unit.active not in UP or unit.job is not None:
            return
        if not any(
            other.active in UP or other.job is not None
            for other in self.units.naming(unit, "Requires", "Requisite", "Wants", "BindsTo", "Upholds")
        ):
            self.begin(unit, "stop", "replace")

    def _stop_bound(self, unit: Unit) -> None:
        if unit.active not in UP or unit.job is not None:
            return
        if any(other.job is None and other.active in DOWN for other in self.units.of(unit, "BindsTo")):
            self.begin(unit, "stop", "replace")

    def dead(self, unit: Unit, result: str) -> None:
        """End a unit, and take its control group away."""
        if unit.result == "success":
            unit.result = result
        unit.timer = 0
        self._cancel_freezing(unit)
        if unit.group:
            self.kernel.remove(unit.group)
            unit.group = ""
        self.journal.end(unit)
        ok = unit.result == "success"
        self.enter(unit, "inactive" if ok else "failed", "dead" if ok else "failed")

    def _group_emptied(self, group: Group) -> None:
        unit = next((each for each in self.units if each.group == group.path and each.group), None)
        if unit is None:
            return
        began = unit.starts[-1] if unit.starts else -math.inf
        if unit.kind == "scope" and trio.current_time() - began <= RACE_SECONDS and self.loses():
            unit.missed = True
            return
        self.post(lambda: self._empty(unit, group))

    def _empty(self, unit: Unit, group: Group) -> None:
        if self.kernel.groups.get(unit.group) is group and not group.count and unit.group:
            services.empty(self, unit)

    # Units that nothing keeps

    def disconnect(self, kept: list[Unit]) -> None:
        """Drop the references of a connection to the bus that has ended, stored or not."""
        self.stored = [each for each in self.stored if each is not kept]
        for unit in kept:
            unit.references -= 1
        kept.clear()
        self.collect()

    def collect(self) -> None:
        """Unload what nobody needs, when it is its turn."""
        if not self._collecting:
            self._collecting = True
            self.post(self._collect)

    def _collect(self) -> None:
        self._collecting = False
        kept = self.kept_by(unit for unit in self.units if not _may_go(unit))
        for unit in self.units:
            if unit not in kept:
                self._flush(unit)
                self.units.remove(unit)
                self._send(UnitHint("removed", unit.name))

    def kept_by(self, units: Iterable[Unit]) -> set[Unit]:
        """Return units with all that they keep loaded, as they refer to it."""
        kept = set(units)
        following = list(kept)
        while following:
            for other in self.units.of(following.pop(), *services.REFERRING):
                if other not in kept:
                    kept.add(other)
                    following.append(other)
        return kept

    # Calls

    def load(self, name: str, properties: Sequence[tuple[str, object]], given: tuple[Process, ...]) -> Unit:
        """Make a transient unit.

        Raises:
            UnitExists: there is one.
            ManagerRefused: no unit can be called that.
        """
        if name.rpartition(".")[2] not in {"scope", "service", "socket"} or "/" in name or len(name) > 255:
            raise ManagerRefused("Invalid unit name or type.", "org.freedesktop.DBus.Error.InvalidArgs")
        if self.units.get(name) is not None:
            raise UnitExists(name)
        unit = Unit(name)
        unit.transient = True
        unit.fragment = f"/run/systemd/transient/{name}"
        unit.set(properties)
        unit.given = given
        return self.units.add(unit)

    def start_transient(
        self,
        unit: str,
        properties: Sequence[tuple[str, object]],
        given: tuple[Process, ...],
        auxiliary: Sequence[tuple[str, Sequence[tuple[str, object]]]],
    ) -> int:
        """Make units, and start the first; return the job's number."""
        made: list[Unit] = []
        try:
            made.append(self.load(unit, properties, given))
            for name, each in auxiliary:
                made.append(self.load(name, each, ()))
            return self.begin(made[0], "start", "fail").id
        except Exception:
            for each in made:
                each.transient = True
            self.collect()
            raise

    def freeze(self, unit: Unit) -> Freezing:
        """Begin to freeze a unit, which takes a moment (``unit_freezer_action()``).

        Raises:
            UnitBusy: something is being done with it.
        """
        self._check_freezable(unit)
        if unit.freezing is not None:
            raise UnitBusy(unit.name, "Previously requested freezer operation for unit is still in progress")
        freezing = Freezing()
        if not unit.group:
            freezing.ended.set()
            return freezing
        unit.freezing = freezing
        group = self.kernel.groups[unit.group]
        group.freezing = True

        def frozen() -> None:
            if group.freezing:
                group.freezing = False
                self.kernel.freeze(unit.group, frozen=True)
                if unit.freezing is not None:
                    unit.freezing.ended.set()
                    unit.freezing = None

        self.later(self.freezing(), frozen)
        if (
            self.late()
        ):  # it gives up; the control group is to be frozen all the same (``unit_freezer_complete()``)
            unit.freezing = None
            freezing.cancel()
        return freezing

    def thaw(self, unit: Unit) -> None:
        """Thaw a unit.

        Raises:
            UnitBusy: something is being done with it, or it is frozen by its slice alone.
        """
        self._check_freezable(unit)
        self._cancel_freezing(unit)
        if not unit.group:
            return
        if not self.kernel.groups[unit.group].frozen and self.kernel.is_frozen(unit.group):
            raise UnitBusy(unit.name, "Unit is frozen by a parent slice")
        self.kernel.freeze(unit.group, frozen=False)

    def _check_freezable(self, unit: Unit) -> None:
        if unit.job is not None:
            raise UnitBusy(unit.name, "Unit has a pending job")
        if unit.active != "active":
            raise UnitBusy(unit.name, "Unit is not active")

    def _cancel_freezing(self, unit: Unit) -> None:
        if unit.freezing is not None:
            unit.freezing.cancel()
            unit.freezing = None
        if unit.group in self.kernel.groups:
            self.kernel.groups[unit.group].freezing = False

    def found(self, name: str) -> Unit:
        """Return a unit that is loaded.

        Raises:
            NoSuchUnit: it is not.
        """
        unit = self.units.get(name)
        if unit is None:
            raise NoSuchUnit(name)
        return unit

    def unit_of(self, process: Process) -> Unit | None:
        """Return the unit that a process is in."""
        if process.exit is not None:
            return None
        path = process.group.path
        while path:
            for unit in self.units:
                if unit.group == path:
                    return unit
            path = path.rpartition("/")[0]
        return None

    # What befalls it

    def reload(self, seconds: float) -> None:
        """Read the configuration anew: what a unit failed with is forgotten, and nobody is answered for a while."""
        self.busy_until = trio.current_time() + seconds

        def done() -> None:
            for unit in self.units:
                if unit.active == "failed":
                    unit.result = "success"
            self._send(UnitHint("reloaded"))

        self.post(done)

    def group_of(self, unit: Unit) -> str:
        """Return the path of the control group that a unit gets."""
        value: Any = unit.properties.get("Slice") or (
            "machine.slice" if unit.kind == "scope" else "system.slice"
        )
        return f"{slice_path(str(value))}/{unit.name}"

    def new_invocation(self, unit: Unit) -> None:
        """Begin a new run of a unit."""
        unit.invocation = f"{self.number():032x}"
        unit.result = "success"
        unit.killed = unit.missed = False


def _may_go(unit: Unit) -> bool:
    if unit.job is not None or unit.references or not unit.transient:
        return False
    if unit.active == "failed":
        return unit.properties.get("CollectMode") == "inactive-or-failed"
    return unit.active == "inactive"
