"""Memory and tasks: ceilings, which what is above undercuts; guarantees, which what is above has to give; and OOM.

The rules of the service manager are those of src/core/cgroup.c of systemd 257 to 262.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator

from moorage.machines.compared.values import (
    below,
    is_startup,
    kernel_number,
    limit_text,
    lowest_of,
    missing,
    other_value,
    percent,
    wanted_number,
)
from moorage.machines.limits import Comparison, Difference, Facts
from moorage.pid1.manager import Json


def ceiling(attribute: str, *further: str, pages: bool = True) -> Comparison:
    """Compare a limit with its attribute, and with those of the groups above."""

    def compare(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
        wanted = wanted_number(value)
        text = facts.kernel.read(attribute)
        if text is None:
            if wanted is not None:
                yield Difference(name, str(wanted), None, missing(attribute, facts))
            return
        effective = kernel_number(text)
        lowest = lowest_of(limit for each in (attribute, *further) for limit in facts.kernel.above(each))
        if lowest is not None and below(lowest[1], effective) and not is_startup(name, wanted, effective):
            yield Difference(name, limit_text(wanted), str(lowest[1]), f"{lowest[0]} has a lower limit")
        elif effective != wanted:
            yield other_value(name, wanted, effective, facts, pages=pages)

    return compare


def share(attribute: str, *further: str) -> Comparison:
    """Compare a limit that is a share of the whole: its size is the manager's to compute."""

    def compare(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
        text = facts.kernel.read(attribute)
        if text is None:
            yield Difference(name, percent(value), None, missing(attribute, facts))
            return
        lowest = lowest_of(limit for each in (attribute, *further) for limit in facts.kernel.above(each))
        if lowest is not None and below(lowest[1], kernel_number(text)):
            yield Difference(name, percent(value), str(lowest[1]), f"{lowest[0]} has a lower limit")

    return compare


def guarantee(attribute: str) -> Comparison:
    """Compare a protection with its attribute, and with what the groups above are protected from."""

    def compare(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
        wanted = wanted_number(value)
        if wanted == 0:
            return
        text = facts.kernel.read(attribute)
        if text is None:
            yield Difference(name, limit_text(wanted), None, missing(attribute, facts))
            return
        effective = kernel_number(text)
        if (less := _less_above(attribute, effective, facts)) is not None:
            yield Difference(name, limit_text(wanted), limit_text(less[1]), less[0])
        elif effective != wanted:
            yield other_value(name, wanted, effective, facts, pages=True)

    return compare


def guaranteed_share(attribute: str) -> Comparison:
    """Compare a protection that is a share of the whole."""

    def compare(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
        text = facts.kernel.read(attribute)
        if text is None:
            yield Difference(name, percent(value), None, missing(attribute, facts))
        elif (less := _less_above(attribute, kernel_number(text), facts)) is not None:
            yield Difference(name, percent(value), limit_text(less[1]), less[0])

    return compare


def _less_above(attribute: str, effective: int | None, facts: Facts) -> tuple[str, int] | None:
    """Return why and to what a group above reduces a protection (``effective_protection()`` of the kernel).

    With ``memory_recursiveprot`` what the uppermost group does not give to the others is spread over all below it, so
    that only that one bounds it; else each of them does.
    """
    above = [(path, kernel_number(text)) for path, text in facts.kernel.above(attribute)]
    bounds = [
        (path, number) for path, number in (above[-1:] if facts.recursive else above) if number is not None
    ]
    least = min(bounds, key=lambda bound: bound[1], default=None)
    if least is None or not below(least[1], effective):
        return None
    word = "nothing" if least[1] == 0 else "less"
    return f"{least[0]} protects {word}, and nothing below it is protected any better", least[1]


def least_guarantee(attribute: str, own: int | None, facts: Facts) -> int | None:
    """Return what a protection is worth below the groups above; None for one without an end."""
    less = _less_above(attribute, own, facts)
    return own if less is None else less[1]


def no_children(name: str, value: Json, _facts: Facts) -> Iterator[Difference]:
    """Return that a default for units in a slice is of no use to other units."""
    if wanted_number(value) != 0:
        yield Difference(
            name,
            limit_text(wanted_number(value)),
            None,
            "it is a default for units in a slice, which this is not",
        )


def zswap_writeback(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Compare whether compressed memory may be written to swap."""
    if not isinstance(value, bool):
        return
    text = facts.kernel.read("memory.zswap.writeback")
    if text is None:
        if not value:
            yield Difference(name, "no", None, missing("memory.zswap.writeback", facts))
        return
    off = [path for path, each in facts.kernel.above("memory.zswap.writeback") if each == "0"]
    if value and off:
        yield Difference(name, "yes", "no", f"{off[0]} has it off")
    elif (text == "1") != value:
        yield Difference(
            name, "yes" if value else "no", "no" if value else "yes", "the kernel has another value"
        )


def oom_policy(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Compare whether the kernel kills all processes of a unit at once."""
    if value not in ("stop", "kill"):
        return
    text = facts.kernel.read("memory.oom.group")
    if text is None:
        # Without it the manager does not learn of a process that was killed for lack of memory.
        yield Difference(name, str(value), None, missing("memory.oom.group", facts))
    elif (text == "1") != (value == "kill"):
        yield Difference(name, str(value), "kill" if text == "1" else "stop", "the kernel has another value")


def managed_oom(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Return where systemd-oomd could not do what it is asked for."""
    if value in ("auto", "none", "", []):
        return
    shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    if facts.kernel.read("memory.current") is None:
        yield Difference(name, shown, None, missing("memory.current", facts))
    elif name == "ManagedOOMMemoryPressure" and facts.kernel.read("memory.pressure") is None:
        yield Difference(name, shown, None, "this kernel does not measure pressure (PSI)")
    elif not facts.oomd:
        yield Difference(name, shown, None, "systemd-oomd does not run")
