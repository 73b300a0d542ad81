"""What a machine has used: the kernel's own figures, and the service manager's for the network."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from moored import OURS, Process, Processes, connect, register, run, show, until, verdict

from moorage.wire.client import Client

MIB = 1024 * 1024
SCOPE = "machine-web.scope"

BUSY = ("sh", "-c", "while :; do :; done")
TAKES = (
    sys.executable,
    "-c",
    "input(); kept = bytearray(32 << 20); del kept; print('done', flush=True); input()",
)
TALKS = """
import socket
input()
one, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
one.bind(("127.0.0.1", 0))
for _ in range(10):
    other.sendto(bytes(1000), one.getsockname())
    one.recv(2000)
print("done", flush=True)
input()
"""


@pytest.fixture(autouse=True)
def _clean(everything_gone: None) -> None:
    """Every test here leaves nothing."""


def kernel(group: str, attribute: str) -> str:
    return Path(f"/sys/fs/cgroup{group}/{attribute}").read_text().strip()


def go(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def done(process: Process) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"done\n"


async def described(client: Client) -> dict[str, Any]:
    return await client.call(f"{OURS}Describe", {"name": "web"})


async def test_time_of_the_processor_and_what_a_quota_takes(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn(BUSY)
        group = (await register(client, "web", leader, properties={"CPUQuotaPerSecUSec": 50_000}))[
            "machine"
        ]["controlGroup"]
        await until(lambda: "throttled_usec 0" not in kernel(group, "cpu.stat"))
        first = (await described(client))["accounting"]
        stat = dict(line.split() for line in kernel(group, "cpu.stat").splitlines())
        for name, key in (
            ("cpuUsageNSec", "usage_usec"), ("cpuUserNSec", "user_usec"), ("cpuSystemNSec", "system_usec"),
            ("cpuThrottledNSec", "throttled_usec"),
        ):  # fmt: skip
            assert 0 <= first[name] <= int(stat[key]) * 1000
        assert first["cpuThrottledNSec"] > 0
        assert first["cpuUsageNSec"] == pytest.approx(
            first["cpuUserNSec"] + first["cpuSystemNSec"], abs=10_000
        )
        assert "throttled for" in run("moorctl", "status", "web")
        await client.call(f"{OURS}Stop", {"name": "web"})
        last = (await verdict(client, "web"))["accounting"]
        assert last["cpuUsageNSec"] >= first["cpuUsageNSec"]


async def test_memory_and_tasks_with_their_peaks(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn(TAKES, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        group = (await register(client, "web", leader))["machine"]["controlGroup"]
        go(leader)
        done(leader)
        found = (await described(client))["accounting"]
        assert found["memoryPeak"] == int(kernel(group, "memory.peak")) > 32 * MIB
        assert found["memoryPeak"] == int(show(SCOPE, "MemoryPeak")["MemoryPeak"])
        assert found["memorySwapPeak"] == int(kernel(group, "memory.swap.peak"))
        assert found["tasksCurrent"] == int(show(SCOPE, "TasksCurrent")["TasksCurrent"]) == 1
        assert found["tasksPeak"] == int(kernel(group, "pids.peak")) >= 1


def cgtop(group: str) -> tuple[int, int]:
    """Tasks and memory of a group as systemd-cgtop tells them."""
    lines = run("systemd-cgtop", "--raw", "--batch", "--iterations=1", "--depth=3").splitlines()
    [found] = [line.split() for line in lines if line.startswith(f"{group.lstrip('/')} ")]
    return int(found[1]), int(found[3])


async def test_systemd_cgtop_tells_the_same(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn(TAKES, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        group = (await register(client, "web", leader))["machine"]["controlGroup"]
        go(leader)
        done(leader)

        async def alike() -> bool:
            found = (await described(client))["accounting"]
            async with client.call_more(f"{OURS}Measure", {"names": ["web"]}) as replies:
                [measured] = [reply["sample"]["accounting"] async for reply in replies]
            memory = {found["memoryCurrent"], measured["memoryCurrent"], cgtop(group)[1]}
            return len(memory) == 1 and cgtop(group)[0] == found["tasksCurrent"] == measured["tasksCurrent"]

        await until(alike)
        await client.call(f"{OURS}SetProperties", {"name": "web", "properties": {"TasksMax": 5}})
        assert cgtop(group)[0] == 1


async def test_the_network_while_it_lives_and_after(spawn: Processes) -> None:
    """Where the kernel has no programs for that, nothing is counted, and nothing is told."""
    async with await connect() as client:
        leader = spawn((sys.executable, "-c", TALKS), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        await register(client, "web", leader, properties={"IPAccounting": True})
        go(leader)
        done(leader)
        found = (await described(client))["accounting"]
        names = ("IPIngressBytes", "IPIngressPackets", "IPEgressBytes", "IPEgressPackets")
        counted = {name: value for name, value in show(SCOPE, *names).items() if value.isdigit()}
        told = {name: str(found[f"ip{name[2:]}"]) for name in names if f"ip{name[2:]}" in found}
        assert told == counted
