"""Types that both interfaces of machines have on the wire."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from moorage.kernel import process
from moorage.machines import model
from moorage.wire.types import Int

SIGNAL_MAX = 64
"""SIGRTMAX of Linux (signal(7))."""

Signal = Annotated[int, Meta(ge=1, le=SIGNAL_MAX)]
"""A signal number that may be sent. Like machined, we refuse 0, which only probes."""


class ProcessId(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A process (``json_variant_new_pidref()``)."""

    pid: Int
    pidfdId: Int | None = None  # noqa: N815  # names on the wire
    bootId: str | None = None  # noqa: N815


class Timestamp(Struct, kw_only=True, omit_defaults=True):
    """A moment, in µs since the epoch and since boot."""

    realtime: Int | None = None
    monotonic: Int | None = None


def process_id(found: process.ProcessId | None) -> ProcessId | None:
    """Convert a process for the wire."""
    return None if found is None else ProcessId(pid=found.pid, pidfdId=found.pidfd_id, bootId=found.boot_id)


def timestamp(found: model.Timestamp) -> Timestamp:
    """Convert a moment for the wire."""
    return Timestamp(realtime=found.realtime, monotonic=found.monotonic)
