"""That tests inside see the real PID 1 is itself tested inside."""

import os
from pathlib import Path

import pytest
import trio

pytestmark = pytest.mark.system_instance("it is about PID 1")


def test_pid_1_is_systemd_and_we_are_in_a_unit_of_it() -> None:
    assert os.getuid() == 0
    assert os.readlink("/proc/1/exe") == "/usr/lib/systemd/systemd"
    assert "0::/system.slice/run-" in Path("/proc/self/cgroup").read_text()


async def test_async_tests_run_under_trio() -> None:
    started = trio.current_time()
    done = await trio.run_process(["systemctl", "is-system-running"], capture_stdout=True)
    assert done.stdout == b"running\n"
    assert trio.current_time() > started
