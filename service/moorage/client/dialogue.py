"""A connection on which calls are made one after another, as steps (:mod:`moorage.steps.waits`)."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Generator, Mapping, Sequence
from time import monotonic
from typing import Any, Final, Generic, TypeVar

import msgspec

from moorage import errors
from moorage.client.methods import List, OneMachine, Request, reply_type
from moorage.client.types import Machine
from moorage.steps.waits import Steps, Wait, pause
from moorage.wire.connection import NEED_DATA, Connection, NotSent, Role
from moorage.wire.errors import Disconnected, TimedOut, VarlinkError, error_table
from moorage.wire.message import ReplyMessage, encode_parameters
from moorage.wire.output import close_all, duplicates_of
from moorage.wire.patience import CALL_SECONDS, CONNECT_RETRY_SECONDS, CONNECT_SECONDS
from moorage.wire.result import result_of
from moorage.wire.sockets import receive, send_chunk

ERRORS: Final = error_table(
    found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, VarlinkError) and found is not VarlinkError
)
"""The errors that are raised by class."""

T = TypeVar("T")

Parameters = msgspec.Struct | Mapping[str, Any]


class Underway(RuntimeError):
    """Another call is under way on this connection."""


def connect(address: str | os.PathLike[str], seconds: float = CONNECT_SECONDS) -> Steps[Dialogue]:
    """Connect to a service.

    Args:
        address: path of its socket.
        seconds: how long that may take.

    Raises:
        OSError: there is no such socket, or we may not connect to it.
        TimedOut: the service does not accept the connection.
    """
    until = monotonic() + seconds
    connected = socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    )
    try:
        while True:
            try:
                connected.connect(os.fspath(address))
            except BlockingIOError:
                if monotonic() >= until:
                    raise TimedOut from None
                yield from pause(CONNECT_RETRY_SECONDS)
            else:
                return Dialogue(connected)
    except BaseException:
        connected.close()
        raise


class Dialogue:
    """One connection to a service.

    A call that is given up, or not answered in time, closes the connection, because the next reply on it would be for
    the wrong call. The method may have been carried out all the same.

    Args:
        connected: stream socket; the dialogue owns it.

    Attributes:
        streaming: the call that further replies are expected to; no other one can be made until they have arrived.
    """

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)  # noqa: FBT003  # its only argument
        self._socket = connected
        self._connection = Connection(Role.CLIENT)
        self._under_way = False
        self._closed = False
        self.streaming: Replies[Any] | None = None

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._closed

    def close(self) -> None:
        """End the connection. A call under way raises Disconnected. May be called again."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if not self._under_way:  # else that call closes it: somebody waits for the file descriptor
            self._socket.close()
            self._connection.close()

    def call(
        self,
        method: str,
        parameters: Parameters,
        kind: type[T],
        *,
        fds: Sequence[int] = (),
        received: list[int] | None = None,
        seconds: float = CALL_SECONDS,
    ) -> Steps[T]:
        """Call a method that sends one reply.

        Args:
            method: full name.
            parameters: its parameters.
            kind: type to decode the reply to.
            fds: file descriptors to send along; they stay the caller's.
            received: gets those that come with the reply, for the caller to own; without it they are closed.
            seconds: until the reply must have arrived.

        Raises:
            VarlinkError: the reply is an error.
            Disconnected: the connection has ended.
            TimedOut: no reply arrived in time. The connection has ended.
            ProtocolError: the service broke the protocol. The connection has ended.
            NotSent: the call is too long, or has too many file descriptors. The connection goes on.
            Underway: another call is under way on this connection.
        """
        replies = Replies(self, method, parameters, kind, fds=fds, received=received, seconds=seconds)
        reply = yield from replies.next()
        assert reply is not None  # there is one, or an error
        return reply

    def ended(self) -> Steps[None]:
        """Wait until the service ends the connection, and close it. A wait that is given up leaves it open.

        Raises:
            Underway: a call is under way on this connection.
        """
        yield from self.readable()  # anything but the end would be a violation; either way it ends
        self.close()

    def readable(self) -> Steps[None]:
        """Wait until the service has sent something, or has ended the connection.

        A wait that is given up leaves the connection as it is.

        Raises:
            Underway: a call is under way on this connection.
        """
        if self._closed or self._under_way:
            raise Disconnected if self._closed else Underway
        self._under_way = True
        try:
            yield Wait(self._socket.fileno())
        finally:
            self._under_way = False
            if self._closed:
                self.close()

    @contextlib.contextmanager
    def turn(self, replies: Replies[Any], owned: Sequence[int]) -> Generator[None]:
        """Have the connection to oneself; close it if a call fails or is given up half-way.

        Args:
            replies: who wants it.
            owned: file descriptors that are closed if it cannot be had.

        Raises:
            Disconnected: the connection has ended.
            Underway: another call is under way.
        """
        if self._closed or self._under_way or self.streaming not in {None, replies}:
            close_all(owned)
            raise Disconnected if self._closed else Underway
        self._under_way = True
        try:
            yield
        except NotSent:
            raise
        except BaseException as error:
            self._closed = True
            if isinstance(error, OSError):
                raise Disconnected from error
            raise
        finally:
            self._under_way = False
            if self._closed:
                self.close()

    def send(
        self, method: str, text: bytes, owned: Sequence[int], until: float, *, more: bool
    ) -> Steps[None]:
        """Write a call; within :meth:`turn`.

        Args:
            method: full name.
            text: its parameters, as JSON.
            owned: file descriptors; the connection owns them.
            until: time of :func:`time.monotonic` at which it must be written, s.
            more: whether several replies are wanted.
        """
        connection = self._connection
        connection.send_call(method, text, more=more, fds=owned)
        while (chunk := connection.outgoing()) is not None:
            try:
                count = send_chunk(self._socket, *chunk)
            except BlockingIOError:
                if not (yield Wait(self._socket.fileno(), until, writable=True)):
                    raise TimedOut from None
            else:
                connection.sent(count)

    def receive(self, until: float, received: list[int] | None) -> Steps[ReplyMessage]:
        """Return the next reply; within :meth:`turn`.

        Args:
            until: time of :func:`time.monotonic` at which it must have arrived, s.
            received: gets the file descriptors that come with it; without it they are closed.
        """
        while True:
            event = self._connection.next_reply()
            if isinstance(event, ReplyMessage):
                fds = self._connection.take_fds()
                if received is None:
                    close_all(fds)
                else:
                    received += fds
                return event
            if event is not NEED_DATA:
                raise Disconnected
            if not (yield Wait(self._socket.fileno(), until)):
                raise TimedOut
            with contextlib.suppress(BlockingIOError):
                receive(self._socket, self._connection)


