"""The life of machines, with a service manager that the test plays."""

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from pathlib import Path

import made
import msgspec
import pytest
import trio
import trio.testing
from fakes.journal import FakeJournal
from fakes.played import PlayedManager

from moorage.api.moorage_machine.wording import Wording
from moorage.app import Core
from moorage.kernel.cgroup import Events
from moorage.kernel.poller import Readiness
from moorage.kernel.process import ProcessGone, ProcessId, boot_id, process_id
from moorage.kernel.system import Cgroupfs, system
from moorage.machines.accounting import Accounting
from moorage.machines.errors import MachineBusy, MachineGone, NameTaken, NoSuchHelper, NoSuchSubgroup
from moorage.machines.event_files import EventFiles
from moorage.machines.grace import INSIST_SECONDS
from moorage.machines.helpers import changes
from moorage.machines.helpers.units import Change, RuntimeDirectories
from moorage.machines.machine import Machine, Work
from moorage.machines.model import (
    Cause,
    Helper,
    HelperFailure,
    HelperSpec,
    KillWhom,
    MachineClass,
    Phase,
    Record,
    Registration,
    Timestamp,
)
from moorage.machines.store import CHANGE, Store
from moorage.pid1 import journal
from moorage.pid1.errors import ManagerRefused, ManagerTimeout, NoSuchUnit, UnitBusy
from moorage.pid1.journal import Journal, UnitEnd
from moorage.pid1.manager import Job, ScopeSpec, ServiceSpec, UnitHint
from moorage.pid1.references import BusReferences

IP = {"IPIngressBytes", "IPIngressPackets", "IPEgressBytes", "IPEgressPackets"}
COUNTERS = {
    "CPUUsageNSec", "MemoryPeak", "MemorySwapPeak",
    "IOReadBytes", "IOWriteBytes", "IOReadOperations", "IOWriteOperations",
}  # fmt: skip
"""What a manager of version 257 counts for a unit."""

MACHINES = 20
"""So many, since trio runs the tasks of a turn in any order: what depends on it goes wrong for some of them."""


def machine(name: str) -> Machine:
    """A machine in a scope that the kernel knows nothing of."""
    return made.machine(name, invocation_id="", runtime_directory="/run/m")


class Groups(Cgroupfs):
    """Control groups that the test makes up: each with its identity, and whether it has processes."""

    def __init__(self, readiness: Readiness) -> None:
        super().__init__(readiness)
        self.made: dict[str, tuple[int, bool]] = {}

    def identity(self, control_group: str) -> int | None:
        """See `Hierarchy`."""
        found = self.made.get(control_group)
        return None if found is None else found[0]

    def events(self, control_group: str) -> Events | None:
        """See `Hierarchy`."""
        found = self.made.get(control_group)
        return None if found is None else Events(populated=found[1], frozen=False)


