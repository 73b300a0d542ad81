"""Limits that hold for a control group: its own, or a lower one of a group above it.

:mod:`moorage.machines.compared.in_effect` tells all of one machine; this is for one limit of many of them.
"""

from __future__ import annotations

from typing import TypeAlias

from moorage.kernel.cgroup import Hierarchy

Known: TypeAlias = dict[tuple[str, str], int | None]
"""What was read of groups that are above many others, so that it is read once: for one look at all machines."""


def ceiling(hierarchy: Hierarchy, control_group: str, attribute: str, known: Known) -> int | None:
    """Return the lowest limit that holds for a group; None where there is none.

    Args:
        hierarchy: of the kernel.
        control_group: path of the group.
        attribute: such as ``memory.max``.
        known: of the groups above; what is read of them is added.

    Raises:
        OSError: no file descriptor is left, or no memory.
    """
    above = control_group.rpartition("/")[0]
    if (above, attribute) not in known:
        known[above, attribute] = ceiling(hierarchy, above, attribute, known) if above else None
    text = hierarchy.attribute(control_group, attribute)
    limits = (known[above, attribute], int(text) if text is not None and text.isdecimal() else None)
    return min((limit for limit in limits if limit is not None), default=None)
