"""`Manager` of the service manager in memory: what `moorage.pid1.over_dbus` is to PID 1.

Its behaviour when the connection is lost is that of the real one: what may be asked twice is, a start of a scope is
looked for and repeated once, a stop is repeated.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Literal, TypeVar

import trio

from fakes.kernel import FakeProcesses
from fakes.link import Connection, Lost
from fakes.pid1 import Pid1
from fakes.units import Unit
from moorage.pid1.errors import (
    FreezerCancelled,
    InvalidProperty,
    ManagerRefused,
    ManagerTimeout,
    ManagerUnavailable,
    NoSuchProperty,
    NoSuchUnit,
    UnitExists,
)
from moorage.pid1.jobs import JobEnd, JobLedger
from moorage.pid1.manager import Job, Json, ScopeSpec, ServiceSpec, TypedProperty, UnitHint, UnitStatus

LINK_WAIT_SECONDS: Final = 15.0

LIVE: Final = ("CPU", "Memory", "Tasks", "IO", "Device", "IP", "Allowed", "ManagedOOM")
"""How the names of properties begin that can be changed while a unit is there."""

VALUES: Final[Mapping[str, Sequence[object]]] = {"DevicePolicy": ("auto", "closed", "strict")}
"""The values that some of them may have."""

T = TypeVar("T")


class AnyProperties:
    """Takes every property as it is."""

    @property
    def settable(self) -> Mapping[str, str]:
        """See `PropertyTypes`."""
        return {}

    def convert(self, properties: Mapping[str, Json]) -> tuple[TypedProperty, ...]:
        """See `PropertyTypes`."""
        return tuple(TypedProperty(name, "v", value) for name, value in properties.items())


class FakeManager:
    """`Manager` of one program. Works while `run` runs.

    Attributes:
        version: of systemd.
        pid1: the other end.
        dead: the program does nothing any more.
        down: seconds for which a lost connection stays away; asked each time.
        delay: seconds that a message takes; asked each time.
    """

    def __init__(self, pid1: Pid1, processes: FakeProcesses, version: int = 262) -> None:
        self.version = version
        self.pid1 = pid1
        self.dead = False
        self.down: Callable[[], float] = lambda: 0.05
        self.delay: Callable[[], float] = lambda: 0.0
        self._processes = processes
        self._jobs = JobLedger()
        self._link: Connection | None = None
        self._link_up = trio.Event()
        self._callback: Callable[[UnitHint], None] = lambda _: None
        self._interest: Callable[[str], bool] = lambda _: False

    @property
    def idle(self) -> bool:
        """Whether no call waits for a job."""
        return self._jobs.idle and not self._jobs.remembered

    def watch(self, callback: Callable[[UnitHint], None], interest: Callable[[str], bool]) -> None:
        """See `Manager`."""
        self._callback, self._interest = callback, interest

    def lose(self, *, unread: bool = False) -> None:
        """Lose the connection; unread: the manager reads the calls that were sent all the same."""
        if self._link is not None:
            self._link.close(unread=unread)
            self._link = None
            self._link_up = trio.Event()
            self._jobs.lose_all()
            self._callback(UnitHint("disconnected"))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, and connect again whenever the connection is lost."""
        while not self.dead:
            link = self._link = Connection(self.pid1, self._take, self.delay)
            self._link_up.set()
            self._callback(UnitHint("connected"))
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            try:
                await link.run()
            finally:
                self.lose(unread=True)
            await trio.sleep(self.down())

    def _take(self, item: UnitHint | JobEnd) -> None:
        if isinstance(item, JobEnd):
            self._jobs.record(item)
        elif not item.unit or self._interest(item.unit):
            self._callback(item)

    async def _up(self) -> Connection:
        with trio.move_on_after(LINK_WAIT_SECONDS):
            while self._link is None:
                await self._link_up.wait()
        if self._link is None:
            raise ManagerUnavailable("the connection is down")
        return self._link

    async def _ask(self, operation: str, deadline: float, call: Callable[[], T]) -> T:
        with _errors(operation, deadline):
            while True:
                with suppress(Lost):
                    found: T = await (await self._up()).call(call)
                    return found

    async def _once(self, operation: str, deadline: float, call: Callable[[], T]) -> T:
        with _errors(operation, deadline):
            found: T = await (await self._up()).call(call)
            return found

    # Jobs

    async def _run_job(
        self, call: Callable[[], int], unit: str, *, queued: Callable[[], None] | None = None
    ) -> Job:
        ended = trio.Event()
        ticket = self._jobs.expect(ended.set)
        try:
            number = await (await self._up()).call(call)
            if queued is not None:
                queued()
            self._jobs.claim(ticket, number)
            await ended.wait()
            if ticket.end is None:
                raise Lost
            return Job(ticket.end.result, ticket.end.unit or unit, ticket.end.job_id)
        finally:
            self._jobs.forget(ticket)

    async def _settle(self, unit: str, deadline: float) -> UnitStatus | None:
        while True:
            ended = trio.Event()
            ticket = self._jobs.expect(ended.set)
            try:
                found = await self.status(unit, deadline=deadline)
                if found is None or found.job_id == 0:
                    return found
                self._jobs.claim(ticket, found.job_id)
                await ended.wait()
            finally:
                self._jobs.forget(ticket)

    async def _holds(self, spec: ScopeSpec, deadline: float) -> bool:
        if not spec.pidfds:
            return False
        try:
            return (await self.unit_of_process(spec.pidfds[0], deadline=deadline))[0] == spec.unit
        except NoSuchUnit:
            return False

    async def start_scope(
        self, spec: ScopeSpec, *, deadline: float, made: Callable[[], None] | None = None
    ) -> Job:
        """See `Manager`."""
        given = tuple(self._processes.process(pidfd) for pidfd in spec.pidfds)
        properties = [("Slice", spec.slice), ("Description", spec.description), *_values(spec.properties)]
        auxiliary = [(each.unit, _values(each.properties)) for each in spec.auxiliary]

        def call() -> int:
            if any(process.reaped for process in given):
                raise InvalidProperty("PIDFDs", "No such process")
            return self.pid1.start_transient(spec.unit, properties, given, auxiliary)

        with _errors(f"start of {spec.unit}", deadline):
            repeated = False
            while True:
                try:
                    return await self._run_job(call, spec.unit, queued=made)
                except Lost:
                    found = await self._settle(spec.unit, deadline)
                if found is not None and found.active_state == "failed":
                    return Job("failed", spec.unit, 0)
                active = found is not None and found.active_state == "active"
                if active and await self._holds(spec, deadline):
                    return Job("done", spec.unit, 0)
                if repeated:
                    raise ManagerUnavailable(
                        f"link lost during the start of {spec.unit}, which did not happen"
                    )
                repeated = True

    async def check_scope(self, spec: ScopeSpec, *, deadline: float) -> None:
        """See `Manager`."""

        def call() -> None:
            for name in (spec.unit, *(each.unit for each in spec.auxiliary)):
                if self.pid1.units.get(name) is not None:
                    raise UnitExists(name)

        await self._ask(f"check of {spec.unit}", deadline, call)

    async def start_service(
        self, spec: ServiceSpec, *, deadline: float, made: Callable[[], None] | None = None
    ) -> Job:
        """See `Manager`."""
        properties = [("Description", spec.description), *_values(spec.properties)]
        auxiliary = [(each.unit, _values(each.properties)) for each in spec.auxiliary]
        with _errors(f"start of {spec.unit}", deadline):
            return await self._run_job(
                lambda: self.pid1.start_transient(spec.unit, properties, (), auxiliary),
                spec.unit,
                queued=made,
            )

    async def stop(self, unit: str, *, alone: bool = False, deadline: float) -> Job:
        """See `Manager`."""

        def call() -> int:
            found = self.pid1.found(unit)
            self.pid1.stopped_by_call.append(unit)
            return self.pid1.begin(found, "stop", "ignore-dependencies" if alone else "replace").id

        sent = False
        with _errors(f"stop of {unit}", deadline):
            while True:
                try:
                    return await self._run_job(call, unit)
                except Lost:
                    sent = True
                except NoSuchUnit:
                    if not sent:
                        raise
                    return Job("done", unit, 0)

    async def reload(self, unit: str, *, deadline: float) -> Job:
        """See `Manager`."""

        def call() -> None:
            self.pid1.found(unit)
            raise ManagerRefused(
                f"Job type reload is not applicable for unit {unit}.", "JobTypeNotApplicable"
            )

        await self._once(f"reload of {unit}", deadline, call)
        raise AssertionError("nothing can be reloaded here")

    # Questions

    async def status(self, unit: str, *, deadline: float) -> UnitStatus | None:
        """See `Manager`."""

        def call() -> UnitStatus | None:
            found = self.pid1.units.get(unit)
            return None if found is None else self._status(found)

        return await self._ask(f"status of {unit}", deadline, call)

    def _status(self, unit: Unit) -> UnitStatus:
        documentation: Any = unit.properties.get("Documentation") or ()
        dependants = self.pid1.units.naming(unit, "Requires", "Requisite", "Wants", "BindsTo", "Upholds")
        return UnitStatus(
            unit=unit.name,
            description=str(unit.properties.get("Description") or unit.name),
            load_state="loaded",
            active_state=unit.active,
            sub_state=unit.sub,
            result=unit.result,
            slice=str(unit.properties.get("Slice") or "system.slice"),
            control_group=unit.group,
            invocation_id=unit.invocation,
            fragment_path=unit.fragment,
            transient=unit.transient,
            job_id=0 if unit.job is None else unit.job.id,
            dependants=tuple(each.name for each in dependants),
            documentation=tuple(documentation),
            main_pid=0 if unit.main is None else unit.main.pid,
            restarts=unit.restarts,
        )

    async def units(self, pattern: str, *, deadline: float) -> list[str]:
        """See `Manager`."""
        return await self._ask(
            f"list of {pattern}",
            deadline,
            lambda: [unit.name for unit in self.pid1.units if fnmatch.fnmatchcase(unit.name, pattern)],
        )

    async def unit_of_process(self, pidfd: int, *, deadline: float) -> tuple[str, str]:
        """See `Manager`."""
        process = self._processes.process(pidfd)

        def call() -> tuple[str, str]:
            found = self.pid1.unit_of(process)
            if found is None:
                raise NoSuchUnit
            return found.name, found.invocation

        return await self._ask("look-up of a process", deadline, call)

    async def properties(self, unit: str, names: Sequence[str], *, deadline: float) -> dict[str, Json]:
        """See `Manager`."""

        def call() -> dict[str, Json]:
            found = self.pid1.units.get(unit) or Unit(unit)
            values: dict[str, Json] = {
                "LoadState": "loaded" if self.pid1.units.get(unit) else "not-found",
                "ActiveState": found.active,
                "SubState": found.sub,
                "Result": found.result,
                "MainPID": 0 if found.main is None else found.main.pid,
                "InvocationID": list(bytes.fromhex(found.invocation)),
                "TimeoutStopUSec": round(self.pid1.stop_seconds * 1e6),
                "SendSIGKILL": True,
                "DropInPaths": [],
            }
            kept: dict[str, Any] = found.properties
            values.update({name: kept[name] for name in names if name in kept})
            for name in names:
                if name in values:
                    continue
                if name.endswith(("NSec", "Peak", "Bytes", "Operations", "Kills")):
                    values[name] = None
                else:
                    raise NoSuchProperty(name)
            return {name: values[name] for name in names}

        return await self._ask(f"properties of {unit}", deadline, call)

    async def property_types(self, unit_type: str, *, deadline: float) -> AnyProperties:
        """See `Manager`."""
        await trio.lowlevel.checkpoint()
        return AnyProperties()

    # Orders

    async def kill(
        self, unit: str, whom: Literal["all", "main", "control"], signal: int, *, deadline: float
    ) -> None:
        """See `Manager`."""
        await self.kill_subgroup(unit, "", signal, deadline=deadline)

    async def kill_subgroup(self, unit: str, subgroup: str, signal: int, *, deadline: float) -> None:
        """See `Manager`."""

        def call() -> None:
            found = self.pid1.found(unit)
            there = self.pid1.kernel.members(found.group + subgroup) if found.group else []
            if not there:
                raise NoSuchUnit(unit)
            for process in there:
                self.pid1.kernel.signal(process, signal)

        await self._once(f"kill of {unit}", deadline, call)

    async def set_properties(
        self, unit: str, properties: Sequence[TypedProperty], *, check: bool = False, deadline: float
    ) -> None:
        """See `Manager`."""

        def call() -> None:
            found = self.pid1.found(unit)
            for name, _, value in properties:
                if not name.startswith(LIVE):
                    raise InvalidProperty(name, "it cannot be changed once the unit has been started")
                if value not in VALUES.get(name, (value,)):
                    raise InvalidProperty(name, "Failed to set unit properties: Invalid argument")
            if not check:
                found.set((name, value) for name, _, value in properties)

        await self._ask(f"change of {unit}", deadline, call)

    async def freeze(self, unit: str, *, deadline: float) -> None:
        """See `Manager`."""
        operation = f"freeze of {unit}"
        freezing = await self._ask(operation, deadline, lambda: self.pid1.freeze(self.pid1.found(unit)))
        with _errors(operation, deadline):
            await freezing.ended.wait()
        if freezing.cancelled:
            raise FreezerCancelled(unit, "it was thawed before it was frozen")

    async def thaw(self, unit: str, *, deadline: float) -> None:
        """See `Manager`."""
        await self._ask(f"thaw of {unit}", deadline, lambda: self.pid1.thaw(self.pid1.found(unit)))

    async def reset_failed(self, unit: str, *, deadline: float) -> None:
        """See `Manager`."""

        def call() -> None:
            found = self.pid1.found(unit)
            if found.active == "failed":
                found.result = "success"
                self.pid1.enter(found, "inactive", "dead")

        await self._ask(f"reset of {unit}", deadline, call)