@asynccontextmanager
async def running(
    manager: PlayedManager,
    directory: Path,
    groups: dict[str, tuple[int, bool]] | None = None,
    journal: Journal = journal,
) -> AsyncGenerator[Core]:
    """A core that runs."""
    readiness = Readiness()
    hierarchy = Groups(readiness)
    hierarchy.made = {} if groups is None else groups
    store = Store(str(directory))
    core = Core(
        manager,
        store,
        EventFiles(f"{directory}.events", boot_id()),
        Wording(),
        RuntimeDirectories(user=False, root="/run"),
        BusReferences(None),
        system(readiness)._replace(hierarchy=hierarchy),
        journal,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(core.run)
        yield core
        nursery.cancel_scope.cancel()
    readiness.close()
    store.close()


def enter(core: Core, *machines: Machine) -> None:
    """Have machines watched."""
    for each in machines:
        core.services.registry.add(each)
        core.followers.added(each)


async def test_a_lease_on_what_ends_at_once_leaves_nothing(tmp_path: Path) -> None:
    manager = PlayedManager()
    async with running(manager, tmp_path) as core:
        for number in range(MACHINES):
            found = machine(f"m{number}")
            enter(core, found)
            core.leases.hold(found, trio.sleep_forever)
            manager.tell(UnitHint("removed", found.unit))
        await trio.testing.wait_all_tasks_blocked()
        assert len(core.services.registry) == 0
        assert core.idle


async def test_a_slow_reader_of_changes_gets_the_last(tmp_path: Path) -> None:
    manager = PlayedManager()
    unit = "machine-web-fs.service"

    async def start(_spec: ServiceSpec) -> None:
        for number in range(1000):
            manager.tell(UnitHint("changed", unit, "activating", f"step-{number}"))
            await trio.testing.wait_all_tasks_blocked()
        manager.tell(UnitHint("changed", unit, "active", "running", result="success", main_pid=os.getpid()))

    manager.starting = start
    async with running(manager, tmp_path) as core:
        web = machine("web")
        enter(core, web)
        manager.set(web.unit, invocation_id="")
        async with aclosing(core.services.changing.add(web, [HelperSpec("fs", ("/bin/sh",))])) as changes:
            seen = [await anext(changes)]
            await trio.testing.wait_all_tasks_blocked(0.01)
            seen += [statuses async for statuses in changes]
        assert [each.active_state for each in seen[-1]] == ["active"]
        assert len(seen) == 2, "a slow reader is told of what is, not of all that was"


async def added(core: Core, machine: Machine) -> None:
    """Add a helper to a machine."""
    async with aclosing(core.services.changing.add(machine, [HelperSpec("fs", ("/bin/sh",))])) as changes:
        async for _ in changes:
            pass


async def test_helpers_are_not_added_to_a_successor(tmp_path: Path) -> None:
    """The machine has ended and its name is another one's: so are the names of its units."""
    manager = PlayedManager()
    started: list[str] = []
    web, successor = machine("web"), machine("web")

    async def start(spec: ServiceSpec) -> None:
        started.append(spec.unit)
        core.services.registry.remove(web)
        enter(core, successor)
        unit = "machine-web-fs.service"
        manager.tell(UnitHint("changed", unit, "active", "running", result="success", main_pid=os.getpid()))

    manager.starting = start
    async with running(manager, tmp_path) as core:
        enter(core, web)
        with pytest.raises(MachineGone):  # while they are started
            await added(core, web)
        assert started
        with pytest.raises(MachineGone):  # before
            await added(core, web)
        assert len(started) == 1
        assert not successor.record.helpers
        web.with_helpers((Helper("fs", "machine-web-fs.service", HelperFailure.ignore, ()),), None)
        with pytest.raises(MachineGone):
            await core.services.changing.remove(web, "fs")
    assert not any(name.startswith(".change-") for name in os.listdir(tmp_path))


async def test_no_helper_is_added_to_a_machine_that_is_being_stopped(tmp_path: Path) -> None:
    """The manager has a job for its scope; its words for that are about transactions."""
    manager, web = PlayedManager(), machine("web")

    async def start(spec: ServiceSpec) -> None:
        await trio.lowlevel.checkpoint()
        raise UnitBusy(spec.unit, "the transaction is destructive")

    manager.starting = start
    async with running(manager, tmp_path) as core:
        enter(core, web)
        with pytest.raises(UnitBusy, match="destructive"):
            await added(core, web)
        with web.under_way(Work.stop), pytest.raises(MachineBusy, match="the machine is stopping"):
            await added(core, web)

        async def ended(spec: ServiceSpec) -> None:
            core.services.registry.remove(web)
            await start(spec)

        manager.starting = ended
        with pytest.raises(MachineGone):
            await added(core, web)
    assert not any(name.startswith(".change-") for name in os.listdir(tmp_path))


async def test_a_late_failure_of_an_earlier_helper_is_none_of_one_that_is_added(tmp_path: Path) -> None:
    """It had the same name: its machine has just ended, or it was removed."""
    manager = PlayedManager()
    unit = "machine-web-fs.service"
    manager.making = lambda _spec: manager.tell(UnitHint("changed", unit, "failed", "failed"))

    async def start(_spec: ServiceSpec) -> None:
        await trio.lowlevel.checkpoint()
        manager.tell(UnitHint("changed", unit, "active", "running", result="success", main_pid=os.getpid()))

    manager.starting = start
    async with running(manager, tmp_path) as core:
        web = machine("web")
        enter(core, web)
        manager.set(web.unit, invocation_id="")
        await added(core, web)
        assert [helper.name for helper in web.record.helpers] == ["fs"]


class Forgetful(PlayedManager):
    """Forgets units that are stopped."""

    async def stop(self, unit: str, *, alone: bool = False, deadline: float) -> Job:
        """See `Manager`."""
        done = await super().stop(unit, alone=alone, deadline=deadline)
        self.unload(unit)
        return done


async def test_helpers_are_taken_back_that_were_started_for_a_scope_that_had_ended(tmp_path: Path) -> None:
    """The manager stops what is bound to a scope at its end, and nothing that is started later."""
    manager = Forgetful()
    unit = "machine-web-fs.service"

    async def start(spec: ServiceSpec) -> None:
        (helper,) = (each for each in spec.auxiliary if each.unit == unit)
        (marks,) = (each.value for each in helper.properties if each.name == "Documentation")
        manager.set("machine-web.scope", active_state="inactive")
        manager.set(unit, documentation=marks)
        manager.tell(UnitHint("changed", unit, "active", "running", result="success", main_pid=os.getpid()))

    manager.starting = start
    async with running(manager, tmp_path) as core:
        web = machine("web")
        enter(core, web)
        manager.set(web.unit, invocation_id="")
        with pytest.raises(MachineGone):
            await added(core, web)
        assert ("stop", unit) in manager.ordered
        assert not manager.is_loaded(unit)
        assert not web.record.helpers


@pytest.mark.parametrize(("writes", "again"), [(0, True), (1, True), (1, False)])
async def test_a_removal_that_cannot_be_written_has_not_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int, *, again: bool
) -> None:
    """The next instance would have the helper again, of which this one says that there is none.

    What has been stopped by then is removed as soon as that can be written, whether it is asked for again or not.
    """
    monkeypatch.setattr(changes, "ASK_SECONDS", 0.01)
    saved: list[Record] = []
    save = Store.save

    def full(store: Store, record: Record) -> None:
        if len(saved) == writes:
            raise OSError(errno.ENOSPC, "full")
        saved.append(record)
        save(store, record)

    async with running(PlayedManager(), tmp_path) as core:
        web = machine("web")
        web.with_helpers((Helper("fs", "machine-web-fs.service", HelperFailure.ignore, ()),), None)
        enter(core, web)
        monkeypatch.setattr(Store, "save", full)
        with pytest.raises(OSError, match="full"):
            await core.services.changing.remove(web, "fs")
        assert [helper.name for helper in web.record.helpers] == ["fs"]
        assert core.services.changing.statuses(web), "its state is known still"
        await trio.sleep(0.05)
        assert [helper.name for helper in web.record.helpers] == ["fs"]
        monkeypatch.setattr(Store, "save", save)
        if again:
            with contextlib.suppress(NoSuchHelper):  # by then
                await core.services.changing.remove(web, "fs")
        with trio.fail_after(10):
            while web.record.helpers:  # noqa: ASYNC110
                await trio.sleep(0.001)
        with trio.fail_after(10):
            while any(name.startswith(CHANGE) for name in os.listdir(tmp_path)):  # noqa: ASYNC110
                await trio.sleep(0.001)


