"""The watcher: takes machines off the agenda, looks at them, has it judged what became of them, and acts on that.

Everything that tells of a change only puts a machine on the agenda. What became of it is decided in one place
(:func:`moorage.machines.ending.judge`), by asking: the kernel first, the service manager where that is not enough.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Final

import trio

from moorage.kernel.system import System
from moorage.machines import ending
from moorage.machines.accounting import Accounting
from moorage.machines.agenda import Agenda
from moorage.machines.control import Control
from moorage.machines.detached import Detached
from moorage.machines.events import Kind
from moorage.machines.final_account import FinalAccounts
from moorage.machines.followers import Followers
from moorage.machines.helpers.changes import Changes
from moorage.machines.helpers.status import HelperStates
from moorage.machines.leader import lives
from moorage.machines.leftovers import stop_thawed
from moorage.machines.machine import Attested, Machine, Recheck
from moorage.machines.model import Timestamp
from moorage.machines.observer import SETTLE_SECONDS, Observer
from moorage.machines.registry import Registry
from moorage.machines.renewal import has_scope
from moorage.machines.retirement import Retirement
from moorage.machines.verdicts import FORGOTTEN
from moorage.machines.vital import lost
from moorage.pid1.errors import ManagerError
from moorage.pid1.manager import ASK_SECONDS, Manager, UnitHint, UnitStatus

QUESTIONS_MAX = 32
"""Machines rechecked at once. The manager works on one question at a time; what waits here does not fill its queue, so
that other calls get in between."""

LOOKED_AT_ONCE = 4
"""Machines looked at before others get their turn: 2 ms where they have ended."""

PIDS_MAX = 64
"""Processes left of a machine that are named. Of more of them none is: there is no sense in a list of thousands."""

OOM_KILLS_SINCE = 262
"""A version of systemd that counts kills for lack of memory (``OOMKills``, org.freedesktop.systemd1(5))."""

_UNIT_COUNTERS = {
    "CPUUsageNSec": "cpu_usage_nsec",
    "MemoryPeak": "memory_peak",
    "IOReadBytes": "io_read_bytes",
    "IOWriteBytes": "io_write_bytes",
    "IOReadOperations": "io_read_operations",
    "IOWriteOperations": "io_write_operations",
    "MemorySwapPeak": "memory_swap_peak",
}
"""What the manager knows of a unit's consumption when its control group is gone."""

_IP_COUNTERS = {
    "IPIngressBytes": "ip_ingress_bytes",
    "IPIngressPackets": "ip_ingress_packets",
    "IPEgressBytes": "ip_egress_bytes",
    "IPEgressPackets": "ip_egress_packets",
}
"""What no file of the control group tells."""

_TIMES: Final = ("ActiveExitTimestampMonotonic", "InactiveEnterTimestamp", "InactiveEnterTimestampMonotonic")
"""When a unit was active no more, and when it had ended."""

_log = logging.getLogger(__name__)


