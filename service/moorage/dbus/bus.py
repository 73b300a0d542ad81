"""A connection to a message bus, or to a peer that speaks D-Bus on a socket of its own.

Messages are those of `moorage.dbus.message`. The socket, the framing and the matching of replies are here, because a
lost signal is a lost machine and a connection has to end in a known state:

- One task reads. Signals are handed over synchronously; there is no queue between the socket and the owner that
  could be full.
- A message is written by whoever makes the call, at once, or what did not fit by the connection's own task. A caller
  that is cancelled never leaves half a message on the wire.
- No file descriptors are received. The socket is read without room for them, so the kernel closes what comes.
  `moorage.dbus.served` has the connection of a service, which does receive some.

Specification: https://dbus.freedesktop.org/doc/dbus-specification.html
"""

import array
import errno
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Final, Self

import trio

from moorage.dbus.authentication import authenticate
from moorage.dbus.marshal import Unmarshallable
from moorage.dbus.message import (
    ERROR,
    ERROR_NAME,
    METHOD_CALL,
    METHOD_RETURN,
    NO_REPLY_EXPECTED,
    REPLY_SERIAL,
    SIGNAL,
    SIGNATURE,
    BusCall,
    BusSignal,
    Received,
    Violation,
    call_bytes,
    message_size,
    parse,
    refusal_bytes,
)
from moorage.dbus.queues import CallPlaces, Outgoing

BUS_CALLS_MAX: Final = 100
"""Calls over a bus without a reply yet. dbus-daemon refuses more than 128 per connection
(max_replies_per_connection of its system bus, dbus-daemon(1))."""

PEER_CALLS_MAX: Final = 1024
"""Calls to a peer without a bus without a reply yet. sd-bus queues far more, but every one of them is work that the
peer will do even if we have given up on it."""

BACKLOG_MAX: Final = 64
"""Messages waiting to be written beyond which calls from strangers on a bus are not answered."""

READ_SIZE: Final = 64 * 1024
"""Bytes per read: some hundred signals."""

CROWDED_SECONDS: Final = 0.02
"""Between attempts to send file descriptors while the kernel takes none: it takes no more than RLIMIT_NOFILE of one
user's, over all processes, that nobody has received yet (``too_many_unix_fds()``), and those of others are received
within ms."""

_PEER_IS_GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN)


class BusError(Exception):
    """A call over a link did not succeed; always one of the subclasses below."""


