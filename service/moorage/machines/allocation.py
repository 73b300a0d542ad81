"""A process gets its place: a new scope, or the unit that it is in already. And the way back when that fails.

The policy towards the service manager is that of opencontainers/cgroups, with an end to every wait: start, wait for
the job, look again; a failed leftover is reset once; whatever was made is taken away when the machine cannot have it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import trio

from moorage.kernel.cgroup import Hierarchy
from moorage.kernel.process import NotAProcess, ProcessGone
from moorage.kernel.system import System
from moorage.machines import helpers as helping
from moorage.machines import own_slice, properties, stop_command
from moorage.machines.errors import JobFailed, NotUnicode, UnitNameTaken
from moorage.machines.helper_states import ENDED
from moorage.machines.model import (
    Change,
    Helper,
    HelperFailure,
    HelperSpec,
    HelperStatus,
    Intent,
    MachineClass,
    Placement,
    Record,
    Registration,
    adder_name,
    barrier_name,
    bond_name,
    helper_unit,
    in_description,
    scope_name,
    stop_command_name,
    stopper_name,
)
from moorage.machines.together import together
from moorage.pid1.hints import Hints
from moorage.pid1.manager import (
    ASK_USEC,
    AuxiliaryUnit,
    InvalidProperty,
    Job,
    Json,
    Manager,
    ManagerError,
    ManagerRefused,
    ManagerTimeout,
    NoSuchUnit,
    ScopeSpec,
    ServiceSpec,
    UnitExists,
    UnitHint,
    UnitStatus,
)

ATTEMPTS_MAX = 3
"""Starts of one scope: the first, one after a failed leftover was reset, one after a unit that was just going."""

UNDO_USEC = 100_000_000
"""Deadline for taking back what a failed registration left, µs: the manager's DefaultTimeoutStopUSec= and a little."""

RESUME_USEC = 90_000_000
"""For how long a start of helpers that was found under way is left to itself, µs: the manager's
DefaultTimeoutStartUSec=, which they have."""

UNSEEN_USEC = 2_000_000
"""For how long a start may be on its way to the manager after its sender has died, µs: it reads in turn from all that
talk to it, and the last of STARTS_MAX starts may come after our first question (2 to 3 ms each, loaded five times)."""

KEPT_USEC = 1_000_000
"""For how long an inactive unit may be kept in memory by others, µs, before its name counts as taken: those that are
bound to it are stopped after it, and let it go then."""

SETTLE_USEC = 100_000
"""Pause between two looks at a unit that is going, µs, should no hint come in between."""


def scope_description(registration: Registration) -> str:
    """Return the description of a machine's scope, in machined's words where the caller has none."""
    kind = "Virtual Machine" if registration.class_ is MachineClass.vm else "Container"
    return registration.description or f"{kind} {in_description(registration.name)}"


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


def describe(status: UnitStatus, marks: str, hierarchy: Hierarchy) -> str:
    """Say what holds a unit's name, so that a person knows what to do.

    Args:
        status: of the unit.
        marks: what marks of our own begin with.
        hierarchy: of control groups.
    """
    if status.load_state not in {"loaded", "not-found"}:
        where = f", by {status.fragment_path}" if status.fragment_path else ""
        return f"a unit that is {status.load_state}{where}"
    if not status.transient and status.fragment_path:
        state = "" if status.active_state == "inactive" else f", and the unit is {status.active_state}"
        return f"a unit file on disk: {status.fragment_path}{state}"
    kind = "a failed unit" if status.active_state == "failed" else f"a unit that is {status.active_state}"
    details = [f"“{status.description}”"] if status.description not in {"", status.unit} else []
    if status.control_group:
        details.append("with processes" if _is_populated(status, hierarchy) else "without processes")
    if status.job_id:
        details.append(f"with job {status.job_id} queued")
    if status.dependants:
        details.append(f"needed by {', '.join(status.dependants)}")
    if _is_populated(status, hierarchy) and any(
        address.startswith(marks) for address in status.documentation
    ):
        details.append("once a machine whose record is lost: it can be registered again without a new unit")
    return ", ".join([kind, *details])