async def test_what_is_removed_later_is_known_whatever_else_is_changed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next instance would have the helper, which has been stopped, on record for ever."""
    monkeypatch.setattr(changes, "ASK_SECONDS", 3600)
    helpers = tuple(
        Helper(name, f"machine-web-{name}.service", HelperFailure.ignore, ()) for name in ("a", "b")
    )
    save, left = Store.save, [1]

    def full(store: Store, record: Record) -> None:
        if not left:
            raise OSError(errno.ENOSPC, "full")
        left.pop()
        save(store, record)

    def intended() -> list[list[str]]:
        found = core.services.changing._changes._intents.changes()
        return [
            [helper.name for helper in change.helpers] for _, change in found if isinstance(change, Change)
        ]

    async with running(PlayedManager(), tmp_path) as core:
        web = machine("web")
        web.with_helpers(helpers, None)
        enter(core, web)
        monkeypatch.setattr(Store, "save", full)
        with pytest.raises(OSError, match="full"):
            await core.services.changing.remove(web, "a")
        monkeypatch.setattr(Store, "save", save)
        await core.services.changing.remove(web, "b")
        assert intended() == [["a"]]
        await core.services.changing.remove(web, "a")
        assert intended() == []


async def test_a_bond_that_was_about_to_start_is_not_left_as_failed(tmp_path: Path) -> None:
    """The scope wants it, and so keeps it for as long as it runs."""
    manager, bond = PlayedManager(), "machine-web-fs-bond.service"
    async with running(manager, tmp_path) as core:
        web = machine("web")
        web.with_helpers((Helper("fs", "machine-web-fs.service", HelperFailure.stop_machine, ()),), None)
        enter(core, web)
        marks = core.services.changing._changes._intents.marks_of("web")
        manager.set(bond, documentation=(f"{marks}x",))
        await core.services.changing.remove(web, "fs")
        assert [done for done in manager.ordered if done[1] == bond] == [("stop", bond), ("reset", bond)]


async def test_a_call_that_is_repeated_too_early_does_not_hear_of_another_machine(
    tmp_path: Path, leader: subprocess.Popen[bytes]
) -> None:
    """The name is taken by the caller's own registration, of which nobody knows yet what becomes."""
    pidfd = os.pidfd_open(leader.pid)
    registration = Registration(
        name="web", class_=MachineClass.vm, registrant=0, leader=process_id(pidfd), leader_pidfd=pidfd,
        leader_uid=0, supervisor=None, allocate_unit=True, privileged=True,
    )  # fmt: skip
    other = msgspec.structs.replace(registration, leader=ProcessId(1, 1, boot_id()))
    try:
        async with running(PlayedManager(), tmp_path) as core:
            registry = core.services.registry
            claim = registry.begin("web", registration.leader, 0)
            with pytest.raises(ManagerTimeout, match="earlier registration of machine web"):
                await core.services.registrar.find_or_register(registration, timeout=0.01)
            with pytest.raises(NameTaken):
                await core.services.registrar.find_or_register(other, timeout=0.01)
            registry.abandon(claim)
    finally:
        os.close(pidfd)


