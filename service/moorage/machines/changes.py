"""Changes of the helpers of machines that run: one after the other, each of them as a whole or not at all.

What is about to be done is written down before (:meth:`moorage.machines.store.Store.intend_change`), and the units
that are started for it are marked: so the next instance knows, after this one was killed, what is to be finished or
taken back, and units of others, which may have the same names, are left alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import msgspec
import trio

from moorage.machines.allocation import UNDO_USEC, Allocator
from moorage.machines.errors import MachineGone
from moorage.machines.helper_states import GONE, HelperStates
from moorage.machines.helpers import Host, recorded
from moorage.machines.model import (
    Change,
    Helper,
    HelperFailure,
    HelperSpec,
    HelperStatus,
    Machine,
    Timestamp,
)
from moorage.machines.registry import Registry
from moorage.machines.store import BadRecord, Store
from moorage.pid1.manager import ASK_USEC, ManagerError, ManagerTimeout, ManagerUnavailable

_log = logging.getLogger(__name__)


class Changes:
    """Adds helpers to machines, and removes them.

    Args:
        allocator: starts and stops.
        store: keeps the records.
        registry: of the machines.
        states: of helpers: kept for those that a machine has.
        directory: path of the runtime directory of the machine of a name.
        now: the time.
        begin: runs something that goes on without its caller.
    """

    def __init__(
        self,
        allocator: Allocator,
        store: Store,
        registry: Registry,
        states: HelperStates,
        *,
        directory: Callable[[str], str],
        now: Callable[[], Timestamp],
        begin: Callable[[Callable[[], Awaitable[None]]], object],
    ) -> None:
        self._allocator = allocator
        self._store = store
        self._registry = registry
        self._states = states
        self._directory = directory
        self._now = now
        self._begin = begin
        self._locks: dict[str, trio.Lock] = {}  # of the machines whose helpers are being changed, by name

    @contextlib.asynccontextmanager
    async def alone(self, machine: str) -> AsyncGenerator[None]:
        """Change the helpers of the machine of a name, one caller after the other."""
        lock = self._locks.setdefault(machine, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._locks.pop(machine, None)

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
            HelperFailed, UnitNameTaken, JobFailed, ManagerError: as the allocation says. Nothing is left of them, or
                will be.
            OSError: the intent or the record could not be written; the same.
        """
        await self._allocator.check_names(machine, specs, deadline=deadline)
        names = {spec.name for spec in specs}
        for helper in machine.helpers:
            if helper.name in names:
                await self.remove(machine, helper, deadline=deadline)
        change = self._change(
            machine, recorded(machine.name, specs), with_place=not machine.runtime_directory
        )
        mark = self._store.mark(change)
        host = Host(machine.name, machine.unit, machine.slice, machine.owner, mark)
        self._store.intend_change(change)
        try:
            statuses = await self._allocator.add_helpers(
                host, specs, tell, with_place=change.with_place, deadline=deadline
            )
            self._enter(machine, change)
        except Exception as error:
            self._drop_others(change)
            unknown = isinstance(error, (ManagerTimeout, ManagerUnavailable))
            try:
                await self._allocator.take_back_helpers(change, mark, wait=unknown)
            except (ManagerError, OSError) as failure:
                _log.warning("Failed to take back helpers of machine %s: %s", machine.name, failure)
                self._begin(lambda: self._take_back(change))
            else:
                self._withdraw(machine.name)
            raise
        self._withdraw(machine.name)
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
        again = [helper for helper in machine.helpers if helper.name in names]
        await self._states.catch_up([helper.unit for helper in again], deadline=deadline)
        ended = {each.helper.name for each in self._states.statuses(again) if each.active_state in GONE}
        return [helper for helper in machine.helpers if helper.name not in ended]

    async def remove(self, machine: Machine, helper: Helper, *, deadline: float) -> None:
        """Stop a helper of a machine and forget it; within :meth:`alone`.

        Raises:
            MachineGone: and the helper with it.
            ManagerError: as the manager says.
            OSError: the intent or the record could not be written.
        """
        change = self._change(machine, (helper,), removes=True)
        self._store.intend_change(change)
        try:
            await self._remove(machine, helper, deadline)
        except Exception:  # not at our own end: the next instance goes on from there
            self._withdraw(machine.name)
            raise
        self._withdraw(machine.name)

    async def _remove(self, machine: Machine, helper: Helper, deadline: float) -> None:
        marks = self._store.marks_of(machine.name)
        # From here on the machine goes on without it, even should it be there for a while yet.
        spared = msgspec.structs.replace(helper, on_failure=HelperFailure.ignore)
        machine.helpers = tuple(spared if each.name == helper.name else each for each in machine.helpers)
        self._save(machine)
        await self._allocator.stop_helper(machine.name, helper, marks, deadline=deadline)
        machine.helpers = tuple(each for each in machine.helpers if each.name != helper.name)
        self._states.drop([helper.unit])
        self._save(machine)

    def _drop_others(self, change: Change) -> None:
        """Forget the states of helpers that the machine of that name does not have after all."""
        holder = self._registry.get(change.machine)
        kept = holder.helpers if holder is not None else ()
        self._states.drop({helper.unit for helper in change.helpers} - {helper.unit for helper in kept})

    def begun(self) -> list[Change]:
        """Return what an instance that was killed had begun."""
        begun: list[Change] = []
        for name, found in self._store.changes():
            if isinstance(found, BadRecord):
                _log.warning("Failed to load a change of machine %s, ignoring: %s", name, found)
            else:
                begun.append(found)
        return begun

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
                    await trio.sleep(ASK_USEC / 1e6)
                else:
                    break
            self._withdraw(change.machine)

    async def _resume(self, change: Change) -> None:
        machine = self._registry.get(change.machine)
        if machine is None or machine.invocation_id != change.invocation_id:
            if not change.removes:  # else they go with the machine
                await self._allocator.take_back_helpers(change, self._store.mark(change), wait=True)
            return
        there = {helper.name for helper in machine.helpers}
        for helper in change.helpers:
            if change.removes and helper.name in there:
                await self._remove(machine, helper, trio.current_time() + UNDO_USEC / 1e6)
        if not change.removes and not there.issuperset(helper.name for helper in change.helpers):
            if await self._allocator.resume_helpers(change, self._store.mark(change)):
                units = [helper.unit for helper in change.helpers]
                self._states.follow(units, since_usec=change.timestamp.monotonic)
                await self._states.catch_up(units)
                self._enter(machine, change)
            else:
                _log.info("Helpers of machine %s were not started, and are taken back.", machine.name)

    async def _take_back(self, change: Change) -> None:
        """Go on with taking back what could not be taken back at once."""
        async with self.alone(change.machine):
            while True:
                await trio.sleep(ASK_USEC / 1e6)
                try:
                    await self._allocator.take_back_helpers(change, self._store.mark(change), wait=True)
                except (ManagerError, OSError) as error:
                    _log.warning(
                        "Failed to take back helpers of machine %s, trying again: %s", change.machine, error
                    )
                else:
                    break
            self._withdraw(change.machine)

    def _change(
        self,
        machine: Machine,
        helpers: tuple[Helper, ...],
        *,
        removes: bool = False,
        with_place: bool = False,
    ) -> Change:
        self._check_there(machine)
        return Change(machine.name, machine.invocation_id, self._now(), helpers, removes, with_place)

    def _enter(self, machine: Machine, change: Change) -> None:
        """Enter helpers that are there.

        Raises:
            MachineGone: meanwhile.
            OSError: the record could not be written; the machine is as it was.
        """
        self._check_there(machine)
        before = machine.helpers, machine.runtime_directory
        machine.helpers += change.helpers
        machine.runtime_directory = self._directory(machine.name)
        try:
            self._save(machine)
        except OSError:
            machine.helpers, machine.runtime_directory = before
            raise

    def _check_there(self, machine: Machine) -> None:
        if self._registry.get(machine.name) is not machine:
            raise MachineGone(machine.name)

    def _save(self, machine: Machine) -> None:
        if self._registry.get(machine.name) is machine:
            self._store.save(machine)

    def _withdraw(self, machine: str) -> None:
        try:
            self._store.withdraw_change(machine)
        except OSError as error:
            _log.warning(
                "Failed to remove the intent of a change of machine %s, ignoring: %s", machine, error
            )
