"""The families of values: their names, types and descriptions.

Named as those of systemd's own services are: after the socket that they come from, in CamelCase, with the unit in the
description. What is about a machine has its name as the object.

Pure: no I/O.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from moorage.wire.message import encode_parameters

PREFIX: Final = "io.moorage.Machine."
"""What all names begin with."""


class Family(msgspec.Struct, frozen=True):
    """A family of values.

    Attributes:
        name: without the prefix.
        type: of its values.
        description: what they are, with their unit.
    """

    name: str
    type: Literal["counter", "gauge", "string"]
    description: str


class Series:
    """Values of one family with the same fields, and how they go over the wire.

    A scrape of a thousand machines has twenty thousand messages that differ in an object and a number: what is the
    same in all of them is encoded once, which makes them five times as fast as encoding a Struct each.

    Attributes:
        template: of a message that others will follow, for an object as :func:`about` returns it, and a value: an
            integer, or a text as JSON where the family has texts.
    """

    __slots__ = ("template",)

    def __init__(self, family: Family, fields: Mapping[str, str] | None = None) -> None:
        value = b"%b" if family.type == "string" else b"%d"
        told = b',"fields":%b' % encode_parameters(fields) if fields else b""
        self.template = b'{"parameters":{"name":%b%%b,"value":%b%b},"continues":true}\0' % (
            encode_parameters(PREFIX + family.name),
            value,
            told.replace(b"%", b"%%"),
        )

    def message(self, value: int | str, about: bytes = b"") -> bytes:
        """Return a reply that others will follow, as it goes over the wire.

        Args:
            value: of the type that the family has.
            about: made by :func:`about`; nothing for the service as a whole.
        """
        return self.template % (about, _text(value))


class Values:
    """Values about one object, which go over the wire together.

    Most objects have the same ones: their messages are one template, joined once.

    Args:
        about: the object, made by :func:`about`.
    """

    __slots__ = ("_about", "_series", "_values")

    def __init__(self, about: bytes) -> None:
        self._about = about
        self._series: list[Series] = []
        self._values: list[bytes | int] = []

    def add(self, of: Series, value: int | str) -> None:
        """Add a value of the type that the family has."""
        self._series.append(of)
        self._values += (self._about, _text(value))

    def messages(self) -> bytes:
        """Return all of them, each as :meth:`Series.message` does."""
        return _joined(tuple(self._series)) % tuple(self._values)


SHAPES_MAX: Final = 64
"""Combinations of series that are kept: controllers and limits are about the same for all machines of a host."""


@functools.lru_cache(SHAPES_MAX)
def _joined(found: tuple[Series, ...]) -> bytes:
    return b"".join(each.template for each in found)


def _text(value: int | str) -> bytes | int:
    return value if isinstance(value, int) else encode_parameters(value)


def about(name: str) -> bytes:
    """Return how values about one object name it."""
    return b',"object":%b' % encode_parameters(name)


_FAMILIES: Final[Mapping[str, tuple[Literal["counter", "gauge", "string"], str]]] = {
    "Calls": ("counter", "Calls of methods that were received (method=…)"),
    "Connections": ("gauge", "Number of connections, those for metrics not included"),
    "CpuThrottled": ("counter", "Per machine metric: time for which a quota kept it from running, in nanoseconds"),
    "CpuUsage": ("counter", "Per machine metric: CPU usage in nanoseconds (type=total|user|system)"),
    "Errors": ("counter", "Calls that were answered with an error (error=…)"),
    "Events": ("counter", "Events that have happened to machines (event=…)"),
    "FreezerState": ("string", "Per machine metric: state of its freezer"),
    "HelperRestarts": ("counter", "Per machine metric: number of automatic restarts of a helper (helper=…)"),
    "HelperState": ("string", "Per machine metric: active state of a helper (helper=…)"),
    "IOReadBytes": ("counter", "Per machine metric: IO bytes read"),
    "IOReadOperations": ("counter", "Per machine metric: IO read operations"),
    "IOWriteBytes": ("counter", "Per machine metric: IO bytes written"),
    "IOWriteOperations": ("counter", "Per machine metric: IO write operations"),
    "MachinesEnded": ("counter", "Machines that have ended, by the cause of that (cause=…)"),
    "MachinesTotal": ("gauge", "Number of machines (class=container|vm, phase=running|stopping|lingering)"),
    "ManagerJobTime": ("counter", "Time that jobs of the service manager took, in microseconds (call=…)"),
    "ManagerJobs": ("counter", "Jobs of the service manager that have ended (call=…)"),
    "ManagerReplies": ("counter", "Calls of the service manager that were answered (call=…)"),
    "ManagerReplyTime": ("counter", "Time that the service manager took to answer, in microseconds (call=…)"),
    "MemoryLimit": ("gauge", "Per machine metric: lowest memory limit of it and of its slices, in bytes"),
    "MemoryUsage": ("gauge", "Per machine metric: memory usage in bytes (type=current|peak)"),
    "OOMKills": ("counter", "Per machine metric: processes killed for lack of memory (by=kernel|oomd)"),
    "Phase": ("string", "Per machine metric: where it is in its life"),
    "PressureTime": (
        "counter",
        "Per machine metric: time tasks waited, in microseconds (resource=cpu|memory|io, type=some|full)",
    ),
    "StartTimestamp": ("gauge", "Per machine metric: when it was registered, in microseconds since the epoch"),
    "Subscribers": ("gauge", "Number of callers that are told of events"),
    "SwapUsage": ("gauge", "Per machine metric: swap usage in bytes (type=current|peak)"),
    "TasksCurrent": ("gauge", "Per machine metric: current number of tasks"),
    "TasksLimit": ("gauge", "Per machine metric: lowest limit of tasks of it and of its slices"),
    "Uptime": ("gauge", "Per machine metric: time since it was registered, in microseconds"),
    "Version": ("string", "Version of moored"),
}  # fmt: skip

FAMILIES: Final[Mapping[str, Family]] = {
    name: Family(name, type_, description) for name, (type_, description) in sorted(_FAMILIES.items())
}
"""All of them, by name, in alphabetical order."""


def series(name: str, **fields: Any) -> Series:
    """Return the values of a family that have some fields."""
    return Series(FAMILIES[name], {key: str(value) for key, value in fields.items()})
