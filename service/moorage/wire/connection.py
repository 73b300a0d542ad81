"""One end of a varlink connection, without any I/O.

Bytes and file descriptors that were received go in, messages come out; messages to be sent go in, bytes and file
descriptors to be written come out. Both ends follow one table of states: what one end sends moves it exactly as what
the other end receives.

What a peer can do wrong is always :class:`~moorage.wire.errors.ProtocolError`; what the program does wrong is
:class:`LocalProtocolError`. After the first of either nothing moves any more but :meth:`Connection.close`.

Every file descriptor has one owner. Those given to :meth:`Connection.receive_data` and to the ``send`` methods belong
to the connection, from the call on and whether it fails or not, until they are taken (:meth:`Connection.take_fds`) or
written; it closes the rest.
"""

from __future__ import annotations

import enum
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice

from msgspec import UNSET

from moorage.wire.errors import ProtocolError
from moorage.wire.message import (
    CallMessage,
    ReplyMessage,
    decode_call,
    decode_reply,
    encode_call,
    encode_error,
    encode_reply,
)

CALL_MAX = 256 * 1024
"""Most bytes of a call of who is not trusted. sd-varlink takes 16 MiB of anybody, but everybody waits while a call is
decoded: 8 ms for the most tangled one of this size. A Register with 64 helpers of a hundred arguments each is not as
long."""

INPUT_MAX = 16 * 1024 * 1024
"""Most bytes of any other message, sent or received (JSON_STREAM_BUFFER_MAX_DEFAULT of systemd's json-stream.c)."""

QUEUE_MAX = 64 * 1024
"""Most messages waiting to be written, and most calls waiting to be answered (JSON_STREAM_QUEUE_MAX_DEFAULT)."""

READ_SIZE = 64 * 1024
"""Bytes to ask the kernel for at once (JSON_STREAM_READ_SIZE_DEFAULT)."""

FDS_MAX = 253
"""Most file descriptors that the kernel puts into one message (SCM_MAX_FD, unix(7))."""

WRITE_SIZE = 64 * 1024
"""Short messages are joined up to this many bytes, so that a stream of them does not cost a system call each."""


class LocalProtocolError(Exception):
    """The program used the connection in a way that the protocol does not allow: a bug on this side."""


class NotSent(LocalProtocolError):
    """A call that is too long, has too many file descriptors, or is one too many. Nothing of it was queued."""


class Role(enum.Enum):
    """Which end of the connection this is."""

    CLIENT = enum.auto()
    SERVER = enum.auto()


class State(enum.IntEnum):
    """What the connection is waiting for; of a client with several calls under way, for the oldest of them."""

    IDLE = enum.auto()  # a call
    CALL = enum.auto()  # its one reply
    STREAM = enum.auto()  # one of its replies
    ONEWAY = enum.auto()  # the handler, which nothing will be heard of
    CLOSED = enum.auto()  # nothing: the peer ended it, or we did
    ERROR = enum.auto()  # nothing: one side broke the protocol


class Event(enum.IntEnum):
    """What moves a connection from one state to the next."""

    CALL = enum.auto()
    CALL_MORE = enum.auto()
    CALL_ONEWAY = enum.auto()
    REPLY = enum.auto()
    REPLY_CONTINUES = enum.auto()
    REPLY_ERROR = enum.auto()
    ONEWAY_DONE = enum.auto()


TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    State.IDLE: {
        Event.CALL: State.CALL,
        Event.CALL_MORE: State.STREAM,
        Event.CALL_ONEWAY: State.ONEWAY,
    },
    State.CALL: {
        Event.REPLY: State.IDLE,
        Event.REPLY_ERROR: State.IDLE,
    },
    State.STREAM: {
        Event.REPLY_CONTINUES: State.STREAM,
        Event.REPLY: State.IDLE,
        Event.REPLY_ERROR: State.IDLE,
    },
    State.ONEWAY: {
        Event.ONEWAY_DONE: State.IDLE,
    },
    State.CLOSED: {},
    State.ERROR: {},
}
"""The protocol: what is not in here must not happen."""

