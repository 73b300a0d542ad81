"""What is said of limits that are not in force as they were asked for.

The files are those of a control group (cgroup-v2.rst), in a directory of the test's own: which controllers the real
one has depends on the machine.
"""

import mmap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moorage.machines.limits import Difference, differences
from moorage.pid1 import cgroup
from moorage.pid1.manager import Json

GROUP = "/machine.slice/machine-web.scope"


@pytest.fixture
def hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the hierarchy, with a group in it that has no limits."""
    monkeypatch.setattr(cgroup, "ROOT", str(tmp_path))
    (tmp_path / GROUP[1:]).mkdir(parents=True)
    for group in (GROUP, "/machine.slice"):
        for attribute in ("memory.high", "memory.max", "memory.swap.max", "pids.max"):
            write(tmp_path, attribute, "max", group)
        for attribute in ("memory.min", "memory.low"):
            write(tmp_path, attribute, "0", group)
        write(tmp_path, "cpu.max", "max 100000", group)
        write(tmp_path, "cpu.weight", "100", group)
        write(tmp_path, "cgroup.controllers", "cpu io memory pids", group)
    return tmp_path


def write(hierarchy: Path, attribute: str, value: str, group: str = GROUP) -> None:
    (hierarchy / group[1:] / attribute).write_text(value + "\n")


@pytest.mark.parametrize(
    ("name", "value", "attribute", "text"),
    [
        ("MemoryMax", 1 << 30, "memory.max", str(1 << 30)),
        ("MemoryHigh", 1 << 20, "memory.high", str(1 << 20)),
        ("MemoryMin", 0, "memory.min", "0"),
        ("MemoryLow", 4096, "memory.low", "4096"),
        ("MemorySwapMax", 0, "memory.swap.max", "0"),
        ("MemoryMax", "infinity", "memory.max", "max"),
        ("TasksMax", 16384, "pids.max", "16384"),
        ("TasksMax", "infinity", "pids.max", "max"),
        ("TasksMax", 2**64 - 1, "pids.max", "max"),
        ("CPUWeight", "infinity", "cpu.weight", "100"),
        ("CPUWeight", 500, "cpu.weight", "500"),
        ("CPUQuotaPerSecUSec", 500_000, "cpu.max", "50000 100000"),
        ("CPUQuotaPerSecUSec", 2_000_000, "cpu.max", "200000 100000"),
        ("CPUQuotaPerSecUSec", "infinity", "cpu.max", "max 100000"),
        ("CPUQuotaPeriodUSec", "infinity", "cpu.max", "1000 100000"),
        ("CPUQuotaPeriodUSec", 2000, "cpu.max", "1000 2000"),
        ("IOWeight", 5, "cgroup.controllers", "io"),
        ("IOReadBandwidthMax", [["/", 1]], "cgroup.controllers", "memory io"),
        ("IOWeight", "infinity", "cgroup.controllers", ""),
        ("IOReadBandwidthMax", [], "cgroup.controllers", ""),
        ("AllowedCPUs", [1], "cgroup.controllers", "cpuset"),
    ],
)
def test_what_is_in_force_is_not_told(
    hierarchy: Path, name: str, value: Json, attribute: str, text: str
) -> None:
    write(hierarchy, attribute, text)
    assert differences(GROUP, {name: value}) == []


def test_a_missing_controller_is_told(hierarchy: Path) -> None:
    for path in (hierarchy / GROUP[1:]).iterdir():
        path.unlink()
    wanted: dict[str, Json] = {
        "MemoryMax": 4096,
        "TasksMax": "infinity",
        "CPUWeight": 5,
        "CPUQuotaPerSecUSec": 7,
        "IOWeight": 7,
        "IOWriteIOPSMax": [["/", 9]],
        "AllowedCPUs": [1],
    }
    assert differences(GROUP, wanted) == [
        Difference("MemoryMax", "4096", None, "the controller “memory” is not available to this unit"),
        Difference("TasksMax", "max", None, "the controller “pids” is not available to this unit"),
        Difference("CPUWeight", "5", None, "the controller “cpu” is not available to this unit"),
        Difference("CPUQuotaPerSecUSec", "7", None, "the controller “cpu” is not available to this unit"),
        Difference("IOWeight", "7", None, "the controller “io” is not available to this unit"),
        Difference(
            "IOWriteIOPSMax", '[["/", 9]]', None, "the controller “io” is not available to this unit"
        ),
        Difference("AllowedCPUs", "[1]", None, "the controller “cpuset” is not available to this unit"),
    ]


def test_rounding_is_told(hierarchy: Path) -> None:
    write(hierarchy, "memory.max", str(mmap.PAGESIZE * 3))
    assert differences(GROUP, {"MemoryMax": mmap.PAGESIZE * 3 + 1}) == [
        Difference(
            "MemoryMax", str(mmap.PAGESIZE * 3 + 1), str(mmap.PAGESIZE * 3), "rounded down to whole pages"
        )
    ]
    write(hierarchy, "cpu.max", "33333 100000")
    (difference,) = differences(GROUP, {"CPUQuotaPerSecUSec": 333_333})
    assert (difference.wanted, difference.effective) == ("333333", "333330")
    assert "100000 µs" in difference.reason


def test_a_period_that_was_changed_is_told(hierarchy: Path) -> None:
    write(hierarchy, "cpu.max", "500 1000")
    (difference,) = differences(GROUP, {"CPUQuotaPeriodUSec": 100})
    assert (difference.wanted, difference.effective) == ("100", "1000")


def test_another_value_is_told(hierarchy: Path) -> None:
    write(hierarchy, "cpu.weight", "99")
    assert differences(GROUP, {"CPUWeight": 100}) == [
        Difference("CPUWeight", "100", "99", "the kernel has another value")
    ]


def test_an_idle_group_has_no_weight(hierarchy: Path) -> None:
    write(hierarchy, "cpu.weight", "1")
    assert [found.effective for found in differences(GROUP, {"CPUWeight": 0})] == ["1"]
    write(hierarchy, "cpu.idle", "1")
    assert differences(GROUP, {"CPUWeight": 0}) == []


def test_a_lower_limit_above_is_told(hierarchy: Path) -> None:
    write(hierarchy, "memory.max", str(1 << 30))
    write(hierarchy, "memory.max", str(1 << 20), "/machine.slice")
    (difference,) = differences(GROUP, {"MemoryMax": 1 << 30})
    assert difference == Difference(
        "MemoryMax", str(1 << 30), str(1 << 20), "/machine.slice has a lower limit"
    )
    write(hierarchy, "memory.max", "max")
    (difference,) = differences(GROUP, {"MemoryMax": "infinity"})
    assert (difference.wanted, difference.effective) == ("max", str(1 << 20))
    # A higher one is no matter, nor is one above a guarantee.
    write(hierarchy, "memory.max", "4096")
    write(hierarchy, "memory.min", "8192")
    assert differences(GROUP, {"MemoryMax": 4096, "MemoryMin": 8192}) == []


def test_the_lowest_limit_above_counts(hierarchy: Path) -> None:
    inner = "/machine.slice/machine-a.slice/machine-web.scope"
    (hierarchy / inner[1:]).mkdir(parents=True)
    write(hierarchy, "pids.max", "100", "/machine.slice")
    write(hierarchy, "pids.max", "50", "/machine.slice/machine-a.slice")
    write(hierarchy, "pids.max", "200", inner)
    (difference,) = differences(inner, {"TasksMax": 200})
    assert difference == Difference(
        "TasksMax", "200", "50", "/machine.slice/machine-a.slice has a lower limit"
    )
    write(hierarchy, "pids.max", "20", "/machine.slice")
    (difference,) = differences(inner, {"TasksMax": 200})
    assert difference == Difference("TasksMax", "200", "20", "/machine.slice has a lower limit")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["MemoryMax", "MemoryMin", "TasksMax", "CPUWeight", "CPUQuotaPerSecUSec"]),
        st.integers(0, 2**64 - 1) | st.just("infinity"),
    ),
    st.dictionaries(
        st.sampled_from(["KillMode", "Delegate", "After", ""]), st.booleans() | st.text() | st.none()
    ),
)
def test_whatever_the_manager_has_agreed_to(
    hierarchy: Path, limits: dict[str, Json], others: dict[str, Json]
) -> None:
    for difference in differences(GROUP, {**limits, **others}):
        assert difference.property in limits
        assert difference.wanted != difference.effective
