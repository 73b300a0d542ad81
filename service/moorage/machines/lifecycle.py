"""The life of machines: registered, watched, stopped, and what became of them.

Everything that tells of a change (the kernel's ``cgroup.events``, a leader's pidfd, a signal of the service manager,
a reconnect) only marks a machine; ONE function, :meth:`Lifecycle._recheck`, decides what became of it, by asking. What
has crossed into the service manager runs in the lifecycle's own nursery: a client that hangs up changes nothing.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import signal as signals
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from typing import Literal, TypeVar

import msgspec
import trio

from moorage.authz.allowed_properties import MACHINE_SLICE
from moorage.authz.allowed_properties import check as check_rights
from moorage.authz.ownership import NotOwned, check_unit, is_in_namespace_of, may_signal, runs_as
from moorage.kernel.cgroup import Hierarchy
from moorage.kernel.process import NotAProcess, ProcessGone, ProcessId
from moorage.kernel.system import System
from moorage.machines import effective
from moorage.machines.allocation import Allocator, Place, auxiliary_names
from moorage.machines.asked import digests
from moorage.machines.changes import Changes
from moorage.machines.ending import FORGOTTEN, described
from moorage.machines.errors import (
    Full,
    LeaderTaken,
    NameTaken,
    NoSuchHelper,
    NotStoppable,
    NotWhole,
    RegisteredByUser,
    TooMuchUnderWay,
    TooOld,
)
from moorage.machines.final_account import FinalAccounts, accounting, now
from moorage.machines.helpers import Helpers, Home, check, check_programs, recorded
from moorage.machines.latest import Latest
from moorage.machines.leaders import Leaders
from moorage.machines.leases import Leases
from moorage.machines.limits import Difference
from moorage.machines.metadata import Metadata, acquire
from moorage.machines.model import (
    Accounting,
    Cause,
    Helper,
    HelperEnd,
    HelperSpec,
    HelperStatus,
    KillWhom,
    Machine,
    Phase,
    Registration,
    Timestamp,
    helper_unit,
    machine_of_helper,
    machine_of_scope,
    scope_name,
)
from moorage.machines.own_slice import slice_of
from moorage.machines.places import Places
from moorage.machines.properties import check_helper
from moorage.machines.registry import Claim, Registry
from moorage.machines.store import BadRecord, Store
from moorage.machines.together import together
from moorage.machines.vital import BOND_USEC, is_left_to_us, lost
from moorage.pid1.hints import Hints
from moorage.pid1.journal import Journal
from moorage.pid1.manager import (
    ASK_USEC,
    Json,
    Manager,
    ManagerError,
    ManagerRefused,
    ManagerTimeout,
    ManagerUnavailable,
    NoSuchUnit,
    UnitHint,
    UnitStatus,
)
from moorage.pid1.references import References

REGISTER_USEC = 30_000_000
"""Default deadline of a registration, µs: runc's, after 1 s had proved too short on loaded hosts (runc#2614)."""

STOP_USEC = 200_000_000
"""Default deadline of a stop, µs: two times DefaultTimeoutStopUSec=90s (SIGTERM, then SIGKILL) and a little."""

QUESTIONS_MAX = 32
"""Machines rechecked at once. The manager works on one question at a time; what waits here does not fill its queue, so
that other calls get in between."""

EMPTY_SETTLE_USEC = 1_000_000
"""For how long an empty control group may belong to a running unit, µs, before the manager is asked why: it needs that
long for hundreds of units that end at once."""

ANCESTORS_MAX = 64
"""Parents asked for the machine that a process is in; a deeper tree of processes is no machine's."""

OOM_KILLS_SINCE = 262
"""A version of systemd that counts kills for lack of memory (``OOMKills``, org.freedesktop.systemd1(5))."""

_UNIT_COUNTERS = {
    "CPUUsageNSec": "cpu_usage_nsec",
    "MemoryPeak": "memory_peak",
    "IOReadBytes": "io_read_bytes",
    "IOWriteBytes": "io_write_bytes",
    "IOReadOperations": "io_read_operations",
    "IOWriteOperations": "io_write_operations",
    "IPIngressBytes": "ip_ingress_bytes",
    "IPEgressBytes": "ip_egress_bytes",
}
"""What the manager knows of a unit's consumption when its control group is gone."""

SUBGROUPS_SINCE = 258
"""The version of systemd that has KillUnitSubgroup (its NEWS)."""

HELPERS_USEC = 90_000_000
"""Default deadline for helpers that are added or reloaded, µs: the manager's DefaultTimeoutStartSec=."""

UNDER_WAY_MAX = 64
"""Stops of one machine that are under way at once, and as many leases and changes of its helpers: they go on without
their callers, so that whoever hangs up and calls again would leave any number of them behind."""

TIDY_USEC = 60_000_000
"""How often old verdicts are dropped, µs."""

SCOPES = "machine-*.scope"
"""What the scopes of all machines match."""

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Registered(msgspec.Struct, frozen=True):
    """What came of a registration.

    Attributes:
        machine: the machine.
        helpers: the states of its helpers at the end of their start.
    """

    machine: Machine
    helpers: list[HelperStatus]


class _Mark:
    """Why a machine is to be looked at."""

    __slots__ = ("ask", "new", "removed")

    def __init__(self) -> None:
        self.new = False  # registered a moment ago: what its caller need not wait for is still to be done
        self.ask = False  # the kernel's word is not enough
        self.removed = False  # the manager has forgotten the unit


