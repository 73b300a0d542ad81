"""Sizes, times and shares as people write and read them.

The rules are those of systemd.syntax(7) and systemd.time(7), so that what systemd-run(1) accepts is accepted here.

Pure.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping
from typing import Final

INFINITY: Final = "infinity"
"""Stands for "no limit" on the wire, which is the largest number of 64 bits on D-Bus."""

UINT64_MAX: Final = 2**64 - 1
UINT32_MAX: Final = 2**32 - 1

CPUS_MAX: Final = 8192
"""Numbers of CPUs and memory nodes are below this (``CPU_SET_MAX_NCPU`` of cpu-set-util.h)."""

_USEC_PER_SEC: Final = 1_000_000
_USEC: Final[Mapping[str, int]] = {
    **dict.fromkeys(("usec", "us", "µs", "μs"), 1),
    **dict.fromkeys(("msec", "ms"), 1000),
    **dict.fromkeys(("seconds", "second", "sec", "s", ""), _USEC_PER_SEC),
    **dict.fromkeys(("minutes", "minute", "min", "m"), 60 * _USEC_PER_SEC),
    **dict.fromkeys(("hours", "hour", "hr", "h"), 3600 * _USEC_PER_SEC),
    **dict.fromkeys(("days", "day", "d"), 86_400 * _USEC_PER_SEC),
    **dict.fromkeys(("weeks", "week", "w"), 7 * 86_400 * _USEC_PER_SEC),
    **dict.fromkeys(("months", "month", "M"), 2_629_800 * _USEC_PER_SEC),
    **dict.fromkeys(("years", "year", "y"), 31_557_600 * _USEC_PER_SEC),
}
_SIZE_UNITS: Final = "BKMGTPE"
_NUMBER: Final = r"\s*([0-9]+)(?:\.([0-9]*))?\s*"
_SPAN_PART: Final = re.compile(_NUMBER + r"([A-Za-zµμ]*)")
_SIZE_PART: Final = re.compile(_NUMBER + rf"([{_SIZE_UNITS}]?)")
_PERCENT: Final = re.compile(r"([0-9]+)(?:\.([0-9]{1,2}))?%")
_TRUE: Final = frozenset({"1", "yes", "y", "true", "t", "on"})
_FALSE: Final = frozenset({"0", "no", "n", "false", "f", "off"})


def parse_boolean(text: str) -> bool:
    """Parse "yes", "no" and their synonyms.

    Raises:
        ValueError: the text is neither.
    """
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(f"{text!r} is neither yes nor no")


def parse_number(text: str) -> int:
    """Parse a number from 0 to 2⁶⁴-1.

    Raises:
        ValueError: the text is not one.
    """
    if not text.isascii() or not text.isdigit() or len(text) > 20 or int(text) > UINT64_MAX:
        raise ValueError(f"{text!r} is not a number from 0 to {UINT64_MAX}")
    return int(text)


def parse_size(text: str, *, base: int = 1024) -> int:
    """Parse a number of bytes, such as ``512M`` or ``1.5G``.

    Args:
        text: numbers with one of the suffixes K, M, G, T, P, E, or B or no suffix for bytes; the largest unit first.
        base: what K stands for; 1000 for rates (systemd.resource-control(5)).

    Raises:
        ValueError: the text is not a size, or the size is too large.
    """
    total, at, previous = 0, 0, len(_SIZE_UNITS)
    while at < len(text):
        match = _SIZE_PART.match(text, at)
        unit = _SIZE_UNITS.index(match[3] or "B") if match is not None else previous
        if match is None or unit >= previous:
            break
        total += _scaled(match, base**unit)
        at, previous = match.end(), unit
    if not text or at < len(text) or total > UINT64_MAX:
        raise ValueError(
            f"{text!r} is not a size: give a number of bytes, or one with K, M, G or T, such as 512M"
        )
    return total


def parse_span(text: str) -> int | None:
    """Parse a span of time, such as ``90``, ``5s`` or ``1min 30s``; a number without a unit is in seconds.

    Returns:
        µs; None for "infinity".

    Raises:
        ValueError: the text is not a span of time, or the span is too long.
    """
    if text.strip() == INFINITY:
        return None
    total, at = 0, 0
    while at < len(text):
        match = _SPAN_PART.match(text, at)
        if match is None or match[3] not in _USEC:
            break
        total += _scaled(match, _USEC[match[3]])
        at = match.end()
    if not text or at < len(text) or total >= UINT64_MAX:
        raise ValueError(
            f"{text!r} is not a span of time: give seconds, or a unit, such as 500ms, 5s or 1min 30s"
        )
    return total


def _scaled(match: re.Match[str], factor: int) -> int:
    """Return the matched decimal number times a factor, rounded down."""
    # More digits are out of range, or finer than the smallest unit.
    whole, fraction = match[1].lstrip("0")[:21] or "0", (match[2] or "")[:21]
    return int(whole) * factor + int(fraction or "0") * factor // 10 ** len(fraction)


def parse_percent(text: str) -> int:
    """Parse a share such as ``50%`` or ``12.5%``.

    Returns:
        Ten-thousandths, which may be more than 10,000.

    Raises:
        ValueError: the text is not one.
    """
    match = _PERCENT.fullmatch(text)
    if match is None or len(match[1]) > 9:
        raise ValueError(f"{text!r} is not a percentage such as 50% or 12.5%")
    return int(match[1]) * 100 + int((match[2] or "").ljust(2, "0"))


def scale_of_percent(text: str) -> int:
    """Parse a share to the scale of the service manager, where 2³²-1 is 100% (``UINT32_SCALE_FROM_PERMYRIAD()``).

    Raises:
        ValueError: the text is not one, or more than the whole.
    """
    permyriad = parse_percent(text)
    if permyriad > 10_000:
        raise ValueError(f"{text!r} is more than 100%")
    return (permyriad * UINT32_MAX + 5_000) // 10_000


def parse_signal(text: str) -> int:
    """Parse a signal: its number, or its name with or without SIG; also ``RTMIN+3``, ``RTMAX-1``.

    Raises:
        ValueError: there is no such signal.
    """
    name = text.upper().removeprefix("SIG")
    match = re.fullmatch(r"(RTMIN\+|RTMAX-)([0-9]{1,2})", name)
    if match is not None:
        offset = int(match[2])
        number = signal.SIGRTMIN + offset if match[1] == "RTMIN+" else signal.SIGRTMAX - offset
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return number
    elif f"SIG{name}" in signal.Signals.__members__:
        return signal.Signals[f"SIG{name}"]
    elif re.fullmatch(r"[0-9]{1,3}", text) and 1 <= int(text) <= signal.SIGRTMAX:
        return int(text)
    raise ValueError(f"there is no signal {text!r}: give a number or a name such as SIGTERM")


def parse_set(text: str) -> frozenset[int]:
    """Parse numbers of CPUs or memory nodes, such as ``0-3,5 7``.

    Raises:
        ValueError: the text is not one.
    """
    numbers: set[int] = set()
    for part in re.split(r"[\s,]+", text.strip(" \t,")) if text.strip(" \t,") else ():
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match is not None else (1, 0)
        if not first <= last < CPUS_MAX:
            raise ValueError(f"{part!r} is not a number or range such as 0-3")
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


def set_to_bytes(numbers: Iterable[int]) -> list[int]:
    """Return the bitmap that the service manager takes for a set of CPUs, byte for byte, lowest first."""
    bitmap = sum(1 << number for number in numbers)
    return list(bitmap.to_bytes((bitmap.bit_length() + 7) // 8, "little"))


def format_set(bitmap: Iterable[int]) -> str:
    """Write a bitmap of CPUs as ranges: the inverse of :func:`set_to_bytes`."""
    ranges: list[list[int]] = []
    for number in (
        8 * place + bit for place, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1
    ):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def format_size(size: int) -> str:
    """Write a number of bytes for people: ``512.0M``."""
    exponent = min(max(size.bit_length() - 1, 0) // 10, len(_SIZE_UNITS) - 1)
    unit = _SIZE_UNITS[exponent]
    return f"{size}B" if exponent == 0 else f"{size / 1024**exponent:.1f}{unit}"


def format_exact_size(size: int, *, base: int = 1024) -> str:
    """Write a number of bytes without rounding: ``64M``, but ``67108865``. :func:`parse_size` is the inverse."""
    exponent = 0
    while size and size % base == 0 and exponent < len(_SIZE_UNITS) - 1:
        size //= base
        exponent += 1
    return f"{size}{_SIZE_UNITS[exponent] if exponent else ''}"


_FORMAT_UNITS: Final = (
    ("y", 31_557_600 * _USEC_PER_SEC),
    ("month", 2_629_800 * _USEC_PER_SEC),
    ("w", 7 * 86_400 * _USEC_PER_SEC),
    ("d", 86_400 * _USEC_PER_SEC),
    ("h", 3600 * _USEC_PER_SEC),
    ("min", 60 * _USEC_PER_SEC),
    ("s", _USEC_PER_SEC),
    ("ms", 1000),
    ("us", 1),
)


def format_span(usec: int, *, units: int = 9) -> str:
    """Write a span of time as :func:`parse_span` reads it: ``1min 30s``.

    Args:
        usec: µs.
        units: at most that many units, the largest; the rest is dropped.
    """
    parts: list[str] = []
    for name, factor in _FORMAT_UNITS:
        count, rest = divmod(usec, factor)
        if count and len(parts) < units:
            parts.append(f"{count}{name}")
        usec = rest
    return " ".join(parts) or "0"


def printable(text: str) -> str:
    r"""Escape what is not printable, ``\x1b`` for example, so that foreign text cannot control the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
