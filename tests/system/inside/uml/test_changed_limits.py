"""Limits that are changed while a machine runs: the kernel has them when the call is answered, and they bite."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from moored import OURS, Process, Processes, connect, register, run, show, until, verdict

from moorage.wire.client import Client

MIB = 1024 * 1024
PAGE = 4096
SCOPE, SERVICE = "machine-web.scope", "machine-web-fs.service"
TURNS = 50

GREEDY = (
    sys.executable,
    "-c",
    "input(); kept = bytearray(64 << 20); input(); more = bytearray(1 << 20); input()",
)
"""Takes 64 MiB as soon as it is told to, and then one more. `bytearray` writes to every page of it."""

FORKING = """
import os, sys
for line in sys.stdin:
    try:
        pid = os.fork()
    except OSError as error:
        print(error.errno, flush=True)
        continue
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    print("forked", flush=True)
"""


@pytest.fixture(autouse=True)
def _clean(everything_gone: None) -> None:
    """Every test here leaves nothing."""


def kernel(group: str, attribute: str) -> str:
    """What the kernel has in an attribute of a control group."""
    return Path(f"/sys/fs/cgroup{group}/{attribute}").read_text().strip()


def go(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def line(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def is_waiting(process: Process) -> bool:
    """Whether a process waits to be told to go on, so that it takes no memory."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def throttled(group: str) -> int:
    """For how long a quota kept a group from running, µs."""
    return next(
        int(each.split()[1]) for each in kernel(group, "cpu.stat").splitlines() if "throttled_usec" in each
    )


async def differences(client: Client, properties: dict[str, Any], **parameters: Any) -> list[dict[str, str]]:
    asked = {"name": "web", "properties": properties, **parameters}
    return (await client.call(f"{OURS}SetProperties", asked))["differences"]


async def change(
    client: Client, properties: dict[str, Any], **parameters: Any
) -> dict[str, tuple[str, str | None]]:
    """Change properties of the machine; return wanted and effective value of each difference."""
    found = await differences(client, properties, **parameters)
    return {each["property"]: (each["wanted"], each.get("effective")) for each in found}


async def test_in_force_when_it_is_answered(spawn: Processes) -> None:
    """Also what needs a controller that the group did not have before."""
    async with await connect() as client:
        group = (await register(client, "web", spawn()))["machine"]["controlGroup"]
        for turn in range(1, TURNS):
            wanted = {
                "MemoryMax": turn * MIB * 16, "MemoryHigh": turn * MIB * 8, "TasksMax": 100 + turn,
                "CPUWeight": 100 + turn, "CPUQuotaPerSecUSec": 10_000 * turn,
            }  # fmt: skip
            assert await change(client, wanted) == {}
            assert kernel(group, "memory.max") == str(turn * MIB * 16)
            assert kernel(group, "memory.high") == str(turn * MIB * 8)
            assert kernel(group, "pids.max") == str(100 + turn)
            assert kernel(group, "cpu.weight") == str(100 + turn)
            assert kernel(group, "cpu.max") == f"{1000 * turn} 100000"
        run("systemctl", "daemon-reload")
        assert kernel(group, "cpu.max") == f"{1000 * (TURNS - 1)} 100000"
        unlimited = {"MemoryMax": "infinity", "TasksMax": "infinity", "CPUQuotaPerSecUSec": "infinity"}
        assert await change(client, unlimited) == {}
        assert [kernel(group, name) for name in ("memory.max", "pids.max", "cpu.max")] == [
            "max",
            "max",
            "max 100000",
        ]
        run("systemctl", "set-property", "--runtime", SCOPE, "MemoryMax=99M")
        assert kernel(group, "memory.max") == str(99 * MIB)


async def test_differences_of_a_change(spawn: Processes) -> None:
    run("systemctl", "set-property", "--runtime", "low.slice", "MemoryMax=32M", "TasksMax=20")
    async with await connect() as client:
        machine = (await register(client, "web", spawn(), slice="low.slice"))["machine"]
        for dry_run in (True, False):
            assert await change(client, {"MemoryMax": 16 * MIB + 1}, dryRun=dry_run) == {
                "MemoryMax": (str(16 * MIB + 1), str(16 * MIB))
            }
            assert await change(client, {"MemoryMax": 64 * MIB, "TasksMax": 10}, dryRun=dry_run) == {
                "MemoryMax": (str(64 * MIB), str(32 * MIB))
            }
            clamped = {"CPUQuotaPeriodUSec": 100, "CPUQuotaPerSecUSec": 2_000_000}
            assert await change(client, clamped, dryRun=dry_run) == {"CPUQuotaPeriodUSec": ("100", "1000")}
            assert await change(client, {"DeviceAllow": [["/dev/nothing", "rw"]]}, dryRun=dry_run) == {
                "DeviceAllow": ("/dev/nothing rw", None)
            }
        assert kernel(machine["controlGroup"], "cpu.max") == "2000 1000"
        # The period alone, of the quota that there is.
        assert await change(client, {"CPUQuotaPeriodUSec": 5_000_000}) == {
            "CPUQuotaPeriodUSec": ("5000000", "1000000")
        }


