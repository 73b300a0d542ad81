"""The connection of a service: calls come in, and are answered; signals go out.

What a connection of a client does not need is here:

- Calls are handed over synchronously, like signals, and whoever takes one answers it, once, when it likes.
- File descriptors are received, with calls and with what the broker says of callers. They come with the first byte of
  their message, in the order of the messages, so that the counts in the headers say whose they are.
- What came with a call, or with what nobody asked for, is strangers' too: its close(2) may take as long as they like,
  so it is left to others (`Dispose`).
- Calls are strangers'. One that is too large is refused and its bytes are dropped: the connection must not end for it,
  since all others have theirs here, too. As little is read at once as others can wait for.

Specification: https://dbus.freedesktop.org/doc/dbus-specification.html
"""

import array
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias

from moorage.dbus.bus import BadCall, BadReply, Bus, BusError
from moorage.dbus.marshal import Unmarshallable
from moorage.dbus.message import (
    ALLOW_INTERACTIVE_AUTHORIZATION,
    INTERFACE,
    MEMBER,
    METHOD_CALL,
    NO_REPLY_EXPECTED,
    PATH,
    SENDER,
    SIGNATURE,
    UNIX_FDS,
    BusCall,
    Received,
    Violation,
    error_bytes,
    header_size,
    message_size,
    parse,
    reply_bytes,
    signal_bytes,
)
from moorage.dbus.queues import Outgoing

BUS: Final = "org.freedesktop.DBus"
BUS_PATH: Final = "/org/freedesktop/DBus"
LIMITS_EXCEEDED: Final = f"{BUS}.Error.LimitsExceeded"

MESSAGE_MAX: Final = 512 * 1024
"""Bytes of one message: twice what the broker says of a user with as many groups as the kernel allows (65536,
NGROUPS_MAX). The longest calls that programs make, shells with their environments, have 0.1 MB."""

READ_SIZE: Final = 4096
"""Bytes per read: some 20 calls, which take a few ms. Then others have their turn."""

FDS_AT_ONCE: Final = 253
"""Descriptors of one read (``SCM_MAX_FD``): that is all which the kernel lets go together."""

ANSWERS_MAX: Final = 16384
"""Messages waiting to be written: one for each machine that there may be. A broker reads whatever comes; one that does
not any more is left."""


UNKNOWN: Final = -1
"""In place of a uid: nobody has asked who sent it."""

Dispose: TypeAlias = Callable[[int, Iterable[int]], None]
"""Closes file descriptors of a user, by uid, without waiting and without failing."""


class Credentials(NamedTuple):
    """What a broker says of a peer, as the kernel told it when that connected.

    Attributes:
        uid: effective uid.
        pidfd: of the process, owned by who has this; None if the broker does not have it.
    """

    uid: int
    pidfd: int | None


class Incoming:
    """A call that came in.

    Attributes:
        sender: unique name of who made it.
        path: of the object.
        interface: of the method; empty where the caller left it open.
        member: the method.
        signature: types of its arguments.
        interactive: the user may be asked for authorization.
        wants_reply: somebody waits for an answer.
        fds: what came with it, owned by this.
    """

    __slots__ = (
        "_bus", "_received", "fds", "interactive", "interface", "member", "path", "sender", "signature",
        "wants_reply",
    )  # fmt: skip

    def __init__(self, bus: "ServedBus", received: Received, fds: list[int]) -> None:
        self._bus = bus
        self._received = received
        self.sender = received.text(SENDER)
        self.path = received.text(PATH)
        self.interface = received.text(INTERFACE)
        self.member = received.text(MEMBER)
        self.signature = received.text(SIGNATURE)
        self.interactive = bool(received.flags & ALLOW_INTERACTIVE_AUTHORIZATION)
        self.wants_reply = not received.flags & NO_REPLY_EXPECTED
        self.fds = fds

    def arguments(self) -> tuple[Any, ...]:
        """Decode the arguments.

        Raises:
            Violation: they are not what the header says.
        """
        return self._received.body()

    def answer(self, signature: str = "", body: tuple[object, ...] = ()) -> None:
        """Answer the call; descriptors in the body belong to the connection from now on."""
        self._bus.answer(self._received, signature, body, wanted=self.wants_reply)

    def fail(self, name: str, text: str) -> None:
        """Answer the call with an error."""
        if self.wants_reply:
            self._bus.fail(self._received, name, text)

    def close(self, uid: int) -> None:
        """Close the descriptors that came with it and were not taken.

        Args:
            uid: of who made the call, or `UNKNOWN`.
        """
        self._bus.dispose(uid, self.fds)
        self.fds = []


