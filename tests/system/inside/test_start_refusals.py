"""A system call that fails while the service starts, with machines there, costs none of them, and needs nobody's help.

Each call from the first look at the records on fails once, one start after the other: strace(1) puts the error in its
place, and its log has to say that it did. Not each start makes as many calls as the one that they are counted in. Of
the calls by which the interpreter imports modules, which are most of them, and all alike, only some fail.
"""

import os
import re
import signal
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
from moored import (
    OURS,
    Process,
    Processes,
    connect,
    control_group,
    describe,
    kill,
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
STRACE = f"strace -D -f --seccomp-bpf -qq -o {LOG}"
UNIT = f"""
[Service]
RestartSec=10ms
RestartSteps=0
SystemCallFilter=
ExecStart=
ExecStart=/bin/sh -c 'read plan <{PLAN} || exec moored; rm {PLAN}; exec {STRACE} $$plan moored'
"""

HELPER = {"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"], "sockets": [{"name": "fs.sock"}]}
OUTER = "test-outer.service"

REFUSALS = [
    ("openat", "EMFILE", 2),
    ("pidfd_open", "EMFILE", 1),
    ("inotify_add_watch", "ENOSPC", 1),
    ("newfstatat", "ENOMEM", 2),
    ("socket", "EMFILE", 1),
    ("sendmsg", "ENOMEM", 1),
    ("getdents64", "ENOMEM", 2),
    ("write", "ENOSPC", 1),
    ("rename,renameat,renameat2", "EDQUOT", 1),
    ("unlink,unlinkat", "EDQUOT", 1),
]
"""Calls, what is in short supply, and how many tests share the starts."""

WRITING = ("write", "rename", "unlink")
"""What a start needs only for a verdict: that of a machine that has ended meanwhile."""

IMPORTING = re.compile(r'"/usr/lib/python[^"]*/(dist-packages|encodings)[/"]')
"""The interpreter's calls, by what strace prints of them."""

IMPORTING_STEP = 6
"""Of how many of those one is refused: a module takes up to six, one of which lists a directory."""

PARTS = [(calls, error, part, parts) for calls, error, parts in REFUSALS for part in range(parts)]


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


def to_refuse(calls: Sequence[str]) -> list[int]:
    """Which calls of a start are to be refused: numbers, each among those of its name that the thread makes.

    Args:
        calls: names of those that may be; several where the same can be done by any of them.
    """
    counts = Counter[str]()
    numbers: list[int] = []
    begun, importing = False, 0
    for line in calls_of_start():
        name = line.split("(")[0].split()[-1]
        counts[name] += 1
        begun = begun or "/run/moorage/machines" in line
        if name not in calls or not begun:
            continue
        if IMPORTING.search(line):
            importing += 1
            if importing % IMPORTING_STEP:
                continue
        numbers.append(counts[name])
    return sorted(set(numbers))


def refused() -> list[str]:
    """What was refused to the thread that the service began with, as strace saw it."""
    lines = LOG.read_text(errors="replace").splitlines()
    first = lines[0].split()[0]
    return [line for line in lines if line.startswith(f"{first} ") and line.endswith("(INJECTED)")]


async def die_unseen(leader: Process) -> None:
    """Have a machine whose end the service does not see before its next start."""
    async with await connect() as client:
        await register(client, "gone", leader)
    os.kill(main_pid(), signal.SIGSTOP)
    kill(leader)


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


@pytest.mark.parametrize(("calls", "error", "part", "parts"), PARTS)
async def test_each_call_of_a_start_fails_once(
    processes: Processes, traced: None, calls: str, error: str, part: int, parts: int
) -> None:
    leaders = [processes() for _ in range(3)]
    async with await connect() as client:
        await register(client, "web", leaders[0], helpers=[HELPER], properties={"TasksMax": 77})
        await register(client, "box", leaders[1], **{"class": "container"})
        move(leaders[2], f"/system.slice/{OUTER}/inner")
        await register(client, "here", leaders[2], allocateUnit=False)
        before = await listed(client)
    groups = [control_group(leader) for leader in leaders]

    async def start_with(plan: str) -> None:
        if calls.startswith(WRITING):
            await die_unseen(processes())
        await start(plan, before)

    # A start without refusals shows which calls there are.
    await start_with(f"-e trace=openat,{calls}")
    numbers = to_refuse(calls.split(","))[part::parts]
    assert numbers, "the call is made at all"
    happened = 0
    for number in numbers:
        await start_with(f"-e trace={calls} -e inject={calls}:error={error}:when={number}")
        happened += bool(refused())
        assert [control_group(leader) for leader in leaders] == groups
        await until(lambda: sorted(living_records()) == sorted(before), "nothing else is recorded as there")
    assert happened, f"none of {numbers} was refused"
    if not refused():
        # That start made fewer calls than the one before: what comes now is none of its, and would be refused.
        await start_with("-e trace=exit")
    async with await connect() as client:
        for name in before:
            assert (await describe(client, name))["phase"] == "running"
        leaders[2].kill()
        for name in ("web", "box"):
            await client.call(f"{OURS}Stop", {"name": name})
        await until(lambda: not scopes(), "the machines end as ever")
        await until(lambda: nothing_listed(client), "and are gone")