class Restarting(Forgetful):
    """Makes the scope of the first call, loses the link before it answers, and is called once more."""

    def __init__(self, leader: subprocess.Popen[bytes]) -> None:
        super().__init__()
        self._leader = leader

    async def start_scope(self, spec: ScopeSpec, *, deadline: float, made: object = None) -> Job:
        """See `Manager`."""
        (marks,) = (each.value for each in spec.properties if each.name == "Documentation")
        self.set(spec.unit, documentation=marks)
        self._leader.kill()
        self._leader.wait()
        await trio.lowlevel.checkpoint()
        raise ManagerRefused("No such process", "org.freedesktop.DBus.Error.UnixProcessIdUnknown")


@pytest.fixture
def leader() -> Generator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as started:
        yield started
        started.kill()


async def test_the_scope_of_a_repeated_start_whose_leader_has_died_is_taken_back(
    tmp_path: Path, leader: subprocess.Popen[bytes]
) -> None:
    """The second call is refused, since the process is gone; nobody has answered the first one."""
    manager = Restarting(leader)
    pidfd = os.pidfd_open(leader.pid)
    try:
        registration = Registration(
            name="web", class_=MachineClass.vm, registrant=0, leader=process_id(pidfd), leader_pidfd=pidfd,
            leader_uid=0, supervisor=None, allocate_unit=True, privileged=True,
        )  # fmt: skip
        async with running(manager, tmp_path) as core:
            with pytest.raises(ProcessGone):
                await core.services.registrar.register(registration)
    finally:
        os.close(pidfd)
    assert manager.ordered == [("stop", "machine-web.scope")]
    assert not manager.is_loaded("machine-web.scope")
    assert not any(name.startswith(".start-") for name in os.listdir(tmp_path))


