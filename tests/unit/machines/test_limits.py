"""What is said of limits and protections that are not in force as they were asked for.

Which controllers the real kernel has depends on the machine; here it has what a test says.
"""

import mmap
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.machines.compared.bpf import attached
from moorage.machines.compared.cpu import cpu_max
from moorage.machines.compared.table import COMPARED, NOT_COMPARED, differences, paths, why_not
from moorage.machines.compared.values import set_of_bytes, set_of_text, set_text
from moorage.machines.limits import Device, Difference, Facts, Process
from moorage.pid1.manager import Json

PAGE = mmap.PAGESIZE
MIB = 1 << 20

NEW = {
    "cgroup.controllers": "cpuset cpu io memory pids", "memory.min": "0", "memory.low": "0", "memory.high": "max",
    "memory.max": "max", "memory.swap.max": "max", "memory.zswap.max": "max", "memory.zswap.writeback": "1",
    "memory.oom.group": "0", "memory.current": "0", "memory.pressure": "", "pids.max": "max", "cpu.weight": "100",
    "cpu.idle": "0", "cpu.max": "max 100000", "cpuset.cpus": "", "cpuset.cpus.effective": "0-3", "cpuset.mems": "",
    "cpuset.mems.effective": "0", "cpuset.cpus.partition": "member", "io.weight": "default 100", "io.max": "",
    "io.latency": "",
}  # fmt: skip
"""A group that has no limits."""


class Kernel:
    """A group, and those above it, the nearest first."""

    def __init__(self, own: Mapping[str, str], *above: Mapping[str, str]) -> None:
        self._own = own
        self._above = above

    def read(self, attribute: str) -> str | None:
        return self._own.get(attribute)

    def above(self, attribute: str) -> Sequence[tuple[str, str]]:
        names = ("/a.slice/a-b.slice", "/a.slice") if len(self._above) == 2 else ("/a.slice",)
        return [(name, group[attribute]) for name, group in zip(names, self._above, strict=False)
                if attribute in group]  # fmt: skip


def compare(
    properties: Mapping[str, Json],
    own: Mapping[str, str] | None = None,
    *above: Mapping[str, str],
    **facts: Any,
) -> list[tuple[str, str, str | None, str]]:
    """Compare, and return property, wanted and effective value and reason of each difference."""
    known: dict[str, Any] = {"scope": True, "user": False, "programs": None, **facts}
    kernel = Kernel({**NEW, **(own or {})}, *({**NEW, **each} for each in above))
    found = differences(Facts(kernel=kernel, properties=properties, **known))
    return [(each.property, each.wanted, each.effective, each.reason) for each in found]


def values(*arguments: Any, **facts: Any) -> list[tuple[str, str, str | None]]:
    return [each[:3] for each in compare(*arguments, **facts)]


