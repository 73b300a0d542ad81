"""Limits and protections: what was asked for, compared with what is in force.

The service manager says yes to what the kernel then rounds, undercuts or ignores (systemd issue 9641: limits that fail
silently). What counts is what the kernel has (cgroup-v2.rst), where no rounding and no missing controller can hide.
ONE table, `COMPARED`, says for each property what is compared with what; `NOT_COMPARED` says of all others why not.
The rules of the service manager are those of src/core/cgroup.c of systemd 257 to 262.

Pure: what the kernel has is handed in (`Facts`); :mod:`moorage.machines.effective` reads it.
"""

from __future__ import annotations

import fnmatch
import mmap
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

import msgspec

from moorage.pid1.manager import Json

INFINITY: Final = "infinity"
UINT64_MAX: Final = 2**64 - 1
UINT32_MAX: Final = 2**32 - 1

PERIOD_USEC: Final = 100_000
"""Period of a quota that has none, µs (``CGROUP_CPU_QUOTA_DEFAULT_PERIOD_USEC``)."""
PERIOD_MIN_USEC: Final = 1_000
PERIOD_MAX_USEC: Final = 1_000_000
"""Bounds of periods and quotas, µs, which are the kernel's (``cgroup_cpu_adjust_period()``)."""

_STARTUP: Final = "Startup"
_ONLY_DURING_STARTUP: Final = "it is in force only while the system starts up or shuts down"


class Difference(msgspec.Struct, frozen=True):
    """A property whose value in force is not the one asked for.

    Attributes:
        property: its name.
        wanted: the value asked for: a number in the unit of the property, "infinity", a share such as "10%", a set
            such as "0-3", or a device with its value.
        effective: the value in force, in the same form; None if the property has no effect.
        reason: why, in words.
        helper: the helper whose property it is; None for the machine's own.
        slice: the machine's own slice, whose property it is.
    """

    property: str
    wanted: str
    effective: str | None
    reason: str
    helper: str | None = None
    slice: str | None = None


class Kernel(Protocol):
    """What the kernel has of a control group."""

    def read(self, attribute: str) -> str | None:
        """Read an attribute of the group; None if it has none of that name."""
        ...

    def above(self, attribute: str) -> Sequence[tuple[str, str]]:
        """Read an attribute of the groups above that have it: path and text, the nearest first, without the root."""
        ...


class Device(NamedTuple):
    """What a path leads to.

    Attributes:
        kind: "block", "char", or "file" for what lies on a file system.
        disk: numbers ("8:0") of the whole disk below it; None if there is none.
    """

    kind: str
    disk: str | None


