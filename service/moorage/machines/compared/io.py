"""I/O: weights and rates of block devices.

The rules of the service manager are those of src/core/cgroup.c of systemd 257 to 262.

Pure: no I/O of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from moorage.machines.compared.values import (
    kernel_number,
    limit_text,
    missing,
    other_value,
    pairs,
    wanted_number,
)
from moorage.machines.limits import Comparison, Difference, Facts
from moorage.pid1.manager import Json


def _bfq_weight(weight: int) -> int:
    """Return the weight that the service manager gives to BFQ, whose scale ends at 1000 (``BFQ_WEIGHT()``)."""
    if weight <= 100:
        return 100 - (100 - weight) * 99 // 99
    return 100 + (weight - 100) * 900 // 9900


def _weights(text: str) -> dict[str, int]:
    """Weights by device, and of the others ("default")."""
    lines = [line.split() for line in text.splitlines()]
    return {(line[0] if len(line) == 2 else "default"): int(line[-1]) for line in lines if line}


def weights_in_force(facts: Facts) -> dict[str, int] | None:
    """Weights in force, on the scale of ``io.weight``; None if this kernel weighs nothing."""
    if (text := facts.kernel.read("io.weight")) is not None:
        return _weights(text)
    if (text := facts.kernel.read("io.bfq.weight")) is None:
        return None
    given = [wanted_number(facts.properties.get(name)) for name in ("IOWeight", "StartupIOWeight")
             if facts.properties.get(name) is not None]  # fmt: skip
    given += [wanted_number(weight) for _, weight in pairs(facts.properties.get("IODeviceWeight"))]
    back = {_bfq_weight(weight): weight for weight in given if weight is not None}
    return {device: back.get(weight, weight) for device, weight in _weights(text).items()}


def io_weight(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Compare the weight for all devices."""
    wanted = wanted_number(value)
    if wanted is None:
        return  # not set
    weights = weights_in_force(facts)
    if weights is None:
        yield Difference(name, str(wanted), None, missing("io.weight", facts))
    elif weights.get("default", 100) != wanted:
        yield other_value(name, wanted, weights.get("default", 100), facts, pages=False)


RATES: Final[Mapping[str, str]] = {
    "IOReadBandwidthMax": "rbps", "IOWriteBandwidthMax": "wbps", "IOReadIOPSMax": "riops", "IOWriteIOPSMax": "wiops",
}  # fmt: skip


def _no_device(path: str, facts: Facts) -> str | None:
    """Return the reason why a device's limit cannot apply to a path; None if it can, or if that is not known."""
    if path not in facts.devices:
        return None
    device = facts.devices[path]
    if device is None:
        return f"there is no {path}"
    if device.disk is None:
        return f"{path} is not a block device, nor on one"
    return None


def rates(text: str, key: str) -> dict[str, int | None]:
    """Return the values of one key by device, of a file with lines such as "8:0 rbps=1048576 wbps=max"."""
    found: dict[str, int | None] = {}
    for line in text.splitlines():
        device, *assignments = line.split()
        for assignment in assignments:
            name, _, value = assignment.partition("=")
            if name == key:
                found[device] = kernel_number(value)
    return found


def _less_above(attribute: str, key: str, disk: str, wanted: int, facts: Facts) -> tuple[str, int] | None:
    """Return the lowest limit of a disk in the groups above that is lower than one, with its path."""
    if attribute != "io.max":
        return None  # a latency to aim at is each group's own
    above = [(path, limit) for path, text in facts.kernel.above(attribute)
             if (limit := rates(text, key).get(disk)) is not None and limit < wanted]  # fmt: skip
    return min(above, key=lambda each: each[1], default=None)


def per_device(attribute: str, key: Callable[[str], str]) -> Comparison:
    """Compare values for each device with the lines of an attribute."""

    def compare(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
        limits = dict(pairs(value))  # of several values for one device the last counts
        text = facts.kernel.read(attribute)
        for path, given in limits.items():
            wanted = wanted_number(given)
            if wanted is None:
                continue  # no limit
            shown = f"{path} {wanted}"
            if text is None:
                yield Difference(name, shown, None, missing(attribute, facts))
            elif (reason := _no_device(path, facts)) is not None:
                yield Difference(name, shown, None, reason)
            else:
                there = rates(text, key(name))
                device = facts.devices.get(path)
                if device is None or device.disk is None:
                    # Where it could not be looked at: some device has to have the value.
                    if wanted not in there.values():
                        yield Difference(name, shown, None, "the kernel has this limit for no device")
                elif (less := _less_above(attribute, key(name), device.disk, wanted, facts)) is not None:
                    reason = f"{less[0]} has a lower limit"
                    yield Difference(name, shown, f"{path} {less[1]}", reason)
                elif there.get(device.disk) != wanted:
                    number = there.get(device.disk)
                    effective = None if number is None else f"{path} {number}"
                    yield Difference(name, shown, effective, "the kernel has another value")

    return compare


def device_weight(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Compare the weights for single devices."""
    weights = weights_in_force(facts)
    for path, given in dict(pairs(value)).items():
        wanted = wanted_number(given)
        shown = f"{path} {limit_text(wanted)}"
        if weights is None:
            yield Difference(name, shown, None, missing("io.weight", facts))
        elif (reason := _no_device(path, facts)) is not None:
            yield Difference(name, shown, None, reason)
        else:
            device = facts.devices.get(path)
            effective = weights.get("default", 100)
            if device is None or device.disk is None:
                found = set(
                    weights.values()
                )  # where it could not be looked at: some device has to have the value
            else:
                effective = weights.get(device.disk, effective)
                found = {effective}
            if wanted not in found:
                yield Difference(name, shown, f"{path} {effective}", "the kernel has another value")