@pytest.mark.parametrize(
    ("name", "value", "attribute", "text"),
    [
        ("MemoryMax", 1 << 30, "memory.max", str(1 << 30)),
        ("MemoryHigh", MIB, "memory.high", str(MIB)),
        ("MemoryMin", 0, "memory.min", "0"),
        ("MemorySwapMax", 0, "memory.swap.max", "0"),
        ("MemoryZSwapMax", 0, "memory.zswap.max", "0"),
        ("MemoryZSwapWriteback", False, "memory.zswap.writeback", "0"),
        ("MemoryMax", "infinity", "memory.max", "max"),
        ("StartupMemoryMax", MIB, "memory.max", str(MIB)),
        ("MemoryMaxScale", 2**31, "memory.max", str(1 << 30)),
        ("TasksMax", 16384, "pids.max", "16384"),
        ("TasksMax", "infinity", "pids.max", "max"),
        ("TasksMax", 2**64 - 1, "pids.max", "max"),
        ("CPUWeight", "infinity", "cpu.weight", "100"),
        ("CPUWeight", 500, "cpu.weight", "500"),
        ("CPUWeight", 0, "cpu.idle", "1"),
        ("StartupCPUWeight", 500, "cpu.weight", "500"),
        ("CPUQuotaPerSecUSec", 500_000, "cpu.max", "50000 100000"),
        ("CPUQuotaPerSecUSec", 2_000_000, "cpu.max", "200000 100000"),
        ("CPUQuotaPerSecUSec", "infinity", "cpu.max", "max 100000"),
        ("CPUQuotaPeriodUSec", "infinity", "cpu.max", "1000 100000"),
        ("CPUQuotaPeriodUSec", 2000, "cpu.max", "1000 2000"),
        ("AllowedCPUs", [5], "cpuset.cpus.effective", "0,2"),
        ("AllowedCPUs", [], "cpuset.cpus.effective", "0-3"),
        ("AllowedMemoryNodes", [1], "cpuset.mems.effective", "0"),
        ("CPUSetPartition", "isolated", "cpuset.cpus.partition", "isolated"),
        ("IOWeight", 5, "io.weight", "default 5"),
        ("IOWeight", "infinity", "io.weight", "default 100"),
        ("IODeviceWeight", [["/dev/vda", 7]], "io.weight", "default 100\n254:0 7"),
        ("IOReadBandwidthMax", [["/dev/vda", 1]], "io.max", "254:0 rbps=1 wbps=max riops=max wiops=max"),
        ("IOWriteIOPSMax", [["/dev/vda", 9]], "io.max", "8:0 rbps=1\n254:0 rbps=max wiops=9"),
        ("IOReadBandwidthMax", [["/dev/vda", "infinity"]], "io.max", ""),
        ("IOReadBandwidthMax", [], "io.max", ""),
        ("IODeviceLatencyTargetUSec", [["/dev/vda", 1000]], "io.latency", "254:0 target=1000"),
        ("OOMPolicy", "kill", "memory.oom.group", "1"),
        ("OOMPolicy", "stop", "memory.oom.group", "0"),
        ("OOMPolicy", "continue", "memory.oom.group", "0"),
        ("ManagedOOMSwap", "kill", "memory.current", "0"),
        ("DelegateControllers", ["cpu", "bpf-firewall"], "cgroup.controllers", "cpu io"),
        ("IPAddressDeny", [[2, [0, 0, 0, 0], 0]], "cpu.max", "max 100000"),  # programs are not known
    ],
)  # fmt: skip
def test_what_is_in_force_is_not_told(name: str, value: Json, attribute: str, text: str) -> None:
    assert compare({name: value}, {attribute: text}, devices={"/dev/vda": Device("block", "254:0")}) == []


def test_a_missing_controller_is_told_in_the_words_of_who_asked() -> None:
    wanted: dict[str, Json] = {
        "MemoryMax": 4096, "MemoryMin": 5, "MemoryMaxScale": 2**31, "TasksMaxScale": 429_496_730, "CPUWeight": 5,
        "StartupCPUWeight": 0, "CPUQuotaPerSecUSec": 7, "CPUQuotaPeriodUSec": 5000, "IOWeight": 7,
        "IOWriteIOPSMax": [["/dev/vda", 9]], "AllowedCPUs": [15, 1], "OOMPolicy": "kill",
        "MemoryZSwapWriteback": False, "DelegateControllers": ["pids"],
    }  # fmt: skip
    bare = Kernel({"cgroup.controllers": "hugetlb"})
    found = differences(Facts(kernel=bare, scope=True, user=False, properties=wanted))
    assert [(each.property, each.wanted, each.effective) for each in found] == [
        ("MemoryMax", "4096", None),
        ("MemoryMin", "5", None),
        ("MemoryMaxScale", "50%", None),
        ("TasksMaxScale", "10%", None),
        ("CPUWeight", "5", None),
        ("StartupCPUWeight", "idle", None),
        ("CPUQuotaPerSecUSec", "7", None),
        ("CPUQuotaPeriodUSec", "5000", None),
        ("IOWeight", "7", None),
        ("IOWriteIOPSMax", "/dev/vda 9", None),
        ("AllowedCPUs", "0-3,8", None),
        ("OOMPolicy", "kill", None),
        ("MemoryZSwapWriteback", "no", None),
        ("DelegateControllers", "pids", None),
    ]
    assert found[0].reason == "the controller “memory” is not available to this unit"
    (hers,) = differences(Facts(kernel=bare, scope=True, user=True, properties={"TasksMax": 5}))
    assert hers.reason == "the controller “pids” is not delegated to this user's service manager"


