"""The client's connection: calls written in order, and replies handed to the calls in the same order."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Generator, Sequence

import trio

from moorage.wire.connection import NEED_DATA, Connection, NotSent, Role
from moorage.wire.errors import Disconnected, TimedOut
from moorage.wire.message import ReplyMessage
from moorage.wire.output import close_all
from moorage.wire.sockets import receive, send_chunk


class Turn:
    """The place of a call in the order of replies.

    Attributes:
        arrived: all earlier calls are answered.
        over: so is this one.
    """

    __slots__ = ("arrived", "over")

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.over = trio.Event()


class Exchange:
    """A connection, and the order of the calls on it.

    Args:
        connected: stream socket; the exchange owns it.

    Attributes:
        closed: whether the connection has ended.
    """

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)  # noqa: FBT003  # its only argument
        self.closed = False
        self._socket = connected
        self._connection = Connection(Role.CLIENT)
        self._turns: deque[Turn] = deque()
        self._writing = trio.Lock()
        self._written = 0  # bytes

    def close(self) -> None:
        """End the connection; calls under way raise Disconnected. May be called again."""
        if self.closed:
            return
        self.closed = True
        with contextlib.suppress(RuntimeError):  # called by the garbage collector, after trio has ended
            trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        self._connection.close()
        for turn in self._turns:
            turn.arrived.set()
            turn.over.set()
        self._turns.clear()

    @contextlib.contextmanager
    def bounded(self, seconds: float) -> Generator[None, None, None]:
        """Raise TimedOut after so many seconds; close the connection if a call fails or is given up half-way."""
        with trio.move_on_after(seconds) as scope:
            try:
                yield
            except (OSError, trio.ClosedResourceError) as error:
                self.close()
                raise Disconnected from error
            except NotSent:
                raise  # nothing was sent: other calls on this connection go on
            except BaseException:
                self.close()
                raise
        if scope.cancelled_caught:
            raise TimedOut

    async def send(
        self,
        method: str,
        parameters: bytes,
        *,
        more: bool = False,
        oneway: bool = False,
        fds: Sequence[int] = (),
    ) -> Turn:
        """Write a call; return its place in the order of replies.

        Raises:
            Disconnected: the connection has ended.
            NotSent: the call exceeds a limit.
            OSError: the service is gone.
        """
        try:
            while fds and self._turns:
                await self._turns[-1].over.wait()
            if self.closed:
                raise Disconnected
        except BaseException:
            close_all(fds)
            raise
        connection = self._connection
        connection.send_call(method, parameters, more=more, oneway=oneway, fds=fds)
        end = self._written + connection.queued
        turn = Turn()
        if not oneway:
            if not self._turns:
                turn.arrived.set()
            self._turns.append(turn)
        # Up to the end of this call only. The call whose turn it is must be able to read: a service may refuse to read
        # on until its replies are read, and both would wait for ever.
        while self._written < end and (chunk := connection.outgoing()) is not None:
            try:
                count = send_chunk(self._socket, *chunk)
            except BlockingIOError:
                # The first task writes for those after it: only one may wait for a socket.
                async with self._writing:
                    await trio.lowlevel.wait_writable(self._socket)
            else:
                connection.sent(count)
                self._written += count
        return turn

    async def receive(self, turn: Turn) -> ReplyMessage:
        """Return the next reply to a call.

        Raises:
            Disconnected: the connection has ended.
            ProtocolError: the service broke the protocol.
            OSError: the service is gone.
        """
        await turn.arrived.wait()
        while True:
            if self.closed:
                raise Disconnected
            event = self._connection.next_reply()
            if isinstance(event, ReplyMessage):
                break
            if event is not NEED_DATA:
                raise Disconnected
            await trio.lowlevel.wait_readable(self._socket)
            with contextlib.suppress(BlockingIOError):
                receive(self._socket, self._connection)
        if not event.continues:
            self._turns.popleft()
            turn.over.set()
            if self._turns:
                self._turns[0].arrived.set()
        return event

    async def wait_end(self) -> None:
        """Wait until the service ends the connection."""
        # No call is under way, so anything but the end is a violation; either way the connection ends.
        with contextlib.suppress(trio.ClosedResourceError):
            if not self.closed:
                await trio.lowlevel.wait_readable(self._socket)
        self.close()

    def take_fds(self) -> list[int]:
        """Return the file descriptors of the last reply; the caller owns them from now on."""
        return self._connection.take_fds()
