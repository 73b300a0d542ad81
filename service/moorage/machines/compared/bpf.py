"""Devices, addresses, ports and interfaces: what the service manager has the kernel keep by BPF programs.

Pure: no I/O.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from typing import Final

from moorage.machines.compared.values import pairs
from moorage.machines.limits import Difference, Facts
from moorage.pid1.manager import Json

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
            return [(f"{kind} {path}", (_ATTACH[kind],)) for kind, path in pairs(value) if kind in _ATTACH]
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
            return ", ".join(f"{first}{separator}{second}".strip() for first, second in pairs(value))
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


_RULES: Final[Mapping[int, tuple[str, ...]]] = {
    _DEVICE: ("DevicePolicy", "DeviceAllow"),
    _EGRESS: (
        "IPAddressDeny",
        "IPAddressAllow",
        "IPAccounting",
        "IPIngressFilterPath",
        "IPEgressFilterPath",
    ),
}
"""Properties that the manager makes programs of an attach type for, all at once."""

RULES: Final = frozenset(name for names in _RULES.values() for name in names)
"""Those whose programs may stay without them."""

MORE_PROGRAMS: Final = frozenset({"RestrictNetworkInterfaces", "BPFProgram"})
"""Others that have programs of these types."""


def _left_behind(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Find the program of rules that a unit does not have any more.

    The manager replaces a program while the unit needs one. When it needs none, that of before stays, until another
    unit of the slice needs one of the kind (``cgroup_context_apply()`` of systemd 257 and 262).
    """
    for number, names in _RULES.items():
        first = next((each for each in names if each in facts.properties), None)  # one difference is enough
        if name == first and facts.programs and facts.configured:
            needed = attached(facts.configured)
            configured = {each: facts.configured.get(each) for each in names}
            if not attached(configured) and facts.programs.get(number, 0) > needed.get(number, 0):
                reason = (
                    "the BPF program of earlier rules is in force: systemd leaves it where no other follows"
                )
                yield Difference(name, _bpf_words(name, value), None, reason)


def programs(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Compare what takes BPF programs with those that the kernel has for the group."""
    features = _features(name, value)
    if not features:
        yield from _left_behind(name, value, facts)
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


def device_allow(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Find rules that match nothing; then, whether there is anything that keeps the rules."""
    useless = 0
    for path, access in pairs(value):
        reason = _matches_nothing(path, facts)
        if reason is not None:
            useless += 1
            yield Difference(name, f"{path} {access}".strip(), None, reason)
    if useless < len(pairs(value)) or not useless:
        yield from programs(name, value, facts)


def _matches_nothing(path: str, facts: Facts) -> str | None:
    """Return the reason why a rule matches no device (``cgroup_apply_device_rules()``); None if it may match."""
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


_STATIC: Final = (
    "/dev/null rwm", "/dev/zero rwm", "/dev/full rwm", "/dev/random rwm", "/dev/urandom rwm", "/dev/tty rwm",
    "/dev/ptmx rwm", "/run/systemd/inaccessible/chr rwm", "/run/systemd/inaccessible/blk rwm", "char-pts rw",
)  # fmt: skip
"""What the policy "closed" allows by itself (``bpf_devices_allow_list_static()``)."""


def device_rules(policy: Json, allowed: Json, facts: Facts) -> list[str] | None:
    """Return the rules that allow a unit to open devices, as DeviceAllow= has them; None where it may open any.

    Rules that match nothing are left out, for the manager makes nothing of them.

    Args:
        policy: value of DevicePolicy.
        allowed: value of DeviceAllow.
        facts: what paths lead to, and drivers.
    """
    rules = pairs(allowed)
    if policy == "auto" and not rules:
        return None
    found = [f"{path} {access}" for path, access in rules if _matches_nothing(path, facts) is None]
    return found if policy == "strict" else [*dict.fromkeys((*_STATIC, *found))]


def has_device_program(programs: Mapping[int, int]) -> bool:
    """Whether a group has a program that judges who may open devices.

    Args:
        programs: number of programs attached to it, by the number of the attach type.
    """
    return programs.get(_DEVICE, 0) > 0


def attached(properties: Mapping[str, Json]) -> dict[int, int]:
    """Return how many BPF programs of each attach type properties take."""
    wanted: dict[int, int] = {}
    for types in {feature: types for name, value in properties.items()
                  for feature, types in _features(name, value)}.values():  # fmt: skip
        for number in types:
            wanted[number] = wanted.get(number, 0) + 1
    return wanted
