"""Properties as people write them in unit files and for systemd-run(1), converted to the JSON that the service takes.

The service reports which properties its service manager has, and the D-Bus signature of each
(io.moorage.Machine.DescribeProperties). Names and values are converted by these, so that a new systemd needs no new
moorctl. A value may also be written as JSON, where its type is an array or a struct.

Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Final

from moorage.cli.properties.converters import (
    BY_SIGNATURE,
    MICROSECONDS,
    MODE,
    NUMBERS,
    SIGNAL,
    Converter,
    Json,
    device_span,
    directories,
    extended,
    limit,
    soft_and_hard,
    span,
)
from moorage.cli.properties.irregular import ALIASES, TABLE, condition
from moorage.quantities import parse_size
from moorage.similar import did_you_mean, nearest

_STATUS: Final = re.compile(
    r"^(Can|Effective|N)[A-Z]|(Timestamp|Monotonic|Current|Peak|Bytes|Packets|Operations|Result|State|Id|ID)$"
)
"""Shapes of names that no property has which can be set: they are not worth suggesting."""

Signatures = Mapping[str, str]
"""D-Bus signatures of the properties that a type of unit has, by their names on D-Bus."""


class NoSuchProperty(ValueError):
    """There is no such property; the message tells the nearest names.

    Attributes:
        name: as it was written.
    """

    def __init__(self, name: str, known: Signatures) -> None:
        super().__init__(_unknown(name, known))
        self.name = name


def convert(assignments: Iterable[str], known: Signatures) -> dict[str, Json]:
    """Convert properties that are written ``NAME=VALUE``.

    The last of several values for one property counts; those of a list are joined, and an empty value resets it.

    Raises:
        ValueError: one of them cannot be converted; the message names it.
    """
    properties: dict[str, Json] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or not name.isascii() or not name.isalnum():
            raise ValueError(f"{assignment!r} is not NAME=VALUE")
        _add(properties, name, text, known)
    return properties


def convert_values(values: Mapping[str, Json], known: Signatures) -> dict[str, Json]:
    """Convert properties of a file, whose values are texts as for :func:`convert`, or JSON.

    Where a property is a list, its value may be a list of such texts; where it is a span of time, a number of seconds.

    Raises:
        ValueError: one of them cannot be converted; the message names it.
    """
    properties: dict[str, Json] = {}
    for name, value in values.items():
        match value:
            case str():
                _add(properties, name, value, known)
            case int() | float() if name not in known and name.endswith("Sec") and value is not True:
                _add(properties, name, str(value), known)
            case [str(), *_] if _is_list(name, known) and all(isinstance(item, str) for item in value):
                for item in value:
                    _add(properties, name, item, known)
            case _ if name in known:
                properties[name] = value
            case _:
                converter_of(name, known)
                raise ValueError(f"{name}: write the value as a text, as in a unit file")
    return properties


def _is_list(name: str, known: Signatures) -> bool:
    """Whether a property is a list whose elements are not plain texts; conditions are one, under another name."""
    return known.get(_on_bus(name, known) or "Conditions", "").startswith(("a(", "aa"))


def without_names(values: Mapping[str, Json]) -> dict[str, Json]:
    """Convert properties of a file as far as that is possible without knowing those of the service manager.

    The others are returned as they are.

    Raises:
        ValueError: one of them cannot be converted; the message names it.
    """
    properties: dict[str, Json] = {}
    for name, value in values.items():
        converter = TABLE.get(name)
        if converter is None or not isinstance(value, str) or value.startswith(("[", "{")):
            properties[name] = value
        else:
            properties |= _named(name, converter, value)
    return properties


def converter_of(name: str, known: Signatures) -> Converter | None:
    """Return how a property is written; None if its value can only be written as JSON.

    Args:
        name: as in a unit file, or as on D-Bus.
        known: properties of the type of unit.

    Raises:
        NoSuchProperty: a type of unit does not have it.
    """
    on_bus = _on_bus(name, known)
    if on_bus is None:
        if name.startswith(("Condition", "Assert")) and "Conditions" in known:
            return condition
        raise NoSuchProperty(name, known)
    if name in TABLE:
        return TABLE[name]
    if name != on_bus:
        return device_span if known[on_bus] == "a(st)" else span
    return _by_relatives(name, known) or _by_suffix(name, known[name]) or BY_SIGNATURE.get(known[name])


def _on_bus(name: str, known: Signatures) -> str | None:
    """Return the name of a property on D-Bus; None if it does not exist."""
    if name in known:
        return name
    other = ALIASES.get(name) or (f"{name.removesuffix('Sec')}USec" if name.endswith("Sec") else "")
    return other if other in known else None


def _by_relatives(name: str, known: Signatures) -> Converter | None:
    """Return the converter of a property that has more than one name on D-Bus."""
    match known[name]:
        case "b" if (more := known.get(f"{name}Ex")) is not None:
            return extended(more)
        case "t" if f"{name}Scale" in known:
            return limit(parse_size)
        case "t" if f"{name}Soft" in known:
            return soft_and_hard(parse_size)
        case "as" if f"{name}Symlink" in known:
            return directories
        case _:
            return None


def _by_suffix(name: str, signature: str) -> Converter | None:
    """Return the converter of a property whose name says what its numbers are."""
    match signature:
        case "i" if name.endswith("Signal"):
            return SIGNAL
        case "u" if name.endswith("Mode"):
            return MODE
        case "t" if name.endswith("USec"):
            return MICROSECONDS
        case "ay" if name.endswith(("CPUs", "Nodes")):
            return NUMBERS
        case _:
            return None


def _unknown(name: str, known: Signatures) -> str:
    """Say that there is no such property, and which could be meant."""
    offered = [each for each in settings(known) if _STATUS.search(each) is None]
    return f"there is no property {name}{did_you_mean(nearest(name, offered))}"


def settings(known: Signatures) -> list[str]:
    """Return the names that people write for properties: those of unit files."""
    aliased = {on_bus: alias for alias, on_bus in ALIASES.items() if alias != "TimeoutSec"}
    found: list[str] = []
    for name, signature in known.items():
        if any(
            name.endswith(end) and name.removesuffix(end) in known
            for end in ("Ex", "Scale", "Soft", "Symlink")
        ):
            continue
        if name.endswith("USec") and signature in {"t", "a(st)"} and name not in aliased:
            found.append(f"{name.removesuffix('USec')}Sec")
        else:
            found.append(aliased.get(name, name))
    return found


def _add(properties: dict[str, Json], name: str, text: str, known: Signatures) -> None:
    for each, value in _converted(name, text, known).items():
        if each not in known:
            raise ValueError(f"{name}: this version of systemd has no property {each}, which {text!r} needs")
        # Added anew, so that the later of two that mean the same (MemoryMax, MemoryMaxScale) reaches the service
        # manager later, too.
        properties[each] = _joined(properties.pop(each, None), value)


def _joined(before: Json, value: Json) -> Json:
    match before, value:
        case list(), [first, *_] if not isinstance(first, int):  # numbers are bytes, which are one value
            return [*before, *value]
        case _:
            return value


def _converted(name: str, text: str, known: Signatures) -> Mapping[str, Json]:
    converter = converter_of(name, known)
    on_bus = _on_bus(name, known) or name
    if text.startswith(("[", "{")) and known.get(on_bus, "a").startswith(("a", "(")):
        converter = None
    if converter is not None:
        return _named(name, converter, text)
    try:
        return {on_bus: json.loads(text, parse_constant=_refuse_constant)}
    except (ValueError, RecursionError):
        raise ValueError(
            f"{name}: {text!r} is not JSON, which a value of the D-Bus type {known.get(on_bus)} is written in"
        ) from None


def _named(name: str, converter: Converter, text: str) -> Mapping[str, Json]:
    try:
        return converter(name, text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _refuse_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")  # but Python's own extension
