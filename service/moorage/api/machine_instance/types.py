"""Parameters and replies of io.systemd.MachineInstance."""

from __future__ import annotations

from typing import Any

from moorage.wire.types import Int, Parameters, Reply


class DescribeOut(Reply, kw_only=True, omit_defaults=False):
    """Reply of Describe."""

    running: bool
    status: str


class SubscribeEventsIn(Parameters, kw_only=True):
    """Parameters of SubscribeEvents."""

    filter: list[str] | None = None


class EventOut(Reply, kw_only=True):
    """Reply of SubscribeEvents."""

    event: str
    data: dict[str, Any] | None = None


class AddStorageIn(Parameters, kw_only=True):
    """Parameters of AddStorage."""

    fileDescriptorIndex: Int  # noqa: N815  # names on the wire, here and below
    name: str
    config: str | None = None


class RemoveStorageIn(Parameters, kw_only=True):
    """Parameters of RemoveStorage."""

    name: str


class ReplaceStorageIn(Parameters, kw_only=True):
    """Parameters of ReplaceStorage."""

    fileDescriptorIndex: Int  # noqa: N815
    name: str
