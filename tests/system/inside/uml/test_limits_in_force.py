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
    # What the slice does not protect would not be protected.
    run("systemctl", "set-property", "--runtime", "kept.slice", "MemoryMin=1M", "MemoryLow=2M")
    async with await connect() as client:
        reply = await register(client, "web", spawn(), slice="kept.slice", properties=wanted)
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
        ({"CPUQuotaPerSecUSec": 333_333}, "cpu.max", "33330 100000", "333300"),
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
        described = await client.call(f"{OURS}Describe", {"name": "web"})
        limits, effective = described["limits"], described["effective"]
        assert (limits["MemoryMax"], limits["EffectiveMemoryMax"]) == (64 * MIB, 32 * MIB)
        assert (limits["TasksMax"], limits["EffectiveTasksMax"]) == (10, 10)
        assert (effective["MemoryMax"], effective["MemoryHigh"], effective["TasksMax"]) == (
            32 * MIB,
            32 * MIB,
            10,
        )


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
        assert differing(reply) == {"AllowedCPUs": ("0", None), "IOWeight": ("50", None)}
        assert "“cpuset”" in reply["differences"][0]["reason"]
        # The controller is there, but this kernel weighs nothing.
        assert reply["differences"][1]["reason"] == "this kernel has no io.weight"


@pytest.mark.parametrize(
    ("option", "asked"),
    [
        ("BLK_CGROUP_IOCOST", {"IOWeight": 50}),
        ("BLK_CGROUP_IOLATENCY", {"IODeviceLatencyTargetUSec": [["/dev/null", 1000]]}),
        ("PSI", {"ManagedOOMMemoryPressure": "kill"}),
        ("CPUSETS", {"AllowedCPUs": [1]}),
        ("SMP", {"AllowedMemoryNodes": [1]}),
        ("CFS_BANDWIDTH", {"CPUQuotaPerSecUSec": 500_000}),
        ("CGROUP_PIDS", {"TasksMax": 50}),
        ("MEMCG", {"MemoryHigh": MIB * 100}),
        ("ZSWAP", {"MemoryZSwapMax": MIB}),
        ("CGROUP_BPF", {"DevicePolicy": "closed"}),
        ("CGROUP_BPF", {"IPAddressDeny": [[2, [192, 0, 2, 1], 32]]}),
    ],
)
async def test_what_the_kernel_was_built_without_is_told(
    spawn: Processes, option: str, asked: dict[str, Any]
) -> None:
    """What cannot be shown to bite here, in the words of this kernel's configuration."""
    built_with = f"CONFIG_{option}=y" in run("linux.uml", "--showconfig").splitlines()
    async with await connect() as client:
        reply = await register(client, "web", spawn(), properties=asked)
        assert [each["property"] for each in reply["differences"]] == ([] if built_with else [*asked])


async def test_no_pressure_is_told_of_where_none_is_measured(spawn: Processes) -> None:
    assert "# CONFIG_PSI is not set" in run("linux.uml", "--showconfig")
    async with await connect() as client:
        await register(client, "web", spawn())
        assert "pressure" not in await client.call(f"{OURS}Describe", {"name": "web"})


async def test_a_device_that_is_none_is_named(spawn: Processes) -> None:
    asked = {
        "IOReadBandwidthMax": [["/dev/nosuch", 1_000_000]], "IOWriteIOPSMax": [["/dev/null", 9]],
        "IODeviceLatencyTargetUSec": [["/dev/nosuch", 1000]],
    }  # fmt: skip
    async with await connect() as client:
        reply = await register(client, "web", spawn(), properties=asked)
        assert {each["property"]: (each["wanted"], each["reason"]) for each in reply["differences"]} == {
            "IOReadBandwidthMax": ("/dev/nosuch 1000000", "there is no /dev/nosuch"),
            "IOWriteIOPSMax": ("/dev/null 9", "/dev/null is not a block device, nor on one"),
            "IODeviceLatencyTargetUSec": ("/dev/nosuch 1000", "this kernel has no io.latency"),
        }


async def test_a_lower_quota_of_the_slice_is_told(spawn: Processes) -> None:
    run("systemctl", "set-property", "--runtime", "slow.slice", "CPUQuota=10%")
    run("systemctl", "start", "slow.slice")  # what is only configured cannot be foreseen
    async with await connect() as client:
        asked = {"CPUQuotaPerSecUSec": 500_000}
        for dry_run in (True, False):
            reply = await register(
                client, "web", spawn(), slice="slow-web.slice", properties=asked, dryRun=dry_run
            )
            assert differing(reply) == {"CPUQuotaPerSecUSec": ("500000", "100000")}
            assert reply["differences"][0]["reason"] == "/slow.slice has a lower limit"


async def test_a_period_without_a_quota_is_told(spawn: Processes) -> None:
    async with await connect() as client:
        reply = await register(client, "web", spawn(), properties={"CPUQuotaPeriodUSec": 50_000})
        assert differing(reply) == {"CPUQuotaPeriodUSec": ("50000", None)}
        assert reply["differences"][0]["reason"] == "it is the period of a quota, and there is none"


