"""The final account of each machine: what is seen of it while it lives, and what is found out once it has ended.

The service manager removes the control group of a scope that ends, often before anybody else is scheduled, and forgets
the scope. What is known then comes from four places: what was read of the group while it was there, what became of the
leader, what the service manager signalled, and what it wrote to the journal. The last one comes late, or never: so the
name of the machine is free at once, and its account is completed a moment after.

:mod:`moorage.machines.ending` decides what follows from it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence

import msgspec
import trio

from moorage.kernel.cgroup import Hierarchy
from moorage.kernel.clock import Clock
from moorage.kernel.system import System
from moorage.machines import ending
from moorage.machines.leaders import Leader
from moorage.machines.model import (
    Accounting,
    Cause,
    HelperEnd,
    HelperFailure,
    Machine,
    Timestamp,
    Verdict,
    bond_name,
)
from moorage.pid1.journal import Journal, UnitEnd

TOLD_USEC = 5_000_000
"""For how long the journal may take to get what the manager wrote about an end, µs: a few ms on an idle machine; with
two processors and a thousand machines that end at once, a second."""

DEAF_USEC = 100_000
"""The same after it told nothing of the last one, µs: there may be no journal at all. Enough for one that is there, so
that it is noticed again."""

RESOURCES_USEC = 20_000
"""For how long the manager may take from its word about the end to that about the resources, µs: it writes both in one
go."""

REAPED_USEC = 1_000_000
"""For how long a leader that has ended may wait for its parent, µs. One that is not reaped by then, its parent does
not wait for; and until then the kernel does not tell how it ended."""

WAIT_USEC = 50_000
"""For how long one look at the journal may wait for something new, µs: who ends meanwhile has to wait for the next."""

PASS_USEC = 5_000
"""Pause between two looks at the journal, µs: it tells of every entry of every unit."""

PASS_MAX = 256
"""Units looked for in one go: 50 µs each of a thread that others may have to wait for."""

LOOKS_MAX = 2
"""Searches for a helper that ended at once: they read from disks."""

_COUNTERS = {
    "CPU_USAGE_NSEC": "cpu_usage_nsec",
    "MEMORY_PEAK": "memory_peak",
    "IO_METRIC_READ_BYTES": "io_read_bytes",
    "IO_METRIC_WRITE_BYTES": "io_write_bytes",
    "IO_METRIC_READ_OPERATIONS": "io_read_operations",
    "IO_METRIC_WRITE_OPERATIONS": "io_write_operations",
    "IP_METRIC_INGRESS_BYTES": "ip_ingress_bytes",
    "IP_METRIC_EGRESS_BYTES": "ip_egress_bytes",
}
"""What the journal calls the counters."""

_log = logging.getLogger(__name__)


def now(clock: Clock) -> Timestamp:
    """Return the time, µs since the epoch and since boot."""
    return Timestamp(clock.realtime(), clock.monotonic())


def accounting(control_group: str, hierarchy: Hierarchy) -> Accounting:
    """Read the counters of a control group; those that are not there are None."""
    return Accounting(**msgspec.structs.asdict(hierarchy.usage(control_group)))


class _Notes:
    """What has been seen of a machine that lives."""

    __slots__ = ("counters", "deactivating", "emptied_at", "final", "late", "watched")

    def __init__(self) -> None:
        self.counters = Accounting()
        self.final = False
        self.emptied_at: Timestamp | None = None
        self.deactivating = False
        self.late = False
        self.watched = True


class _Account:
    """One that is still to be completed."""

    def __init__(self, machine: Machine, facts: ending.Facts, leader: Leader | None, told_usec: int) -> None:
        self.machine = machine
        self.facts = facts
        self.leader = leader
        self.told_of = facts.whole and bool(
            machine.invocation_id
        )  # of a part of a unit the manager knows nothing
        self.waits = True  # for a look at the journal
        self.until = trio.current_time() + told_usec / 1e6
        self.completed = trio.Event()


class FinalAccounts:
    """Takes notes of the machines that live, and completes the accounts of those that have ended."""

    def __init__(
        self, completed: Callable[[Machine], None], system: System, journal: Journal, *, user: bool
    ) -> None:
        """Begin with no machine.

        Args:
            completed: called with a machine when its verdict is complete.
            system: the kernel's.
            journal: of this host.
            user: the machines are those of a user's manager.
        """
        self._system = system
        self._journal = journal
        self._completed = completed
        self._user = user
        self._notes: dict[Machine, _Notes] = {}
        self._open: dict[Machine, _Account] = {}
        self._opened = trio.Event()
        self._deaf = False  # the journal told nothing of the last one
        self._looks = trio.CapacityLimiter(LOOKS_MAX)

    def __len__(self) -> int:
        return len(self._open)

    # --- while it lives ----------------------------------------------------------------------------------------------

    def _of(self, machine: Machine) -> _Notes:
        return self._notes.setdefault(machine, _Notes())

    def enter(self, machine: Machine, *, watched: bool) -> None:
        """Begin to take notes of a machine; watched: it is known to live."""
        self._of(machine).watched = watched

    def lost_sight(self) -> None:
        """Take note that signals of the manager may have been missed."""
        for notes in self._notes.values():
            notes.watched = False

    def populated(self, machine: Machine) -> bool:
        """Take note that a machine has processes; return whether it had none before."""
        notes = self._of(machine)
        notes.watched = True
        if notes.emptied_at is None:
            return False
        notes.emptied_at, notes.final = None, False
        return True

    def glance(self, machine: Machine) -> None:
        """Read the counters of a machine of which something has ended, before the manager takes its group away."""
        try:
            state = self._system.hierarchy.events(machine.control_group)
        except OSError:  # no file descriptor is left: the look that follows is repeated
            return
        if state is not None and not state.populated:
            self.emptied(machine)
        elif state is not None:
            self.sample(machine)

    def emptied(self, machine: Machine) -> None:
        """Take note that a machine has no process any more, and read its counters, if that is news."""
        notes = self._of(machine)
        if notes.emptied_at is None:
            notes.emptied_at = now(self._system.clock)
            notes.final = self.sample(machine)

    def is_empty(self, machine: Machine) -> bool:
        """Whether a machine was seen without a process."""
        notes = self._notes.get(machine)
        return notes is not None and notes.emptied_at is not None

    def sample(self, machine: Machine) -> bool:
        """Read the counters of a machine; return whether its group was there all the while."""
        notes = self._of(machine)
        try:
            counters = accounting(machine.control_group, self._system.hierarchy)
            whole = self._system.hierarchy.identity(machine.control_group) == machine.control_group_id
        except OSError:  # no file descriptor is left: what was read before stays
            return False
        notes.counters = counters if whole else ending.merged(notes.counters, counters)
        return whole

    def consumed(self, machine: Machine, counters: Accounting) -> None:
        """Take note of what the manager last read of a group before it removed it."""
        notes = self._of(machine)
        if counters.memory_peak is None:  # of a group without that controller it says 0 as well
            counters = msgspec.structs.replace(
                counters,
                oom_kills=counters.oom_kills or None,
                managed_oom_kills=counters.managed_oom_kills or None,
            )
        notes.counters = ending.merged(notes.counters, counters) if notes.final else counters
        notes.final = notes.final or counters.cpu_usage_nsec is not None

    def deactivating(self, machine: Machine) -> None:
        """Take note that the unit of a machine is being stopped."""
        if machine.asked is None:
            self._of(machine).deactivating = True

    def is_deactivating(self, machine: Machine) -> bool:
        """Whether the unit of a machine was seen to be stopped before this service was asked to."""
        notes = self._notes.get(machine)
        return notes is not None and notes.deactivating

    def stopped_late(self, machine: Machine) -> None:
        """Take note that this service has the unit of a machine stopped, which was ending already."""
        self._of(machine).late = True

    def forget(self, machine: Machine) -> None:
        """Drop the notes of a machine."""
        self._notes.pop(machine, None)

    # --- when it has ended -------------------------------------------------------------------------------------------

    def close(self, machine: Machine, result: str | None, leader: Leader | None) -> Verdict:
        """Open the final account of a machine that has ended, and return what is known at once.

        Args:
            machine: with no process left.
            result: of its unit; None where the manager has forgotten it.
            leader: of the machine, if it was watched; belongs to this object from now on.
        """
        self.emptied(machine)
        notes = self._notes.pop(machine)
        gone = leader is None and machine.leader is not None
        group = None if leader is None else leader.elsewhere(machine.control_group)
        if group is not None:
            _log.warning("The leader of machine %s has left it, and lives in %s.", machine.name, group)
        facts = ending.Facts(
            result=result,
            found_at=notes.emptied_at or now(self._system.clock),
            watched=notes.watched,
            whole=machine.owns_unit,
            asked=machine.asked,
            deactivating=notes.deactivating,
            late=notes.late,
            accounting=notes.counters,
            final=notes.final,
            leader_ended=True if gone or (leader is not None and group is None) else None,
            leader_exit=None if leader is None else leader.exit,
            leader_group=group,
        )
        self._open[machine] = _Account(machine, facts, leader, DEAF_USEC if self._deaf else TOLD_USEC)
        self._opened.set()
        return ending.judge(facts)

    async def complete(self, machine: Machine) -> None:
        """Wait until the verdict of a machine is complete: for TOLD_USEC and a little at most."""
        account = self._open.get(machine)
        if account is not None:
            await account.completed.wait()

    async def run(self) -> None:
        """Complete accounts for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._opened.wait()
                self._opened = trio.Event()
                while waiting := [account for account in self._open.values() if account.waits]:
                    await self._look(waiting, nursery)
                    await trio.sleep(PASS_USEC / 1e6)

    async def _look(self, waiting: Sequence[_Account], nursery: trio.Nursery) -> None:
        """Look once for what the journal tells, and go on with all accounts for which that was the last look."""
        present = trio.current_time()
        looked = waiting[:PASS_MAX]
        found = await self._ends([account.machine.invocation_id for account in looked if account.told_of])
        self._deaf = self._deaf and not found
        for account in looked:
            end = found.get(account.machine.invocation_id)
            if end is not None:
                first = account.facts.told.ended_at is None
                account.facts = msgspec.structs.replace(account.facts, told=_told(end))
                if first and not account.facts.final and not end.counters:
                    account.until = trio.current_time() + RESOURCES_USEC / 1e6
                    continue
            elif account.told_of and present < account.until:
                self._open[account.machine] = self._open.pop(account.machine)  # others first
                continue
            elif account.told_of and account.facts.told.ended_at is None:
                self._deaf = not any(each.facts.told.ended_at for each in self._open.values())
            account.waits = False
            nursery.start_soon(self._complete, account)

    async def _ends(self, invocations: Sequence[str]) -> dict[str, UnitEnd]:
        if not invocations:
            return {}
        read = functools.partial(self._journal.ends, invocations, user=self._user, wait_usec=WAIT_USEC)
        try:
            return await trio.to_thread.run_sync(read, abandon_on_cancel=True)
        except OSError as error:
            _log.warning("Failed to read the journal, ignoring: %s", error)
            self._deaf = True
            return {}

    async def _complete(self, account: _Account) -> None:
        machine, leader, facts = account.machine, account.leader, account.facts
        if leader is not None:
            if leader.ended:
                with trio.move_on_after(REAPED_USEC / 1e6):
                    await leader.reaped.wait()
            leader.close()
            facts = msgspec.structs.replace(facts, leader_exit=leader.exit)
        if ending.needs_the_helper(facts) and (helper := await self._helper(machine)) is not None:
            facts = msgspec.structs.replace(facts, helper=helper)
        machine.verdict = ending.judge(facts)
        del self._open[machine]
        account.completed.set()
        self._completed(machine)

    async def _helper(self, machine: Machine) -> HelperEnd | None:
        """Find the helper whose end had a machine stopped, with what it wrote last.

        Where the service manager did not stop it for any, it is the one for which this service did.
        """
        units = {
            helper.unit: helper.name
            for helper in machine.helpers
            if helper.on_failure is HelperFailure.stop_machine
        }
        if not units:
            return None
        bonds = {bond_name(machine.name, name): unit for unit, name in units.items()}
        boot_id = self._system.processes.boot_id()
        lost = machine.lost if machine.asked is Cause.helper_ended else None
        otherwise = next((unit for unit, name in units.items() if lost and name == lost.name), None)

        def look() -> HelperEnd | None:
            found = self._journal.culprit(
                bonds, machine.unit, otherwise=otherwise, boot_id=boot_id, user=self._user
            )
            if found is None:
                return lost
            logs = self._journal.read(
                [found.unit], since_usec=found.began_usec, boot_id=boot_id, user=self._user, wait_usec=0
            )
            return HelperEnd(units[found.unit], found.result, tuple(logs[found.unit].lines))

        try:
            return await trio.to_thread.run_sync(look, abandon_on_cancel=True, limiter=self._looks)
        except OSError as error:
            _log.warning("Failed to read the journal, ignoring: %s", error)
            return lost


def _told(end: UnitEnd) -> ending.Told:
    return ending.Told(
        result=end.result,
        ended_at=Timestamp(end.realtime, end.monotonic),
        stopped=end.stopped,
        oom=end.oom,
        oomd=end.oomd,
        accounting=Accounting(
            **{ours: end.counters[theirs] for theirs, ours in _COUNTERS.items() if theirs in end.counters}
        ),
    )
