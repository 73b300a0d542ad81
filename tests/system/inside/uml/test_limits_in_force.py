"""Limits that the kernel enforces: it has what was asked for, or the difference is named; and they bite."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moored import (
    OURS,
    UNTIL_SECONDS,
    Process,
    Processes,
    connect,
    control_group,
    describe,
    listed,
    register,
    run,
    show,
    until,
    verdict,
)

HIERARCHY = "/sys/fs/cgroup"
MIB = 1024 * 1024
PAGE = 4096

GREEDY = (sys.executable, "-c", "input(); kept = bytearray(64 << 20); input()")
"""Takes 64 MiB as soon as it is told to. `bytearray` writes to every page of it."""
PARENT = ("sh", "-c", f"read go; {sys.executable} -c 'bytearray(64 << 20)'; echo $?; exec sleep infinity")
"""Has a child take them, says how that ended, and lives on."""
SMALL = {"MemoryMax": 16 * MIB, "MemorySwapMax": 0}


def kernel(group: str, attribute: str) -> str:
    """What the kernel has in an attribute of a control group."""
    return Path(f"{HIERARCHY}{group}/{attribute}").read_text().strip()


def go(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def differing(reply: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    """Wanted and effective value of each difference told."""
    return {each["property"]: (each["wanted"], each.get("effective")) for each in reply["differences"]}


# What the kernel was told


async def test_the_kernel_has_what_was_asked_for(spawn: Processes) -> None:
    wanted = {
        "MemoryMin": 1 * MIB, "MemoryLow": 2 * MIB, "MemoryHigh": 48 * MIB, "MemoryMax": 64 * MIB, "MemorySwapMax": 0,
        "CPUWeight": 200, "CPUQuotaPerSecUSec": 250_000, "CPUQuotaPeriodUSec": 50_000, "TasksMax": 99,
    }  # fmt: skip
    async with await connect() as client:
        reply = await register(client, "web", spawn(), properties=wanted)
        group = reply["machine"]["controlGroup"]
        assert reply["differences"] == []
        assert {
            name: kernel(group, name)
            for name in (
                "memory.min", "memory.low", "memory.high", "memory.max", "memory.swap.max", "cpu.weight", "cpu.max",
                "pids.max",
            )
        } == {
            "memory.min": str(1 * MIB), "memory.low": str(2 * MIB), "memory.high": str(48 * MIB),
            "memory.max": str(64 * MIB), "memory.swap.max": "0", "cpu.weight": "200", "cpu.max": "12500 50000",
            "pids.max": "99",
        }  # fmt: skip
        told = await client.call(f"{OURS}Describe", {"name": "web"})
        assert wanted.items() <= told["limits"].items()
        assert (told["limits"]["EffectiveMemoryMax"], told["limits"]["EffectiveTasksMax"]) == (64 * MIB, 99)

        run("systemctl", "daemon-reload")
        assert kernel(group, "memory.max") == str(64 * MIB)
        assert kernel(group, "cpu.max") == "12500 50000"


@pytest.mark.parametrize(
    ("wanted", "attribute", "text", "effective"),
    [
        ({"MemoryMax": 64 * MIB + 1}, "memory.max", str(64 * MIB), str(64 * MIB)),
        ({"MemoryLow": PAGE - 1}, "memory.low", "0", "0"),
        ({"CPUQuotaPerSecUSec": 333_333}, "cpu.max", "33333 100000", "333330"),
        ({"CPUQuotaPeriodUSec": 100, "CPUQuotaPerSecUSec": 2_000_000}, "cpu.max", "2000 1000", "1000"),
        (
            {"CPUQuotaPeriodUSec": 5_000_000, "CPUQuotaPerSecUSec": 500_000},
            "cpu.max",
            "500000 1000000",
            "1000000",
        ),
        # One hundredth of 50 ms is less than the kernel accepts as a quota.
        ({"CPUQuotaPeriodUSec": 50_000, "CPUQuotaPerSecUSec": 10_000}, "cpu.max", "1000 100000", "100000"),
    ],
)
async def test_what_was_rounded_or_clamped_is_told(
    spawn: Processes, wanted: dict[str, int], attribute: str, text: str, effective: str
) -> None:
    async with await connect() as client:
        reply = await register(client, "web", spawn(), properties=wanted)
        assert kernel(reply["machine"]["controlGroup"], attribute) == text
        name, value = next(iter(wanted.items()))
        assert differing(reply) == {name: (str(value), effective)}


async def test_a_lower_limit_of_the_slice_is_told(spawn: Processes) -> None:
    run("systemctl", "set-property", "--runtime", "low.slice", "MemoryMax=32M", "TasksMax=20")
    async with await connect() as client:
        asked = {"MemoryMax": 64 * MIB, "TasksMax": 10}
        reply = await register(client, "web", spawn(), slice="low.slice", properties=asked)
        assert differing(reply) == {"MemoryMax": (str(64 * MIB), str(32 * MIB))}
        assert "/low.slice" in reply["differences"][0]["reason"]
        limits = (await client.call(f"{OURS}Describe", {"name": "web"}))["limits"]
        assert (limits["MemoryMax"], limits["EffectiveMemoryMax"]) == (64 * MIB, 32 * MIB)
        assert (limits["TasksMax"], limits["EffectiveTasksMax"]) == (10, 10)


async def test_tasks_by_share_and_idle_weight(spawn: Processes) -> None:
    async with await connect() as client:
        reply = await register(
            client, "web", spawn(), properties={"TasksMaxScale": 2**32 // 10, "CPUWeight": 0}
        )
        machine = reply["machine"]
        assert reply["differences"] == []
        assert kernel(machine["controlGroup"], "cpu.idle") == "1"
        share = int(kernel(machine["controlGroup"], "pids.max"))
        assert share == int(show(machine["unit"], "TasksMax")["TasksMax"])
        # cgroup_tasks_max_resolve(), of the least that the system allows in all.
        most = [int(run("sysctl", "-n", f"kernel.{name}")) for name in ("pid_max", "threads-max")]
        assert share == pytest.approx(min(most) / 10, abs=2)


async def test_a_controller_that_is_nowhere_is_told(spawn: Processes) -> None:
    async with await connect() as client:
        reply = await register(client, "web", spawn(), properties={"AllowedCPUs": [1], "IOWeight": 50})
        assert differing(reply) == {"AllowedCPUs": ("[1]", None)}
        assert "“cpuset”" in reply["differences"][0]["reason"]


# They bite


FORKS = """
import errno, os, signal
input()
for number in range(9):
    try:
        if os.fork() == 0:
            signal.pause()
    except OSError as error:
        print(number, "children, then", errno.errorcode[error.errno], flush=True)
        break
