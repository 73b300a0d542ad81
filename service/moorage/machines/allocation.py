"""A process gets its place: a new scope, or the unit that it is in already. And the way back when that fails.

The policy towards the service manager is that of opencontainers/cgroups, with an end to every wait: start, wait for
the job, look again; a failed leftover is reset once; whatever was made is taken away when the machine cannot have it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import trio

from moorage import process
from moorage.machines.model import MachineClass, Registration, scope_name
from moorage.pid1 import cgroup
from moorage.pid1.manager import (
    InvalidProperty,
    Job,
    Json,
    Look,
    Manager,
    ManagerRefused,
    NoSuchUnit,
    PropertyTypes,
    ScopeSpec,
    TypedProperty,
    UnitExists,
    UnitHint,
    UnitStatus,
)

MACHINE_SLICE = "machine.slice"
"""Where machines go by default (systemd.special(7))."""

TASKS_MAX = 16384
"""Default limit of tasks, machined's own: the manager's default for a unit is too low for a whole container."""

ATTEMPTS_MAX = 3
"""Starts of one scope: the first, one after a failed leftover was reset, one after a unit that was just going."""

UNDO_USEC = 100_000_000
"""Deadline for taking back what a failed registration left, µs: the manager's DefaultTimeoutStopUSec= and a little."""

SETTLE_USEC = 100_000
"""Pause between two looks at a unit that is going, µs, should no hint come in between."""

_OURS = {
    "Slice": "the parameter 'slice' sets it",
    "Description": "the parameter 'description' sets it",
    "PIDs": "the leader is the only process moved",
    "PIDFDs": "the leader is the only process moved",
    "Controller": "it names a peer on the bus, which this service is not for its callers",
    "AddRef": "the reference would be ours, not the caller's",
    "CollectMode": "a failed unit is kept until its result has been read",
    "RefuseManualStart": "the scope could not be started",
    "RefuseManualStop": "the machine could not be stopped",
}


class UnitNameTaken(Exception):
    """The name of the scope is held by something that is no machine of ours.

    Attributes:
        unit: the name.
        holder: what holds it, in words.
    """

    def __init__(self, unit: str, holder: str) -> None:
        super().__init__(f"{unit} is taken by {holder}")
        self.unit = unit
        self.holder = holder


class JobFailed(Exception):
    """The unit was not started, or does not hold the leader.

    Attributes:
        unit: its name.
        job_result: result of the start job; "done" where only the second look failed.
        unit_result: ``Result=`` of the unit.
    """

    def __init__(self, unit: str, job_result: str, unit_result: str | None) -> None:
        super().__init__(f"job for {unit}: {job_result} ({unit_result})")
        self.unit = unit
        self.job_result = job_result
        self.unit_result = unit_result


@dataclass(frozen=True, slots=True)
class Place:
    """Where a machine is.

    Attributes:
        unit: name of its unit.
        subgroup: path below the unit's control group; None for the whole unit.
        slice: the slice that the unit is in.
        control_group: path of the machine's control group.
        control_group_id: its inode number.
        invocation_id: of the unit.
    """

    unit: str
    subgroup: str | None
    slice: str
    control_group: str
    control_group_id: int
    invocation_id: str


def scope_properties(registration: Registration, types: PropertyTypes) -> tuple[TypedProperty, ...]:
    """Return the properties for a machine's scope: the defaults of its class, and the caller's over them.

    Raises:
        InvalidProperty: a property that a caller may not set, or a value that it cannot have.
        NoSuchProperty: no such property of scopes.
    """
    for name in registration.properties:
        if name in _OURS:
            raise InvalidProperty(name, _OURS[name])
    defaults: dict[str, Json] = {"TasksMax": TASKS_MAX}
    # A container manager divides its control group among its payload; a VMM has no use for that (seed 000).
    if registration.class_ is MachineClass.container:
        defaults["Delegate"] = True
    if "DelegateControllers" in registration.properties or "Delegate" in registration.properties:
        defaults.pop("Delegate", None)
    if "TasksMaxScale" in registration.properties:
        del defaults["TasksMax"]
    return types.convert({**defaults, **registration.properties})


def scope_description(registration: Registration) -> str:
    """Return the description of a machine's scope, in machined's words where the caller has none."""
    kind = "Virtual Machine" if registration.class_ is MachineClass.vm else "Container"
    return registration.description or f"{kind} {registration.name}"


def split_control_group(path: str, unit: str) -> tuple[str, str | None] | None:
    """Split a process's control group into that of its unit, and what lies below.

    Returns:
        The unit's path, and the subgroup starting with "/" or None; None if the path does not lead through the unit.
    """
    # The last match: a user's unit may have the name of one of the system's above it.
    index = (path + "/").rfind(f"/{unit}/")
    if index < 0:
        return None
    end = index + 1 + len(unit)
    return path[:end], path[end:] or None