_FROM_IDLE = TRANSITIONS[State.IDLE]


class Signal(enum.Enum):
    """What :meth:`Connection.next_event` returns where there is no message."""

    NEED_DATA = enum.auto()
    """There is no complete message: read more."""
    PAUSED = enum.auto()
    """No message may be looked at: a server answers the call at hand first, a client without a call has none due."""
    CLOSED = enum.auto()
    """There will be none any more: the peer has sent its last byte."""


NEED_DATA = Signal.NEED_DATA
PAUSED = Signal.PAUSED
CLOSED = Signal.CLOSED


def close_all(fds: Iterable[int]) -> None:
    """Close file descriptors. What was written to them by others may fail to reach its place: nobody asks here."""
    for fd in fds:
        with suppress(OSError):  # it is closed, whatever else has gone wrong (close(2))
            os.close(fd)


class _Output:
    """Messages to be written, in order: (bytes, file descriptors that go with their first byte)."""

    __slots__ = ("_chunks", "size")

    def __init__(self) -> None:
        self._chunks: deque[tuple[bytes | memoryview, tuple[int, ...]]] = deque()
        self.size = 0  # bytes

    def __len__(self) -> int:
        return len(self._chunks)

    def append(self, data: bytes, fds: tuple[int, ...]) -> None:
        self._chunks.append((data, fds))
        self.size += len(data)

    def first(self) -> tuple[bytes | memoryview, tuple[int, ...]]:
        chunks = self._chunks
        if len(chunks) > 1 and not chunks[0][1]:
            self._join()
        return chunks[0]

    def _join(self) -> None:
        # Never across file descriptors: they belong to the message that begins where they are.
        chunks, count, size = self._chunks, 0, 0
        for data, fds in chunks:
            size += len(data)
            if fds or (count and size > WRITE_SIZE):
                break
            count += 1
        if count > 1:
            joined = b"".join(data for data, _ in islice(chunks, count))
            for _ in range(count):
                chunks.popleft()
            chunks.appendleft((joined, ()))

    def sent(self, count: int) -> None:
        data, fds = self._chunks.popleft()
        self.size -= count
        if count < len(data):
            # A view, because cutting a message of 16 MiB again and again would copy it as often.
            self._chunks.appendleft((memoryview(data)[count:], ()))
        close_all(fds)

    def clear(self) -> None:
        for _, fds in self._chunks:
            close_all(fds)
        self._chunks.clear()
        self.size = 0