class Process(NamedTuple):
    """What the kernel has of a service's process.

    Attributes:
        limits: soft and hard resource limits, by their names in /proc/PID/limits; None for no limit.
        nice: nice value.
        oom_score_adj: what is added to its badness (proc_pid_oom_score_adj(5)).
    """

    limits: Mapping[str, tuple[int | None, int | None]]
    nice: int
    oom_score_adj: int


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides whether properties of a unit are in force.

    Attributes:
        kernel: of its control group.
        scope: it is a scope.
        user: its service manager is that of a user.
        properties: all that were asked for.
        devices: what the paths among them lead to; None for what leads nowhere. Paths that could not be looked at are
            left out.
        drivers: names of character and block devices, as /proc/devices has them.
        programs: number of BPF programs attached to the group, by the number of the attach type (bpf(2)); empty if the
            service manager may load none; None if it is not known.
        oomd: systemd-oomd runs.
        recursive: the hierarchy is mounted with ``memory_recursiveprot``.
        process: the main process of a service; None where there is none, or not yet.
    """

    kernel: Kernel
    scope: bool
    user: bool
    properties: Mapping[str, Json]
    devices: Mapping[str, Device | None] = {}
    drivers: Mapping[str, frozenset[str]] = {}
    programs: Mapping[int, int] | None = None
    oomd: bool = True
    recursive: bool = True
    process: Process | None = None


Comparison: TypeAlias = "Callable[[str, Json, Facts], Iterator[Difference]]"


def differences(facts: Facts) -> list[Difference]:
    """Compare properties that were asked for with what is in force.

    What cannot be read is left out: nothing is said that is not known.
    """
    found: list[Difference] = []
    for name, value in facts.properties.items():
        comparison = COMPARED.get(name)
        if comparison is None:
            continue
        try:
            found += comparison(name, value, facts)
        except (OSError, ValueError, LookupError):
            # The manager took the value, so that it is well formed; what is not is a text of a kernel to come.
            continue
    return found


def paths(properties: Mapping[str, Json]) -> list[str]:
    """Return the paths among properties that decide whether something is in force."""
    found: dict[str, None] = {}
    for name in (*_RATES, "IODeviceWeight", "IODeviceLatencyTargetUSec", "DeviceAllow"):
        for path, _ in _pairs(properties.get(name)):
            if name != "DeviceAllow" or path.startswith("/dev/"):
                found[path] = None
    return list(found)


def attached(properties: Mapping[str, Json]) -> dict[int, int]:
    """Return how many BPF programs of each attach type properties take."""
    wanted: dict[int, int] = {}
    for types in {feature: types for name, value in properties.items()
                  for feature, types in _features(name, value)}.values():  # fmt: skip
        for number in types:
            wanted[number] = wanted.get(number, 0) + 1
    return wanted


# Values


def _number(value: Json) -> int | None:
    """A number that was asked for; None for no limit.

    Raises:
        ValueError: it is not a number.
    """
    if value in (INFINITY, UINT64_MAX):
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(value)  # noqa: TRY004 - left out, as a text of the kernel is that is not understood
    return value


def _limit_text(number: int | None) -> str:
    return INFINITY if number is None else str(number)


def _kernel_number(text: str) -> int | None:
    return None if text == "max" else int(text)


def _below(first: int | None, second: int | None) -> bool:
    """Whether a limit is lower than another one."""
    return first is not None and (second is None or first < second)


def whole_pages(number: int | None) -> int | None:
    """Round a number of bytes as the kernel does; None is no limit."""
    return None if number is None else number // mmap.PAGESIZE * mmap.PAGESIZE


def _percent(scale: Json) -> str:
    if isinstance(scale, bool) or not isinstance(scale, int):
        raise ValueError(scale)  # noqa: TRY004 - left out, as a text of the kernel is that is not understood
    return f"{round(scale * 10_000 / UINT32_MAX) / 100:g}%"


def _pairs(value: Json) -> list[tuple[str, Json]]:
    """Devices with their values, as the types ``a(st)`` and ``a(ss)`` have them."""
    items = value if isinstance(value, list) else []
    return [(item[0], item[1]) for item in items
            if isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)]  # fmt: skip


def set_of_bytes(value: Json) -> frozenset[int]:
    """Return the numbers in a bitmap, lowest byte first, as the service manager takes a set of CPUs."""
    if not isinstance(value, list):
        raise ValueError(value)  # noqa: TRY004 - left out, as a text of the kernel is that is not understood
    octets = [byte for byte in value if isinstance(byte, int)]
    return frozenset(
        8 * place + bit for place, byte in enumerate(octets) for bit in range(8) if byte >> bit & 1
    )


def set_of_text(text: str) -> frozenset[int]:
    """Return the numbers in a list of ranges such as "0-3,7" (cpuset(7), "List format")."""
    numbers: set[int] = set()
    for part in text.split(","):
        if part:
            first, _, last = part.partition("-")
            numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def set_text(numbers: Iterable[int]) -> str:
    """Write numbers as a list of ranges."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


# Reasons


def _missing(attribute: str, facts: Facts) -> str:
    """Say why a group has no such attribute."""
    controller = attribute.partition(".")[0]
    if controller in (facts.kernel.read("cgroup.controllers") or "").split():
        return f"this kernel has no {attribute}"
    if facts.user:
        return f"the controller “{controller}” is not delegated to this user's service manager"
    return f"the controller “{controller}” is not available to this unit"


def _lowest(above: Iterable[tuple[str, str]]) -> tuple[str, int] | None:
    limits = [(path, int(text)) for path, text in above if text != "max"]
    return min(limits, key=lambda limit: limit[1], default=None)


# Limits: what is above undercuts them


