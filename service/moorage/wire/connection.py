"""One end of a varlink connection, without any I/O."""

# Theory of operation
#
# A connection does not read, write or wait. Its user passes in what was received (receive_data) and takes complete
# messages out (next_call, next_reply); it passes in messages to be sent (send_call, send_reply, send_error) and takes
# out bytes to be written (outgoing, sent). So the same code runs below trio, below an epoll loop, and in a test
# without a socket; and a test can cut the input at every byte.
#
# Varlink is a sequence of messages, each ended by a NUL, in both directions. A client sends calls, and the service
# answers them in order: with one reply, with several if the call has the flag `more`, with none if it has the flag
# `oneway`. Nothing in a reply says which call it belongs to. Hence the one state that matters is the call that is to
# be answered next, and it is the same at both ends: TRANSITIONS is the whole protocol, and a message that has no row
# in it is a violation, whichever end sent it.
#
#            CALL         REPLY, REPLY_ERROR
#      +--------------> CALL ----------------+
#      |    CALL_MORE       REPLY, REPLY_ERROR
#    IDLE ------------> STREAM --------------+---> IDLE
#      |                 ^  | REPLY_CONTINUES
#      |                 +--+                |
#      |  CALL_ONEWAY         ONEWAY_DONE    |
#      +--------------> ONEWAY --------------+
#
# The two ends differ in how many calls they know of. A client may send calls before earlier ones are answered: its
# state is that of the oldest call (`_awaited` holds all of them, except oneway ones, which nothing is received for). A
# server has one call at a time: next_call() returns PAUSED until that one is answered, and later calls stay in the
# buffer, undecoded. So a peer that pipelines cannot make a server work on several of its calls at once, and the order
# of replies needs no effort. ONEWAY is a state of the server only.
#
# h11 tracks both ends in each connection and needs a table per role. Here one table serves both, because a varlink
# connection is never reused for anything else (upgrade is answered like any other call) and because neither end may
# send anything on its own account.
#
# Errors are of two kinds. What the peer does wrong raises ProtocolError; what our own program does wrong raises
# LocalProtocolError. Both leave the connection in ERROR, a state without transitions. There is no way to
# resynchronise: after a message that cannot be parsed, nobody knows which call the next reply answers. NotSent is the
# exception, in both senses: it is raised before anything was queued, so the connection goes on.
#
# Limits are checked where memory is taken. Input is limited per message, not per buffer, as pipelined calls are
# legitimate, and the reader stops reading while a call is at hand. Output has a limit too, but reaching it is a bug of
# the program: a server is expected to stop producing replies long before (OUTPUT_HIGH_WATER of the link).
#
# File descriptors are the subtle part. The kernel attaches them to a byte, a program means a message, and recvmsg(2)
# may return several messages at once. The rule is sd-varlink's (json_stream_read()): they belong to the message whose
# first byte arrived with them; if several first bytes did, to the first of those messages; in the middle of a message
# they are a violation. On the way out the first byte of a message carries them, and messages are never joined across
# them. Every file descriptor has exactly one owner. The connection owns those passed to receive_data() and to the send
# methods from that moment, even if the call raises, until they are taken (take_fds) or written; it closes the rest.
# Closing a file that a peer has sent may block for as long as its maker pleases, so a server passes a function for
# that (`close_fds`).

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import UNSET

from moorage.wire.errors import ProtocolError
from moorage.wire.input import appended, rest_of
from moorage.wire.message import (
    CallMessage,
    ReplyMessage,
    decode_call,
    decode_reply,
    encode_call,
    encode_error,
    encode_reply,
)
from moorage.wire.output import Output, close_all

CALL_MAX = 256 * 1024
"""Maximum size of a call from an untrusted peer, in bytes. sd-varlink accepts 16 MiB from anyone; we do not, because
decoding blocks the event loop: 8 ms for the most tangled call of this size. A Register with 64 helpers of a hundred
arguments each is shorter."""

INPUT_MAX = 16 * 1024 * 1024
"""Maximum size of any other message, sent or received, in bytes (JSON_STREAM_BUFFER_MAX_DEFAULT of systemd's
json-stream.c)."""

QUEUE_MAX = 64 * 1024
"""Maximum number of messages waiting to be written, and of calls waiting to be answered
(JSON_STREAM_QUEUE_MAX_DEFAULT)."""

READ_SIZE = 64 * 1024
"""Bytes to read at once (JSON_STREAM_READ_SIZE_DEFAULT)."""