class Watching:
    """Looks at the machines that are on the agenda."""

    def __init__(
        self,
        registry: Registry,
        agenda: Agenda,
        observer: Observer,
        accounts: FinalAccounts,
        retirement: Retirement,
        control: Control,
        changes: Changes,
        states: HelperStates,
        followers: Followers,
        manager: Manager,
        system: System,
        detached: Detached,
    ) -> None:
        self._registry = registry
        self._agenda = agenda
        self._observer = observer
        self._accounts = accounts
        self._retirement = retirement
        self._control = control
        self._changes = changes
        self._states = states
        self._followers = followers
        self._manager = manager
        self._hierarchy = system.hierarchy
        self._processes = system.processes
        self._detached = detached
        self._questions = trio.CapacityLimiter(QUESTIONS_MAX)
        # Answers arrive together, and an end takes half a millisecond: callers get their turn after each.
        self._ends = trio.Lock()
        self._rest = trio.CancelScope()
        agenda.wakes(self._woken)

    async def run(self) -> None:
        """Look at what is on the agenda, for ever."""
        while True:
            with trio.CancelScope(deadline=self._agenda.next_look) as self._rest:
                await trio.sleep_forever()
            await self.look()

    async def look(self) -> None:
        """Look at what is on the agenda by now."""
        questions: list[tuple[Machine, UnitHint | None]] = []
        for number, (machine, mark) in enumerate(self._agenda.take(trio.current_time()), start=1):
            if mark.new:
                _log.debug("New machine %s in %s.", machine.name, machine.unit)
            if self._is_kept(machine) and self._look_at(machine, mark):
                questions.append((machine, mark.ended))
            if number % LOOKED_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        if questions:
            async with trio.open_nursery() as nursery:
                for machine, ended in questions:
                    nursery.start_soon(self._ask_about, machine, ended)

    def _woken(self) -> None:
        self._rest.deadline = self._agenda.next_look

    def _is_kept(self, machine: Machine) -> bool:
        return self._registry.get(machine.name) is machine

    def _look_at(self, machine: Machine, mark: Recheck) -> bool:
        """Look at a machine by what the kernel says; return whether the service manager is to be asked."""
        try:
            seen = self._see(machine, sure=mark.ask)
        except OSError as error:  # no file descriptor is left, or no memory: that passes
            _log.warning("Failed to look at machine %s, trying again: %s", machine.name, error)
            self._look_later(machine, SETTLE_SECONDS)
            return False
        if seen.populated or machine.leader_gone:
            self._tell_of_leader(machine, later=mark.ask)
        judgement = ending.judge(seen, ending.Removed() if mark.removed else ending.NotAsked())
        match judgement:
            case ending.Query():
                return True
            case ending.LookAgain():
                self._look_later(machine, SETTLE_SECONDS)
            case ending.Ended():
                self._retirement.retire(machine, judgement.result)
            case _:
                pass
        return False

    def _tell_of_leader(self, machine: Machine, *, later: bool) -> None:
        """Report the end of a machine's leader whose parent leaves the kernel no record of how it ended."""
        if machine.told is None or machine.told.leader_exited:
            return
        ended = machine.leader is not None and machine.leader.ended
        if machine.leader_gone or (ended and later):
            self._followers.happened(machine, Kind.leader_exited)
        elif ended:
            self._look_later(machine, SETTLE_SECONDS)

    def _see(self, machine: Machine, *, sure: bool) -> ending.Seen:
        """Look whether a machine has processes, and take note of it.

        Raises:
            OSError: no file descriptor is left, or no memory.
        """
        record, placement = machine.record, machine.record.placement
        renewed = False
        if placement.shared:
            populated = lives(machine, self._processes)
        else:
            found = self._hierarchy.identity(placement.control_group)
            renewed = found not in {None, placement.control_group_id}
            state = None if found is None or renewed else self._hierarchy.events(placement.control_group)
            populated = state is not None and state.populated
            machine.was_frozen(frozen=state is not None and state.frozen)
        if populated:
            self._accounts.saw_freezer(machine, frozen=machine.frozen)
            machine.was_populated()
        elif not renewed:
            self._accounts.emptied(machine)
        return ending.Seen(
            populated=populated,
            renewed=renewed,
            whole=placement.is_whole,
            allocated=record.allocated,
            invocation_id=placement.invocation_id,
            sure=sure,
            result=machine.result,
            without=lost(record.helpers, self._states) is not None,
        )

    async def _ask_about(self, machine: Machine, ended: UnitHint | None) -> None:
        try:
            async with self._questions:
                unit = _ended(ended) or _unit(await self._manager.status(machine.unit, deadline=_soon()))
                if self._is_kept(machine):
                    await self._act(machine, unit)
        except (ManagerError, OSError) as error:
            _log.warning("Failed to ask about machine %s, trying again: %s", machine.name, error)
            self._look_later(machine, ASK_SECONDS)

    async def _act(self, machine: Machine, unit: ending.Unit) -> None:
        """Act on what became of a machine, by what the kernel and the manager say.

        Raises:
            ManagerError: as the manager says.
            OSError: no file descriptor is left, or no memory.
        """
        judgement = ending.judge(self._see(machine, sure=True), unit)
        match judgement:
            case ending.Ended():
                await self._end(machine, judgement)
            case ending.Lingering():
                machine.unit_ended(judgement.result)
                self._tell_lingering(machine)
                self._look_later(machine, ASK_SECONDS)
            case ending.Stopping():
                machine.unit_stops()
                self._followers.happened(machine, Kind.stopping, {"by": "unknown"})
            case ending.StopEmpty():
                _log.info(
                    "Scope %s of machine %s is active but empty, stopping it.", machine.unit, machine.name
                )
                machine.is_stopped_late()
                await stop_thawed(self._manager, machine.unit, deadline=_soon())
                self._look_later(machine, SETTLE_SECONDS)
            case ending.Running() | ending.StopWithout():
                machine.unit_runs()
                self._observer.watch_again(machine)
                if isinstance(judgement, ending.StopWithout):
                    self._detached.start(self._control.stop_without, machine)
            case _:
                pass

    def _tell_lingering(self, machine: Machine) -> None:
        try:
            pids = self._hierarchy.processes(machine.record.control_group, PIDS_MAX)
        except OSError:  # no file descriptor is left
            pids = None
        self._followers.happened(machine, Kind.lingering, {"pids": pids})

    async def _end(self, machine: Machine, judgement: ending.Ended) -> None:
        if judgement.stays:
            await self._changes.dismiss(machine.record, deadline=_soon())
        if judgement.kept:
            # Before the machine is gone: then its unit's name may be a successor's.
            machine.unit_ended(judgement.result or FORGOTTEN)
            try:
                self._accounts.consumed(machine, await self._unit_counters(machine))
                machine.accounted |= self._manager.version >= OOM_KILLS_SINCE
                machine.by_itself = await self._look_back(machine, judgement)
            except ManagerError:  # without them the account is not whole, that is all
                machine.accounted = False
            if judgement.reset and self._is_kept(machine):
                with contextlib.suppress(ManagerError):
                    await self._manager.reset_failed(machine.unit, deadline=_soon())
        async with self._ends:
            if self._is_kept(machine):
                self._retirement.retire(machine, judgement.result)

    async def _unit_counters(self, machine: Machine) -> Accounting:
        """Query the counters that the manager read from a control group before it removed it.

        What a group did not count when it was read at its end, or before it was stopped, it does not count at all.
        What it does is asked for even if it was read: while a group is removed, the kernel may say 0 of its CPU time.
        """
        if machine.accounted:  # most units count no traffic, which one question tells
            found = await self._manager.properties(machine.unit, ("IPIngressBytes",), deadline=_soon())
            if found.get("IPIngressBytes") is None:
                return Accounting()
        names = {} if machine.accounted else dict(_UNIT_COUNTERS)
        if names and self._manager.version >= OOM_KILLS_SINCE:
            names |= {"OOMKills": "oom_kills", "ManagedOOMKills": "managed_oom_kills"}
        read = machine.counters if machine.final or machine.record.asked is not None else Accounting()
        if read.cpu_usage_nsec is not None:
            names = {theirs: ours for theirs, ours in names.items() if getattr(read, ours) is not None}
        names |= _IP_COUNTERS
        values = await self._manager.properties(machine.unit, tuple(names), deadline=_soon())
        return Accounting(**{names[name]: value for name, value in values.items() if isinstance(value, int)})

    async def _look_back(self, machine: Machine, judgement: ending.Ended) -> bool:
        """Return whether a unit was active until it had ended; query that where no signal has told it.

        So it is where a question was answered sooner than the signal came, as by the end of a helper at the same time,
        and where nobody has watched. One that ends by itself is active until then: both times are those of the same
        change (`unit_notify()`).

        Raises:
            ManagerError: as the manager says.
        """
        told = judgement.by_itself
        if not has_scope(machine) or (machine.watched and (told is not None or machine.record.asked)):
            return bool(told)
        values = await self._manager.properties(machine.unit, _TIMES, deadline=_soon())
        active, realtime, monotonic = (values.get(name) for name in _TIMES)
        if not (
            isinstance(active, int) and isinstance(realtime, int) and isinstance(monotonic, int) and active
        ):
            return bool(told)
        if not machine.watched:
            machine.attested = Attested(Timestamp(realtime, monotonic), stopped=active < monotonic)
        return active == monotonic

    def _look_later(self, machine: Machine, seconds: float) -> None:
        self._agenda.look_later(machine, trio.current_time() + seconds)


def _soon() -> float:
    return trio.current_time() + ASK_SECONDS


def _unit(status: UnitStatus | None) -> ending.Unit:
    if status is None:
        return ending.Absent()
    return _known(status.invocation_id, status.active_state, status.result or "success")


def _ended(hint: UnitHint | None) -> ending.Unit | None:
    """Return what is known of a unit that has ended by what the manager said of it; None if it is to be asked."""
    if hint is None or not hint.invocation_id or not hint.result:
        return None
    return _known(hint.invocation_id, hint.active_state, hint.result, by_itself=hint.by_itself)


def _known(
    invocation_id: str, active_state: str, result: str, *, by_itself: bool | None = None
) -> ending.Known:
    if active_state == "failed" and result == "success":
        result = FORGOTTEN  # it ended before a reload of the manager, which forgets the result
    return ending.Known(invocation_id, active_state, result, by_itself)
