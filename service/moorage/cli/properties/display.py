"""Properties as people read them.

Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from moorage.quantities import (
    INFINITY,
    UINT64_MAX,
    format_exact_size,
    format_set,
    format_size,
    format_span,
)


def setting_words(name: str, text: str) -> tuple[str, str]:
    """Write a property as a person would have set it.

    Args:
        name: of the property as the service manager has it, such as "CPUQuotaPerSecUSec".
        text: its value: a number, or a device and a number; everything else is returned unchanged.

    Returns:
        The name and the value to set it with, such as "CPUQuota" and "50%".
    """
    device, separator, number = text.rpartition(" ")
    write = _writer(name)
    words = f"{device}{separator}{write(int(number))}" if number.isascii() and number.isdigit() else text
    return setting_name(name), words


def assignment(name: str, value: Any) -> str:
    """Write a property and its value in JSON as a person sets it, such as "AllowedCPUs=0-3"."""
    match value:
        case str():
            return f"{name}={value}"
        case int() if not isinstance(value, bool) and value != UINT64_MAX and not name.endswith("Scale"):
            name, text = setting_words(name, str(value))
            return f"{name}={text}"
        case [*numbers] if _is_set(name, numbers):
            return f"{name}={format_set(numbers)}"
        case [bool(only), [*words]] if _are_plain(words):
            return f"{name}={'' if only else '~'}{' '.join(words)}"
        case [*words] if _are_plain(words):
            return f"{name}={' '.join(words)}"
        case _:
            return f"{name}={json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"


def _is_set(name: str, value: list[Any]) -> bool:
    return name.removeprefix("Startup").startswith("Allowed") and all(
        isinstance(each, int) for each in value
    )


def _is_network(value: Any) -> bool:
    match value:
        case [int(), [*octets], int()]:
            return len(octets) in {4, 16} and all(
                isinstance(each, int) and 0 <= each < 256 for each in octets
            )
        case _:
            return False


def _network(value: list[Any]) -> str:
    # What is hardly ever shown need not be there at each start of moorctl.
    from ipaddress import ip_address

    _, octets, prefix = value
    return f"{ip_address(bytes(octets))}/{prefix}"


def _is_of_device(value: Any) -> bool:
    """Whether a value is that of one device, such as ["/dev/vda", 5]."""
    match value:
        case [str(), None]:
            return True
        case [str(), int(number)]:
            return not isinstance(number, bool)
        case _:
            return False


def _are_plain(words: list[Any]) -> bool:
    """Whether a list can be written as words without quotes."""
    return bool(words) and all(isinstance(word, str) and re.fullmatch(r"[\w@./-]+", word) for word in words)


def setting_name(name: str) -> str:
    """Return the name under which people set a property, such as "CPUQuota" for "CPUQuotaPerSecUSec"."""
    if name == "CPUQuotaPerSecUSec":
        return "CPUQuota"
    if name.endswith("USec"):
        return f"{name.removesuffix('USec')}Sec"
    return name.removesuffix("Scale")


def _writer(name: str) -> Callable[[int], str]:
    if name == "CPUQuotaPerSecUSec":
        return _quota
    if name.endswith("CPUWeight"):
        return _weight
    if name.endswith("USec"):
        return format_span
    if _is_size(name):
        return format_exact_size
    if name.endswith("BandwidthMax"):
        return lambda size: format_exact_size(size, base=1000)
    return str


def _weight(weight: int) -> str:
    # CGROUP_WEIGHT_IDLE of systemd.
    return "idle" if weight == 0 else str(weight)


def _quota(usec: int) -> str:
    return f"{usec / 10_000:g}%"


def _is_size(name: str) -> bool:
    for prefix in ("Default", "Startup", "Effective"):
        name = name.removeprefix(prefix)
    return name.startswith("Memory")


def limit_words(name: str, value: Any) -> str:
    """Write the value of a limit for people.

    Args:
        name: of the property as the service manager has it.
        value: in JSON; None stands for the largest number of 64 bits.
    """
    match value:
        case None:
            return INFINITY
        case bool():
            return "yes" if value else "no"
        case int() if value == UINT64_MAX:
            return INFINITY
        case int() if _is_size(name) and not name.endswith("USec"):
            return format_size(value)
        case int():
            return _writer(name)(value)
        case [*numbers] if _is_set(name, numbers):
            return format_set(numbers)
        case [*words] if all(isinstance(word, str) for word in words):
            return " ".join(words)
        case [*networks] if name.startswith("IPAddress") and all(map(_is_network, networks)):
            return " ".join(map(_network, networks))
        case [*pairs] if all(_is_of_device(pair) for pair in pairs):
            return ", ".join(f"{device} {limit_words(name, number)}" for device, number in pairs)
        case str():
            return value
        case _:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
