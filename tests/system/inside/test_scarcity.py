"""What the kernel refuses for want of descriptors, space or memory is told, harms nothing, and passes.

Each system call of a machine's life that may be refused so is, one by one, by strace(1), which puts the error in place
of the call; of those that read the attributes of a control group, one after the other, only some.
"""

import errno
import os
import re
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
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

ATTRIBUTE = re.compile(r'"/sys/fs/cgroup/[^"]*/(cpu|cpuset|io|memory|pids)[.][^"/]*"')
"""A call about an attribute, by what strace prints of it."""

ATTRIBUTES_STEP = 3
"""Of how many of those one is refused: Describe and a verdict read dozens."""

SCOPE = "/machine.slice/machine-web.scope"

# Of which calls, with which error, in a life with helpers (slower by far) or without; which of them each test has, of
# those that are made most often a part.
REFUSALS = [
    *(("openat", "EMFILE", False, part, 3) for part in range(3)),
    # A life with helpers takes a second, and asks the same of each of them.
    ("openat", "ENOMEM", True, 0, 4),
    ("openat", "ENOMEM", True, 2, 4),
    ("pidfd_open", "EMFILE", False, 0, 1),
    ("fcntl", "EMFILE", False, 0, 1),
    ("inotify_add_watch", "ENOSPC", False, 0, 1),
    ("write", "ENOSPC", False, 0, 1),
    ("rename,renameat,renameat2", "EDQUOT", False, 0, 1),
    ("unlink,unlinkat", "ENOMEM", False, 0, 1),
    ("stat,statx,newfstatat", "ENOMEM", False, 0, 2),
    ("stat,statx,newfstatat", "ENOMEM", False, 1, 2),
]

NEVER = "9999"
"""The number of a call that no life has: a first one shows what calls there are."""


@contextmanager
def refused(calls: str, error: str, when: str) -> Generator[list[str]]:
    """Have calls of the service refused; the list has all of these calls in the end, as strace prints them."""
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
            seen += _text(str(log)).splitlines()
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


def injected(seen: list[str]) -> list[str]:
    """Return those calls that were refused."""
    return [line for line in seen if "(INJECTED)" in line]


def to_refuse(seen: list[str]) -> list[int]:
    """Return which calls of a life are to be refused, by their numbers."""
    numbers: list[int] = []
    attributes = 0
    for number, line in enumerate(seen, start=1):
        attributes += (is_attribute := ATTRIBUTE.search(line) is not None)
        if not is_attribute or attributes % ATTRIBUTES_STEP == 1:
            numbers.append(number)
    return numbers


@pytest.mark.parametrize(("calls", "error", "with_helper", "part", "parts"), REFUSALS)
async def test_each_refusal_in_a_life(
    spawn: Processes, calls: str, error: str, with_helper: bool, part: int, parts: int
) -> None:
    helpers = [HELPER] if with_helper else []
    pid = main_pid()
    async with await connect() as client:
        await listed(client)  # the connection has been accepted
        before = descriptors()

        async def live(number: str) -> list[str]:
            """Have a machine live, with one call refused; return all of these calls, as strace prints them."""
            leader = spawn()
            home = control_group(leader)
            with refused(calls, error, number) as seen:
                asked = {"name": "web", "class": "vm", "leader": {"pid": leader.pid}, "helpers": helpers}
                registered = await tried(client, "Register", error, asked)
                if registered:
                    assert control_group(leader) == SCOPE
                    await tried(client, "Describe", error, {"name": "web"})
                    if with_helper:
                        asked = {"name": "web", "helpers": [OTHER]}
                        added = await tried(client, "AddHelpers", error, asked)
                        assert (state("machine-web-tpm.service") == "active") == added, injected(seen)
                    await tried(client, "Stop", error, {"name": "web"})
                else:
                    await until(lambda: not scopes(), "nothing is left of what was refused")
                    # Nobody has moved it and left it there.
                    assert leader.poll() is not None or control_group(leader) in {home, SCOPE}
            assert main_pid() == pid, injected(seen)
            if "web" in await listed(client):
                assert (await describe(client, "web"))["name"] == "web"
                await client.call(f"{OURS}Stop", {"name": "web"})
            kill(leader)
            await until(lambda: not scopes(), f"no scope after {injected(seen)}")
            await register(client, "web", again := spawn(), helpers=helpers)
            assert control_group(again) == SCOPE
            await client.call(f"{OURS}Stop", {"name": "web"})
            assert "web" not in await listed(client)
            await until(lambda: descriptors() <= before, f"no descriptor is left after {injected(seen)}")
            return seen

        numbers = to_refuse(await live(NEVER))[part::parts]
        happened = 0
        for number in numbers:
            happened += bool(injected(await live(str(number))))
        assert happened, f"none of {numbers} was refused"
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
        assert injected(seen)
        await until(lambda: _none_listed(client), "no machine is listed")
    assert main_pid() == pid
    run("systemctl", "is-active", "moored.service")


async def _none_listed(client: Client) -> bool:
    return not await listed(client)
