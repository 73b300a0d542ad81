"""Values of properties, and of the kernel's attributes, for all comparisons.

Pure: no I/O.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from typing import Final

from moorage.machines.limits import Difference, Facts
from moorage.pid1.manager import Json

INFINITY: Final = "infinity"
UINT64_MAX: Final = 2**64 - 1
UINT32_MAX: Final = 2**32 - 1

STARTUP: Final = "Startup"
ONLY_DURING_STARTUP: Final = "it is in force only while the system starts up or shuts down"


def wanted_number(value: Json) -> int | None:
    """A number that was asked for; None for no limit.

    Raises:
        ValueError: it is not a number.
    """
    if value in (INFINITY, UINT64_MAX):
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(value)  # noqa: TRY004 - left out, as a text of the kernel is that is not understood
    return value


def limit_text(number: int | None) -> str:
    """Write a limit, of which None is none."""
    return INFINITY if number is None else str(number)


def kernel_number(text: str) -> int | None:
    """Read a limit of the kernel; None for no limit."""
    return None if text == "max" else int(text)


def below(first: int | None, second: int | None) -> bool:
    """Whether a limit is lower than another one."""
    return first is not None and (second is None or first < second)


def whole_pages(number: int | None) -> int | None:
    """Round a number of bytes as the kernel does; None is no limit."""
    return None if number is None else number // mmap.PAGESIZE * mmap.PAGESIZE


def percent(scale: Json) -> str:
    """Write a share of the whole.

    Raises:
        ValueError: it is not a number.
    """
    if isinstance(scale, bool) or not isinstance(scale, int):
        raise ValueError(scale)  # noqa: TRY004 - left out, as a text of the kernel is that is not understood
    return f"{round(scale * 10_000 / UINT32_MAX) / 100:g}%"


def pairs(value: Json) -> list[tuple[str, Json]]:
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


def missing(attribute: str, facts: Facts) -> str:
    """Return the reason why a group lacks an attribute."""
    controller = attribute.partition(".")[0]
    if controller in (facts.kernel.read("cgroup.controllers") or "").split():
        return f"this kernel has no {attribute}"
    if facts.user:
        return f"the controller “{controller}” is not delegated to this user's service manager"
    return f"the controller “{controller}” is not available to this unit"


def lowest_of(above: Iterable[tuple[str, str]]) -> tuple[str, int] | None:
    """Return the lowest of some limits with its path; None without any."""
    limits = [(path, int(text)) for path, text in above if text != "max"]
    return min(limits, key=lambda limit: limit[1], default=None)


def upwards(attribute: str, facts: Facts) -> list[str]:
    """Return the texts of an attribute in a group and those above it, where it is: each of them bounds the group."""
    own = facts.kernel.read(attribute)
    above = [text for _, text in facts.kernel.above(attribute)]
    return above if own is None else [own, *above]


def is_startup(name: str, wanted: int | None, effective: int | None) -> bool:
    """Whether a property is one for the start of the system, and not in force."""
    return name.startswith(STARTUP) and effective not in {wanted, whole_pages(wanted)}


def other_value(
    name: str, wanted: int | None, effective: int | None, facts: Facts, *, pages: bool
) -> Difference:
    """Return the reason why the kernel has another number."""
    startup = facts.properties.get(f"{STARTUP}{name}")
    if pages and effective == whole_pages(wanted):
        reason = "rounded down to whole pages of memory"
    elif name.startswith(STARTUP):
        reason = ONLY_DURING_STARTUP
    elif startup is not None and effective in {wanted_number(startup), whole_pages(wanted_number(startup))}:
        reason = f"{STARTUP}{name}= is in force while the system starts up or shuts down"
    else:
        reason = "the kernel has another value"
    return Difference(name, limit_text(wanted), limit_text(effective), reason)
