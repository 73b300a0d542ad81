"""Control groups of a real kernel, as the core of moored sees them."""

import os
import signal
import subprocess
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from hierarchy_battery import *  # noqa: F403
from hierarchy_battery import ABOVE, GROUP

from moorage.kernel.cgroup import ROOT, Hierarchy
from moorage.kernel.poller import Readiness
from moorage.kernel.system import Cgroupfs

pytestmark = pytest.mark.system_instance(
    "it is about the kernel, without a moored, and makes control groups of root's"
)


class RealBench:
    """See `hierarchy_battery.Bench`."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @asynccontextmanager
    async def hierarchy(self) -> AsyncGenerator[Hierarchy]:
        readiness = Readiness()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(readiness.run)
            yield Cgroupfs(readiness)
            nursery.cancel_scope.cancel()
        readiness.close()

    def clean(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        for path in (GROUP, ABOVE):
            with suppress(FileNotFoundError):
                os.rmdir(ROOT + path)

    def make(self, path: str) -> None:
        os.makedirs(ROOT + path, exist_ok=True)

    def remove(self, path: str) -> None:
        os.rmdir(ROOT + path)

    def spawn(self, path: str) -> int:
        self.make(path)
        process = subprocess.Popen(["/usr/bin/sleep", "infinity"])
        Path(ROOT + path, "cgroup.procs").write_text(str(process.pid))
        self._processes[process.pid] = process
        return process.pid

    def move_thread(self, thread: int, path: str) -> None:
        Path(ROOT + path, "cgroup.type").write_text("threaded")
        Path(ROOT + path, "cgroup.threads").write_text(str(thread))

    def note_kills(self, path: str, count: int) -> None:
        try:
            before = int(os.getxattr(ROOT + path, "user.oomd_kill"))
        except OSError:
            before = 0
        os.setxattr(ROOT + path, "user.oomd_kill", str(before + count).encode())

    def kill(self, process: int, *, reap: bool = True) -> None:
        pidfd = os.pidfd_open(process)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | (0 if reap else os.WNOWAIT))
        os.close(pidfd)

    def freeze(self, path: str, *, frozen: bool) -> None:
        Path(ROOT + path, "cgroup.freeze").write_text(str(int(frozen)))


@pytest.fixture
def bench() -> Generator[RealBench]:
    made = RealBench()
    yield made
    made.clean()


async def test_processes_are_told_by_the_domain_that_their_threads_are_below(bench: RealBench) -> None:
    """As in a scope of libvirt's, which has a threaded group for each virtual CPU."""
    pid = bench.spawn(GROUP)
    threads = f"{GROUP}/threads"
    bench.make(threads)
    try:
        bench.move_thread(pid, threads)
        async with bench.hierarchy() as hierarchy:
            assert hierarchy.processes(GROUP, 10) == [pid]
            assert hierarchy.processes(threads, 10) is None
    finally:
        bench.kill(pid)
        bench.remove(threads)