OWN = {"unit": "own.service", "control_group": "/own.service", "allocated": False, "invocation_id": "1" * 32}


async def test_a_unit_that_was_restarted_is_not_stopped_in_its_predecessors_stead(tmp_path: Path) -> None:
    manager, groups = PlayedManager(), {"/own.service": (1, True)}
    async with running(manager, tmp_path, groups) as core:
        web = made.machine("web", **OWN)
        enter(core, web)
        # Its control group outlives the restart; its name is the same anyway.
        manager.set("own.service", invocation_id="2" * 32)
        with pytest.raises(NoSuchUnit):
            await core.services.control.kill(web, KillWhom.all, signal.SIGTERM)
        assert web.gone.is_set() or await core.services.control.begin_stop(web, wait=5)
        assert manager.ordered == []
        assert web.record.verdict is not None
        assert web.record.verdict.result == "forgotten"


async def test_a_unit_of_the_same_invocation_is_stopped(tmp_path: Path) -> None:
    manager, groups = PlayedManager(), {"/own.service": (1, True)}
    async with running(manager, tmp_path, groups) as core:
        web = made.machine("web", **OWN)
        enter(core, web)
        manager.set("own.service", invocation_id="1" * 32)
        await core.services.control.kill(web, KillWhom.all, signal.SIGTERM)
        assert not await core.services.control.begin_stop(web, wait=0.01)
        with trio.fail_after(10):
            while len(manager.ordered) < 2:  # noqa: ASYNC110
                await trio.sleep(0.001)
        assert manager.ordered == [("kill", "own.service"), ("stop", "own.service")]
        assert web.record.asked is Cause.stopped


async def test_that_a_machine_was_ending_when_it_was_stopped_outlives_this_service(tmp_path: Path) -> None:
    manager = PlayedManager()
    async with running(manager, tmp_path, {"/none/machine-web.scope": (1, False)}) as core:
        enter(core, web := machine("web"))
        manager.set(web.unit, invocation_id="")
        assert not await core.services.control.begin_stop(web, wait=0)
        assert (web.record.late, web.record.asked) == (True, None)
    store = Store(str(tmp_path))
    assert dict(store.load())["web"] == web.record
    store.close()


async def test_a_failed_scope_is_reset_before_its_name_is_free(tmp_path: Path) -> None:
    manager = PlayedManager()
    held: list[bool] = []
    async with running(manager, tmp_path) as core:
        enter(core, web := machine("web"))
        manager.set(web.unit, active_state="failed", result="timeout", invocation_id="")
        manager.resetting = lambda _unit: held.append(core.services.registry.get("web") is web)
        manager.tell(UnitHint("changed", web.unit, "failed", "failed"))
        with trio.fail_after(10):
            await web.gone.wait()
        assert manager.ordered == [("reset", web.unit)]
        assert held == [True]
        assert web.record.verdict is not None
        assert web.record.verdict.result == "timeout"


async def test_a_scope_whose_end_the_manager_has_told_is_not_asked_about(tmp_path: Path) -> None:
    manager = PlayedManager()
    async with running(manager, tmp_path) as core:
        web = made.machine("web", invocation_id="1" * 32)
        enter(core, web)
        manager.set(web.unit, active_state="failed", result="forgotten by now", invocation_id="1" * 32)
        manager.tell(UnitHint("changed", web.unit, "failed", "failed", "1" * 32, "timeout"))
        with trio.fail_after(10):
            await web.gone.wait()
        assert (manager.asked, manager.ordered) == ([], [("reset", web.unit)])
        assert web.record.verdict is not None
        assert web.record.verdict.result == "timeout"