class FakeReferences:
    """`References` over a connection of its own. Works while `run` runs.

    Attributes:
        delay: seconds that a message takes; asked each time.
        linger: seconds for which a unit is kept after its release; asked each time.
    """

    def __init__(self, pid1: Pid1) -> None:
        self._pid1 = pid1
        self.delay: Callable[[], float] = lambda: 0.0
        self.linger: Callable[[], float] = lambda: 0.0
        self._wanted: dict[str, None] = {}
        self._lingering: dict[str, float] = {}
        self._held: dict[str, Unit] = {}
        self._taken: list[Unit] = []
        self._earlier = list(pid1.stored)
        self._succeeds = False
        self._changed = trio.Event()
        self._progress = trio.Event()
        self._up = False

    def __len__(self) -> int:
        return len(self._wanted)

    def holds(self, unit: str) -> bool:
        """See `References`."""
        return self._up and unit in self._wanted

    def hold(self, units: Iterable[str]) -> None:
        """See `References`."""
        self._wanted.update(dict.fromkeys(units))
        self._changed.set()

    async def settled(self, unit: str) -> None:
        """See `References`."""
        with trio.move_on_after(1.0):
            while self.holds(unit) and unit not in self._held:
                await self._progress.wait()

    def release(self, unit: str, *, at_once: bool = False) -> None:
        """See `References`."""
        if unit in self._wanted:
            del self._wanted[unit]
            self._lingering[unit] = -math.inf if at_once else trio.current_time() + self.linger()
            self._changed.set()

    async def freed(self, unit: str) -> None:
        """See `References`."""
        if unit in self._lingering:
            self._lingering[unit] = -math.inf
            self._changed.set()
        with trio.move_on_after(1.0):
            while unit in self._held and unit not in self._wanted:
                await self._progress.wait()

    def succeed(self) -> None:
        """See `References`."""
        self._succeeds = True
        self._changed.set()

    async def run(self) -> None:
        """Take and drop references for ever."""
        link = Connection(self._pid1, lambda _: None, self.delay)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.run)
                self._up = True
                while True:
                    self._changed = trio.Event()
                    await self._catch_up(link)
                    if self._succeeds:
                        await self._hand_over(link)
                    with trio.move_on_at(min(self._lingering.values(), default=math.inf)):
                        await self._changed.wait()
        finally:
            self._up = False
            link.close(unread=False)
            if not any(each is self._taken for each in self._pid1.stored):
                self._pid1.disconnect(self._taken)

    async def _catch_up(self, link: Connection) -> None:
        present = trio.current_time()
        for name in [each for each, due in self._lingering.items() if due <= present]:
            del self._lingering[name]
            if name in self._held and name not in self._wanted:
                unit = self._held.pop(name)
                await link.call(lambda unit=unit: self._drop(unit))
        for name in [each for each in self._wanted if each not in self._held]:
            unit = await link.call(lambda name=name: self._take(name))
            if unit is not None:
                self._held[name] = unit
            else:
                self._wanted.pop(name, None)
        self._progress.set()
        self._progress = trio.Event()

    async def _hand_over(self, link: Connection) -> None:
        if not any(each is self._taken for each in self._pid1.stored):
            await link.call(lambda: self._pid1.stored.append(self._taken))
        while self._earlier:
            each = self._earlier.pop()
            await link.call(lambda each=each: self._pid1.disconnect(each))

    def _take(self, name: str) -> Unit | None:
        unit = self._pid1.units.get(name)
        if unit is not None:
            unit.references += 1
            self._taken.append(unit)
        return unit

    def _drop(self, unit: Unit) -> None:
        self._taken.remove(unit)
        unit.references -= 1
        self._pid1.collect()


def _values(properties: Sequence[TypedProperty]) -> list[tuple[str, object]]:
    return [(name, value) for name, _, value in properties]


@contextmanager
def _errors(operation: str, deadline: float) -> Generator[None]:
    try:
        with trio.fail_at(deadline):
            yield
    except trio.TooSlowError:
        raise ManagerTimeout(operation) from None
    except Lost:
        raise ManagerUnavailable("the connection was lost") from None