FDS_MAX = 253
"""Maximum number of file descriptors that the kernel sends at once (SCM_MAX_FD, unix(7))."""


class LocalProtocolError(Exception):
    """The program used the connection against the protocol: a bug on this side."""


class NotSent(LocalProtocolError):
    """The call is too long, has too many file descriptors, or too many calls are waiting. Nothing was queued."""


class Role(enum.Enum):
    """One end of a connection."""

    CLIENT = enum.auto()
    SERVER = enum.auto()


class State(enum.IntEnum):
    """What a connection waits for; a client with several calls under way, for the oldest of them.

    Attributes:
        IDLE: a call.
        CALL: its only reply.
        STREAM: one of its replies.
        ONEWAY: the end of its handler, which nothing is sent for.
        CLOSED: nothing; one end has closed the connection.
        ERROR: nothing; one end broke the protocol.
    """

    IDLE = enum.auto()
    CALL = enum.auto()
    STREAM = enum.auto()
    ONEWAY = enum.auto()
    CLOSED = enum.auto()
    ERROR = enum.auto()


class Event(enum.IntEnum):
    """A message, sent or received, that moves a connection to its next state."""

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
"""The protocol. Events without a row are violations."""

_FROM_IDLE = TRANSITIONS[State.IDLE]


class Wait(enum.Enum):
    """Why there is no message.

    Attributes:
        NEED_DATA: no message is complete; read more.
        PAUSED: no message is due. A server has to answer the call at hand first; a client has not called.
        CLOSED: the peer has sent its last byte.
    """

    NEED_DATA = enum.auto()
    PAUSED = enum.auto()
    CLOSED = enum.auto()


NEED_DATA = Wait.NEED_DATA
PAUSED = Wait.PAUSED
CLOSED = Wait.CLOSED

_NONE_AWAITED: deque[State] = deque(maxlen=0)
"""Of all servers, which send no calls: an empty deque takes 760 bytes, and there may be thousands of connections."""


