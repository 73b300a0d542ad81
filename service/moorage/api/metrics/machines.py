"""What is told of each machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Final

from moorage.api.metrics.families import Series, Values, about, series
from moorage.machines.accounting import Accounting
from moorage.machines.machine import Machine
from moorage.machines.model import Timestamp
from moorage.machines.sampling import Round
from moorage.machines.services import Services
from moorage.machines.use import RESOURCES

_COUNTERS: Final[tuple[tuple[Callable[[Accounting], int | None], Series], ...]] = tuple(
    (attrgetter(attribute), each)
    for attribute, each in {
        "cpu_usage_nsec": series("CpuUsage", type="total"),
        "cpu_user_nsec": series("CpuUsage", type="user"),
        "cpu_system_nsec": series("CpuUsage", type="system"),
        "cpu_throttled_nsec": series("CpuThrottled"),
        "memory_current": series("MemoryUsage", type="current"),
        "memory_peak": series("MemoryUsage", type="peak"),
        "memory_swap_current": series("SwapUsage", type="current"),
        "memory_swap_peak": series("SwapUsage", type="peak"),
        "tasks_current": series("TasksCurrent"),
        "io_read_bytes": series("IOReadBytes"),
        "io_read_operations": series("IOReadOperations"),
        "io_write_bytes": series("IOWriteBytes"),
        "io_write_operations": series("IOWriteOperations"),
        "oom_kills": series("OOMKills", by="kernel"),
        "managed_oom_kills": series("OOMKills", by="oomd"),
    }.items()
)

_LIMITS: Final = {"MemoryMax": series("MemoryLimit"), "TasksMax": series("TasksLimit")}

_PRESSURE: Final = {
    (resource, type_): series("PressureTime", resource=resource, type=type_)
    for resource in RESOURCES
    for type_ in ("some", "full")
}

_PHASE, _FREEZER, _UPTIME, _START = map(series, ("Phase", "FreezerState", "Uptime", "StartTimestamp"))


def messages(machine: Machine, services: Services, round_: Round, now: Timestamp) -> Iterator[bytes]:
    """Return the values of one machine that lives, as they go over the wire. What is not known is left out.

    Args:
        machine: that lives.
        services: know of it.
        round_: a look at all machines, with their limits.
        now: the time.

    Raises:
        OSError: no file descriptor is left, or no memory.
    """
    name, record = about(machine.name), machine.record
    values = Values(name)
    values.add(_PHASE, machine.phase)
    values.add(_FREEZER, services.looking.noted_freezer(machine))
    values.add(_START, record.timestamp.realtime)
    values.add(_UPTIME, now.monotonic - record.timestamp.monotonic)
    counters = round_.counters(machine)
    for read, each in _COUNTERS:
        if (value := read(counters)) is not None:
            values.add(each, value)
    for resource, found in round_.waited(machine):
        for type_, usec in found.items():
            if (of := _PRESSURE.get((resource, type_))) is not None:
                values.add(of, usec)
    for limit, value in round_.limits(machine).items():
        values.add(_LIMITS[limit], value)
    yield values.messages()
    if record.helpers:
        yield from _helpers(machine, services, name)


def _helpers(machine: Machine, services: Services, name: bytes) -> Iterator[bytes]:
    for status in services.changing.statuses(machine):
        helper = status.helper.name
        yield series("HelperState", helper=helper).message(status.active_state, name)
        if status.restarts is not None:
            yield series("HelperRestarts", helper=helper).message(status.restarts, name)
