"""A payload that waits costs its machine next to nothing: a small MemoryMax= is there for what it will execute."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
from moored import OURS, connect, until

from moorage.launch.trio import hold

HIERARCHY = "/sys/fs/cgroup"
MIB = 1024 * 1024
SMALL = {"MemoryMax": 16 * MIB, "MemorySwapMax": 0}

BALLAST = 64 * MIB
"""What a launcher has in memory, and no holder must have."""


@pytest.fixture(autouse=True)
def _clean(nothing_left: None) -> None:
    """Every test here leaves nothing."""


def kernel(machine: dict[str, Any], attribute: str) -> str:
    return Path(f"{HIERARCHY}{machine['controlGroup']}/{attribute}").read_text()


async def test_it_waits_and_executes_within_16_mib() -> None:
    ballast = bytearray(BALLAST)
    async with await hold() as payload, await connect() as client:
        parameters = {"name": "web", "class": "vm", "leaderFileDescriptor": 0, "properties": SMALL}
        reply = await client.call(f"{OURS}Register", parameters, fds=[payload.pidfd])
        machine = reply["machine"]
        assert reply["differences"] == []
        assert int(kernel(machine, "memory.max")) == 16 * MIB
        waiting = int(kernel(machine, "memory.peak"))
        await payload.run(["sleep", "infinity"])
        comm = Path(f"/proc/{payload.pid}/comm")
        await until(lambda: comm.read_text() == "sleep\n")
        executed = int(kernel(machine, "memory.peak"))
        print(
            f"memory.peak of the scope: {waiting // 1024} KiB while it waits, {executed // 1024} KiB after exec"
        )
        events = kernel(machine, "memory.events")
        assert re.findall(r"^(max|oom|oom_kill) (\d+)$", events, re.MULTILINE) == [
            ("max", "0"), ("oom", "0"), ("oom_kill", "0"),
        ]  # fmt: skip
        assert executed < 8 * MIB
        await client.call(f"{OURS}Stop", {"name": "web"})
    assert len(ballast) == BALLAST


async def test_moorctl_run_within_16_mib() -> None:
    script = "cat /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/memory.peak"
    done = await trio.run_process(
        ["moorctl", "run", "--name", "web", "--property", "MemoryMax=16M", "--property", "MemorySwapMax=0",
         "--", "sh", "-c", script],
        capture_stdout=True, capture_stderr=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    print(f"memory.peak of the scope of moorctl run: {int(done.stdout) // 1024} KiB")
    assert int(done.stdout) < 8 * MIB


def test_a_command_that_needs_more_is_killed_and_it_is_told() -> None:
    done = subprocess.run(
        ["moorctl", "run", "--name", "web", "--property", "MemoryMax=16M", "--property", "MemorySwapMax=0",
         "--", "python3", "-c", "bytearray(64 << 20)"],
        capture_output=True, text=True, check=False, timeout=40,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (137, "Machine web ended: it was killed for lack of memory.\n")
