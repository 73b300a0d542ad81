"""A system call that fails while the service starts, with machines there, costs none of them, and needs nobody's help.

Each call from the first look at the records on fails once, one start after the other: strace(1) puts the error in its
place.
"""

import re
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from moored import (
    OURS,
    Processes,
    connect,
    control_group,
    describe,
    listed,
    living_records,
    main_pid,
    move,
    nothing_listed,
    register,
    run,
    scopes,
    start_listening,
    state,
    until,
)

from moorage.wire.errors import VarlinkError

pytestmark = pytest.mark.system_instance(
    "only root may trace the service; what the kernel refuses does not depend on who asks"
)

DROP_IN = Path("/run/systemd/system/moored.service.d/refusals.conf")
PLAN = Path("/run/moorage/plan")
LOG = Path("/run/moorage/strace")

# The plan is for one start: where that fails, the manager brings about another, in which nothing is refused.
UNIT = f"""
[Service]
RestartSteps=0
SystemCallFilter=
ExecStart=
ExecStart=/bin/sh -c 'read plan <{PLAN} || exec moored; rm {PLAN}; exec strace -D -f -qq -o {LOG} $$plan moored'
"""

HELPER = {"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"], "sockets": [{"name": "fs.sock"}]}
OUTER = "test-outer.service"

REFUSALS = [
    ("openat", "EMFILE", 4),
    ("pidfd_open", "EMFILE", 1),
    ("inotify_add_watch", "ENOSPC", 1),
    ("newfstatat", "ENOMEM", 2),
    ("socket", "EMFILE", 1),
    ("sendmsg", "ENOMEM", 1),
    ("getdents64", "ENOMEM", 2),
    ("write", "ENOSPC", 1),
    ("renameat", "EDQUOT", 1),
    ("unlinkat", "EDQUOT", 1),
]
"""Calls, what is in short supply, and how many tests share the starts."""

PARTS = [(call, error, part, parts) for call, error, parts in REFUSALS for part in range(parts)]


@pytest.fixture
def processes() -> Generator[Processes]:
    """Start processes; they end with the test. What a start that failed has logged is no concern here."""
    start_listening()
    started = Processes()
    yield started
    started.bury()


@pytest.fixture
def traced(processes: Processes) -> Generator[None]:
    """A service that starts under strace where there is a plan."""
    run("systemd-run", "--quiet", f"--unit={OUTER}", "--property=Delegate=yes", "sleep", "infinity")
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text(UNIT)
    run("systemctl", "daemon-reload")
    yield
    DROP_IN.unlink()
    LOG.unlink(missing_ok=True)
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "moored.service")
    run("systemctl", "stop", OUTER)


def kill_for(plan: str) -> int:
    """Kill the service, with a plan for its next start; return the PID that it had."""
    LOG.unlink(missing_ok=True)
    PLAN.write_text(f"{plan}\n")
    pid = main_pid()
    run("systemctl", "kill", "--signal=KILL", "moored.service")
    return pid


def calls_of_start() -> list[str]:
    """What strace saw of the thread that the service began with."""
    lines = LOG.read_text(errors="replace").splitlines()
    first = lines[0].split()[0]
    return [line for line in lines if re.match(rf"{first} +\w+\(", line)]


async def start(plan: str, before: dict[str, Any]) -> None:
    """Have the service start again, and wait until it knows all machines."""
    pid = kill_for(plan)
    found: dict[str, Any] = {}

    async def is_back() -> bool:
        if main_pid() in {0, pid} or state("moored.service") != "active":
            return False
        try:
            async with await connect() as client:
                found.update(await listed(client))
                return found == before
        except (OSError, VarlinkError):
            return False

    try:
        await until(is_back)
    except AssertionError:
        raise AssertionError(f"after {plan}: {found} instead of {before}") from None


@pytest.mark.parametrize(("call", "error", "part", "parts"), PARTS)
async def test_each_call_of_a_start_fails_once(
    processes: Processes, traced: None, call: str, error: str, part: int, parts: int
) -> None:
    leaders = [processes() for _ in range(3)]
    async with await connect() as client:
        await register(client, "web", leaders[0], helpers=[HELPER], properties={"TasksMax": 77})
        await register(client, "box", leaders[1], **{"class": "container"})
        move(leaders[2], f"/system.slice/{OUTER}/inner")
        await register(client, "here", leaders[2], allocateUnit=False)
        before = await listed(client)
    groups = [control_group(leader) for leader in leaders]

    # A start without refusals shows which calls come after those of the interpreter.
    await start(f"-e trace=openat,{call}", before)
    names = Counter[str]()
    first = None
    for line in calls_of_start():
        names[line.split("(")[0].split()[-1]] += 1
        if first is None and "/run/moorage/machines" in line:
            first = names[call]
    assert first is not None
    for number in range(max(first, 1) + part, names[call] + 1, parts):
        await start(f"-e trace={call} -e inject={call}:error={error}:when={number}", before)
        assert [control_group(leader) for leader in leaders] == groups
        assert sorted(living_records()) == sorted(before)
    async with await connect() as client:
        for name in before:
            assert (await describe(client, name))["phase"] == "running"
        leaders[2].kill()
        for name in ("web", "box"):
            await client.call(f"{OURS}Stop", {"name": name})
        await until(lambda: not scopes(), "the machines end as ever")
        await until(lambda: nothing_listed(client), "and are gone")
