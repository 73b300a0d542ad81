"""Machines that end for lack of memory, and what is said of it: always; and never "no" where it is not known."""

import signal
import subprocess
import sys
from typing import Any

import pytest
import trio
from moored import (
    OURS,
    Process,
    Processes,
    connect,
    describe,
    end_moored,
    register,
    run,
    signal_moored,
    start_listening,
    until,
    verdict,
)

MIB = 1024 * 1024
SMALL: dict[str, Any] = {"MemoryMax": 16 * MIB, "MemorySwapMax": 0}
KILLED = "was killed for lack of memory"

TAKES = "input(); kept = bytearray({} << 20)"
"""Takes so many MiB as soon as it is told to."""


@pytest.fixture(autouse=True)
def _clean(nothing_left: None) -> None:
    """Every test here leaves nothing."""


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-c", script)


async def go(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    await trio.to_thread.run_sync(process.wait)


@pytest.mark.parametrize("arguments", [(), ("--subgroup", "init"), ("--property", "OOMPolicy=continue")])
def test_moorctl_run_says_so_each_time(arguments: tuple[str, ...]) -> None:
    for _ in range(4):
        done = subprocess.run(
            ["moorctl", "run", "--class", "container", "--property", "MemoryMax=16M", "--property",
             "MemorySwapMax=0", "--name", "c", *arguments, "--", *python("bytearray(64 << 20)")],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (137, f"Machine c ended: it {KILLED}.\n")
        assert KILLED in run("moorctl", "status", "c")


@pytest.mark.parametrize(
    ("class_", "properties"),
    [("container", {}), ("vm", {}), ("vm", {"OOMPolicy": "continue"}), ("container", {"OOMPolicy": "kill"})],
)
async def test_the_verdict_says_so_each_time(
    spawn: Processes, class_: str, properties: dict[str, Any]
) -> None:
    async with await connect() as client:
        for number in range(4):
            leader = spawn(python(TAKES.format(64)), stdin=subprocess.PIPE)
            await register(client, "web", leader, properties={**SMALL, **properties}, **{"class": class_})
            await go(leader)
            found = await verdict(client, "web")
            assert (found["cause"], found["oomKilled"]) == ("oomKilled", True), number
            assert found["leaderSignal"] == signal.SIGKILL
            assert found["accounting"]["oomKills"] >= 1
            assert 15 * MIB < found["accounting"]["memoryPeak"] <= 16 * MIB


async def test_what_ended_well_was_not_killed(spawn: Processes) -> None:
    """Also the counters of what is gone at once."""
    async with await connect() as client:
        for number in range(10):
            leader = spawn(python(TAKES.format(24)), stdin=subprocess.PIPE)
            await register(client, "web", leader)
            await go(leader)
            found = await verdict(client, "web")
            assert (found["cause"], found["oomKilled"], found["leaderStatus"]) == (
                "leaderEnded",
                False,
                0,
            ), number
            assert found["accounting"]["memoryPeak"] >= 24 * MIB
            assert found["accounting"]["cpuUsageNSec"] > 0


async def test_a_child_that_is_killed_is_not_the_cause(spawn: Processes) -> None:
    script = f"read go; {sys.executable} -c 'bytearray(64 << 20)'; exit 5"
    async with await connect() as client:
        leader = spawn(("sh", "-c", script), stdin=subprocess.PIPE)
        await register(client, "web", leader, properties=SMALL, **{"class": "container"})
        await go(leader)
        found = await verdict(client, "web")
        assert (found["cause"], found["oomKilled"], found["leaderStatus"]) == ("leaderEnded", True, 5)


async def test_kills_while_moored_was_dead(spawn: Processes, mortal: None) -> None:
    leaders: dict[str, Process] = {}
    async with await connect() as client:
        for name, class_ in (("vm", "vm"), ("container", "container")):
            leaders[name] = spawn(python(TAKES.format(64)), stdin=subprocess.PIPE)
            await register(client, name, leaders[name], properties=SMALL, **{"class": class_})
    await end_moored()
    for leader in leaders.values():
        await go(leader)
    start_listening()
    async with await connect() as client:
        found = await verdict(client, "vm")
        assert (found["cause"], found["oomKilled"]) == ("oomKilled", True)
        # How its leader ended nobody knows any more, so that this may have been another process of it.
        found = await verdict(client, "container")
        assert found["oomKilled"] is True
        assert "cause" not in found


async def test_many_at_once_with_a_moored_that_is_killed(spawn: Processes) -> None:
    """Some for lack of memory, some well, some because they are stopped."""
    ways = ("oom", "exit", "stop")
    names = {f"{ways[number % 3]}{number}": ways[number % 3] for number in range(45)}
    leaders: dict[str, Process] = {}
    async with await connect() as client:
        for name, way in names.items():
            script = TAKES.format(64) if way == "oom" else "input(); raise SystemExit(7)"
            leaders[name] = spawn(python(script), stdin=subprocess.PIPE)
            await register(client, name, leaders[name], properties=SMALL)
    async with trio.open_nursery() as nursery:
        for name, way in names.items():
            if way != "stop":
                nursery.start_soon(go, leaders[name])
        stopped = [f"machine-{name}.scope" for name, way in names.items() if way == "stop"]
        nursery.start_soon(trio.run_process, ["systemctl", "stop", "--no-block", *stopped])
        await trio.sleep(0.3)
        signal_moored(signal.SIGKILL)
    expected = {"oom": ("oomKilled", True), "exit": ("leaderEnded", False), "stop": ("unitStopped", False)}
    for name, way in names.items():

        async def ended(name: str = name) -> dict[str, Any] | None:
            async with await connect() as client:
                return (await describe(client, name)).get("verdict")

        found = await until(ended, f"the verdict of {name}", seconds=60)
        assert found is not None
        assert (found.get("cause"), found.get("oomKilled", expected[way][1])) == expected[way], name
        if way == "oom":
            assert found["oomKilled"] is True
    async with await connect() as client:
        for name in names:
            await client.call(f"{OURS}Forget", {"name": name})
