"""Limits of a unit that are in force, including the ceilings of the groups above it.

The values have the names and the types of the service manager's properties. No limit, and what the kernel does not
tell, is left out.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from moorage.machines.compared.cpu import quota_in_force, weight_in_force
from moorage.machines.compared.io import RATES, rates, weights_in_force
from moorage.machines.compared.memory import least_guarantee
from moorage.machines.compared.values import kernel_number, pairs, set_of_text, upwards
from moorage.machines.limits import Facts
from moorage.pid1.manager import Json
from moorage.quantities import set_to_bytes

_Reading: TypeAlias = "Callable[[Facts], Json]"


def _ceiling(*attributes: str) -> _Reading:
    """Return the lowest of the limits in some attributes, of the group itself and of those above."""

    def read(facts: Facts) -> Json:
        limits = (kernel_number(text) for each in attributes for text in upwards(each, facts))
        return min((limit for limit in limits if limit is not None), default=None)

    return read


def _guarantee(attribute: str) -> _Reading:
    def read(facts: Facts) -> Json:
        text = facts.kernel.read(attribute)
        return None if text is None else least_guarantee(attribute, kernel_number(text), facts)

    return read


def _set(attribute: str) -> _Reading:
    def read(facts: Facts) -> Json:
        text = facts.kernel.read(f"{attribute}.effective")
        return None if text is None else [*set_to_bytes(set_of_text(text))]

    return read


def _quota(facts: Facts) -> Json:
    found = quota_in_force(facts)
    return None if found is None else found[0]


def _period(facts: Facts) -> Json:
    found = quota_in_force(facts)
    return None if found is None else found[1]


def _io_weight(facts: Facts) -> Json:
    weights = weights_in_force(facts)
    return None if weights is None else weights.get("default", 100)


def _io_weights(facts: Facts) -> Json:
    weights = weights_in_force(facts) or {}
    return [[device, weight] for device, weight in weights.items() if device != "default"] or None


def _rate(attribute: str, key: str, *, inherited: bool) -> _Reading:
    """Return the limits of each device; where the groups above bound it as well, the lowest of them."""

    def read(facts: Facts) -> Json:
        own = facts.kernel.read(attribute)
        found: dict[str, int] = {}
        for text in upwards(attribute, facts) if inherited else () if own is None else (own,):
            for device, limit in rates(text, key).items():
                if limit is not None:
                    found[device] = min(limit, found.get(device, limit))
        return [[device, limit] for device, limit in found.items()] or None

    return read


def _oom_policy(facts: Facts) -> Json:
    text = facts.kernel.read("memory.oom.group")
    if text is None:
        return None
    configured = facts.properties.get("OOMPolicy")
    # The kernel only knows whether it kills all at once.
    return "kill" if text == "1" else configured if configured in ("stop", "continue") else None


def _delegated(facts: Facts) -> Json:
    """Return the controllers that a machine may use for groups of its own."""
    if facts.properties.get("Delegate") is not True:
        return None
    asked = facts.properties.get("DelegateControllers")
    there = facts.kernel.read("cgroup.controllers")
    if there is None or not isinstance(asked, list):
        return None
    return [controller for controller in there.split() if controller in asked]


_READ: Final[Mapping[str, _Reading]] = {
    "CPUWeight": weight_in_force,
    "CPUQuotaPerSecUSec": _quota,
    "CPUQuotaPeriodUSec": _period,
    "AllowedCPUs": _set("cpuset.cpus"),
    "AllowedMemoryNodes": _set("cpuset.mems"),
    "IOWeight": _io_weight,
    "IODeviceWeight": _io_weights,
    **{name: _rate("io.max", key, inherited=True) for name, key in RATES.items()},
    "IODeviceLatencyTargetUSec": _rate("io.latency", "target", inherited=False),
    "MemoryMin": _guarantee("memory.min"),
    "MemoryLow": _guarantee("memory.low"),
    "MemoryHigh": _ceiling("memory.high", "memory.max"),
    "MemoryMax": _ceiling("memory.max"),
    "MemorySwapMax": _ceiling("memory.swap.max"),
    "MemoryZSwapMax": _ceiling("memory.zswap.max"),
    "TasksMax": _ceiling("pids.max"),
    "OOMPolicy": _oom_policy,
    "DelegateControllers": _delegated,
}

PER_DEVICE: Final = (*RATES, "IODeviceWeight", "IODeviceLatencyTargetUSec")
"""Of these the values are pairs of a block device and a number."""


def in_effect(facts: Facts, name_of: Callable[[str], str]) -> dict[str, Json]:
    """Return what is in force.

    Args:
        facts: its kernel, its properties as they are configured, and whether protection is recursive.
        name_of: returns the path of a block device by its numbers ("8:0").
    """
    found: dict[str, Json] = {}
    for name, read in _READ.items():
        try:
            value = read(facts)
        except (ValueError, LookupError):
            continue  # a text of a kernel to come
        if name in PER_DEVICE and value is not None:
            found[name] = [[name_of(device), number] for device, number in pairs(value)]
        elif value is not None:
            found[name] = value
    return found
