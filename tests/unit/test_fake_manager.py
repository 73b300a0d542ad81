"""The service manager in memory does what PID 1 does: the battery that the real one passes."""

import random
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
import trio.testing
from fakes.kernel import FakeProcesses, Faults, Kernel
from fakes.manager import FakeManager, FakeReferences
from fakes.pid1 import Pid1
from manager_battery import *  # noqa: F403
from manager_battery import Hints

from moorage.pid1.manager import Manager
from moorage.pid1.references import References

pytestmark = pytest.mark.usefixtures("jumping_clock")


class FakeBench:
    """See `manager_battery.Bench`."""

    def __init__(self, seed: int) -> None:
        self._kernel = Kernel()
        self._pid1 = Pid1(self._kernel, random.Random(seed))
        self._processes = FakeProcesses(self._kernel, Faults())

    @asynccontextmanager
    async def connected(self, hints: Hints) -> AsyncGenerator[Manager]:
        manager = FakeManager(self._pid1, self._processes)
        manager.watch(hints, lambda unit: unit.startswith("t-"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._kernel.run)
            nursery.start_soon(self._pid1.run)
            await nursery.start(manager.run)
            yield manager
            assert manager.idle
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def references(self) -> AsyncGenerator[References]:
        references = FakeReferences(self._pid1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(references.run)
            await trio.testing.wait_all_tasks_blocked()
            yield references
            nursery.cancel_scope.cancel()

    @contextmanager
    def process(self, *, deaf: bool = False) -> Generator[int]:
        process = self._kernel.spawn("/user.slice", deaf=deaf)
        pidfd = self._processes.hand_over(process)
        yield pidfd
        self._processes.close(pidfd)
        if process.exit is None:
            self._kernel.signal(process, 9)

    def control_group(self, pidfd: int) -> str:
        return self._processes.control_group(self._processes.pid_of(pidfd))

    def kill(self, pidfd: int) -> None:
        self._processes.send_signal(pidfd, 9)

    async def freeze(self, unit: str) -> None:
        await trio.lowlevel.checkpoint()
        self._kernel.freeze(_group(unit), frozen=True)

    async def thaw(self, unit: str) -> None:
        await trio.lowlevel.checkpoint()
        self._kernel.freeze(_group(unit), frozen=False)

    def is_frozen(self, control_group: str) -> bool:
        return self._kernel.is_frozen(control_group)

    async def reload(self) -> None:
        await trio.lowlevel.checkpoint()
        self._pid1.reload(0.01)


def _group(unit: str) -> str:
    return "/machine.slice" if unit == "machine.slice" else f"/machine.slice/{unit}"


@pytest.fixture(params=range(5))
def bench(request: pytest.FixtureRequest) -> FakeBench:
    return FakeBench(request.param)
