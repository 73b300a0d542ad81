"""Orders to a machine: to stop, and signals to its processes."""

from __future__ import annotations

import contextlib
import logging
import signal as signals
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio

from moorage.kernel.system import System
from moorage.machines import remains
from moorage.machines.agenda import Agenda
from moorage.machines.asking import Asking
from moorage.machines.detached import Detached
from moorage.machines.errors import NoSuchSubgroup, TooMuchUnderWay, TooOld
from moorage.machines.events import Kind
from moorage.machines.final_account import FinalAccounts
from moorage.machines.followers import Followers
from moorage.machines.group_signals import signal_group
from moorage.machines.helpers.status import HelperStates
from moorage.machines.machine import Machine, Work
from moorage.machines.model import Cause, HelperEnd, KillWhom
from moorage.machines.registry import Registry
from moorage.machines.renewal import is_renewed
from moorage.machines.store import Store
from moorage.machines.thawing import freezer_above, is_frozen, naming_the_slice, thaw_helpers
from moorage.machines.vital import BOND_SECONDS, is_left_to_us, lost
from moorage.pid1.errors import ManagerError, ManagerTimeout, NoSuchUnit, UnitBusy
from moorage.pid1.manager import ASK_SECONDS, Manager

STOP_SECONDS = 200.0
"""Default deadline of a stop: two times DefaultTimeoutStopUSec=90s (SIGTERM, then SIGKILL) and a little."""

SUBGROUPS_SINCE = 258
"""The version of systemd that has KillUnitSubgroup (its NEWS)."""

_BY: Final = {Cause.stopped: "caller", Cause.lease_ended: "lease", Cause.helper_ended: "helper"}
"""Who has a machine stopped, in the words of io.moorage.Machine."""

_log = logging.getLogger(__name__)


