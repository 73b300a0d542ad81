"""What control groups do, as far as the core of moored relies on it: those of the kernel, and those in memory.

A module that takes these tests in has a fixture `bench`, of type `Bench`.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from moorage.kernel.cgroup import Events, Hierarchy, Limits

ABOVE = "/t-battery.slice"
GROUP = f"{ABOVE}/t-battery.scope"


class Bench(Protocol):
    """Where the battery runs."""

    def hierarchy(self) -> AbstractAsyncContextManager[Hierarchy]:
        """A hierarchy whose watches report; without the groups of the battery before and after."""
        ...

    def make(self, path: str) -> None:
        """Make a group, with those above it."""
        ...

    def remove(self, path: str) -> None:
        """Remove a group that has no process."""
        ...

    def spawn(self, path: str) -> int:
        """Start a process in a group, and return a number for it."""
        ...

    def kill(self, process: int, *, reap: bool = True) -> None:
        """End a process, and leave a zombie unless it is to be reaped."""
        ...

    def freeze(self, path: str, *, frozen: bool) -> None:
        """Freeze or thaw a group."""
        ...

    def note_kills(self, path: str, count: int) -> None:
        """Note on a group that systemd-oomd has killed so many more processes of it."""
        ...


class Changes:
    """What a watch has reported."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._more = trio.Event()

    def __call__(self, path: str) -> None:
        self.seen.append(path)
        self._more.set()
        self._more = trio.Event()

    async def until(self, path: str, holds: Callable[[], bool] = lambda: True) -> None:
        """Wait until a change of a group has been reported since the last wait, and something is the case."""
        while path not in self.seen or not holds():
            await self._more.wait()
        self.seen.clear()


def never() -> None:
    raise AssertionError("no event was lost")


async def test_a_group_without_processes(bench: Bench) -> None:
    async with bench.hierarchy() as hierarchy:
        assert hierarchy.events(GROUP) is None
        assert hierarchy.identity(GROUP) is None
        assert hierarchy.attribute(GROUP, "cgroup.controllers") is None
        assert set(hierarchy.usage(GROUP).__reduce__()[1]) == {None}
        bench.make(GROUP)
        assert hierarchy.events(GROUP) == Events(populated=False, frozen=False)
        assert isinstance(hierarchy.identity(GROUP), int)
        assert hierarchy.identity(GROUP) != hierarchy.identity(ABOVE)
        assert hierarchy.attribute(GROUP, "cgroup.controllers") is not None
        assert hierarchy.attribute(GROUP, "no.such") is None
        assert hierarchy.usage(GROUP).cpu_usage_nsec is not None


async def test_a_process_populates_all_that_is_above(bench: Bench) -> None:
    async with bench.hierarchy() as hierarchy:
        process = bench.spawn(GROUP)
        for path in (GROUP, ABOVE):
            assert hierarchy.events(path) == Events(populated=True, frozen=False)
        bench.kill(process)
        for path in (GROUP, ABOVE):
            assert hierarchy.events(path) == Events(populated=False, frozen=False)


async def test_a_zombie_does_not_populate(bench: Bench) -> None:
    async with bench.hierarchy() as hierarchy:
        process = bench.spawn(GROUP)
        bench.kill(process, reap=False)
        assert hierarchy.events(GROUP) == Events(populated=False, frozen=False)


async def test_a_watch_reports_each_change(bench: Bench) -> None:
    async with bench.hierarchy() as hierarchy:
        changes = Changes()
        watch = hierarchy.watch(changes, never)
        try:
            assert not watch.add(GROUP)
            bench.make(GROUP)
            assert watch.add(GROUP)
            assert watch.add(GROUP)
            assert watch.add(ABOVE)
            assert len(watch) == 2
            process = bench.spawn(GROUP)
            await changes.until(GROUP)
            bench.freeze(GROUP, frozen=True)
            await changes.until(
                GROUP, lambda: hierarchy.events(GROUP) == Events(populated=True, frozen=True)
            )
            bench.freeze(GROUP, frozen=False)
            await changes.until(GROUP)
            watch.remove(ABOVE)
            watch.remove(ABOVE)
            bench.kill(process)
            await changes.until(
                GROUP, lambda: hierarchy.events(GROUP) == Events(populated=False, frozen=False)
            )
            assert len(watch) == 1
        finally:
            watch.close()


async def test_a_group_of_the_same_name_is_another_one(bench: Bench) -> None:
    """Whether the end of a watched group is reported depends on who has looked at it since: nobody relies on it."""
    async with bench.hierarchy() as hierarchy:
        changes = Changes()
        watch = hierarchy.watch(changes, never)
        try:
            bench.make(GROUP)
            first = hierarchy.identity(GROUP)
            watch.add(GROUP)
            bench.remove(GROUP)
            assert hierarchy.identity(GROUP) is None
            watch.remove(GROUP)
            assert len(watch) == 0
            bench.make(GROUP)
            assert hierarchy.identity(GROUP) not in {None, first}
            assert watch.add(GROUP)
            process = bench.spawn(GROUP)
            await changes.until(GROUP)
            bench.kill(process)
        finally:
            watch.close()


async def test_what_is_counted_of_limits_is_of_that_group(bench: Bench) -> None:
    async with bench.hierarchy() as hierarchy:
        assert hierarchy.limits(GROUP) == Limits()
        assert hierarchy.ooms(GROUP) is None
        assert hierarchy.ooms_below(ABOVE, 8) == {}
        bench.make(GROUP)
        assert (hierarchy.limits(GROUP).oomd_kills, hierarchy.limits(GROUP).oomd_ooms) == (0, 0)
        bench.note_kills(GROUP, 3)
        assert hierarchy.limits(GROUP).oomd_kills == hierarchy.usage(GROUP).managed_oom_kills == 3
        assert hierarchy.limits(ABOVE).oomd_kills == 0
        assert hierarchy.ooms_below(ABOVE, 0) is None


async def test_a_limit_is_reported_once_until_it_is_watched_again(bench: Bench) -> None:
    async with bench.hierarchy() as hierarchy:
        changes = Changes()
        watch = hierarchy.watch_limits(changes, never)
        try:
            assert not watch.add(GROUP)
            bench.make(GROUP)
            assert watch.add(GROUP)
            assert watch.add(GROUP)
            bench.note_kills(GROUP, 1)
            await changes.until(GROUP)
            bench.note_kills(GROUP, 1)
            assert watch.add(ABOVE)
            bench.note_kills(ABOVE, 1)
            await changes.until(ABOVE, lambda: GROUP not in changes.seen)
            assert watch.add(GROUP)
            assert hierarchy.limits(GROUP).oomd_kills == 2
            bench.note_kills(GROUP, 1)
            await changes.until(GROUP)
            watch.remove(GROUP)
            watch.remove(GROUP)
            watch.remove(ABOVE)
            assert len(watch) == 0
        finally:
            watch.close()