class Connection:
    """One end of a connection.

    Args:
        role: the end that this is.
        input_max: maximum size of a message that is received, in bytes.
        close_fds: closes file descriptors that were received and not taken.

    Attributes:
        role: the end that this is.
    """

    __slots__ = (
        "_arrived", "_awaited", "_buffer", "_close_fds", "_eof", "_fds", "_input_max", "_output", "_scanned", "_state",
        "role",
    )  # fmt: skip

    def __init__(
        self,
        role: Role,
        input_max: int = INPUT_MAX,
        close_fds: Callable[[Iterable[int]], None] = close_all,
    ) -> None:
        self.role = role
        self._close_fds = close_fds
        self._state = State.IDLE
        # Calls sent, the oldest first.
        self._awaited = deque[State]() if role is Role.CLIENT else _NONE_AWAITED
        self._input_max = input_max
        self._buffer: bytes | bytearray = b""
        self._scanned = 0  # bytes at the front of the buffer that are known to hold no NUL
        self._eof = False
        self._arrived: Sequence[int] = ()  # file descriptors of the message at the front of the buffer
        self._fds: Sequence[int] = ()  # file descriptors of the message last returned
        self._output = Output()

    @property
    def state(self) -> State:
        """What the connection waits for."""
        return self._state

    @property
    def awaited(self) -> int:
        """Number of calls of this client that are not completely answered."""
        return len(self._awaited)

    @property
    def queued(self) -> int:
        """Bytes waiting to be written."""
        return self._output.size

    @property
    def buffered(self) -> int:
        """Bytes received and not yet decoded."""
        return len(self._buffer)

    # -- receiving

    def receive_data(self, data: bytes, fds: Sequence[int] = (), *, truncated: bool = False) -> None:
        """Take in the result of one recvmsg(2).

        Args:
            data: the bytes; empty at the end of the stream.
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
            self._arrived = tuple(fds)
        if not data:
            self._eof = True
            return
        self._buffer = buffer = appended(buffer, data)
        if len(buffer) >= self._input_max and buffer.find(0, self._scanned, self._input_max) < 0:
            raise self._fail("message too long")

    def next_event(self) -> CallMessage | ReplyMessage | Wait:
        """Return the next message received.

        Raises:
            ProtocolError: the peer broke the protocol.
        """
        return self.next_call() if self.role is Role.SERVER else self.next_reply()

    def next_call(self) -> CallMessage | Wait:
        """Return the next call; of a server.

        Raises:
            ProtocolError: the peer sent something that is not a call.
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

    def next_reply(self) -> ReplyMessage | Wait:
        """Return the next reply; of a client.

        Raises:
            ProtocolError: the peer sent something that is not a reply, or a reply that was not asked for.
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
        fds, self._fds = self._fds, ()
        return list(fds)

    def _next_text(self) -> bytes | None:
        buffer = self._buffer
        if not buffer:
            return None
        end = buffer.find(0, self._scanned)
        if end < 0:
            self._scanned = len(buffer)
            return None
        text = bytes(buffer[:end])
        self._buffer = rest_of(buffer, end + 1)
        self._scanned = 0
        if self._arrived or self._fds:
            self._close_fds(self._fds)
            self._fds, self._arrived = self._arrived, ()
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
        """Queue a call; of a client. Calls may be sent before earlier ones are answered.

        Args:
            method: full name, with the interface.
            parameters: JSON text of an object.
            more: ask for several replies.
            oneway: ask for no reply.
            fds: file descriptors to go with it; the connection owns them from now on.

        Raises:
            NotSent: the call exceeds a limit. The connection goes on.
            LocalProtocolError: this is a server, the connection has ended, or both flags are set.
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
        self._queue(text + b"\0", fds)
        if not oneway:
            self._awaited.append(State.STREAM if more else State.CALL)
            self._state = self._awaited[0]

    def send_reply(self, parameters: bytes, *, continues: bool = False, fds: Sequence[int] = ()) -> None:
        """Queue a reply to the call at hand; of a server.

        Args:
            parameters: JSON text of an object.
            continues: more replies will follow.
            fds: file descriptors to go with it; the connection owns them from now on.

        Raises:
            LocalProtocolError: no call is waiting for such a reply, or it exceeds a limit.
        """
        fds = tuple(fds)
        event = Event.REPLY_CONTINUES if continues else Event.REPLY
        self._move(event, fds)
        self._queue(encode_reply(parameters, continues=continues) + b"\0", fds)

    def send_prepared(self, messages: Iterable[bytes]) -> None:
        """Queue replies to the call at hand that others will follow, as they go over the wire; of a server.

        Args:
            messages: as :func:`moorage.wire.message.prepared_reply` returns them.

        Raises:
            LocalProtocolError: no call is waiting for such replies, or there are too many.
        """
        self._move(Event.REPLY_CONTINUES, ())
        for message in messages:
            self._queue(message, ())

    def send_error(self, error: str, parameters: bytes = b"{}") -> None:
        """Queue an error reply to the call at hand; of a server.

        Args:
            error: full name, with the interface.
            parameters: JSON text of an object.

        Raises:
            LocalProtocolError: no call is waiting for a reply, or it exceeds a limit.
        """
        self._move(Event.REPLY_ERROR, ())
        self._queue(encode_error(error, parameters) + b"\0", ())

    def oneway_done(self) -> None:
        """Finish the call at hand, which wants no reply.

        Raises:
            LocalProtocolError: there is no such call.
        """
        self._move(Event.ONEWAY_DONE, ())

    def outgoing(self) -> tuple[bytes | memoryview, tuple[int, ...]] | None:
        """Return what to write next with one sendmsg(2): bytes, and the file descriptors that go with them."""
        return self._output.first()

    def sent(self, count: int) -> None:
        """Note that so many bytes of what :meth:`outgoing` returned were written, at least one."""
        self._output.sent(count)

    def close(self) -> None:
        """End the connection, and close every file descriptor that it still owns. May be called again."""
        if self._state is not State.ERROR:
            self._state = State.CLOSED
        self._awaited.clear()
        self._buffer = b""
        self._scanned = 0
        self._close_fds(self.take_fds())
        self._close_fds(self._arrived)
        self._arrived = ()
        self._output.clear()

    def _move(self, event: Event, fds: tuple[int, ...]) -> None:
        after = TRANSITIONS[self._state].get(event)
        if after is None or self.role is not Role.SERVER:
            close_all(fds)
            raise LocalProtocolError(f"cannot send {event.name} in state {self._state.name}")
        self._state = after

    def _queue(self, message: bytes, fds: tuple[int, ...]) -> None:
        if len(message) > INPUT_MAX or len(self._output) >= QUEUE_MAX:
            close_all(fds)
            self._state = State.ERROR
            raise LocalProtocolError(
                "message too long" if len(message) > INPUT_MAX else "too many messages waiting to be written"
            )
        self._output.append(message, fds)

    def _fail(self, reason: str) -> ProtocolError:
        self._state = State.ERROR
        return ProtocolError(reason)
