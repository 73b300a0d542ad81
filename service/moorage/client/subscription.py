"""The events of the service, over its restarts, as steps (:mod:`moorage.steps.waits`).

``subscribe()`` of :mod:`moorage.client.trio`, :mod:`moorage.client.asyncio` and :mod:`moorage.client.blocking` takes
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from moorage import errors
from moorage.addresses import default_address
from moorage.client.dialogue import Dialogue, Replies, Underway, connect
from moorage.client.events import decoded
from moorage.client.methods import Subscribe
from moorage.steps.waits import Steps, pause
from moorage.wire.errors import Disconnected, TimedOut
from moorage.wire.patience import CONNECT_SECONDS

RETRY_SECONDS: Final = 0.2
"""Pause between two attempts to connect again, s."""

RETURN_SECONDS: Final = 60.0
"""For how long a service that has been there may be away, s: an upgrade of the host's packages may stop it, and start
it a minute later."""


class Report(Struct):
    """An event as received.

    Attributes:
        event: JSON.
    """

    event: msgspec.Raw


class _Place(Struct):
    cursor: str
    event: str


class EventStream:
    """Events as they come, for ever.

    A connection that ends is made again, and the events go on after the last one. Where they cannot, as their cursor
    has expired, a snapshot comes. Giving up a wait loses nothing: the next one goes on.

    Args:
        wanted: parameters of Subscribe; see :func:`event_stream` for the default.
        open_connection: connects to the service, within so many seconds.

    Attributes:
        cursor: the position after the last event, from which another subscription goes on; None before the end of the
            first snapshot.
    """

    def __init__(self, wanted: Subscribe, open_connection: Callable[[float], Steps[Dialogue]]) -> None:
        self.cursor = wanted.cursor
        self._wanted = wanted
        self._open = open_connection
        self._dialogue: Dialogue | None = None
        self._replies: Replies[Report] | None = None
        self._connected = False
        self._heard = False
        self._away_since: float | None = None
        self._closed = False

    def next(self, until: float = math.inf) -> Steps[msgspec.Raw | None]:
        """Return the next event, as JSON; None after :meth:`close`.

        Args:
            until: time of :func:`time.monotonic` at which it must have arrived, s.

        Raises:
            OSError: there is no service, or it has been away for :data:`RETURN_SECONDS`; Disconnected likewise.
            TimedOut: the time is over.
            CursorExpired: what came after the caller's own cursor is not known any more.
            VarlinkError: the service refuses.
            ProtocolError: the service broke the protocol.
            Underway: another wait is under way.
        """
        while not self._closed:
            try:
                report = yield from self._receive(until)
                place = decoded(report, _Place)
            except Underway:
                raise
            except errors.CursorExpired:
                self._disconnect()
                if not self._heard:
                    raise
                self.cursor = None
            except (Disconnected, ConnectionError, FileNotFoundError) as error:
                self._disconnect()
                yield from self._pause(error, until)
            except BaseException:
                self._disconnect()
                raise
            else:
                self._heard, self._away_since = True, None
                if place.event != "machine":  # a snapshot that was not completed has to be taken again
                    self.cursor = place.cursor
                return report
        return None

    def close(self) -> None:
        """End the subscription. May be called again, also during a wait."""
        self._closed = True
        self._disconnect()

    def _disconnect(self) -> None:
        dialogue, self._dialogue, self._replies = self._dialogue, None, None
        if dialogue is not None:
            dialogue.close()

    def _receive(self, until: float) -> Steps[msgspec.Raw]:
        if self._replies is None:
            self._dialogue = yield from self._open(min(CONNECT_SECONDS, _left(until)))
            self._connected = True
            self._replies = Replies(
                self._dialogue, self._wanted.method(), self._request(), Report, seconds=math.inf, more=True
            )
        report = yield from self._replies.next(_left(until))
        if report is None:  # a stream of events has no end
            raise Disconnected
        return report.event

    def _request(self) -> Subscribe:
        # What was kept has been told already.
        oldest = self._wanted.oldest if self.cursor is None and not self._heard else None
        return replace(self._wanted, cursor=self.cursor, oldest=oldest)

    def _pause(self, error: Exception, until: float) -> Steps[None]:
        """Wait a little, if the service may be restarting: not before it was there."""
        if self._closed:
            return
        if not self._connected and self.cursor is None:
            raise error
        present = monotonic()
        if present >= until:
            raise TimedOut from None
        self._away_since = present if self._away_since is None else self._away_since
        if present - self._away_since > RETURN_SECONDS:
            raise error
        yield from pause(min(RETRY_SECONDS, _left(until)))


def _left(until: float) -> float:
    return max(0.0, until - monotonic())


def event_stream(wanted: Subscribe | None, address: str | None) -> EventStream:
    """Return a subscription; by default to all events, after a snapshot.

    Args:
        wanted: parameters of Subscribe.
        address: path of the service's socket; see :func:`~moorage.addresses.default_address`.
    """
    path = default_address() if address is None else address
    return EventStream(Subscribe() if wanted is None else wanted, lambda seconds: connect(path, seconds))
