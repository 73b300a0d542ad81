"""Limits that are lower than what is in use: what the kernel makes of them (cgroup-v2.rst).

None of them is refused. The kernel ends no task for ``pids.max``, and swaps nothing in for ``memory.swap.max``. For
``memory.max`` it reclaims memory, and kills where that is not enough: at once, or, where the service manager does not
wait for it (``O_NONBLOCK``, Linux 6.16), when the group takes more.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from moorage.machines.compared.values import below, kernel_number, limit_text, percent, wanted_number
from moorage.machines.limits import Difference, Kernel
from moorage.pid1.manager import Json
from moorage.quantities import format_size

_SCALE: Final = "Scale"


class _Limit(NamedTuple):
    """A limit of something that is used.

    Attributes:
        attribute: has the limit.
        usage: has what is in use.
        remains: what becomes of that for as long as it is too much.
    """

    attribute: str
    usage: str
    remains: str


_LIMITS: Final[Mapping[str, _Limit]] = {
    "MemoryMax": _Limit(
        "memory.max", "memory.current", "the kernel reclaims memory, or kills, when more is taken"
    ),
    "MemoryHigh": _Limit(
        "memory.high", "memory.current", "the kernel reclaims memory, and slows down whoever takes more"
    ),
    "MemorySwapMax": _Limit(
        "memory.swap.max", "memory.swap.current", "that stays in swap, and no more is swapped out"
    ),
    "MemoryZSwapMax": _Limit(
        "memory.zswap.max", "memory.zswap.current", "that stays compressed, and no more is compressed"
    ),
    "TasksMax": _Limit("pids.max", "pids.current", "none of them is ended, and no other can be started"),
}


class Use(NamedTuple):
    """What is in use.

    Attributes:
        amounts: by the name of the attribute.
        killed: how many processes the kernel has killed for lack of memory; None if that is not counted.
    """

    amounts: Mapping[str, int]
    killed: int | None


def use(properties: Mapping[str, Json], kernel: Kernel) -> Use | None:
    """Return what a group uses of what some properties limit; None if they limit nothing of it."""
    found = {_LIMITS[base].usage for base in map(_base, properties) if base in _LIMITS}
    if not found:
        return None
    texts = {attribute: kernel.read(attribute) for attribute in found}
    events = (kernel.read("memory.events") or "").split()
    killed = dict(zip(events[::2], events[1::2], strict=False)).get("oom_kill")
    amounts = {attribute: int(text) for attribute, text in texts.items() if text}
    return Use(amounts, None if killed is None else int(killed))


def exceeded(
    properties: Mapping[str, Json], before: Use, now: Use | None, kernel: Kernel
) -> Iterator[Difference]:
    """Say what the kernel makes of limits that are lower than what was in use.

    Args:
        properties: that were asked for.
        before: what was in use until then.
        now: what is in use with them; None if they are only rehearsed.
        kernel: what it has of the group with them.
    """
    for name, value in properties.items():
        limit = _LIMITS.get(_base(name))
        text = None if limit is None or limit.usage not in before.amounts else kernel.read(limit.attribute)
        if limit is None or text is None:
            continue
        effective, used = kernel_number(text), before.amounts[limit.usage]
        if not below(effective, used):
            continue
        wanted = percent(value) if name.endswith(_SCALE) else limit_text(wanted_number(value))
        yield Difference(name, wanted, limit_text(effective), _words(limit, before, now, effective))


def _words(limit: _Limit, before: Use, now: Use | None, effective: int | None) -> str:
    used = before.amounts[limit.usage]
    left = used if now is None else now.amounts.get(limit.usage, 0)
    killed = 0 if now is None else (now.killed or 0) - (before.killed or 0)
    if limit.attribute == "pids.max":
        return f"there are {used} tasks: {limit.remains} before they are fewer"
    if killed > 0 and limit.attribute == "memory.max":
        processes = "a process" if killed == 1 else f"{killed} processes"
        return f"{format_size(used)} were in use, and the kernel has killed {processes} for that"
    if not below(effective, left):
        return f"{format_size(used)} were in use, and the kernel has reclaimed what was too much"
    return f"{format_size(left)} are in use: {limit.remains}"


def _base(name: str) -> str:
    return name.removesuffix(_SCALE)
