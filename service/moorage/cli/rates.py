"""What machines use, from two looks at them: one row for each.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias

import msgspec

from moorage.client.types import Pressures, Sample

Key: TypeAlias = "tuple[bool, float | str]"

PRESSURE_WORDS: Final = {"cpu": "cpu", "memory": "mem", "io": "io"}


class Row(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a machine uses. None: it is not known, or not yet.

    Attributes:
        name: of the machine.
        phase: where it is in its life.
        freezer: state of its freezer.
        cpu_percent: CPU time since the last look, in percent of one CPU.
        memory_current: bytes.
        memory_max: the lowest limit of it and of the slices above, in bytes.
        tasks_current: number of tasks.
        tasks_max: likewise.
        io_read_rate: bytes per second since the last look.
        io_write_rate: likewise.
        pressure: share of the last ten seconds for which tasks waited, in percent, by the resource.
        host: that it is on, where there are several.
    """

    name: str
    phase: str
    freezer: str
    cpu_percent: float | None = None
    memory_current: int | None = None
    memory_max: int | None = None
    tasks_current: int | None = None
    tasks_max: int | None = None
    io_read_rate: float | None = None
    io_write_rate: float | None = None
    pressure: dict[str, float] = {}
    host: str | None = None

    @property
    def memory_share(self) -> float | None:
        """Share of the limit of memory that is used."""
        return (
            self.memory_current / self.memory_max
            if self.memory_current is not None and self.memory_max
            else None
        )

    @property
    def io_rate(self) -> float | None:
        """Bytes read and written per second."""
        known = [rate for rate in (self.io_read_rate, self.io_write_rate) if rate is not None]
        return sum(known) if known else None

    @property
    def worst_pressure(self) -> tuple[float, str] | None:
        """The highest pressure, and the resource."""
        return max(((share, name) for name, share in self.pressure.items()), default=None)


def rows(samples: Iterable[Sample], before: Mapping[str, Sample]) -> list[Row]:
    """Return a row for each sample.

    Args:
        samples: of this look.
        before: those of the last look, by the names of their machines.
    """
    return [_row(sample, before.get(sample.name)) for sample in samples]


def _row(sample: Sample, before: Sample | None) -> Row:
    usage, limits = sample.accounting, sample.limits or {}
    # Another machine of the name, or counters that begin again.
    if before is not None and (before.invocation_id, before.accounting_since) != (
        sample.invocation_id,
        sample.accounting_since,
    ):
        before = None
    usec = 0
    if before is not None and sample.timestamp.monotonic and before.timestamp.monotonic:
        usec = sample.timestamp.monotonic - before.timestamp.monotonic

    def rate(now: int | None, then: int | None) -> float | None:
        """Return the growth of a counter in a second."""
        return (
            (now - then) * 1e6 / usec
            if now is not None and then is not None and usec > 0 and now >= then
            else None
        )

    old = None if before is None else before.accounting
    cpu = rate(usage.cpu_usage_nsec, None if old is None else old.cpu_usage_nsec)
    return Row(
        sample.name,
        sample.phase,
        sample.freezer,
        None if cpu is None else cpu / 1e7,
        usage.memory_current,
        limits.get("MemoryMax"),
        usage.tasks_current,
        limits.get("TasksMax"),
        rate(usage.io_read_bytes, None if old is None else old.io_read_bytes),
        rate(usage.io_write_bytes, None if old is None else old.io_write_bytes),
        _pressure(sample.pressure),
    )


def completed(row: Row, sample: Sample) -> Row:
    """Return a row with limits and pressure of a further sample of the same machine."""
    limits = sample.limits or {}
    return msgspec.structs.replace(
        row,
        memory_max=limits.get("MemoryMax"),
        tasks_max=limits.get("TasksMax"),
        pressure=_pressure(sample.pressure),
    )


def _pressure(found: Pressures | None) -> dict[str, float]:
    each = () if found is None else (("cpu", found.cpu), ("memory", found.memory), ("io", found.io))
    return {name: one.some.avg10 for name, one in each if one is not None and one.some is not None}


def _falling(value: float | None) -> Key:
    return value is None, 0.0 if value is None else -value


ORDERS: Final[Mapping[str, Callable[[Row], Key]]] = {
    "cpu": lambda row: _falling(row.cpu_percent),
    "memory": lambda row: _falling(row.memory_current),
    "io": lambda row: _falling(row.io_rate),
    "tasks": lambda row: _falling(row.tasks_current),
    "pressure": lambda row: _falling(None if row.worst_pressure is None else row.worst_pressure[0]),
    "state": lambda row: (False, f"{row.phase} {row.freezer}"),
    "name": lambda row: (False, row.name),
}
"""What rows can be sorted by: the highest first, what is not known last."""


def sort(found: list[Row], order: str, *, reverse: bool = False) -> list[Row]:
    """Return rows in an order; those that are equal in it by their names.

    Args:
        found: the rows.
        order: one of ORDERS.
        reverse: the other way round.
    """
    by_name = sorted(found, key=lambda row: (row.name, row.host or ""))
    return sorted(by_name, key=ORDERS[order], reverse=reverse)
