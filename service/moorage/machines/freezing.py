"""Freezing machines and letting them run again. An answer is true when it is given: the kernel says so.

A machine is frozen as a whole, by the service manager (``FreezeUnit``, org.freedesktop.systemd1(5)). Its helpers go on
unless a caller wants otherwise: a device that a frozen helper serves would keep the guest waiting for nothing. Then
they are frozen after the machine, and thawed before it, so that the machine never waits for one of them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator
from functools import partial

import trio

from moorage.kernel.cgroup import Hierarchy
from moorage.machines.agenda import Agenda
from moorage.machines.alone import Alone
from moorage.machines.detached import Detached
from moorage.machines.errors import MachineBusy, MachineGone, PartOfUnit
from moorage.machines.machine import Machine, Work
from moorage.machines.model import Helper
from moorage.machines.registry import Registry, check_runs, check_there
from moorage.machines.renewal import is_renewed
from moorage.machines.thawing import (
    freezer_above,
    frozen_with,
    helper_group,
    is_frozen,
    is_to_freeze,
    naming_the_slice,
    thaw_helpers,
)
from moorage.pid1.errors import FreezerCancelled, ManagerError, ManagerTimeout, NoSuchUnit, UnitBusy
from moorage.pid1.manager import Manager

FREEZE_SECONDS = 25.0
"""Default deadline of Freeze and Thaw, that of a call on D-Bus. The kernel needs a millisecond, unless a process waits
in it for something that cannot be interrupted, such as a disk that does not answer."""

UNDO_SECONDS = 5.0
"""For how long after its deadline a Freeze that failed may still be taken back before its caller is answered."""

_log = logging.getLogger(__name__)


class Freezing:
    """Freezes machines and thaws them. Either, once begun, goes on without its caller."""

    def __init__(
        self, registry: Registry, agenda: Agenda, manager: Manager, hierarchy: Hierarchy, detached: Detached
    ) -> None:
        self._registry = registry
        self._agenda = agenda
        self._manager = manager
        self._hierarchy = hierarchy
        self._detached = detached
        # One call of a kind after the other: the manager refuses the second. A thaw does not wait for a freeze, which
        # it puts an end to.
        self._freezes, self._thaws = Alone(), Alone()

    async def freeze(
        self, machine: Machine, *, helpers: bool = False, timeout: float = FREEZE_SECONDS
    ) -> None:
        """Freeze a machine, and wait until the kernel says that it is; nothing happens if it is already.

        One that is frozen with its slice stays so when the slice is thawed. If this fails, what was not frozen before
        is not afterwards.

        Args:
            machine: one of the registry's.
            helpers: its helpers too.
            timeout: in seconds.

        Raises:
            PartOfUnit: others would be frozen with it.
            MachineBusy: it is being stopped, or was thawed meanwhile.
            UnitBusy: something else is being done with its unit.
            MachineGone: it has ended meanwhile, or was forgotten.
            TooMuchUnderWay: it is being frozen, by many.
            ManagerError: as the manager says.
            OSError: no file descriptor is left, or no memory.
        """
        deadline = trio.current_time() + timeout
        await self._detached.shielded(partial(self._freeze, machine, deadline, helpers=helpers))

    async def thaw(self, machine: Machine, *, timeout: float = FREEZE_SECONDS) -> None:
        """Thaw a machine and its helpers, and wait until they run; do nothing if they run already.

        Args:
            machine: one of the registry's.
            timeout: in seconds.

        Raises:
            UnitBusy: also if a slice that it is in is frozen. It will run when that is thawed.
            PartOfUnit, MachineBusy, MachineGone, TooMuchUnderWay, ManagerError, OSError: as for :meth:`freeze`.
        """
        deadline = trio.current_time() + timeout
        await self._detached.shielded(partial(self._thaw, machine, deadline))

    async def _freeze(self, machine: Machine, deadline: float, *, helpers: bool) -> None:
        with machine.under_way(Work.freeze), self._translated(machine):
            async with self._freezes.of(machine.name, f"freeze of {machine.unit}", deadline=deadline):
                await self._check(machine, "Freeze")
                frozen = machine.record.helpers if helpers else ()
                group = machine.record.control_group
                thawed = [
                    helper
                    for helper in frozen
                    if not is_to_freeze(helper_group(machine.record, helper), self._hierarchy)
                ]
                was = is_to_freeze(group, self._hierarchy)
                machine.helpers_frozen |= bool(thawed)
                try:
                    await self._order(machine.unit, group, deadline)
                    for helper in thawed:
                        await self._freeze_helper(machine, helper, deadline)
                    check_there(self._registry, machine)
                    if not is_frozen(group, self._hierarchy):
                        raise MachineBusy("the machine was thawed meanwhile")
                except Exception:
                    await self._take_back(machine, thawed, whole=not was)
                    raise
                machine.was_frozen(frozen=True)

    async def _freeze_helper(self, machine: Machine, helper: Helper, deadline: float) -> None:
        """Freeze a helper that runs."""
        group = helper_group(machine.record, helper)
        state = self._hierarchy.events(group)
        if state is not None and state.populated:
            with contextlib.suppress(NoSuchUnit):
                await self._order(helper.unit, group, deadline)

    async def _order(self, unit: str, group: str, deadline: float) -> None:
        """Have the manager freeze a unit, again if it gives up although nobody has thawed the unit."""
        while True:
            try:
                return await self._manager.freeze(unit, deadline=deadline)
            except FreezerCancelled:
                if not is_to_freeze(group, self._hierarchy):
                    raise

    async def _take_back(self, machine: Machine, helpers: list[Helper], *, whole: bool) -> None:
        """Thaw what a freeze that failed may have frozen."""
        deadline = trio.current_time() + UNDO_SECONDS
        try:
            with contextlib.suppress(NoSuchUnit, UnitBusy):  # it is stopped, and thawed for that
                await thaw_helpers(
                    machine.record, helpers, self._manager, self._hierarchy, deadline=deadline
                )
                if whole and self._registry.get(machine.name) is machine:
                    await self._manager.thaw(machine.unit, deadline=deadline)
        except (ManagerError, OSError) as error:
            _log.warning("Failed to take back the freeze of machine %s, ignoring: %s", machine.name, error)

    async def _thaw(self, machine: Machine, deadline: float) -> None:
        group = machine.record.control_group
        with machine.under_way(Work.thaw), self._translated(machine):
            async with self._thaws.of(machine.name, f"thaw of {machine.unit}", deadline=deadline):
                await self._check(machine, "Thaw")
                with naming_the_slice(machine.record, self._hierarchy):
                    await self._thaw_all(machine, deadline)
                check_there(self._registry, machine)
                if is_frozen(group, self._hierarchy):
                    above = freezer_above(group, self._hierarchy)
                    if above is None:
                        raise MachineBusy("the machine was frozen meanwhile")
                    raise frozen_with(machine.record, above)
                machine.was_frozen(frozen=False)

    async def _thaw_all(self, machine: Machine, deadline: float) -> None:
        record, hierarchy = machine.record, self._hierarchy
        await thaw_helpers(record, record.helpers, self._manager, hierarchy, deadline=deadline)
        group = record.control_group
        is_it = is_frozen(group, hierarchy) or is_to_freeze(group, hierarchy)
        if is_it or machine.has_under_way(Work.freeze):
            await self._manager.thaw(machine.unit, deadline=deadline)

    async def _check(self, machine: Machine, operation: str) -> None:
        """Check that a machine can be frozen or thawed.

        Raises:
            PartOfUnit, MachineBusy, MachineGone, ManagerError: it cannot, as said above.
        """
        if not machine.record.placement.is_whole:
            raise PartOfUnit(operation)
        check_runs(self._registry, machine)
        if await is_renewed(machine, self._manager):
            self._agenda.mark(machine, ask=True)
            raise MachineGone(machine.name)

    @contextlib.contextmanager
    def _translated(self, machine: Machine) -> Generator[None]:
        """Raise what is known of the machine in place of the manager's refusals."""
        try:
            yield
        except NoSuchUnit:
            self._agenda.mark(machine, ask=True)
            raise MachineGone(machine.name) from None
        except (UnitBusy, MachineBusy, ManagerTimeout):
            check_runs(self._registry, machine)
            raise
