"""CPU: weights, quotas, and the CPUs and memory nodes that are allowed.

The rules of the service manager are those of src/core/cgroup.c of systemd 257 to 262.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from moorage.machines.compared.values import (
    INFINITY,
    ONLY_DURING_STARTUP,
    STARTUP,
    below,
    limit_text,
    missing,
    other_value,
    set_of_bytes,
    set_of_text,
    set_text,
    upwards,
    wanted_number,
)
from moorage.machines.limits import Comparison, Difference, Facts
from moorage.pid1.manager import Json

PERIOD_USEC: Final = 100_000
"""Period of a quota that has none, µs (``CGROUP_CPU_QUOTA_DEFAULT_PERIOD_USEC``)."""
PERIOD_MIN_USEC: Final = 1_000
PERIOD_MAX_USEC: Final = 1_000_000
"""Bounds of periods and quotas, µs, which are the kernel's (``cgroup_cpu_adjust_period()``)."""


def cpu_weight(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Compare a weight, of which 0 stands for idle."""
    wanted = wanted_number(value)
    if wanted is None:
        return  # not set
    shown = str(wanted) if wanted else "idle"
    text, idle = facts.kernel.read("cpu.weight"), facts.kernel.read("cpu.idle") == "1"
    if text is None:
        yield Difference(name, shown, None, missing("cpu.weight", facts))
        return
    effective = _weight(text, idle=idle)
    if effective != wanted:
        other = other_value(name, wanted, effective, facts, pages=False)
        yield Difference(name, shown, "idle" if idle else text, other.reason)


def _weight(text: str, *, idle: bool) -> int:
    # CGROUP_WEIGHT_IDLE: the weight of an idle group reads as 1, or as 0.
    return 0 if idle else int(text)


def weight_in_force(facts: Facts) -> Json:
    """Return the weight of a group among its siblings; None if this kernel weighs nothing."""
    text = facts.kernel.read("cpu.weight")
    return None if text is None else _weight(text, idle=facts.kernel.read("cpu.idle") == "1")


def _quota_per_second(text: str) -> int | None:
    """A quota of ``cpu.max`` in µs per second."""
    quota, period = text.split()
    return None if quota == "max" else int(quota) * 1_000_000 // int(period)


def quota_in_force(facts: Facts) -> tuple[int, int] | None:
    """Return the lowest quota of a group and of those above, in µs per second, and its period in µs; None for none."""
    quotas = [(limit, int(text.split()[1])) for text in upwards("cpu.max", facts)
              if (limit := _quota_per_second(text)) is not None]  # fmt: skip
    return min(quotas, key=lambda quota: quota[0], default=None)


def quota(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Compare a quota of CPU time, and with those of the groups above."""
    wanted = wanted_number(value)
    text = facts.kernel.read("cpu.max")
    if text is None:
        if wanted is not None:
            yield Difference(name, str(wanted), None, missing("cpu.max", facts))
        return
    effective = _quota_per_second(text)
    above = [(path, limit) for path, each in facts.kernel.above("cpu.max")
             if (limit := _quota_per_second(each)) is not None]  # fmt: skip
    lowest = min(above, key=lambda limit: limit[1], default=None)
    if lowest is not None and below(lowest[1], effective):
        yield Difference(name, limit_text(wanted), str(lowest[1]), f"{lowest[0]} has a lower limit")
    elif effective != wanted:
        close = effective is not None and wanted is not None
        reason = "rounded to whole microseconds of each period" if close else "the kernel has another value"
        yield Difference(name, limit_text(wanted), limit_text(effective), reason)


def period(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Compare the period of a quota."""
    wanted = wanted_number(value)
    if wanted is None:
        return  # not set
    text = facts.kernel.read("cpu.max")
    # For a period alone the manager does not even enable the controller.
    if (text or "max").startswith("max") and wanted_number(
        facts.properties.get("CPUQuotaPerSecUSec", INFINITY)
    ) is None:
        yield Difference(name, str(wanted), None, "it is the period of a quota, and there is none")
    elif text is None:
        yield Difference(name, str(wanted), None, missing("cpu.max", facts))
    elif (period := text.split()[1]) != str(wanted):
        reason = "the quota needs a period that the kernel accepts, of 1 ms to 1 s"
        yield Difference(name, str(wanted), period, reason)


def cpu_max(quota: int | None, period: int | None) -> str:
    """Return what the service manager writes to ``cpu.max`` (``cgroup_cpu_adjust_period()``), µs."""
    if quota is None:
        return f"max {PERIOD_USEC}"
    shortest = PERIOD_MIN_USEC * 1_000_000 // quota if quota else PERIOD_MAX_USEC
    period = min(max(period or PERIOD_USEC, PERIOD_MIN_USEC, shortest), PERIOD_MAX_USEC)
    return f"{max(quota * period // 1_000_000, PERIOD_MIN_USEC)} {period}"


def cpuset(attribute: str) -> Comparison:
    """Compare a set of CPUs or memory nodes with what is left of it below the groups above."""

    def compare(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
        wanted = set_of_bytes(value)
        if not wanted:
            return  # not set
        text = facts.kernel.read(f"{attribute}.effective")
        if text is None:
            yield Difference(name, set_text(wanted), None, missing(attribute, facts))
            return
        effective = set_of_text(text)
        if effective == wanted:
            return
        if name.startswith(STARTUP) and set_of_text(facts.kernel.read(attribute) or "") != wanted:
            reason = ONLY_DURING_STARTUP
        elif effective < wanted:
            reason = "the others are not there, or not allowed by a slice above"
        else:
            reason = "none of them is there and allowed by the slices above"
        yield Difference(name, set_text(wanted), set_text(effective), reason)

    return compare


def partition(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Compare the kind of partition that the CPUs are."""
    if not isinstance(value, str) or value in {"", "member"}:
        return
    text = facts.kernel.read("cpuset.cpus.partition")
    if text is None:
        yield Difference(name, value, None, missing("cpuset.cpus.partition", facts))
    elif text != value:
        # Such as "isolated invalid (Parent is not a partition root)".
        yield Difference(name, value, text.split()[0], f"the kernel says: {text}")