def test_nothing_was_limited_so_that_no_controller_is_missing() -> None:
    wanted: dict[str, Json] = {
        "TasksMax": "infinity", "MemoryMax": "infinity", "MemoryMin": 0, "CPUWeight": "infinity",
        "CPUQuotaPerSecUSec": "infinity", "IOWeight": "infinity", "AllowedCPUs": [], "IOReadBandwidthMax": [],
        "IOWriteBandwidthMax": [["/dev/vda", "infinity"]], "OOMPolicy": "continue", "MemoryZSwapWriteback": True,
        "CPUSetPartition": "member", "DevicePolicy": "auto", "IPAccounting": False, "ManagedOOMSwap": "auto",
    }  # fmt: skip
    facts = Facts(kernel=Kernel({}), scope=True, user=True, properties=wanted, programs={}, oomd=False)
    assert differences(facts) == []


def test_an_attribute_that_this_kernel_lacks_is_told() -> None:
    without = {name: text for name, text in NEW.items() if name != "io.weight"}
    wanted: dict[str, Json] = {"IOWeight": 200, "IODeviceWeight": [["/dev/vda", 9]]}
    found = differences(Facts(kernel=Kernel(without), scope=True, user=False, properties=wanted))
    assert [(each.effective, each.reason) for each in found] == [(None, "this kernel has no io.weight")] * 2
    # BFQ has a scale of its own.
    bfq = Kernel(without | {"io.bfq.weight": "109\n254:0 10"})
    facts = Facts(
        kernel=bfq, scope=True, user=False, properties=wanted, devices={"/dev/vda": Device("block", "254:0")}
    )
    assert differences(facts) == [
        Difference("IODeviceWeight", "/dev/vda 9", "/dev/vda 10", "the kernel has another value")
    ]


def test_rounding_is_told() -> None:
    wanted = PAGE * 3 + 1
    assert compare({"MemoryMax": wanted}, {"memory.max": str(PAGE * 3)}) == [
        ("MemoryMax", str(wanted), str(PAGE * 3), "rounded down to whole pages of memory")
    ]
    assert values({"CPUQuotaPerSecUSec": 333_333}, {"cpu.max": "33333 100000"}) == [
        ("CPUQuotaPerSecUSec", "333333", "333330")
    ]


def test_periods() -> None:
    assert values({"CPUQuotaPeriodUSec": 100}, {"cpu.max": "500 1000"}) == [
        ("CPUQuotaPeriodUSec", "100", "1000")
    ]
    assert compare({"CPUQuotaPeriodUSec": 50_000}, {"cpu.max": "max 100000"}) == [
        ("CPUQuotaPeriodUSec", "50000", None, "it is the period of a quota, and there is none")
    ]


@pytest.mark.parametrize(
    ("quota", "period", "text"),
    [
        (None, 5000, "max 100000"),
        (250_000, 50_000, "12500 50000"),
        (333_333, None, "33333 100000"),
        (2_000_000, 100, "2000 1000"),
        (500_000, 5_000_000, "500000 1000000"),
        (10_000, 50_000, "1000 100000"),
    ],
)
def test_what_the_manager_makes_of_a_quota(quota: int | None, period: int | None, text: str) -> None:
    assert cpu_max(quota, period) == text


