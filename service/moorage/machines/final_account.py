"""The final account of each machine: what is seen of it while it lives, and what is found out once it has ended.

The service manager removes the control group of a scope that ends, often before anybody else is scheduled, and
forgets the scope. What is known then comes from four places: what was read of the group while it was there, what
became of the leader, what the service manager tells of the unit, and what it wrote to the journal. The last one comes
late, or never: it is read only where the others leave something open, and then the name of the machine is free at
once, and its account is completed a moment after.

:mod:`moorage.machines.verdicts` decides what follows from it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Sequence

import msgspec
import trio

from moorage.kernel.cgroup import USAGE
from moorage.kernel.clock import Clock
from moorage.kernel.system import System
from moorage.kernel.threads import in_thread
from moorage.machines import verdicts
from moorage.machines.accounting import JOURNAL_NAMES, Accounting
from moorage.machines.events import Kind
from moorage.machines.followers import Followers
from moorage.machines.leader import end_of
from moorage.machines.limit_watch import LimitWatch
from moorage.machines.machine import Leader, Machine
from moorage.machines.model import Cause, End, HelperEnd, HelperFailure, Timestamp
from moorage.names import UnitNames
from moorage.pid1.journal import Journal, UnitEnd

TOLD_SECONDS = 5.0
"""For how long the journal may take to get what the manager wrote about an end, s: a few ms on an idle machine; with
two processors and a thousand machines that end at once, a second."""

DEAF_SECONDS = 0.1
"""The same after it told nothing of the last one, s: there may be no journal at all. Enough for one that is there, so
that it is noticed again."""

RESOURCES_SECONDS = 0.02
"""For how long the manager may take from its word about the end to that about the resources, s: it writes both in one
go."""

REAPED_SECONDS = 1.0
"""For how long a leader that has ended may wait for its parent, s. One that is not reaped by then, its parent does
not wait for; and until then the kernel does not tell how it ended."""

WAIT_SECONDS = 0.05
"""For how long one look at the journal may wait for something new, s: who ends meanwhile has to wait for the next."""

PASS_SECONDS = 0.005
"""Pause between two looks at the journal, s: it tells of every entry of every unit."""

PASS_MAX = 256
"""Units looked for in one go: 50 µs each of a thread that others may have to wait for."""

COMPLETED_AT_ONCE = 8
"""Accounts that are completed before others get their turn: a millisecond, with what is told of it."""

BONDS_SECONDS = 0.5
"""For how long the manager may take to stop the bonds of a machine that has ended, s: it needs some ms."""

BONDS_PAUSE_SECONDS = 0.01
"""Pause before another look for that, s, and twice as long before each further one: looks read from disks."""

LOOKS_MAX = 2
"""Searches for a helper that ended at once: they read from disks."""

_log = logging.getLogger(__name__)


def now(clock: Clock) -> Timestamp:
    """Return the time, µs since the epoch and since boot."""
    return Timestamp(clock.realtime(), clock.monotonic())


class _Account:
    """One that is still to be completed."""

    def __init__(
        self,
        machine: Machine,
        facts: verdicts.Facts,
        leader: Leader | None,
        seconds: float,
        *,
        told_of: bool,
        silent: bool,
    ) -> None:
        """Open an account.

        Args:
            machine: that has ended.
            facts: what is known of its end.
            leader: of the machine, if it was watched; belongs to this object from now on.
            seconds: how long to wait for the manager's word in the journal.
            told_of: that may add something.
            silent: the manager may have nothing to say.
        """
        self.machine = machine
        self.facts = facts
        self.leader = leader
        self.invocation_id = machine.record.invocation_id
        self.told_of = told_of
        self.waits = True  # for a look at the journal
        self.silent = silent
        self.until = trio.current_time() + seconds


class FinalAccounts:
    """Takes notes of the machines that live, and completes the accounts of those that have ended."""

    def __init__(
        self, system: System, journal: Journal, limits: LimitWatch, followers: Followers, *, user: bool
    ) -> None:
        """Begin with no machine.

        Args:
            system: the kernel's.
            journal: of this host.
            limits: tells who was killed, before it is told that a machine is empty or has ended.
            followers: are told when a machine is empty.
            user: the machines are those of a user's manager.
        """
        self._hierarchy = system.hierarchy
        self._clock = system.clock
        self._boot_id = system.processes.boot_id
        self._journal = journal
        self._limits = limits
        self._followers = followers
        self._user = user
        self._open: list[_Account] = []
        self._opened = trio.Event()
        self._deaf = False  # the journal told nothing of the last one
        self._looks = trio.CapacityLimiter(LOOKS_MAX)

    def __len__(self) -> int:
        return len(self._open)

    # While it lives

    def glance(self, machine: Machine) -> None:
        """Read the counters of a machine of which something has ended, before the manager takes its group away."""
        if machine.record.placement.shared:
            return
        try:
            state = self._hierarchy.events(machine.record.control_group)
        except OSError:  # no file descriptor is left: the look that follows is repeated
            return
        if state is not None and not state.populated:
            self.emptied(machine)
        elif state is not None:
            self.saw_freezer(machine, frozen=state.frozen)
            self.sample(machine)

    def saw_freezer(self, machine: Machine, *, frozen: bool) -> None:
        """Take note of whether the control group of a machine was seen to be frozen."""
        machine.was_frozen(frozen=frozen)
        told = machine.told
        if told is not None and told.frozen is None:
            told.frozen = frozen
        elif told is not None and told.frozen != frozen:
            self._followers.happened(machine, Kind.frozen if frozen else Kind.thawed)

    def emptied(self, machine: Machine) -> None:
        """Take note that a machine was seen to have no process any more, and read its counters, if that is news."""
        self._close_counters(machine)
        self._followers.happened(machine, Kind.empty)

    def _close_counters(self, machine: Machine) -> None:
        if machine.was_emptied(now(self._clock)):
            final = self.sample(machine)
            machine.was_read(machine.counters, final=final)
            # While a group is removed, the kernel may say 0 of its CPU time.
            machine.accounted = (
                self._limits.read_last(machine) and final and bool(machine.counters.cpu_usage_nsec)
            )

    def before_stop(self, machine: Machine) -> None:
        """Read the counters of a machine that is about to be stopped, and tell what has not been told of them."""
        self.sample(machine)
        self._limits.read_last(machine)

    def sample(self, machine: Machine) -> bool:
        """Read the counters of a machine; return whether its group was there all the while."""
        placement = machine.record.placement
        if placement.shared:
            return False  # they are those of others as well
        try:
            counters = self.counters(placement.control_group)
            whole = self._hierarchy.identity(placement.control_group) == placement.control_group_id
            # Its files go before it does, this one after those of its controllers (cgroup_destroy_locked() of Linux).
            whole = whole and self._hierarchy.events(placement.control_group) is not None
        except OSError:  # no file descriptor is left: what was read before stays
            return False
        machine.was_read(
            counters if whole else verdicts.merged(machine.counters, counters), final=machine.final
        )
        return whole

    def counters(self, control_group: str, attributes: Collection[str] = USAGE) -> Accounting:
        """Read the counters of a control group; those that are not there are None.

        Args:
            control_group: path of it.
            attributes: those to read.
        """
        return Accounting(**msgspec.structs.asdict(self._hierarchy.usage(control_group, attributes)))

    def consumed(self, machine: Machine, counters: Accounting) -> None:
        """Take note of what the manager last read of a group before it removed it."""
        if counters.memory_peak is None:  # of a group without that controller it says 0 as well
            counters = msgspec.structs.replace(
                counters,
                oom_kills=counters.oom_kills or None,
                managed_oom_kills=counters.managed_oom_kills or None,
            )
        merged = verdicts.merged(machine.counters, counters) if machine.final else counters
        machine.was_read(merged, final=machine.final or counters.cpu_usage_nsec is not None)

    # When it has ended

    def close(self, machine: Machine, result: str | None) -> bool:
        """Give a machine that has ended the verdict that is known at once, and open its final account.

        Args:
            machine: with no process left.
            result: of its unit; None where the manager has forgotten it.

        Returns:
            Whether that verdict is complete.
        """
        self._close_counters(machine)
        record, leader, attested = machine.record, machine.take_leader(), machine.attested
        gone = leader is None and record.leader is not None
        group = None if leader is None else leader.elsewhere(record.control_group)
        if group is not None:
            _log.warning("The leader of machine %s has left it, and lives in %s.", machine.name, group)
        # Its group was removed by the manager: it was empty. With KillMode=none processes are left.
        gone_with_it = self._hierarchy.identity(record.control_group) != record.placement.control_group_id
        facts = verdicts.Facts(
            result=result,
            found_at=attested.at if attested else machine.emptied_at or now(self._clock),
            watched=machine.watched,
            attested=attested is not None,
            whole=record.placement.is_whole,
            asked=record.asked,
            deactivating=machine.deactivating
            or (attested is not None and attested.stopped and not record.asked),
            late=record.late,
            by_itself=machine.by_itself and gone_with_it,
            bonded=any(helper.on_failure is HelperFailure.stop_machine for helper in record.helpers),
            accounted=machine.accounted,
            accounting=verdicts.merged(machine.counters, _told_kills(machine)),
            final=machine.final,
            leader_ended=True if gone or (leader is not None and group is None) else None,
            leader_exit=None if leader is None else leader.exit,
            leader_group=group,
            oom_group=None if machine.reached is None else machine.reached.group,
        )
        # Of a part of a unit the manager knows nothing.
        told_of = facts.whole and bool(record.invocation_id) and not verdicts.is_conclusive(facts)
        awaited = leader is not None and leader.ended and not leader.reaped.is_set()
        if not told_of and not awaited and not (facts.bonded and verdicts.needs_the_helper(facts)):
            self._conclude(machine, leader, facts)
            return True
        end = End(**{name: getattr(facts, name) for name in End.__struct_fields__})
        machine.retire(verdicts.verdict_of(facts), end)
        # Of a unit that has ended well by itself a user's manager writes nothing.
        silent = self._user and not (record.asked or facts.deactivating or result not in {None, "success"})
        seconds = DEAF_SECONDS if silent or self._deaf else TOLD_SECONDS
        self._open.append(_Account(machine, facts, leader, seconds, told_of=told_of, silent=silent))
        self._opened.set()
        return False

    async def run(self, completed: Callable[[Machine], None]) -> None:
        """Complete accounts for ever.

        Args:
            completed: called with a machine when its verdict is complete.
        """
        async with trio.open_nursery() as nursery:
            while True:
                await self._opened.wait()
                self._opened = trio.Event()
                while waiting := [account for account in self._open if account.waits]:
                    await self._look(waiting, nursery, completed)
                    await trio.sleep(PASS_SECONDS)

    async def _look(
        self, waiting: Sequence[_Account], nursery: trio.Nursery, completed: Callable[[Machine], None]
    ) -> None:
        """Look once for what the journal tells, and go on with all accounts for which that was the last look."""
        present = trio.current_time()
        looked = waiting[:PASS_MAX]
        found = await self._ends([account.invocation_id for account in looked if account.told_of])
        self._deaf = self._deaf and not found
        again: list[_Account] = []
        done: list[_Account] = []
        for account in looked:
            end = found.get(account.invocation_id)
            if end is not None:
                first = account.facts.told.ended_at is None
                account.facts = msgspec.structs.replace(account.facts, told=_told(end))
                if first and not account.facts.final and not end.counters:
                    account.until = trio.current_time() + RESOURCES_SECONDS
                    continue
            elif account.told_of and present < account.until:
                again.append(account)
                continue
            elif account.told_of and not account.silent and account.facts.told.ended_at is None:
                self._deaf = not any(each.facts.told.ended_at for each in self._open)
            account.waits = False
            done.append(account)
        if len(waiting) > PASS_MAX:  # others first
            last = set(again)
            self._open = [account for account in self._open if account not in last] + again
        for number, account in enumerate(done, start=1):
            nursery.start_soon(self._complete, account, completed)
            if number % COMPLETED_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()

    async def _ends(self, invocations: Sequence[str]) -> dict[str, UnitEnd]:
        if not invocations:
            return {}
        read = functools.partial(self._journal.ends, invocations, user=self._user, wait=WAIT_SECONDS)
        try:
            return await in_thread(read, abandon_on_cancel=True)
        except OSError as error:
            _log.warning("Failed to read the journal, ignoring: %s", error)
            self._deaf = True
            return {}

    async def _complete(self, account: _Account, completed: Callable[[Machine], None]) -> None:
        machine, leader, facts = account.machine, account.leader, account.facts
        if leader is not None:
            if leader.ended:
                with trio.move_on_after(REAPED_SECONDS):
                    await leader.reaped.wait()
            facts = msgspec.structs.replace(facts, leader_exit=leader.exit)
        if verdicts.needs_the_helper(facts):
            helper, stopped = await self._helper(machine)
            facts = msgspec.structs.replace(facts, helper=helper, helper_stopped=stopped)
        self._open.remove(account)
        self._conclude(machine, leader, facts)
        completed(machine)

    def _conclude(self, machine: Machine, leader: Leader | None, facts: verdicts.Facts) -> None:
        """Give a machine its last verdict, and tell before that what was not told."""
        if leader is not None:
            leader.close()
            if leader.ended:
                self._followers.happened(machine, Kind.leader_exited, end_of(leader.exit))
        verdict = verdicts.verdict_of(facts)
        kernel, oomd = verdicts.killers(facts)
        self._limits.conclude(machine, verdict, kernel=bool(kernel), oomd=bool(oomd))
        machine.complete(verdict)

    async def _helper(self, machine: Machine) -> tuple[HelperEnd | None, bool | None]:
        """Find the helper whose end had a machine stopped, with what it wrote last, and whether a job had stopped it.

        Where the service manager did not stop it for any, it is the one for which this service did.
        """
        record = machine.record
        units = {
            helper.unit: helper.name
            for helper in record.helpers
            if helper.on_failure is HelperFailure.stop_machine
        }
        if not units:
            return None, None
        bonds = {UnitNames(machine.name).bond(name): unit for unit, name in units.items()}
        boot_id, journal = self._boot_id(), self._journal
        lost = record.lost if record.asked is Cause.helper_ended else None
        otherwise = next((unit for unit, name in units.items() if lost and name == lost.name), None)

        def look() -> tuple[HelperEnd | None, bool | None, bool]:
            found, whole = journal.culprit(
                bonds, machine.unit, otherwise=otherwise, boot_id=boot_id, user=self._user
            )
            if found is not None:
                unit, since, result, stopped = found.unit, found.began_usec, found.result, found.stopped
            elif lost is not None and otherwise is not None:
                # The service manager's word is not in the journal yet, but the helper's own words may be.
                unit, since, result, stopped = otherwise, record.timestamp.monotonic, lost.result, None
            else:
                return lost, None, whole
            logs = journal.read([unit], since_usec=since, boot_id=boot_id, user=self._user, wait=0)
            return HelperEnd(units[unit], result, tuple(logs[unit].lines)), stopped, whole

        until, pause = trio.current_time() + BONDS_SECONDS, BONDS_PAUSE_SECONDS
        try:
            while True:
                helper, stopped, whole = await in_thread(look, abandon_on_cancel=True, limiter=self._looks)
                if whole or record.asked is not None or trio.current_time() >= until:
                    return helper, stopped
                await trio.sleep(pause)
                pause *= 2
        except OSError as error:
            _log.warning("Failed to read the journal, ignoring: %s", error)
            return lost, None


def _told_kills(machine: Machine) -> Accounting:
    """Return how many kills were told: what was read after a group was gone may be older."""
    counts = None if machine.told is None else machine.told.counts
    known = counts or {}
    return Accounting(oom_kills=known.get("kernel") or None, managed_oom_kills=known.get("oomd") or None)


def _told(end: UnitEnd) -> verdicts.Told:
    return verdicts.Told(
        result=end.result,
        ended_at=Timestamp(end.realtime, end.monotonic),
        stopped=end.stopped,
        oom=end.oom,
        oomd=end.oomd,
        accounting=Accounting(
            **{
                ours: end.counters[theirs]
                for theirs, ours in JOURNAL_NAMES.items()
                if theirs in end.counters
            }
        ),
    )
