"""The events of the service, followed over its restarts."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing, contextmanager
from typing import Any, Final

import msgspec

from moorage import errors
from moorage.cli.address import Address
from moorage.cli.failures import Exit, Failure, explain
from moorage.client.dialogue import Dialogue, Replies, connect
from moorage.client.methods import INTERFACE
from moorage.client.types import Timestamp
from moorage.steps.blocking import take
from moorage.wire.errors import Disconnected, ProtocolError, TimedOut, VarlinkError
from moorage.wire.patience import CALL_SECONDS

RETRY_SECONDS: Final = 0.2
"""Pause between two tries to connect again, s."""

RETURN_SECONDS: Final = 30.0
"""For how long a service that is restarted may be away, s."""


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


class _Reply(msgspec.Struct):
    event: msgspec.Raw


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
        wanted: parameters of Subscribe, but for the cursor; those that are None are not sent.
        cursor: to go on from; None for a snapshot first.
        until: time of :func:`time.monotonic` at which it ends, s.

    Attributes:
        again: how often a new snapshot had to be taken.
    """

    def __init__(
        self,
        address: Address,
        wanted: Mapping[str, Any],
        *,
        cursor: str | None = None,
        until: float = math.inf,
    ) -> None:
        self.again = 0
        self._address = address
        self._wanted = {name: value for name, value in wanted.items() if value is not None}
        self._cursor = cursor
        self._until = until
        self._away_since: float | None = None

    def events(self) -> Generator[Told]:
        """Return the events, as they come, for ever.

        After a restart of the service they go on. Where they cannot, a snapshot comes first.

        Raises:
            Failure: the service refuses, or stays away.
            TimedOut: the time is over.
        """
        while True:
            try:
                with self._connected() as dialogue:
                    yield from self._read(dialogue)
            except errors.CursorExpired as error:
                if self._away_since is None:
                    raise explain(error, self._address) from None
                self._cursor = None
                self.again += 1
            except (Disconnected, ConnectionError, FileNotFoundError) as error:
                self._wait(error)

    @contextmanager
    def _connected(self) -> Generator[Dialogue]:
        try:
            with closing(take(connect(self._address.path, min(CALL_SECONDS, self._left())))) as dialogue:
                yield dialogue
        except (errors.CursorExpired, Disconnected, ConnectionError, FileNotFoundError):
            raise
        except TimedOut as error:
            if time.monotonic() >= self._until:
                raise
            raise explain(error, self._address) from None
        except (VarlinkError, ProtocolError, OSError) as error:
            raise explain(error, self._address) from None

    def _read(self, dialogue: Dialogue) -> Generator[Told]:
        parameters = self._wanted
        if self._cursor is not None:
            parameters = {
                **{name: parameters[name] for name in parameters if name != "oldest"},
                "cursor": self._cursor,
            }
        replies = Replies(
            dialogue, f"{INTERFACE}.Subscribe", parameters, _Reply, seconds=math.inf, more=True
        )
        while (reply := take(replies.next(self._left()))) is not None:
            event = _decoded(reply.event)
            self._away_since = None
            if event.event != "machine":
                self._cursor = event.cursor
            yield Told(event, reply.event)

    def _left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def _wait(self, error: Exception) -> None:
        """Wait a little, if the service may be restarting: not before it was there."""
        present = time.monotonic()
        if self._cursor is None and self._away_since is None and not isinstance(error, Disconnected):
            raise explain(error, self._address) from None
        self._away_since = present if self._away_since is None else self._away_since
        if present - self._away_since > RETURN_SECONDS:
            raise explain(error, self._address) from None
        if present >= self._until:
            raise TimedOut
        time.sleep(min(RETRY_SECONDS, self._left()))


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
        told.event.cursor for told in Following(address, {"events": ["lost"]}).events()
        if told.event.event == "snapshotDone"
    )  # fmt: skip
    if cursor == last:
        return
    wanted = {"oldest": True} if cursor is None else {}
    for told in Following(address, wanted, cursor=cursor).events():
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
    for told in Following(address, {}).events():
        # What has happened before the last look was seen by it.
        if told.event.event != "machine" and (told.event.timestamp.realtime or 0) >= looked_usec:
            looked_usec = time.time_ns() // 1000
            yield
