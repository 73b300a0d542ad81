"""Limits that were reached, and who was killed for it: told once, in time, and not too often."""

import itertools
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import made
import pytest
import trio
from fakes.kernel import FakeClock, FakeHierarchy, FakeProcesses, Faults, Kernel, Process

from moorage.configuration.settings import Settings
from moorage.kernel.process import Exit
from moorage.kernel.system import System
from moorage.machines.accounting import Accounting
from moorage.machines.events import Kind, Told, counted
from moorage.machines.followers import Follower, Followers
from moorage.machines.limit_watch import BEGIN_SECONDS, GROUPS_MAX, LimitWatch
from moorage.machines.machine import Machine
from moorage.machines.model import Timestamp, Verdict
from moorage.machines.reached import LIMIT_SECONDS_MAX, Pace
from moorage.machines.registry import Registry

pytestmark = pytest.mark.usefixtures("jumping_clock")

GROUP = "/machine.slice/machine-web.scope"
SOON = 0.5
"""s: longer than a look waits, and shorter than it is waited for the next thing that is told."""


class Story(Follower):
    """Takes note of what is told, as the chronicle does."""

    def __init__(self) -> None:
        self.told: list[tuple[float, Kind, dict[str, Any]]] = []

    def happened(self, machine: Machine, kind: Kind, fact: Mapping[str, object]) -> None:
        assert machine.told is not None
        machine.told.note(kind, (), counted(kind, fact))
        known = {name: value for name, value in fact.items() if value is not None}
        self.told.append((trio.current_time(), kind, known))

    def take(self) -> list[dict[str, Any]]:
        """Return what was told since the last time."""
        facts = [fact for _, _, fact in self.told]
        self.told.clear()
        return facts


class Bench:
    """A machine whose limits are watched."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.faults = Faults()
        self.story = Story()
        self.leader = self.kernel.spawn(GROUP)
        self.hierarchy = FakeHierarchy(self.kernel, self.faults)
        self.registry = Registry(frozenset({0}), Settings().bounds)
        system = System(self.hierarchy, FakeProcesses(self.kernel, self.faults), FakeClock())
        followers = Followers()
        self.watch = LimitWatch(self.registry, followers, system)
        followers.join(self.story, self.watch)

    def add(self, told: Told | None = None) -> Machine:
        """Add the machine; told: what was told of it before."""
        number = self.kernel.groups[GROUP].number
        machine = made.machine("web", control_group=GROUP, control_group_id=number)
        machine.told = told or Told()
        self.registry.add(machine)
        self.watch.added(machine)
        return machine

    def victim(self, group: str = GROUP) -> Process:
        return self.kernel.spawn(group)


@asynccontextmanager
async def running() -> AsyncGenerator[Bench]:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.kernel.run)
        nursery.start_soon(bench.watch.run)
        yield bench
        nursery.cancel_scope.cancel()


async def test_what_happened_before_it_was_watched_is_told() -> None:
    async with running() as bench:
        bench.kernel.run_out_of_memory(GROUP, bench.victim())
        bench.add()
        await trio.sleep(SOON)
        assert bench.story.take() == [{"by": "kernel", "count": 1, "controlGroup": GROUP}]


async def test_what_was_told_is_not_told_again() -> None:
    async with running() as bench:
        for _ in range(3):
            bench.kernel.run_out_of_memory(GROUP, bench.victim())
        bench.add(Told(counts={"kernel": 2}))
        await trio.sleep(SOON)
        # Which of them was for whose limit, nobody knows any more.
        assert bench.story.take() == [{"by": "kernel", "count": 1}]


async def test_what_was_there_before_the_machine_is_not_its() -> None:
    async with running() as bench:
        bench.kernel.run_out_of_memory(GROUP, bench.victim())
        bench.kernel.reach(GROUP, "memory_max", 5)
        machine = bench.add(Told(counts=None))
        await trio.sleep(SOON)
        assert bench.story.take() == []
        bench.kernel.run_out_of_memory(GROUP, bench.victim())
        await trio.sleep(SOON)
        assert bench.story.take() == [{"by": "kernel", "count": 1, "controlGroup": GROUP}]
        assert machine.reached is not None
        assert machine.reached.group == GROUP


@pytest.mark.parametrize(
    ("limit", "home", "told"),
    [
        (GROUP, GROUP, GROUP),
        (GROUP, f"{GROUP}/payload", GROUP),
        (f"{GROUP}/payload/job", f"{GROUP}/payload/job/one", f"{GROUP}/payload/job"),
        ("/machine.slice", GROUP, "/machine.slice"),
        ("", GROUP, None),
        (f"{GROUP}/a\x1bb", f"{GROUP}/a\x1bb", None),
    ],
)
async def test_whose_limit_it_was(limit: str, home: str, told: str | None) -> None:
    async with running() as bench:
        bench.add()
        await trio.sleep(SOON)
        for _ in range(2):
            bench.kernel.run_out_of_memory(limit, bench.victim(home))
            await trio.sleep(2 * SOON + 0.1)
            group = {} if told is None else {"controlGroup": told}
            assert bench.story.take() == [{"by": "kernel", "count": 1, **group}]


async def test_a_limit_is_nobodys_where_it_is_not_known_whose() -> None:
    """Two at once; a group that is gone; more groups than are read; others' kills in the same slice."""
    async with running() as bench:
        bench.add()
        await trio.sleep(SOON)
        for limit in (GROUP, f"{GROUP}/a"):
            bench.kernel.run_out_of_memory(limit, bench.victim(f"{GROUP}/a"))
        await trio.sleep(2)
        assert bench.story.take() == [{"by": "kernel", "count": 2}]
        bench.kernel.run_out_of_memory(f"{GROUP}/b", bench.victim(f"{GROUP}/b"))
        assert bench.kernel.remove(f"{GROUP}/b")
        await trio.sleep(2)
        assert bench.story.take() == [{"by": "kernel", "count": 1}]
        for number in range(GROUPS_MAX + 1):
            bench.kernel.make(f"{GROUP}/{number}")
        bench.kernel.run_out_of_memory(f"{GROUP}/a", bench.victim(f"{GROUP}/a"))
        await trio.sleep(2)
        assert bench.story.take() == [{"by": "kernel", "count": 1}]