class Allocator:
    """Finds or makes the place of a machine. Its callers keep it from the hands of those who hang up.

    Attributes:
        stray: control groups with processes that belong to no unit, by the unit whose name they are in the way of.
    """

    def __init__(
        self, manager: Manager, helpers: helping.Helpers, hints: Hints, marks: str, system: System
    ) -> None:
        self._manager = manager
        self._helpers = helpers
        self._hints = hints
        self._marks = marks
        self._hierarchy, self._processes = system.hierarchy, system.processes
        self.stray: dict[str, str] = {}

    def describe(self, status: UnitStatus) -> str:
        """Say what holds a unit's name."""
        return describe(status, self._marks, self._hierarchy)

    async def allocate(
        self, registration: Registration, pidfd: int, mark: str, *, deadline: float
    ) -> tuple[Placement, list[HelperStatus]]:
        """Start a scope around a process, wait for its job, and look again.

        Args:
            registration: what is wanted.
            pidfd: of the leader.
            mark: what tells this scope from others of its name.
            deadline: on trio's clock.

        Returns:
            Where the machine is, and the states of its helpers.

        Raises:
            UnitNameTaken: by something that does not go.
            HelperFailed: one of the helpers did not start. Nothing is left.
            HelperLate: one of them was not ready in time. It may be yet: the caller takes it back.
            JobFailed: the manager could not start it. Nothing is left.
            ProcessGone: the leader died meanwhile. Nothing is left.
            InvalidProperty: the manager does not like a property, or one of those named.
            ManagerError: as the manager says.
            OSError: no file descriptor is left. Nothing is left of the start.
        """
        unit = scope_name(registration.name)
        self._check_stray(unit)
        spec = await self._spec(registration, pidfd, mark, deadline=deadline)
        slice_, auxiliary = own_slice.slice_of(registration), spec.auxiliary
        if registration.slice_properties is not None:
            await self._make_room_for_slice(slice_, deadline=deadline)
        records = helping.recorded(registration.name, registration.helpers)
        with (
            self._hints.of([unit]) as news,
            self._helpers.starting(registration.name, registration.helpers) as start,
        ):
            try:
                job = await self._start(spec, mark, deadline=deadline)
            except (InvalidProperty, ManagerRefused, NoSuchUnit):
                if self._processes.has_exited(pidfd):
                    raise ProcessGone(registration.leader.pid) from None
                raise
            except ManagerTimeout as error:
                raise await self._helpers.lateness(start, records) or error from None
            said = news.last.get(unit, UnitHint("changed", unit))
            units = [each.unit for each in auxiliary]
            try:
                if job.result == "done":
                    place = await self._second_look(registration, said, slice_, pidfd, deadline=deadline)
                    if place is not None:
                        statuses = await self._helpers.settled(start, records, deadline=deadline)
                        if not start.failed:  # none of them has ended again, right after its start
                            return place, statuses
                result = await self._result(unit, deadline=deadline) if job.result != "done" else None
                gone = self._processes.has_exited(pidfd)
                failure = (
                    await self._helpers.failure(start) if auxiliary and (start.failed or not gone) else None
                )
            except OSError:  # no file descriptor is left: what cannot be looked at is not promised
                await self.undo(unit, mark, units)
                raise
            await self.undo(unit, mark, units)
            if failure is not None:
                raise failure
            if gone or self._processes.has_exited(pidfd):
                raise ProcessGone(registration.leader.pid)
            raise JobFailed(unit, job.result, result)

    async def _spec(
        self, registration: Registration, pidfd: int, mark: str, *, deadline: float
    ) -> ScopeSpec:
        slice_ = own_slice.slice_of(registration)
        scope = properties.for_scope(
            registration.class_,
            registration.properties,
            stopped_by_helper=any(
                helper.on_failure is HelperFailure.stop_machine for helper in registration.helpers
            ),
        )
        types = await self._manager.property_types("scope", deadline=deadline)
        auxiliary = await self._auxiliary(registration, slice_, mark, deadline=deadline)
        asking = [stop_command_name(registration.name)] if registration.exec_stop else []
        wanted: list[Json] = [*helping.wanted(registration.name, registration.helpers), *asking]
        return ScopeSpec(
            unit=scope_name(registration.name),
            pidfds=(pidfd,),
            slice=slice_,
            description=scope_description(registration),
            # Both are lists, which grow by what comes later.
            properties=types.convert(scope)
            + types.convert({"Documentation": [mark], **({"Wants": wanted} if wanted else {})}),
            auxiliary=auxiliary,
            chosen=tuple(registration.properties),
        )

    def _check_stray(self, unit: str) -> None:
        if (path := self.stray.get(unit)) is None:
            return
        state = self._hierarchy.events(path)
        if state is not None and state.populated:
            # The manager would put the leader among them.
            where = f"{path}, a control group of no unit, which systemd-cgls can show"
            raise UnitNameTaken(unit, f"processes in {where}")
        del self.stray[unit]

    async def _auxiliary(
        self, registration: Registration, slice_: str, mark: str, *, deadline: float
    ) -> tuple[AuxiliaryUnit, ...]:
        """Describe the units that come with the scope: those of its helpers, its stop command, and its slice."""
        slices = []
        if registration.slice_properties is not None:
            slice_types = await self._manager.property_types("slice", deadline=deadline)
            slices = [own_slice.describe(registration, slice_types, mark)]
        if not registration.helpers and not registration.exec_stop:
            return tuple(slices)
        host = helping.Host(
            registration.name, scope_name(registration.name), slice_, registration.leader_uid, mark
        )
        types = await self._helpers.types(deadline=deadline)
        asking = [
            types.unit(
                stop_command_name(host.name),
                stop_command.describe(host, registration.exec_stop, registration.exec_stop_timeout_usec),
            )
            for _ in registration.exec_stop[:1]
        ]
        if not registration.helpers:
            return (*slices, *asking)
        barrier = helping.barrier(host, registration.helpers)
        barrier |= {"Before": [host.unit], "OnFailure": [stopper_name(host.name)]}
        return (
            *slices,
            *types.helpers(host, registration.helpers, self._helpers.home, with_place=True, with_scope=True),
            types.unit(barrier_name(host.name), barrier),
            *asking,
        )

    async def _result(self, unit: str, *, deadline: float) -> str | None:
        status = await self._manager.status(unit, deadline=deadline)
        return status.result if status else None

    async def _start(
        self, spec: ScopeSpec | ServiceSpec, mark: str | None = None, *, deadline: float
    ) -> Job:
        for _ in range(ATTEMPTS_MAX):
            try:
                if isinstance(spec, ServiceSpec):
                    return await self._manager.start_service(spec, deadline=deadline)
                return await self._manager.start_scope(spec, deadline=deadline)
            except UnitExists:
                status = await self._manager.status(spec.unit, deadline=deadline)
                if status is not None and mark in status.documentation:
                    # The link broke, and the call was repeated before the first one had been read.
                    await self._wait_without_job(spec.unit, waits=False, deadline=deadline)
                    return Job("done", spec.unit, 0)
                for unit in (spec.unit, *(each.unit for each in spec.auxiliary)):
                    await self._make_room(unit, deadline=deadline)
        status = await self._manager.status(spec.unit, deadline=deadline)
        raise UnitNameTaken(spec.unit, self.describe(status) if status else "a unit that comes and goes")

    async def _second_look(
        self, registration: Registration, said: UnitHint, slice_: str, pidfd: int, *, deadline: float
    ) -> Placement | None:
        # When a leader dies within milliseconds of the start, the manager may be left with an active scope whose
        # control group is empty, for ever (its own race): what counts is that the leader is there, after the job. The
        # kernel tells that. What the unit is, the manager has said by itself, before it said that the job is done
        # (bus_job_send_removed_signal()): a question to it costs as much as a tenth of the whole start.
        unit, active_state, invocation_id = said.unit, said.active_state, said.invocation_id
        if not active_state or not invocation_id:
            status = await self._manager.status(unit, deadline=deadline)
            if status is None:
                return None
            active_state, invocation_id = status.active_state, status.invocation_id
        place = self._place(registration.leader.pid, unit, None, slice_, invocation_id)
        # Only now is it sure that what was read was read of the leader, not of a process with its number.
        return (
            place
            if active_state == "active" and invocation_id and not self._processes.has_exited(pidfd)
            else None
        )

    def _place(
        self, pid: int, unit: str, subgroup: str | None, slice_: str, invocation_id: str
    ) -> Placement | None:
        try:
            split = split_control_group(self._processes.control_group(pid), unit)
        except (ProcessGone, NotAProcess):
            return None
        if split is None:
            return None
        path = split[0] + (subgroup or "")
        identity = self._hierarchy.identity(path)
        return None if identity is None else Placement(unit, subgroup, slice_, path, identity, invocation_id)

    async def add_helpers(
        self,
        host: helping.Host,
        specs: Sequence[HelperSpec],
        tell: Callable[[list[HelperStatus]], None],
        *,
        with_place: bool,
        deadline: float,
    ) -> list[HelperStatus]:
        """Start helpers of a machine that runs. Where that fails, some of their units may be there.

        Args:
            host: the machine.
            specs: checked.
            tell: called with their state whenever something has changed.
            with_place: the machine has no runtime directory yet.
            deadline: on trio's clock.

        Returns:
            Their state, once all are active.

        Raises:
            UnitNameTaken: by something that does not go.
            HelperFailed: one of them did not start.
            JobFailed: the manager could not start them.
            InvalidProperty: the manager does not like a property, or one of those named.
            ManagerError: as the manager says.
        """
        types = await self._helpers.types(deadline=deadline)
        barrier = types.unit(adder_name(host.name), helping.barrier(host, specs))
        spec = ServiceSpec(
            unit=barrier.unit,
            description=f"More helpers of machine {in_description(host.name)}",
            properties=barrier.properties,
            auxiliary=types.helpers(
                host, specs, self._helpers.home, with_place=with_place, with_scope=False
            ),
        )
        records = helping.recorded(host.name, specs)
        with self._helpers.starting(host.name, specs) as start:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_changes, start, records, tell)
                job = await self._tried(spec, deadline=deadline)
                nursery.cancel_scope.cancel()
            if isinstance(job, ManagerTimeout):
                raise await self._helpers.lateness(start, records) or job
            if isinstance(job, Exception):
                raise job
            statuses = await self._helpers.settled(start, records, deadline=deadline)
            if job.result not in {"done", "skipped"} or start.failed:  # its condition is never met
                raise await self._helpers.failure(start) or JobFailed(spec.unit, job.result, None)
            return statuses

    async def check_names(self, machine: Record, specs: Sequence[HelperSpec], *, deadline: float) -> None:
        """Check that the names are not those of helpers that came with the machine, and have ended or were removed.

        The scope has pulled those in (``Wants=``), and the manager takes no dependency of a loaded unit away: they
        stay in its memory, with all their properties, for as long as the scope does.

        Raises:
            UnitNameTaken: one is.
            ManagerError: as the manager says.
        """
        units = [helper_unit(machine.name, spec.name) for spec in specs]
        questions = [partial(self._manager.status, unit, deadline=deadline) for unit in units]
        for unit, status in zip(units, await together(questions), strict=True):
            if status is not None and machine.unit in status.dependants:
                raise UnitNameTaken(
                    unit,
                    "a helper that came with the machine, and has ended or was removed: its name is free when the"
                    " machine ends",
                )

    async def _tried(
        self, spec: ServiceSpec, *, deadline: float
    ) -> Job | ManagerError | UnitNameTaken | OSError:
        """Start units of helpers, and return what came of it."""
        try:
            return await self._start(spec, deadline=deadline)
        except (ManagerError, UnitNameTaken, OSError) as error:
            return error

    async def _tell_changes(
        self, start: helping.Start, records: Sequence[Helper], tell: Callable[[list[HelperStatus]], None]
    ) -> None:
        while True:
            await start.news.next()
            tell(self._helpers.states.statuses(records))

    async def resume_helpers(self, change: Change, mark: str) -> bool:
        """Find what came of a start of helpers that was cut off: all that was asked for, or nothing.

        Args:
            change: what was asked for.
            mark: what the start has put on its units.

        Returns:
            Whether they are there. If not, nothing is left of the start.

        Raises:
            ManagerError: the manager cannot be asked, or does not take it back; all may be there still.
        """
        deadline = trio.current_time() + RESUME_USEC / 1e6
        units = helping.change_names(change)
        if not await self._is_any_started(units, mark, deadline=deadline):
            return False
        adder = await self._made(adder_name(change.machine), mark, deadline=deadline)
        adder = await self._until_started(adder, mark, deadline=deadline)
        deadline = trio.current_time() + UNDO_USEC / 1e6
        found = await self._all_made(units, mark, deadline=deadline)
        states = {status.unit: status.active_state for status in found if status is not None}
        started = adder is None or not adder.job_id
        if started and all(states.get(helper.unit, "inactive") not in ENDED for helper in change.helpers):
            return True
        await self.take_back_helpers(change, mark, wait=False)
        return False

    async def take_back_helpers(self, change: Change, mark: str, *, wait: bool) -> None:
        """Take away what a start of helpers has made, and wait until the names are free.

        Args:
            change: what was asked for; the names may be those of units of others as well.
            mark: what the start has put on its units.
            wait: it may be on its way to the manager still.

        Raises:
            ManagerError: it could not be done before the deadline; units may be there still.
        """
        deadline = trio.current_time() + UNDO_USEC / 1e6
        units = helping.change_names(change)
        if not wait or await self._is_any_started(units, mark, deadline=deadline):
            bonds = helping.bond_names(change.machine, change.helpers)
            for bond in bonds:
                await self.stop_marked(bond, mark, alone=True, deadline=deadline)
            await together(
                [partial(self._take_away, unit, mark, deadline, alone=unit in bonds) for unit in units]
            )

    async def _is_any_started(self, units: Sequence[str], mark: str, *, deadline: float) -> bool:
        """Whether a start has made any of these units; one that is still on its way is waited for."""
        given_up = trio.current_time() + UNSEEN_USEC / 1e6
        with self._hints.of(units[:1]) as news:
            while not any(await self._all_made(units, mark, deadline=deadline)):
                if trio.current_time() >= given_up:
                    return False
                await news.next(SETTLE_USEC / 1e6)
        return True

    async def _all_made(
        self, units: Sequence[str], mark: str, *, deadline: float
    ) -> list[UnitStatus | None]:
        return await together([partial(self._made, unit, mark, deadline=deadline) for unit in units])

    async def stop_helper(self, machine: str, helper: Helper, marks: str, *, deadline: float) -> None:
        """Stop a helper that is not wanted any more. A unit of its name that is none of the machine's goes on.

        Args:
            machine: name of its machine.
            helper: which one.
            marks: what all marks begin with that units of its machine have.
            deadline: on trio's clock.

        Raises:
            ManagerError: as the manager says.
        """
        # Whatever the record says of its policy: an instance that was killed may have changed that already.
        await self.stop_marked(bond_name(machine, helper.name), marks, alone=True, deadline=deadline)
        if await self.stop_marked(helper.unit, marks, deadline=deadline):
            await self._reset(helper.unit, deadline=deadline)
            if helper.sockets:
                socket = helper_unit(machine, helper.name, "socket")
                await self.stop_marked(socket, marks, deadline=deadline)

    async def stop_marked(self, unit: str, marks: str, *, alone: bool = False, deadline: float) -> bool:
        """Stop a unit if one of its marks begins like this; return whether that is so."""
        status = await self._manager.status(unit, deadline=deadline)
        if status is None or not any(address.startswith(marks) for address in status.documentation):
            return False
        with contextlib.suppress(NoSuchUnit):
            await self._manager.stop(unit, alone=alone, deadline=deadline)
        return True

    async def find(self, registration: Registration, pidfd: int, *, deadline: float) -> Placement:
        """Find the unit that a process is in.

        Raises:
            ProcessGone: it died meanwhile.
            NoSuchUnit: it is in none.
            NotUnicode: the name of its control group cannot be told.
            ManagerError: as the manager says.
        """
        try:
            unit, invocation_id = await self._manager.unit_of_process(pidfd, deadline=deadline)
            status = await self._manager.status(unit, deadline=deadline)
            split = split_control_group(self._processes.control_group(registration.leader.pid), unit)
        except (NoSuchUnit, NotAProcess):
            status, unit, invocation_id, split = None, "", "", None
        if self._processes.has_exited(pidfd):
            raise ProcessGone(registration.leader.pid)
        place = (
            self._place(registration.leader.pid, unit, split[1], status.slice, invocation_id)
            if status is not None and split is not None
            else None
        )
        if place is None or unit == "init.scope":
            raise NoSuchUnit(unit)
        try:
            place.control_group.encode()
        except UnicodeEncodeError:  # of the kernel's bytes, which are kept as surrogates (PEP 383)
            raise NotUnicode from None
        return place

    async def rehearse(self, registration: Registration, mark: str, *, deadline: float) -> Placement:
        """Check whether a scope could be made, with its helpers, without making it.

        Args:
            registration: what is wanted.
            mark: as it would get.
            deadline: on trio's clock.

        Returns:
            Where it would be; what only a running unit has is empty.

        Raises:
            InvalidProperty, NoSuchProperty: as `moorage.machines.properties` says, or the manager, which judges all.
            UnitNameTaken: it could not be made.
            ProcessGone: the leader died meanwhile.
            ManagerError: as the manager says.
        """
        unit = scope_name(registration.name)
        self._check_stray(unit)
        # By another name: the real one may be on its way to be another's. Nobody can have guessed this one.
        stand_in = msgspec.structs.replace(registration, name=f"rehearsal-{os.urandom(8).hex()}")
        spec = await self._spec(stand_in, registration.leader_pidfd, mark, deadline=deadline)
        try:
            await self._manager.check_scope(spec, deadline=deadline)
        except (InvalidProperty, ManagerRefused, NoSuchUnit):
            if self._processes.has_exited(registration.leader_pidfd):
                raise ProcessGone(registration.leader.pid) from None
            raise
        status = await self._manager.status(unit, deadline=deadline)
        if status is not None and not _is_leftover(status, self._hierarchy):
            going = _is_going(status, self._hierarchy) and not await self._is_kept(status, deadline=deadline)
            if not going:
                raise UnitNameTaken(unit, self.describe(status))
        slice_ = own_slice.slice_of(registration)
        if registration.slice_properties is not None:
            status = await self._manager.status(slice_, deadline=deadline)
            if status is not None and not _is_only_a_name(status) and not self._is_ours(status):
                raise UnitNameTaken(slice_, self.describe(status))
        return Placement(unit, None, slice_)

    async def _make_room_for_slice(self, unit: str, *, deadline: float) -> None:
        """Wait until the slice of a former machine is gone, and leave alone any other.

        The manager would take a slice without a file for a new one, even if others have units in it.

        Raises:
            UnitNameTaken: it is there, and stays.
            ManagerError: as the manager says.
        """
        status = await self._manager.status(unit, deadline=deadline)
        if status is None or _is_only_a_name(status):
            return
        if not self._is_ours(status) or not await self._wait_gone(unit, deadline=deadline):
            raise UnitNameTaken(unit, self.describe(status))

    async def _make_room(self, unit: str, *, deadline: float) -> None:
        status = await self._manager.status(unit, deadline=deadline)
        if status is None or _is_only_a_name(status):
            return
        if _is_leftover(status, self._hierarchy):
            await self._reset(unit, deadline=deadline)
        elif not _is_going(status, self._hierarchy):
            raise UnitNameTaken(unit, self.describe(status))
        if await self._wait_gone(unit, deadline=deadline):
            return
        status = await self._manager.status(unit, deadline=deadline)
        if status is not None and _is_empty_scope(status, self._hierarchy) and self._is_ours(status):
            # One that was forgotten, and whose end the manager has missed.
            with contextlib.suppress(NoSuchUnit):
                await self._manager.stop(unit, deadline=deadline)
            if await self._wait_gone(unit, deadline=deadline):
                return
            status = await self._manager.status(unit, deadline=deadline)
        if status is not None:
            raise UnitNameTaken(unit, self.describe(status))

    def _is_ours(self, status: UnitStatus) -> bool:
        return any(address.startswith(self._marks) for address in status.documentation)

    async def _reset(self, unit: str, *, deadline: float) -> None:
        with contextlib.suppress(NoSuchUnit):  # it went by itself
            await self._manager.reset_failed(unit, deadline=deadline)

    async def _wait_gone(self, unit: str, *, mark: str | None = None, deadline: float) -> bool:
        """Wait until a unit that is going is gone: inactive units leave the manager's memory a moment later.

        A failed one is reset on the way. Where a mark is given, one without it is none of ours, so that ours is gone.
        Returns whether it went before the deadline, and as long as nothing keeps it.
        """
        kept_until = deadline
        with self._hints.of([unit]) as news:
            while True:
                status = await self._manager.status(unit, deadline=deadline)
                if status is None or _is_only_a_name(status):
                    return True
                if mark is not None and mark not in status.documentation:
                    return True
                if not (_is_going(status, self._hierarchy) or status.active_state == "failed"):
                    return False
                if _is_leftover(status, self._hierarchy):
                    await self._reset(unit, deadline=deadline)
                if not await self._is_kept(status, deadline=deadline):
                    kept_until = deadline
                elif kept_until == deadline:
                    kept_until = min(deadline, trio.current_time() + KEPT_USEC / 1e6)
                await news.next(SETTLE_USEC / 1e6)
                if trio.current_time() >= kept_until:
                    return False

    async def _is_kept(self, status: UnitStatus, *, deadline: float) -> bool:
        """Whether what keeps a unit in the manager's memory may do so for ever.

        These are a job that waits; units that need an inactive one, or are in a slice, and are not about to go; and,
        with an active scope whose last process has just ended, the manager itself, should it have lost that event.
        """
        if status.active_state == "active" and not status.unit.endswith(".slice"):
            return True
        if status.active_state not in {"active", "inactive"}:
            return False
        others = [await self._manager.status(unit, deadline=deadline) for unit in status.dependants]
        if any(each and each.active_state in {"active", "failed"} and not each.job_id for each in others):
            return True
        return bool(status.job_id) and not any(
            each and each.active_state == "deactivating" for each in others
        )

    async def undo(self, unit: str, mark: str, auxiliary: Sequence[str] = ()) -> None:
        """Take a scope away again, with what came with it, and wait until the names are free.

        Args:
            unit: the scope.
            mark: what its start has put on all units that it made; those without it belong to others.
            auxiliary: units that came with it.

        Raises:
            ManagerError: it could not be done before the deadline; units may be there still.
        """
        deadline = trio.current_time() + UNDO_USEC / 1e6
        # The manager asserts when a scope with User= and Delegate= is stopped while its start job runs. One that still
        # waits for its helpers may be stopped.
        await self._wait_without_job(unit, waits=bool(auxiliary), deadline=deadline)
        # What is bound to the scope is stopped by the same job, even where the scope was not started.
        await self._take_away(unit, mark, deadline)
        await together([partial(self._take_away, each, mark, deadline) for each in auxiliary])

    async def _take_away(self, unit: str, mark: str, deadline: float, *, alone: bool = False) -> None:
        """Stop a unit if it is the one that a start has made, and wait until its name is free."""
        if await self.stop_marked(unit, mark, alone=alone, deadline=deadline):
            await self._wait_gone(unit, mark=mark, deadline=deadline)

    async def _made(self, unit: str, mark: str, *, deadline: float) -> UnitStatus | None:
        """The unit that a start has made; None also for one of another that has its name."""
        status = await self._manager.status(unit, deadline=deadline)
        return status if status is not None and mark in status.documentation else None

    async def take_back(self, intent: Intent, mark: str) -> None:
        """Take away the scope that a start which was given up may have made all the same.

        Args:
            intent: what was asked for; its unit's name may be somebody else's as well.
            mark: what the start has put on its scope.

        Raises:
            ManagerError: it could not be done before the deadline; the unit may be there still.
        """
        deadline = trio.current_time() + UNDO_USEC / 1e6
        if await self._started(intent.scope, mark, deadline=deadline) is not None:
            await self.undo(intent.scope, mark, auxiliary_names(intent))

    async def resume(self, intent: Intent, mark: str, *, keep: bool, deadline: float) -> Placement | None:
        """Find what came of a start whose caller was killed: all that was asked for, or nothing.

        Args:
            intent: what was asked for.
            mark: what the start has put on its scope.
            keep: it is wanted still.
            deadline: on trio's clock, of the start. What is not there by then is taken back.

        Returns:
            Where the machine is; None if it is nowhere, and nothing is left of the start.

        Raises:
            ManagerError: the manager cannot be asked, or does not take it back; all may be there still.
        """
        if not keep:
            return await self.take_back(intent, mark)
        ask = trio.current_time() + ASK_USEC / 1e6
        status = await self._started(intent.scope, mark, deadline=ask)
        status = await self._until_started(status, mark, deadline=deadline)
        deadline = trio.current_time() + UNDO_USEC / 1e6
        auxiliary = auxiliary_names(intent)
        if status is None:
            for each in auxiliary:  # what failed, and the scope with it
                await self._take_away(each, mark, deadline)
            return None
        await self._helpers.states.catch_up([helper.unit for helper in intent.helpers], deadline=deadline)
        statuses = self._helpers.states.statuses(intent.helpers)
        identity = (
            self._hierarchy.identity(status.control_group)
            if _is_populated(status, self._hierarchy)
            else None
        )
        if (
            status.active_state == "active"
            and identity is not None
            and not any(each.active_state in ENDED for each in statuses)
        ):
            return Placement(
                intent.scope, None, status.slice, status.control_group, identity, status.invocation_id
            )
        await self.undo(intent.scope, mark, auxiliary)
        return None

    async def _until_started(
        self, status: UnitStatus | None, mark: str, *, deadline: float
    ) -> UnitStatus | None:
        """Wait until the start of a unit has ended, or the deadline has passed; return what it has made by then."""
        if status is None:
            return None
        with self._hints.of([status.unit]) as news:
            while status is not None and status.job_id and trio.current_time() < deadline:
                await news.next(SETTLE_USEC / 1e6)
                status = await self._made(status.unit, mark, deadline=deadline + ASK_USEC / 1e6)
        return status

    async def _started(self, unit: str, mark: str, *, deadline: float) -> UnitStatus | None:
        """The unit that a start has made, if it has; a start that is still on its way is waited for."""
        given_up = trio.current_time() + UNSEEN_USEC / 1e6
        with self._hints.of([unit]) as news:
            while True:
                if (status := await self._made(unit, mark, deadline=deadline)) is not None:
                    return status
                if trio.current_time() >= given_up:
                    return None
                await news.next(SETTLE_USEC / 1e6)

    async def _wait_without_job(self, unit: str, *, waits: bool, deadline: float) -> None:
        """Wait until a unit has no job, or only one that waits for others, should it have any to wait for."""
        with self._hints.of([unit]) as news:
            while True:
                status = await self._manager.status(unit, deadline=deadline)
                if status is None or not status.job_id or (waits and status.active_state == "inactive"):
                    return
                await news.next(SETTLE_USEC / 1e6)


