"""A varlink client.

::

    async with await Client.connect("/run/moorage/io.moorage.Machine") as client:
        info = await client.call("org.varlink.service.GetInfo")
        async with client.call_more("io.moorage.Machine.List") as replies:
            async for reply in replies:
                ...

Several tasks may use one client: calls are sent at once, and answered in that order.

Cancel safety: a call that is cancelled, or not answered in time, closes the connection, because the next reply on it
would be for the wrong call. The method may have been carried out all the same.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

import msgspec
import trio
from msgspec import Struct

from moorage.wire.errors import TimedOut, VarlinkError, error_table
from moorage.wire.exchange import Exchange, Turn
from moorage.wire.message import encode_parameters
from moorage.wire.output import close_all, duplicates_of
from moorage.wire.patience import CALL_SECONDS, CONNECT_RETRY_SECONDS, CONNECT_SECONDS
from moorage.wire.result import result_of

T = TypeVar("T")
Parameters = Struct | Mapping[str, Any] | None


class Client:
    """One connection to a service.

    Args:
        connected: stream socket; the client owns it.
        errors: classes for the errors of the interfaces that will be used. Errors other than these and those of every
            service are raised as :class:`~moorage.wire.errors.RemoteError`.
    """

    def __init__(self, connected: socket.socket, *, errors: Iterable[type[VarlinkError]] = ()) -> None:
        self._exchange = Exchange(connected)
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
            OSError: there is no such socket, or we may not connect to it.
            TimedOut: the service does not accept the connection.
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
        """Wait until the service ends the connection; no call may be made meanwhile."""
        await self._exchange.wait_end()

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
        """Call a method that sends one reply. File descriptors that come with it are closed.

        Args:
            method: full name, with the interface.
            parameters: its parameters.
            reply_type: type to decode the reply to.
            fds: file descriptors to send along; they stay the caller's. Such a call is not sent before all earlier
                ones are answered, as the kernel may deliver them together with the bytes of an earlier call.
            timeout: seconds until the reply must have arrived.

        Raises:
            VarlinkError: the reply is an error.
            Disconnected: the connection has ended.
            TimedOut: no reply arrived in time. The connection has ended.
            ProtocolError: the service broke the protocol. The connection has ended.
            NotSent: the call is too long, has too many file descriptors, or too many calls are waiting. The connection
                goes on.
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
        """Call a method that sends one reply with file descriptors; the caller owns them.

        Arguments and errors are those of :meth:`call`.
        """
        text, duplicates = encode_parameters(parameters), duplicates_of(fds)
        with self._exchange.bounded(timeout):
            message = await self._exchange.receive(await self._exchange.send(method, text, fds=duplicates))
        received = self._exchange.take_fds()
        try:
            return result_of(message, msgspec.json.Decoder(reply_type), self._errors), received
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
        """Call a method that sends several replies.

        Args:
            method: full name, with the interface.
            parameters: its parameters.
            reply_type: type to decode each reply to.
            fds: see :meth:`call`.
            timeout: seconds until the next reply must have arrived. By default there is no limit: a stream of events
                is silent while nothing happens.

        Returns:
            An iterator over the replies. The call is sent when the first one is requested.
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
        """Call a method without a reply; return when the call is written.

        Arguments and errors are those of :meth:`call`, except that errors of the method are never reported.
        """
        text, duplicates = encode_parameters(parameters), duplicates_of(fds)
        with self._exchange.bounded(timeout):
            await self._exchange.send(method, text, oneway=True, fds=duplicates)


class Replies(Generic[T]):
    """The replies to one call.

    An asynchronous iterator. Ending it early, with ``async with`` or by dropping the last reference, closes the
    connection: further replies may follow, and nothing else can be received until they have.
    """

    def __init__(
        self,
        exchange: Exchange,
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
        self._turn: Turn | None = None
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._ended:
            raise StopAsyncIteration
        exchange = self._exchange
        duplicates = duplicates_of(self._fds) if self._turn is None else []
        with exchange.bounded(self._timeout):
            if self._turn is None:
                self._turn = await exchange.send(self._method, self._parameters, more=True, fds=duplicates)
            message = await exchange.receive(self._turn)
        self._ended = not message.continues
        return result_of(message, self._decoder, self._errors)

    def take_fds(self) -> list[int]:
        """Return the file descriptors that came with the last reply; the caller owns them from now on."""
        return self._exchange.take_fds()

    async def aclose(self) -> None:
        """Close the connection, unless the last reply has arrived."""
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
