"""The use of resources in the kernel's files: pressure, and the traffic of each block device.

Formats: Documentation/accounting/psi.rst and Documentation/admin-guide/cgroup-v2.rst of the kernel. What a kernel to
come writes in another way is left out.

Pure: no I/O.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec


class PressureLine(msgspec.Struct, frozen=True):
    """For how long tasks waited for a resource.

    Attributes:
        avg10: share of the last 10 s, in percent.
        avg60: of the last 60 s.
        avg300: of the last 300 s.
        total_usec: in all, µs.
    """

    avg10: float
    avg60: float
    avg300: float
    total_usec: int


class Pressure(msgspec.Struct, frozen=True):
    """Pressure of one resource.

    Attributes:
        some: at least one task waited.
        full: all of them waited at once.
    """

    some: PressureLine | None = None
    full: PressureLine | None = None


RESOURCES: Final = ("cpu", "memory", "io")
"""What there is pressure of."""

_TRAFFIC: Final = {
    "rbytes": "readBytes", "wbytes": "writeBytes", "rios": "readOperations", "wios": "writeOperations",
    "dbytes": "discardBytes", "dios": "discardOperations",
}  # fmt: skip
"""Counters of io.stat, by what they are called here."""


_LINE: Final = re.compile(
    r"^(some|full) avg10=([0-9]+\.[0-9]+) avg60=([0-9]+\.[0-9]+) avg300=([0-9]+\.[0-9]+) total=([0-9]+)",
    re.MULTILINE,
)


def pressure(text: str) -> Pressure | None:
    """Read the file of one resource; None if it says nothing."""
    some = full = None
    for kind, avg10, avg60, avg300, total in _LINE.findall(text):
        line = PressureLine(float(avg10), float(avg60), float(avg300), int(total))
        if kind == "some":
            some = line
        else:
            full = line
    return None if some is None and full is None else Pressure(some, full)


def waited(text: str) -> dict[str, int]:
    """Read of the file of one resource only for how long tasks waited in all, µs, by "some" and "full"."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        total = line.rpartition("total=")[2]
        if total.isdecimal():
            found[line.partition(" ")[0]] = int(total)
    return found


def traffic(text: str) -> dict[str, dict[str, int]]:
    """Read io.stat: counters for each block device, by its numbers ("8:0")."""
    found: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        device, *words = line.split()
        pairs = (word.split("=", 1) for word in words if "=" in word)
        counters = {_TRAFFIC[key]: int(value) for key, value in pairs if key in _TRAFFIC and value.isdigit()}
        if counters:
            found[device] = counters
    return found
