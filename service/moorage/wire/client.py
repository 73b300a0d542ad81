"""A varlink client.

::

    async with await Client.connect("/run/moorage/io.moorage.Machine") as client:
        info = await client.call("org.varlink.service.GetInfo")
        async with client.call_more("io.moorage.Machine.List") as replies:
            async for reply in replies:
                ...

Several tasks may use one client: calls are sent at once, and answered in that order. A call that is cancelled, or not
answered in time, closes the connection, because what comes next on it would be the answer to the wrong question.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import socket
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

import msgspec
import trio
from msgspec import UNSET, Struct

from moorage.wire.connection import NEED_DATA, Connection, NotSent, Role
from moorage.wire.errors import (
    Disconnected,
    ProtocolError,
    TimedOut,
    VarlinkError,
    error_from_reply,
    error_table,
)
from moorage.wire.message import ReplyMessage, decode_parameters, encode_parameters
from moorage.wire.output import close_all
from moorage.wire.sockets import receive, send_chunk

CALL_SECONDS = 45.0
"""How long a reply may take (VARLINK_DEFAULT_TIMEOUT_USEC of sd-varlink.c)."""

CONNECT_SECONDS = 45.0
"""How long a connection may take. With socket activation it is there at once, unless the backlog is full."""

CONNECT_RETRY_SECONDS = 0.01
"""Pause before trying again where the backlog is full: the kernel does not tell when it no longer is (connect(2))."""

T = TypeVar("T")
Parameters = Struct | Mapping[str, Any] | None
_ANY_OBJECT = msgspec.json.Decoder(dict[str, Any])


class _Turn:
    """One call's place in the order of replies."""

    __slots__ = ("arrived", "over")

    def __init__(self) -> None:
        self.arrived = trio.Event()  # all earlier calls are answered
        self.over = trio.Event()  # so is this one


