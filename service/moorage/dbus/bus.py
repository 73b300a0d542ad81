"""A link to a message bus, or to a peer that speaks D-Bus on a socket of its own.

jeepney has the SASL lines and unmarshals bodies; `moorage.dbus.marshal` writes messages. The socket, the framing and
the matching of replies are here, because a lost signal is a lost machine and a link has to end in a known state:

- One task reads. Signals are handed over synchronously; there is no queue between the socket and the owner that
  could be full.
- Headers are taken apart here: what is not wanted is dropped before its body is looked at, and message types and
  header fields that we do not know are ignored, as the specification demands ("Message Protocol").
- A message is written by whoever makes the call, at once, or what did not fit by the link's own task. A caller
  that is cancelled never leaves half a message on the wire.
- No file descriptors are received. The socket is read without room for them, so the kernel closes what comes.

Specification: https://dbus.freedesktop.org/doc/dbus-specification.html
"""

import array
import errno
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

import trio
from jeepney.auth import BEGIN, AuthenticationError, Authenticator
from jeepney.low_level import Endianness, HeaderFields, MessageFlag, MessageType, Struct, parse_signature

from moorage.dbus.marshal import Unmarshallable
from moorage.dbus.marshal import message as marshal

AUTH_LINE_MAX: Final = 8192
"""Bytes of one line of the authentication dialogue; jeepney's own limit, lines of the specification have < 100."""

MESSAGE_MAX: Final = 16 * 1024 * 1024
"""Bytes of one received message. The specification allows 128 MiB; the largest that we ask for, the introspection
of a service, has 0.1 MB. 16 MiB is also what sd-varlink takes from a peer."""

FIELDS_MAX: Final = 64
"""Header fields of one message; the specification knows nine."""

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

_LITTLE: Final = ord("l")
_BIG: Final = ord("B")
_PROTOCOL_VERSION: Final = 1
_METHOD_CALL, _METHOD_RETURN, _ERROR, _SIGNAL = (kind.value for kind in MessageType)
_NO_REPLY_EXPECTED = MessageFlag.no_reply_expected.value
_PEER_IS_GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN)
_FIXED_HEADER: Final = {_LITTLE: struct.Struct("<BBBBIII"), _BIG: struct.Struct(">BBBBIII")}
_UINT32: Final = {_LITTLE: struct.Struct("<I"), _BIG: struct.Struct(">I")}
_ENDIANNESS: Final = {_LITTLE: Endianness.little, _BIG: Endianness.big}
_PATH, _INTERFACE, _MEMBER = HeaderFields.path.value, HeaderFields.interface.value, HeaderFields.member.value
_ERROR_NAME, _REPLY_SERIAL = HeaderFields.error_name.value, HeaderFields.reply_serial.value
_DESTINATION, _SENDER = HeaderFields.destination.value, HeaderFields.sender.value
_SIGNATURE = HeaderFields.signature.value


class LinkError(Exception):
    """A call over a link did not succeed; always one of the subclasses below."""