class Replies(Generic[T]):
    """The replies to one call, as steps.

    Args:
        dialogue: the connection.
        method: full name.
        parameters: its parameters.
        kind: type to decode each reply to.
        fds: file descriptors to send along; they stay the caller's.
        received: gets those that come with replies, for the caller to own; without it they are closed.
        seconds: until each reply must have arrived.
        more: whether several replies are wanted.
    """

    def __init__(
        self,
        dialogue: Dialogue,
        method: str,
        parameters: Parameters,
        kind: type[T],
        *,
        fds: Sequence[int] = (),
        received: list[int] | None = None,
        seconds: float,
        more: bool = False,
    ) -> None:
        self._dialogue = dialogue
        self._method = method
        self._text = encode_parameters(parameters)
        self._decoder = msgspec.json.Decoder(kind)
        self._fds = fds
        self._received = received
        self._seconds = seconds
        self._more = more
        self._begun = False
        self._over = False

    def next(self, seconds: float | None = None) -> Steps[T | None]:
        """Return the next reply; None after the last one. The call is sent with the first.

        Args:
            seconds: until it must have arrived, if not as long as the others.

        Raises:
            VarlinkError: see :meth:`Dialogue.call`.
        """
        if self._over:
            return None
        dialogue, until = self._dialogue, monotonic() + (self._seconds if seconds is None else seconds)
        owned = [] if self._begun else duplicates_of(self._fds)
        with dialogue.turn(self, owned):
            if not self._begun:
                self._begun = True
                yield from dialogue.send(self._method, self._text, owned, until, more=self._more)
            message = yield from dialogue.receive(until, self._received)
            self._over = not message.continues
            dialogue.streaming = None if self._over else self
        return result_of(message, self._decoder, ERRORS)

    def close(self) -> None:
        """Close the connection, unless the last reply has arrived: nothing else can be received until then."""
        if self._begun and not self._over:
            self._over = True
            self._dialogue.close()


def requested(
    dialogue: Dialogue, request: Request[T], fds: Sequence[int], seconds: float | None, *, more: bool = False
) -> Replies[T]:
    """Return the replies to a call of io.moorage.Machine.

    Args:
        dialogue: the connection.
        request: the method, and its parameters.
        fds: file descriptors to send along; they stay the caller's.
        seconds: until each reply must have arrived; by default what the method may take.
        more: whether several replies are wanted.
    """
    limit = request.patience() if seconds is None else seconds
    kind = reply_type(type(request))
    return Replies(dialogue, request.method(), request, kind, fds=fds, seconds=limit, more=more)


def call(
    dialogue: Dialogue, request: Request[T], fds: Sequence[int] = (), seconds: float | None = None
) -> Steps[T]:
    """Call a method of io.moorage.Machine that sends one reply; see :meth:`Dialogue.call` and :func:`requested`."""
    reply = yield from requested(dialogue, request, fds, seconds).next()
    assert reply is not None  # there is one, or an error
    return reply


def call_at(
    address: str, request: Request[T], fds: Sequence[int] = (), seconds: float | None = None
) -> Steps[T]:
    """Call a method of io.moorage.Machine on a connection of its own; see :func:`call`."""
    dialogue = yield from connect(address)
    try:
        return (yield from call(dialogue, request, fds, seconds))
    finally:
        dialogue.close()


def machines(dialogue: Dialogue, seconds: float | None = None) -> Steps[list[Machine]]:
    """Return the living machines.

    Args:
        dialogue: the connection.
        seconds: until each reply must have arrived.

    Raises:
        VarlinkError: see :meth:`Dialogue.call`.
    """
    request = List()
    found = yield from every_reply(
        dialogue, request.method(), OneMachine, request.patience() if seconds is None else seconds
    )
    return [reply.machine for reply in found]


def every_reply(
    dialogue: Dialogue,
    method: str,
    kind: type[T],
    seconds: float,
    parameters: Mapping[str, Any] | None = None,
) -> Steps[list[T]]:
    """Call a method, and return all its replies; the error NoSuchMachine stands for no reply.

    Args:
        dialogue: the connection.
        method: full name.
        kind: type to decode each reply to.
        seconds: until each reply must have arrived.
        parameters: of the call; none by default.

    Raises:
        VarlinkError: see :meth:`Dialogue.call`.
    """
    replies = Replies(dialogue, method, parameters or {}, kind, seconds=seconds, more=True)
    found: list[T] = []
    try:
        while (reply := (yield from replies.next())) is not None:
            found.append(reply)
    except errors.NoSuchMachine:
        pass  # varlink has no empty stream of replies
    finally:
        replies.close()
    return found