class _Answer(Outgoing):
    """An answer; its descriptors are its own."""

    __slots__ = ("call",)

    def __init__(self, call: Received, serial: int, data: bytes, fds: Sequence[int]) -> None:
        super().__init__(serial, data, fds, owned=True)
        self.call = call


class ServedBus(Bus):
    """One connection of a service to a bus. Its calls may wait for nothing else: see `credentials`."""

    dispose: Dispose
    _on_call: Callable[[Incoming], None] | None = None

    def serve(self, on_call: Callable[[Incoming], None], dispose: Dispose) -> None:
        """Have calls handed over; before the connection runs.

        Args:
            on_call: called from the reader for every call, in order; it owns the call. May not raise.
            dispose: gets the descriptors that came in and that nobody wants.
        """
        self._on_call = on_call
        self.dispose = dispose
        self._fds: deque[int] = deque()
        self._of_reply: list[int] = []
        self._to_skip = 0

    def emit(self, path: str, interface: str, member: str, signature: str, body: tuple[object, ...]) -> None:
        """Send a signal to all who listen."""
        serial = self._next_serial()
        self._put_answer(
            Outgoing(serial, signal_bytes(path, interface, member, serial, signature, body), ())
        )

    def answer(
        self, call: Received, signature: str, body: tuple[object, ...], *, wanted: bool = True
    ) -> None:
        """Answer a call, or only close the descriptors in the body if no answer is wanted."""
        serial = self._next_serial()
        data, fds = reply_bytes(call, serial, signature, body)
        outgoing = _Answer(call, serial, data, fds)
        if wanted:
            self._put_answer(outgoing)
        else:
            outgoing.close()

    def fail(self, call: Received, name: str, text: str) -> None:
        """Answer a call with an error."""
        serial = self._next_serial()
        with suppress(Unmarshallable):  # the caller's name is no text
            self._put_answer(Outgoing(serial, error_bytes(call, serial, name, _sendable(text)), ()))

    async def credentials(self, sender: str, *, deadline: float) -> Credentials:
        """Ask the broker who a peer is.

        Args:
            sender: its unique name.
            deadline: on trio's clock.

        Raises:
            BusError: nobody has that name any more, or there is no answer.
        """
        came: list[int] = []

        def take() -> None:
            came.extend(self._of_reply)
            self._of_reply.clear()

        call = BusCall(
            BUS, BUS_PATH, BUS, "GetConnectionCredentials", "s", (sender,), "a{sv}", returned=take
        )
        try:
            (told,) = await self.call(call, deadline=deadline)
            kind, uid = told.get("UnixUserID", ("", None))
            if kind != "u":
                raise BadReply("the broker does not say which user a peer is")
            kind, index = told.get("ProcessFD", ("", None))
            pidfd = came.pop(index) if kind == "h" and index < len(came) else None
            return Credentials(uid, pidfd)
        finally:
            self.dispose(UNKNOWN, came)

    def close(self, reason: str) -> None:
        """Take the link down, as every link."""
        super().close(reason)
        self._fds, left = deque(), self._fds
        self.dispose(UNKNOWN, left)

    def _put_answer(self, outgoing: Outgoing) -> None:
        if len(self._outgoing) >= ANSWERS_MAX:
            outgoing.close()
            self.close("the broker does not read any more")
        else:
            self._put(outgoing)

    def _not_sent(self, outgoing: Outgoing, error: BadCall) -> None:
        if isinstance(outgoing, _Answer):
            self.fail(outgoing.call, LIMITS_EXCEEDED, str(error))
        else:
            super()._not_sent(outgoing, error)

    def _receive(self) -> bytes:
        room = socket.CMSG_SPACE(FDS_AT_ONCE * array.array("i").itemsize)
        data, ancillary, flags, _ = self._sock.recvmsg(READ_SIZE, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC:
            raise Violation("file descriptors were lost")  # for want of room in our own table, too
        return data

    def _consume(self, buffer: bytes) -> bytes:
        """Dispatch the messages that are complete; returns what is left."""
        at, available = 0, len(buffer)
        while not self.closed:
            if self._to_skip:
                skipped = min(self._to_skip, available - at)
                self._to_skip -= skipped
                at += skipped
            if available - at < 16:
                return buffer[at:]
            size = message_size(buffer, at, None)
            whole = size <= MESSAGE_MAX
            needed = size if whole else header_size(buffer, at)
            if needed > MESSAGE_MAX:
                raise Violation(f"header of {needed} bytes")  # no broker lets that through
            if available - at < needed:
                return buffer[at:]
            received = parse(buffer[at : at + needed])
            at += needed
            if whole:
                self._dispatch(received)
            else:
                self._to_skip = size - needed
                self._refuse_large(received)
        return b""

    def _refuse_large(self, received: Received) -> None:
        self.dispose(UNKNOWN, self._taken(received))
        if received.kind == METHOD_CALL and not received.flags & NO_REPLY_EXPECTED:
            self.fail(received, LIMITS_EXCEEDED, f"Message is larger than {MESSAGE_MAX} bytes.")

    def _dispatch(self, received: Received) -> None:
        fds = self._taken(received)
        if received.kind == METHOD_CALL and self._on_call is not None:
            self._on_call(Incoming(self, received, fds))
            return
        self._of_reply = fds
        try:
            super()._dispatch(received)
        finally:
            self._of_reply, left = [], self._of_reply
            self.dispose(UNKNOWN, left)

    def _taken(self, received: Received) -> list[int]:
        """Return the descriptors that came with a message; the caller owns them."""
        count = received.fields.get(UNIX_FDS, 0)
        if not isinstance(count, int) or count > len(self._fds):
            raise Violation("file descriptors are missing")
        return [self._fds.popleft() for _ in range(count)]


async def own(bus: ServedBus, name: str, *, deadline: float) -> bool:
    """Ask for a well-known name, without waiting for it in a queue.

    Returns:
        Whether it is ours now.

    Raises:
        BusError: the broker does not let us have it.
    """
    (reply,) = await bus.call(_bus_call("RequestName", "su", (name, _DO_NOT_QUEUE), "u"), deadline=deadline)
    return reply in {_PRIMARY_OWNER, _ALREADY_OWNER}


async def disown(bus: ServedBus, name: str, *, deadline: float) -> None:
    """Give a name back. When this returns, all calls that were sent to it have been handed over.

    Raises:
        BusError: as the broker says.
    """
    await bus.call(_bus_call("ReleaseName", "s", (name,), "u"), deadline=deadline)


async def greet(bus: ServedBus, matches: Sequence[str], *, deadline: float) -> None:
    """Say hello, which is the first call on every bus, and ask for signals.

    Args:
        bus: the connection.
        matches: rules for the signals that are wanted.
        deadline: on trio's clock.

    Raises:
        BusError: as the broker says.
    """
    calls = [_bus_call("Hello", reply="s"), *(_bus_call("AddMatch", "s", (match,)) for match in matches)]
    for reply in await bus.calls(calls, deadline=deadline):
        if isinstance(reply, BusError):
            raise reply


_DO_NOT_QUEUE: Final = 0x4
_PRIMARY_OWNER: Final = 1
_ALREADY_OWNER: Final = 4


def _bus_call(member: str, signature: str = "", body: tuple[object, ...] = (), reply: str = "") -> BusCall:
    return BusCall(BUS, BUS_PATH, BUS, member, signature, body, reply)


def _sendable(text: str) -> str:
    """Return a text without what no string on a bus may have."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