def _ceiling(attribute: str, *further: str, pages: bool = True) -> Comparison:
    """Compare a limit with its attribute, and with those of the groups above."""

    def compare(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
        wanted = _number(value)
        text = facts.kernel.read(attribute)
        if text is None:
            if wanted is not None:
                yield Difference(name, str(wanted), None, _missing(attribute, facts))
            return
        effective = _kernel_number(text)
        lowest = _lowest(limit for each in (attribute, *further) for limit in facts.kernel.above(each))
        if lowest is not None and _below(lowest[1], effective) and not _is_startup(name, wanted, effective):
            yield Difference(name, _limit_text(wanted), str(lowest[1]), f"{lowest[0]} has a lower limit")
        elif effective != wanted:
            yield _other(name, wanted, effective, facts, pages=pages)

    return compare


def _is_startup(name: str, wanted: int | None, effective: int | None) -> bool:
    return name.startswith(_STARTUP) and effective not in {wanted, whole_pages(wanted)}


def _other(name: str, wanted: int | None, effective: int | None, facts: Facts, *, pages: bool) -> Difference:
    """Say why the kernel has another number."""
    startup = facts.properties.get(f"{_STARTUP}{name}")
    if pages and effective == whole_pages(wanted):
        reason = "rounded down to whole pages of memory"
    elif name.startswith(_STARTUP):
        reason = _ONLY_DURING_STARTUP
    elif startup is not None and effective in {_number(startup), whole_pages(_number(startup))}:
        reason = f"{_STARTUP}{name}= is in force while the system starts up or shuts down"
    else:
        reason = "the kernel has another value"
    return Difference(name, _limit_text(wanted), _limit_text(effective), reason)


def _share(attribute: str, *further: str) -> Comparison:
    """Compare a limit that is a share of the whole: its size is the manager's to compute."""

    def compare(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
        text = facts.kernel.read(attribute)
        if text is None:
            yield Difference(name, _percent(value), None, _missing(attribute, facts))
            return
        lowest = _lowest(limit for each in (attribute, *further) for limit in facts.kernel.above(each))
        if lowest is not None and _below(lowest[1], _kernel_number(text)):
            yield Difference(name, _percent(value), str(lowest[1]), f"{lowest[0]} has a lower limit")

    return compare


# Guarantees: what is above has to give them


def _guarantee(attribute: str) -> Comparison:
    """Compare a protection with its attribute, and with what the groups above are protected from."""

    def compare(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
        wanted = _number(value)
        if wanted == 0:
            return
        text = facts.kernel.read(attribute)
        if text is None:
            yield Difference(name, _limit_text(wanted), None, _missing(attribute, facts))
            return
        effective = _kernel_number(text)
        if (less := _less_above(attribute, effective, facts)) is not None:
            yield Difference(name, _limit_text(wanted), _limit_text(less[1]), less[0])
        elif effective != wanted:
            yield _other(name, wanted, effective, facts, pages=True)

    return compare


def _guaranteed_share(attribute: str) -> Comparison:
    def compare(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
        text = facts.kernel.read(attribute)
        if text is None:
            yield Difference(name, _percent(value), None, _missing(attribute, facts))
        elif (less := _less_above(attribute, _kernel_number(text), facts)) is not None:
            yield Difference(name, _percent(value), _limit_text(less[1]), less[0])

    return compare


def _less_above(attribute: str, effective: int | None, facts: Facts) -> tuple[str, int] | None:
    """Say what a protection is worth below what protects less (``effective_protection()`` of the kernel).

    With ``memory_recursiveprot`` what the uppermost group does not give to the others is spread over all below it, so
    that only that one bounds it; else each of them does.
    """
    above = [(path, _kernel_number(text)) for path, text in facts.kernel.above(attribute)]
    bounds = [
        (path, number) for path, number in (above[-1:] if facts.recursive else above) if number is not None
    ]
    least = min(bounds, key=lambda bound: bound[1], default=None)
    if least is None or not _below(least[1], effective):
        return None
    word = "nothing" if least[1] == 0 else "less"
    return f"{least[0]} protects {word}, and nothing below it is protected any better", least[1]


def _no_children(name: str, value: Json, _facts: Facts) -> Iterator[Difference]:
    if _number(value) != 0:
        yield Difference(
            name,
            _limit_text(_number(value)),
            None,
            "it is a default for units in a slice, which this is not",
        )


# CPU


def _cpu_weight(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    wanted = _number(value)
    if wanted is None:
        return  # not set
    shown = str(wanted) if wanted else "idle"
    text, idle = facts.kernel.read("cpu.weight"), facts.kernel.read("cpu.idle") == "1"
    if text is None:
        yield Difference(name, shown, None, _missing("cpu.weight", facts))
        return
    # CGROUP_WEIGHT_IDLE: the weight of an idle group reads as 1, or as 0.
    effective = 0 if idle else int(text)
    if effective != wanted:
        other = _other(name, wanted, effective, facts, pages=False)
        yield Difference(name, shown, "idle" if idle else text, other.reason)


def _quota_per_second(text: str) -> int | None:
    """A quota of ``cpu.max`` in µs per second."""
    quota, period = text.split()
    return None if quota == "max" else int(quota) * 1_000_000 // int(period)


def _quota(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    wanted = _number(value)
    text = facts.kernel.read("cpu.max")
    if text is None:
        if wanted is not None:
            yield Difference(name, str(wanted), None, _missing("cpu.max", facts))
        return
    effective = _quota_per_second(text)
    above = [(path, limit) for path, each in facts.kernel.above("cpu.max")
             if (limit := _quota_per_second(each)) is not None]  # fmt: skip
    lowest = min(above, key=lambda limit: limit[1], default=None)
    if lowest is not None and _below(lowest[1], effective):
        yield Difference(name, _limit_text(wanted), str(lowest[1]), f"{lowest[0]} has a lower limit")
    elif effective != wanted:
        close = effective is not None and wanted is not None
        reason = "rounded to whole microseconds of each period" if close else "the kernel has another value"
        yield Difference(name, _limit_text(wanted), _limit_text(effective), reason)


def _period(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    wanted = _number(value)
    if wanted is None:
        return  # not set
    text = facts.kernel.read("cpu.max")
    # For a period alone the manager does not even enable the controller.
    if (text or "max").startswith("max") and _number(
        facts.properties.get("CPUQuotaPerSecUSec", INFINITY)
    ) is None:
        yield Difference(name, str(wanted), None, "it is the period of a quota, and there is none")
    elif text is None:
        yield Difference(name, str(wanted), None, _missing("cpu.max", facts))
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


def _cpuset(attribute: str) -> Comparison:
    """Compare a set of CPUs or memory nodes with what is left of it below the groups above."""

    def compare(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
        wanted = set_of_bytes(value)
        if not wanted:
            return  # not set
        text = facts.kernel.read(f"{attribute}.effective")
        if text is None:
            yield Difference(name, set_text(wanted), None, _missing(attribute, facts))
            return
        effective = set_of_text(text)
        if effective == wanted:
            return
        if name.startswith(_STARTUP) and set_of_text(facts.kernel.read(attribute) or "") != wanted:
            reason = _ONLY_DURING_STARTUP
        elif effective < wanted:
            reason = "the others are not there, or not allowed by a slice above"
        else:
            reason = "none of them is there and allowed by the slices above"
        yield Difference(name, set_text(wanted), set_text(effective), reason)

    return compare


def _partition(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    if not isinstance(value, str) or value in {"", "member"}:
        return
    text = facts.kernel.read("cpuset.cpus.partition")
    if text is None:
        yield Difference(name, value, None, _missing("cpuset.cpus.partition", facts))
    elif text != value:
        # Such as "isolated invalid (Parent is not a partition root)".
        yield Difference(name, value, text.split()[0], f"the kernel says: {text}")


# IO


def _bfq_weight(weight: int) -> int:
    """Return the weight that the service manager gives to BFQ, whose scale ends at 1000 (``BFQ_WEIGHT()``)."""
    if weight <= 100:
        return 100 - (100 - weight) * 99 // 99
    return 100 + (weight - 100) * 900 // 9900


def _weights(text: str) -> dict[str, int]:
    """Weights by device, and of the others ("default")."""
    lines = [line.split() for line in text.splitlines()]
    return {(line[0] if len(line) == 2 else "default"): int(line[-1]) for line in lines if line}


def _io_weights(facts: Facts) -> dict[str, int] | None:
    """Weights in force, on the scale of ``io.weight``; None if this kernel weighs nothing."""
    if (text := facts.kernel.read("io.weight")) is not None:
        return _weights(text)
    if (text := facts.kernel.read("io.bfq.weight")) is None:
        return None
    given = [_number(facts.properties.get(name)) for name in ("IOWeight", "StartupIOWeight")
             if facts.properties.get(name) is not None]  # fmt: skip
    given += [_number(weight) for _, weight in _pairs(facts.properties.get("IODeviceWeight"))]
    back = {_bfq_weight(weight): weight for weight in given if weight is not None}
    return {device: back.get(weight, weight) for device, weight in _weights(text).items()}


def _io_weight(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    wanted = _number(value)
    if wanted is None:
        return  # not set
    weights = _io_weights(facts)
    if weights is None:
        yield Difference(name, str(wanted), None, _missing("io.weight", facts))
    elif weights.get("default", 100) != wanted:
        yield _other(name, wanted, weights.get("default", 100), facts, pages=False)


_RATES: Final[Mapping[str, str]] = {
    "IOReadBandwidthMax": "rbps", "IOWriteBandwidthMax": "wbps", "IOReadIOPSMax": "riops", "IOWriteIOPSMax": "wiops",
}  # fmt: skip


def _no_device(path: str, facts: Facts) -> str | None:
    """Say why a path is of no use for a limit of a device; None if it is, or if that is not known."""
    if path not in facts.devices:
        return None
    device = facts.devices[path]
    if device is None:
        return f"there is no {path}"
    if device.disk is None:
        return f"{path} is not a block device, nor on one"
    return None


def _values(text: str, key: str) -> dict[str, int | None]:
    """The values of one key by device, of a file with lines such as "8:0 rbps=1048576 wbps=max"."""
    found: dict[str, int | None] = {}
    for line in text.splitlines():
        device, *assignments = line.split()
        for assignment in assignments:
            name, _, value = assignment.partition("=")
            if name == key:
                found[device] = _kernel_number(value)
    return found


def _per_device(attribute: str, key: Callable[[str], str]) -> Comparison:
    """Compare values for each device with the lines of an attribute."""

    def compare(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
        pairs = dict(_pairs(value))  # of several values for one device the last counts
        text = facts.kernel.read(attribute)
        for path, given in pairs.items():
            wanted = _number(given)
            if wanted is None:
                continue  # no limit
            shown = f"{path} {wanted}"
            if text is None:
                yield Difference(name, shown, None, _missing(attribute, facts))
            elif (reason := _no_device(path, facts)) is not None:
                yield Difference(name, shown, None, reason)
            else:
                there = _values(text, key(name))
                device = facts.devices.get(path)
                if device is None or device.disk is None:
                    # Where it could not be looked at: some device has to have the value.
                    if wanted not in there.values():
                        yield Difference(name, shown, None, "the kernel has this limit for no device")
                elif there.get(device.disk) != wanted:
                    number = there.get(device.disk)
                    effective = None if number is None else f"{path} {number}"
                    yield Difference(name, shown, effective, "the kernel has another value")

    return compare


def _device_weight(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    weights = _io_weights(facts)
    for path, given in dict(_pairs(value)).items():
        wanted = _number(given)
        shown = f"{path} {_limit_text(wanted)}"
        if weights is None:
            yield Difference(name, shown, None, _missing("io.weight", facts))
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


# Memory, beyond limits


def _zswap_writeback(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    if not isinstance(value, bool):
        return
    text = facts.kernel.read("memory.zswap.writeback")
    if text is None:
        if not value:
            yield Difference(name, "no", None, _missing("memory.zswap.writeback", facts))
        return
    off = [path for path, each in facts.kernel.above("memory.zswap.writeback") if each == "0"]
    if value and off:
        yield Difference(name, "yes", "no", f"{off[0]} has it off")
    elif (text == "1") != value:
        yield Difference(
            name, "yes" if value else "no", "no" if value else "yes", "the kernel has another value"
        )


def _oom_policy(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    if value not in ("stop", "kill"):
        return
    text = facts.kernel.read("memory.oom.group")
    if text is None:
        # Without it the manager does not learn of a process that was killed for lack of memory.
        yield Difference(name, str(value), None, _missing("memory.oom.group", facts))
    elif (text == "1") != (value == "kill"):
        yield Difference(name, str(value), "kill" if text == "1" else "stop", "the kernel has another value")


def _managed_oom(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    if value in ("auto", "none", "", []):
        return
    shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    if facts.kernel.read("memory.current") is None:
        yield Difference(name, shown, None, _missing("memory.current", facts))
    elif name == "ManagedOOMMemoryPressure" and facts.kernel.read("memory.pressure") is None:
        yield Difference(name, shown, None, "this kernel does not measure pressure (PSI)")
    elif not facts.oomd:
        yield Difference(name, shown, None, "systemd-oomd does not run")


# Devices and addresses: BPF programs

_INGRESS, _EGRESS, _SOCK_CREATE, _DEVICE, _BIND4, _BIND6 = 0, 1, 2, 6, 8, 9
"""Attach types of ``enum bpf_attach_type`` (linux/bpf.h)."""

_ATTACH: Final[Mapping[str, int]] = {
    # of those that systemd's BPFProgram= knows
    "ingress": _INGRESS, "egress": _EGRESS, "sock_create": _SOCK_CREATE, "sock_ops": 3, "device": _DEVICE,
    "bind4": _BIND4, "bind6": _BIND6, "connect4": 10, "connect6": 11, "post_bind4": 12, "post_bind6": 13,
    "sendmsg4": 14, "sendmsg6": 15, "sysctl": 18, "recvmsg4": 19, "recvmsg6": 20, "getsockopt": 21, "setsockopt": 22,
}  # fmt: skip

BPF_TYPES: Final = tuple(sorted(_ATTACH.values()))
"""Attach types that are looked at."""


def _features(name: str, value: Json) -> list[tuple[str, tuple[int, ...]]]:
    """What a property has the manager load: what it is, which several properties may share, and its attach types."""
    if value in (None, [], False, "", "auto"):
        return []
    match name:
        case "DevicePolicy" | "DeviceAllow":
            return [("devices", (_DEVICE,))]
        case "IPAccounting" | "IPAddressAllow" | "IPAddressDeny":
            return [("firewall", (_INGRESS, _EGRESS))]
        case "IPIngressFilterPath" if isinstance(value, list):
            return [(f"ingress {path}", (_INGRESS,)) for path in value]
        case "IPEgressFilterPath" if isinstance(value, list):
            return [(f"egress {path}", (_EGRESS,)) for path in value]
        case "RestrictNetworkInterfaces" if isinstance(value, list) and value[1:] != [[]]:
            return [("interfaces", (_INGRESS, _EGRESS))]
        case "SocketBindAllow" | "SocketBindDeny":
            return [("bind", (_BIND4, _BIND6))]
        case "BindNetworkInterface":
            return [("interface", (_SOCK_CREATE,))]
        case "BPFProgram":
            return [(f"{kind} {path}", (_ATTACH[kind],)) for kind, path in _pairs(value) if kind in _ATTACH]
        case _:
            return []


_GIVEN: Final = frozenset({"BPFProgram", "IPIngressFilterPath", "IPEgressFilterPath"})
"""Properties whose programs the manager takes from elsewhere: where there is none, it only logs that."""


def _bpf_words(name: str, value: Json) -> str:
    match name, value:
        case (("IPAddressAllow" | "IPAddressDeny"), list()):
            return " ".join(_network(item) for item in value)
        case "RestrictNetworkInterfaces", [bool() as allow, list() as interfaces]:
            return ("" if allow else "~") + " ".join(map(str, interfaces))
        case (("DeviceAllow" | "BPFProgram"), list()):
            separator = " " if name == "DeviceAllow" else ":"
            return ", ".join(f"{first}{separator}{second}".strip() for first, second in _pairs(value))
        case _, bool():
            return "yes" if value else "no"
        case (("IPIngressFilterPath" | "IPEgressFilterPath"), list()):
            return " ".join(map(str, value))
        case _, list():
            return f"{len(value)} rule{'' if len(value) == 1 else 's'}"
        case _:
            return str(value)


def _network(item: Json) -> str:
    match item:
        case [int(), [*octets], int() as prefix] if len(octets) in {4, 16}:
            data = bytes(octet for octet in octets if isinstance(octet, int))
            if len(data) == 4:
                return f"{'.'.join(map(str, data))}/{prefix}"
            return f"{_ipv6(data)}/{prefix}"
        case _:
            return str(item)


def _ipv6(data: bytes) -> str:
    groups = ":".join(f"{data[place] << 8 | data[place + 1]:x}" for place in range(0, 16, 2))
    return re.sub(r"(^|:)0(:0)+(:|$)", "::", groups, count=1)


def _bpf(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Compare what takes BPF programs with those that the kernel has for the group."""
    features = _features(name, value)
    if not features or facts.programs is None:
        return
    if not facts.programs and facts.user:
        reason = "it takes a BPF program, which a user's service manager may not load"
        yield Difference(name, _bpf_words(name, value), None, reason)
        return
    wanted = attached(facts.properties)
    given = attached({each: facts.properties[each] for each in _GIVEN & facts.properties.keys()})
    for number in {number for _, types in features for number in types}:
        there = facts.programs.get(number, 0)
        # Of several, one that the manager did not make itself is missing.
        if there < wanted[number] and (there == 0 or name in _GIVEN or not given.get(number)):
            what = "none" if there == 0 else "not all"
            yield Difference(
                name,
                _bpf_words(name, value),
                None,
                f"the kernel has {what} of the BPF programs that this unit should have",
            )
            return


_NODES_PARSED: Final = re.compile(r"/dev/(block|char)/[0-9]+:[0-9]+")
"""What the manager takes for a device without looking (``device_path_parse_major_minor()``)."""


def _device_allow(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Find rules that match nothing; then, whether there is anything that keeps the rules."""
    useless = 0
    for path, access in _pairs(value):
        reason = _matches_nothing(path, facts)
        if reason is not None:
            useless += 1
            yield Difference(name, f"{path} {access}".strip(), None, reason)
    if useless < len(_pairs(value)) or not useless:
        yield from _bpf(name, value, facts)


def _matches_nothing(path: str, facts: Facts) -> str | None:
    """Say why a rule for devices matches none (``cgroup_apply_device_rules()``); None if it may match."""
    kind, separator, driver = path.partition("-")
    if separator and kind in {"char", "block"}:
        known = facts.drivers.get(kind)
        if known is None or driver.isdecimal() or fnmatch.filter(known, driver):
            return None
        return f"there is no {'character' if kind == 'char' else 'block'} device “{driver}” in /proc/devices"
    if _NODES_PARSED.fullmatch(path) or path not in facts.devices:
        return None
    device = facts.devices[path]
    if device is None:
        return f"there is no {path}"
    return f"{path} is not a device" if device.kind == "file" else None


# Delegation


def _delegated(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    there = set((facts.kernel.read("cgroup.controllers") or "").split())
    names = value if isinstance(value, list) else []
    for controller in names:
        # Those with "bpf-" are words of the manager's own.
        if isinstance(controller, str) and not controller.startswith("bpf-") and controller not in there:
            yield Difference(name, controller, None, _missing(f"{controller}.", facts))


def _subgroup(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    if facts.scope and value:
        yield Difference(name, str(value), None, "systemd moves no process of a scope into a subgroup")


# The process of a service: where the manager does not get what it wants, it takes what it gets

_RESOURCES: Final[Mapping[str, str]] = {
    "LimitAS": "Max address space", "LimitCORE": "Max core file size", "LimitCPU": "Max cpu time",
    "LimitDATA": "Max data size", "LimitFSIZE": "Max file size", "LimitLOCKS": "Max file locks",
    "LimitMEMLOCK": "Max locked memory", "LimitMSGQUEUE": "Max msgqueue size", "LimitNICE": "Max nice priority",
    "LimitNOFILE": "Max open files", "LimitNPROC": "Max processes", "LimitRSS": "Max resident set",
    "LimitRTPRIO": "Max realtime priority", "LimitRTTIME": "Max realtime timeout",
    "LimitSIGPENDING": "Max pending signals", "LimitSTACK": "Max stack size",
}  # fmt: skip
_NOT_ALLOWED: Final = "the service manager is not allowed more"


def _resource(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Compare a limit of setrlimit(2), which ``setrlimit_closest()`` lowers; the program may lower it too."""
    wanted = _number(value)
    if facts.process is None:
        return
    soft, hard = facts.process.limits[_RESOURCES[name.removesuffix("Soft")]]
    effective = soft if name.endswith("Soft") else hard
    if _below(effective, wanted):
        yield Difference(name, _limit_text(wanted), _limit_text(effective), _NOT_ALLOWED)


def _nice(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Compare what ``setpriority_closest()`` raises."""
    if facts.process is not None and isinstance(value, int) and facts.process.nice > value:
        yield Difference(name, str(value), str(facts.process.nice), _NOT_ALLOWED)


def _oom_score(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    if facts.process is not None and isinstance(value, int) and facts.process.oom_score_adj > value:
        yield Difference(name, str(value), str(facts.process.oom_score_adj), _NOT_ALLOWED)


# The table

COMPARED: Final[Mapping[str, Comparison]] = {
    "CPUWeight": _cpu_weight,
    "StartupCPUWeight": _cpu_weight,
    "CPUQuotaPerSecUSec": _quota,
    "CPUQuotaPeriodUSec": _period,
    **dict.fromkeys(("AllowedCPUs", "StartupAllowedCPUs"), _cpuset("cpuset.cpus")),
    **dict.fromkeys(("AllowedMemoryNodes", "StartupAllowedMemoryNodes"), _cpuset("cpuset.mems")),
    "CPUSetPartition": _partition,
    **dict.fromkeys(("IOWeight", "StartupIOWeight"), _io_weight),
    "IODeviceWeight": _device_weight,
    **dict.fromkeys(_RATES, _per_device("io.max", lambda name: _RATES[name])),
    "IODeviceLatencyTargetUSec": _per_device("io.latency", lambda _name: "target"),
    "MemoryMin": _guarantee("memory.min"),
    **dict.fromkeys(("MemoryLow", "StartupMemoryLow"), _guarantee("memory.low")),
    **dict.fromkeys(("MemoryHigh", "StartupMemoryHigh"), _ceiling("memory.high", "memory.max")),
    **dict.fromkeys(("MemoryMax", "StartupMemoryMax"), _ceiling("memory.max")),
    **dict.fromkeys(("MemorySwapMax", "StartupMemorySwapMax"), _ceiling("memory.swap.max")),
    **dict.fromkeys(("MemoryZSwapMax", "StartupMemoryZSwapMax"), _ceiling("memory.zswap.max")),
    "MemoryMinScale": _guaranteed_share("memory.min"),
    "MemoryLowScale": _guaranteed_share("memory.low"),
    "MemoryHighScale": _share("memory.high", "memory.max"),
    "MemoryMaxScale": _share("memory.max"),
    "MemorySwapMaxScale": _share("memory.swap.max"),
    "MemoryZSwapMaxScale": _share("memory.zswap.max"),
    **dict.fromkeys(("DefaultMemoryMin", "DefaultMemoryLow", "DefaultStartupMemoryLow"), _no_children),
    "MemoryZSwapWriteback": _zswap_writeback,
    "TasksMax": _ceiling("pids.max", pages=False),
    "TasksMaxScale": _share("pids.max"),
    "OOMPolicy": _oom_policy,
    **dict.fromkeys(("ManagedOOMSwap", "ManagedOOMMemoryPressure", "ManagedOOMPreference", "OOMRules"), _managed_oom),
    "DeviceAllow": _device_allow,
    **dict.fromkeys(
        ("DevicePolicy", "IPAccounting", "IPAddressAllow", "IPAddressDeny", "IPIngressFilterPath",
         "IPEgressFilterPath", "BPFProgram", "SocketBindAllow", "SocketBindDeny", "RestrictNetworkInterfaces",
         "BindNetworkInterface"),
        _bpf,
    ),
    "DelegateControllers": _delegated,
    "DelegateSubgroup": _subgroup,
    **dict.fromkeys((name for each in _RESOURCES for name in (each, f"{each}Soft")), _resource),
    "Nice": _nice,
    "OOMScoreAdjust": _oom_score,
}  # fmt: skip
"""What is compared, by property."""


class Exempt(NamedTuple):
    """Properties that are not compared.

    Attributes:
        reason: why.
        names: their names, as patterns of fnmatch(3).
    """

    reason: str
    names: tuple[str, ...]


NOT_COMPARED: Final = (
    Exempt(
        "the manager reports it, and nobody sets it",
        ("*Timestamp", "*TimestampMonotonic", "*Result", "*State", "UnitFilePreset", "Can[A-Z]*", "Effective*",
         "*Current", "*Peak", "MemoryAvailable", "CPUUsageNSec", "IO*Bytes", "IO*Operations", "IP*Bytes", "IP*Packets",
         "OOMKills", "ManagedOOMKills", "Result", "Status*", "ExecMain*", "MainPID", "ControlPID", "NRestarts",
         "NFileDescriptorStore", "ControlGroup", "ControlGroupId", "InvocationID", "Id", "Names", "Following",
         "FragmentPath", "DropInPaths", "Job", "LoadError", "NeedDaemonReload", "Perpetual", "Transient", "Refs",
         "ActivationDetails", "DebugInvocation", "AccessSELinuxContext", "UID", "GID", "*QuotaUsage",
         "RestartUSecNext", "NCurrentlyActive", "*FileDescriptorName", "*FileDescriptorNames", "Controller"),
    ),
    Exempt(
        "how units depend on each other is the manager's own, and no matter of the kernel",
        ("Requires", "Requisite", "Wants", "BindsTo", "PartOf", "Upholds", "RequiredBy", "RequisiteOf", "WantedBy",
         "BoundBy", "UpheldBy", "ConsistsOf", "Conflicts", "ConflictedBy", "Before", "After", "OnSuccess",
         "OnSuccessOf", "OnFailure", "OnFailureOf", "Triggers", "TriggeredBy", "PropagatesReloadTo",
         "ReloadPropagatedFrom", "PropagatesStopTo", "StopPropagatedFrom", "JoinsNamespaceOf", "SliceOf",
         "RequiresMountsFor", "WantsMountsFor", "Slice", "DefaultDependencies", "PIDs", "PIDFDs"),
    ),
    Exempt(
        "a switch for counters; those that cannot be had are left out where they are told",
        ("CPUAccounting", "IOAccounting", "MemoryAccounting", "TasksAccounting", "*DirectoryAccounting"),
    ),
    Exempt(
        "a name of the legacy hierarchy, which this service does not run on",
        ("BlockIO*", "StartupBlockIO*", "CPUShares", "StartupCPUShares", "MemoryLimit"),
    ),
    Exempt(
        "words that describe the unit",
        ("Description", "Documentation", "SourcePath", "Markers", "SyslogIdentifier", "LogExtraFields"),
    ),
    Exempt(
        "the manager does it by itself when the unit starts, stops, fails or runs for too long",
        ("KillMode", "*KillSignal", "WatchdogSignal", "SendSIGHUP", "SendSIGKILL", "SurviveFinalKillSignal",
         "*TimeoutUSec", "Timeout*USec", "Timeout*Mode", "RuntimeMaxUSec", "RuntimeRandomizedExtraUSec",
         "JobTimeoutAction", "JobTimeoutRebootArgument", "*FailureMode", "FailureAction*", "SuccessAction*",
         "RebootArgument", "OnFailureJobMode", "OnSuccessJobMode", "StartLimit*", "CollectMode", "AddRef",
         "AllowIsolate", "IgnoreOnIsolate", "RefuseManualStart", "RefuseManualStop", "StopWhenUnneeded", "Conditions",
         "Asserts", "Restart*", "RemainAfterExit", "SuccessExitStatus", "WatchdogUSec", "Type", "ExitType",
         "NotifyAccess", "GuessMainPID", "PIDFile", "BusName", "ReloadSignal", "RefreshOnReload", "Sockets",
         "FileDescriptorStoreMax", "FileDescriptorStorePreserve", "LUOSession", "NonBlocking",
         "RootDirectoryStartOnly", "USBFunction*", "*ConcurrencyMax", "Concurrency*Max"),
    ),
    Exempt(
        "a detail of ManagedOOMMemoryPressure=, which is compared",
        ("ManagedOOMMemoryPressureLimit", "ManagedOOMMemoryPressureDurationUSec"),
    ),
    Exempt(
        "it only tells the program of the service where to look",
        ("MemoryPressureWatch", "CPUPressureWatch", "IOPressureWatch", "*PressureThresholdUSec"),
    ),
    Exempt(
        "what is delegated is whatever there is; what was named is compared (DelegateControllers=)",
        ("Delegate", "DisableControllers", "DelegateNamespaces", "CoredumpReceive"),
    ),
    Exempt("the packet filter of the kernel is not read", ("NFTSet",)),
    Exempt(
        "the manager's process for the service sets it up before the program, which it does not run otherwise",
        ("Exec*", "User", "Group", "DynamicUser", "SupplementaryGroups", "PAMName", "SetLoginEnvironment",
         "Environment*", "PassEnvironment", "UnsetEnvironment", "WorkingDirectory", "UMask", "Root*", "*Directory",
         "*DirectoryMode", "*DirectorySymlink", "*DirectoryPreserve", "*DirectoryQuota", "Extension*",
         "MountImages", "MountImagePolicy", "MountFlags", "MountAPIVFS", "Bind*Paths", "BindPaths", "BindLogSockets",
         "*Paths", "TemporaryFileSystem", "Private*", "Protect*", "ProcSubset", "*NamespacePath", "IPCNamespacePath",
         "RestrictAddressFamilies", "RestrictFileSystems", "RestrictNamespaces", "RestrictRealtime",
         "RestrictSUIDSGID", "SystemCall*", "LockPersonality", "Personality", "MemoryDenyWriteExecute", "MemoryKSM",
         "MemoryTHP", "NoNewPrivileges", "SecureBits", "CapabilityBoundingSet", "AmbientCapabilities", "KeyringMode",
         "AppArmorProfile", "SELinuxContext", "SmackProcessLabel", "BPFDelegate*", "RemoveIPC", "CPUAffinity*",
         "CPUScheduling*", "IOScheduling*", "NUMA*", "TimerSlackNSec", "CoredumpFilter", "IgnoreSIGPIPE",
         "SameProcessGroup", "Standard*", "TTY*", "Syslog*", "Log*", "Utmp*", "OpenFile", "ExtraFileDescriptors",
         "*Credential", "*CredentialEncrypted", "ImportCredentialEx"),
    ),
)  # fmt: skip
"""Why the other properties that systemd has are not compared."""


def why_not(name: str) -> str | None:
    """Say why a property is not compared; None if it is, or is not known."""
    if name in COMPARED:
        return None
    for exempt in NOT_COMPARED:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in exempt.names):
            return exempt.reason
    return None
