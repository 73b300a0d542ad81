"""Leaders, watched until they are reaped: real processes, a real epoll."""

import os
import subprocess
from collections.abc import Callable, Generator

import pytest
import trio

from moorage.kernel import process
from moorage.kernel.poller import Readiness
from moorage.kernel.processes import PidfdProcesses
from moorage.machines.leader import WatchedLeader

SECONDS = 10


def ignore(_exit: process.Exit | None) -> None:
    pass


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
    ended: list[bool] = []
    known: list[process.Exit | None] = []
    pidfd = os.pidfd_open(child.pid)
    leader = WatchedLeader(pidfd, PidfdProcesses(readiness), lambda: ended.append(True), known.append)
    readiness.poll()
    assert (leader.ended, leader.pidfd, leader.exit, ended) == (False, pidfd, None, [])
    child.kill()
    await poll_until(readiness, lambda: ended)
    # A zombie: it can be sent nothing, and does not tell yet.
    assert (leader.ended, leader.pidfd, leader.exit, ended) == (True, None, None, [True])
    assert not leader.reaped.is_set()
    assert known == []
    assert readiness.poll() == 0  # nor does it keep anybody awake
    child.wait()
    await poll_until(readiness, leader.reaped.is_set)
    assert leader.exit in {process.Exit(signal=9), None}
    assert known == [leader.exit]
    assert ended == [True]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pidfd)
    leader.close()  # once more


async def test_a_leader_has_ended_before_that_is_reported(
    child: subprocess.Popen[bytes], readiness: Readiness
) -> None:
    """Whoever asks must not be told that it lives because nobody has read the report yet."""
    ended: list[bool] = []
    leader = WatchedLeader(
        os.pidfd_open(child.pid), PidfdProcesses(readiness), lambda: ended.append(True), ignore
    )
    child.kill()
    child.wait()
    assert (leader.ended, leader.pidfd, ended) == (True, None, [])
    await poll_until(readiness, leader.reaped.is_set)
    assert (leader.ended, ended) == (True, [True])


async def test_a_leader_that_is_watched_no_more_has_not_ended_for_that(
    child: subprocess.Popen[bytes], readiness: Readiness
) -> None:
    leader = WatchedLeader(os.pidfd_open(child.pid), PidfdProcesses(readiness), lambda: None, ignore)
    leader.close()
    assert (leader.ended, leader.pidfd) == (False, None)


async def test_a_leader_elsewhere_is_found(child: subprocess.Popen[bytes], readiness: Readiness) -> None:
    leader = WatchedLeader(os.pidfd_open(child.pid), PidfdProcesses(readiness), lambda: None, ignore)
    group = process.control_group(child.pid)
    assert leader.elsewhere("/nowhere.scope") == group
    assert leader.elsewhere(group.rstrip("/")) is None
    child.kill()
    child.wait()
    assert leader.elsewhere("/nowhere.scope") is None
    leader.close()
    assert leader.elsewhere("/nowhere.scope") is None
