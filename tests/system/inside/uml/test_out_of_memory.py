"""Machines that end for lack of memory, and what is said of it: always; and never "no" where it is not known."""

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
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
from subscriber import Reader, kinds, subscribed

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


# Events. The witnesses are the kernel's log, and the counts in cgroupfs

HIERARCHY = "/sys/fs/cgroup"

TAKER = "import sys\nfor line in sys.stdin:\n if not __import__('os').fork(): bytearray(64 << 20)\n"
"""Has a child take too much for each line that it reads."""


def oom_kills(machine: dict[str, Any], attribute: str = "memory.events") -> int:
    text = Path(f"{HIERARCHY}{machine['controlGroup']}/{attribute}").read_text()
    return int(dict(line.split() for line in text.splitlines())["oom_kill"])


def limits_in_the_log(victims_in: str) -> set[str]:
    """Return for whose limits the kernel says that it killed processes of a group, or of one below.

    It says so at most ten times in five seconds.
    """
    found = re.findall(r"oom_memcg=(/[^,]*),task_memcg=(/[^,]*)", run("dmesg"))
    return {limit for limit, group in found if f"{group}/".startswith(f"{victims_in}/")}


async def say(process: Process, line: str = "go") -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n".encode())
    process.stdin.flush()


def told_kills(reader: Reader, by: str = "kernel") -> int:
    return sum(
        event["data"]["count"]
        for event in reader.told
        if event["event"] == "oomKill" and event["data"]["by"] == by
    )


async def stop(client: Any, reader: Reader, name: str = "web") -> dict[str, Any]:
    """Stop a machine, and return its verdict, as it is told."""
    await client.call(f"{OURS}Stop", {"name": name})
    return (await reader.until("exited", name=name))["data"]


@pytest.mark.parametrize("policy", [None, "continue", "kill"])
async def test_a_kill_is_told_before_the_end_that_it_leads_to(spawn: Processes, policy: str | None) -> None:
    """Also where PID 1 removes the group at once: then nobody may know whose limit it was."""
    properties = SMALL if policy is None else {**SMALL, "OOMPolicy": policy}
    async with await connect() as client, subscribed() as reader:
        await reader.snapshot()
        for _ in range(4):
            leader = spawn(python(TAKES.format(64)), stdin=subprocess.PIPE)
            machine = (await register(client, "web", leader, properties=properties))["machine"]
            reader.told.clear()
            await go(leader)
            exited = (await reader.until("exited"))["data"]
            order = [kind for kind in kinds(reader.told) if kind in {"oomKill", "empty", "exited"}]
            assert sorted(order) == ["empty", "exited", "oomKill"], order
            (kill,) = (event["data"] for event in reader.told if event["event"] == "oomKill")
            assert kill["by"] == "kernel"
            known = {kill.get("count"), exited["accounting"].get("oomKills")} - {None}
            assert len(known) < 2, (kill, exited)
            assert min(known, default=1) >= 1
            assert kill.get("controlGroup", machine["controlGroup"]) == machine["controlGroup"]
            assert exited.get("oomControlGroup") == kill.get("controlGroup")
            assert limits_in_the_log(machine["controlGroup"]) <= {machine["controlGroup"]}


async def test_each_kill_is_counted_once_and_so_by_whoever_comes_next(
    spawn: Processes, mortal: None
) -> None:
    """Of a machine that lives on: told while moored is there, and after it was not."""
    async with await connect() as client, subscribed() as reader:
        await reader.snapshot()
        taker = spawn(python(TAKER), stdin=subprocess.PIPE)
        fields: dict[str, Any] = {"properties": SMALL, "class": "container"}
        machine = (await register(client, "web", taker, **fields))["machine"]
        for number in range(1, 4):
            await say(taker)
            await until(lambda number=number: oom_kills(machine) == number)
            while told_kills(reader) < number:
                kill = await reader.until("oomKill")
                assert kill["data"]["controlGroup"] == machine["controlGroup"]
        assert limits_in_the_log(machine["controlGroup"]) <= {machine["controlGroup"]}
        cursor = reader.told[-1]["cursor"]
    await end_moored()
    await say(taker)
    await until(lambda: oom_kills(machine) == 4)
    start_listening()
    async with await connect() as client, subscribed(cursor=cursor) as reader:
        assert (await reader.until("oomKill"))["data"]["count"] == 1
        exited = await stop(client, reader)
        assert told_kills(reader) == 1
        assert (exited["accounting"]["oomKills"], exited["oomKilled"], exited["cause"]) == (
            4,
            True,
            "stopped",
        )


