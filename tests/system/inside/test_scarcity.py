"""What the kernel refuses for want of descriptors, space or memory is told, harms nothing, and passes.

Each system call of a machine's life that may be refused so is, one by one, by strace(1), which puts the error in place
of the call.
"""

import errno
import os
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from moored import (
    OURS,
    RECORDS,
    TURN_SECONDS,
    UNTIL_SECONDS,
    Processes,
    assert_everything_gone,
    connect,
    control_group,
    describe,
    descriptors,
    kill,
    listed,
    main_pid,
    register,
    run,
    scopes,
    state,
    until,
)

from moorage.wire.client import Client
from moorage.wire.errors import System

pytestmark = pytest.mark.system_instance(
    "only root may trace the service; what the kernel refuses does not depend on who asks"
)

HELPER = {"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"], "sockets": [{"name": "fs.sock"}]}
OTHER = {"name": "tpm", "execStart": ["/usr/bin/sleep", "infinity"]}

STEPS_MAX = 160
"""More of one call than a life has."""

SCOPE = "/machine.slice/machine-web.scope"

# Of which calls, with which error, in a life with helpers (slower by far) or without; the first that is refused, and
# after how many more the next one is. Of those that are made most often each test has a part.
REFUSALS = [
    *(("openat", "EMFILE", False, first, 5) for first in range(1, 6)),
    # A life with helpers takes a second, and asks the same of each of them: each fourth call, in two parts.
    ("openat", "ENOMEM", True, 1, 8),
    ("openat", "ENOMEM", True, 5, 8),
    ("pidfd_open", "EMFILE", False, 1, 1),
    ("fcntl", "EMFILE", False, 1, 1),
    ("inotify_add_watch", "ENOSPC", False, 1, 1),
    ("write", "ENOSPC", False, 1, 1),
    ("rename,renameat,renameat2", "EDQUOT", False, 1, 1),
    ("unlink,unlinkat", "ENOMEM", False, 1, 1),
    ("stat,statx,newfstatat", "ENOMEM", False, 1, 2),
    ("stat,statx,newfstatat", "ENOMEM", False, 2, 2),
]


@contextmanager
def refused(calls: str, error: str, when: str) -> Generator[list[str]]:
    """Have calls of the service refused; the list has what was, in the end."""
    command = (
        "strace",
        "-f",
        "-qq",
        "-e",
        f"trace={calls}",
        "-e",
        f"inject={calls}:error={error}:when={when}",
    )
    log = RECORDS.parent / "strace"
    seen: list[str] = []
    with subprocess.Popen((*command, "-o", str(log), "-p", str(main_pid()))) as strace:
        attached = f"/proc/{main_pid()}/status"
        while f"TracerPid:\t{strace.pid}\n" not in _text(attached):
            assert strace.poll() is None
            time.sleep(TURN_SECONDS)
        try:
            yield seen
        finally:
            strace.terminate()
            strace.wait(UNTIL_SECONDS)
            seen += [line for line in _text(str(log)).splitlines() if "(INJECTED)" in line]
            log.unlink()


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


async def tried(client: Client, method: str, error: str, parameters: dict[str, Any]) -> bool:
    """Call; return whether it succeeded. If not, the reason has to be the one that there is."""
    reason = ""
    try:
        await client.call(f"{OURS}{method}", parameters)
    except System as found:
        reason = errno.errorcode.get(found.errno or 0, "none")
    assert reason in {"", error}
    return not reason


@pytest.mark.parametrize(("calls", "error", "with_helper", "first", "step"), REFUSALS)
async def test_each_refusal_in_a_life(
    spawn: Processes, calls: str, error: str, with_helper: bool, first: int, step: int
) -> None:
    helpers = [HELPER] if with_helper else []
    pid = main_pid()
    async with await connect() as client:
        await listed(client)  # the connection has been accepted
        before = descriptors()
        for number in count(first, step):
            assert number < STEPS_MAX
            leader = spawn()
            home = control_group(leader)
            with refused(calls, error, str(number)) as seen:
                asked = {"name": "web", "class": "vm", "leader": {"pid": leader.pid}, "helpers": helpers}
                registered = await tried(client, "Register", error, asked)
                if registered:
                    assert control_group(leader) == SCOPE
                    await tried(client, "Describe", error, {"name": "web"})
                    if with_helper:
                        asked = {"name": "web", "helpers": [OTHER]}
                        added = await tried(client, "AddHelpers", error, asked)
                        assert (state("machine-web-tpm.service") == "active") == added, seen
                    await tried(client, "Stop", error, {"name": "web"})
                else:
                    await until(lambda: not scopes(), "nothing is left of what was refused")
                    # Nobody has moved it and left it there.
                    assert leader.poll() is not None or control_group(leader) in {home, SCOPE}
            assert main_pid() == pid, seen
            if "web" in await listed(client):
                assert (await describe(client, "web"))["name"] == "web"
                await client.call(f"{OURS}Stop", {"name": "web"})
            kill(leader)
            await until(lambda: not scopes(), f"no scope after {seen}")
            await register(client, "web", again := spawn(), helpers=helpers)
            assert control_group(again) == SCOPE
            await client.call(f"{OURS}Stop", {"name": "web"})
            assert "web" not in await listed(client)
            await until(lambda: descriptors() <= before, f"no descriptor is left after {seen}")
            if not seen:
                assert number > first, "the call is made at all"
                break
    await assert_everything_gone()
    assert not [name for name in os.listdir(RECORDS) if name.startswith(".")]


@pytest.mark.parametrize(("calls", "error"), [("openat", "EMFILE"), ("stat,statx,newfstatat", "ENOMEM")])
async def test_the_end_of_machines_is_seen_when_it_is_over(spawn: Processes, calls: str, error: str) -> None:
    leaders = [spawn() for _ in range(3)]
    pid = main_pid()
    async with await connect() as client:
        for number, leader in enumerate(leaders):
            await register(client, f"m{number}", leader)
        with refused(calls, error, "1+") as seen:
            kill(*leaders)
            await until(lambda: not Path(f"/sys/fs/cgroup{SCOPE}").with_name("machine-m2.scope").exists())
            await tried(client, "Describe", error, {"name": "m0"})
        assert seen
        await until(lambda: _none_listed(client), "no machine is listed")
    assert main_pid() == pid
    run("systemctl", "is-active", "moored.service")


async def _none_listed(client: Client) -> bool:
    return not await listed(client)
