"""Starts helpers of a machine that runs, and stops them; finds out what came of a start that was cut off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import trio

from moorage.machines.errors import JobFailed, MachineGone, UnitNameTaken
from moorage.machines.gather import gather
from moorage.machines.helpers.status import ENDED
from moorage.machines.helpers.units import (
    Change,
    MachineRef,
    RuntimeDirectories,
    UnitTypes,
    barrier,
    bond_names,
    change_names,
)
from moorage.machines.helpers.watch import StartWatch, StartWatcher
from moorage.machines.leftovers import Leftovers
from moorage.machines.model import Helper, HelperSpec, HelperStatus, Record
from moorage.machines.once import Once
from moorage.machines.started import UNDO_SECONDS, StartedUnits
from moorage.names import UnitNames
from moorage.pid1.errors import ManagerError, ManagerTimeout
from moorage.pid1.manager import Job, Manager, ServiceSpec

RESUME_SECONDS: Final = 90.0
"""For how long a start of helpers that was found under way is left to itself, s: the manager's
DefaultTimeoutStartUSec=, which they have."""


class HelperStarts:
    """Starts and stops helpers.

    Cancel safety: none. Callers run it shielded.
    """

    def __init__(
        self,
        manager: Manager,
        leftovers: Leftovers,
        started: StartedUnits,
        watcher: StartWatcher,
        directories: RuntimeDirectories,
    ) -> None:
        self._manager = manager
        self._leftovers = leftovers
        self._started = started
        self._watcher = watcher
        self._directories = directories

    async def check_names(
        self, machine: str, unit: str, specs: Sequence[HelperSpec], *, deadline: float
    ) -> None:
        """Check that the names are not those of helpers that came with the machine, and have ended or were removed.

        The scope has pulled those in (``Wants=``), and the manager takes no dependency of a loaded unit away: they
        stay in its memory, with all their properties, for as long as the scope does.

        Args:
            machine: name of the machine.
            unit: that it lives in.
            specs: the helpers that are to be added.
            deadline: on trio's clock.

        Raises:
            UnitNameTaken: one is.
            ManagerError: as the manager says.
        """
        names = UnitNames(machine)
        units = [names.helper(spec.name) for spec in specs]
        queries = [partial(self._manager.status, each, deadline=deadline) for each in units]
        for each, status in zip(units, await gather(queries), strict=True):
            if status is not None and unit in status.dependants:
                raise UnitNameTaken(
                    each,
                    "a helper that came with the machine, and has ended or was removed: its name is free when the"
                    " machine ends",
                )

    async def add(
        self,
        machine: MachineRef,
        specs: Sequence[HelperSpec],
        tell: Callable[[list[HelperStatus]], None],
        gone: Once,
        *,
        with_directory: bool,
        deadline: float,
    ) -> list[HelperStatus]:
        """Start helpers of a machine that runs. Where that fails, some of their units may be there.

        Args:
            machine: theirs.
            specs: checked.
            tell: called with their state whenever something has changed.
            gone: set when the machine is gone: helpers that are starting would keep the names of its units.
            with_directory: the machine has no runtime directory yet.
            deadline: on trio's clock.

        Returns:
            Their state, once all are active.

        Raises:
            MachineGone: before they were there.
            UnitNameTaken: by something that does not go.
            HelperFailed: one of them did not start.
            JobFailed: the manager could not start them.
            InvalidProperty: the manager does not like a property, or one of those named.
            ManagerError: as the manager says.
        """
        types = UnitTypes(
            await self._manager.property_types("service", deadline=deadline),
            await self._manager.property_types("socket", deadline=deadline),
        )
        spec = ServiceSpec(
            unit=machine.names.add_barrier,
            description=f"More helpers of machine {machine.described}",
            properties=types.unit(machine.names.add_barrier, barrier(machine, specs)).properties,
            auxiliary=types.helpers(
                machine, specs, self._directories, with_directory=with_directory, with_scope=False
            ),
        )
        with self._watcher.watching(machine.names, specs) as watch:
            job: Job | Exception = MachineGone(machine.names.machine)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_changes, watch, tell)
                nursery.start_soon(_cancel_when, gone, nursery.cancel_scope)
                job = await self._tried(spec, watch, deadline=deadline)
                nursery.cancel_scope.cancel()
            if isinstance(job, ManagerTimeout):
                raise await self._watcher.lateness(watch) or job
            if isinstance(job, Exception):
                raise job
            statuses = await self._watcher.settled(watch, deadline=deadline)
            if job.result not in {"done", "skipped"} or watch.failed:  # its condition is never met
                raise await self._watcher.failure(watch) or JobFailed(spec.unit, job.result, None)
            return statuses

    async def are_bound(self, record: Record, *, deadline: float) -> bool:
        """Return whether what was started for a machine goes with it: not if its unit had ended by then.

        Raises:
            ManagerError: as the manager says.
        """
        status = await self._manager.status(record.unit, deadline=deadline)
        return (
            status is not None
            and status.active_state in {"active", "reloading"}
            and status.invocation_id == record.invocation_id
        )

    async def _tried(
        self, spec: ServiceSpec, watch: StartWatch, *, deadline: float
    ) -> Job | ManagerError | UnitNameTaken | OSError:
        """Start units of helpers, and return what came of it."""
        try:
            return await self._started.start(spec, deadline=deadline, made=watch.made)
        except (ManagerError, UnitNameTaken, OSError) as error:
            return error

    async def _tell_changes(self, watch: StartWatch, tell: Callable[[list[HelperStatus]], None]) -> None:
        while True:
            await watch.news.next()
            tell(self._watcher.statuses(watch))

    async def resume(self, change: Change, mark: str) -> bool:
        """Find what came of a start of helpers that was cut off: all that was asked for, or nothing.

        Args:
            change: what was asked for.
            mark: what the start has put on its units.

        Returns:
            Whether they are there. If not, nothing is left of the start.

        Raises:
            ManagerError: the manager cannot be asked, or does not take it back; all may be there still.
        """
        deadline = trio.current_time() + RESUME_SECONDS
        units = change_names(change)
        if not await self._started.is_any_made(units, mark, deadline=deadline):
            return False
        unit = UnitNames(change.machine).add_barrier
        status = await self._started.made(unit, mark, deadline=deadline)
        status = await self._started.until_started(status, mark, deadline=deadline)
        deadline = trio.current_time() + UNDO_SECONDS
        found = await self._started.all_made(units, mark, deadline=deadline)
        states = {each.unit: each.active_state for each in found if each is not None}
        settled = status is None or not status.job_id
        if settled and all(states.get(helper.unit, "inactive") not in ENDED for helper in change.helpers):
            return True
        await self.take_back(change, mark, wait=False)
        return False

    async def take_back(self, change: Change, mark: str, *, wait: bool) -> None:
        """Remove what a start of helpers has made, and wait until the names are free.

        Args:
            change: what was asked for; the names may be those of units of others as well.
            mark: what the start has put on its units.
            wait: it may be on its way to the manager still.

        Raises:
            ManagerError: it could not be done before the deadline; units may be there still.
        """
        deadline = trio.current_time() + UNDO_SECONDS
        units = change_names(change)
        if not wait or await self._started.is_any_made(units, mark, deadline=deadline):
            await self._remove(units, change, mark, deadline)
        scope = UnitNames(change.machine).scope
        await self._leftovers.stop_revived(scope, change.invocation_id, deadline=deadline)

    async def _remove(self, units: Sequence[str], change: Change, mark: str, deadline: float) -> None:
        bonds = bond_names(UnitNames(change.machine), change.helpers)
        for bond in bonds:
            await self._started.stop(bond, mark, alone=True, deadline=deadline)
        await gather(
            [
                partial(self._started.remove, unit, mark, alone=unit in bonds, deadline=deadline)
                for unit in units
            ]
        )

    async def stop(self, machine: str, helper: Helper, marks: str, *, deadline: float) -> None:
        """Stop a helper that is not wanted any more. A unit of its name that is none of the machine's goes on.

        Args:
            machine: name of its machine.
            helper: which one.
            marks: what all marks begin with that units of its machine have.
            deadline: on trio's clock.

        Raises:
            ManagerError: as the manager says.
        """
        names = UnitNames(machine)
        # Whatever the record says of its policy: an instance that was killed may have changed that already.
        await self._stop_bond(names.bond(helper.name), marks, deadline=deadline)
        if await self._started.stop(helper.unit, marks, deadline=deadline):
            await self._leftovers.reset(helper.unit, deadline=deadline)
            if helper.sockets:
                await self._started.stop(names.socket(helper.name), marks, deadline=deadline)

    async def stop_all(
        self, machine: str, helpers: Sequence[Helper], marks: str, *, deadline: float
    ) -> None:
        """Stop all helpers of a machine, but not the unit that they are bound to.

        Args:
            machine: name of their machine.
            helpers: all that it has.
            marks: what all marks begin with that units of their machine have.
            deadline: on trio's clock.

        Raises:
            ManagerError: as the manager says.
        """
        names = UnitNames(machine)
        for bond in bond_names(names, helpers):  # else it would have that unit stopped
            await self._stop_bond(bond, marks, deadline=deadline)
        await self._started.stop(names.runtime, marks, deadline=deadline)  # all of them require it

    async def _stop_bond(self, bond: str, marks: str, *, deadline: float) -> None:
        """Stop a bond alone. One that was about to start has failed by that, and would be there to the scope's end."""
        if await self._started.stop(bond, marks, alone=True, deadline=deadline):
            await self._leftovers.reset(bond, deadline=deadline)


async def _cancel_when(event: Once, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