def test_another_value_is_told() -> None:
    assert compare({"CPUWeight": 100}, {"cpu.weight": "99"}) == [
        ("CPUWeight", "100", "99", "the kernel has another value")
    ]
    assert values({"CPUWeight": 0}, {"cpu.weight": "1"}) == [("CPUWeight", "idle", "1")]
    assert values({"CPUWeight": 5}, {"cpu.idle": "1"}) == [("CPUWeight", "5", "idle")]
    assert values({"OOMPolicy": "kill"}) == [("OOMPolicy", "kill", "stop")]
    assert values({"CPUSetPartition": "root"}, {"cpuset.cpus.partition": "root invalid (No way)"}) == [
        ("CPUSetPartition", "root", "root")
    ]


def test_what_counts_only_during_startup() -> None:
    reason = "it is in force only while the system starts up or shuts down"
    assert compare({"StartupCPUWeight": 300, "CPUWeight": 50}, {"cpu.weight": "50"}) == [
        ("StartupCPUWeight", "300", "50", reason)
    ]
    assert compare({"StartupMemoryMax": MIB}) == [("StartupMemoryMax", str(MIB), "infinity", reason)]
    assert compare({"StartupMemoryLow": MIB}) == [("StartupMemoryLow", str(MIB), "0", reason)]
    assert compare({"StartupIOWeight": 7}) == [("StartupIOWeight", "7", "100", reason)]
    assert compare({"StartupAllowedCPUs": [1]}) == [("StartupAllowedCPUs", "0", "0-3", reason)]
    # And while it starts up, the usual ones are not.
    assert compare({"StartupCPUWeight": 300, "CPUWeight": 50}, {"cpu.weight": "300"}) == [
        ("CPUWeight", "50", "300", "StartupCPUWeight= is in force while the system starts up or shuts down")
    ]


@pytest.mark.parametrize(
    ("name", "wanted", "attribute", "own", "lower", "effective"),
    [
        ("MemoryMax", 1 << 30, "memory.max", str(1 << 30), str(MIB), str(MIB)),
        ("MemoryMax", "infinity", "memory.max", "max", str(MIB), str(MIB)),
        ("StartupMemoryMax", 1 << 30, "memory.max", str(1 << 30), str(MIB), str(MIB)),
        ("MemorySwapMax", MIB, "memory.swap.max", str(MIB), "0", "0"),
        ("MemoryZSwapMax", MIB, "memory.zswap.max", str(MIB), "0", "0"),
        ("TasksMax", 200, "pids.max", "200", "50", "50"),
        ("CPUQuotaPerSecUSec", 500_000, "cpu.max", "50000 100000", "1000 10000", "100000"),
        ("CPUQuotaPerSecUSec", "infinity", "cpu.max", "max 100000", "1000 10000", "100000"),
    ],
)
def test_a_lower_limit_above_is_told(
    name: str, wanted: Json, attribute: str, own: str, lower: str, effective: str
) -> None:
    for above in ({attribute: lower}, {}), ({}, {attribute: lower}):
        where = "/a.slice/a-b.slice" if above[0] else "/a.slice"
        assert compare({name: wanted}, {attribute: own}, *above) == [
            (name, str(wanted), effective, f"{where} has a lower limit")
        ]
    assert compare({name: wanted}, {attribute: own}, {attribute: own}) == []