async def test_the_manager_is_asked_only_for_what_the_control_group_counts(tmp_path: Path) -> None:
    manager = PlayedManager()
    ended = UnitHint("changed", "", "failed", "failed", "1" * 32, "timeout")
    async with running(manager, tmp_path) as core:
        for name, counters, final, asked, wanted in (
            ("unread", Accounting(), False, None, {*COUNTERS, *IP}),
            ("whole", Accounting(cpu_usage_nsec=1), True, None, {"CPUUsageNSec", *IP}),
            ("stopped", Accounting(cpu_usage_nsec=1), False, Cause.stopped, {"CPUUsageNSec", *IP}),
            ("long ago", Accounting(cpu_usage_nsec=1), False, None, {*COUNTERS, *IP}),
        ):
            web = made.machine(name.replace(" ", ""), invocation_id="1" * 32, asked=asked)
            enter(core, web)
            web.was_emptied(Timestamp(1, 1))
            web.was_read(counters, final=final)
            manager.read.clear()
            manager.tell(msgspec.structs.replace(ended, unit=web.unit))
            with trio.fail_after(10):
                await web.gone.wait()
            assert (name, manager.read) == (name, wanted)


@pytest.mark.parametrize("traffic", [None, 5])
async def test_the_manager_is_asked_for_traffic_alone_where_the_rest_was_read(
    tmp_path: Path, traffic: int | None
) -> None:
    manager = PlayedManager()
    async with running(manager, tmp_path) as core:
        web = made.machine("web", invocation_id="1" * 32)
        enter(core, web)
        web.was_emptied(Timestamp(1, 1))
        web.was_read(Accounting(cpu_usage_nsec=1), final=True)
        web.accounted = True
        manager.values[web.unit] = {"IPIngressBytes": traffic, "IPEgressPackets": traffic}
        manager.tell(UnitHint("changed", web.unit, "failed", "failed", "1" * 32, "timeout", by_itself=True))
        with trio.fail_after(10):
            await web.completed.wait()
        assert manager.read == ({"IPIngressBytes"} if traffic is None else IP)
        assert web.record.verdict is not None
        wanted = Accounting(cpu_usage_nsec=1, ip_ingress_bytes=traffic, ip_egress_packets=traffic)
        assert web.record.verdict.accounting == wanted


async def test_callers_get_their_turn_between_the_ends_of_machines(tmp_path: Path) -> None:
    manager = PlayedManager()
    async with running(manager, tmp_path) as core:
        registry = core.services.registry
        machines = [made.machine(f"web{number}", invocation_id="1" * 32) for number in range(MACHINES)]
        enter(core, *machines)
        for each in machines:
            manager.set(each.unit, active_state="failed", result="timeout", invocation_id="1" * 32)
            manager.tell(UnitHint("changed", each.unit, "failed", "failed", "1" * 32, "timeout"))
        seen = [MACHINES]
        with trio.fail_after(10):
            while seen[-1]:
                await trio.lowlevel.checkpoint()
                seen.append(sum(registry.get(each.name) is each for each in machines))
    # This task may come first in one turn, and last in the next.
    assert max(before - after for before, after in pairwise(seen)) <= 2