def describe(status: UnitStatus) -> str:
    """Say what holds a unit's name, so that a person knows what to do."""
    if not status.transient and status.fragment_path:
        return f"a unit file on disk: {status.fragment_path}"
    if status.load_state not in {"loaded", "not-found"}:
        return f"a unit whose load state is {status.load_state}"
    kind = "a failed unit" if status.active_state == "failed" else f"a unit that is {status.active_state}"
    details = [f"“{status.description}”"] if status.description not in {"", status.unit} else []
    if status.control_group:
        details.append("with processes" if _is_populated(status) else "without processes")
    if status.job_id:
        details.append(f"with job {status.job_id} queued")
    if status.dependants:
        details.append(f"needed by {', '.join(status.dependants)}")
    return ", ".join([kind, *details])


class Allocator:
    """Finds or makes the place of a machine. Its callers keep it from the hands of those who hang up."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._awaited: dict[str, trio.Event] = {}

    def interested(self, unit: str) -> bool:
        """Whether hints about a unit are waited for here."""
        return unit in self._awaited

    def hint(self, hint: UnitHint) -> None:
        """Take note that something may have happened to a unit."""
        if (event := self._awaited.get(hint.unit)) is not None:
            event.set()

    async def allocate(self, registration: Registration, pidfd: int, *, deadline: float) -> Place:
        """Start a scope around a process, wait for its job, and look again.

        Args:
            registration: what is wanted.
            pidfd: of the leader.
            deadline: on trio's clock.

        Raises:
            UnitNameTaken: by something that does not go.
            JobFailed: the manager could not start it. Nothing is left.
            ProcessGone: the leader died meanwhile. Nothing is left.
            InvalidProperty: the manager does not like a property, or one of those named.
            ManagerError: as the manager says.
        """
        unit = scope_name(registration.name)
        slice_ = registration.slice or MACHINE_SLICE
        types = await self._manager.property_types("scope", deadline=deadline)
        spec = ScopeSpec(
            unit=unit,
            pidfds=(pidfd,),
            slice=slice_,
            description=scope_description(registration),
            properties=scope_properties(registration, types),
        )
        try:
            job = await self._start(spec, deadline=deadline)
        except (InvalidProperty, ManagerRefused, NoSuchUnit) as error:
            if process.has_exited(pidfd):
                raise process.ProcessGone(registration.leader.pid) from None
            if isinstance(error, InvalidProperty) or not registration.properties:
                raise
            # The manager does not always say which one it is; what comes from us is not to blame.
            blamed = ", ".join(registration.properties)
            reason = (
                error.reason if isinstance(error, ManagerRefused) else "it names a unit that does not exist"
            )
            raise InvalidProperty(blamed, reason) from None
        if job.result != "done":
            status = await self._manager.status(unit, deadline=deadline)
            result = status.result if status else None
            await self.undo(unit)
            if process.has_exited(pidfd):
                raise process.ProcessGone(registration.leader.pid)
            raise JobFailed(unit, job.result, result)
        return await self._second_look(registration, unit, slice_, pidfd, deadline=deadline)

    async def _start(self, spec: ScopeSpec, *, deadline: float) -> Job:
        for _ in range(ATTEMPTS_MAX):
            try:
                return await self._manager.start_scope(spec, deadline=deadline)
            except UnitExists:
                await self._make_room(spec.unit, deadline=deadline)
        status = await self._manager.status(spec.unit, deadline=deadline)
        raise UnitNameTaken(spec.unit, describe(status) if status else "a unit that comes and goes")

    async def _second_look(
        self, registration: Registration, unit: str, slice_: str, pidfd: int, *, deadline: float
    ) -> Place:
        # When a leader dies within milliseconds of the start, the manager may be left with an active scope whose
        # control group is empty, for ever (its own race): what counts is that the leader is there, after the job.
        look = await self._manager.look(unit, pidfd, deadline=deadline)
        place: Place | None = None
        if look.active_state == "active" and look.holder == unit and not process.has_exited(pidfd):
            place = self._place(registration.leader.pid, unit, None, slice_, look.invocation_id)
        if place is None:
            await self.undo(unit)
            if process.has_exited(pidfd):
                raise process.ProcessGone(registration.leader.pid)
            raise JobFailed(unit, "done", None)
        return place

    def _place(
        self, pid: int, unit: str, subgroup: str | None, slice_: str, invocation_id: str
    ) -> Place | None:
        try:
            split = split_control_group(process.control_group(pid), unit)
        except (process.ProcessGone, process.NotAProcess):
            return None
        if split is None:
            return None
        path = split[0] + (subgroup or "")
        identity = cgroup.identity(path)
        return None if identity is None else Place(unit, subgroup, slice_, path, identity, invocation_id)

    async def find(self, registration: Registration, pidfd: int, *, deadline: float) -> Place:
        """Find the unit that a process is in.

        Raises:
            ProcessGone: it died meanwhile.
            NoSuchUnit: it is in none.
            ManagerError: as the manager says.
        """
        try:
            unit, invocation_id = await self._manager.unit_of_process(pidfd, deadline=deadline)
            status = await self._manager.status(unit, deadline=deadline)
            split = split_control_group(process.control_group(registration.leader.pid), unit)
        except (NoSuchUnit, process.NotAProcess):
            status, unit, invocation_id, split = None, "", "", None
        if process.has_exited(pidfd):
            raise process.ProcessGone(registration.leader.pid)
        place = (
            self._place(registration.leader.pid, unit, split[1], status.slice, invocation_id)
            if status is not None and split is not None
            else None
        )
        if place is None or unit == "init.scope":
            raise NoSuchUnit(unit)
        return place

    async def rehearse(self, registration: Registration, *, deadline: float) -> Place:
        """Check whether a scope could be made, without making it.

        Returns:
            Where it would be; what only a running unit has is empty.

        Raises:
            InvalidProperty, NoSuchProperty: as :func:`scope_properties` says.
            UnitNameTaken: it could not be made.
            ManagerError: as the manager says.
        """
        unit = scope_name(registration.name)
        scope_properties(registration, await self._manager.property_types("scope", deadline=deadline))
        status = await self._manager.status(unit, deadline=deadline)
        if status is not None and not _is_leftover(status) and not _is_going(status):
            raise UnitNameTaken(unit, describe(status))
        return Place(unit, None, registration.slice or MACHINE_SLICE, "", 0, "")

    async def _make_room(self, unit: str, *, deadline: float) -> None:
        status = await self._manager.status(unit, deadline=deadline)
        if status is None:
            return
        if _is_leftover(status):
            await self._reset(unit, deadline=deadline)
        elif not _is_going(status):
            raise UnitNameTaken(unit, describe(status))
        if not await self._wait_gone(unit, deadline=deadline):
            status = await self._manager.status(unit, deadline=deadline)
            if status is not None:
                raise UnitNameTaken(unit, describe(status))

    async def _reset(self, unit: str, *, deadline: float) -> None:
        with contextlib.suppress(NoSuchUnit):  # it went by itself
            await self._manager.reset_failed(unit, deadline=deadline)

    async def _wait_gone(self, unit: str, *, deadline: float) -> bool:
        """Wait until a unit that is going is gone: inactive units leave the manager's memory a moment later.

        A failed one is reset on the way. Returns whether it went before the deadline.
        """
        while True:
            event = self._awaited.setdefault(unit, trio.Event())
            try:
                status = await self._manager.status(unit, deadline=deadline)
                if status is None or not (_is_going(status) or status.active_state == "failed"):
                    return status is None
                if _is_leftover(status):
                    await self._reset(unit, deadline=deadline)
                with trio.move_on_after(SETTLE_USEC / 1e6):
                    await event.wait()
            finally:
                self._awaited.pop(unit, None)
            if trio.current_time() >= deadline:
                return False

    async def undo(self, unit: str) -> None:
        """Take a scope away again, after its start job has ended, and wait until its name is free.

        Raises:
            ManagerError: it could not be done before the deadline; the unit may be there still.
        """
        deadline = trio.current_time() + UNDO_USEC / 1e6
        # The manager asserts when a scope with User= and Delegate= is stopped while its start job runs.
        await self._wait_without_job(unit, None, deadline=deadline)
        try:
            await self._manager.stop(unit, deadline=deadline)
        except NoSuchUnit:
            return
        await self._wait_gone(unit, deadline=deadline)

    async def take_back(self, unit: str, pidfd: int) -> None:
        """Take away the scope that a start which was given up may have made all the same.

        Args:
            unit: its name, which may be somebody else's as well.
            pidfd: of the process that was to be moved into it.

        Raises:
            ManagerError: it could not be done before the deadline; the unit may be there still.
        """
        deadline = trio.current_time() + UNDO_USEC / 1e6
        look = await self._wait_without_job(unit, pidfd, deadline=deadline)
        if look.holder == unit:
            await self.undo(unit)
        elif process.has_exited(pidfd):
            status = await self._manager.status(unit, deadline=deadline)
            if status is not None and status.transient and not _is_populated(status):
                await self.undo(unit)

    async def _wait_without_job(self, unit: str, pidfd: int | None, *, deadline: float) -> Look:
        while True:
            event = self._awaited.setdefault(unit, trio.Event())
            try:
                look = await self._manager.look(unit, pidfd, deadline=deadline)
                if not look.job_id:
                    return look
                with trio.move_on_after(SETTLE_USEC / 1e6):
                    await event.wait()
            finally:
                self._awaited.pop(unit, None)


def _is_leftover(status: UnitStatus) -> bool:
    """Whether a unit is a transient one that failed, with nothing left in it, and nobody else's business."""
    if status.active_state != "failed" or not status.transient:
        return False
    return not _is_populated(status)


def _is_populated(status: UnitStatus) -> bool:
    state = cgroup.events(status.control_group) if status.control_group else None
    return state is not None and state.populated
def _is_going(status: UnitStatus) -> bool:
    """Whether a unit is a transient one that is being stopped, or that nothing keeps in the manager's memory."""
    return status.transient and (
        status.active_state == "deactivating" or (status.active_state == "inactive" and not status.job_id)
    )


