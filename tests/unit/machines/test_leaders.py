"""Leaders, watched until they are reaped: real processes, a real epoll."""

import os
import subprocess
from collections.abc import Callable, Generator

import pytest
import trio
from made import machine

from moorage.kernel import process
from moorage.kernel.poller import Readiness
from moorage.kernel.processes import PidfdProcesses
from moorage.machines.leader import WatchedLeader
from moorage.machines.machine import Machine

SECONDS = 10


class Heard:
    """What is told of one leader."""

    def __init__(self) -> None:
        self.machine = machine()
        self.ended = 0
        self.known: list[process.Exit | None] = []

    def leader_ended(self, machine: Machine) -> None:
        assert machine is self.machine
        self.ended += 1

    def leader_reaped(self, machine: Machine, known: process.Exit | None) -> None:
        assert machine is self.machine
        self.known.append(known)

    def watch(self, pidfd: int, readiness: Readiness) -> WatchedLeader:
        return WatchedLeader(pidfd, PidfdProcesses(readiness), self.machine, self)


@pytest.fixture
def child() -> Generator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as started:
        yield started
        started.kill()


@pytest.fixture
def readiness() -> Generator[Readiness]:
    made = Readiness()
    yield made
    made.close()


async def poll_until(readiness: Readiness, told: Callable[[], object]) -> None:
    with trio.fail_after(SECONDS):
        while not told():
            readiness.poll()
            await trio.sleep(0.001)


async def test_a_leader_is_watched_until_it_is_reaped(
    child: subprocess.Popen[bytes], readiness: Readiness
) -> None:
    heard = Heard()
    pidfd = os.pidfd_open(child.pid)
    leader = heard.watch(pidfd, readiness)
    readiness.poll()
    assert (leader.ended, leader.pidfd, leader.exit, heard.ended) == (False, pidfd, None, 0)
    child.kill()
    await poll_until(readiness, lambda: heard.ended)
    # A zombie: it can be sent nothing, and does not tell yet.
    assert (leader.ended, leader.pidfd, leader.exit, heard.ended) == (True, None, None, 1)
    assert not leader.reaped.is_set()
    assert heard.known == []
    assert readiness.poll() == 0  # nor does it keep anybody awake
    child.wait()
    await poll_until(readiness, leader.reaped.is_set)
    assert leader.exit in {process.Exit(signal=9), None}
    assert heard.known == [leader.exit]
    assert heard.ended == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pidfd)
    leader.close()  # once more


async def test_a_leader_has_ended_before_that_is_reported(
    child: subprocess.Popen[bytes], readiness: Readiness
) -> None:
    """Whoever asks must not be told that it lives because nobody has read the report yet."""
    heard = Heard()
    leader = heard.watch(os.pidfd_open(child.pid), readiness)
    child.kill()
    child.wait()
    assert (leader.ended, leader.pidfd, heard.ended) == (True, None, 0)
    await poll_until(readiness, leader.reaped.is_set)
    assert (leader.ended, heard.ended) == (True, 1)


async def test_a_leader_that_is_watched_no_more_has_not_ended_for_that(
    child: subprocess.Popen[bytes], readiness: Readiness
) -> None:
    leader = Heard().watch(os.pidfd_open(child.pid), readiness)
    leader.close()
    assert (leader.ended, leader.pidfd) == (False, None)


async def test_a_leader_elsewhere_is_found(child: subprocess.Popen[bytes], readiness: Readiness) -> None:
    leader = Heard().watch(os.pidfd_open(child.pid), readiness)
    group = process.control_group(child.pid)
    assert leader.elsewhere("/nowhere.scope") == group
    assert leader.elsewhere(group.rstrip("/")) is None
    child.kill()
    child.wait()
    assert leader.elsewhere("/nowhere.scope") is None
    leader.close()
    assert leader.elsewhere("/nowhere.scope") is None