async def test_kills_one_after_the_other_are_told_together() -> None:
    async with running() as bench:
        bench.add()
        await trio.sleep(SOON)
        began = trio.current_time()
        for _ in range(50):
            bench.kernel.run_out_of_memory(GROUP, bench.victim())
            await trio.sleep(0.1)
        await trio.sleep(2)
        assert sum(fact["count"] for _, _, fact in bench.story.told) == 50
        times = [at for at, _, _ in bench.story.told]
        assert times[0] - began < 0.1
        assert len(times) <= 7
        assert all(after - before >= 1 for before, after in itertools.pairwise(times))


async def test_a_limit_that_is_reached_all_the_time_is_told_less_and_less_often() -> None:
    async with running() as bench:
        machine = bench.add()
        await trio.sleep(SOON)
        count = 6000
        for _ in range(count):
            bench.kernel.reach(GROUP, "memory_max")
            await trio.sleep(0.1)
        bench.kernel.end(bench.leader, Exit(status=0))
        bench.watch.read_last(machine)
        facts = bench.story.take()
        assert {fact["resource"] for fact in facts} == {"memoryMax"}
        assert sum(fact["count"] for fact in facts) == count
        assert 10 <= len(facts) <= 20


async def test_what_was_seen_is_told_though_the_group_is_gone() -> None:
    async with running() as bench:
        machine = bench.add()
        await trio.sleep(SOON)
        for _ in range(2):
            bench.kernel.reach(GROUP, "tasks_max")
            await trio.sleep(0.2)
        bench.kernel.end(bench.leader, Exit(status=0))
        assert bench.kernel.remove(GROUP)
        bench.watch.read_last(machine)
        assert [fact["count"] for fact in bench.story.take()] == [1, 1]


async def test_a_kill_is_noticed_while_a_limit_is_reached_all_the_time() -> None:
    async with running() as bench:
        bench.add()
        for _ in range(300):
            bench.kernel.reach(GROUP, "memory_max")
            await trio.sleep(0.1)
        bench.story.told.clear()
        bench.kernel.run_out_of_memory(GROUP, bench.victim())
        await trio.sleep(1.1)
        assert {"by": "kernel", "count": 1, "controlGroup": GROUP} in bench.story.take()