class BusClosed(BusError):
    """The link is down, or went down before the reply.

    Attributes:
        reason: a clause for the log.
        sent: the call may have been carried out; if not set, it was not.
    """

    def __init__(self, reason: str, *, sent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


class CallTimeout(BusError):
    """No reply until the deadline. The call may still be carried out.

    Attributes:
        member: what was called.
    """

    def __init__(self, member: str) -> None:
        super().__init__(f"no reply to {member} in time")
        self.member = member


class CallFailed(BusError):
    """The peer answered with an error.

    Attributes:
        name: name of the error, such as "org.freedesktop.DBus.Error.InvalidArgs".
        text: its message, possibly empty.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class BadCall(BusError):
    """The call cannot be sent: arguments that do not fit their signature, a descriptor that is not open."""


class Crowded(BadCall):
    """Until the deadline, too many descriptors of this user's were on their way (ETOOMANYREFS, unix(7))."""


class BadReply(BusError):
    """The reply cannot be decoded, or is not of the type that the method has."""


class _Pending:
    """A call whose reply has not come."""

    __slots__ = ("_returned", "answered", "outcome")

    def __init__(self, returned: Callable[[], None] | None) -> None:
        self._returned = returned
        self.answered = trio.Event()
        self.outcome: Received | BusError = BusClosed("not answered", sent=True)

    def settle(self, outcome: Received | BusError) -> None:
        if self.answered.is_set():
            return
        self.outcome = outcome
        self.answered.set()
        if self._returned is not None and isinstance(outcome, Received) and outcome.kind == METHOD_RETURN:
            self._returned()


class Bus:
    """One connection. Made by `Bus.connect`; works while `run` runs, once.

    `on_signal` is called from the reader for every signal, in order, and `on_closed` once, with the reason, at the
    moment the link goes down. Neither may raise.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_signal: Callable[[BusSignal], None],
        on_closed: Callable[[str], None],
        calls_max: int,
    ) -> None:
        self._sock = sock
        self.fileno = sock.fileno  # of a descriptor that is borrowed; -1 once the link is down
        self._on_signal = on_signal
        self._on_closed = on_closed
        self._serial = 0
        self._pending: dict[int, _Pending] = {}
        self._places = CallPlaces(calls_max)
        self._calls_max = calls_max
        self._outgoing: deque[Outgoing] = deque()
        self._backlog = trio.Event()
        self._closed = trio.Event()
        self._reason = ""

    @classmethod
    async def connect(
        cls,
        address: str,
        on_signal: Callable[[BusSignal], None],
        on_closed: Callable[[str], None],
        *,
        deadline: float,
        calls_max: int = BUS_CALLS_MAX,
    ) -> Self:
        """Connect and authenticate as the effective user.

        Args:
            address: path of a stream socket, or "@" and the name of an abstract one.
            on_signal: see the class.
            on_closed: see the class; not called if this raises.
            deadline: on trio's clock.
            calls_max: calls without a reply yet; more wait for a place.

        Raises:
            BusClosed: nobody listens, or the peer refuses us, or takes too long.
        """
        return cls(await _connected(address, deadline), on_signal, on_closed, calls_max)

    @property
    def closed(self) -> bool:
        """The link is down; it never comes up again."""
        return self._closed.is_set()

    def close(self, reason: str) -> None:
        """Take the link down: every call fails with `BusClosed`, `run` returns."""
        if self._closed.is_set():
            return
        self._reason = reason
        self._closed.set()
        self._backlog.set()
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
        for outgoing in self._outgoing:
            outgoing.close()
        self._outgoing.clear()
        for pending in self._pending.values():
            pending.settle(BusClosed(reason, sent=True))
        self._on_closed(reason)

    async def run(self) -> None:
        """Read and write until the link is down."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_backlog)
                await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self.close("closed by us")

    async def call(self, call: BusCall, *, deadline: float) -> tuple[Any, ...]:
        """Make a call and wait for the reply.

        Args:
            call: what to call. File descriptors in its body are borrowed until this returns.
            deadline: on trio's clock.

        Raises:
            CallFailed: the peer says so.
            CallTimeout, BusClosed, BadCall, BadReply: as they say.
        """
        (reply,) = await self.calls((call,), deadline=deadline)
        if isinstance(reply, BusError):
            raise reply
        return reply

    async def calls(self, calls: Sequence[BusCall], *, deadline: float) -> list[tuple[Any, ...] | BusError]:
        """Make several calls at once, in one write where no file descriptors are involved, and wait for all replies.

        What cannot be sent because too many descriptors are on their way is sent when they have arrived.

        Args:
            calls: at most as many as there are places (see `connect`).
            deadline: on trio's clock.

        Returns:
            For each call its reply, or what went wrong with this one: CallFailed, BadReply, or BadCall if there
            was a descriptor in it that could not be sent.

        Raises:
            CallTimeout: no reply to at least one of them.
            BusClosed: the same.
            BadCall: one cannot be put into a message.
        """
        if not 0 < len(calls) <= self._calls_max:
            raise ValueError(f"1 to {self._calls_max} calls at once, not {len(calls)}")
        replies = await self._once(calls, deadline)
        while crowded := [number for number, reply in enumerate(replies) if isinstance(reply, Crowded)]:
            await trio.sleep_until(min(trio.current_time() + CROWDED_SECONDS, deadline))
            if trio.current_time() >= deadline:
                break
            again = await self._once([calls[number] for number in crowded], deadline)
            for number, reply in zip(crowded, again, strict=True):
                replies[number] = reply
        return replies

    async def _once(self, calls: Sequence[BusCall], deadline: float) -> list[tuple[Any, ...] | BusError]:
        taken = 0
        serials: list[int] = []
        try:
            with _until(deadline):
                await self._places.take(len(calls))
                taken = len(calls)
                if self._closed.is_set():
                    raise BusClosed(self._reason)
                if trio.current_time() >= deadline:
                    # Cancellation strikes where something waits, and writing does not.
                    raise CallTimeout(calls[0].member)
                waiting = self._submit(calls, serials)
                for pending in waiting:
                    await pending.answered.wait()
        except trio.TooSlowError:
            raise CallTimeout(calls[0].member) from None
        finally:
            # The replies of calls that were given up are ignored when they come.
            for serial in serials:
                del self._pending[serial]
            if self._outgoing:
                self._withdraw(serials)
            self._places.give(taken)
        return [_judge(call, pending) for call, pending in zip(calls, waiting, strict=True)]

    def _submit(self, calls: Sequence[BusCall], serials: list[int]) -> list[_Pending]:
        """Number the calls, register them, and write them; never waits."""
        messages: list[tuple[BusCall, int, bytes, Sequence[int]]] = []
        for call in calls:
            serial = self._next_serial()
            try:
                messages.append((call, serial, *call_bytes(call, serial)))
            except Unmarshallable as exc:
                reason = f"arguments of {call.member} do not fit {call.signature!r}: {exc}"
                raise BadCall(reason) from exc
        waiting: list[_Pending] = []
        batch, serial = list[bytes](), 0
        for call, serial, data, fds in messages:
            self._pending[serial] = pending = _Pending(call.returned)
            serials.append(serial)
            waiting.append(pending)
            if fds:
                self._send(serial, b"".join(batch), ())
                batch.clear()
                self._send(serial, data, fds)
            else:
                batch.append(data)
        self._send(serial, b"".join(batch), ())
        return waiting

    def _next_serial(self) -> int:
        # 0 is no serial, and the field has 32 bits.
        self._serial = self._serial % 0xFFFF_FFFF + 1
        return self._serial

    def _send(self, serial: int, data: bytes, fds: Sequence[int]) -> None:
        """Write now as much as fits, and leave the rest to the writer."""
        if data:
            self._put(Outgoing(serial, data, fds))

    def _put(self, outgoing: Outgoing) -> None:
        if self._closed.is_set():
            outgoing.close()
        elif self._outgoing or not self._write(outgoing):
            self._outgoing.append(outgoing)
            self._backlog.set()
        else:
            outgoing.close()

    def _write(self, outgoing: Outgoing) -> bool:
        """Write once. Returns whether there is nothing left to do for this message."""
        try:
            if outgoing.fds and not outgoing.begun:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", outgoing.fds))]
                count = self._sock.sendmsg([outgoing.data], rights, socket.MSG_NOSIGNAL)
            else:
                count = self._sock.send(outgoing.data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError as exc:
            if outgoing.fds and not outgoing.begun and exc.errno not in _PEER_IS_GONE:
                # The descriptors are at fault (EBADF), or too many are on their way: nothing was written, and the
                # messages of others must not suffer.
                kind = Crowded if exc.errno == errno.ETOOMANYREFS else BadCall
                self._not_sent(outgoing, kind(f"descriptors cannot be sent: {exc.strerror}"))
            else:
                self.close(f"write failed: {exc.strerror}")
            return True
        outgoing.begun = True
        outgoing.data = outgoing.data[count:]
        return not outgoing.data

    def _not_sent(self, outgoing: Outgoing, error: BadCall) -> None:
        """Take note of a message whose descriptors cannot be sent."""
        self._pending[outgoing.serial].settle(error)

    def _withdraw(self, serials: Sequence[int]) -> None:
        """Forget messages not begun: their caller is gone, and with it the right to use its descriptors."""
        gone = set(serials)
        self._outgoing = deque(each for each in self._outgoing if each.begun or each.serial not in gone)

    async def _write_backlog(self) -> None:
        while not self._closed.is_set():
            await self._backlog.wait()
            while self._outgoing:
                try:
                    await trio.lowlevel.wait_writable(self._sock)
                except trio.ClosedResourceError:
                    return
                # While waiting, messages may have been withdrawn; and a failed write empties the queue.
                while self._outgoing and self._write(self._outgoing[0]):
                    if self._outgoing:
                        self._outgoing.popleft().close()
            self._backlog = trio.Event()

    async def _read(self) -> None:
        buffer = b""
        try:
            while not self._closed.is_set():
                await trio.lowlevel.wait_readable(self._sock)
                try:
                    data = self._receive()
                except BlockingIOError:
                    continue
                if not data:
                    self.close("closed by the peer")
                    return
                buffer = self._consume(buffer + data if buffer else data)
        except Violation as exc:
            self.close(f"protocol violation: {exc}")
        except OSError as exc:
            self.close(f"read failed: {exc.strerror}")
        except trio.ClosedResourceError:
            return

    def _receive(self) -> bytes:
        """Read once."""
        return self._sock.recv(READ_SIZE)

    def _consume(self, buffer: bytes) -> bytes:
        """Dispatch the messages that are complete; returns what is left."""
        at = 0
        available = len(buffer)
        while available - at >= 16:
            size = message_size(buffer, at)
            if available - at < size:
                break
            self._dispatch(parse(buffer[at : at + size]))
            if self._closed.is_set():
                return b""
            at += size
        return buffer[at:]

    def _dispatch(self, received: Received) -> None:
        if received.kind == SIGNAL:
            self._on_signal(BusSignal(received))
        elif received.kind in (METHOD_RETURN, ERROR):
            serial = received.fields.get(REPLY_SERIAL)
            pending = self._pending.get(serial) if isinstance(serial, int) else None
            if pending is not None:
                pending.settle(received)
        elif received.kind == METHOD_CALL:
            self._called(received)
        # Else a type of a later version of the protocol: to be ignored.

    def _called(self, received: Received) -> None:
        """Answer a call: on a bus anybody can make one, and would wait for the reply."""
        if received.flags & NO_REPLY_EXPECTED or len(self._outgoing) >= BACKLOG_MAX:
            return
        with suppress(Unmarshallable):  # the caller's name is no text
            self._send(0, refusal_bytes(received, self._next_serial()), ())


async def _connected(address: str, deadline: float) -> socket.socket:
    """Connect and authenticate.

    Raises:
        BusClosed: as `Bus.connect` says.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        # Connecting a local socket does not wait: with a full queue it fails with EAGAIN.
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        with trio.fail_at(deadline):
            await authenticate(sock)
    except trio.TooSlowError:
        sock.close()
        raise BusClosed(f"{address}: no answer to authentication in time") from None
    except (OSError, Violation) as exc:
        sock.close()
        raise BusClosed(f"{address}: {exc}") from exc
    except BaseException:
        sock.close()
        raise
    return sock


def _until(deadline: float) -> AbstractContextManager[object]:
    """Hold a deadline. One of the caller's that comes first strikes by itself, and each costs as much as a message."""
    return nullcontext() if trio.current_effective_deadline() <= deadline else trio.fail_at(deadline)


def _judge(call: BusCall, pending: _Pending) -> tuple[Any, ...] | BusError:
    reply = pending.outcome
    if isinstance(reply, BusClosed):
        raise reply
    if isinstance(reply, BusError):
        return reply
    signature = reply.text(SIGNATURE)
    try:
        if reply.kind == ERROR:
            return CallFailed(reply.text(ERROR_NAME), str(reply.body()[0]) if signature == "s" else "")
        if signature != call.reply:
            return BadReply(f"reply to {call.member} has type {signature!r}, not {call.reply!r}")
        return reply.body()
    except Violation as exc:
        return BadReply(f"reply to {call.member}: {exc}")
