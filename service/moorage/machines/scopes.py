"""Scopes of machines: starts one around a process and verifies it, or finds the unit that a process is in already.

The policy towards the service manager is that of opencontainers/cgroups, with an end to every wait: start, wait for
the job, verify; clear a leftover once; roll back whatever was made if the machine cannot have it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import trio

from moorage.kernel.process import NotAProcess, ProcessGone
from moorage.kernel.system import System
from moorage.machines import own_slice
from moorage.machines.errors import JobFailed, NotUnicode, OutsideUnits
from moorage.machines.helpers.status import ENDED, HelperStates
from moorage.machines.helpers.units import RuntimeDirectories, UnitTypes
from moorage.machines.helpers.watch import StartWatch, StartWatcher
from moorage.machines.leftovers import Leftovers
from moorage.machines.model import HelperStatus, Intent, Placement, Registration
from moorage.machines.scope_units import Types, auxiliary_names, describe
from moorage.machines.started import UNDO_SECONDS, StartedUnits
from moorage.names import UnitNames
from moorage.pid1.errors import (
    InvalidProperty,
    ManagerRefused,
    ManagerTimeout,
    ManagerUnavailable,
    NoSuchUnit,
)
from moorage.pid1.hints import Hints
from moorage.pid1.manager import ASK_SECONDS, Job, Manager, ScopeSpec, UnitHint


class Started(msgspec.Struct, frozen=True):
    """The result of a start.

    Attributes:
        placement: where the machine is.
        helpers: states of the helpers that came with it.
    """

    placement: Placement
    helpers: list[HelperStatus]


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


class Scopes:
    """Starts the scopes of machines, with all that comes with them.

    Cancel safety: none. Callers run it shielded.
    """

    def __init__(
        self,
        manager: Manager,
        hints: Hints,
        leftovers: Leftovers,
        started: StartedUnits,
        states: HelperStates,
        watcher: StartWatcher,
        directories: RuntimeDirectories,
        system: System,
    ) -> None:
        self._manager = manager
        self._hints = hints
        self._leftovers = leftovers
        self._started = started
        self._states = states
        self._watcher = watcher
        self._directories = directories
        self._hierarchy = system.hierarchy
        self._processes = system.processes

    async def start(self, registration: Registration, pidfd: int, mark: str, *, deadline: float) -> Started:
        """Start a scope around a process, wait for its job, and verify it.

        Args:
            registration: what is wanted.
            pidfd: of the leader.
            mark: what tells this scope from others of its name.
            deadline: on trio's clock.

        Raises:
            UnitNameTaken: by something that does not go.
            HelperFailed: one of the helpers did not start. Nothing is left.
            HelperLate: one of them was not ready in time. It may be yet: the caller takes it back.
            JobFailed: the manager could not start it. Nothing is left.
            ProcessGone: the leader died meanwhile. Nothing is left.
            InvalidProperty: the manager does not like a property, or one of those named.
            ManagerTimeout, ManagerUnavailable: the scope may be there still, or yet: the caller takes it back.
            ManagerError: as the manager says otherwise. Nothing is left.
            OSError: no file descriptor is left. Nothing is left of the start.
        """
        names = UnitNames(registration.name)
        self._leftovers.check_orphan(names.scope)
        await self._leftovers.see_off(names.scope, deadline=deadline)
        types = await self._types(registration, deadline=deadline)
        spec = describe(registration, pidfd, mark, types, self._directories)
        if types.slice is not None:
            await self._leftovers.clear_slice(own_slice.slice_of(registration), deadline=deadline)
        with (
            self._hints.of([names.scope]) as news,
            self._watcher.watching(names, registration.helpers) as watch,
        ):
            job = await self._job(registration, spec, pidfd, mark, watch, deadline=deadline)
            said = news.last.get(names.scope, UnitHint("changed", names.scope))
            try:
                async with self._rolled_back(spec, mark):
                    if job.result == "done":
                        place = await self._verified(registration, said, pidfd, deadline=deadline)
                        if place is not None:
                            statuses = await self._watcher.settled(watch, deadline=deadline)
                            if not watch.failed:  # none of them has ended again, right after its start
                                return Started(place, statuses)
                    raise await self._failure(spec, job, watch, pidfd, deadline=deadline)
            except JobFailed:
                if self._processes.has_exited(pidfd):
                    raise ProcessGone(registration.leader.pid) from None
                raise

    async def _types(self, registration: Registration, *, deadline: float) -> Types:
        of = partial(self._manager.property_types, deadline=deadline)
        scope, services, slice_ = await of("scope"), None, None
        if registration.helpers or registration.exec_stop:
            services = UnitTypes(await of("service"), await of("socket"))
        if registration.slice_properties is not None:
            slice_ = await of("slice")
        return Types(scope, services, slice_)

    async def _job(
        self,
        registration: Registration,
        spec: ScopeSpec,
        pidfd: int,
        mark: str,
        watch: StartWatch,
        *,
        deadline: float,
    ) -> Job:
        try:
            return await self._started.start(spec, mark, deadline=deadline, made=watch.made)
        except (InvalidProperty, ManagerRefused, NoSuchUnit):
            if self._processes.has_exited(pidfd):
                # A start that was repeated after a lost link is refused, but the first may have made the scope.
                await self.undo(spec.unit, mark, [each.unit for each in spec.auxiliary])
                raise ProcessGone(registration.leader.pid) from None
            raise
        except ManagerTimeout as error:
            raise await self._watcher.lateness(watch) or error from None

    @asynccontextmanager
    async def _rolled_back(self, spec: ScopeSpec, mark: str) -> AsyncGenerator[None]:
        """Remove all that a start has made if what follows it fails; without the manager, the caller does so later."""
        try:
            yield
        except (ManagerTimeout, ManagerUnavailable):
            raise
        except Exception:
            await self.undo(spec.unit, mark, [each.unit for each in spec.auxiliary])
            raise

    async def _verified(
        self, registration: Registration, said: UnitHint, pidfd: int, *, deadline: float
    ) -> Placement | None:
        """Return where a machine is whose job is done; None if the scope does not hold its leader.

        When a leader dies within milliseconds of the start, the manager may be left with an active scope whose
        control group is empty, for ever (its own race). What counts is that the leader is there after the job, and
        the kernel knows. What the unit is, the manager has reported by itself before it reported that the job is done
        (``bus_job_send_removed_signal()``): a query costs as much as a tenth of the whole start.
        """
        active_state, invocation_id = said.active_state, said.invocation_id
        if not active_state or not invocation_id:
            status = await self._manager.status(said.unit, deadline=deadline)
            if status is None:
                return None
            active_state, invocation_id = status.active_state, status.invocation_id
        slice_ = own_slice.slice_of(registration)
        place = self._place(registration.leader.pid, said.unit, None, slice_, invocation_id)
        # Only now is it sure that what was read was read of the leader, not of a process with its number.
        if active_state != "active" or not invocation_id or self._processes.has_exited(pidfd):
            return None
        return place

    async def _failure(
        self, spec: ScopeSpec, job: Job, watch: StartWatch, pidfd: int, *, deadline: float
    ) -> Exception:
        """Return the reason why a start failed: a helper's failure, or that of the job."""
        result: str | None = None
        if job.result != "done":
            status = await self._manager.status(spec.unit, deadline=deadline)
            result = status.result if status else None
        if spec.auxiliary and (watch.failed or not self._processes.has_exited(pidfd)):
            failure = await self._watcher.failure(watch)
            if failure is not None:
                return failure
        return JobFailed(spec.unit, job.result, result)

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

    async def find(self, registration: Registration, pidfd: int, *, deadline: float) -> Placement:
        """Find the unit that a process is in.

        Raises:
            ProcessGone: it died meanwhile.
            OutsideUnits: it is in none of this manager's, or in that of the manager itself.
            NotUnicode: the name of its control group cannot be told.
            ManagerError: as the manager says.
        """
        pid = registration.leader.pid
        place: Placement | None = None
        try:
            unit, invocation_id = await self._manager.unit_of_process(pidfd, deadline=deadline)
            status = await self._manager.status(unit, deadline=deadline)
            split = split_control_group(self._processes.control_group(pid), unit)
        except (NoSuchUnit, NotAProcess):
            unit = ""
        else:
            if status is not None and split is not None:
                place = self._place(pid, unit, split[1], status.slice, invocation_id)
        if self._processes.has_exited(pidfd):
            raise ProcessGone(pid)
        if place is None or unit == "init.scope":
            raise OutsideUnits(unit)
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
            InvalidProperty, NoSuchProperty: as `describe` says, or the manager, which judges all.
            UnitNameTaken: it could not be made.
            ProcessGone: the leader died meanwhile.
            ManagerError: as the manager says.
        """
        unit = UnitNames(registration.name).scope
        self._leftovers.check_orphan(unit)
        # By another name: the real one may be on its way to be another's. Nobody can have guessed this one.
        stand_in = msgspec.structs.replace(registration, name=f"rehearsal-{os.urandom(8).hex()}")
        types = await self._types(registration, deadline=deadline)
        spec = describe(stand_in, registration.leader_pidfd, mark, types, self._directories)
        try:
            await self._manager.check_scope(spec, deadline=deadline)
        except (InvalidProperty, ManagerRefused, NoSuchUnit):
            if self._processes.has_exited(registration.leader_pidfd):
                raise ProcessGone(registration.leader.pid) from None
            raise
        await self._leftovers.check_scope(unit, deadline=deadline)
        slice_ = own_slice.slice_of(registration)
        if types.slice is not None:
            await self._leftovers.check_slice(slice_, deadline=deadline)
        return Placement(unit, None, slice_, "", 0, "")

    async def undo(self, unit: str, mark: str, auxiliary: Sequence[str] = ()) -> None:
        """Remove a scope again, with what came with it, and wait until the names are free.

        Args:
            unit: the scope.
            mark: what its start has put on all units that it made; those without it belong to others.
            auxiliary: units that came with it.

        Raises:
            ManagerError: it could not be done before the deadline; units may be there still.
        """
        deadline = trio.current_time() + UNDO_SECONDS
        # The manager asserts when a scope with User= and Delegate= is stopped while its start job runs. One that still
        # waits for its helpers may be stopped.
        await self._started.wait_without_job(unit, waits=bool(auxiliary), deadline=deadline)
        # What is bound to the scope is stopped by the same job, even where the scope was not started.
        await self._started.remove(unit, mark, deadline=deadline)
        await self._started.remove_all(auxiliary, mark, deadline=deadline)

    async def take_back(self, intent: Intent, mark: str) -> None:
        """Remove the scope that a start which was given up may have made all the same.

        Args:
            intent: what was asked for; its unit's name may be somebody else's as well.
            mark: what the start has put on its scope.

        Raises:
            ManagerError: it could not be done before the deadline; the unit may be there still.
        """
        deadline = trio.current_time() + UNDO_SECONDS
        if await self._started.appeared(intent.scope, mark, deadline=deadline) is not None:
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
        ask = trio.current_time() + ASK_SECONDS
        status = await self._started.appeared(intent.scope, mark, deadline=ask)
        status = await self._started.until_started(status, mark, deadline=deadline)
        deadline = trio.current_time() + UNDO_SECONDS
        if status is None:  # a helper failed, and the scope with it
            await self._started.remove_all(auxiliary_names(intent), mark, deadline=deadline)
            return None
        await self._states.catch_up([helper.unit for helper in intent.helpers], deadline=deadline)
        statuses = self._states.statuses(intent.helpers)
        populated = self._leftovers.is_populated(status)
        identity = self._hierarchy.identity(status.control_group) if populated else None
        if (
            status.active_state == "active"
            and identity is not None
            and not any(each.active_state in ENDED for each in statuses)
        ):
            group, invocation_id = status.control_group, status.invocation_id
            return Placement(intent.scope, None, status.slice, group, identity, invocation_id)
        await self.undo(intent.scope, mark, auxiliary_names(intent))
        return None
