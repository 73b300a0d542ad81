"""One accepted connection: reads calls, has them handled, writes replies.

Works in turns, called when the socket is ready. A turn reads once, answers what it can without waiting, and writes.
One call is at hand at a time; what else arrives waits, in the buffer or in the socket. The same in the other
direction: where the peer does not read, no further reply is made until it does.

What a peer does wrong ends its connection and is logged at debug level only, since anyone could fill the log
otherwise; what a handler does wrong is logged here, with its traceback, and nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import select
import socket
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import msgspec
import trio

from moorage.kernel.peer import Peer
from moorage.kernel.poller import Readiness
from moorage.wire.connection import (
    CALL_MAX,
    CLOSED,
    INPUT_MAX,
    NEED_DATA,
    Connection,
    LocalProtocolError,
    Role,
    Signal,
    close_all,
)
from moorage.wire.deadlines import Deadlines
from moorage.wire.dispatch import Call, Kind, Last, Method, Service, WithFds
from moorage.wire.disposal import Disposal
from moorage.wire.errors import ExpectedMore, ProtocolError, System, VarlinkError
from moorage.wire.message import CallMessage, encode_parameters
from moorage.wire.places import Unread
from moorage.wire.sockets import Inlet, send_chunk

logger = logging.getLogger(__name__)

MESSAGES_PER_TURN = 16
"""Pipelined calls of one connection to answer before the others get their turn."""

REPLIES_PER_TURN = 64
"""Replies of one stream to make before the others get their turn."""

USER_TURN_SECONDS = 0.001
"""Time that a turn of a user's connection may take before it is cut short at the next call or reply. A turn of the
figures above takes ten times as long where the replies are long, and root waits for it."""

UNFINISHED_SECONDS = 30.0
"""Time for a user to send the rest of a call that has begun. A call is written at once; a typist has this long."""

CALLS_PER_USER = 64
"""Calls of one user that may be under way in tasks. More of them wait. A launcher of a hundred machines notices
nothing; who has calls that take minutes waits for those, and nobody else does."""

PLACE_SECONDS = 45.0
"""How long such a call waits before it is answered with EBUSY: as long as most callers wait for a reply
(VARLINK_DEFAULT_TIMEOUT_USEC of sd-varlink.c)."""

LONG_INPUT = 16 * 1024
"""Bytes of calls that have arrived but are not yet decoded at which a user is taken to send long ones."""

REST_SECONDS = 0.02
"""For how long no connection of such a user is read from, unless it is trusted. Long calls cost: so a user who sends
nothing else keeps the service busy a tenth of the time, however often it connects; a call of 256 KiB takes 80 ms."""

OUTPUT_HIGH_WATER = 256 * 1024
"""Bytes waiting to be written at which no further reply is made. It keeps every connection far below the limits of
:mod:`moorage.wire.connection`, at which sd-varlink drops a peer that does not read."""

USER_HIGH_WATER = 16 * 1024
"""The same for the connection of a user, of which there may be thousands."""

INTERNAL_ERROR = System.of(errno.EIO)
"""The answer where a handler failed in a way that it should not have: never with a word of what happened."""

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR


class HandlerError(Exception):
    """A handler answered in a way that its call does not allow: a bug of the service."""


class Surroundings(msgspec.Struct, frozen=True):
    """What all connections of a server share.

    Attributes:
        service: answers the calls.
        readiness: watches the sockets of those who are trusted.
        crowd: watches those of users.
        deadlines: watch the peers.
        disposal: closes what peers have sent.
        trusted: uids that could do worse than to keep the service busy: root, and whose instance this is.
        unread: what users have left unread.
        tasks: where handlers that wait run.
        stall_seconds: how long a peer may leave replies unread.
        ended: told of each connection that has ended.
        trusted_busy: connections that have a call at hand, of those who are trusted.
        resting: users whose connections get no turn, and until when, in seconds of trio.current_time().
        under_way: calls of users in tasks.
    """

    service: Service
    readiness: Readiness
    crowd: Readiness
    deadlines: Deadlines
    disposal: Disposal
    trusted: frozenset[int]
    unread: Unread[Link]
    tasks: trio.Nursery
    stall_seconds: float
    ended: Callable[[Link], None]
    trusted_busy: set[Link] = msgspec.field(default_factory=set[Any])
    resting: dict[int, float] = msgspec.field(default_factory=dict[int, float])
    under_way: dict[int, trio.CapacityLimiter] = msgspec.field(
        default_factory=dict[int, trio.CapacityLimiter]
    )


class Link:
    """One accepted connection.

    Args:
        surroundings: what it shares with the others.
        connected: non-blocking socket; the link owns it.
        peer: who made the connection.
        refusal: what to answer to the first call instead of having it handled; ends the connection.

    Attributes:
        peer: who made the connection.
        uid: of the peer.
        trusted: whether the peer is (:attr:`Surroundings.trusted`).
        refusal: see above.
        idle: whether nothing is lost if it is closed: no handler is at work, nobody depends on it, and what it has
            asked for it does not read.
        busy: whether a call is at hand whose handler waits, or whose replies do.
    """

    __slots__ = (
        "_call",
        "_closed",
        "_connection",
        "_finishing",
        "_gone",
        "_held",
        "_high_water",
        "_inlet",
        "_interest",
        "_room",
        "_scope",
        "_shared",
        "_socket",
        "_stalled",
        "_stream",
        "_turn_ends",
        "_unfinished",
        "peer",
        "refusal",
        "trusted",
        "uid",
    )

    def __init__(
        self, surroundings: Surroundings, connected: socket.socket, peer: Peer, refusal: System | None = None
    ) -> None:
        self.peer = peer
        self.uid = peer.uid
        self.trusted = peer.uid in surroundings.trusted
        self.refusal = refusal
        self._shared = surroundings
        self._socket = connected
        self._inlet = Inlet(connected, takes_fds=self.trusted)
        self._connection = Connection(
            Role.SERVER, INPUT_MAX if self.trusted else CALL_MAX, close_fds=self.dispose
        )
        self._high_water = OUTPUT_HIGH_WATER if self.trusted else USER_HIGH_WATER
        self._interest: int | None = None  # what the socket is watched for; None where it is not
        self._call: Call | None = None  # the call at hand, of a task or a stream
        self._scope: trio.CancelScope | None = None  # of the task
        self._stream: Iterator[Any] | None = None
        self._held: Any = None  # reply of the stream that waits until it is known whether it is the last one
        self._turn_ends = math.inf  # in seconds of time.monotonic()
        self._unfinished = False  # the peer's time to finish a call is running
        self._finishing = False  # close as soon as everything is written
        self._closed = False
        self._stalled = False  # the peer's time to read is running
        self._room: trio.Event | None = None  # what a task waits for that has too much unread
        self._gone: trio.Event | None = None

    @property
    def busy(self) -> bool:
        """Whether a call is at hand."""
        return self._call is not None

    @property
    def idle(self) -> bool:
        """Whether nothing is lost if it is closed."""
        return self._scope is None and self._gone is None and (self._call is None or self._stalled)

    def dispose(self, fds: Iterable[int]) -> None:
        """Close file descriptors that the peer has sent."""
        self._shared.disposal.close(self.uid, fds)

    async def wait_gone(self) -> None:
        """Return when the connection has ended."""
        if self._gone is None:
            self._gone = trio.Event()
            if self._closed:
                self._gone.set()
        await self._gone.wait()

    def start(self) -> None:
        """Begin to watch the socket.

        Raises:
            OSError: that is impossible; the socket is closed.
        """
        try:
            self._watch(_IN)
        except OSError:
            self._closed = True
            self._inlet.close(self.dispose)
            raise

    def ready(self, events: int) -> None:
        """Do what can be done now.

        Args:
            events: what epoll has seen of the socket.
        """
        if not self.trusted:
            if self._shared.resting and self._rests():
                return
            self._turn_ends = time.monotonic() + USER_TURN_SECONDS
        try:
            if self._scope is None:
                self._turn(events)
            else:
                self._turn_beside_task(events)
        except (ProtocolError, OSError) as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001  # one connection must not take the others with it
            self._fail(error)

    def _rests(self) -> bool:
        """Whether it is not this user's turn; the next one comes by itself."""
        resting, uid = self._shared.resting, self.uid
        left = resting.get(uid, 0.0) - trio.current_time()
        if left <= 0:
            resting.pop(uid, None)
            return False
        self._watch(None)
        self._shared.deadlines.set((self, "rest"), left, partial(self.ready, _IN | _OUT))
        return True

    def finish(self) -> None:
        """Close as soon as what has arrived is answered and written."""
        self._finishing = True
        if self._scope is None:
            self.ready(_IN)

    def close(self) -> None:
        """End the connection and the call at hand. May be called again."""
        if self._closed:
            return
        self._closed = True
        if self._interest is not None:
            self._watch(None)
        self._connection.close()
        self._inlet.close(self.dispose)
        if self._scope is not None:
            self._scope.cancel()
        elif self._stream is not None:
            self._end_stream()
        if self._gone is not None:
            self._gone.set()
        self._shared.deadlines.clear(self)
        self._shared.deadlines.clear((self, "rest"))
        self._shared.deadlines.clear((self, "unfinished"))
        if not self.trusted:
            self._shared.unread.note(self, 0)
        self._shared.ended(self)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, (ProtocolError, OSError)):
            logger.debug("Connection of process %d ended: %s", self.peer.pid, error)
            if isinstance(error, ProtocolError) and not self._closed:
                # What was answered before is not taken back for what came after it.
                with contextlib.suppress(OSError):
                    self._flush()
        else:
            logger.error("Failed to serve a connection, closing it:", exc_info=error)
        self.close()

    # -- turns

    def _turn(self, events: int) -> None:
        more = self._work(may_read=bool(events & ~_OUT))
        if self._closed:
            return
        blocked = not self._flush()
        if self._scope is not None:
            self._watch(_IN | _OUT if blocked else _IN)
        elif self._finishing and not more and not blocked:
            self.close()
        else:
            # It is writable at once in most cases: that is how a turn that was cut short gets its continuation.
            self._watch(_OUT if more or blocked else _IN)
            if not self.trusted:
                self._watch_unfinished(unfinished=not more and self._connection.has_partial_input)

    def _watch_unfinished(self, *, unfinished: bool) -> None:
        if unfinished == self._unfinished:
            return
        self._unfinished = unfinished
        if unfinished:
            self._shared.deadlines.set((self, "unfinished"), UNFINISHED_SECONDS, self.close)
        else:
            self._shared.deadlines.clear((self, "unfinished"))

    def _work(self, *, may_read: bool) -> bool:
        """Answer as much as is fair; return whether more could be done as soon as there is room."""
        connection = self._connection
        if connection.queued and not self._flush():
            return True
        if self._stream is not None and not self._make_replies():
            return True
        for _ in range(MESSAGES_PER_TURN):
            call = connection.next_call()
            if call is NEED_DATA and may_read and self._read():
                may_read = False
                call = connection.next_call()
            if isinstance(call, Signal):
                self._finishing |= call is CLOSED
                return False
            self._answer(call)
            if self._call is not None:
                return self._stream is not None
            if self._closed or self.refusal is not None:
                return False
            if connection.queued > self._high_water and not self._flush():
                return True
            if time.monotonic() > self._turn_ends:
                break
        return connection.has_partial_input

    def _turn_beside_task(self, events: int) -> None:
        assert self._call is not None
        if events & _GONE:
            if not self._call.oneway:
                self.close()
                return
            # Hanging up is how a oneway call ends for most callers, and no reason not to do what they asked for. What
            # is still to be read is read when the task is through.
            self._watch(None)
            return
        interest = self._interest or 0
        if events & _IN:
            interest &= ~_IN  # a pipelined call, or the end of the stream: waits in the socket
        blocked = not self._flush()
        self._watch(interest | _OUT if blocked else interest & ~_OUT)

    def _watch(self, interest: int | None) -> None:
        if interest == self._interest:
            return
        readiness = self._shared.readiness if self.trusted else self._shared.crowd
        fd = self._socket.fileno()
        if interest is None:
            readiness.remove(fd)
        elif self._interest is None:
            readiness.add(fd, interest, self.ready)
        else:
            readiness.modify(fd, interest)
        self._interest = interest

    def _read(self) -> bool:
        if self._inlet.spent:
            return False
        try:
            self._inlet.receive(self._connection, self.dispose)
        except BlockingIOError:
            return False
        finally:
            if self._connection.buffered > LONG_INPUT and not self.trusted:
                self._shared.resting[self.uid] = trio.current_time() + REST_SECONDS
        # What has come by now gets its answers; then the file descriptors that were left go with the connection.
        self._finishing |= self._inlet.spent
        return True

    def _flush(self) -> bool:
        """Write what is waiting; return whether nothing is left."""
        connection = self._connection
        progress = False
        while (chunk := connection.outgoing()) is not None:
            try:
                count = send_chunk(self._socket, *chunk)
            except BlockingIOError:
                # Each bit that the peer reads buys it new time. One that is refused has its deadline already.
                if self.refusal is None and (progress or not self._stalled):
                    self._stalled = True
                    self._shared.deadlines.set(self, self._shared.stall_seconds, self._give_up)
                if not self.trusted:
                    self._note_unread()
                return False
            connection.sent(count)
            progress = True
        if self._stalled:
            self._stalled = False
            self._shared.deadlines.clear(self)
            if not self.trusted:
                self._shared.unread.note(self, 0)
        if self._room is not None:
            self._room.set()
        return True

    def _note_unread(self) -> None:
        worst = self._shared.unread.note(self, self._connection.queued)
        if worst is not None:
            # Never from within its own turn, which is not prepared for that.
            self._shared.deadlines.set(worst, 0, worst._give_up)  # noqa: SLF001  # another one of the same kind

    def _give_up(self) -> None:
        logger.debug("Process %d does not read, closing its connection.", self.peer.pid)
        self.close()

    # -- calls

    def _answer(self, message: CallMessage) -> None:
        connection = self._connection
        call = Call(message, self, connection.take_fds(), fds_truncated=connection.fds_truncated)
        try:
            if self.refusal is not None:
                self._finishing = True
                raise self.refusal
            handler = self._shared.service.find(message.method)
            if handler.requires_more and not message.more:
                raise ExpectedMore
            parameters = handler.decode(message.parameters)
        except VarlinkError as error:
            self._end_with_error(call, error)
            call.close()
            return
        except ProtocolError:
            call.close()
            raise
        if handler.kind is Kind.PLAIN:
            try:
                reply = handler.function(call, parameters)
            except Exception as error:  # noqa: BLE001  # whatever it is, the caller gets an answer
                self._end_with_error(call, error)
            else:
                self._end_with_reply(call, reply)
            call.close()
        elif handler.kind is Kind.GENERATOR:
            try:
                stream = handler.function(call, parameters)
            except Exception as error:  # noqa: BLE001  # whatever it is, the caller gets an answer
                self._end_with_error(call, error)
                call.close()
                return
            self._begin(call)
            if isinstance(stream, AsyncGenerator):
                self._start_task(
                    call, handler, self._run_stream(call, cast("AsyncGenerator[Any, None]", stream))
                )
            else:
                self._stream = stream
                self._make_replies()
        else:
            self._begin(call)
            self._start_task(
                call,
                handler,
                self._run_one(call, handler, parameters)
                if handler.kind is Kind.COROUTINE
                else self._run_stream(call, handler.function(call, parameters)),
            )

    def _begin(self, call: Call) -> None:
        self._call = call
        if self.trusted:
            self._shared.trusted_busy.add(self)

    def _done(self) -> None:
        self._call = None
        self._shared.trusted_busy.discard(self)

    def _start_task(self, call: Call, handler: Method, work: Coroutine[Any, Any, None]) -> None:
        self._scope = trio.CancelScope()
        self._shared.tasks.start_soon(self._run, call, work, name=handler.name)

    def _make_replies(self) -> bool:
        """Make replies of the stream at hand while there is room; return whether it has ended."""
        call, stream, connection = self._call, self._stream, self._connection
        assert call is not None
        assert stream is not None
        for _ in range(REPLIES_PER_TURN):
            try:
                reply = next(stream)
            except StopIteration:
                if self._held is None:
                    raise HandlerError(f"{call.method} ended without a reply") from None
                last, self._held = self._held, None
                self._end_with_reply(call, last)
                self._end_stream()
                return True
            except Exception as error:  # noqa: BLE001  # whatever it is, the caller gets an answer
                self._send_held(call)
                self._end_with_error(call, error)
                self._end_stream()
                return True
            self._send_held(call)
            self._held = reply
            if connection.queued > self._high_water and not self._flush():
                break
            if time.monotonic() > self._turn_ends:
                break
        return False

    def _send_held(self, call: Call) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._send_one_of_many(call, held)

    def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        call = self._call
        self._done()
        held, self._held = self._held, None
        if isinstance(held, WithFds):
            close_all(cast("WithFds[Any]", held).fds)
        if call is not None:
            call.close()
        if isinstance(stream, Generator):
            try:
                stream.close()
            except Exception:
                logger.exception("Failed to end a stream of replies, ignoring:")

    async def _run_one(self, call: Call, handler: Method, parameters: msgspec.Struct) -> None:
        self._end_with_reply(call, await handler.function(call, parameters))

    async def _run(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        """Handle a call whose handler waits."""
        assert self._scope is not None
        try:
            with self._scope:
                if self.trusted:
                    await work
                else:
                    async with self._place():
                        await work
        except (HandlerError, LocalProtocolError) as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001  # whatever it is, the caller gets an answer
            self._end_with_error(call, error)
        finally:
            work.close()  # where it was never begun
            call.close()
        self._scope = None
        self._done()
        if not self._closed:
            self.ready(0)

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncGenerator[None]:
        """Be one of the calls of this user that are under way.

        Raises:
            System: there are too many, and have been for a while (EBUSY).
        """
        places = self._shared.under_way.setdefault(self.uid, trio.CapacityLimiter(CALLS_PER_USER))
        with trio.move_on_after(PLACE_SECONDS) as waiting:
            await places.acquire_on_behalf_of(self)
        if waiting.cancelled_caught:
            raise System.of(errno.EBUSY)
        try:
            yield
        finally:
            places.release_on_behalf_of(self)
            if not places.borrowed_tokens:
                # Whoever waits has got a token by now.
                self._shared.under_way.pop(self.uid, None)

    async def _run_stream(self, call: Call, replies: AsyncGenerator[Any, None]) -> None:
        async with contextlib.aclosing(replies):
            async for reply in replies:
                if isinstance(reply, Last):
                    self._end_with_reply(call, cast("Last[Any]", reply).reply)
                    return
                self._send_one_of_many(call, reply)
                if self._connection.queued:
                    self.ready(0)
                if self._connection.queued > self._high_water:
                    self._room = trio.Event()
                    await self._room.wait()
                    self._room = None
        raise HandlerError(f"{call.method} ended without a last reply")

    def _send_one_of_many(self, call: Call, reply: Any) -> None:
        if not (call.more or call.oneway):
            raise HandlerError(f"{call.method} gave several replies to a call for one")
        text, fds = _encode(reply)
        if self._closed or call.oneway:
            close_all(fds)
        else:
            self._connection.send_reply(text, continues=True, fds=fds)

    def _end_with_reply(self, call: Call, reply: Any) -> None:
        try:
            text, fds = _encode(reply)
        except Exception as error:  # noqa: BLE001  # whatever it is, the caller gets an answer
            self._end_with_error(call, error)
            return
        if self._closed:
            close_all(fds)
        elif call.oneway:
            close_all(fds)
            self._connection.oneway_done()
        else:
            self._connection.send_reply(text, fds=fds)

    def _end_with_error(self, call: Call, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno:
            error = System.of(error.errno)
        elif not isinstance(error, VarlinkError):
            logger.error("Failed to handle %s:", call.method, exc_info=error)
            error = INTERNAL_ERROR
        if self._closed:
            return
        if call.oneway:
            self._connection.oneway_done()
        else:
            self._connection.send_error(error.error, encode_parameters(error.parameters()))


def _encode(reply: Any) -> tuple[bytes, Sequence[int]]:
    if not isinstance(reply, WithFds):
        return encode_parameters(reply), ()
    with_fds = cast("WithFds[Any]", reply)
    try:
        return encode_parameters(with_fds.reply), with_fds.fds
    except BaseException:
        close_all(with_fds.fds)
        raise
