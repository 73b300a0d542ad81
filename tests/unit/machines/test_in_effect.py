"""What is in force of the limits of a machine, the ceilings above included; the kernel has what a test says."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from moorage.machines.compared.bpf import device_rules
from moorage.machines.compared.in_effect import in_effect
from moorage.machines.limits import Device, Facts
from moorage.machines.properties import SHOWN
from moorage.pid1.manager import Json

MIB = 1 << 20


class Kernel:
    """A group, and those above it, the nearest first."""

    def __init__(self, own: Mapping[str, str], *above: Mapping[str, str]) -> None:
        self._own = own
        self._above = above

    def read(self, attribute: str) -> str | None:
        return self._own.get(attribute)

    def above(self, attribute: str) -> Sequence[tuple[str, str]]:
        return [
            (f"/{number}", group[attribute])
            for number, group in enumerate(self._above)
            if attribute in group
        ]


def effective(
    own: Mapping[str, str],
    *above: Mapping[str, str],
    recursive: bool = True,
    configured: Mapping[str, Json] = {},
) -> dict[str, Json]:
    facts = Facts(
        kernel=Kernel(own, *above), scope=True, user=False, properties=configured, recursive=recursive
    )
    return in_effect(facts, {"8:0": "/dev/sda", "8:16": "/dev/sdb"}.__getitem__)


CASES: list[tuple[dict[str, str], tuple[dict[str, str], ...], dict[str, Json]]] = [
    ({"memory.max": "max"}, ({"memory.max": "max"},), {}),
    ({"memory.max": str(9 * MIB)}, ({"memory.max": str(5 * MIB)}, {"memory.max": str(7 * MIB)}),
     {"MemoryMax": 5 * MIB, "MemoryHigh": 5 * MIB}),
    ({"memory.high": str(3 * MIB), "memory.max": "max"}, ({"memory.max": str(5 * MIB)},),
     {"MemoryMax": 5 * MIB, "MemoryHigh": 3 * MIB}),
    ({"memory.swap.max": "0", "memory.zswap.max": "max"}, (), {"MemorySwapMax": 0}),
    # A group without the controller counts in that above it.
    ({}, ({"pids.max": "20"}, {"pids.max": "max"}), {"TasksMax": 20}),
    ({"cpu.weight": "100", "cpu.idle": "0", "cpu.max": "max 100000"}, ({"cpu.max": "50000 50000"},),
     {"CPUWeight": 100, "CPUQuotaPerSecUSec": 1_000_000, "CPUQuotaPeriodUSec": 50_000}),
    ({"cpu.weight": "1", "cpu.idle": "1"}, (), {"CPUWeight": 0}),
    ({"cpuset.cpus.effective": "0-1,8", "cpuset.mems.effective": "0"}, (),
     {"AllowedCPUs": [3, 1], "AllowedMemoryNodes": [1]}),
    ({"io.weight": "default 100\n8:0 50"}, (), {"IOWeight": 100, "IODeviceWeight": [["/dev/sda", 50]]}),
    ({"io.max": "8:0 rbps=2000 wbps=max riops=max wiops=max"},
     ({"io.max": "8:0 rbps=1000 wbps=max riops=max wiops=max\n8:16 rbps=max wbps=7 riops=max wiops=max"},),
     {"IOReadBandwidthMax": [["/dev/sda", 1000]], "IOWriteBandwidthMax": [["/dev/sdb", 7]]}),
    ({"io.latency": "8:16 target=75000"}, ({"io.latency": "8:16 target=10"},),
     {"IODeviceLatencyTargetUSec": [["/dev/sdb", 75000]]}),
    ({"memory.min": str(8 * MIB), "memory.low": "max"}, ({"memory.min": "0", "memory.low": str(MIB)},),
     {"MemoryMin": 0, "MemoryLow": MIB}),
    ({"memory.oom.group": "1"}, (), {"OOMPolicy": "kill"}),
    # What another kernel says in another way is left out.
    ({"memory.max": "many", "cpu.weight": "x", "pids.max": "3"}, (), {"TasksMax": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("own", "above", "expected"), CASES)
def test_the_lowest_of_the_limits_is_in_force(
    own: dict[str, str], above: tuple[dict[str, str], ...], expected: dict[str, Json]
) -> None:
    assert effective(own, *above) == expected
    assert expected.keys() <= set(SHOWN)


@pytest.mark.parametrize(("policy", "expected"), [("continue", {"OOMPolicy": "continue"}), ("kill", {})])
def test_the_kernel_tells_two_policies_for_oom_from_another(policy: str, expected: dict[str, Json]) -> None:
    assert effective({"memory.oom.group": "0"}, configured={"OOMPolicy": policy}) == expected


@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        (
            {"Delegate": True, "DelegateControllers": ["cpu", "cpuset", "memory", "bpf-devices"]},
            ["cpu", "memory"],
        ),
        ({"Delegate": True, "DelegateControllers": []}, []),
        ({"Delegate": False, "DelegateControllers": ["cpu"]}, None),
        ({"Delegate": False}, None),
    ],
)
def test_the_controllers_that_are_delegated_are_those_that_are_there(
    configured: dict[str, Json], expected: list[str] | None
) -> None:
    found = effective({"cgroup.controllers": "cpu memory pids"}, configured=configured)
    assert found.get("DelegateControllers") == expected
    assert configured.keys() <= set(SHOWN)


NULL = "/dev/null rwm"
DEVICES: list[tuple[str, list[Json], list[str] | None]] = [
    ("auto", [], None),
    ("strict", [], []),
    ("strict", [["/dev/kvm", "rw"], ["/dev/gone", "r"], ["char-nosuch", "rw"], ["char-pts", "rw"]],
     ["/dev/kvm rw", "char-pts rw"]),
    ("strict", [["/dev/unseen", "r"]], ["/dev/unseen r"]),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "allowed", "expected"), DEVICES)
def test_rules_for_devices_that_match_something_are_in_force(
    policy: str, allowed: list[Json], expected: list[str] | None
) -> None:
    facts: dict[str, Any] = {"kernel": Kernel({}), "scope": True, "user": False, "properties": {}}
    known = Facts(
        devices={"/dev/kvm": Device("char", None), "/dev/gone": None},
        drivers={"char": frozenset({"pts"}), "block": frozenset()},
        **facts,
    )
    assert device_rules(policy, allowed, known) == expected


@pytest.mark.parametrize(("policy", "allowed"), [("closed", []), ("auto", [["/dev/gone", "r"]])])
def test_a_closed_policy_allows_what_every_program_needs(policy: str, allowed: list[Json]) -> None:
    facts = Facts(kernel=Kernel({}), scope=True, user=False, properties={}, devices={"/dev/gone": None})
    found = device_rules(policy, allowed, facts)
    assert found is not None
    assert NULL in found
    assert "/dev/gone r" not in found