def test_a_lower_limit_above_a_share_is_told() -> None:
    own = {"memory.max": str(1 << 30), "pids.max": "3000"}
    above = {"memory.max": str(MIB), "pids.max": "20"}
    shares: dict[str, Json] = {"MemoryMaxScale": 2**31, "TasksMaxScale": 2**32 // 10}
    assert values(shares, own, above) == [
        ("MemoryMaxScale", "50%", str(MIB)),
        ("TasksMaxScale", "10%", "20"),
    ]
    # What slows a machine down at less than its limit is a limit too.
    assert values({"MemoryHigh": 1 << 30}, {"memory.high": str(1 << 30)}, {"memory.max": str(MIB)}) == [
        ("MemoryHigh", str(1 << 30), str(MIB))
    ]


def test_the_lowest_limit_above_counts() -> None:
    own = {"pids.max": "200"}
    assert values({"TasksMax": 200}, own, {"pids.max": "50"}, {"pids.max": "100"}) == [
        ("TasksMax", "200", "50")
    ]
    assert values({"TasksMax": 200}, own, {"pids.max": "50"}, {"pids.max": "20"}) == [
        ("TasksMax", "200", "20")
    ]


def test_what_nothing_above_protects_is_not_protected() -> None:
    own = {"memory.min": str(32 * MIB), "memory.low": str(32 * MIB)}
    wanted: dict[str, Json] = {"MemoryMin": 32 * MIB, "MemoryLow": 32 * MIB}
    text = str(32 * MIB)
    assert compare(wanted, own, {"memory.min": text, "memory.low": str(MIB)}) == [
        ("MemoryLow", text, str(MIB), "/a.slice protects less, and nothing below it is protected any better")
    ]
    assert compare({"MemoryMin": 32 * MIB}, own, {}) == [
        ("MemoryMin", text, "0", "/a.slice protects nothing, and nothing below it is protected any better")
    ]
    assert values({"MemoryMinScale": 2**31}, own, {}) == [("MemoryMinScale", "50%", "0")]
    # Spread over all that is below, only what the uppermost has counts.
    middle: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {"memory.min": "max"})
    assert compare({"MemoryMin": 32 * MIB}, own, *middle) == []
    assert values({"MemoryMin": 32 * MIB}, own, *middle, recursive=False) == [("MemoryMin", text, "0")]


def test_defaults_for_what_is_below_are_of_no_use_to_a_leaf() -> None:
    assert values({"DefaultMemoryLow": MIB, "DefaultMemoryMin": 0}) == [("DefaultMemoryLow", str(MIB), None)]


def test_sets_of_which_something_is_missing_are_told() -> None:
    own = {"cpuset.cpus": "0-7", "cpuset.cpus.effective": "0-3"}
    assert compare({"AllowedCPUs": [255]}, own) == [
        ("AllowedCPUs", "0-7", "0-3", "the others are not there, or not allowed by a slice above")
    ]
    assert compare({"AllowedCPUs": [0, 1]}, {"cpuset.cpus": "8"}) == [
        ("AllowedCPUs", "8", "0-3", "none of them is there and allowed by the slices above")
    ]


def test_devices_that_are_none_are_named() -> None:
    devices = {"/dev/nosuch": None, "/dev/null": Device("char", None), "/etc": Device("file", None),
               "/dev/vda": Device("block", "254:0")}  # fmt: skip
    wanted: dict[str, Json] = {
        "IOReadBandwidthMax": [["/dev/nosuch", 1], ["/dev/null", 2], ["/etc", 3], ["/dev/vda", 4]],
        "IODeviceWeight": [["/dev/nosuch", 5]],
        "IODeviceLatencyTargetUSec": [["/dev/nosuch", 6]],
    }
    own = {"io.max": "254:0 rbps=4"}
    assert compare(wanted, own, devices=devices) == [
        ("IOReadBandwidthMax", "/dev/nosuch 1", None, "there is no /dev/nosuch"),
        ("IOReadBandwidthMax", "/dev/null 2", None, "/dev/null is not a block device, nor on one"),
        ("IOReadBandwidthMax", "/etc 3", None, "/etc is not a block device, nor on one"),
        ("IODeviceWeight", "/dev/nosuch 5", None, "there is no /dev/nosuch"),
        ("IODeviceLatencyTargetUSec", "/dev/nosuch 6", None, "there is no /dev/nosuch"),
    ]
    # One that could not be looked at: the value has to be somewhere.
    assert compare({"IOReadBandwidthMax": [["/srv/a", 4]]}, own) == []
    assert values({"IOReadBandwidthMax": [["/srv/a", 5]]}, own) == [("IOReadBandwidthMax", "/srv/a 5", None)]
    assert values({"IOReadBandwidthMax": [["/dev/vda", 5]]}, own, devices=devices) == [
        ("IOReadBandwidthMax", "/dev/vda 5", "/dev/vda 4")
    ]


