"""Properties as people write them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.cli.properties import convert


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MemoryMax=1G", {"MemoryMax": 1 << 30}),
        ("MemoryMax=infinity", {"MemoryMax": "infinity"}),
        ("MemoryMax=", {"MemoryMax": "infinity"}),
        ("MemoryLow=", {"MemoryLow": 0}),
        ("MemoryMax=50%", {"MemoryMaxScale": 2147483648}),
        ("MemoryHigh=100%", {"MemoryHighScale": 2**32 - 1}),
        ("MemoryHigh=200%", {"MemoryHighScale": 2**32 - 1}),
        ("TasksMax=100", {"TasksMax": 100}),
        ("TasksMax=12.5%", {"TasksMaxScale": 536870912}),
        ("CPUQuota=50%", {"CPUQuotaPerSecUSec": 500_000}),
        ("CPUQuota=250%", {"CPUQuotaPerSecUSec": 2_500_000}),
        ("CPUQuota=", {"CPUQuotaPerSecUSec": "infinity"}),
        ("CPUQuotaPeriodSec=10ms", {"CPUQuotaPeriodUSec": 10_000}),
        ("CPUWeight=200", {"CPUWeight": 200}),
        ("CPUWeight=idle", {"CPUWeight": 0}),
        ("IOWeight=", {"IOWeight": "infinity"}),
        ("AllowedCPUs=0-3,8 9", {"AllowedCPUs": [15, 3]}),
        ("AllowedCPUs=", {"AllowedCPUs": []}),
        ("TimeoutStopSec=5s", {"TimeoutStopUSec": 5_000_000}),
        ("TimeoutStopSec=infinity", {"TimeoutStopUSec": "infinity"}),
        ("RuntimeMaxSec=1h 30min", {"RuntimeMaxUSec": 5_400_000_000}),
        ("Delegate=yes", {"Delegate": True}),
        ("Delegate=cpu memory", {"DelegateControllers": ["cpu", "memory"]}),
        ("KillSignal=SIGINT", {"KillSignal": 2}),
        ("SendSIGHUP=on", {"SendSIGHUP": True}),
        ("OOMPolicy=kill", {"OOMPolicy": "kill"}),
        ("After=a.service 'b c.service'", {"After": ["a.service", "b c.service"]}),
        ("DeviceAllow=/dev/kvm rw", {"DeviceAllow": [["/dev/kvm", "rw"]]}),
        ("DeviceAllow=char-pts", {"DeviceAllow": [["char-pts", ""]]}),
        ('DeviceAllow=[["/dev/kvm","rw"]]', {"DeviceAllow": [["/dev/kvm", "rw"]]}),
        ("IOReadBandwidthMax=/dev/vda 10M", {"IOReadBandwidthMax": [["/dev/vda", 10_000_000]]}),
        ("IOWriteIOPSMax=/dev/vda infinity", {"IOWriteIOPSMax": [["/dev/vda", "infinity"]]}),
        ("IODeviceWeight=/dev/vda 200", {"IODeviceWeight": [["/dev/vda", 200]]}),
        ("IODeviceLatencyTargetSec=/dev/vda 25ms", {"IODeviceLatencyTargetUSec": [["/dev/vda", 25_000]]}),
        ("IPAddressAllow=192.0.2.1", {"IPAddressAllow": [[2, [192, 0, 2, 1], 32]]}),
        ("IPAddressDeny=any", {"IPAddressDeny": [[2, [0] * 4, 0], [10, [0] * 16, 0]]}),
        ("BPFProgram=egress:/sys/fs/bpf/x", {"BPFProgram": [["egress", "/sys/fs/bpf/x"]]}),
        ("ManagedOOMMemoryPressureLimit=60%", {"ManagedOOMMemoryPressureLimit": 2576980377}),
        ("CPUQuotaPerSecUSec=500000", {"CPUQuotaPerSecUSec": 500_000}),
        ("Whatever=true", {"Whatever": True}),
        ('Whatever="text"', {"Whatever": "text"}),
    ],
)  # fmt: skip
def test_one(text: str, expected: dict[str, Any]) -> None:
    assert convert([text]) == expected


def test_lists_are_joined_and_reset_and_other_values_replaced() -> None:
    assert convert(["After=a b", "After=c"]) == {"After": ["a", "b", "c"]}
    assert convert(["After=a b", "After=", "After=c"]) == {"After": ["c"]}
    assert convert(["DeviceAllow=/dev/a r", "DeviceAllow=/dev/b w"]) == {
        "DeviceAllow": [["/dev/a", "r"], ["/dev/b", "w"]]
    }
    assert convert(["AllowedCPUs=0", "AllowedCPUs=1"]) == {"AllowedCPUs": [2]}
    assert convert(["TasksMax=1", "TasksMax=2"]) == {"TasksMax": 2}
    assert list(convert(["MemoryMax=1", "MemoryMax=50%", "MemoryMax=2"])) == ["MemoryMaxScale", "MemoryMax"]


@pytest.mark.parametrize(
    "text",
    [
        "MemoryMax", "Memory Max=1", "MemoryMax=-1", "MemoryMax=1X", "MemoryMax=1M1G", "MemoryMax=9999E",
        "MemoryMax=[1", "TasksMax=1K", "TasksMax=18446744073709551616", "CPUQuota=0%", "CPUQuota=50",
        "CPUQuota=12.345%", "AllowedCPUs=3-0", "AllowedCPUs=9999", "TimeoutStopSec=", "TimeoutStopSec=5 apples",
        "TimeoutStopSec=-5s", "Delegate='", "KillSignal=SIGNONE", "SendSIGHUP=maybe", "IOReadBandwidthMax=/dev/vda",
        "IPAddressAllow=300.0.0.1", "BPFProgram=/sys/fs/bpf/x", "Odd=text", "Odd=NaN", "Odd=Infinity",
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=text.partition("=")[0]):
        convert([text])


@pytest.mark.parametrize("text", ["", "=1", "A.b=1"])
def test_what_is_no_assignment(text: str) -> None:
    with pytest.raises(ValueError, match="is not NAME=VALUE"):
        convert([text])


NAMES = [
    "MemoryMax",
    "TimeoutStopSec",
    "AllowedCPUs",
    "CPUQuota",
    "Delegate",
    "IPAddressDeny",
    "KillSignal",
    "Odd",
]


@given(st.sampled_from(NAMES), st.text())
def test_any_text_is_converted_or_refused(name: str, text: str) -> None:
    try:
        converted = convert([f"{name}={text}"])
    except ValueError:
        return
    assert len(converted) == 1