class Connection:
    """One end of a connection.

    Args:
        role: which end.
        input_max: most bytes of a message that is received.
        close_fds: closes file descriptors that were received and not taken.

    Attributes:
        role: which end.
    """

    __slots__ = (
        "_arrived",
        "_awaited",
        "_buffer",
        "_close_fds",
        "_eof",
        "_fds",
        "_input_max",
        "_output",
        "_scanned",
        "_state",
        "fds_truncated",
        "role",
    )

    def __init__(
        self,
        role: Role,
        input_max: int = INPUT_MAX,
        close_fds: Callable[[Iterable[int]], None] = close_all,
    ) -> None:
        self.role = role
        self._close_fds = close_fds
        self.fds_truncated = False
        """Whether file descriptors that came with the message last returned were lost on their way (MSG_CTRUNC)."""
        self._state = State.IDLE
        self._awaited: deque[State] = deque()  # of a client: calls sent, the oldest first
        self._input_max = input_max
        self._buffer = bytearray()
        self._scanned = 0  # bytes at the front of the buffer that hold no NUL
        self._eof = False
        self._arrived: tuple[list[int], bool] | None = (
            None  # fds of the message at the front, whether some were lost
        )
        self._fds: list[int] = []  # of the message last returned
        self._output = _Output()

    @property
    def state(self) -> State:
        """What the connection is waiting for."""
        return self._state

    @property
    def awaited(self) -> int:
        """Calls of this client that are not answered completely."""
        return len(self._awaited)

    @property
    def queued(self) -> int:
        """Bytes waiting to be written."""
        return self._output.size

    @property
    def buffered(self) -> int:
        """Bytes received that have not been looked at."""
        return len(self._buffer)

    @property
    def has_partial_input(self) -> bool:
        """Whether bytes are waiting to be looked at, or to be made a message by further ones."""
        return bool(self._buffer)

    # -- receiving

    def receive_data(self, data: bytes, fds: Sequence[int] = (), *, truncated: bool = False) -> None:
        """Take in what one recvmsg(2) brought.

        File descriptors belong to the message whose first byte came with them; with several first bytes, to the first
        of these messages (sd-varlink's rule, ``json_stream_read()``).

        Args:
            data: the bytes; none at the end of the stream.
            fds: file descriptors; the connection owns them from now on.
            truncated: whether file descriptors were lost (MSG_CTRUNC).

        Raises:
            ProtocolError: file descriptors in the middle of a message, or a message that is too long.
        """
        buffer = self._buffer
        if fds or truncated:
            if buffer or not data:
                self._close_fds(fds)
                raise self._fail("file descriptors in the middle of a message")
            self._arrived = (list(fds), truncated)
        if not data:
            self._eof = True
            return
        buffer += data
        if len(buffer) >= self._input_max and buffer.find(0, self._scanned, self._input_max) < 0:
            raise self._fail("message too long")

    def next_event(self) -> CallMessage | ReplyMessage | Signal:
        """Return the next message received.

        Raises:
            ProtocolError: what was received is no such message.
        """
        return self.next_call() if self.role is Role.SERVER else self.next_reply()

    def next_call(self) -> CallMessage | Signal:
        """Return the next call, of a server (:meth:`next_event` for those who know their role).

        Raises:
            ProtocolError: what was received is no call.
        """
        if self._state is not State.IDLE:
            return PAUSED
        text = self._next_text()
        if text is None:
            return CLOSED if self._eof else NEED_DATA
        try:
            call = decode_call(text)
        except ProtocolError:
            self._state = State.ERROR
            raise
        event = Event.CALL_MORE if call.more else Event.CALL_ONEWAY if call.oneway else Event.CALL
        self._state = _FROM_IDLE[event]
        return call

    def next_reply(self) -> ReplyMessage | Signal:
        """Return the next reply, of a client (:meth:`next_event` for those who know their role).

        Raises:
            ProtocolError: what was received is no reply, or none that was asked for.
        """
        if not self._awaited:
            if self._buffer:
                raise self._fail("a reply without a call")
            return CLOSED if self._eof else PAUSED
        text = self._next_text()
        if text is None:
            return CLOSED if self._eof else NEED_DATA
        try:
            reply = decode_reply(text)
        except ProtocolError:
            self._state = State.ERROR
            raise
        event = (
            Event.REPLY_ERROR
            if reply.error is not UNSET
            else Event.REPLY_CONTINUES
            if reply.continues
            else Event.REPLY
        )
        after = TRANSITIONS[self._state].get(event)
        if after is None:
            raise self._fail("more than one reply, which was not asked for")
        if after is State.IDLE:
            self._awaited.popleft()
            if self._awaited:
                after = self._awaited[0]
        self._state = after
        return reply

    def take_fds(self) -> list[int]:
        """Return the file descriptors of the message last returned; the caller owns them from now on."""
        fds, self._fds = self._fds, []
        return fds

    def _next_text(self) -> bytes | None:
        buffer = self._buffer
        if not buffer:
            return None
        end = buffer.find(0, self._scanned)
        if end < 0:
            self._scanned = len(buffer)
            return None
        text = bytes(buffer[:end])
        del buffer[: end + 1]
        self._scanned = 0
        if self._arrived is not None or self._fds or self.fds_truncated:
            self._close_fds(self._fds)
            self._fds, self.fds_truncated = self._arrived or ([], False)
            self._arrived = None
        return text

    # -- sending

    def send_call(
        self,
        method: str,
        parameters: bytes = b"{}",
        *,
        more: bool = False,
        oneway: bool = False,
        fds: Sequence[int] = (),
    ) -> None:
        """Queue a call, of a client. Calls may be sent before earlier ones are answered.

        Args:
            method: full name, with the interface.
            parameters: JSON text of an object.
            more: ask for several replies.
            oneway: ask for none.
            fds: file descriptors to go with it; the connection owns them from now on.

        Raises:
            NotSent: the call is too much; the connection goes on.
            LocalProtocolError: not a client, no connection any more, or both flags.
        """
        fds = tuple(fds)
        if (
            self.role is not Role.CLIENT
            or self._eof
            or (more and oneway)
            or self._state in {State.CLOSED, State.ERROR}
        ):
            close_all(fds)
            raise LocalProtocolError(f"cannot send a call in state {self._state.name}")
        if len(self._awaited) >= QUEUE_MAX:
            close_all(fds)
            raise NotSent("too many calls under way")
        text = encode_call(method, parameters, more=more, oneway=oneway)
        if len(text) >= INPUT_MAX or len(fds) > FDS_MAX:
            close_all(fds)
            raise NotSent(f"a call of {len(text)} bytes and {len(fds)} file descriptors")
        self._queue(text, fds)
        if not oneway:
            self._awaited.append(State.STREAM if more else State.CALL)
            self._state = self._awaited[0]

    def send_reply(self, parameters: bytes, *, continues: bool = False, fds: Sequence[int] = ()) -> None:
        """Queue a reply to the call at hand, of a server.

        Args:
            parameters: JSON text of an object.
            continues: more replies will follow.
            fds: file descriptors to go with it; the connection owns them from now on.

        Raises:
            LocalProtocolError: no call is waiting for this, or it is too much at once.
        """
        fds = tuple(fds)
        event = Event.REPLY_CONTINUES if continues else Event.REPLY
        self._move(event, fds)
        self._queue(encode_reply(parameters, continues=continues), fds)

    def send_error(self, error: str, parameters: bytes = b"{}") -> None:
        """Queue an error reply to the call at hand, of a server.

        Args:
            error: full name, with the interface.
            parameters: JSON text of an object.

        Raises:
            LocalProtocolError: no call is waiting for a reply, or it is too much at once.
        """
        self._move(Event.REPLY_ERROR, ())
        self._queue(encode_error(error, parameters), ())

    def oneway_done(self) -> None:
        """Tell that the call at hand, which wants no reply, is through.

        Raises:
            LocalProtocolError: there is no such call.
        """
        self._move(Event.ONEWAY_DONE, ())

    def outgoing(self) -> tuple[bytes | memoryview, tuple[int, ...]] | None:
        """Return what to write next with one sendmsg(2): bytes, and the file descriptors that go with them."""
        output = self._output
        return output.first() if output.size else None

    def sent(self, count: int) -> None:
        """Tell how much of what :meth:`outgoing` returned was written: at least one byte."""
        self._output.sent(count)

    def close(self) -> None:
        """End the connection; close every file descriptor that it still owns. May be called again."""
        if self._state is not State.ERROR:
            self._state = State.CLOSED
        self._awaited.clear()
        self._buffer = bytearray()
        self._scanned = 0
        self._close_fds(self.take_fds())
        if self._arrived is not None:
            self._close_fds(self._arrived[0])
            self._arrived = None
        self._output.clear()

    def _move(self, event: Event, fds: tuple[int, ...]) -> None:
        after = TRANSITIONS[self._state].get(event)
        if after is None or self.role is not Role.SERVER:
            close_all(fds)
            raise LocalProtocolError(f"cannot send {event.name} in state {self._state.name}")
        self._state = after

    def _queue(self, text: bytes, fds: tuple[int, ...]) -> None:
        if len(text) >= INPUT_MAX or len(self._output) >= QUEUE_MAX:
            close_all(fds)
            self._state = State.ERROR
            raise LocalProtocolError(
                "message too long" if len(text) >= INPUT_MAX else "too many messages waiting to be written"
            )
        self._output.append(text + b"\0", fds)

    def _fail(self, reason: str) -> ProtocolError:
        self._state = State.ERROR
        return ProtocolError(reason)