def test_rules_for_devices_that_match_nothing() -> None:
    facts: dict[str, Any] = {
        "devices": {
            "/dev/nvidiactl": None,
            "/dev/kvm": Device("char", None),
            "/dev/shm": Device("file", None),
        },
        "drivers": {"char": frozenset({"pts", "mem"}), "block": frozenset({"sd"})},
        "programs": {6: 1},
    }
    rules: Json = [
        ["/dev/nvidiactl", "rw"], ["char-nvidia", "rw"], ["block-pts", "r"], ["/dev/shm", ""],
        ["/dev/kvm", "rw"], ["char-pt*", "rw"], ["char-10", "rw"], ["block-*", "r"], ["/dev/char/1:3", "r"],
    ]  # fmt: skip
    assert compare({"DevicePolicy": "strict", "DeviceAllow": rules}, **facts) == [
        ("DeviceAllow", "/dev/nvidiactl rw", None, "there is no /dev/nvidiactl"),
        ("DeviceAllow", "char-nvidia rw", None, "there is no character device “nvidia” in /proc/devices"),
        ("DeviceAllow", "block-pts r", None, "there is no block device “pts” in /proc/devices"),
        ("DeviceAllow", "/dev/shm", None, "/dev/shm is not a device"),
    ]
    assert paths({"DeviceAllow": rules, "IOReadBandwidthMax": [["/srv", 1]]}) == [
        "/srv", "/dev/nvidiactl", "/dev/shm", "/dev/kvm", "/dev/char/1:3",
    ]  # fmt: skip


LOCALHOST: list[Json] = [*[0] * 15, 1]
PROGRAMS: dict[str, Json] = {
    "DevicePolicy": "strict", "IPAddressDeny": [[2, [10, 0, 0, 0], 8], [10, LOCALHOST, 128]],
    "IPAddressAllow": [[10, [*[0] * 16], 0]], "IPAccounting": True, "SocketBindDeny": [[2, 6, 1, 80]],
    "RestrictNetworkInterfaces": [False, ["eth0", "lo"]], "BPFProgram": [["device", "/sys/fs/bpf/a"]],
    "IPIngressFilterPath": ["/sys/fs/bpf/b"],
}  # fmt: skip


def test_protections_that_take_bpf_programs() -> None:
    whole = {6: 2, 0: 3, 1: 2, 8: 1, 9: 1}
    assert attached(PROGRAMS) == whole
    assert compare(PROGRAMS, programs=whole) == []
    told = compare(PROGRAMS, programs=dict.fromkeys(whole, 0))
    reason = "the kernel has none of the BPF programs that this unit should have"
    assert told == [
        ("DevicePolicy", "strict", None, reason),
        ("IPAddressDeny", "10.0.0.0/8 ::1/128", None, reason),
        ("IPAddressAllow", "::/0", None, reason),
        ("IPAccounting", "yes", None, reason),
        ("SocketBindDeny", "1 rule", None, reason),
        ("RestrictNetworkInterfaces", "~eth0 lo", None, reason),
        ("BPFProgram", "device:/sys/fs/bpf/a", None, reason),
        ("IPIngressFilterPath", "/sys/fs/bpf/b", None, reason),
    ]
    # Those that the manager makes itself are there; those that it was to take from elsewhere are not.
    fewer = values(PROGRAMS, programs=whole | {6: 1, 0: 2})
    assert [name for name, _, _ in fewer] == ["BPFProgram", "IPIngressFilterPath"]
    hers = compare(PROGRAMS, programs={}, user=True)
    assert [each[:1] for each in hers] == [each[:1] for each in told]
    assert {each[3] for each in hers} == {
        "it takes a BPF program, which a user's service manager may not load"
    }


