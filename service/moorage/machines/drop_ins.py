"""Drop-ins of a unit that undo what is set while it runs, as soon as the service manager reads them again.

What is set is in force at once, and written to ``50-PROPERTY.conf`` beside the transient unit. At its next reload the
manager reads all drop-ins of the unit, sorted by their names whatever directories they are in (systemd.unit(5)): one
of the administrator's that comes later wins, and of two with one name that below ``system.control``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from moorage.machines.compared.values import (
    UINT64_MAX,
    limit_text,
    pairs,
    percent,
    set_of_bytes,
    set_text,
    wanted_number,
)
from moorage.machines.limits import Difference
from moorage.machines.shares import file_of
from moorage.pid1.manager import Json, TypedProperty
from moorage.quantities import parse_boolean, parse_percent, parse_set, parse_size, parse_span

_READ_MAX: Final = 64 * 1024
"""Bytes of a drop-in that are read; those of systemctl have a hundred."""

_CONTROL: Final = ".control"
"""How the directories end that come before those of transient units (``lookup_paths_init()`` of systemd)."""

_SHARE: Final = "Scale"

_AT_RELOAD: Final = "the next reload of the service manager"

_QUOTA: Final = "CPUQuotaPerSecUSec"
"""µs in each second; its setting is a percentage."""

_SETTINGS: Final[Mapping[str, str]] = {_QUOTA: "CPUQuota"}
"""Settings that have another name in unit files, besides times, of which it ends in "Sec"."""


class _Set(NamedTuple):
    """A property that is set.

    Attributes:
        name: as the caller knows it.
        value: as the caller has written it.
        signature: of the value that is sent.
    """

    name: str
    value: Json
    signature: str


def undone(
    asked: Mapping[str, Json], converted: Sequence[TypedProperty], drop_ins: Sequence[str]
) -> list[Difference]:
    """Return what will not be in force any more after the next reload of the manager.

    Args:
        asked: properties, as the caller has written them.
        converted: the same, by their types.
        drop_ins: paths of the unit's drop-ins.
    """
    found: list[Difference] = []
    for name, signature, _ in converted:
        base = name.removesuffix(_SHARE)
        for path in _later(base, drop_ins):
            try:
                found += _undone_by(
                    path, _Set(name, asked[name], signature), list(_assigned(path, _setting(base)))
                )
            except (OSError, ValueError, KeyError):
                continue  # what is in it is not known
    return found


def _later(base: str, drop_ins: Sequence[str]) -> Iterator[str]:
    """Yield the drop-ins that are read instead of that of a property, or after it."""
    own = {file_of(base), file_of(base + _SHARE)}
    for path in drop_ins:
        directory, _, file = path.rpartition("/")
        if directory.rpartition("/")[0].endswith(_CONTROL) if file in own else file > file_of(base):
            yield path


def _setting(base: str) -> str:
    return _SETTINGS.get(base) or (f"{base.removesuffix('USec')}Sec" if base.endswith("USec") else base)


def _assigned(path: str, setting: str) -> Iterator[str]:
    """Yield the values of a setting in a drop-in.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        data = file.read(_READ_MAX) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    for line in data.decode(errors="replace").replace("\\\n", " ").split("\n"):
        name, equals, value = line.partition("=")
        if equals and name.strip() == setting:
            yield value.strip()


def _undone_by(path: str, wanted: _Set, assigned: list[str]) -> Iterator[Difference]:
    reason = f"{path} has another value, which is in force after {_AT_RELOAD}"
    if not assigned:
        return
    if not wanted.signature.startswith("a") or wanted.signature == "ay":
        if not _is_same(wanted, assigned[-1]):
            yield Difference(wanted.name, _text(wanted), assigned[-1] or None, reason)
        return
    # What a later one adds to a list changes nothing, unless it empties the list first, or is about the same device.
    if "" in assigned:
        yield Difference(wanted.name, _text(wanted), None, f"{path} empties the list with {_AT_RELOAD}")
        return
    for device, value in pairs(wanted.value):
        texts = [text for text in assigned if text.split(maxsplit=1)[0] == device]
        if texts and texts[-1].split() != [device, str(value)]:
            yield Difference(wanted.name, f"{device} {value}", texts[-1], reason)


def _is_same(wanted: _Set, text: str) -> bool:
    """Whether a drop-in has the value that is set, however it is written.

    Raises:
        ValueError: that cannot be told.
    """
    name, value, signature = wanted
    if text == _text(wanted):
        return True
    if signature == "b":
        return parse_boolean(text) == value
    if signature == "ay":
        return parse_set(text) == set_of_bytes(value)
    if signature != "t":
        return False
    number = wanted_number(value)
    if not text:  # that takes back what came before
        return number is None
    if name == _QUOTA:
        return number is not None and parse_percent(text) * 100 == number
    if name.endswith("USec"):
        return parse_span(text) == number
    return not text.endswith("%") and parse_size(text) == number


def _text(wanted: _Set) -> str:
    """Write a value as the caller knows it.

    Raises:
        ValueError: there is no text for it.
    """
    name, value, signature = wanted
    if name.endswith(_SHARE):
        return percent(value)
    if signature == "ay":
        return set_text(set_of_bytes(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if signature == "t" and value in ("infinity", UINT64_MAX):
        return limit_text(None)
    if isinstance(value, int | str):
        return str(value)
    return ", ".join(
        " ".join(map(str, item)) if isinstance(item, list) else str(item)
        for item in (value if isinstance(value, list) else [])
    )