async def test_memory_that_is_taken_away_has_it_killed(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn(GREEDY, stdin=subprocess.PIPE)
        await register(client, "web", leader, properties={"MemorySwapMax": 0, "MemoryMax": 256 * MIB})
        await change(client, {"MemoryMax": 16 * MIB})
        go(leader)
        found = await verdict(client, "web")
        assert (found["result"], found["cause"], found["oomKilled"]) == ("oom-kill", "oomKilled", True)
        assert leader.wait() == -signal.SIGKILL


async def test_a_limit_below_what_is_in_use(spawn: Processes) -> None:
    """The manager does not wait for the kernel to reclaim, which kills as soon as more is taken, at the latest."""
    async with await connect() as client:
        leader = spawn(GREEDY, stdin=subprocess.PIPE)
        machine = (await register(client, "web", leader, properties={"MemorySwapMax": 0}))["machine"]
        go(leader)
        await until(
            lambda: int(kernel(machine["controlGroup"], "memory.current")) > 64 * MIB and is_waiting(leader),
            "it has all the memory that it takes",
        )
        for dry_run in (True, False):
            found = await differences(client, {"MemoryMax": 16 * MIB}, dryRun=dry_run)
            assert [(each["wanted"], each["effective"]) for each in found] == [(str(16 * MIB),) * 2]
            assert "in use" in found[0]["reason"]
        assert kernel(machine["controlGroup"], "memory.max") == str(16 * MIB)
        with contextlib.suppress(BrokenPipeError):
            go(leader)
        found = await verdict(client, "web")
        assert found["oomKilled"]
        assert leader.wait() == -signal.SIGKILL


async def test_tasks_that_may_not_be_started_any_more(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn((sys.executable, "-c", FORKING), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        await register(client, "web", leader)
        for limit, said in ((10, "forked"), (1, "11"), (2, "forked"), ("infinity", "forked")):
            assert await change(client, {"TasksMax": limit}) == {}
            go(leader)
            assert line(leader) == said
        assert show(SCOPE, "TasksMax")["TasksMax"] == "infinity"


async def test_fewer_tasks_than_there_are(spawn: Processes) -> None:
    """All of them go on."""
    async with await connect() as client:
        leader = spawn(("sh", "-c", "read go; sleep 1000 & sleep 1000 & wait"), stdin=subprocess.PIPE)
        group = (await register(client, "web", leader))["machine"]["controlGroup"]
        go(leader)
        await until(lambda: kernel(group, "pids.current") == "3")
        for dry_run in (True, False):
            (found,) = await differences(client, {"TasksMax": 2}, dryRun=dry_run)
            assert found["reason"].startswith("there are 3 tasks: none of them is ended")
        assert (kernel(group, "pids.current"), kernel(group, "pids.max")) == ("3", "2")
        words = run("sh", "-c", "exec moorctl set-property web TasksMax=1 2>&1")
        assert "Warning: TasksMax=1 is in force: there are 3 tasks" in words
        await client.call(f"{OURS}Stop", {"name": "web"})


async def test_a_quota_that_throttles(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn(("sh", "-c", "while :; do :; done"))
        group = (await register(client, "web", leader))["machine"]["controlGroup"]
        await change(client, {"CPUQuotaPerSecUSec": 50_000})
        before = throttled(group)
        await until(lambda: throttled(group) > before + 100_000)
        await change(client, {"CPUQuotaPerSecUSec": "infinity"})
        assert show(SCOPE, "CPUQuotaPerSecUSec")["CPUQuotaPerSecUSec"] == "infinity"
        assert "cpu.max" not in os.listdir(f"/sys/fs/cgroup{group}")  # nobody needs the controller any more


async def test_limits_of_a_frozen_machine(spawn: Processes) -> None:
    """They are in force while it stands still, and when it goes on."""
    async with await connect() as client:
        group = (await register(client, "web", spawn(("sh", "-c", "while :; do :; done"))))["machine"][
            "controlGroup"
        ]

        def used() -> str:
            return kernel(group, "cpu.stat").splitlines()[0]

        await client.call(f"{OURS}Freeze", {"name": "web"})
        assert "frozen 1" in kernel(group, "cgroup.events")
        before = used()
        assert (
            await change(client, {"CPUQuotaPerSecUSec": 50_000, "MemoryMax": 64 * MIB, "TasksMax": 9}) == {}
        )
        assert [kernel(group, name) for name in ("cpu.max", "memory.max", "pids.max")] == [
            "5000 100000", str(64 * MIB), "9",
        ]  # fmt: skip
        run("systemctl", "daemon-reload")
        assert (kernel(group, "memory.max"), used()) == (str(64 * MIB), before)
        await client.call(f"{OURS}Thaw", {"name": "web"})
        await until(lambda: throttled(group) > 0)


async def test_a_helper_has_limits_of_its_own(spawn: Processes) -> None:
    helper = {"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"]}
    async with await connect() as client:
        group = (await register(client, "web", spawn(), helpers=[helper]))["machine"]["controlGroup"]
        own = group.rpartition("/")[0] + f"/{SERVICE}"
        before = kernel(group, "memory.max")
        assert await change(client, {"MemoryMax": 64 * MIB, "TasksMax": 9}, helper="fs") == {}
        assert (kernel(own, "memory.max"), kernel(own, "pids.max")) == (str(64 * MIB), "9")
        assert kernel(group, "memory.max") == before
