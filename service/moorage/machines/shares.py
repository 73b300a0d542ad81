"""Shares of the whole, such as half of the memory, made absolute before a unit that runs is changed.

The service manager writes a property and its share to drop-ins of their own, both as the same setting, and reads that
of the share last (``50-MemoryMaxScale.conf`` comes after ``50-MemoryMax.conf``): after its next reload a share would
be in force again that was replaced by a size long before. The sizes are computed as it does it
(``physical_memory_scale()`` and ``system_tasks_max_scale()`` of systemd's src/basic/limits-util.c).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final

from moorage.kernel import cgroup
from moorage.pid1.manager import TypedProperty

_WHOLE: Final = 2**32 - 1
"""The share that is the whole."""

_TASKS: Final = 4_194_303
"""As many processes as any kernel has (``TASKS_MAX`` of systemd)."""

_SUFFIX: Final = "Scale"

_NEVER_NOTHING: Final = {"MemoryHighScale", "MemoryMaxScale", "TasksMaxScale"}
"""Those of limits that cannot be 0 (``bus_cgroup_set_property()`` of systemd)."""


def absolute(properties: tuple[TypedProperty, ...]) -> tuple[TypedProperty, ...]:
    """Replace shares by sizes.

    Raises:
        OSError: no file descriptor is left.
    """
    return tuple(map(_absolute, properties))


def _absolute(asked: TypedProperty) -> TypedProperty:
    size = _SIZES.get(asked.name)
    if size is None or not isinstance(asked.value, int):
        return asked
    amount = size(asked.value)
    if amount == 0 and asked.name in _NEVER_NOTHING:
        return asked  # the manager refuses it by the name that the caller knows
    return TypedProperty(asked.name.removesuffix(_SUFFIX), "t", amount)


def _memory(share: int) -> int:
    page = os.sysconf("SC_PAGE_SIZE")
    pages = min(os.sysconf("SC_PHYS_PAGES"), _root("memory.max", page))
    return pages * share // _WHOLE * page


def _tasks(share: int) -> int:
    there = [_TASKS, _root("pids.max")]
    for name in ("pid_max", "threads-max"):
        with open(f"/proc/sys/kernel/{name}", encoding="ascii") as file:
            there.append(int(file.read()))
    return min(there) * share // _WHOLE


def _root(attribute: str, unit: int = 1) -> int:
    """Return a limit of the root of the hierarchy, which only a container has."""
    text = cgroup.attribute("", attribute)
    return int(text) // unit if text is not None and text.isdecimal() else 2**64


_SIZES: Final[Mapping[str, Callable[[int], int]]] = {
    **{f"Memory{limit}{_SUFFIX}": _memory for limit in ("Min", "Low", "High", "Max", "SwapMax", "ZSwapMax")},
    f"TasksMax{_SUFFIX}": _tasks,
}