async def test_the_limit_may_be_of_a_group_below_or_of_a_slice_above(spawn: Processes) -> None:
    async with await connect() as client, subscribed() as reader:
        await reader.snapshot()
        taker = spawn(python(TAKER), stdin=subprocess.PIPE)
        fields: dict[str, Any] = {"class": "container", "properties": {"MemoryMax": 256 * MIB}}
        machine = (await register(client, "web", taker, slice="narrow.slice", **fields))["machine"]
        group = Path(f"{HIERARCHY}{machine['controlGroup']}")
        # As a container's own service manager does (CGROUP_DELEGATION of systemd): the processes into leaves, first.
        for name in ("init", "job"):
            (group / name).mkdir()
        (group / "init/cgroup.procs").write_text(str(taker.pid))
        (group / "cgroup.subtree_control").write_text("+memory")
        (group / "job/memory.max").write_text(str(16 * MIB))
        (group / "job/memory.swap.max").write_text("0")
        (group / "job/cgroup.procs").write_text(str(taker.pid))
        await say(taker)
        below = (await reader.until("oomKill"))["data"]
        assert below == {"by": "kernel", "count": 1, "controlGroup": f"{machine['controlGroup']}/job"}
        (group / "init/cgroup.procs").write_text(str(taker.pid))
        run(
            "systemctl",
            "set-property",
            "--runtime",
            "narrow.slice",
            f"MemoryMax={32 * MIB}",
            "MemorySwapMax=0",
        )
        await say(taker)
        above = (await reader.until("oomKill"))["data"]
        assert above == {"by": "kernel", "count": 1, "controlGroup": "/narrow.slice"}
        assert limits_in_the_log(machine["controlGroup"]) <= {below["controlGroup"], "/narrow.slice"}
        exited = await stop(client, reader)
        assert exited["oomControlGroup"] == "/narrow.slice"
    run("systemctl", "revert", "narrow.slice")


REACHER = """
import os, sys, time
for line in sys.stdin:
    if line == "tasks\\n":
        for _ in range(8):
            try:
                if not os.fork():
                    time.sleep(0.3)
                    os._exit(0)
            except OSError:
                pass
    else:
        bytearray(24 << 20)
"""
"""Has more children than it may, or takes more memory than it should, for each line that it reads."""


async def test_a_limit_that_is_reached_all_the_time_is_told_seldom_and_counted_right(
    spawn: Processes,
) -> None:
    async with await connect() as client, subscribed(events=["limitReached", "empty", "exited"]) as reader:
        await reader.snapshot()
        leader = spawn(python(REACHER), stdin=subprocess.PIPE)
        properties = {"TasksMax": 4, "MemoryHigh": 16 * MIB, "MemorySwapMax": 0}
        machine = (await register(client, "web", leader, properties=properties))["machine"]

        def counted(resource: str) -> int:
            file, key = {
                "memoryHigh": ("memory.events.local", "high"),
                "tasksMax": ("pids.events.local", "max"),
            }[resource]
            text = Path(f"{HIERARCHY}{machine['controlGroup']}/{file}").read_text()
            return int(dict(line.split() for line in text.splitlines())[key])

        def told(resource: str) -> list[dict[str, Any]]:
            return [event for event in reader.told if event.get("data", {}).get("resource") == resource]

        for resource, line in (("tasksMax", "tasks"), ("memoryHigh", "memory")):
            await say(leader, line)
            await reader.until("limitReached")
            for _ in range(5):
                before = counted(resource)
                await say(leader, line)
                await until(lambda resource=resource, before=before: counted(resource) > before)
            assert told(resource)
        expected = {resource: counted(resource) for resource in ("tasksMax", "memoryHigh")}
        await stop(client, reader)
        for resource, count in expected.items():
            events = told(resource)
            assert sum(event["data"]["count"] for event in events) == count
            times = [event["timestamp"]["monotonic"] for event in events]
            # The last one does not wait: the machine ends.
            assert all(after - before >= 900_000 for before, after in itertools.pairwise(times[:-1]))


async def test_kills_of_systemd_oomd_are_told_as_its_own(spawn: Processes) -> None:
    """This kernel has no pressure stall information, which systemd-oomd needs: the test leaves its notes."""
    async with await connect() as client, subscribed() as reader:
        await reader.snapshot()
        leader = spawn()
        machine = (await register(client, "web", leader, properties={"OOMPolicy": "continue"}))["machine"]
        group = HIERARCHY + machine["controlGroup"]
        os.setxattr(group, "user.oomd_ooms", b"1")
        os.setxattr(group, "user.oomd_kill", b"2")
        assert (await reader.until("oomKill"))["data"] == {"by": "oomd", "count": 2}
        os.setxattr(group, "user.oomd_kill", b"5")
        assert (await reader.until("oomKill"))["data"] == {"by": "oomd", "count": 3}
        # What its owner may write there as well. None of it is a number of kills.
        for nonsense in (b"9" * 5000, b"18446744073709551615", b"-1", b"\xff", b"", b"4"):
            os.setxattr(group, "user.oomd_kill", nonsense)
            os.setxattr(group, "user.oomd_ooms", nonsense)
        os.setxattr(group, "user.oomd_kill", b"6")
        assert (await reader.until("oomKill"))["data"] == {"by": "oomd", "count": 1}
        leader.kill()
        leader.wait()
        exited = (await reader.until("exited"))["data"]
        assert told_kills(reader, "oomd") == exited["accounting"]["managedOomKills"] == 6
        assert exited["cause"] == "oomdKilled"


async def test_nothing_runs_while_nothing_happens(spawn: Processes) -> None:
    """Watching limits costs no time of the processor, also after some were reached."""
    async with await connect() as client, subscribed() as reader:
        await reader.snapshot()
        taker = spawn(python(TAKER), stdin=subprocess.PIPE)
        await register(client, "web", taker, properties=SMALL, **{"class": "container"})
        await say(taker)
        await reader.until("oomKill")
        pid = run("systemctl", "show", "-P", "MainPID", "moored.service").strip()

        def switches() -> int:
            text = Path(f"/proc/{pid}/status").read_text()
            return sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", text)))

        async def settled() -> bool:
            before = switches()
            await trio.sleep(2.0)
            return switches() == before

        await until(settled, "two seconds in which moored did not run")
        await stop(client, reader)
