"""Changes of the helpers of machines that run: one after the other, each of them as a whole or not at all.

What is about to be done is written down before (:meth:`moorage.machines.intents.Intents.intend_change`), and the units
that are started for it are marked: so the next instance knows, after this one was killed, what is to be finished or
taken back, and units of others, which may have the same names, are left alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

import msgspec
import trio

from moorage.kernel.clock import Clock
from moorage.machines.alone import Alone
from moorage.machines.detached import Detached
from moorage.machines.errors import MachineGone
from moorage.machines.final_account import now
from moorage.machines.followers import Followers
from moorage.machines.helpers.start import HelperStarts
from moorage.machines.helpers.status import GONE, HelperStates
from moorage.machines.helpers.units import Change, MachineRef, RuntimeDirectories, to_records
from moorage.machines.intents import Intents
from moorage.machines.machine import Machine
from moorage.machines.model import (
    Helper,
    HelperFailure,
    HelperSpec,
    HelperStatus,
    Record,
)
from moorage.machines.registry import Registry, check_there
from moorage.machines.started import UNDO_SECONDS
from moorage.machines.store import BadRecord, Store
from moorage.names import UnitNames
from moorage.pid1.errors import ManagerError, ManagerTimeout, ManagerUnavailable, UnitBusy
from moorage.pid1.manager import ASK_SECONDS

_log = logging.getLogger(__name__)


class Changes:
    """Adds helpers to machines, and removes them."""

    def __init__(
        self,
        starts: HelperStarts,
        store: Store,
        intents: Intents,
        registry: Registry,
        states: HelperStates,
        followers: Followers,
        directories: RuntimeDirectories,
        clock: Clock,
        detached: Detached,
    ) -> None:
        self._starts = starts
        self._store = store
        self._intents = intents
        self._registry = registry
        self._states = states
        self._followers = followers
        self._directories = directories
        self._clock = clock
        self._detached = detached
        self._alone = Alone()
        self._unfinished: dict[str, Change] = {}  # removals to go on with, by the units of their helpers

    def alone(self, machine: str) -> contextlib.AbstractAsyncContextManager[None]:
        """Change the helpers of the machine of a name, one caller after the other."""
        return self._alone.of(machine)

    async def add(
        self,
        machine: Machine,
        specs: Sequence[HelperSpec],
        tell: Callable[[list[HelperStatus]], None],
        *,
        deadline: float,
    ) -> list[HelperStatus]:
        """Start helpers for a machine that runs, all of them or none; within :meth:`alone`.

        Those of their names that the machine has, which have ended, are removed first.

        Args:
            machine: one of the registry's.
            specs: checked, against the helpers that :meth:`staying` returns.
            tell: called with their state whenever something has changed.
            deadline: on trio's clock.

        Returns:
            Their state, once all are active.

        Raises:
            MachineGone: before the helpers were there.
            HelperFailed, UnitNameTaken, JobFailed, ManagerError: as the start says. Nothing is left of them, or
                will be.
            OSError: the intent or the record could not be written; the same.
        """
        record = machine.record
        await self._starts.check_names(record.name, record.unit, specs, deadline=deadline)
        names = {spec.name for spec in specs}
        for helper in record.helpers:
            if helper.name in names:
                await self.remove(machine, helper, deadline=deadline)
        change = self._change(
            machine, to_records(UnitNames(machine.name), specs), with_place=not record.runtime_directory
        )
        mark = self._intents.mark(change)
        named = MachineRef(
            UnitNames(record.name), record.unit, record.placement.slice, record.leader_uid, mark
        )
        self._intents.intend_change(change)
        try:
            statuses = await self._starts.add(
                named, specs, tell, machine.gone, with_directory=change.with_place, deadline=deadline
            )
            await self._enter(machine, change, deadline=deadline)
        except Exception as error:
            self._drop_others(change)
            unknown = isinstance(error, (MachineGone, ManagerTimeout, ManagerUnavailable))
            try:
                await self._starts.take_back(change, mark, wait=unknown)
            except (ManagerError, OSError) as failure:
                _log.warning("Failed to take back helpers of machine %s: %s", machine.name, failure)
                self._detached.start(self._take_back, change)
            else:
                self._intents.withdraw_change(change)
            raise
        self._intents.withdraw_change(change)
        self._drop_others(change)
        return statuses

    async def staying(
        self, machine: Machine, specs: Sequence[HelperSpec], *, deadline: float
    ) -> list[Helper]:
        """Return the helpers of a machine but those that have ended and are asked for again; within :meth:`alone`.

        Raises:
            ManagerError: as the manager says.
        """
        names = {spec.name for spec in specs}
        again = [helper for helper in machine.record.helpers if helper.name in names]
        await self._states.catch_up([helper.unit for helper in again], deadline=deadline)
        ended = {each.helper.name for each in self._states.statuses(again) if each.active_state in GONE}
        return [helper for helper in machine.record.helpers if helper.name not in ended]

    async def remove(self, machine: Machine, helper: Helper, *, deadline: float) -> None:
        """Stop a helper of a machine and forget it; within :meth:`alone`.

        One that may have been stopped when that fails is removed later, unless it is asked for before.

        Raises:
            MachineGone: and the helper with it.
            UnitBusy, ManagerError: as the manager says; nothing was changed if it is the first.
            OSError: the intent or the record could not be written.
        """
        change = self._change(machine, (helper,), removes=True)
        self._intents.intend_change(change)
        begun = False
        try:
            self._have(machine, _spared(helper))
            begun = True
            await self._remove(machine, helper, deadline)
        except Exception as error:  # not at our own end: the next instance goes on from there
            if begun and isinstance(error, (OSError, ManagerTimeout, ManagerUnavailable)):
                self._supersede(helper.unit)
                self._unfinished[helper.unit] = change
                self._detached.start(self._finish, helper.unit, change)
            else:
                if begun and isinstance(error, UnitBusy):  # it was not stopped
                    with contextlib.suppress(OSError):
                        self._have(machine, helper)
                self._intents.withdraw_change(change)
            raise
        self._intents.withdraw_change(change)

    def _have(self, machine: Machine, helper: Helper) -> None:
        self._save(machine, _with(machine.record, helper), machine.record.runtime_directory)

    async def _remove(self, machine: Machine, helper: Helper, deadline: float) -> None:
        marks = self._intents.marks_of(machine.name)
        await self._starts.stop(machine.name, helper, marks, deadline=deadline)
        rest = tuple(each for each in machine.record.helpers if each.name != helper.name)
        self._save(machine, rest, machine.record.runtime_directory)
        self._states.drop([helper.unit])
        self._supersede(helper.unit)

    def _supersede(self, unit: str) -> None:
        """Leave no removal of a helper to be finished: it would be that of another one of its name."""
        earlier = self._unfinished.pop(unit, None)
        if earlier is not None:
            self._intents.withdraw_change(earlier)

    async def _finish(self, unit: str, change: Change) -> None:
        """Go on with a removal; others may change the machine's helpers in between."""
        while True:
            await trio.sleep(ASK_SECONDS)
            async with self.alone(change.machine):
                if self._unfinished.get(unit) is not change:
                    return
                try:
                    await self._resume(change)
                except (MachineGone, ManagerError, OSError) as error:
                    _log.debug("Failed to remove helpers of machine %s: %s", change.machine, error)
                else:
                    self._supersede(unit)
                    return

    async def dismiss(self, record: Record, *, deadline: float) -> None:
        """Stop all helpers of a machine that has ended, while the unit that they are bound to goes on.

        Raises:
            ManagerError: as the manager says.
        """
        if not record.helpers and record.runtime_directory is None:
            return  # the directory stays when all helpers have been removed
        marks = self._intents.marks_of(record.name)
        await self._starts.stop_all(record.name, record.helpers, marks, deadline=deadline)

    def _drop_others(self, change: Change) -> None:
        """Forget the states of helpers that the machine of that name does not have after all."""
        holder = self._registry.get(change.machine)
        kept = holder.record.helpers if holder is not None else ()
        self._states.drop({helper.unit for helper in change.helpers} - {helper.unit for helper in kept})

    def begun(self) -> list[Change]:
        """Return what an instance that was killed had begun."""
        begun: list[Change] = []
        for name, found in self._intents.changes():
            if isinstance(found, BadRecord):
                _log.warning("Failed to load a change of machine %s, ignoring: %s", name, found)
            else:
                begun.append(found)
        return sorted(begun, key=lambda change: change.timestamp.monotonic)

    async def resume(
        self, change: Change, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Finish what was begun, or take it back. Started once nobody else changes the helpers of that machine."""
        async with self.alone(change.machine):
            task_status.started()
            while True:
                try:
                    await self._resume(change)
                except MachineGone:
                    continue  # which is noticed then
                except (ManagerError, OSError) as error:
                    _log.warning(
                        "Failed to go on with helpers of machine %s, trying again: %s", change.machine, error
                    )
                    await trio.sleep(ASK_SECONDS)
                else:
                    break
            self._intents.withdraw_change(change)

    async def _resume(self, change: Change) -> None:
        machine = self._registry.get(change.machine)
        if machine is None or machine.record.invocation_id != change.invocation_id:
            if not change.removes:  # else they go with the machine
                await self._starts.take_back(change, self._intents.mark(change), wait=True)
            return
        there = {helper.name for helper in machine.record.helpers}
        for helper in change.helpers:
            if change.removes and helper.name in there:
                self._have(machine, _spared(helper))
                await self._remove(machine, helper, trio.current_time() + UNDO_SECONDS)
        if not change.removes and not there.issuperset(helper.name for helper in change.helpers):
            mark = self._intents.mark(change)
            if not await self._starts.resume(change, mark):
                _log.info("Helpers of machine %s were not started, and are taken back.", machine.name)
                return
            units = [helper.unit for helper in change.helpers]
            self._states.follow(units, since_usec=change.timestamp.monotonic)
            await self._states.catch_up(units)
            try:
                await self._enter(machine, change, deadline=trio.current_time() + ASK_SECONDS)
            except MachineGone:
                self._drop_others(change)
                await self._starts.take_back(change, mark, wait=False)

    async def _take_back(self, change: Change) -> None:
        """Go on with taking back what could not be taken back at once."""
        async with self.alone(change.machine):
            while True:
                await trio.sleep(ASK_SECONDS)
                try:
                    await self._starts.take_back(change, self._intents.mark(change), wait=True)
                except (ManagerError, OSError) as error:
                    _log.warning(
                        "Failed to take back helpers of machine %s, trying again: %s", change.machine, error
                    )
                else:
                    break
            self._intents.withdraw_change(change)

    def _change(
        self,
        machine: Machine,
        helpers: tuple[Helper, ...],
        *,
        removes: bool = False,
        with_place: bool = False,
    ) -> Change:
        check_there(self._registry, machine)
        return Change(
            machine.name, machine.record.invocation_id, now(self._clock), helpers, removes, with_place
        )

    async def _enter(self, machine: Machine, change: Change, *, deadline: float) -> None:
        """Enter helpers that are there.

        Raises:
            MachineGone: meanwhile.
            ManagerError: as the manager says.
            OSError: the record could not be written; the machine is as it was.
        """
        bound = await self._starts.are_bound(machine.record, deadline=deadline)
        check_there(self._registry, machine)
        if not bound:
            raise MachineGone(machine.name)
        directory = self._directories.directory(machine.name)
        self._save(machine, machine.record.helpers + change.helpers, directory)

    def _save(self, machine: Machine, helpers: tuple[Helper, ...], directory: str | None) -> None:
        """Have a machine go on with other helpers, on disk first: the next instance knows what this one knows.

        Raises:
            OSError: that could not be written; the machine is as it was.
        """
        is_kept = self._registry.get(machine.name) is machine
        if is_kept:
            record = msgspec.structs.replace(machine.record, helpers=helpers, runtime_directory=directory)
            self._store.save(record)
        machine.with_helpers(helpers, directory)
        if is_kept:
            self._followers.changed(machine)


def _spared(helper: Helper) -> Helper:
    """Return a helper that a machine goes on without, even should it be there for a while yet."""
    return msgspec.structs.replace(helper, on_failure=HelperFailure.ignore)


def _with(record: Record, helper: Helper) -> tuple[Helper, ...]:
    """Return the helpers of a machine, of which one is replaced."""
    return tuple(helper if each.name == helper.name else each for each in record.helpers)
