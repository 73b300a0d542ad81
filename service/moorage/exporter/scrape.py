"""One look at moored, as steps (:mod:`moorage.steps.waits`)."""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

import msgspec

from moorage.client.dialogue import Replies, connect
from moorage.steps.waits import Steps
from moorage.wire.errors import TimedOut

LIST: Final = "io.systemd.Metrics.List"

VALUES_MAX: Final = 1_000_000
"""Values that one look may return: twice what the most machines that moored may have come to."""


class TooMany(Exception):
    """There is no end of values."""


class Value(msgspec.Struct, frozen=True):
    """One value of a family, see io.systemd.Metrics."""

    name: str
    value: Any
    object: str | None = None
    fields: dict[str, Any] | None = None


def values(address: str, seconds: float) -> Steps[list[Value]]:
    """Return all values that a service has.

    Args:
        address: path of its socket.
        seconds: how long that may take in all.

    Raises:
        OSError: there is no such socket, nobody listens on it, or the connection is lost.
        TimedOut: it takes longer.
        TooMany: as it says.
        VarlinkError, ProtocolError: what is there serves no metrics.
    """
    until = monotonic() + seconds
    dialogue = yield from connect(address, seconds)
    try:
        replies = Replies(dialogue, LIST, {}, Value, seconds=seconds, more=True)
        found: list[Value] = []
        while (reply := (yield from replies.next(until - monotonic()))) is not None:
            if len(found) >= VALUES_MAX:
                raise TooMany
            if monotonic() > until:
                raise TimedOut
            found.append(reply)
        return found
    finally:
        dialogue.close()