class _Exchange:
    """The connection, and whose turn it is on it."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)  # noqa: FBT003  # its only argument
        self.closed = False
        self._socket = connected
        self._connection = Connection(Role.CLIENT)
        self._turns: deque[_Turn] = deque()
        self._writing = trio.Lock()
        self._written = 0  # bytes

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        with contextlib.suppress(RuntimeError):  # called by the collector of garbage, after trio has ended
            trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        self._connection.close()
        for turn in self._turns:
            turn.arrived.set()
            turn.over.set()
        self._turns.clear()

    @contextlib.contextmanager
    def bounded(self, seconds: float) -> Generator[None, None, None]:
        """Give up after a time; leave nothing open that failed or was given up half way."""
        with trio.move_on_after(seconds) as scope:
            try:
                yield
            except (OSError, trio.ClosedResourceError) as error:
                self.close()
                raise Disconnected from error
            except NotSent:
                raise  # nothing of it was sent: the calls of others on this connection go on
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
    ) -> _Turn:
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
        turn = _Turn()
        if not oneway:
            if not self._turns:
                turn.arrived.set()
            self._turns.append(turn)
        # Up to the end of this call only: whose turn it is must read, or a service that waits for that, and does not
        # read before, would wait for ever.
        while self._written < end and (chunk := connection.outgoing()) is not None:
            try:
                count = send_chunk(self._socket, *chunk)
            except BlockingIOError:
                # Whoever is first writes for those after it; only one task may wait for a socket.
                async with self._writing:
                    await trio.lowlevel.wait_writable(self._socket)
            else:
                connection.sent(count)
                self._written += count
        return turn

    async def receive(self, turn: _Turn) -> ReplyMessage:
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

    async def end(self) -> None:
        # Nobody is asked anything: what comes is the end, or else no reply to anything.
        with contextlib.suppress(trio.ClosedResourceError):
            if not self.closed:
                await trio.lowlevel.wait_readable(self._socket)
        self.close()

    def take_fds(self) -> list[int]:
        return self._connection.take_fds()


def _decode(
    message: ReplyMessage, decoder: msgspec.json.Decoder[T], errors: Mapping[str, type[VarlinkError]]
) -> T:
    if message.error is not UNSET:
        try:
            parameters = decode_parameters(message.parameters, _ANY_OBJECT)
        except msgspec.ValidationError as error:
            raise ProtocolError(f"the parameters of the error are no object: {error}") from None
        raise error_from_reply(message.error, parameters, errors)
    try:
        return decode_parameters(message.parameters, decoder)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the reply is not what it should be: {error}") from None


class Client:
    """One connection to a service.

    Args:
        connected: stream socket; the client owns it.
        errors: classes for the error replies of the interfaces that will be used. Other errors than these and
            those of every service come as :class:`~moorage.wire.errors.RemoteError`.
    """

    def __init__(self, connected: socket.socket, *, errors: Iterable[type[VarlinkError]] = ()) -> None:
        self._exchange = _Exchange(connected)
        self._errors = error_table(errors)

    @classmethod
    async def connect(
        cls,
        address: str | os.PathLike[str],
        *,
        errors: Iterable[type[VarlinkError]] = (),
        timeout: float = CONNECT_SECONDS,
    ) -> Client:
        """Connect to a service.

        Args:
            address: path of its socket.
            errors: see :class:`Client`.
            timeout: seconds.

        Raises:
            OSError: there is none, or the caller may not connect to it.
            TimedOut: the service does not accept.
        """
        connected = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            with trio.move_on_after(timeout):
                while True:
                    try:
                        connected.connect(os.fspath(address))
                    except BlockingIOError:
                        await trio.sleep(CONNECT_RETRY_SECONDS)
                    else:
                        return cls(connected, errors=errors)
        except BaseException:
            connected.close()
            raise
        connected.close()
        raise TimedOut

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._exchange.closed

    async def wait_closed(self) -> None:
        """Wait until the service ends the connection; meanwhile nothing may be called on it."""
        await self._exchange.end()

    def close(self) -> None:
        """End the connection; calls under way raise Disconnected. May be called again."""
        self._exchange.close()

    @overload
    async def call(
        self,
        method: str,
        parameters: Parameters = None,
        *,
        fds: Sequence[int] = (),
        timeout: float = CALL_SECONDS,
    ) -> dict[str, Any]: ...

    @overload
    async def call(
        self,
        method: str,
        parameters: Parameters = None,
        *,
        reply_type: type[T],
        fds: Sequence[int] = (),
        timeout: float = CALL_SECONDS,
    ) -> T: ...

    async def call(
        self,
        method: str,
        parameters: Parameters = None,
        *,
        reply_type: Any = dict[str, Any],
        fds: Sequence[int] = (),
        timeout: float = CALL_SECONDS,
    ) -> Any:
        """Call a method that gives one reply. File descriptors that come with it are closed.

        Args:
            method: full name, with the interface.
            parameters: what the method takes.
            reply_type: what the reply is decoded to.
            fds: file descriptors to go along; they stay the caller's. Such a call is not sent before all earlier ones
                are answered: the kernel may hand them out together with the bytes of a call before this one.
            timeout: seconds until the reply must be there.

        Raises:
            VarlinkError: the reply is an error.
            Disconnected: the connection has ended.
            TimedOut: no reply came in time. The connection has ended.
            ProtocolError: the service broke the protocol. The connection has ended.
            NotSent: the call is too long, has too many file descriptors, or is one too many. The connection goes on.
        """
        reply, received = await self.call_with_fds(
            method, parameters, reply_type=reply_type, fds=fds, timeout=timeout
        )
        close_all(received)
        return reply

    @overload
    async def call_with_fds(
        self,
        method: str,
        parameters: Parameters = None,
        *,
        fds: Sequence[int] = (),
        timeout: float = CALL_SECONDS,
    ) -> tuple[dict[str, Any], list[int]]: ...

    @overload
    async def call_with_fds(
        self,
        method: str,
        parameters: Parameters = None,
        *,
        reply_type: type[T],
        fds: Sequence[int] = (),
        timeout: float = CALL_SECONDS,
    ) -> tuple[T, list[int]]: ...

    async def call_with_fds(
        self,
        method: str,
        parameters: Parameters = None,
        *,
        reply_type: Any = dict[str, Any],
        fds: Sequence[int] = (),
        timeout: float = CALL_SECONDS,
    ) -> Any:
        """Call a method that gives one reply, and file descriptors with it: they are the caller's.

        Arguments and errors are those of :meth:`call`.
        """
        text, duplicates = encode_parameters(parameters), _duplicates(fds)
        with self._exchange.bounded(timeout):
            message = await self._exchange.receive(await self._exchange.send(method, text, fds=duplicates))
        received = self._exchange.take_fds()
        try:
            return _decode(message, msgspec.json.Decoder(reply_type), self._errors), received
        except BaseException:
            close_all(received)
            raise

    @overload
    def call_more(
        self,
        method: str,
        parameters: Parameters = None,
        *,
        fds: Sequence[int] = (),
        timeout: float = math.inf,
    ) -> Replies[dict[str, Any]]: ...

    @overload
    def call_more(
        self,
        method: str,
        parameters: Parameters = None,
        *,
        reply_type: type[T],
        fds: Sequence[int] = (),
        timeout: float = math.inf,
    ) -> Replies[T]: ...

    def call_more(
        self,
        method: str,
        parameters: Parameters = None,
        *,
        reply_type: Any = dict[str, Any],
        fds: Sequence[int] = (),
        timeout: float = math.inf,
    ) -> Any:
        """Call a method that gives several replies.

        Args:
            method: full name, with the interface.
            parameters: what the method takes.
            reply_type: what each reply is decoded to.
            fds: see :meth:`call`.
            timeout: seconds until the next reply must be there. By default there is no limit: a stream of events is
                silent for as long as nothing happens.

        Returns:
            The replies, to be iterated over. The call is sent when that begins.
        """
        text = encode_parameters(parameters)
        return Replies[Any](self._exchange, self._errors, method, text, reply_type, fds, timeout)

    async def call_oneway(
        self,
        method: str,
        parameters: Parameters = None,
        *,
        fds: Sequence[int] = (),
        timeout: float = CALL_SECONDS,
    ) -> None:
        """Call a method and want no reply. Returns when the call is written.

        Arguments and errors are those of :meth:`call`, but that no error of the method is ever heard of.
        """
        text, duplicates = encode_parameters(parameters), _duplicates(fds)
        with self._exchange.bounded(timeout):
            await self._exchange.send(method, text, oneway=True, fds=duplicates)


class Replies(Generic[T]):
    """The replies to one call.

    An async iterator. Ending it early closes the connection, since nothing else can be heard on it while the service
    has more to say; do that with ``async with``, or by dropping the last reference.
    """

    def __init__(
        self,
        exchange: _Exchange,
        errors: Mapping[str, type[VarlinkError]],
        method: str,
        parameters: bytes,
        reply_type: type[T],
        fds: Sequence[int],
        timeout: float,
    ) -> None:
        self._exchange = exchange
        self._errors = errors
        self._method = method
        self._parameters = parameters
        self._decoder = msgspec.json.Decoder(reply_type)
        self._fds = fds
        self._timeout = timeout
        self._turn: _Turn | None = None
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._ended:
            raise StopAsyncIteration
        exchange = self._exchange
        duplicates = _duplicates(self._fds) if self._turn is None else []
        with exchange.bounded(self._timeout):
            if self._turn is None:
                self._turn = await exchange.send(self._method, self._parameters, more=True, fds=duplicates)
            message = await exchange.receive(self._turn)
        self._ended = not message.continues
        return _decode(message, self._decoder, self._errors)

    def take_fds(self) -> list[int]:
        """Return the file descriptors that came with the last reply; the caller owns them from now on."""
        return self._exchange.take_fds()

    async def aclose(self) -> None:
        """Stop listening."""
        self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._turn is not None and not self._ended:
            self._exchange.close()
        self._ended = True


def _duplicates(fds: Sequence[int]) -> list[int]:
    duplicates: list[int] = []
    try:
        for fd in fds:
            duplicates.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))  # noqa: PERF401  # kept where one fails
    except BaseException:
        close_all(duplicates)
        raise
    return duplicates
