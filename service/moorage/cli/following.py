"""The events of the service, followed over its restarts."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Final

import msgspec

from moorage.cli.address import Address
from moorage.cli.connecting import connect
from moorage.cli.failures import Exit, Failure, explain
from moorage.client.methods import Subscribe
from moorage.client.subscription import EventStream
from moorage.client.types import Timestamp
from moorage.steps.blocking import take
from moorage.wire.errors import Disconnected, ProtocolError, TimedOut, VarlinkError

NOTHING: Final = msgspec.Raw(b"null")


class Event(msgspec.Struct, rename="camel"):
    """Something that has happened to a machine. See the interface.

    Attributes:
        cursor: its position.
        event: its kind.
        name: of the machine.
        timestamp: when it was noticed.
        invocation_id: of the machine's unit.
        data: depends on the kind; null where there is none.
    """

    cursor: str
    event: str
    name: str
    timestamp: Timestamp
    invocation_id: str | None = None
    data: msgspec.Raw = NOTHING


class Told(msgspec.Struct):
    """An event, and how it was received.

    Attributes:
        event: decoded.
        text: JSON.
    """

    event: Event
    text: msgspec.Raw


class Following:
    """Follows events.

    Args:
        address: where the service listens.
        wanted: parameters of Subscribe.
        until: time of :func:`time.monotonic` at which it ends, s.
    """

    def __init__(self, address: Address, wanted: Subscribe, *, until: float = math.inf) -> None:
        self._address = address
        self._until = until
        self._stream = EventStream(wanted, lambda seconds: connect(address, seconds))

    def events(self) -> Generator[Told]:
        """Return the events, as they come, for ever.

        After a restart of the service they go on. Where they cannot, a snapshot comes first.

        Raises:
            Failure: the service refuses, or stays away.
            TimedOut: the time is over.
        """
        with closing(self._stream) as stream:
            while True:
                try:
                    text = take(stream.next(self._until))
                except (TimedOut, VarlinkError, Disconnected, ProtocolError, OSError) as error:
                    if isinstance(error, TimedOut) and time.monotonic() >= self._until:
                        raise
                    raise explain(error, self._address) from None
                assert text is not None  # it is not closed
                yield Told(_decoded(text), text)


def _decoded(text: msgspec.Raw) -> Event:
    try:
        return msgspec.json.decode(text, type=Event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Failure(Exit.NO_SERVICE, f"The reply of the service makes no sense: {error}") from None


def kept(address: Address, cursor: str | None) -> Generator[Told]:
    """Return the events that are kept, and end.

    Args:
        address: where the service listens.
        cursor: only those after it.

    Raises:
        Failure: the service refuses.
    """
    # What there is has no end that could be seen; where it ends now, a snapshot says.
    last = next(
        told.event.cursor for told in Following(address, Subscribe(events=["lost"])).events()
        if told.event.event == "snapshotDone"
    )  # fmt: skip
    if cursor == last:
        return
    for told in Following(address, Subscribe(cursor=cursor, oldest=cursor is None or None)).events():
        if told.event.event == "snapshotDone":  # nothing was kept
            if told.event.cursor >= last:
                return
            continue
        yield told
        if told.event.cursor >= last:
            return


def wanted_by(told: Iterable[Told], names: frozenset[str], kinds: frozenset[str]) -> Generator[Told]:
    """Return those events that are of some machines, and of some kinds; of all where none is named."""
    for each in told:
        if (not names or each.event.name in names) and (not kinds or each.event.event in kinds):
            yield each


def moments(address: Address) -> Generator[None]:
    """Return whenever the list of machines may be another one, at first at once.

    Raises:
        Failure: the service refuses.
    """
    looked_usec = 0
    for told in Following(address, Subscribe()).events():
        # What has happened before the last look was seen by it.
        if told.event.event != "machine" and (told.event.timestamp.realtime or 0) >= looked_usec:
            looked_usec = time.time_ns() // 1000
            yield
