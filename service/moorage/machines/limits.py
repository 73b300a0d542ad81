"""Limits as asked for, and as they are in force: the manager says yes to what the kernel then rounds or ignores.

What is in force is read from the control group (cgroup-v2.rst of the kernel), where no rounding and no missing
controller can hide (systemd issue 9641: limits that fail silently).
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping

import msgspec

from moorage.pid1 import cgroup
from moorage.pid1.manager import Json

_MEMORY = {
    "MemoryMin": "memory.min",
    "MemoryLow": "memory.low",
    "MemoryHigh": "memory.high",
    "MemoryMax": "memory.max",
    "MemorySwapMax": "memory.swap.max",
}
_CEILINGS = {"MemoryHigh", "MemoryMax", "MemorySwapMax", "TasksMax"}  # a lower one above is in force below
_INFINITY = ("infinity", 2**64 - 1)
_PLAIN = {"TasksMax": "pids.max", "CPUWeight": "cpu.weight"}
_CPU_MAX = {"CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec"}
_UNREADABLE = {
    **dict.fromkeys(("AllowedCPUs", "AllowedMemoryNodes"), "cpuset"),
    **dict.fromkeys(
        (
            "IOWeight", "IODeviceWeight", "IODeviceLatencyTargetUSec",
            "IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax",
        ),
        "io",
    ),
}  # fmt: skip
"""What the kernel keeps in other words (sets, a line for each device), of which only a missing controller is told."""


class Difference(msgspec.Struct, frozen=True):
    """A property whose value in force is not the one asked for.

    Attributes:
        property: its name.
        wanted: the value asked for.
        effective: the value in force; None if there is none at all.
        reason: why, in words.
    """

    property: str
    wanted: str
    effective: str | None
    reason: str


def differences(control_group: str, properties: Mapping[str, Json]) -> list[Difference]:
    """Compare properties that were set on a unit with what the kernel made of them.

    Args:
        control_group: path of the unit's group.
        properties: names and values as they were asked for.

    Returns:
        Those that differ, of the properties that have one attribute of the group to compare with; and those whose
        controller is missing.
    """
    found = [_compare(control_group, name, value) for name, value in properties.items()]
    return [difference for difference in found if difference is not None]


def _compare(control_group: str, name: str, value: Json) -> Difference | None:
    if name in _UNREADABLE:
        return _compare_controller(control_group, name, value)
    attribute = _MEMORY.get(name) or _PLAIN.get(name) or ("cpu.max" if name in _CPU_MAX else None)
    if attribute is None or isinstance(value, bool) or not isinstance(value, int | str):
        return None
    wanted = "max" if value in _INFINITY else str(value)
    if wanted == "max" and name in {"CPUWeight", "CPUQuotaPeriodUSec"}:
        return None  # of these it means "not set"
    text = cgroup.attribute(control_group, attribute)
    if text is None:
        return _without(attribute.partition(".")[0], name, wanted)
    if name == "CPUQuotaPerSecUSec":
        return _compare_quota(name, wanted, text)
    if name == "CPUQuotaPeriodUSec":
        return _compare_period(name, wanted, text)
    if name in _CEILINGS and (above := _ceiling(control_group, attribute)) is not None:
        path, limit = above
        if _as_number(limit) < _as_number(wanted):
            return Difference(name, wanted, limit, f"{path} has a lower limit")
    if text == wanted:
        return None
    if name == "CPUWeight" and wanted == "0" and cgroup.attribute(control_group, "cpu.idle") == "1":
        return None  # CGROUP_WEIGHT_IDLE: the weight of an idle group reads as 1, or as 0
    rounded = (
        name in _MEMORY and wanted != "max" and text == str(int(wanted) // mmap.PAGESIZE * mmap.PAGESIZE)
    )
    return Difference(
        name, wanted, text, "rounded down to whole pages" if rounded else "the kernel has another value"
    )


def _without(controller: str, name: str, wanted: str) -> Difference:
    return Difference(name, wanted, None, f"the controller “{controller}” is not available to this unit")


def _compare_controller(control_group: str, name: str, value: Json) -> Difference | None:
    there = cgroup.attribute(control_group, "cgroup.controllers") or ""
    if _UNREADABLE[name] in there.split() or value in _INFINITY or value == []:
        return None
    return _without(_UNREADABLE[name], name, json.dumps(value))


def _compare_quota(name: str, wanted: str, text: str) -> Difference | None:
    quota, period = text.split()
    effective = "max" if quota == "max" else str(int(quota) * 1_000_000 // int(period))
    if effective == wanted:
        return None
    return Difference(name, wanted, effective, f"rounded to whole µs of a period of {period} µs")


def _compare_period(name: str, wanted: str, text: str) -> Difference | None:
    # cgroup_cpu_adjust_period() of systemd's src/core/cgroup.c: between 1 ms and 1 s, and the quota at least 1 ms.
    period = text.split()[1]
    if period == wanted:
        return None
    return Difference(
        name, wanted, period, "the quota needs a period that the kernel accepts, of 1 ms to 1 s"
    )


def _ceiling(control_group: str, attribute: str) -> tuple[str, str] | None:
    """Return the lowest limit among the groups above, with the group that has it."""
    lowest: tuple[str, str] | None = None
    path = control_group.rpartition("/")[0]
    while path:
        limit = cgroup.attribute(path, attribute)
        if (
            limit is not None
            and limit != "max"
            and (lowest is None or _as_number(limit) < _as_number(lowest[1]))
        ):
            lowest = path, limit
        path = path.rpartition("/")[0]
    return lowest


def _as_number(limit: str) -> int:
    return 2**64 if limit == "max" else int(limit)