async def test_what_the_slice_does_not_protect_is_told(spawn: Processes) -> None:
    assert kernel("/machine.slice", "memory.min") == "0"
    async with await connect() as client:
        asked = {"MemoryMin": 32 * MIB, "MemoryLow": 16 * MIB}
        for dry_run in (True, False):
            reply = await register(client, "web", spawn(), properties=asked, dryRun=dry_run)
            assert differing(reply) == {
                "MemoryMin": (str(32 * MIB), "0"),
                "MemoryLow": (str(16 * MIB), "0"),
            }
        assert kernel(reply["machine"]["controlGroup"], "memory.min") == str(32 * MIB)


async def test_shares_and_what_undercuts_them(spawn: Processes) -> None:
    run("systemctl", "set-property", "--runtime", "narrow.slice", "MemoryMax=24M", "TasksMax=20")
    asked = {"MemoryMaxScale": 2**31, "TasksMaxScale": 2**31, "MemoryZSwapMax": MIB}
    async with await connect() as client:
        reply = await register(client, "web", spawn(), slice="narrow.slice", properties=asked)
        assert differing(reply) == {"MemoryMaxScale": ("50%", str(24 * MIB)), "TasksMaxScale": ("50%", "20")}


async def test_what_is_in_force_during_startup_only_is_told(spawn: Processes) -> None:
    asked = {"StartupCPUWeight": 300, "CPUWeight": 50, "StartupMemoryMax": 64 * MIB}
    async with await connect() as client:
        reply = await register(client, "web", spawn(), properties=asked)
        assert differing(reply) == {
            "StartupCPUWeight": ("300", "50"),
            "StartupMemoryMax": (str(64 * MIB), "infinity"),
        }


@pytest.mark.parametrize(
    "asked",
    [
        {"MemoryMax": 64 * MIB + 1, "MemoryMin": 5 * MIB, "TasksMax": 20, "CPUQuotaPerSecUSec": 333_333},
        {"CPUQuotaPeriodUSec": 100, "CPUQuotaPerSecUSec": 2_000_000, "CPUWeight": 0, "OOMPolicy": "kill"},
        {"AllowedCPUs": [3], "MemoryZSwapWriteback": False, "StartupCPUWeight": 9, "MemoryHigh": "infinity"},
        {"IOReadBandwidthMax": [["/dev/nosuch", 1]], "DeviceAllow": [["/dev/nosuch", "rw"]]},
    ],
)
async def test_a_rehearsal_foresees_what_differs(spawn: Processes, asked: dict[str, Any]) -> None:
    async with await connect() as client:
        leader = spawn()
        foreseen = await register(client, "web", leader, properties=asked, dryRun=True)
        reply = await register(client, "web", leader, properties=asked)
        assert foreseen["differences"] == reply["differences"]


async def test_differences_of_helpers_name_them(spawn: Processes) -> None:
    helper = {"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"],
              "properties": {"MemoryMax": 64 * MIB + 1, "TasksMax": 20}}  # fmt: skip
    async with await connect() as client:
        for dry_run in (True, False):
            reply = await register(client, "web", spawn(), helpers=[helper], dryRun=dry_run)
            [difference] = reply["differences"]
            assert (difference["helper"], difference["property"]) == ("fs", "MemoryMax")
            assert difference["effective"] == str(64 * MIB)


async def test_differences_of_its_own_slice_name_it(spawn: Processes) -> None:
    helper = {
        "name": "fs",
        "execStart": ["/usr/bin/sleep", "infinity"],
        "properties": {"MemoryMax": 64 * MIB},
    }
    async with await connect() as client:
        leader = spawn()
        for dry_run in (True, False):
            reply = await register(
                client, "web", leader, properties={"TasksMax": 30}, helpers=[helper],
                sliceProperties={"MemoryMax": 32 * MIB + 1, "TasksMax": 20}, dryRun=dry_run,
            )  # fmt: skip
            assert [
                (each.get("slice"), each.get("helper"), each["property"], each.get("effective"))
                for each in reply["differences"]
            ] == [
                (None, None, "TasksMax", "20"),
                ("machine-web.slice", None, "MemoryMax", str(32 * MIB)),
                (None, "fs", "MemoryMax", str(32 * MIB)),
            ]
        assert kernel("/machine.slice/machine-web.slice", "memory.max") == str(32 * MIB)


async def test_differences_of_helpers_that_are_added_name_them(spawn: Processes) -> None:
    helper = {"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"],
              "properties": {"MemoryMax": 64 * MIB + 1, "TasksMax": 20}}  # fmt: skip
    async with await connect() as client:
        await register(client, "web", spawn())
        parameters = {"name": "web", "helpers": [helper]}
        async with client.call_more(f"{OURS}AddHelpers", parameters) as replies:
            seen = [reply async for reply in replies]
        assert not any("differences" in reply for reply in seen[:-1])
        [difference] = seen[-1]["differences"]
        assert (difference["helper"], difference["property"]) == ("fs", "MemoryMax")
        assert difference["effective"] == str(64 * MIB)


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


async def test_one_limit_for_scope_and_helpers(spawn: Processes) -> None:
    leader = spawn((sys.executable, "-c", FORKS), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    async with await connect() as client:
        helper = {"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"]}
        await register(client, "web", leader, sliceProperties={"TasksMax": 5}, helpers=[helper])
        go(leader)
        assert leader.stdout is not None
        # The leader and the helper are two of the five.
        assert leader.stdout.readline() == b"3 children, then EAGAIN\n"
        await client.call(f"{OURS}Stop", {"name": "web"})


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
