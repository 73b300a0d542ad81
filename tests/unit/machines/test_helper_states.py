"""The states of helpers, as a service manager that the test plays reports them."""

import os
import subprocess
import sys
import time

import pytest
import trio
import trio.testing
from fakes.played import PlayedManager

from moorage.kernel import process
from moorage.kernel.poller import Readiness
from moorage.kernel.processes import PidfdProcesses
from moorage.machines.helpers.status import HelperStates
from moorage.machines.model import Helper, HelperFailure, HelperStatus
from moorage.pid1 import journal
from moorage.pid1.hints import Hints
from moorage.pid1.manager import UnitHint

UNIT = "machine-web-fs.service"
FS = Helper("fs", UNIT, HelperFailure.ignore, ())
ID = "1" * 32


@pytest.fixture
def manager() -> PlayedManager:
    return PlayedManager()


@pytest.fixture
def states(manager: PlayedManager) -> HelperStates:
    processes = PidfdProcesses(Readiness())
    found = HelperStates(manager, Hints(manager), processes, journal, user=False)
    found.follow([UNIT], since_usec=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)
    return found


def tell(
    manager: PlayedManager, active_state: str, sub_state: str, result: str = "success", main_pid: int = 0
) -> None:
    """Report a change of the helper as a manager does."""
    manager.tell(UnitHint("changed", UNIT, active_state, sub_state, ID, result, main_pid))


async def test_what_is_reported_is_not_asked_for(manager: PlayedManager, states: HelperStates) -> None:
    tell(manager, "activating", "start")
    tell(manager, "active", "exited")
    await states.catch_up([UNIT])
    assert states.status(FS) == HelperStatus(FS, "active", "exited", "success", None, ID, 0)
    assert manager.asked == []


async def test_what_was_missed_is_asked_for_once(manager: PlayedManager, states: HelperStates) -> None:
    tell(manager, "active", "running")
    manager.set(UNIT, active_state="failed", sub_state="failed", result="signal")
    async with trio.open_nursery() as nursery:
        states.miss()
        await nursery.start(states.run)
        for _ in range(10):
            assert states.status(FS) == HelperStatus(FS, "failed", "failed", "signal", None, ID, 0)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert manager.asked == [UNIT]


async def test_a_report_is_not_undone_by_an_older_answer(
    manager: PlayedManager, states: HelperStates
) -> None:
    manager.set(UNIT, active_state="activating", sub_state="start")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(states.catch_up, [UNIT])
        while not manager.asked:
            await trio.lowlevel.checkpoint()
        tell(manager, "active", "running")
    assert states.status(FS).active_state == "active"


@pytest.mark.parametrize("how", ["hint", "question"])
async def test_how_it_failed_stays_known_when_it_is_unloaded(
    manager: PlayedManager, states: HelperStates, how: str
) -> None:
    tell(manager, "active", "running", main_pid=os.getpid())
    tell(manager, "failed", "failed", "signal")
    if how == "hint":
        manager.tell(UnitHint("removed", UNIT))
    else:
        states.miss()
        await states.catch_up([UNIT])
    assert states.status(FS) == HelperStatus(FS, "failed", "failed", "signal", None, ID, 0)


async def test_how_it_ended_is_left_out_where_nobody_saw_it(
    manager: PlayedManager, states: HelperStates
) -> None:
    tell(manager, "active", "running")
    states.miss()
    await states.catch_up([UNIT])
    assert states.status(FS) == HelperStatus(FS, "inactive", "dead", None, None, ID, 0)


def test_a_main_process_that_is_gone_is_an_end_not_yet_reported(
    manager: PlayedManager, states: HelperStates
) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        tell(manager, "active", "running", main_pid=child.pid)
        assert not states.unsettled(FS)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert states.unsettled(FS), "a zombie is no main process"
    finally:
        child.communicate()
    assert states.unsettled(FS)
    assert states.status(FS).main_process is None
    tell(manager, "failed", "failed", "signal")
    assert not states.unsettled(FS)


def test_a_process_that_was_named_is_recognized() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        found = process.identify(child.pid)
        assert process.is_alive(found)
        if found.pidfd_id is not None:
            assert not process.is_alive(process.ProcessId(found.pid, found.pidfd_id + 1, found.boot_id))
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not process.is_alive(found)
    finally:
        child.communicate()
    assert not process.is_alive(found)


def test_what_is_dropped_is_of_no_interest(manager: PlayedManager, states: HelperStates) -> None:
    tell(manager, "active", "running")
    states.drop([UNIT])
    assert not manager.is_wanted(UNIT)
    assert states.status(FS) == HelperStatus(FS)