async def test_it_rests_while_nothing_happens() -> None:
    async with running() as bench:
        machine = bench.add()
        bench.kernel.reach(GROUP, "tasks_max")
        await trio.sleep(2 * LIMIT_SECONDS_MAX)
        assert machine.reached is not None
        assert machine.reached.due == float("inf")


async def test_systemd_oomd_notes_kills_on_the_group() -> None:
    async with running() as bench:
        machine = bench.add()
        await trio.sleep(SOON)
        bench.kernel.reach(GROUP, "oomd_ooms")
        await trio.sleep(SOON)
        assert bench.story.take() == []
        bench.kernel.reach(GROUP, "oomd_kills", 3)
        await trio.sleep(SOON)
        assert bench.story.take() == [{"by": "oomd", "count": 3}]
        bench.watch.read_last(machine)
        assert bench.story.take() == []


async def test_systemd_oomd_may_have_had_no_time_to_note_how_many() -> None:
    async with running() as bench:
        machine = bench.add()
        bench.kernel.reach(GROUP, "oomd_ooms")
        bench.kernel.end(bench.leader, Exit(signal=9))
        bench.watch.read_last(machine)
        assert bench.story.take() == [{"by": "oomd"}]
        bench.watch.conclude(machine, verdict(managed_oom_kills=4), kernel=False, oomd=True)
        assert bench.story.take() == [{"by": "oomd", "count": 4}]


def verdict(**counters: int) -> Verdict:
    return Verdict(result="oom-kill", exited_at=Timestamp(1, 1), accounting=Accounting(**counters))


async def test_what_only_others_know_is_told_at_the_end() -> None:
    async with running() as bench:
        machine = bench.add()
        bench.kernel.run_out_of_memory(GROUP, bench.leader)
        assert bench.kernel.remove(GROUP)
        bench.watch.read_last(machine)
        assert bench.story.take() == []
        bench.watch.conclude(machine, verdict(), kernel=True, oomd=False)
        assert bench.story.take() == [{"by": "kernel"}]
        machine.told = Told(counts={"kernel": 1})
        bench.watch.conclude(machine, verdict(oom_kills=3), kernel=True, oomd=False)
        bench.watch.conclude(machine, verdict(oom_kills=3), kernel=True, oomd=False)
        assert bench.story.take() == [{"by": "kernel", "count": 2}]
        machine.told = Told(counts=None)
        bench.watch.conclude(machine, verdict(oom_kills=3), kernel=True, oomd=False)
        assert bench.story.take() == []


async def test_another_group_of_the_same_name_is_not_the_machines() -> None:
    async with running() as bench:
        machine = bench.add()
        await trio.sleep(SOON)
        bench.kernel.end(bench.leader, Exit(status=0))
        assert bench.kernel.remove(GROUP)
        bench.kernel.run_out_of_memory(GROUP, bench.victim())
        bench.watch.read_last(machine)
        assert bench.story.take() == []


async def test_it_is_tried_again_where_no_watch_is_left() -> None:
    async with running() as bench:
        real = bench.faults.check

        def check(what: str) -> None:
            raise OSError(28, what)

        bench.faults.check = check
        bench.add()
        bench.kernel.run_out_of_memory(GROUP, bench.victim())
        await trio.sleep(BEGIN_SECONDS + 1)
        bench.faults.check = real
        await trio.sleep(70)
        assert bench.story.take() == [{"by": "kernel", "count": 1, "controlGroup": GROUP}]


async def test_what_has_ended_is_watched_no_more() -> None:
    async with running() as bench:
        machine = bench.add()
        await trio.sleep(SOON)
        bench.watch.ended(machine)
        assert machine.reached is None
        assert sum(len(watch) for watch in bench.kernel.watches) == 0
        bench.kernel.run_out_of_memory(GROUP, bench.victim())
        await trio.sleep(SOON)
        assert bench.story.take() == []


def test_a_pace_doubles_while_it_goes_on() -> None:
    pace = Pace(1.0, 4.0)
    passed = [at for at in range(30) if pace.passes(float(at))]
    assert passed == [0, 1, 3, 7, 11, 15, 19, 23, 27]
    assert pace.passes(100.0)
    assert pace.passes(101.0)
