"""What is told of the use of resources where there are no controllers: time of the processor, and pressure."""

import os
from pathlib import Path
from typing import Any

import pytest
from moored import OURS, Processes, connect, register, run, until

from moorage.errors import NoSuchMachine
from moorage.wire.client import Client
from moorage.wire.errors import ExpectedMore, InvalidParameter

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


async def described(client: Client, name: str = "web") -> dict[str, Any]:
    return await client.call(f"{OURS}Describe", {"name": name})


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


async def measured(client: Client, **parameters: Any) -> dict[str, dict[str, Any]]:
    async with client.call_more(f"{OURS}Measure", parameters) as replies:
        return {reply["sample"]["name"]: reply["sample"] async for reply in replies}


async def test_many_are_measured_with_their_helpers(spawn: Processes) -> None:
    helper = {"name": "fs", "execStart": ["/bin/sh", "-c", "while :; do :; done"]}
    done = {"name": "done", "type": "oneshot", "execStart": ["/bin/true"]}
    async with await connect() as client:
        with pytest.raises(NoSuchMachine):
            await measured(client)
        machines = {
            name: (await register(client, name, spawn(), helpers=[helper, done] if name == "m0" else []))[
                "machine"
            ]
            for name in (f"m{number}" for number in range(5))
        }
        before = await described(client, "m0")
        found = await measured(client)
        after = await described(client, "m0")
        assert {name: each["invocationId"] for name, each in found.items()} == {
            name: each["invocationId"] for name, each in machines.items()
        }
        times = [each["accounting"]["cpuUsageNSec"] for each in (before, found["m0"], after)]
        assert times == sorted(times)
        assert found["m0"]["pressure"].keys() == set(RESOURCES)
        assert [each["helper"] for each in found["m0"]["helpers"]] == ["fs"]
        assert found["m0"]["helpers"][0]["accounting"]["cpuUsageNSec"] > 0
        assert "helpers" not in found["m1"]
        assert (await measured(client, names=["m3", "m1", "m3"])).keys() == {"m1", "m3"}
        for names, error in (
            ([], InvalidParameter),
            (["m1", "/"], InvalidParameter),
            (["m1", "none"], NoSuchMachine),
        ):
            with pytest.raises(error):
                await measured(client, names=names)
        with pytest.raises(ExpectedMore):
            await client.call(f"{OURS}Measure", {})
        await client.call(f"{OURS}Stop", {"name": "m1"})
        assert (await measured(client)).keys() == {"m0", "m2", "m3", "m4"}
        with pytest.raises(NoSuchMachine):
            await measured(client, names=["m1"])


async def test_a_machine_that_is_gone_has_no_pressure(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
        await client.call(f"{OURS}Stop", {"name": "web"})
        assert not (await described(client)).keys() & {"pressure", "io"}