class Consulted(FakeJournal):
    """A journal that knows which units it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = trio.Event()

    def ends(self, invocations: Sequence[str], *, user: bool, wait: float) -> dict[str, UnitEnd]:
        """See `Journal`."""
        trio.from_thread.run_sync(self.asked.set)
        return super().ends(invocations, user=user, wait=wait)


@pytest.mark.parametrize(
    ("version", "by_itself", "asked", "group", "conclusive"),
    [
        (262, True, None, None, True),
        (262, False, Cause.stopped, None, True),
        # Somebody else has stopped it: the journal tells whether a job did.
        (262, False, None, None, False),
        # Not removed by the manager: it may have been left there with its processes.
        (262, True, None, (7, False), False),
        # Nobody has counted who was killed.
        (257, True, None, None, False),
    ],
)
async def test_the_journal_is_asked_only_where_it_can_add_something(
    tmp_path: Path,
    version: int,
    by_itself: bool,
    asked: Cause | None,
    group: tuple[int, bool] | None,
    conclusive: bool,
) -> None:
    manager = PlayedManager()
    manager.version = version
    consulted = Consulted()
    groups = {"/web": (7, True)}
    async with running(manager, tmp_path, groups, consulted) as core:
        web = made.machine(
            "web", control_group="/web", control_group_id=7, invocation_id="1" * 32, asked=asked
        )
        enter(core, web)
        manager.set(web.unit, active_state="inactive", result="success", invocation_id="1" * 32)
        manager.values[web.unit] = {"CPUUsageNSec": 1, "OOMKills": 0, "ManagedOOMKills": 0}
        groups.pop("/web")
        if group is not None:
            groups["/web"] = group
        hint = UnitHint("changed", web.unit, "failed", "failed", "1" * 32, "timeout", by_itself=by_itself)
        manager.tell(hint)
        with trio.fail_after(10):
            await web.gone.wait()
            await (web.completed if conclusive else consulted.asked).wait()
        assert consulted.asked.is_set() is not conclusive


@pytest.mark.parametrize(
    ("active", "asked", "cause"),
    [
        (100, None, Cause.leader_ended),
        (99, None, Cause.unit_stopped),
        (99, Cause.lease_ended, Cause.lease_ended),
        (0, None, None),  # nothing is told
    ],
)
async def test_the_times_of_a_scope_tell_how_it_ended_while_nobody_watched(
    tmp_path: Path, active: int, asked: Cause | None, cause: Cause | None
) -> None:
    manager = PlayedManager()
    async with running(manager, tmp_path) as core:
        leader = ProcessId(1, 1, "0" * 32)
        web = made.machine("web", invocation_id="1" * 32, asked=asked, leader=leader)
        web.lost_sight()
        web.leader_gone = True
        manager.set(web.unit, active_state="inactive", result="success", invocation_id="1" * 32)
        manager.values[web.unit] = {
            "ActiveExitTimestampMonotonic": active,
            "InactiveEnterTimestamp": 1000,
            "InactiveEnterTimestampMonotonic": 100,
        }
        enter(core, web)
        manager.tell(UnitHint("connected"))
        with trio.fail_after(10):
            await web.gone.wait()
        assert web.record.verdict is not None
        assert web.record.verdict.cause == cause
        assert (web.record.verdict.exited_at == Timestamp(1000, 100)) is bool(active)


@pytest.mark.parametrize(("active", "by_itself"), [(100, True), (99, False), (0, False)])
async def test_an_answer_that_overtakes_the_signal_leaves_nothing_open(
    tmp_path: Path, active: int, by_itself: bool
) -> None:
    manager, consulted = PlayedManager(), Consulted()
    manager.version = 262
    groups = {"/web": (7, True)}
    async with running(manager, tmp_path, groups, consulted) as core:
        web = made.machine("web", control_group="/web", control_group_id=7, invocation_id="1" * 32)
        enter(core, web)
        groups.clear()
        manager.set(web.unit, active_state="inactive", result="success", invocation_id="1" * 32)
        manager.values[web.unit] = {
            "CPUUsageNSec": 1,
            "OOMKills": 0,
            "ManagedOOMKills": 0,
            "ActiveExitTimestampMonotonic": active,
            "InactiveEnterTimestamp": 1000,
            "InactiveEnterTimestampMonotonic": 100,
        }
        manager.tell(UnitHint("reloaded"))
        with trio.fail_after(10):
            await web.gone.wait()
            await (web.completed if by_itself else consulted.asked).wait()
        assert web.by_itself is by_itself
        assert consulted.asked.is_set() is not by_itself


async def test_what_was_seen_of_an_end_outlives_a_service_that_ends_before_the_verdict_is_complete(
    tmp_path: Path,
) -> None:
    manager = PlayedManager()
    leader = ProcessId(1, 1, "0" * 32)
    web = made.machine("web", invocation_id="1" * 32, leader=leader)
    web.leader_gone = True
    manager.set(web.unit, active_state="inactive", result="success", invocation_id="1" * 32)
    manager.values[web.unit] = {"CPUUsageNSec": 7, "MemoryPeak": 8}
    async with running(manager, tmp_path) as core:
        enter(core, web)
        manager.tell(UnitHint("changed", web.unit, "inactive", "dead"))
        with trio.fail_after(10):
            await web.gone.wait()
        seen = web.record.verdict
        assert not web.completed.is_set()
    assert seen is not None
    counted = Accounting(cpu_usage_nsec=7, memory_peak=8)
    assert (seen.cause, seen.accounting) == (Cause.leader_ended, counted)
    async with running(PlayedManager(), tmp_path) as core:  # one that has forgotten the unit
        again = core.services.registry.verdict("web")
        assert again is not None
        assert again.record.verdict == seen
        with trio.fail_after(20):
            await again.completed.wait()
        assert again.record.end is None
    async with running(PlayedManager(), tmp_path) as core:
        again = core.services.registry.verdict("web")
        assert again is not None
        assert again.record.verdict == seen


async def test_a_machine_in_place_ends_with_its_processes_though_its_unit_does_not(
    tmp_path: Path,
) -> None:
    manager = PlayedManager()
    async with running(manager, tmp_path, {"/own.service": (1, False)}) as core:
        web = made.machine("web", **OWN)
        enter(core, web)
        manager.set("own.service", invocation_id="1" * 32)
        manager.tell(UnitHint("reloaded"))
        with trio.fail_after(10):
            await web.gone.wait()
        assert manager.ordered == []
        assert core.services.registry.verdict("web") is web


async def test_a_stopping_machine_says_so_at_once(tmp_path: Path) -> None:
    manager, groups = PlayedManager(), {"/none/machine-web.scope": (1, True)}
    async with running(manager, tmp_path, groups) as core:
        enter(core, web := machine("web"))
        manager.set(web.unit, invocation_id="")
        assert web.phase is Phase.running
        await core.services.control.begin_stop(web, wait=0)
        assert web.phase is Phase.stopping


async def test_a_signal_to_a_part_of_a_shared_group_is_sent_to_nobody(tmp_path: Path) -> None:
    """What is below it may be the others', and is not the leader either."""
    manager = PlayedManager()
    async with running(manager, tmp_path) as core:
        received: list[int] = []
        before = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
        pidfd = os.pidfd_open(os.getpid())
        try:
            ours = process_id(pidfd)
            found = made.machine("web", invocation_id="", shared=True, allocated=False, leader=ours)
            enter(core, found)
            with pytest.raises(NoSuchSubgroup):
                await core.services.control.kill(found, KillWhom.all, signal.SIGUSR1, subgroup="payload")
            assert received == []
            assert not any(order == "kill" for order, _ in manager.ordered)
            await core.services.control.kill(found, KillWhom.all, signal.SIGUSR1)
            assert received == [signal.SIGUSR1]
        finally:
            os.close(pidfd)
            signal.signal(signal.SIGUSR1, before)