def auxiliary_names(intent: Intent) -> list[str]:
    """Return the names of all units that come with a machine's scope."""
    asking = [stop_command_name(intent.name)] if stop_command.PARAMETER in intent.request else []
    slices = [intent.slice] if own_slice.PARAMETER in intent.request else []
    return [*helping.auxiliary_names(intent.name, intent.helpers), *asking, *slices]


def _is_leftover(status: UnitStatus, hierarchy: Hierarchy) -> bool:
    """Whether a unit is a transient one that failed, with nothing left in it, and nobody else's business."""
    if status.active_state != "failed" or not status.transient:
        return False
    return not _is_populated(status, hierarchy)


def _is_going(status: UnitStatus, hierarchy: Hierarchy) -> bool:
    """Whether a unit is a transient one that is being stopped, or that nothing keeps in the manager's memory."""
    if not status.transient:
        return False
    match status.active_state:
        case "deactivating" | "inactive":
            return True  # should it have a job, that may be one to stop it
        case _ if status.unit.endswith(".slice"):
            return True  # with the last unit in it
        case _:
            return _is_empty_scope(status, hierarchy)


def _is_only_a_name(status: UnitStatus) -> bool:
    """Whether a unit is a slice that is not there: without a file, one is loaded as soon as somebody names it."""
    if not status.unit.endswith(".slice") or status.fragment_path or status.job_id:
        return False
    return status.active_state == "inactive"


def _is_empty_scope(status: UnitStatus, hierarchy: Hierarchy) -> bool:
    """Whether a unit is an active scope without processes: the manager is about to notice that."""
    if status.active_state != "active" or not status.unit.endswith(".scope") or status.job_id:
        return False
    return not _is_populated(status, hierarchy)  # its control group may be gone before its state changes


def _is_populated(status: UnitStatus, hierarchy: Hierarchy) -> bool:
    state = hierarchy.events(status.control_group) if status.control_group else None
    return state is not None and state.populated
