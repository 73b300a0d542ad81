"""Shares of the whole, such as half of the memory, and the sizes that replace them.

The service manager writes a property and its share to drop-ins of their own, both as the same setting, and reads that
of the share last (``50-MemoryMaxScale.conf`` comes after ``50-MemoryMax.conf``): after its next reload a share would
be in force again that was replaced by a size long before. So shares are sent as sizes. Where somebody else has set a
share it has a drop-in already, which is written anew with each size: so that it says nothing, where the manager
ignores a share of 0.00 %, else with the share that is nearest to the size.

The sizes are computed as it does it (``physical_memory_scale()`` and ``system_tasks_max_scale()`` of systemd's
src/basic/limits-util.c).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple

from moorage.kernel import cgroup
from moorage.machines.compared.values import UINT64_MAX, limit_text, wanted_number
from moorage.machines.limits import Difference
from moorage.pid1.manager import TypedProperty

_WHOLE: Final = 2**32 - 1
"""The share that is the whole."""

_PARTS: Final = 10_000
"""Of them a drop-in has whole ones: hundredths of a percent."""

_TASKS: Final = 4_194_303
"""As many processes as any kernel has (``TASKS_MAX`` of systemd)."""

_SUFFIX: Final = "Scale"

_NEVER_NOTHING: Final = {"MemoryHighScale", "MemoryMaxScale", "TasksMaxScale"}
"""Those of limits that cannot be 0 (``bus_cgroup_set_property()`` of systemd)."""

_IGNORED: Final = {"MemoryHighScale", "MemoryMaxScale"}
"""Those of which the manager ignores 0.00 % in a drop-in (``config_parse_memory_limit()``); TasksMax would be 0."""

_NEXT_TO_NOTHING: Final = _WHOLE // (2 * _PARTS)
"""The largest share that is written as 0.00 %."""

_AFTER_RELOAD: Final = (
    "a share was set earlier, such as with systemctl, and cannot be taken back: after the next reload of the service "
    "manager the share that is nearest to this is in force"
)


class Lasting(NamedTuple):
    """Properties to send, so that they are in force also after a reload of the manager.

    Attributes:
        sent: the properties.
        differences: what will be another value then.
    """

    sent: tuple[TypedProperty, ...]
    differences: list[Difference]


def lasting(properties: tuple[TypedProperty, ...], drop_ins: Collection[str]) -> Lasting:
    """Replace shares by sizes, and the shares that others have set by what does not undo the sizes.

    Args:
        properties: as asked for.
        drop_ins: names of the unit's drop-ins, without directories.

    Raises:
        OSError: no file descriptor is left.
    """
    sent: list[TypedProperty] = []
    different: list[Difference] = []
    for asked in properties:
        size = asked.name.removesuffix(_SUFFIX)
        share = size + _SUFFIX
        if share not in _SIZES or not isinstance(asked.value, int):
            sent.append(asked)
        elif file_of(share) not in drop_ins:
            sent.append(_absolute(asked))
        elif asked.name == share:
            sent.append(asked)  # it replaces the other one
        else:
            nearest, there = _instead(share, asked.value)
            sent += nearest, asked
            if there not in {None, asked.value}:
                wanted = limit_text(wanted_number(asked.value))
                different.append(Difference(size, wanted, str(there), _AFTER_RELOAD))
    return Lasting(tuple(sent), different)


def file_of(name: str) -> str:
    """Return the name of the drop-in in which the manager keeps a property that was set (``unit_write_setting()``)."""
    return f"50-{name}.conf"


def _absolute(asked: TypedProperty) -> TypedProperty:
    size = _SIZES.get(asked.name)
    if size is None or not isinstance(asked.value, int):
        return asked
    amount = size(asked.value, _WHOLE)
    if amount == 0 and asked.name in _NEVER_NOTHING:
        return asked  # the manager refuses it by the name that the caller knows
    return TypedProperty(asked.name.removesuffix(_SUFFIX), "t", amount)


def _instead(share: str, wanted: int) -> tuple[TypedProperty, int | None]:
    """Return the share to set before a size, and which size it is after a reload; None for that which was set."""
    size = _SIZES[share]
    if share in _IGNORED and size(_NEXT_TO_NOTHING, _WHOLE) > 0:
        return TypedProperty(share, "u", _NEXT_TO_NOTHING), None
    whole = size(_PARTS, _PARTS)
    parts = _PARTS if wanted == UINT64_MAX else min(_PARTS, (wanted * _PARTS + whole // 2) // whole)
    if share in _NEVER_NOTHING:
        parts = max(parts, 1)
    # The manager takes no TasksMaxScale of the whole, but rounds what is next to it.
    return TypedProperty(share, "u", min(parts * _WHOLE // _PARTS, _WHOLE - 1)), size(parts, _PARTS)


def _memory(part: int, of: int) -> int:
    page = os.sysconf("SC_PAGE_SIZE")
    pages = min(os.sysconf("SC_PHYS_PAGES"), _root("memory.max", page))
    return pages * part // of * page


def _tasks(part: int, of: int) -> int:
    there = [_TASKS, _root("pids.max")]
    for name in ("pid_max", "threads-max"):
        with open(f"/proc/sys/kernel/{name}", encoding="ascii") as file:
            there.append(int(file.read()))
    return min(there) * part // of


def _root(attribute: str, unit: int = 1) -> int:
    """Return a limit of the root of the hierarchy, which only a container has."""
    text = cgroup.attribute("", attribute)
    return int(text) // unit if text is not None and text.isdecimal() else 2**64


_SIZES: Final[Mapping[str, Callable[[int, int], int]]] = {
    **{f"Memory{limit}{_SUFFIX}": _memory for limit in ("Min", "Low", "High", "Max", "SwapMax", "ZSwapMax")},
    f"TasksMax{_SUFFIX}": _tasks,
}
"""What computes the size of a share, which is a part of so many."""
