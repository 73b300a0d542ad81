"""What is read of a control group, and what is foreseen of one that is not there yet."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from moorage.kernel import cgroup
from moorage.machines.compared.table import differences
from moorage.machines.foreseen import Foreseen, slice_path
from moorage.machines.in_force import Group
from moorage.machines.limits import Device, Facts
from moorage.pid1.manager import Json

GROUP = "/machine.slice/machine-a.slice/machine-web.scope"
CONTROLLERS = "cpuset cpu io memory pids"


@pytest.fixture
def hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the hierarchy, with a group two slices below."""
    monkeypatch.setattr(cgroup, "ROOT", str(tmp_path))
    monkeypatch.setattr(cgroup, "manager_root", lambda: "")
    (tmp_path / GROUP[1:]).mkdir(parents=True)
    write(tmp_path, "cgroup.controllers", CONTROLLERS, "")
    write(tmp_path, "pids.max", "7", "")  # the root has none in fact, and counts for nothing
    return tmp_path


def write(hierarchy: Path, attribute: str, value: str, group: str = GROUP) -> None:
    (hierarchy / group[1:] / attribute).write_text(value + "\n")


def test_a_group_and_those_above(hierarchy: Path) -> None:
    write(hierarchy, "pids.max", "200")
    write(hierarchy, "pids.max", "max", "/machine.slice")
    group = Group(GROUP)
    assert group.read("pids.max") == "200"
    assert group.read("memory.max") is None
    assert group.above("pids.max") == [("/machine.slice", "max")]
    write(hierarchy, "pids.max", "50", "/machine.slice/machine-a.slice")
    write(hierarchy, "pids.max", "100")
    write(hierarchy, "memory.max", "1")
    assert (group.read("pids.max"), group.read("memory.max")) == ("200", None), "of one moment"
    assert group.above("pids.max") == [("/machine.slice", "max")]
    later = Group(GROUP)
    assert later.read("pids.max") == "100"
    assert later.above("pids.max") == [("/machine.slice/machine-a.slice", "50"), ("/machine.slice", "max")]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("machine.slice", "/machine.slice"),
        ("a-b-c.slice", "/a.slice/a-b.slice/a-b-c.slice"),
        ("-.slice", ""),
        (r"a\x2db.slice", r"/a\x2db.slice"),
    ],
)
def test_the_path_of_a_slice(name: str, path: str) -> None:
    assert slice_path(name) == path


def foreseen(
    properties: Mapping[str, Json], slice_: str = "machine-a.slice"
) -> dict[str, tuple[str, str | None]]:
    devices = {"/dev/vda": Device("block", "254:0"), "/dev/nosuch": None}
    kernel = Foreseen(slice_, properties, devices)
    facts = Facts(kernel=kernel, scope=True, user=False, properties=properties, devices=devices)
    return {each.property: (each.wanted, each.effective) for each in differences(facts)}


def test_what_will_be_rounded_or_undercut_is_foreseen(hierarchy: Path) -> None:
    asked: dict[str, Json] = {
        "MemoryMax": 4097, "MemoryMin": 4096, "MemorySwapMax": 0, "TasksMax": 100, "CPUWeight": 0, "IOWeight": 50,
        "CPUQuotaPerSecUSec": 500_000, "CPUQuotaPeriodUSec": 100, "OOMPolicy": "kill", "MemoryZSwapWriteback": False,
        "IOReadBandwidthMax": [["/dev/vda", 5], ["/dev/nosuch", 6]], "IODeviceWeight": [["/dev/vda", 7]],
        "IODeviceLatencyTargetUSec": [["/dev/vda", 8]], "AllowedCPUs": [255], "StartupCPUWeight": 5,
        "MemoryMaxScale": 2**31,
    }  # fmt: skip
    write(hierarchy, "cpuset.cpus.effective", "0-3", "")
    write(hierarchy, "memory.min", "0", "/machine.slice")
    write(hierarchy, "pids.max", "50", "/machine.slice/machine-a.slice")
    assert foreseen(asked) == {
        "MemoryMin": ("4096", "0"),
        "TasksMax": ("100", "50"),
        "CPUQuotaPeriodUSec": ("100", "2000"),
        "IOReadBandwidthMax": ("/dev/nosuch 6", None),
        "AllowedCPUs": ("0-7", "0-3"),
        "StartupCPUWeight": ("5", "idle"),
    }
    del asked["MemoryMaxScale"]  # how much that is, only the manager knows
    assert foreseen(asked)["MemoryMax"] == ("4097", "4096")


def test_what_the_manager_has_no_controller_for_is_foreseen(hierarchy: Path) -> None:
    write(hierarchy, "cgroup.controllers", "pids", "")
    asked: dict[str, Json] = {
        "MemoryMax": 4096,
        "TasksMax": 5,
        "CPUWeight": "infinity",
        "DelegateControllers": ["io"],
    }
    assert foreseen(asked) == {"MemoryMax": ("4096", None), "DelegateControllers": ("io", None)}


def test_what_the_slice_lacks_its_machines_will_lack(hierarchy: Path) -> None:
    asked: dict[str, Json] = {"IOWeight": 50}
    assert foreseen(asked) == {}
    write(hierarchy, "cgroup.controllers", "io", "/machine.slice/machine-a.slice")
    assert foreseen(asked) == {"IOWeight": ("50", None)}
    assert foreseen(asked, "other.slice") == {}