def test_what_systemd_oomd_would_do() -> None:
    wanted: dict[str, Json] = {
        "ManagedOOMMemoryPressure": "kill",
        "ManagedOOMPreference": "avoid",
        "OOMRules": ["a"],
    }
    assert compare(wanted) == []
    assert compare(wanted, oomd=False) == [
        ("ManagedOOMMemoryPressure", "kill", None, "systemd-oomd does not run"),
        ("ManagedOOMPreference", "avoid", None, "systemd-oomd does not run"),
        ("OOMRules", "a", None, "systemd-oomd does not run"),
    ]


def test_writeback_that_a_slice_above_has_off() -> None:
    off = {"memory.zswap.writeback": "0"}
    assert compare({"MemoryZSwapWriteback": True}, {}, off) == [
        ("MemoryZSwapWriteback", "yes", "no", "/a.slice has it off")
    ]
    assert compare({"MemoryZSwapWriteback": False}, off, {}) == []


def test_a_subgroup_is_for_services() -> None:
    assert values({"DelegateSubgroup": "payload"}) == [("DelegateSubgroup", "payload", None)]
    assert compare({"DelegateSubgroup": "payload"}, scope=False) == []


def test_what_the_manager_may_not_give_to_a_process() -> None:
    limits = {
        "Max open files": (1024, 4096),
        "Max locked memory": (8192, 8192),
        "Max cpu time": (None, None),
    }
    process = Process(limits, 0, 100)
    wanted: dict[str, Json] = {
        "LimitNOFILE": 1_000_000, "LimitNOFILESoft": 1024, "LimitMEMLOCK": "infinity", "LimitCPU": 5, "Nice": -5,
        "OOMScoreAdjust": -900, "LimitSTACK": 5,
    }  # fmt: skip
    assert compare(wanted, process=process) == [
        ("LimitNOFILE", "1000000", "4096", "the service manager is not allowed more"),
        ("LimitMEMLOCK", "infinity", "8192", "the service manager is not allowed more"),
        ("Nice", "-5", "0", "the service manager is not allowed more"),
        ("OOMScoreAdjust", "-900", "100", "the service manager is not allowed more"),
    ]
    assert compare(wanted) == []


@given(st.sets(st.integers(0, 300)))
def test_sets_of_numbers(numbers: set[int]) -> None:
    bitmap = sum(1 << number for number in numbers)
    assert set_of_bytes(list(bitmap.to_bytes(40, "little"))) == numbers
    assert set_of_text(set_text(numbers)) == numbers


def test_every_exception_has_a_reason_of_its_own() -> None:
    assert len({exempt.reason for exempt in NOT_COMPARED}) == len(NOT_COMPARED)
    assert why_not("KillMode")
    assert why_not("MemoryMax") is None
    assert why_not("NoSuchProperty") is None


@given(
    st.dictionaries(
        st.sampled_from(sorted(COMPARED)),
        st.integers(-5, 2**64 - 1)
        | st.sampled_from(["infinity", "strict", "kill", True, None, [], [3], ["a"], [["/dev/vda", 7]], [[[]]], {}]),
    ),
    st.dictionaries(st.sampled_from(sorted(NEW)), st.sampled_from(["max", "0", "7", "1 2", "", "8:0 rbps=x", "a b"])),
    st.booleans(),
)  # fmt: skip
def test_whatever_was_asked_for_and_whatever_the_kernel_says(
    properties: dict[str, Json], own: dict[str, str], known: bool
) -> None:
    found = compare(properties, own, own, programs={} if known else None)
    for name, wanted, effective, reason in found:
        assert name in properties
        assert wanted != effective or name == "CPUSetPartition"
        assert reason


