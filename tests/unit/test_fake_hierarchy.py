"""The control groups in memory do what those of the kernel do: the battery that cgroupfs passes."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from fakes.kernel import FakeHierarchy, Faults, Kernel, Process
from hierarchy_battery import *  # noqa: F403

from moorage.kernel.cgroup import Hierarchy
from moorage.kernel.process import Exit


class FakeBench:
    """See `hierarchy_battery.Bench`."""

    def __init__(self) -> None:
        self._kernel = Kernel()
        self._processes: dict[int, Process] = {}

    @asynccontextmanager
    async def hierarchy(self) -> AsyncGenerator[Hierarchy]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._kernel.run)
            yield FakeHierarchy(self._kernel, Faults())
            nursery.cancel_scope.cancel()

    def make(self, path: str) -> None:
        self._kernel.make(path)

    def remove(self, path: str) -> None:
        assert self._kernel.remove(path)

    def spawn(self, path: str) -> int:
        launcher = self._kernel.spawn("/user.slice")
        process = self._kernel.spawn(path, parent=launcher)
        self._processes[process.pid] = process
        return process.pid

    def kill(self, process: int, *, reap: bool = True) -> None:
        found = self._processes[process]
        self._kernel.end(found, Exit(signal=9))
        if reap:
            self._kernel.reap(found)

    def note_kills(self, path: str, count: int) -> None:
        self._kernel.reach(path, "oomd_kills", count)

    def freeze(self, path: str, *, frozen: bool) -> None:
        self._kernel.freeze(path, frozen=frozen)


@pytest.fixture
def bench() -> FakeBench:
    return FakeBench()
