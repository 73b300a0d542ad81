"""What is told of the use of resources where there are no controllers: time of the processor, and pressure."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from moored import (
    OURS,
    Processes,
    connect,
    control_group,
    kill,
    main_pid,
    move,
    register,
    run,
    show,
    until,
    verdict,
)

from moorage.errors import NoSuchMachine, NotSupported
from moorage.wire.client import Client
from moorage.wire.errors import ExpectedMore, InvalidParameter

BUSY = ("sh", "-c", "while :; do :; done")
BUSY_AT_FIRST = (
    "/bin/bash",
    "-c",
    "burn() { for ((i = 0; i < 20000; i++)); do :; done; }; trap burn USR1; burn; while sleep inf & do wait; done",
)
"""Uses the processor for a moment, and again at each SIGUSR1."""

RESOURCES = ("cpu", "memory", "io")


@pytest.fixture(autouse=True)
def _clean(everything_gone: None) -> None:
    """Every test here leaves nothing."""


def kernel(group: str, attribute: str) -> str:
    return Path(f"/sys/fs/cgroup{group}/{attribute}").read_text().strip()


def total(text: str) -> int:
    """The time, µs, of the line "some" of a pressure file."""
    return int(text.partition("\n")[0].rpartition("total=")[2])


def usage(group: str) -> int:
    """Time of the processor, µs."""
    return int(kernel(group, "cpu.stat").split()[1])


def states(group: str) -> set[str]:
    """States of the processes in it."""
    found: set[str] = set()
    for pid in kernel(group, "cgroup.procs").split():
        with suppress(FileNotFoundError, ProcessLookupError):
            found.add(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
    return found


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
        assert {(each["phase"], each["freezer"]) for each in found.values()} == {("running", "running")}
        few = await measured(client, names=["m0"], counters=["cpu"], limits=True)
        assert {"cpuUserNSec"} <= few["m0"]["accounting"].keys()
        assert all(name.startswith("cpu") for name in few["m0"]["accounting"])
        assert "pressure" not in few["m0"]
        with pytest.raises(InvalidParameter):
            await measured(client, counters=["cpu", "network"])
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


async def test_counters_begin_at_zero_again(spawn: Processes) -> None:
    helper = {"name": "fs", "execStart": list(BUSY_AT_FIRST)}
    async with await connect() as client:
        leader = spawn(BUSY_AT_FIRST)
        machine = (await register(client, "web", leader, helpers=[helper]))["machine"]
        group = machine["controlGroup"]
        groups = (group, f"{group.rpartition('/')[0]}/machine-web-fs.service")
        leader.send_signal(signal.SIGUSR1)
        await until(lambda: all(usage(each) > 0 and states(each) == {"S"} for each in groups))
        assert "accountingSince" not in await described(client)
        assert "accountingSince" not in (await measured(client))["web"]
        for parameters in ({"ifInvocationId": "0" * 32}, {"name": "nobody"}):
            with pytest.raises(NoSuchMachine):
                await client.call(f"{OURS}ResetAccounting", {"name": "web", **parameters})
        before = [usage(each) for each in groups]
        assert await client.call(f"{OURS}ResetAccounting", {"name": "web"}) == {}
        since = (await described(client))["accountingSince"]
    assert [usage(each) for each in groups] == before  # the kernel's are not touched
    pid = main_pid()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: main_pid() not in {0, pid})
    async with await connect() as client:
        found = await described(client)
        sample = (await measured(client))["web"]
        assert found["accountingSince"] == sample["accountingSince"] == since
        for counters in (found["accounting"], sample["accounting"], sample["helpers"][0]["accounting"]):
            assert counters["cpuUsageNSec"] == counters["cpuUserNSec"] + counters["cpuSystemNSec"] == 0
        assert "Counted since: " in run("moorctl", "status", "web")
        # What it uses from now on is told; the same helper in a new control group has counters of its own.
        leader.send_signal(signal.SIGUSR1)
        await until(lambda: usage(group) > before[0])
        grown = (await described(client))["accounting"]["cpuUsageNSec"]
        assert 0 < grown <= (usage(group) - before[0]) * 1000
        run("systemctl", "restart", "machine-web-fs.service")
        await until(lambda: usage(groups[1]) > 0)
        helpers = (await measured(client))["web"]["helpers"]
        assert helpers[0]["accounting"]["cpuUsageNSec"] > 0
        run("moorctl", "reset-accounting", "web")
        assert (await described(client))["accountingSince"]["realtime"] > since["realtime"]
        whole = usage(group) * 1000
        await client.call(f"{OURS}Stop", {"name": "web"})
        assert (await verdict(client, "web"))["accounting"]["cpuUsageNSec"] >= whole
        assert "accountingSince" not in await described(client)


async def test_a_machine_without_counters_of_its_own_cannot_be_reset(spawn: Processes) -> None:
    """In a unit with processes of others."""
    run("systemd-run", "--quiet", "--collect", "--unit=own.service", "sleep", "infinity")
    try:
        async with await connect() as client:
            leader = spawn()
            group = control_group(int(show("own.service", "MainPID")["MainPID"]))
            move(leader, group)
            machine = (await register(client, "web", leader, allocateUnit=False))["machine"]
            assert machine["controlGroup"] == group
            with pytest.raises(NotSupported):
                await client.call(f"{OURS}ResetAccounting", {"name": "web"})
            kill(leader)
            await verdict(client, "web")
    finally:
        run("systemctl", "stop", "own.service")


async def test_a_machine_that_is_gone_has_no_pressure(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
        await client.call(f"{OURS}Stop", {"name": "web"})
        assert not (await described(client)).keys() & {"pressure", "io"}
