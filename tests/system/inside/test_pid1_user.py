"""The manager of a user, asked by that user, over both links."""

import sys
from pathlib import Path

import pytest
import trio

from moorage.pid1 import manager as pid1_manager

pytestmark = pytest.mark.system_instance("it becomes that user by itself")

SERVICE = Path(pid1_manager.__file__).parents[2]

AS_A_USER = """
import os, subprocess, sys, trio
from moorage.pid1.manager import ScopeSpec
from moorage.pid1.over_dbus.calls import DBusManager
from moorage.pid1.over_dbus.session import Endpoints

async def main():
    manager = DBusManager(Endpoints.of("user"), sys.argv[1])
    async with trio.open_nursery() as nursery:
        await nursery.start(manager.run)
        deadline = trio.current_time() + 30
        child = subprocess.Popen(["/usr/bin/sleep", "infinity"])
        pidfd = os.pidfd_open(child.pid)
        spec = ScopeSpec("t-user.scope", (pidfd,), None, "Mine")
        job = await manager.start_scope(spec, deadline=deadline)
        status = await manager.status("t-user.scope", deadline=deadline)
        unit, _ = await manager.unit_of_process(pidfd, deadline=deadline)
        print(job.result, status.active_state, unit)
        job = await manager.stop("t-user.scope", deadline=deadline)
        print(job.result, child.wait())
        os.close(pidfd)
        nursery.cancel_scope.cancel()

trio.run(main)
"""


@pytest.mark.parametrize("kind", ["private", "bus"])
async def test_the_manager_of_a_user(kind: str) -> None:
    await trio.run_process(["loginctl", "enable-linger", "alice"])
    await trio.run_process(["systemctl", "start", "user@1000.service"])
    done = await trio.run_process(
        [
            "setpriv", "--reuid=1000", "--regid=1000", "--init-groups",
            "env", "XDG_RUNTIME_DIR=/run/user/1000", f"PYTHONPATH={SERVICE}",
            sys.executable, "-W", "error", "-c", AS_A_USER, kind,
        ],
        capture_stdout=True,
    )  # fmt: skip
    assert done.stdout.split() == [b"done", b"active", b"t-user.scope", b"done", b"-15"]