class Control:
    """Stops machines, and signals their processes."""

    def __init__(
        self,
        registry: Registry,
        store: Store,
        agenda: Agenda,
        accounts: FinalAccounts,
        states: HelperStates,
        followers: Followers,
        asking: Asking,
        manager: Manager,
        system: System,
        detached: Detached,
    ) -> None:
        self._registry = registry
        self._store = store
        self._agenda = agenda
        self._accounts = accounts
        self._states = states
        self._followers = followers
        self._manager = manager
        self._hierarchy = system.hierarchy
        self._system = system
        self._asking = asking
        self._detached = detached

    async def stop(
        self,
        machine: Machine,
        *,
        timeout: float = STOP_SECONDS,
        cause: Cause = Cause.stopped,
        without: HelperEnd | None = None,
    ) -> None:
        """Stop a machine as :meth:`begin_stop` does, and wait until it is gone.

        Raises:
            ManagerTimeout: it is not gone yet.
            NotStoppable, TooMuchUnderWay, ManagerError: as :meth:`begin_stop` says.
        """
        if not await self.begin_stop(machine, wait=timeout, cause=cause, without=without):
            if not machine.record.placement.is_whole:
                self._asking.spare(machine)
            raise ManagerTimeout(f"stop of {machine.unit}")

    async def begin_stop(
        self,
        machine: Machine,
        *,
        wait: float,
        cause: Cause = Cause.stopped,
        without: HelperEnd | None = None,
    ) -> bool:
        """Begin to stop a machine, and wait a while for its end.

        A frozen one is thawed first: the manager refuses to stop what is frozen. Escalation is the manager's, as the
        unit's properties say (systemd.kill(5)). Once begun, the stop goes on without its caller. What is not the whole
        of its unit is asked to end by a signal instead.

        Args:
            machine: one of the registry's.
            wait: how long to wait for the end, in seconds.
            cause: why.
            without: the helper whose end is the reason.

        Returns:
            Whether it is gone.

        Raises:
            NotStoppable: there is nothing that could be stopped.
            TooMuchUnderWay: it is being stopped, by many.
            ManagerError: as the manager says.
        """
        begun: Callable[[], Awaitable[None]] = machine.gone.wait
        if await is_renewed(machine, self._manager) or not self._is_kept(machine):
            self._agenda.mark(machine, ask=True)
        elif remains.is_all(machine) and machine.has_under_way(Work.stop):
            pass  # many programs take a second SIGTERM for "abort now"
        elif machine.record.placement.is_whole:
            begun = await self._begin(machine, cause, without)
        else:
            self._asking.begin(machine)
            self._note_asked(machine, cause, without, ends=False)
        with trio.move_on_after(wait):
            await begun()
            await machine.gone.wait()
        return machine.gone.is_set()

    async def _begin(
        self, machine: Machine, cause: Cause, without: HelperEnd | None
    ) -> Callable[[], Awaitable[None]]:
        """Begin to stop the unit of a machine; return a function that waits until that is done.

        Raises:
            TooMuchUnderWay: it is being stopped, by many.
            OSError: no file descriptor is left.
        """
        state = self._hierarchy.events(machine.record.control_group)
        ends = state is None or not state.populated or machine.deactivating
        with contextlib.ExitStack() as work:
            work.enter_context(machine.under_way(Work.stop))
            self._note_asked(machine, cause, without, ends=ends)
            frozen = state is not None and state.frozen
            return await self._detached.begin(partial(self._stop, machine, work.pop_all(), frozen=frozen))

    async def stop_without(self, machine: Machine) -> None:
        """Stop a machine that runs on without a helper that it does not run without."""
        if machine.has_under_way(Work.stop_without):
            return
        with machine.under_way(Work.stop_without):
            while self._is_kept(machine) and (helper := lost(machine.record.helpers, self._states)):
                deadline = trio.current_time() + ASK_SECONDS
                try:
                    if not await is_left_to_us(machine.name, helper, self._manager, deadline=deadline):
                        await trio.sleep(BOND_SECONDS)
                    elif lost(machine.record.helpers, self._states) is helper:  # it may have been removed
                        _log.info(
                            "Machine %s is stopped: its helper %s has ended.", machine.name, helper.name
                        )
                        lost_helper = HelperEnd(helper.name, self._states.status(helper).result)
                        await self.stop(machine, cause=Cause.helper_ended, without=lost_helper)
                except (ManagerError, TooMuchUnderWay) as error:
                    _log.warning("Failed to stop machine %s, trying again: %s", machine.name, error)
                    await self.pause(machine)

    async def kill(
        self, machine: Machine, whom: KillWhom, signal: int, *, subgroup: str | None = None
    ) -> None:
        """Send a signal to processes of a machine.

        A frozen one is thawed first, for any signal but SIGKILL, which ends frozen processes: others would have to
        wait.

        Args:
            machine: one of the registry's.
            whom: which of them. Where others live in its control group, all of them are its leader.
            signal: its number.
            subgroup: with ``KillWhom.all``, only those at or below this path in the machine's control group.

        Raises:
            ProcessGone: the leader or supervisor has exited, or was never told.
            NoSuchUnit: no process is left.
            NoSuchSubgroup: no process is in that part of the machine.
            TooOld: this manager cannot kill in a part of a unit, and too many processes are in it.
            UnitBusy: the machine is frozen, and cannot be thawed now.
            ManagerError: as the manager says.
        """
        record, placement = machine.record, machine.record.placement
        if subgroup and placement.shared:
            raise NoSuchSubgroup(subgroup)  # what is below may be the others', and is not the leader either
        if whom is not KillWhom.all or placement.shared:
            if signal != signals.SIGKILL:
                await self.thaw(machine)
            found = record.supervisor if whom is KillWhom.supervisor else record.leader
            self._asking.signal(machine, found, signal)
            return
        lower = f"/{subgroup.strip('/')}" if subgroup else ""
        state = self._hierarchy.events(placement.control_group + lower)
        if state is None or not state.populated:  # the manager does not mind
            raise NoSuchSubgroup(subgroup) if subgroup else NoSuchUnit(machine.unit)
        if await is_renewed(machine, self._manager):
            self._agenda.mark(machine, ask=True)
            raise NoSuchUnit(machine.unit)
        if signal != signals.SIGKILL and placement.is_whole:
            await self._thaw(machine)
        deadline = trio.current_time() + ASK_SECONDS
        below = (placement.subgroup or "") + lower
        if below and self._manager.version < SUBGROUPS_SINCE:
            if not await signal_group(placement.control_group + lower, signal, self._system):
                raise TooOld("Kill of so many processes in a part of a unit", SUBGROUPS_SINCE)
        elif below:
            await self._manager.kill_subgroup(machine.unit, below, signal, deadline=deadline)
        else:
            await self._manager.kill(machine.unit, "all", signal, deadline=deadline)

    async def thaw(self, machine: Machine) -> None:
        """Thaw a machine that is to react to something, if it is the whole of its unit.

        Raises:
            UnitBusy: it cannot be thawed now.
            ManagerError: as the manager says.
            OSError: no file descriptor is left, or no memory.
        """
        if machine.record.placement.is_whole and not await is_renewed(machine, self._manager):
            await self._thaw(machine)

    async def _thaw(self, machine: Machine) -> None:
        if is_frozen(machine.record.control_group, self._hierarchy):
            with contextlib.suppress(NoSuchUnit), naming_the_slice(machine.record, self._hierarchy):
                await self._manager.thaw(machine.unit, deadline=trio.current_time() + ASK_SECONDS)

    def is_held(self, machine: Machine) -> bool:
        """Whether a machine is known to be frozen with a slice above it: nothing in it can react to anything then."""
        group = machine.record.control_group
        try:
            return is_frozen(group, self._hierarchy) and freezer_above(group, self._hierarchy) is not None
        except OSError:  # no file descriptor is left
            return False

    @staticmethod
    async def pause(machine: Machine) -> None:
        """Wait a while, until a stop that failed is tried again; the machine is stopping meanwhile."""
        with machine.under_way(Work.insist):
            await trio.sleep(ASK_SECONDS)

    def note_asked(self, machine: Machine, *, insist_by: int) -> None:
        """Take note that a machine is asked to end by itself, and stopped if it has not.

        Args:
            machine: one of the registry's.
            insist_by: by when, µs since boot.
        """
        self._note_asked(machine, Cause.stopped, None, ends=False, insist_by=insist_by)

    def spare(self, machine: Machine) -> None:
        """Take note that a machine was asked to end, and that nothing else can be done."""
        self._asking.spare(machine)

    def _is_kept(self, machine: Machine) -> bool:
        return self._registry.get(machine.name) is machine

    def _note_asked(
        self,
        machine: Machine,
        cause: Cause,
        without: HelperEnd | None,
        *,
        ends: bool,
        insist_by: int | None = None,
    ) -> None:
        """Store why a machine is stopped, or that it was ending by itself: the next instance has to know too."""
        before = machine.record
        if before.asked is not None:
            return
        if ends:
            machine.is_stopped_late()
        else:
            machine.was_asked_to_end(cause, without, insist_by=insist_by)
            self._followers.happened(machine, Kind.stopping, {"by": _BY[cause]})
        if machine.record == before or not self._is_kept(machine):
            return
        try:
            self._store.save(machine.record)
        except OSError as error:
            _log.warning("Failed to note that machine %s is stopped, ignoring: %s", machine.name, error)

    async def _stop(self, machine: Machine, work: contextlib.ExitStack, *, frozen: bool) -> None:
        deadline = trio.current_time() + STOP_SECONDS
        stopped = False
        try:
            record, manager = machine.record, self._manager
            with work, naming_the_slice(record, self._hierarchy):
                await thaw_helpers(record, record.helpers, manager, self._hierarchy, deadline=deadline)
                if frozen:
                    await manager.thaw(machine.unit, deadline=deadline)
                self._accounts.before_stop(machine)
                if remains.is_all(machine):
                    await remains.end(machine, manager, deadline=deadline)
                    return
                result = (await manager.stop(machine.unit, deadline=deadline)).result
                if result == "frozen":  # it was just being frozen
                    await manager.thaw(machine.unit, deadline=deadline)
                    result = (await manager.stop(machine.unit, deadline=deadline)).result
                stopped = result == "done"
                if stopped:
                    machine.unit_stops()
        except NoSuchUnit:
            machine.unit_stops()  # it went by itself
        except UnitBusy:
            if machine.record.asked is Cause.stopped and machine.record.insist_by is None:
                self._asking.spare(machine)  # nothing was done, and its caller is told so
            raise
        finally:
            # Of a unit that is stopped and gone the manager tells by itself, a moment later.
            self._agenda.mark(machine, ask=not stopped)
