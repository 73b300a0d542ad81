"""What is told of the use of resources where there are no controllers: time of the processor, and pressure."""

import os
from pathlib import Path
from typing import Any

import pytest
from moored import OURS, Processes, connect, register, run, until

from moorage.wire.client import Client

BUSY = ("sh", "-c", "while :; do :; done")
RESOURCES = ("cpu", "memory", "io")


@pytest.fixture(autouse=True)
def _clean(everything_gone: None) -> None:
    """Every test here leaves nothing."""


def kernel(group: str, attribute: str) -> str:
    return Path(f"/sys/fs/cgroup{group}/{attribute}").read_text().strip()


def total(text: str) -> int:
    """The time, µs, of the line "some" of a pressure file."""
    return int(text.partition("\n")[0].rpartition("total=")[2])


async def described(client: Client) -> dict[str, Any]:
    return await client.call(f"{OURS}Describe", {"name": "web"})


async def test_pressure_of_each_resource_that_the_kernel_tells_of(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn(BUSY)
        group = (await register(client, "web", leader))["machine"]["controlGroup"]
        others = [spawn(BUSY) for _ in range(os.cpu_count() or 1)]
        await until(lambda: total(kernel(group, "cpu.pressure")) > 0)
        before = {each: total(kernel(group, f"{each}.pressure")) for each in RESOURCES}
        found = (await described(client))["pressure"]
        after = {each: total(kernel(group, f"{each}.pressure")) for each in RESOURCES}
        assert found.keys() == set(RESOURCES)
        for each in RESOURCES:
            assert before[each] <= found[each]["some"]["totalUSec"] <= after[each]
            for line in found[each].values():
                assert all(0 <= line[name] <= 100 for name in ("avg10", "avg60", "avg300"))
        assert "Pressure: CPU " in run("moorctl", "status", "web")
        assert len(others) > 0


async def test_time_of_the_processor(spawn: Processes) -> None:
    async with await connect() as client:
        group = (await register(client, "web", spawn(BUSY)))["machine"]["controlGroup"]
        await until(lambda: "\nuser_usec 0" not in kernel(group, "cpu.stat"))
        found = (await described(client))["accounting"]
        assert found["cpuUserNSec"] > 0
        assert found["cpuUsageNSec"] == pytest.approx(
            found["cpuUserNSec"] + found["cpuSystemNSec"], abs=10_000
        )
        # Without the controller of tasks there is no such counter, and none of quotas is told of.
        assert not found.keys() & {"tasksPeak", "memorySwapPeak", "ipIngressPackets"}


async def test_a_machine_that_is_gone_has_no_pressure(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
        await client.call(f"{OURS}Stop", {"name": "web"})
        assert not (await described(client)).keys() & {"pressure", "io"}