class LinkClosed(LinkError):
    """The link is down, or went down before the reply.

    Attributes:
        reason: a clause for the log.
        sent: the call may have been carried out; if not set, it was not.
    """

    def __init__(self, reason: str, *, sent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


class CallTimeout(LinkError):
    """No reply until the deadline. The call may still be carried out.

    Attributes:
        member: what was called.
    """

    def __init__(self, member: str) -> None:
        super().__init__(f"no reply to {member} in time")
        self.member = member


class CallFailed(LinkError):
    """The peer answered with an error.

    Attributes:
        name: name of the error, such as "org.freedesktop.DBus.Error.InvalidArgs".
        text: its message, possibly empty.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class BadCall(LinkError):
    """The call cannot be sent: arguments that do not fit their signature, a descriptor that is not open."""


class BadReply(LinkError):
    """The reply cannot be decoded, or is not of the type that the method has."""


class _Violation(Exception):
    """The peer sent what is no D-Bus."""


class Call(NamedTuple):
    """A method call to be made.

    Attributes:
        destination: name on the bus; a peer without a bus ignores it.
        path: of the object.
        interface: of the method.
        member: the method.
        signature: types of the arguments, empty for none.
        body: the arguments, in jeepney's representation.
        reply: signature that the reply must have.
        interactive: the peer may ask the user for authorization; such a call can take minutes.
    """

    destination: str
    path: str
    interface: str
    member: str
    signature: str = ""
    body: tuple[object, ...] = ()
    reply: str = ""
    interactive: bool = False


class _Received(NamedTuple):
    """A message of which only the header has been looked at."""

    kind: int
    flags: int
    serial: int
    fields: dict[int, str | int]
    data: bytes
    body_at: int
    endian: int

    def text(self, code: int) -> str:
        value = self.fields.get(code, "")
        return value if isinstance(value, str) else ""

    def body(self) -> tuple[Any, ...]:
        signature = self.text(_SIGNATURE)
        if not signature:
            return ()
        try:
            value, end = _body_type(signature).parse_data(self.data, self.body_at, _ENDIANNESS[self.endian])
        except (
            ValueError,
            KeyError,
            IndexError,
            AssertionError,
            TypeError,
            struct.error,
            RecursionError,
        ) as exc:
            raise _Violation(f"undecodable body of type {signature!r}") from exc
        if end > len(self.data):
            raise _Violation("body ends early")
        return value


class Signal:
    """A signal; the body is decoded only when somebody asks for it.

    Attributes:
        sender: unique name of who sent it; empty without a bus.
        path: the object that emits it.
        interface: its interface.
        member: its name.
    """

    __slots__ = ("_received", "interface", "member", "path", "sender")

    def __init__(self, received: _Received) -> None:
        self._received = received
        self.sender = received.text(_SENDER)
        self.path = received.text(_PATH)
        self.interface = received.text(_INTERFACE)
        self.member = received.text(_MEMBER)

    def body(self, signature: str) -> tuple[Any, ...] | None:
        """The arguments; None if they are not of this signature (the peer is not what it says it is)."""
        if self._received.text(_SIGNATURE) != signature:
            return None
        return self._received.body()

    def is_change_of(self, interface: str) -> bool:
        """Whether this is a PropertiesChanged about an interface."""
        received = self._received
        if self.member != "PropertiesChanged" or received.text(_SIGNATURE) != "sa{sv}as":
            return False
        return received.data.startswith(interface.encode() + b"\0", received.body_at + 4)

    def changed(self, name: str, signature: Literal["s", "ay"]) -> bytes | None:
        """What a PropertiesChanged says about one property, a string or an array of bytes.

        Found by its place in the bytes. A change of a unit of systemd has some twenty values, which take 70 µs to
        decode, and each start of a unit sends five.

        Args:
            name: of the property.
            signature: of its value.

        Returns:
            The value if it is among what changed.
        """
        if (found := self._changed(name, signature)) is None:
            return None
        size, at = found
        return self._received.data[at + 4 : at + 4 + size]

    def changed_text(self, name: str) -> str:
        """What a PropertiesChanged says about a property that is a word; empty if it says nothing."""
        return (self.changed(name, "s") or b"").decode("ascii", "replace")

    def changed_number(self, name: str) -> int | None:
        """What a PropertiesChanged says about a property that is an unsigned number of 32 bits."""
        found = self._changed(name, "u")
        return None if found is None else found[0]

    def _changed(self, name: str, signature: Literal["s", "ay", "u"]) -> tuple[int, int] | None:
        """Return the first 32 bits of a value, and where they are."""
        received = self._received
        number = _UINT32[received.endian]
        # A key with its length and its NUL, and the signature of its value: no value can look like that, for the byte
        # after the NUL of a string is padding or the length of what follows, and no length has a signature in it.
        key = (
            number.pack(len(name))
            + name.encode()
            + b"\0"
            + bytes([len(signature)])
            + signature.encode()
            + b"\0"
        )
        at = received.data.find(key, received.body_at + 4)
        if at < 0:
            return None
        at = at + len(key) + 3 & ~3
        try:
            return number.unpack_from(received.data, at)[0], at
        except struct.error:
            return None


class _Pending:
    """A call whose reply has not come."""

    __slots__ = ("answered", "outcome")

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.outcome: _Received | LinkError = LinkClosed("not answered", sent=True)

    def settle(self, outcome: _Received | LinkError) -> None:
        if not self.answered.is_set():
            self.outcome = outcome
            self.answered.set()


class _Outgoing:
    """A message, or what is left of it, that did not fit into the socket."""

    __slots__ = ("begun", "data", "fds", "serial")

    def __init__(self, serial: int, data: bytes | memoryview, fds: Sequence[int]) -> None:
        self.serial = serial
        self.data = memoryview(data)
        self.fds = fds
        self.begun = False


class Link:
    """One connection. Made by `Link.connect`; works while `run` runs, once.

    `on_signal` is called from the reader for every signal, in order, and `on_closed` once, with the reason, at the
    moment the link goes down. Neither may raise.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_signal: Callable[[Signal], None],
        on_closed: Callable[[str], None],
        calls_max: int,
    ) -> None:
        self._sock = sock
        self._on_signal = on_signal
        self._on_closed = on_closed
        self._serial = 0
        self._pending: dict[int, _Pending] = {}
        self._places = calls_max
        self._calls_max = calls_max
        self._turn = trio.StrictFIFOLock()
        self._place_freed = trio.Event()
        self._outgoing: deque[_Outgoing] = deque()
        self._backlog = trio.Event()
        self._closed = trio.Event()
        self._reason = ""

    @classmethod
    async def connect(
        cls,
        address: str,
        on_signal: Callable[[Signal], None],
        on_closed: Callable[[str], None],
        *,
        deadline: float,
        calls_max: int = BUS_CALLS_MAX,
    ) -> "Link":
        """Connect and authenticate as the effective user.

        Args:
            address: path of a stream socket, or "@" and the name of an abstract one.
            on_signal: see the class.
            on_closed: see the class; not called if this raises.
            deadline: on trio's clock.
            calls_max: calls without a reply yet; more wait for a place.

        Raises:
            LinkClosed: nobody listens, or the peer refuses us, or takes too long.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            # Connecting a local socket does not wait: with a full queue it fails with EAGAIN.
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            with trio.fail_at(deadline):
                await _authenticate(sock)
        except trio.TooSlowError:
            sock.close()
            raise LinkClosed(f"{address}: no answer to authentication in time") from None
        except (OSError, AuthenticationError, _Violation) as exc:
            sock.close()
            raise LinkClosed(f"{address}: {exc}") from exc
        except BaseException:
            sock.close()
            raise
        return cls(sock, on_signal, on_closed, calls_max)

    @property
    def closed(self) -> bool:
        """The link is down; it never comes up again."""
        return self._closed.is_set()

    def close(self, reason: str) -> None:
        """Take the link down: every call fails with `LinkClosed`, `run` returns."""
        if self._closed.is_set():
            return
        self._reason = reason
        self._closed.set()
        self._backlog.set()
        self._place_freed.set()
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
        self._outgoing.clear()
        for pending in self._pending.values():
            pending.settle(LinkClosed(reason, sent=True))
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

    async def call(self, call: Call, *, deadline: float) -> tuple[Any, ...]:
        """Make a call and wait for the reply.

        Args:
            call: what to call. File descriptors in its body are borrowed until this returns.
            deadline: on trio's clock.

        Raises:
            CallFailed: the peer says so.
            CallTimeout, LinkClosed, BadCall, BadReply: as they say.
        """
        (reply,) = await self.calls((call,), deadline=deadline)
        if isinstance(reply, LinkError):
            raise reply
        return reply

    async def calls(self, calls: Sequence[Call], *, deadline: float) -> list[tuple[Any, ...] | LinkError]:
        """Make several calls at once, in one write where no file descriptors are involved, and wait for all replies.

        Args:
            calls: at most as many as there are places (see `connect`).
            deadline: on trio's clock.

        Returns:
            For each call its reply, or what went wrong with this one: CallFailed, BadReply, or BadCall if there
            was a descriptor in it that could not be sent.

        Raises:
            CallTimeout: no reply to at least one of them.
            LinkClosed: the same.
            BadCall: one cannot be put into a message.
        """
        if not 0 < len(calls) <= self._calls_max:
            raise ValueError(f"1 to {self._calls_max} calls at once, not {len(calls)}")
        taken = 0
        serials: list[int] = []
        try:
            with trio.fail_at(deadline):
                if self._places < len(calls) or self._turn.locked():
                    await self._wait_for_places(len(calls))
                self._places -= len(calls)
                taken = len(calls)
                if self._closed.is_set():
                    raise LinkClosed(self._reason)
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
            self._places += taken
            self._place_freed.set()
        return [self._judge(call, pending) for call, pending in zip(calls, waiting, strict=True)]

    async def _wait_for_places(self, count: int) -> None:
        # One after the other: two that each hold a part of what they need would wait for ever.
        async with self._turn:
            while self._places < count and not self._closed.is_set():
                self._place_freed = trio.Event()
                await self._place_freed.wait()

    @staticmethod
    def _judge(call: Call, pending: _Pending) -> tuple[Any, ...] | LinkError:
        reply = pending.outcome
        if isinstance(reply, LinkClosed):
            raise reply
        if isinstance(reply, LinkError):
            return reply
        signature = reply.text(_SIGNATURE)
        try:
            if reply.kind == _ERROR:
                return CallFailed(reply.text(_ERROR_NAME), str(reply.body()[0]) if signature == "s" else "")
            if signature != call.reply:
                return BadReply(f"reply to {call.member} has type {signature!r}, not {call.reply!r}")
            return reply.body()
        except _Violation as exc:
            return BadReply(f"reply to {call.member}: {exc}")

    def _submit(self, calls: Sequence[Call], serials: list[int]) -> list[_Pending]:
        """Number the calls, register them, and write them; never waits."""
        messages: list[tuple[int, bytes, Sequence[int]]] = []
        for call in calls:
            serial = self._next_serial()
            messages.append((serial, *_serialise(call, serial)))
        waiting: list[_Pending] = []
        batch: list[bytes] = []
        serial = 0
        for serial, data, fds in messages:
            self._pending[serial] = pending = _Pending()
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
        if not data or self._closed.is_set():
            return
        outgoing = _Outgoing(serial, data, fds)
        if self._outgoing or not self._write(outgoing):
            self._outgoing.append(outgoing)
            self._backlog.set()

    def _write(self, outgoing: _Outgoing) -> bool:
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
                # The descriptors are at fault (EBADF), or too many are on their way (ETOOMANYREFS): nothing was
                # written, and the messages of others must not suffer.
                self._pending[outgoing.serial].settle(BadCall(f"descriptors cannot be sent: {exc.strerror}"))
            else:
                self.close(f"write failed: {exc.strerror}")
            return True
        outgoing.begun = True
        outgoing.data = outgoing.data[count:]
        return not outgoing.data

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
                        self._outgoing.popleft()
            self._backlog = trio.Event()

    async def _read(self) -> None:
        buffer = b""
        try:
            while not self._closed.is_set():
                await trio.lowlevel.wait_readable(self._sock)
                try:
                    data = self._sock.recv(READ_SIZE)
                except BlockingIOError:
                    continue
                if not data:
                    self.close("closed by the peer")
                    return
                buffer = self._consume(buffer + data if buffer else data)
        except _Violation as exc:
            self.close(f"protocol violation: {exc}")
        except OSError as exc:
            self.close(f"read failed: {exc.strerror}")
        except trio.ClosedResourceError:
            return

    def _consume(self, buffer: bytes) -> bytes:
        """Dispatch the messages that are complete; returns what is left."""
        at = 0
        available = len(buffer)
        while available - at >= 16:
            size = _message_size(buffer, at)
            if available - at < size:
                break
            self._dispatch(_parse_header(buffer[at : at + size]))
            if self._closed.is_set():
                return b""
            at += size
        return buffer[at:]

    def _dispatch(self, received: _Received) -> None:
        if received.kind == _SIGNAL:
            self._on_signal(Signal(received))
        elif received.kind in (_METHOD_RETURN, _ERROR):
            serial = received.fields.get(_REPLY_SERIAL)
            pending = self._pending.get(serial) if isinstance(serial, int) else None
            if pending is not None:
                pending.settle(received)
        elif received.kind == _METHOD_CALL:
            self._refuse(received)
        # Else a type of a later version of the protocol: to be ignored.

    def _refuse(self, received: _Received) -> None:
        """Answer a call: on a bus anybody can make one, and would wait for the reply."""
        if received.flags & _NO_REPLY_EXPECTED or len(self._outgoing) >= BACKLOG_MAX:
            return
        fields: tuple[tuple[int, str, str | int], ...] = (
            (_ERROR_NAME, "s", "org.freedesktop.DBus.Error.UnknownMethod"),
            (_REPLY_SERIAL, "u", received.serial),
        )
        if sender := received.text(_SENDER):
            fields = (*fields, (_DESTINATION, "s", sender))
        try:
            data, _ = marshal(_ERROR, 0, self._next_serial(), fields)
        except Unmarshallable:
            return  # a name that is no text
        self._send(0, data, ())


async def _authenticate(sock: socket.socket) -> None:
    """The dialogue of the specification, "Authentication Protocol": EXTERNAL, then file descriptors.

    jeepney's object does not notice the end of the stream, so that is done here. It refuses lines that are too long
    and anything after the line that it expects.
    """
    dialogue = Authenticator(enable_fds=True)
    for line in dialogue:
        await _send_line(sock, line)
        await trio.lowlevel.wait_readable(sock)
        try:
            data = sock.recv(AUTH_LINE_MAX)
        except BlockingIOError:
            continue
        if not data:
            raise _Violation("closed by the peer during authentication")
        dialogue.feed(data)
    await _send_line(sock, BEGIN)


async def _send_line(sock: socket.socket, line: bytes) -> None:
    while line:
        try:
            line = line[sock.send(line, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)


def _serialise(call: Call, serial: int) -> tuple[bytes, Sequence[int]]:
    fields: tuple[tuple[int, str, str | int], ...] = (
        (_PATH, "o", call.path),
        (_INTERFACE, "s", call.interface),
        (_MEMBER, "s", call.member),
        (_DESTINATION, "s", call.destination),
    )
    if call.signature:
        fields = (*fields, (_SIGNATURE, "g", call.signature))
    flags = MessageFlag.allow_interactive_authorization.value if call.interactive else 0
    try:
        return marshal(_METHOD_CALL, flags, serial, fields, call.signature, call.body)
    except Unmarshallable as exc:
        raise BadCall(f"arguments of {call.member} do not fit {call.signature!r}: {exc}") from exc


@lru_cache(maxsize=256)
def _body_type(signature: str) -> Struct:
    # Bounded: on a bus a stranger can send us any signature.
    # An empty struct is illegal, and an array of them would never end.
    tokens = list(f"({signature})")
    parsed = parse_signature(tokens)
    if tokens or "()" in signature or not isinstance(parsed, Struct):
        raise ValueError("malformed signature")
    return parsed


def _message_size(buffer: bytes, at: int) -> int:
    fixed = _FIXED_HEADER.get(buffer[at])
    if fixed is None:
        raise _Violation("neither little nor big endian")
    _, kind, _, version, body, serial, fields = fixed.unpack_from(buffer, at)
    if version != _PROTOCOL_VERSION or kind == 0 or serial == 0:
        raise _Violation("malformed header")
    size = 16 + (fields + 7 & ~7) + body
    if size > MESSAGE_MAX:
        raise _Violation(f"message of {size} bytes")
    return size


def _parse_header(data: bytes) -> _Received:
    """Take the header apart. Fields of unknown codes are skipped.

    A field is a struct of a byte and a variant; of the variants' types only "s", "o", "g" and "u" occur in the
    specification. What follows a field of any other type cannot be found without decoding it, so jeepney does.
    """
    endian = data[0]
    _, kind, flags, _, _, serial, length = _FIXED_HEADER[endian].unpack_from(data, 0)
    uint32 = _UINT32[endian]
    fields: dict[int, str | int] = {}
    at, end = 16, 16 + length
    try:
        for _ in range(FIELDS_MAX):
            if at >= end:
                break
            at = at + 7 & ~7
            code = data[at]
            signature = data[at + 1 : at + 4]
            at += 4
            if signature == b"\1s\0" or signature == b"\1o\0":
                size: int = uint32.unpack_from(data, at)[0]
                fields[code] = data[at + 4 : at + 4 + size].decode()
                at += size + 5
            elif signature == b"\1u\0":
                fields[code] = uint32.unpack_from(data, at)[0]
                at += 4
            elif signature == b"\1g\0":
                fields[code] = data[at + 1 : at + 1 + data[at]].decode("ascii")
                at += data[at] + 2
            else:
                at = _skip(data, at - 3, endian)
        if at != end:
            raise _Violation("malformed header fields")
    except (IndexError, ValueError, struct.error) as exc:
        raise _Violation("malformed header fields") from exc
    return _Received(kind, flags, serial, fields, data, end + 7 & ~7, endian)


def _skip(data: bytes, at: int, endian: int) -> int:
    """Position after the variant that starts here."""
    value_at = at + 2 + data[at]
    try:
        (value_type,) = _body_type(data[at + 1 : value_at - 1].decode("ascii")).fields
        return value_type.parse_data(data, value_at, _ENDIANNESS[endian])[1]
    except (KeyError, AssertionError, TypeError, RecursionError) as exc:
        raise _Violation("undecodable header field") from exc
