"""The call at hand of a connection: runs its handler, and turns replies and errors into messages.

A handler of each kind runs in the cheapest way that does not block the other connections: a plain function at once, an
iterator as far as the peer reads, a coroutine or an asynchronous iterator in a task.

A bug in a handler is logged here, with its traceback, and nowhere else; the caller gets an error without details.

Cancel safety: the task of a handler is cancelled when its caller hangs up, unless the call is ``oneway``. A handler
that must not stop half-way shields itself.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator, Sequence
from typing import Any, Protocol, cast

import trio
from msgspec import Struct

from moorage.wire.call import Call, Caller
from moorage.wire.connection import Connection, LocalProtocolError
from moorage.wire.errors import ExpectedMore, ProtocolError, System, VarlinkError
from moorage.wire.fairness import Fairness
from moorage.wire.message import CallMessage, encode_parameters
from moorage.wire.method import Kind, Method
from moorage.wire.outlet import Outlet, Owner
from moorage.wire.output import close_all
from moorage.wire.service import Service
from moorage.wire.turns import Event
from moorage.wire.types import Feed, Last, Prepared, WithFds

logger = logging.getLogger(__name__)

REPLIES_PER_TURN = 64
"""Replies of one stream to make before the other connections get their turn."""

INTERNAL_ERROR = System.of(errno.EIO)
"""The answer if a handler has a bug; it gives no details."""


class HandlerError(Exception):
    """A handler replied in a way that its call does not allow: a bug of the service."""


class Turns(Caller, Owner, Protocol):
    """The connection that calls arrive on: its socket, and its turns among the others.

    Attributes:
        closed: whether the connection has ended.
    """

    @property
    def closed(self) -> bool: ...  # noqa: D102  # see above

    def read(self) -> bool:
        """Read once; return whether anything has come."""
        ...

    def move(self, event: Event) -> None:
        """Note what has become of the call at hand."""
        ...

    def close(self) -> None:
        """End the connection and the call at hand."""
        ...

    def write(self) -> None:
        """Write the queued replies as far as possible, and the rest when the socket is ready."""
        ...

    def answered(self) -> None:
        """Go on: the task of the call at hand has ended."""
        ...


class Answering:
    """Handles the calls of one connection, one at a time. What may reply is given the turns of the connection.

    Args:
        connection: the connection.
        outlet: writes the replies.
        high_water: bytes waiting to be written at which no further reply is made.
        service: has the handlers.
        fairness: has the slots of users for tasks.
        tasks: nursery for handlers that wait.
        give_way: gives turns to trusted peers that are ready.

    Attributes:
        high_water: see above.
        stream: what makes the replies to the call at hand, if they need no waiting.
        turn_ends: when the current turn has to end, in seconds of time.monotonic().
    """

    __slots__ = (
        "_call", "_connection", "_fairness", "_feed", "_give_way", "_held", "_outlet", "_scope", "_service", "_tasks",
        "high_water", "stream", "turn_ends",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        outlet: Outlet,
        high_water: int,
        service: Service,
        fairness: Fairness,
        tasks: trio.Nursery,
        give_way: Callable[[], object],
    ) -> None:
        self.high_water = high_water
        self.turn_ends = math.inf
        self._connection = connection
        self._outlet = outlet
        self._service = service
        self._fairness = fairness
        self._tasks = tasks
        self._give_way = give_way
        self._call: Call | None = None
        self._scope: trio.CancelScope | None = None
        self.stream: Iterator[Any] | None = None
        self._feed: Feed[Any] | None = None
        # The last reply of the stream: sent when it is known whether another one follows.
        self._held: Any = None

    @property
    def oneway(self) -> bool:
        """Whether the caller wants no reply to the call at hand."""
        return self._call is not None and self._call.oneway

    def refuse(self, turns: Turns, message: CallMessage, refusal: VarlinkError) -> None:
        """Answer a call with an error, whatever it is."""
        call = Call(message, turns, self._connection.take_fds())
        self._end_with_error(turns, call, refusal)
        call.close()

    def answer(self, turns: Turns, message: CallMessage) -> Event:
        """Handle a call.

        Returns:
            DONE if it is answered, STREAM, TASK or FEED if that takes longer.

        Raises:
            ProtocolError: the parameters are not JSON.
        """
        call = Call(message, turns, self._connection.take_fds())
        try:
            handler = self._service.find(message.method)
            self._service.tally.calls[handler.name] += 1
            if handler.requires_more and not message.more:
                raise ExpectedMore
            parameters = handler.decode(message.parameters)
            kind = handler.kind
            if kind is Kind.COROUTINE:
                return self._start_task(
                    turns, call, handler, self._run_one(turns, call, handler, parameters)
                )
            reply = handler.function(call, parameters)
        except ProtocolError:
            call.close()
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the caller gets an answer
            self._end_with_error(turns, call, error)
            call.close()
            return Event.DONE
        if kind is Kind.PLAIN:
            self._end_with_reply(turns, call, reply)
            call.close()
            return Event.DONE
        if isinstance(reply, Feed):
            feed = cast("Feed[Any]", reply)
            self._call, self._feed = call, feed
            feed.follow(turns.write)
            return Event.FEED
        if isinstance(reply, AsyncGenerator):
            stream = cast("AsyncGenerator[Any, None]", reply)
            return self._start_task(turns, call, handler, self._run_stream(turns, call, stream))
        self._call, self.stream = call, reply
        return Event.STREAM

    def close(self) -> None:
        """End the call at hand, if there is one: the connection has ended."""
        if self._scope is not None:
            self._scope.cancel()
        elif self.stream is not None:
            self._end_stream()
        elif self._feed is not None:
            self._end_feed()

    # -- replies that come when there are any

    def feed(self, turns: Turns) -> bool | None:
        """Send what the feed at hand has, while there is room; return whether it has more, None if it has ended.

        Raises:
            LocalProtocolError: a message is too long.
            OSError: the peer is gone.
        """
        call, feed, connection = self._call, self._feed, self._connection
        assert call is not None
        assert feed is not None
        for _ in range(REPLIES_PER_TURN):
            try:
                messages = feed.take(self.high_water - connection.queued)
            except Exception as error:  # noqa: BLE001  # whatever it is, the caller gets an answer
                self._end_with_error(turns, call, error)
                self._end_feed()
                return None
            if not messages:
                return False
            connection.send_prepared(messages)
            if connection.queued >= self.high_water and not self._outlet.flush(turns):
                break
            if time.monotonic() > self.turn_ends:
                break
        return True

    def _end_feed(self) -> None:
        feed, self._feed = self._feed, None
        call, self._call = self._call, None
        assert feed is not None
        assert call is not None
        call.close()
        try:
            feed.close()
        except Exception:
            logger.exception("Failed to end a feed of replies, ignoring:")

    # -- replies that need no waiting

    def advance(self, turns: Turns) -> bool:
        """Make replies of the stream at hand while there is room; return whether it has ended.

        Raises:
            HandlerError: the handler replied against the protocol.
            OSError: the peer is gone.
        """
        call, stream, connection = self._call, self.stream, self._connection
        assert call is not None
        assert stream is not None
        for _ in range(REPLIES_PER_TURN):
            try:
                reply = next(stream)
            except StopIteration:
                if self._held is None:
                    raise HandlerError(f"{call.method} ended without a reply") from None
                last, self._held = self._held, None
                self._end_with_reply(turns, call, last)
                self._end_stream()
                return True
            except Exception as error:  # noqa: BLE001  # whatever it is, the caller gets an answer
                self._send_held(call)
                self._end_with_error(turns, call, error)
                self._end_stream()
                return True
            self._send_held(call)
            self._held = reply
            if connection.queued > self.high_water and not self._outlet.flush(turns):
                break
            if time.monotonic() > self.turn_ends:
                break
        return False

    def _send_held(self, call: Call) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._send_one_of_many(call, held)

    def _end_stream(self) -> None:
        stream, self.stream = self.stream, None
        call, self._call = self._call, None
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

    # -- replies of tasks

    def _start_task(
        self, turns: Turns, call: Call, handler: Method, work: Coroutine[Any, Any, None]
    ) -> Event:
        self._call, self._scope = call, trio.CancelScope()
        self._tasks.start_soon(self._run, turns, call, work, self._scope, name=handler.name)
        return Event.TASK

    async def _run(
        self, turns: Turns, call: Call, work: Coroutine[Any, Any, None], scope: trio.CancelScope
    ) -> None:
        try:
            with scope:
                # Tasks that can go on at the same time are one turn of the scheduler, and some of them work for long.
                self._give_way()
                if turns.trusted:
                    await work
                else:
                    async with self._fairness.slot(turns.uid, turns):
                        await self._fairness.turn(turns.uid)
                        await self._fairness.counted(work)
        except (HandlerError, LocalProtocolError) as error:
            turns.fail(error)
        except Exception as error:  # noqa: BLE001  # whatever it is, the caller gets an answer
            self._end_with_error(turns, call, error)
        finally:
            work.close()  # if it never began
            call.close()
        self._scope = self._call = None
        turns.answered()
        self._give_way()

    async def _run_one(self, turns: Turns, call: Call, handler: Method, parameters: Struct) -> None:
        self._end_with_reply(turns, call, await handler.function(call, parameters))

    async def _run_stream(self, turns: Turns, call: Call, replies: AsyncGenerator[Any, None]) -> None:
        async with contextlib.aclosing(replies):
            async for reply in replies:
                if not turns.trusted:
                    await self._fairness.turn(turns.uid)
                if isinstance(reply, Last):
                    self._end_with_reply(turns, call, cast("Last[Any]", reply).reply)
                    return
                self._send_one_of_many(call, reply, discard=turns.closed)
                if self._connection.queued:
                    turns.write()
                if self._connection.queued > self.high_water:
                    await self._outlet.wait_written()
        raise HandlerError(f"{call.method} ended without a last reply")

    # -- messages

    def _send_one_of_many(self, call: Call, reply: Any, *, discard: bool = False) -> None:
        if not (call.more or call.oneway):
            raise HandlerError(f"{call.method} sent several replies to a call for one")
        if isinstance(reply, Prepared):
            if not (discard or call.oneway):
                self._connection.send_prepared(reply.messages)
            return
        text, fds = _encode(reply)
        if discard or call.oneway:
            close_all(fds)
        else:
            self._connection.send_reply(text, continues=True, fds=fds)

    def _end_with_reply(self, turns: Turns, call: Call, reply: Any) -> None:
        try:
            text, fds = _encode(reply)
        except Exception as error:  # noqa: BLE001  # whatever it is, the caller gets an answer
            self._end_with_error(turns, call, error)
            return
        if turns.closed:
            close_all(fds)
        elif call.oneway:
            close_all(fds)
            self._connection.oneway_done()
        else:
            self._connection.send_reply(text, fds=fds)

    def _end_with_error(self, turns: Turns, call: Call, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno:
            error = System.of(error.errno)
        elif not isinstance(error, VarlinkError):
            logger.error("Failed to handle %s:", call.method, exc_info=error)
            error = INTERNAL_ERROR
        self._service.tally.errors[error.error] += 1
        if turns.closed:
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