class Lifecycle:
    """Keeps the machines of one service manager.

    Attributes:
        registry: the machines.
    """

    def __init__(
        self,
        manager: Manager,
        store: Store,
        home: Home,
        references: References,
        system: System,
        journal: Journal,
    ) -> None:
        self._system = system
        self._hierarchy, self._processes = system.hierarchy, system.processes
        # Who has the rights of the manager anyway.
        self._trusted = frozenset({0, os.geteuid()})
        self.registry = Registry(self._trusted)
        self._manager = manager
        self._store = store
        self._references = references
        self._hints = Hints(manager)
        self._helpers = Helpers(manager, home, self._hints, system, journal)
        self._states = self._helpers.states
        self._states.watch(self._helper_ended)
        self._allocator = Allocator(manager, self._helpers, self._hints, store.marks, system)
        self._watch = system.hierarchy.watch(self._group_changed, self._recheck_all)
        self._leaders = Leaders(system.processes, self._part_ended)
        self._accounts = FinalAccounts(self._completed, system, journal, user=home.user)
        self._marked: dict[Machine, _Mark] = {}
        self._due: dict[Machine, float] = {}  # to be looked at again at that time, on trio's clock
        self._wake = trio.Event()
        self._claims: dict[str, trio.Event] = {}  # set when a registration has ended, well or not
        self._gone: dict[Machine, trio.Event] = {}  # of machines that somebody waits for
        self._results: dict[
            Machine, str
        ] = {}  # of those that linger: the manager forgets it with its next reload
        self._places = Places(self._trusted)
        self._questions = trio.CapacityLimiter(QUESTIONS_MAX)
        self._changes = Changes(
            self._allocator,
            store,
            self.registry,
            self._states,
            directory=home.directory,
            now=self._now,
            begin=self._begin,
        )
        self._under_way: Counter[tuple[Machine, str]] = Counter()
        self._without: set[Machine] = (
            set()
        )  # being stopped since a helper that they do not run without has ended
        self._leases = Leases(self._end, lambda machine: bool(self._under_way[machine, "lease"]))
        self._nursery: trio.Nursery | None = None
        self._shields: set[trio.CancelScope] = set()  # around what outlives its caller
        self._hints.follow_all(self._missed)

    # --- running -----------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the machines; started once what was kept on disk has been compared with what is there.

        Raises:
            ManagerError: the manager cannot be asked about them.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._restore()
                await self._recheck_marked()
                self._states.miss()
                await nursery.start(self._states.run)
                nursery.start_soon(self._leases.spare, [each for each in self.registry if each.lease])
                nursery.start_soon(self._look_around, self._begun())
                for change in self._changes.begun():
                    await nursery.start(self._changes.resume, change)
                nursery.start_soon(self._accounts.run)
                nursery.start_soon(self._recheck_for_ever)
                nursery.start_soon(self._tidy_for_ever)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    # Nothing waits for callers' tasks any more: the next instance finds what they have made.
                    for scope in self._shields:
                        scope.shield = False
        finally:
            self._nursery = None
            self._watch.close()
            self._leaders.close()

    def serve(self) -> None:
        """Take note that calls are served from now on."""
        self._leases.serve()

    def end(self) -> None:
        """Take note of the order to end: connections that close from now on are not the end of who made them."""
        self._leases.close()

    def _now(self) -> Timestamp:
        return now(self._system.clock)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to watch and nothing under way."""
        kept = len(self.registry) or self.registry.claims or len(self._accounts)
        return not kept and not self._marked and not self._gone

    def _restore(self) -> None:
        for name, found in self._store.load():
            if isinstance(found, BadRecord):
                _log.warning("Failed to load the record of machine %s, ignoring: %s", name, found)
            elif found.verdict is not None:
                self._forget_records(self.registry.retire(found))
            else:
                self.registry.add(found)
                self.follow(found)
                self._accounts.enter(found, watched=False)
                try:
                    self._hold(found)
                    self._leaders.open(found)
                    self._follow_helpers(found)
                    self._watch.add(found.control_group)
                except OSError as error:  # it is kept, and looked at until it can be watched
                    _log.warning("Failed to watch machine %s, trying again: %s", found.name, error)
                self._mark(found).ask = True

        for name, found in self._store.left():
            if isinstance(found, BadRecord):
                _log.warning("Failed to load the note of the unit of machine %s, ignoring: %s", name, found)
            elif self.registry.leave(found):
                self._hints.follow(found.unit, self._hint_of_left)
            else:
                self._store.vacate(name)

    def _begun(self) -> list[tuple[Machine, Claim]]:
        """Claim what an instance that was killed had begun, before anybody else asks for it."""
        begun: list[tuple[Machine, Claim]] = []
        for name, machine in self._store.intents():
            if isinstance(machine, BadRecord):
                _log.warning("Failed to load the intent of machine %s, ignoring: %s", name, machine)
                continue
            there = self.registry.get(machine.name) or self.registry.verdict(machine.name)
            began = machine.timestamp.monotonic
            if machine.leader is None or (there is not None and there.timestamp.monotonic >= began):
                self._withdraw(machine.name)  # it had just been completed
                continue
            try:
                claim = self.registry.begin(machine.name, machine.leader, machine.uid)
            except (NameTaken, LeaderTaken, Full) as error:
                _log.warning("Failed to resume the start of machine %s, ignoring: %s", machine.name, error)
                self._withdraw(machine.name)
            else:
                self._claims[machine.name] = trio.Event()
                begun.append((machine, claim))
        return begun

    async def _look_around(self, begun: Sequence[tuple[Machine, Claim]]) -> None:
        async with trio.open_nursery() as nursery:
            for machine, claim in begun:
                nursery.start_soon(self._resume, machine, claim)
        if self.registry.left:
            await self._vacate_all()
        await self._report_others()

    async def _resume(self, machine: Machine, claim: Claim) -> None:
        """Finish or take back a start whose caller never got an answer: it may come and ask again."""
        with contextlib.ExitStack() as steps:
            steps.callback(self.registry.abandon, claim)
            steps.callback(self._claims[machine.name].set)
            steps.callback(self._claims.pop, machine.name)
            steps.push(self._withdrawal(machine.name))
            self._follow_helpers(machine)
            place = await self._resumed(machine, keep=machine.phase is Phase.starting)
            if place is not None:
                try:
                    await self._enter(machine, place, claim, lambda: self._leaders.open(machine))
                except (OSError, NotOwned, ManagerError) as error:
                    _log.warning("Failed to keep machine %s, ignoring: %s", machine.name, error)
            if self.registry.get(machine.name) is not machine:
                self._drop_helpers(machine)
        if machine.lease:
            await self._leases.spare([machine])

    async def _resumed(self, machine: Machine, *, keep: bool) -> Place | None:
        mark = self._store.mark(machine)
        while True:
            deadline = trio.current_time() + (machine.start_by - self._now().monotonic) / 1e6
            try:
                return await self._allocator.resume(machine, mark, keep=keep, deadline=deadline)
            except (ManagerError, OSError) as error:
                what = "finish" if keep else "take back"
                _log.warning("Failed to %s the start of %s, trying again: %s", what, machine.unit, error)
                await trio.sleep(ASK_USEC / 1e6)

    async def _report_others(self) -> None:
        """Tell of what looks like machines and is none of ours: it is left alone, and in the way of its name."""
        deadline = trio.current_time() + ASK_USEC / 1e6
        try:
            units = await self._manager.units(SCOPES, deadline=deadline)
            for unit in units:
                status = (
                    await self._manager.status(unit, deadline=deadline) if self._is_other(unit) else None
                )
                if status is not None and self._is_other(unit):
                    _log.warning("%s is no machine of ours: %s.", unit, self._allocator.describe(status))
        except (ManagerError, OSError) as error:
            _log.warning("Failed to look for scopes without a machine, ignoring: %s", error)
            return
        for path in await self._hierarchy.find(SCOPES):
            unit = path.rpartition("/")[2]
            if unit not in units and self._is_other(unit):
                _log.warning("%s has processes, but no unit.", path)
                self._allocator.stray[unit] = path

    def _is_other(self, unit: str) -> bool:
        return self.registry.by_unit(unit) is None and machine_of_scope(unit) not in self._claims

    # --- hints -------------------------------------------------------------------------------------------------------

    def _mark(self, machine: Machine) -> _Mark:
        self._wake.set()
        return self._marked.setdefault(machine, _Mark())

    def _recheck_all(self) -> None:
        for machine in self.registry:
            self._mark(machine).ask = True

    def _group_changed(self, control_group: str) -> None:
        machine = self.registry.by_control_group(control_group)
        if machine is not None:
            self._part_ended(machine)

    def _part_ended(self, machine: Machine) -> None:
        self._accounts.glance(machine)
        self._mark(machine)

    def follow(self, machine: Machine) -> None:
        """Take note of what the manager reports of a machine's unit from now on."""
        if machine.owns_unit:
            self._hints.follow(machine.unit, self._hint)

    def _missed(self, hint: UnitHint) -> None:
        if hint.kind != "reloaded":
            self._accounts.lost_sight()
        self._recheck_all()

    def _hint_of_left(self, hint: UnitHint) -> None:
        if hint.kind == "removed":
            self._vacate(hint.unit)

    def _hint(self, hint: UnitHint) -> None:
        machine = self.registry.by_unit(hint.unit)
        if machine is None or hint.kind == "main":
            return
        if hint.kind == "removed":
            self._mark(machine).removed = True
            return
        if hint.active_state == "deactivating":
            self._accounts.deactivating(machine)
        if hint.active_state == "failed" or (
            hint.active_state == "inactive" and self._references.holds(hint.unit)
        ):
            self._mark(machine).ask = True  # it stays so until it has been looked at
        elif hint.active_state != "active" or machine.phase is not Phase.running:
            self._look_later(machine, EMPTY_SETTLE_USEC)

    def _helper_ended(self, unit: str) -> None:
        machine = self.registry.get(machine_of_helper(unit) or "")
        if machine is not None and lost(machine, self._states):
            self._mark(machine).ask = True

    def _look_later(self, machine: Machine, usec: int) -> None:
        due = trio.current_time() + usec / 1e6
        if due < self._due.get(machine, math.inf):
            self._due[machine] = due
            self._wake.set()

    # --- what became of a machine ------------------------------------------------------------------------------------

    async def _recheck_for_ever(self) -> None:
        while True:
            with trio.move_on_at(min(self._due.values(), default=math.inf)):
                await self._wake.wait()
            self._wake = trio.Event()
            present = trio.current_time()
            for machine in [machine for machine, due in self._due.items() if due <= present]:
                del self._due[machine]
                self._mark(machine).ask = True
            await self._recheck_marked()

    async def _recheck_marked(self) -> None:
        marked, self._marked = self._marked, {}
        async with trio.open_nursery() as nursery:
            for number, (machine, mark) in enumerate(marked.items(), start=1):
                if mark.new:
                    _log.info("New machine %s in %s.", machine.name, machine.unit)
                    self._withdraw_done(machine)
                if self.registry.get(machine.name) is machine and not self._looked_at(machine, mark):
                    nursery.start_soon(self._recheck, machine)
                # When hundreds of leaders die at once, others wait no longer.
                if number % QUESTIONS_MAX == 0:
                    await trio.lowlevel.checkpoint()

    def _looked_at(self, machine: Machine, mark: _Mark) -> bool:
        """Look at the control group; return whether there is nothing to be asked for now."""
        try:
            return self._settled_by_kernel(machine, mark)
        except OSError as error:  # no file descriptor is left, or no memory: that passes
            _log.warning("Failed to look at machine %s, trying again: %s", machine.name, error)
            self._look_later(machine, EMPTY_SETTLE_USEC)
            return True

    def _settled_by_kernel(self, machine: Machine, mark: _Mark) -> bool:
        """Look at the control group; return whether that tells all."""
        found = self._hierarchy.identity(machine.control_group)
        if found not in {None, machine.control_group_id}:  # the unit has been started anew
            self._finish(machine, FORGOTTEN)
            return True
        state = None if found is None else self._hierarchy.events(machine.control_group)
        if state is not None and state.populated:
            if self._accounts.populated(machine):  # it was empty, and is not any more
                machine.phase = Phase.running
            return not mark.ask
        self._accounts.emptied(machine)
        machine.phase = Phase.stopping
        if mark.removed or not machine.owns_unit:
            # The manager keeps units that failed until it is told otherwise: one that it let go had not. And of a part
            # of somebody else's unit it knows nothing.
            self._finish(machine, None if machine.owns_unit else "success")
            return True
        if not mark.ask:
            self._look_later(machine, EMPTY_SETTLE_USEC)
            return True
        return False

    async def _recheck(self, machine: Machine) -> None:
        try:
            async with self._questions:
                status = await self._manager.status(
                    machine.unit, deadline=trio.current_time() + ASK_USEC / 1e6
                )
                if self.registry.get(machine.name) is machine:
                    await self._settle(machine, status)
        except (ManagerError, OSError) as error:
            _log.warning("Failed to ask about machine %s, trying again: %s", machine.name, error)
            self._look_later(machine, ASK_USEC)

    async def _settle(self, machine: Machine, status: UnitStatus | None) -> None:
        """Decide what became of a machine, by what the kernel and the manager say."""
        state = self._hierarchy.events(machine.control_group)
        populated = state is not None and state.populated
        if status is None or status.invocation_id != machine.invocation_id:
            self._finish(machine, None if status is None else FORGOTTEN)
        elif status.active_state in {"inactive", "failed"}:
            if populated:
                machine.phase = Phase.lingering  # processes that outlived SIGKILL, or were spared it
                self._results.setdefault(machine, _result(status))
                self._look_later(machine, ASK_USEC)
            else:
                await self._bury(machine, status)
        elif not populated and not machine.allocated:
            # What becomes of its unit, with RemainAfterExit= for one, is no matter.
            self._finish(machine, "success")
        elif status.active_state == "deactivating":
            machine.phase = Phase.stopping
        elif populated:
            machine.phase = Phase.running
            self._watch.add(machine.control_group)  # should it not be watched since our start
            if lost(machine, self._states) is not None:
                assert self._nursery is not None, "the lifecycle is not running"
                self._nursery.start_soon(self._stop_without, machine)
        else:
            # Nobody tells the manager any more that this group is empty: it lost that event (its own race).
            _log.info("Scope %s of machine %s is active but empty, stopping it.", machine.unit, machine.name)
            self._accounts.stopped_late(machine)
            with contextlib.suppress(NoSuchUnit):
                await self._manager.stop(machine.unit, deadline=trio.current_time() + ASK_USEC / 1e6)
            self._look_later(machine, EMPTY_SETTLE_USEC)

    async def _bury(self, machine: Machine, status: UnitStatus) -> None:
        with contextlib.suppress(ManagerError):  # without them the account is not whole, that is all
            self._accounts.consumed(machine, await self._unit_counters(machine))
        if self.registry.get(machine.name) is not machine:
            return
        self._finish(machine, self._results.get(machine) or _result(status))
        if status.active_state == "failed" and machine.allocated:
            with contextlib.suppress(NoSuchUnit):
                await self._manager.reset_failed(machine.unit, deadline=trio.current_time() + ASK_USEC / 1e6)

    def _hold(self, machine: Machine) -> None:
        if machine.allocated:
            self._references.hold([machine.unit])

    async def _unit_counters(self, machine: Machine) -> Accounting:
        """Ask for what the manager has last read of a control group, before it removed it."""
        names = dict(_UNIT_COUNTERS)
        if self._manager.version >= OOM_KILLS_SINCE:
            names |= {"OOMKills": "oom_kills", "ManagedOOMKills": "managed_oom_kills"}
        deadline = trio.current_time() + ASK_USEC / 1e6
        values = await self._manager.properties(machine.unit, tuple(names), deadline=deadline)
        return Accounting(**{names[name]: value for name, value in values.items() if isinstance(value, int)})

    def _finish(self, machine: Machine, result: str | None) -> None:
        machine.verdict = self._accounts.close(machine, result, self._leaders.take(machine))
        self._release(machine)
        self._forget_records(self.registry.retire(machine))

    def _completed(self, machine: Machine) -> None:
        """Keep a verdict that is complete; should we end before, the next instance finds it out again."""
        assert machine.verdict is not None
        _log.info("Machine %s exited: %s.", machine.name, described(machine.verdict))
        if self.registry.verdict(machine.name) is not machine:
            return  # forgotten, or another one has the name
        try:
            self._store.save(machine)
        except OSError as error:
            _log.warning("Failed to save the verdict of machine %s, ignoring: %s", machine.name, error)
            self._remove_record(machine.name)

    async def complete(self, machine: Machine) -> None:
        """Wait until the verdict of a machine that has ended is complete, for a few seconds at most."""
        await self._accounts.complete(machine)

    def _release(self, machine: Machine) -> None:
        if (leader := self._leaders.take(machine)) is not None:
            leader.close()
        self._accounts.forget(machine)
        self._drop_helpers(machine)
        self._watch.remove(machine.control_group)
        if machine.owns_unit:
            self._hints.unfollow(machine.unit, self._hint)
        self._references.release(machine.unit)
        self._results.pop(machine, None)
        self._due.pop(machine, None)
        if (gone := self._gone.pop(machine, None)) is not None:
            gone.set()

    def _end_of(self, machine: Machine) -> trio.Event:
        """Return an event that is set when a machine is gone; set already if it is."""
        if self.registry.get(machine.name) is machine:
            return self._gone.setdefault(machine, trio.Event())
        gone = trio.Event()
        gone.set()
        return gone

    def _remove_record(self, name: str) -> None:
        try:
            self._store.remove(name)
        except OSError as error:
            _log.warning("Failed to remove the record of machine %s, ignoring: %s", name, error)

    def _forget_records(self, machines: list[Machine]) -> None:
        for machine in machines:
            if self.registry.get(machine.name) is None:
                self._remove_record(machine.name)

    async def _tidy_for_ever(self) -> None:
        while True:
            await trio.sleep(TIDY_USEC / 1e6)
            self._forget_records(self.registry.expire(self._now().monotonic))
            if self.registry.left:
                await self._vacate_all()

    # --- what callers want -------------------------------------------------------------------------------------------

    async def register(
        self,
        registration: Registration,
        *,
        timeout_usec: int = REGISTER_USEC,
        lease: Callable[[], Awaitable[None]] | None = None,
    ) -> Registered:
        """Register a machine: in a scope of its own, or where its leader is.

        A caller that is cancelled before this crossed into the service manager leaves nothing; after that the
        registration is completed without it.

        Args:
            registration: what is wanted; its names and texts have been checked.
            timeout_usec: µs.
            lease: returns when the machine is to end.

        Raises:
            NameTaken, LeaderTaken, Full: as the registry says.
            NoPlace: too many starts were under way until the deadline.
            UnitNameTaken, JobFailed, HelperFailed: as the allocation says.
            ProcessGone: the leader died meanwhile.
            NotOwned: it became somebody else's meanwhile.
            UnitNotOwned: it is in a unit that is not the caller's.
            InvalidProperty: one that takes the rights of the manager, which the caller has not.
            ManagerError: as the manager says. Nothing is left of a registration that failed.
            OSError: no file descriptor is left, or the record could not be written.
        """
        deadline = trio.current_time() + timeout_usec / 1e6
        group = self._processes.control_group(registration.leader.pid)
        for holder in (self.registry.get(registration.name), self.registry.by_control_group(group)):
            if holder is not None:
                await self._wait_until_gone(holder, deadline)
        self._check_leader(registration)
        if not registration.privileged:
            check_rights(
                registration.properties,
                registration.slice,
                registration.uid,
                slice_properties=registration.slice_properties,
            )
        claim = self.registry.begin(registration.name, registration.leader, registration.uid)
        if registration.dry_run:
            self.registry.abandon(claim)
            return Registered(await self._rehearse(registration, deadline), [])
        machine = _machine(registration, self._now())
        machine.start_by = machine.timestamp.monotonic + timeout_usec
        if machine.helpers:
            machine.runtime_directory = self._helpers.home.directory(machine.name)
        # From here on the pidfd is ours: the caller's goes with the caller.
        with contextlib.ExitStack() as undo:
            undo.callback(self.registry.abandon, claim)
            done = self._claims[registration.name] = trio.Event()
            undo.callback(done.set)
            undo.callback(self._claims.pop, registration.name)
            undo.callback(self._drop_helpers, machine)
            pidfd = self._processes.duplicate(registration.leader_pidfd)
            undo.callback(self._processes.close, pidfd)
            steps = undo.pop_all()

        async def complete() -> Registered:
            if machine.allocated:
                self._store.intend(machine)
                steps.push(self._withdrawal(machine.name))
            try:
                place, helpers = await self._place(registration, pidfd, self._store.mark(machine), deadline)
            except (ManagerTimeout, ManagerUnavailable):
                # It may have been done all the same, or be done yet: the name stays claimed until then.
                if machine.allocated:
                    assert self._nursery is not None
                    self._nursery.start_soon(self._take_back, machine, steps.pop_all())
                raise
            await self._enter(machine, place, claim, lambda: self._leaders.keep(machine, pidfd))
            steps.pop_all()
            self._claims.pop(machine.name).set()
            if lease is not None:
                self.lease(machine, lease)
            # Or what ends at once is forgotten before it is looked at.
            await self._references.settled(machine.unit)
            return Registered(machine, helpers)

        with steps:
            async with self._places.one(registration.uid, deadline=deadline):
                return await self._shielded(complete)

    async def _enter(
        self, machine: Machine, place: Place, claim: Claim, keep_leader: Callable[[], None]
    ) -> None:
        """Enter a machine that has its place.

        Raises:
            OSError: no file descriptor is left, or the record could not be written. Nothing is left of the machine.
            NotOwned: its leader became somebody else's meanwhile. The same.
            ManagerError: nor of its scope, but for what the manager did not take away.
        """
        mark = self._store.mark(machine)
        _put(machine, place).phase = Phase.running
        machine.timestamp, machine.start_by = self._now(), 0
        try:
            self._check_still_owned(machine)
            self._watch.add(machine.control_group)
            self._store.save(machine)
            keep_leader()
            self._accounts.enter(machine, watched=True)
            self._hold(machine)
        except (OSError, NotOwned):
            self._watch.remove(machine.control_group)
            self._remove_record(machine.name)
            if machine.allocated:
                await self._allocator.undo(machine.unit, mark, auxiliary_names(machine))
            raise
        self.registry.commit(claim, machine)
        self.follow(machine)
        self._mark(machine).new = True  # to be looked at: for what happened before the watch was there

    async def _take_back(self, machine: Machine, steps: contextlib.ExitStack) -> None:
        with steps:
            try:
                self._store.revoke(machine)  # whoever comes after us must not keep it
            except OSError as error:
                _log.warning("Failed to note that %s is taken back, ignoring: %s", machine.unit, error)
            await self._resumed(machine, keep=False)

    def _withdraw(self, name: str) -> None:
        try:
            self._store.withdraw(name)
        except OSError as error:
            _log.warning("Failed to remove the intent of machine %s, ignoring: %s", name, error)

    def _withdraw_done(self, machine: Machine) -> None:
        """Remove the intent of a machine that was entered: beside the record it means nothing any more."""
        if machine.name not in self._claims:  # else it is that of a successor
            self._withdraw(machine.name)

    def _withdrawal(self, name: str) -> Callable[..., None]:
        """What removes an intent at the end, unless that is our own: the next instance goes on from there."""

        def withdraw(kind: type[BaseException] | None, *_: object) -> None:
            if kind is None or issubclass(kind, Exception):
                self._withdraw(name)

        return withdraw

    def _check_leader(self, registration: Registration) -> None:
        holder = self.registry.by_control_group(self._processes.control_group(registration.leader.pid))
        if holder is not None and holder.owns_unit:
            raise LeaderTaken(holder.name, holder)

    async def check_owner(self, pid: int, pidfd: int, uid: int) -> int:
        """Check whether a process is a caller's to register.

        Returns:
            Uid that it runs as.

        Raises:
            NotOwned: it is not.
            ProcessGone: it has ended.
        """
        if runs_as(pid, pidfd, uid, self._processes):
            return uid
        owner = self._processes.owner(pid)
        if not await is_in_namespace_of(pid, pidfd, uid, self._manager, self._processes):
            raise NotOwned(pid, owner)
        return owner

    def _check_still_owned(self, machine: Machine) -> None:
        """Check that a leader has not become somebody else's while it was moved: by a set-user-ID program.

        What is in a user namespace of the caller's cannot leave it; what has ended harms nobody.
        """
        leader = machine.leader
        if leader is None or machine.uid == 0 or machine.uid != machine.owner:
            return
        with contextlib.suppress(ProcessGone, NotAProcess):
            pidfd = self._processes.open(leader.pid, leader.pidfd_id, leader.boot_id)
            try:
                if not runs_as(leader.pid, pidfd, machine.uid, self._processes):
                    raise NotOwned(leader.pid, self._processes.owner(leader.pid))
            finally:
                self._processes.close(pidfd)

    async def _wait_until_gone(self, machine: Machine, deadline: float) -> None:
        """Wait for the end of a machine that is about to end: its name, its leader and its unit are free then.

        That is one without processes, one in a unit that has been started anew since, and one in a scope that we stop.

        Raises:
            ManagerTimeout: the manager does not say what became of it.
        """
        stopped = machine.allocated and machine.phase is Phase.stopping
        if (
            _has_processes(machine, self._hierarchy)
            and not stopped
            and not await self._is_started_anew(machine, deadline)
        ):
            return
        self._mark(machine).ask = True
        with trio.move_on_at(deadline) as waiting:
            await self._end_of(machine).wait()
        if waiting.cancelled_caught and not _has_processes(machine, self._hierarchy):
            raise ManagerTimeout(f"end of {machine.unit}")

    async def _is_started_anew(self, machine: Machine, deadline: float) -> bool:
        """Whether a unit that is not ours is in another invocation by now; its control group outlives restarts."""
        if machine.allocated:
            return False
        status = await self._manager.status(machine.unit, deadline=deadline)
        return status is None or status.invocation_id != machine.invocation_id

    async def _place(
        self, registration: Registration, pidfd: int, mark: str, deadline: float
    ) -> tuple[Place, list[HelperStatus]]:
        await self._check_unit(registration, pidfd, deadline)
        if registration.allocate_unit:
            return await self._allocator.allocate(registration, pidfd, mark, deadline=deadline)
        place = await self._allocator.find(registration, pidfd, deadline=deadline)
        holder = self.registry.by_unit(place.unit) or self.registry.by_control_group(place.control_group)
        if holder is not None and (holder.owns_unit or holder.control_group == place.control_group):
            raise LeaderTaken(holder.name, holder)
        return place, []

    async def _check_unit(self, registration: Registration, pidfd: int, deadline: float) -> None:
        if not registration.privileged:
            group = self._processes.control_group(registration.leader.pid)
            await check_unit(group, pidfd, registration.uid, self._manager, deadline=deadline)

    async def _rehearse(self, registration: Registration, deadline: float) -> Machine:
        if registration.allocate_unit:
            await self._check_unit(registration, registration.leader_pidfd, deadline)
            mark = self._store.mark(_machine(registration, self._now()))
            place = await self._allocator.rehearse(registration, mark, deadline=deadline)
        else:
            place, _ = await self._place(registration, registration.leader_pidfd, "", deadline)
        return _put(_machine(registration, self._now()), place)

    # --- helpers -----------------------------------------------------------------------------------------------------

    async def check_helpers(
        self, specs: Sequence[HelperSpec], machine: str, existing: Sequence[Helper] = ()
    ) -> None:
        """Check whether a machine may have helpers.

        Args:
            specs: what is wanted.
            machine: name of the machine.
            existing: what the machine has already.

        Raises:
            InvalidHelper: a field is not what it should be.
            InvalidProperty: a property that is not a caller's to set.
        """
        if not specs:
            return
        check(specs, machine, existing, self._helpers.home)
        for spec in specs:
            check_helper(spec.name, spec.properties)
        await check_programs(specs)

    def helper_statuses(self, machine: Machine) -> list[HelperStatus]:
        """Return the states of a machine's helpers, as last reported; those of one that is gone went before it."""
        if machine.verdict is not None:
            return [HelperStatus(helper) for helper in machine.helpers]
        return self._states.statuses(machine.helpers)

    def _follow_helpers(self, machine: Machine) -> None:
        self._states.follow(
            (helper.unit for helper in machine.helpers), since_usec=machine.timestamp.monotonic
        )

    def _drop_helpers(self, machine: Machine) -> None:
        self._states.drop(helper.unit for helper in machine.helpers)

    async def add_helpers(
        self, machine: Machine, specs: Sequence[HelperSpec], *, timeout_usec: int = HELPERS_USEC
    ) -> AsyncGenerator[list[HelperStatus]]:
        """Start helpers for a machine that runs: all of them or none. Goes on without its caller.

        Args:
            machine: one of the registry's.
            specs: what is wanted.
            timeout_usec: µs.

        Yields:
            Their state whenever it has changed, but not each change for a slow reader; at last always that in which
            all are active.

        Raises:
            NotWhole: the machine is a part of a unit.
            RegisteredByUser: it is in the hands of somebody without the rights of the manager.
            MachineGone: it has ended meanwhile, or was forgotten.
            InvalidHelper, InvalidProperty: as :meth:`check_helpers` says.
            HelperFailed, UnitNameTaken, JobFailed: as the allocation says. The machine has none of them.
            ManagerError: as the manager says.
            OSError: the record could not be written.
        """
        if not machine.owns_unit:
            raise NotWhole
        if not machine.privileged and machine.uid not in self._trusted:
            raise RegisteredByUser
        deadline = trio.current_time() + timeout_usec / 1e6
        news = Latest[list[HelperStatus]]()

        async def add() -> None:
            with contextlib.closing(news), self._one_more(machine, "change"):
                async with self._changes.alone(machine.name):
                    staying = await self._changes.staying(machine, specs, deadline=deadline)
                    await self.check_helpers(specs, machine.name, staying)
                    news.set(await self._changes.add(machine, specs, news.set, deadline=deadline))

        done = self._begin(add)
        async for statuses in news:
            yield statuses
        await done()

    async def remove_helper(self, machine: Machine, name: str) -> None:
        """Stop a helper of a machine and forget it. Goes on without its caller.

        Raises:
            NoSuchHelper: it has none of that name.
            MachineGone: it has ended meanwhile, or was forgotten.
            ManagerError: as the manager says.
            OSError: the record could not be written.
        """

        async def remove() -> None:
            with self._one_more(machine, "change"):
                async with self._changes.alone(machine.name):
                    helper = next((helper for helper in machine.helpers if helper.name == name), None)
                    if helper is None:
                        raise NoSuchHelper
                    deadline = trio.current_time() + STOP_USEC / 1e6
                    await self._changes.remove(machine, helper, deadline=deadline)

        await self._shielded(remove)

    async def reload_helpers(self, machine: Machine) -> tuple[list[str], list[str]]:
        """Reload the helpers of a machine that can be reloaded: a scope cannot pass it on.

        Returns:
            Names of those that were, and of those that were not.

        Raises:
            ManagerError: as the manager says.
        """
        deadline = trio.current_time() + HELPERS_USEC / 1e6
        statuses = self.helper_statuses(machine)

        async def reload(status: HelperStatus) -> bool:
            if status.active_state not in {"active", "reloading"}:
                return False
            try:
                return (await self._manager.reload(status.helper.unit, deadline=deadline)).result == "done"
            except (NoSuchUnit, ManagerRefused):  # it has ended meanwhile, or has no way to reload
                return False

        done = await together([functools.partial(reload, status) for status in statuses])
        names: dict[bool, list[str]] = {True: [], False: []}
        for status, reloaded in zip(statuses, done, strict=True):
            names[reloaded].append(status.helper.name)
        return names[True], names[False]

    @contextlib.contextmanager
    def _one_more(self, machine: Machine, kind: Literal["stop", "lease", "change"]) -> Generator[None]:
        """Count something that goes on without its caller.

        Raises:
            TooMuchUnderWay: there is too much of it.
        """
        key = (machine, kind)
        if self._under_way[key] >= UNDER_WAY_MAX:
            raise TooMuchUnderWay
        self._under_way[key] += 1
        try:
            yield
        finally:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]

    # --- the end -----------------------------------------------------------------------------------------------------

    def lease(self, machine: Machine, ended: Callable[[], Awaitable[None]]) -> None:
        """Stop a machine when something has ended.

        Raises:
            TooMuchUnderWay: too many hold it.
        """
        assert self._nursery is not None, "the lifecycle is not running"
        with contextlib.ExitStack() as held:
            held.enter_context(self._one_more(machine, "lease"))
            gone = self._end_of(machine)
            self._nursery.start_soon(self._leases.hold, machine, held.pop_all(), ended, gone.wait)

    async def _end(self, machine: Machine, why: str) -> None:
        """Stop a machine that nothing holds any more."""
        if self.registry.get(machine.name) is machine:
            _log.info("The lease of machine %s has ended: %s. Stopping it.", machine.name, why)
        while self.registry.get(machine.name) is machine and not self._leases.closed:
            try:
                await self.stop(machine, cause=Cause.lease_ended)
            except (ManagerError, TooMuchUnderWay, OSError) as error:
                _log.warning("Failed to stop machine %s, trying again: %s", machine.name, error)
                await trio.sleep(ASK_USEC / 1e6)
            except NotStoppable:
                return

    async def begin_stop(self, machine: Machine, *, wait_usec: int, cause: Cause = Cause.stopped) -> bool:
        """Begin to stop a machine, and wait a while for its end.

        A frozen one is thawed first: the manager refuses to stop what is frozen. Escalation is the manager's, as the
        unit's properties say (systemd.kill(5)). Once begun, the stop goes on without its caller.

        Args:
            machine: one of the registry's.
            wait_usec: how long to wait for the end, µs.
            cause: why.

        Returns:
            Whether it is gone.

        Raises:
            NotStoppable: there is nothing that could be stopped.
            TooMuchUnderWay: it is being stopped, by many.
            ManagerError: as the manager says.
        """
        if self.registry.get(machine.name) is not machine:
            return True
        gone = self._end_of(machine)
        ends = self._is_ending(machine)  # before it is told to
        if not machine.owns_unit:
            self._ask_to_stop(machine)
        self._note_asked(machine, cause, ends=ends)
        machine.phase = Phase.stopping
        with trio.move_on_after(wait_usec / 1e6):
            if machine.owns_unit:
                await self._detached(lambda: self._stop(machine))
            await gone.wait()
        return gone.is_set()

    def _is_ending(self, machine: Machine) -> bool:
        """Whether a machine has no process left, or its unit is being stopped by others."""
        state = self._hierarchy.events(machine.control_group)
        return state is None or not state.populated or self._accounts.is_deactivating(machine)

    def _note_asked(self, machine: Machine, cause: Cause, *, ends: bool) -> None:
        """Take note of why a machine is stopped, unless it was ending by itself; the next instance has to know too."""
        if machine.asked is not None:
            return
        if ends:
            self._accounts.stopped_late(machine)
            return
        machine.asked = cause
        try:
            self._store.save(machine)
        except OSError as error:
            _log.warning("Failed to note that machine %s is stopped, ignoring: %s", machine.name, error)

    async def stop(
        self, machine: Machine, *, timeout_usec: int = STOP_USEC, cause: Cause = Cause.stopped
    ) -> None:
        """Stop a machine as :meth:`begin_stop` does, and wait until it is gone.

        Raises:
            ManagerTimeout: it is not gone yet.
            NotStoppable, TooMuchUnderWay, ManagerError: as :meth:`begin_stop` says.
        """
        if not await self.begin_stop(machine, wait_usec=timeout_usec, cause=cause):
            if not machine.owns_unit and self.registry.get(machine.name) is machine:
                machine.phase, machine.asked = (
                    Phase.running,
                    None,
                )  # it does not listen, and nothing else is done
            raise ManagerTimeout(f"stop of {machine.unit}")

    def _ask_to_stop(self, machine: Machine) -> None:
        # The unit is somebody else's too: a friendly word to who runs the machine (as machine_stop() does), but not a
        # second one, which many programs take for an order to drop everything.
        if machine.phase is Phase.stopping:
            return
        try:
            supervisor = self._addressee(machine, machine.supervisor)
            self._signal(machine, supervisor, signals.SIGTERM, NotStoppable())
        except NotStoppable:
            leader = self._addressee(machine, machine.leader)
            self._signal(machine, leader, signals.SIGTERM, NotStoppable())

    async def _stop(self, machine: Machine) -> None:
        deadline = trio.current_time() + STOP_USEC / 1e6
        state = self._hierarchy.events(machine.control_group)
        stopped = False
        try:
            with self._one_more(machine, "stop"):
                if state is not None and state.frozen:
                    await self._manager.thaw(machine.unit, deadline=deadline)
                self._accounts.sample(machine)
                stopped = (await self._manager.stop(machine.unit, deadline=deadline)).result == "done"
        except NoSuchUnit:
            pass  # it went by itself
        finally:
            # Of a unit that is stopped and gone the manager tells by itself, a moment later.
            mark = self._mark(machine)
            mark.ask |= not stopped

    async def _stop_without(self, machine: Machine) -> None:
        """Stop a machine that runs on without a helper that it does not run without."""
        if machine in self._without:
            return
        self._without.add(machine)
        try:
            while self.registry.get(machine.name) is machine and (helper := lost(machine, self._states)):
                deadline = trio.current_time() + ASK_USEC / 1e6
                try:
                    if not await is_left_to_us(machine, helper, self._manager, deadline=deadline):
                        await trio.sleep(BOND_USEC / 1e6)
                    elif lost(machine, self._states) is helper:  # it may have been removed meanwhile
                        _log.info(
                            "Machine %s is stopped: its helper %s has ended.", machine.name, helper.name
                        )
                        machine.lost = HelperEnd(helper.name, self._states.status(helper).result)
                        await self.stop(machine, cause=Cause.helper_ended)
                except (ManagerError, TooMuchUnderWay) as error:
                    _log.warning("Failed to stop machine %s, trying again: %s", machine.name, error)
                    await trio.sleep(ASK_USEC / 1e6)
        finally:
            self._without.discard(machine)

    async def wait_registered(self, name: str, *, timeout_usec: int = REGISTER_USEC) -> None:
        """Wait while a machine of that name is being registered: a stop is queued behind the start job."""
        if (ended := self._claims.get(name)) is not None:
            with trio.move_on_after(timeout_usec / 1e6):
                await ended.wait()

    async def kill(
        self, machine: Machine, whom: KillWhom, signal: int, *, subgroup: str | None = None
    ) -> None:
        """Send a signal to processes of a machine.

        Args:
            machine: one of the registry's.
            whom: which of them.
            signal: its number.
            subgroup: with ``KillWhom.all``, only those at or below this path in the machine's control group.

        Raises:
            ProcessGone: the leader or supervisor has exited, or was never told.
            NoSuchUnit: no process is left.
            TooOld: this manager cannot kill in a part of a unit.
            ManagerError: as the manager says.
        """
        if whom is not KillWhom.all:
            found = machine.leader if whom is KillWhom.leader else machine.supervisor
            target = self._addressee(machine, found)
            self._signal(machine, target, signal, ProcessGone(target.pid if target else None))
            return
        deadline = trio.current_time() + ASK_USEC / 1e6
        lower = f"/{subgroup.strip('/')}" if subgroup else ""
        state = self._hierarchy.events(machine.control_group + lower)
        if state is None or not state.populated:  # the manager does not mind
            raise NoSuchUnit(machine.unit)
        below = (machine.subgroup or "") + lower
        if below:
            if self._manager.version < SUBGROUPS_SINCE:
                raise TooOld("Kill in a part of a unit", SUBGROUPS_SINCE)
            await self._manager.kill_subgroup(machine.unit, below, signal, deadline=deadline)
        else:
            await self._manager.kill(machine.unit, "all", signal, deadline=deadline)

    def _addressee(self, machine: Machine, found: ProcessId | None) -> ProcessId | None:
        """The leader or supervisor, unless it has become somebody else's: its owner would signal what it may not."""
        if found is None or machine.uid in self._trusted or may_signal(machine, found, self._processes):
            return found
        return None

    def _signal(self, machine: Machine, target: ProcessId | None, signal: int, gone: Exception) -> None:
        if target is None:
            raise gone
        pidfd = self._leaders.pidfd(machine) if target is machine.leader else None
        try:
            if pidfd is not None:
                self._processes.send_signal(pidfd, signal)
                return
            pidfd = self._processes.open(target.pid, target.pidfd_id, target.boot_id)
            try:
                self._processes.send_signal(pidfd, signal)
            finally:
                self._processes.close(pidfd)
        except (ProcessLookupError, ProcessGone, NotAProcess):
            raise gone from None

    def forget(self, machine: Machine) -> None:
        """Drop the record of a machine, living or gone; its unit is left alone."""
        living = self.registry.get(machine.name) is machine
        self.registry.remove(machine)
        self.registry.drop_verdict(machine.name)
        self._release(machine)
        self._withdraw_done(machine)
        self._remove_record(machine.name)
        if living and self.registry.leave(machine):
            self._hints.follow(machine.unit, self._hint_of_left)
            try:
                self._store.leave(machine)
            except OSError as error:
                _log.warning("Failed to note the unit of machine %s, ignoring: %s", machine.name, error)
        _log.info("Machine %s forgotten.", machine.name)

    def _vacate(self, unit: str) -> None:
        """Take note that the unit of a machine that was forgotten is gone."""
        self._hints.unfollow(unit, self._hint_of_left)
        if (machine := self.registry.vacate(unit)) is not None:
            try:
                self._store.vacate(machine.name)
            except OSError as error:
                _log.warning("Failed to remove the note of unit %s, ignoring: %s", unit, error)

    async def _vacate_all(self) -> None:
        """Look which units of machines that were forgotten are gone."""
        try:
            units = await self._manager.units(SCOPES, deadline=trio.current_time() + ASK_USEC / 1e6)
        except (ManagerError, OSError) as error:
            _log.warning("Failed to look for units of machines that were forgotten, ignoring: %s", error)
            return
        for machine in self.registry.left:
            if machine.unit not in units:
                self._vacate(machine.unit)

    def is_there(self, machine: Machine) -> bool:
        """Whether any process of a machine is left: what has none is listed no more, even before its unit goes."""
        return not self._accounts.is_empty(machine)

    def is_frozen(self, machine: Machine) -> bool:
        """Whether a machine's control group is frozen."""
        state = self._hierarchy.events(machine.control_group)
        return state is not None and state.frozen

    def find_process(
        self, pid: int, pidfd_id: int | None = None, boot_id: str | None = None
    ) -> Machine | None:
        """Find the machine that a process belongs to: as its leader, by its control group, or by its ancestors.

        The ancestors are asked as machined does: a process in a unit of a user inside the machine has the machine's
        first process above it.

        Args:
            pid: the process.
            pidfd_id: inode number that its pidfd must have.
            boot_id: boot that it must be of.
        """
        try:
            if (
                machine := self.registry.by_leader(self._processes.identify(pid, pidfd_id, boot_id))
            ) is not None:
                return machine
            for _ in range(ANCESTORS_MAX):
                machine = self.registry.by_control_group(self._processes.control_group(pid))
                if machine is not None or pid == 1:
                    return machine
                pid = self._processes.parent(pid)
        except (ProcessGone, NotAProcess):
            pass
        return None

    async def metadata(self, machine: Machine, *, graceful: bool) -> Metadata:
        """Look into a machine: its addresses, its OS release, its UID shift.

        Raises:
            MetadataError: something could not be had, unless graceful.
            ManagerError: as the manager says.
        """
        return await acquire(machine, self._manager, graceful=graceful)

    async def differences(
        self, machine: Machine, registration: Registration, helpers: Sequence[HelperStatus]
    ) -> list[Difference]:
        """Compare what was asked for with what is in force; of a rehearsal, with what would be.

        Args:
            machine: that was registered, or only rehearsed.
            registration: what was asked for.
            helpers: state of those of the machine.
        """
        rehearsed = registration.dry_run
        above = machine.control_group.rpartition("/")[0]
        units = [effective.Unit(registration.properties, None if rehearsed else machine.control_group)]
        if registration.slice_properties is not None:
            units.append(
                effective.Unit(
                    registration.slice_properties, None if rehearsed else above, slice=machine.slice
                )
            )
        units += _helper_units(machine, registration.helpers, helpers, rehearsed=rehearsed)
        return await effective.compare(
            self._manager, units, registration.slice or MACHINE_SLICE, user=self._helpers.home.user
        )

    async def helper_differences(
        self, machine: Machine, specs: Sequence[HelperSpec], helpers: Sequence[HelperStatus]
    ) -> list[Difference]:
        """Compare what was asked for of helpers that were added with what is in force.

        Args:
            machine: that has them.
            specs: what was asked for.
            helpers: their states.
        """
        units = _helper_units(machine, specs, helpers, rehearsed=False)
        return await effective.compare(self._manager, units, machine.slice, user=self._helpers.home.user)

    def accounting(self, machine: Machine) -> Accounting:
        """Read the counters of a machine that lives."""
        return accounting(machine.control_group, self._hierarchy)

    async def unit_limits(self, machine: Machine, names: tuple[str, ...]) -> dict[str, Json]:
        """Read properties of a machine's unit; those that are unlimited or not available are left out.

        Raises:
            ManagerError: as the manager says.
        """
        deadline = trio.current_time() + ASK_USEC / 1e6
        values = await self._manager.properties(machine.unit, names, deadline=deadline)
        return {name: value for name, value in values.items() if value is not None}

    async def _shielded(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run something to its end in the caller's task, even if that is cancelled; but not if it was before."""
        assert self._nursery is not None, "the lifecycle is not running"
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True) as scope:
            self._shields.add(scope)
            try:
                return await function()
            except Exception as error:
                scope.shield = False
                if trio.current_effective_deadline() == -math.inf:  # nobody is there to be told
                    _log.info("Failed to complete what a caller left behind, ignoring: %r", error)
                raise
            finally:
                self._shields.discard(scope)
        raise AssertionError("nobody cancels that scope")

    async def _detached(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run something to its end in the lifecycle's nursery, whoever stops waiting for it."""
        return await self._begin(function)()

    def _begin(self, function: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
        """Begin something in the lifecycle's nursery; return how to wait for its result."""
        assert self._nursery is not None, "the lifecycle is not running"
        results: list[T] = []
        errors: list[Exception] = []
        done = trio.Event()
        awaited = True

        async def run() -> None:
            try:
                results.append(await function())
            except Exception as error:  # noqa: BLE001 - it is raised again where it is waited for
                errors.append(error)
                if not awaited:
                    _log.info("Failed to complete what a caller left behind, ignoring: %r", error)
            finally:
                done.set()

        async def result() -> T:
            nonlocal awaited
            try:
                await done.wait()
            except trio.Cancelled:
                awaited = False
                raise
            if errors:
                raise errors[0]
            return results[0]

        self._nursery.start_soon(run)
        return result


def _machine(registration: Registration, present: Timestamp) -> Machine:
    """The machine that is asked for, before it has its place."""
    return Machine(
        name=registration.name,
        class_=registration.class_,
        uid=registration.uid,
        unit=scope_name(registration.name),
        subgroup=None,
        slice=slice_of(registration),
        control_group="",
        control_group_id=0,
        invocation_id="",
        allocated=registration.allocate_unit,
        leader=registration.leader,
        supervisor=registration.supervisor,
        id=registration.id,
        service=registration.service,
        root_directory=registration.root_directory,
        if_indices=registration.if_indices,
        vsock_cid=registration.vsock_cid,
        ssh_address=registration.ssh_address,
        ssh_private_key_path=registration.ssh_private_key_path,
        control_address=registration.control_address,
        timestamp=present,
        owner=registration.owner,
        helpers=recorded(registration.name, registration.helpers),
        lease=registration.lease,
        privileged=registration.privileged,
        request=digests(registration),
    )


def _helper_units(
    machine: Machine, specs: Sequence[HelperSpec], helpers: Sequence[HelperStatus], *, rehearsed: bool
) -> list[effective.Unit]:
    """Return the units of helpers, to compare what was asked for with what is in force."""
    above = machine.control_group.rpartition("/")[0]  # they are in the slice of their machine
    processes = {status.helper.name: status.main_process for status in helpers}
    units: list[effective.Unit] = []
    for spec in specs:
        group = None if rehearsed else f"{above}/{helper_unit(machine.name, spec.name)}"
        main = processes.get(spec.name)
        units.append(effective.Unit(spec.properties, group, spec.name, main.pid if main else None))
    return units


def _has_processes(machine: Machine, hierarchy: Hierarchy) -> bool:
    """Whether a machine's control group is still there, and not empty; another one may have its path by now."""
    if hierarchy.identity(machine.control_group) != machine.control_group_id:
        return False
    state = hierarchy.events(machine.control_group)
    return state is not None and state.populated


def _result(status: UnitStatus) -> str:
    """Why a unit ended. Failed with success: it did so before a reload of the manager, which forgets the result."""
    if status.active_state == "failed" and status.result == "success":
        return FORGOTTEN
    return status.result or "success"


def _put(machine: Machine, place: Place) -> Machine:
    machine.unit = place.unit
    machine.subgroup = place.subgroup
    machine.slice = place.slice
    machine.control_group = place.control_group
    machine.control_group_id = place.control_group_id
    machine.invocation_id = place.invocation_id
    return machine