def sandboxed(
    namespaced: bool | None, asked: Mapping[str, Json], *, user: bool = True
) -> dict[str, str | None]:
    """What a helper does not have of its sandbox."""
    facts = Facts(
        kernel=Kernel({}),
        scope=False,
        user=user,
        helper=True,
        properties=asked,
        process=Process({}, 0, 0, namespaced),
    )
    return {each.property: each.effective for each in differences(facts)}


def test_what_a_helper_lacks_of_its_sandbox_in_a_user_s_manager() -> None:
    never = ("DynamicUser", "PrivateDevices")
    namespaces = ("ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateNetwork")
    assert sandboxed(True, {}) == dict.fromkeys(never)
    assert sandboxed(None, {}) == dict.fromkeys(never)
    assert sandboxed(False, {}) == dict.fromkeys((*never, *namespaces))
    assert sandboxed(True, {"DynamicUser": False, "PrivateDevices": True}) == {}
    asked: dict[str, Json] = {
        "DynamicUser": False,
        "PrivateDevices": False,
        "ProtectHome": "no",
        "PrivateTmp": False,
        "ProtectSystem": "yes",
    }
    assert sandboxed(False, asked) == dict.fromkeys(("ProtectSystem", "PrivateNetwork"))
    assert sandboxed(False, {}, user=False) == {}


@pytest.mark.parametrize(
    ("properties", "configured", "programs", "told"),
    [
        ({"DevicePolicy": "auto", "DeviceAllow": []}, {}, {6: 1}, ["DevicePolicy"]),
        ({"DeviceAllow": []}, {}, {6: 1}, ["DeviceAllow"]),
        ({"DevicePolicy": "auto"}, {"DeviceAllow": [["/dev/null", "r"]]}, {6: 1}, []),
        ({"DevicePolicy": "auto"}, {"BPFProgram": [["device", "/sys/fs/bpf/a"]]}, {6: 1}, []),
        ({"DevicePolicy": "auto"}, {"BPFProgram": [["device", "/sys/fs/bpf/a"]]}, {6: 2}, ["DevicePolicy"]),
        ({"DevicePolicy": "auto"}, {}, {}, []),
        ({"DevicePolicy": "auto"}, {}, {0: 1, 1: 1}, []),
        ({"IPAddressAllow": [], "IPAddressDeny": []}, {}, {0: 1, 1: 1}, ["IPAddressDeny"]),
        ({"IPAddressAllow": []}, {"IPAccounting": True}, {0: 1, 1: 1}, []),
        ({"IPAddressDeny": []}, {"IPAddressAllow": [[2, [127, 0, 0, 1], 8]]}, {0: 1, 1: 1}, []),
        ({"IPAddressDeny": []}, {"RestrictNetworkInterfaces": [True, ["lo"]]}, {0: 1, 1: 1}, []),
        ({"IPAddressDeny": []}, {"RestrictNetworkInterfaces": [False, []]}, {0: 1, 1: 1}, ["IPAddressDeny"]),
    ],
)
def test_programs_of_rules_that_are_no_more(
    properties: dict[str, Json], configured: dict[str, Json], programs: dict[int, int], told: list[str]
) -> None:
    nothing: dict[str, Json] = {
        "DevicePolicy": "auto", "DeviceAllow": [], "IPAccounting": False, "IPAddressAllow": [], "IPAddressDeny": [],
        "IPIngressFilterPath": [], "IPEgressFilterPath": [], "RestrictNetworkInterfaces": [False, []],
        "BPFProgram": [],
    }  # fmt: skip
    found = compare(properties, {}, configured=nothing | configured, programs=programs)
    assert [each[0] for each in found] == told
    # Of a unit that has just been started nothing of before can be left.
    assert compare(properties, {}, programs=programs) == []