signal.pause()
"""


async def test_no_more_tasks_than_allowed(spawn: Processes) -> None:
    # Not a shell: bash tries again for half a minute, deaf to signals.
    leader = spawn((sys.executable, "-c", FORKS), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    async with await connect() as client:
        group = (await register(client, "web", leader, properties={"TasksMax": 4}))["machine"][
            "controlGroup"
        ]
        go(leader)
        assert leader.stdout is not None
        assert leader.stdout.readline() == b"3 children, then EAGAIN\n"
        assert int(kernel(group, "pids.events").split()[1]) == 1
        assert int(kernel(group, "pids.peak")) == 4
        await client.call(f"{OURS}Stop", {"name": "web"})


async def test_no_more_time_than_allowed(spawn: Processes) -> None:
    leader = spawn(("sh", "-c", "read go; while :; do :; done"), stdin=subprocess.PIPE)
    async with await connect() as client:
        asked = {"CPUQuotaPerSecUSec": 50_000}
        group = (await register(client, "web", leader, properties=asked))["machine"]["controlGroup"]
        go(leader)

        def throttled() -> bool:
            figures = dict(line.split() for line in kernel(group, "cpu.stat").splitlines())
            return int(figures["nr_throttled"]) > 2

        await until(throttled)


# Out of memory


@pytest.mark.parametrize(
    "properties",
    [
        pytest.param({}, id="vm"),
        pytest.param({"OOMPolicy": "kill"}, id="vm, kill"),
        pytest.param({"Delegate": True, "OOMPolicy": "stop"}, id="delegated, stop"),
        pytest.param({"Delegate": True, "OOMPolicy": "kill"}, id="delegated, kill"),
    ],
)
async def test_a_machine_that_was_killed_for_lack_of_memory(
    spawn: Processes, properties: dict[str, Any]
) -> None:
    leader = spawn(GREEDY, stdin=subprocess.PIPE)
    async with await connect() as client:
        reply = await register(client, "web", leader, properties={**SMALL, **properties})
        assert reply["differences"] == []
        machine = reply["machine"]
        whole = properties.get("OOMPolicy") == "kill"
        assert kernel(machine["controlGroup"], "memory.oom.group") == str(int(whole))
        go(leader)
        assert leader.wait(UNTIL_SECONDS) == -9
        found = await verdict(client, "web")
        assert (found["result"], found["oomKilled"]) == ("oom-kill", True)
        assert found["accounting"]["oomKills"] >= 1
        assert 15 * MIB < found["accounting"]["memoryPeak"] <= 16 * MIB
        assert await listed(client) == {}
    assert "killed for lack of memory" in run("moorctl", "status", "web")


async def test_a_child_that_is_killed_ends_a_machine_that_is_not_delegated(spawn: Processes) -> None:
    leader = spawn(PARENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    async with await connect() as client:
        await register(client, "web", leader, properties=SMALL)
        go(leader)
        found = await verdict(client, "web")
        assert (found["result"], found["oomKilled"]) == ("oom-kill", True)
        assert leader.wait(UNTIL_SECONDS) in (-9, -15)


async def test_a_container_survives_the_loss_of_a_process(spawn: Processes) -> None:
    leader = spawn(PARENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    async with await connect() as client:
        reply = await register(client, "web", leader, properties=SMALL, **{"class": "container"})
        go(leader)
        assert leader.stdout is not None
        assert leader.stdout.readline() == b"137\n"
        told = await client.call(f"{OURS}Describe", {"name": "web"})
        assert told["accounting"]["oomKills"] == 1
        assert told["limits"]["OOMPolicy"] == "continue"
        assert (await listed(client))["web"]["phase"] == "running"
        assert control_group(leader) == reply["machine"]["controlGroup"]

        await client.call(f"{OURS}Stop", {"name": "web"})
        found = (await describe(client, "web"))["verdict"]
        # The unit's own result knows nothing of it.
        assert (found["result"], found["oomKilled"], found["accounting"]["oomKills"]) == ("success", True, 1)
    text = run("moorctl", "status", "web")
    assert "killed for lack of memory" in text
    assert "1 by the kernel" in text