async def test_launchers_are_told_of_stops_that_are_under_way_before_a_shutdown(tmp_path: Path) -> None:
    """Of no others: what survives a soft reboot has no job. And users may delay it only for so long."""
    manager = PlayedManager()
    manager.values = {f"machine-{name}.scope": {"Job": [7, "/job/7"]} for name in ("web", "hers")}
    manager.values["machine-db.scope"] = {"Job": [0, "/"]}
    async with running(manager, tmp_path) as core:
        grace = core.services.grace
        web, db, other = machine("web"), machine("db"), machine("other")
        hers = made.machine("hers", invocation_id="", registrant=1000)
        enter(core, web, db, other, hers)
        waiters = {each.name: grace.join(each, 200.0) for each in (web, db, hers)}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(grace.before_shutdown)
            await trio.testing.wait_all_tasks_blocked()
            assert waiters["web"].take(web) is not None
            assert (db.period, other.period) == (None, None)
            assert web.phase is Phase.stopping
            assert web.period is not None
            assert hers.period is not None
            assert web.period.deadline > trio.current_time() + INSIST_SECONDS
            assert hers.period.deadline <= trio.current_time() + INSIST_SECONDS
            assert ("stop", web.unit) not in manager.ordered
            for each in (web, hers):
                grace.leave(each, waiters[each.name])  # who hangs up gives no more time
