"""Replies of io.systemd.Metrics."""

from __future__ import annotations

from typing import Any, Literal

from moorage.wire.types import Reply


class ListOut(Reply, kw_only=True):
    """One value."""

    name: str
    object: str | None = None
    fields: dict[str, Any] | None = None
    value: Any


class DescribeOut(Reply, kw_only=True):
    """One family."""

    name: str
    description: str
    type: Literal["counter", "gauge", "string", "object"]
