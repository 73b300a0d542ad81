"""Messages of D-Bus: calls to be written, and what comes, of which only the headers are taken apart at first.

What is not wanted is dropped before its body is looked at, and message types and header fields that we do not know are
ignored, as the specification demands ("Message Protocol").

Specification: https://dbus.freedesktop.org/doc/dbus-specification.html, "Message Format".

Pure: no I/O.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

from moorage.dbus.marshal import message as marshal
from moorage.dbus.unmarshal import Malformed, unmarshal

MESSAGE_MAX: Final = 16 * 1024 * 1024
"""Bytes of one received message. The specification allows 128 MiB; the largest that we ask for, the introspection
of a service, has 0.1 MB. 16 MiB is also what sd-varlink takes from a peer."""

FIELDS_MAX: Final = 64
"""Header fields of one message; the specification knows nine."""

SIGNAL_HEADERS_MAX: Final = 256
"""Headers of signals that are kept once they have been taken apart: most signals about one object are alike but for
their bodies, and the manager sends each of them about every unit."""

METHOD_CALL: Final = 1
METHOD_RETURN: Final = 2
ERROR: Final = 3
SIGNAL: Final = 4
"""Types of messages."""

NO_REPLY_EXPECTED: Final = 0x1
ALLOW_INTERACTIVE_AUTHORIZATION: Final = 0x4
"""Flags."""

PATH: Final = 1
INTERFACE: Final = 2
MEMBER: Final = 3
ERROR_NAME: Final = 4
REPLY_SERIAL: Final = 5
DESTINATION: Final = 6
SENDER: Final = 7
SIGNATURE: Final = 8
UNIX_FDS: Final = 9
"""Codes of header fields."""

_LITTLE: Final = ord("l")
_BIG: Final = ord("B")
_PROTOCOL_VERSION: Final = 1
_FIXED_HEADER: Final = {_LITTLE: struct.Struct("<BBBBIII"), _BIG: struct.Struct(">BBBBIII")}
_UINT32: Final = {_LITTLE: struct.Struct("<I"), _BIG: struct.Struct(">I")}
_UINT64: Final = {_LITTLE: struct.Struct("<Q"), _BIG: struct.Struct(">Q")}


class Violation(Exception):
    """The peer sent what is no D-Bus."""


class BusCall(NamedTuple):
    """A method call to be made.

    Attributes:
        destination: name on the bus; a peer without a bus ignores it.
        path: of the object.
        interface: of the method.
        member: the method.
        signature: types of the arguments, empty for none.
        body: the arguments, as `moorage.dbus.marshal` takes them.
        reply: signature that the reply must have.
        interactive: the peer may ask the user for authorization; such a call can take minutes.
        returned: called by the reader when the call has succeeded, before whoever waits goes on. Must not raise.
    """

    destination: str
    path: str
    interface: str
    member: str
    signature: str = ""
    body: tuple[object, ...] = ()
    reply: str = ""
    interactive: bool = False
    returned: Callable[[], None] | None = None


class Received(NamedTuple):
    """A message of which only the header has been looked at."""

    kind: int
    flags: int
    serial: int
    fields: Mapping[int, str | int]
    data: bytes
    body_at: int
    endian: int

    def text(self, code: int) -> str:
        """Return a header field that is a text; empty if there is none."""
        value = self.fields.get(code, "")
        return value if isinstance(value, str) else ""

    def body(self) -> tuple[Any, ...]:
        """Decode the body.

        Raises:
            Violation: it is not what the header says.
        """
        try:
            values, end = unmarshal(
                self.text(SIGNATURE), self.data, self.body_at, big_endian=self.endian == _BIG
            )
        except Malformed as error:
            raise Violation(f"undecodable body: {error}") from error
        if end > len(self.data):
            raise Violation("body ends early")
        return values


class BusSignal:
    """A signal; the body is decoded only when somebody asks for it.

    Attributes:
        sender: unique name of who sent it; empty without a bus.
        path: the object that emits it.
        interface: its interface.
        member: its name.
    """

    __slots__ = ("_received", "interface", "member", "path", "sender")

    def __init__(self, received: Received) -> None:
        self._received = received
        self.sender = received.text(SENDER)
        self.path = received.text(PATH)
        self.interface = received.text(INTERFACE)
        self.member = received.text(MEMBER)

    def body(self, signature: str) -> tuple[Any, ...] | None:
        """The arguments; None if they are not of this signature (the peer is not what it says it is)."""
        if self._received.text(SIGNATURE) != signature:
            return None
        return self._received.body()

    def is_change_of(self, interface: str) -> bool:
        """Whether this is a PropertiesChanged about an interface."""
        received = self._received
        if self.member != "PropertiesChanged" or received.text(SIGNATURE) != "sa{sv}as":
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

    def changed_number(self, name: str, signature: Literal["u", "t"] = "u") -> int | None:
        """What a PropertiesChanged says about a property that is an unsigned number, of 32 bits or of 64."""
        found = self._changed(name, signature)
        return None if found is None else found[0]

    def _changed(self, name: str, signature: Literal["s", "ay", "u", "t"]) -> tuple[int, int] | None:
        """Return the first number of a value, of 64 bits for "t" and else of 32, and where it is."""
        received = self._received
        key = _key(name, signature, received.endian)
        at = received.data.find(key, received.body_at + 4)
        if at < 0:
            return None
        number = (_UINT64 if signature == "t" else _UINT32)[received.endian]
        at = at + len(key) + number.size - 1 & -number.size
        try:
            return number.unpack_from(received.data, at)[0], at
        except struct.error:
            return None


@lru_cache
def _key(name: str, signature: str, endian: int) -> bytes:
    """What a property begins with among those that have changed.

    That is a key with its length and its NUL, and the signature of its value: no value can look like that, for the
    byte after the NUL of a string is padding or the length of what follows, and no length has a signature in it.
    """
    length = _UINT32[endian].pack(len(name))
    return length + name.encode() + b"\0" + bytes([len(signature)]) + signature.encode() + b"\0"


def call_bytes(call: BusCall, serial: int) -> tuple[bytes, Sequence[int]]:
    """Write a call.

    Returns:
        The message, and the file descriptors that go with it.

    Raises:
        Unmarshallable: the arguments do not fit their signature.
    """
    fields: tuple[tuple[int, str, str | int], ...] = (
        (PATH, "o", call.path),
        (INTERFACE, "s", call.interface),
        (MEMBER, "s", call.member),
        (DESTINATION, "s", call.destination),
    )
    if call.signature:
        fields = (*fields, (SIGNATURE, "g", call.signature))
    flags = ALLOW_INTERACTIVE_AUTHORIZATION if call.interactive else 0
    return marshal(METHOD_CALL, flags, serial, fields, call.signature, call.body)


def reply_bytes(
    call: Received, serial: int, signature: str = "", body: tuple[object, ...] = ()
) -> tuple[bytes, Sequence[int]]:
    """Write the answer to a call.

    Returns:
        The message, and the file descriptors that go with it.

    Raises:
        Unmarshallable: the values do not fit their signature, or the name of the caller is none.
    """
    fields = _answer_fields(call)
    if signature:
        fields = (*fields, (SIGNATURE, "g", signature))
    return marshal(METHOD_RETURN, 0, serial, fields, signature, body)


def error_bytes(call: Received, serial: int, name: str, text: str) -> bytes:
    """Write the answer to a call that failed.

    Args:
        call: the call.
        serial: of the answer.
        name: of the error, such as "org.freedesktop.DBus.Error.InvalidArgs".
        text: for people.

    Raises:
        Unmarshallable: the name of the caller is none.
    """
    fields = ((ERROR_NAME, "s", name), *_answer_fields(call), (SIGNATURE, "g", "s"))
    return marshal(ERROR, 0, serial, fields, "s", (text,))[0]


def signal_bytes(
    path: str, interface: str, member: str, serial: int, signature: str, body: tuple[object, ...]
) -> bytes:
    """Write a signal to all who listen.

    Raises:
        Unmarshallable: the values do not fit their signature.
    """
    fields: tuple[tuple[int, str, str | int], ...] = (
        (PATH, "o", path),
        (INTERFACE, "s", interface),
        (MEMBER, "s", member),
        (SIGNATURE, "g", signature),
    )
    return marshal(SIGNAL, 0, serial, fields, signature, body)[0]


def refusal_bytes(call: Received, serial: int) -> bytes:
    """Write the answer to a call that we do not take.

    Raises:
        Unmarshallable: the name of the caller is none.
    """
    fields = ((ERROR_NAME, "s", "org.freedesktop.DBus.Error.UnknownMethod"), *_answer_fields(call))
    return marshal(ERROR, 0, serial, fields)[0]


def _answer_fields(call: Received) -> tuple[tuple[int, str, str | int], ...]:
    fields: tuple[tuple[int, str, str | int], ...] = ((REPLY_SERIAL, "u", call.serial),)
    if sender := call.text(SENDER):
        fields = (*fields, (DESTINATION, "s", sender))
    return fields


def message_size(buffer: bytes, at: int, most: int | None = MESSAGE_MAX) -> int:
    """Return the bytes of the message that begins here, by its first 16.

    Args:
        buffer: what was received.
        at: where it begins.
        most: bytes that a message may have; None for any number.

    Raises:
        Violation: none begins here that we would read.
    """
    fixed = _FIXED_HEADER.get(buffer[at])
    if fixed is None:
        raise Violation("neither little nor big endian")
    _, kind, _, version, body, serial, fields = fixed.unpack_from(buffer, at)
    if version != _PROTOCOL_VERSION or kind == 0 or serial == 0:
        raise Violation("malformed header")
    size = 16 + (fields + 7 & ~7) + body
    if most is not None and size > most:
        raise Violation(f"message of {size} bytes")
    return size


def header_size(buffer: bytes, at: int) -> int:
    """Return the bytes of the header of the message that begins here, by its first 16."""
    return 16 + (_UINT32[buffer[at]].unpack_from(buffer, at + 12)[0] + 7 & ~7)


def parse(data: bytes) -> Received:
    """Take the header apart. Fields of unknown codes are skipped.

    A field is a struct of a byte and a variant; of the variants' types only "s", "o", "g" and "u" occur in the
    specification. What follows a field of any other type cannot be found without decoding it.

    Raises:
        Violation: it is malformed.
    """
    endian = data[0]
    _, kind, flags, _, _, serial, length = _FIXED_HEADER[endian].unpack_from(data, 0)
    end = 16 + length
    # Numbers of replies are in the fields: no two of their headers are alike.
    fields = (_fields_of_signal if kind == SIGNAL else _fields)(data[16:end], endian)
    return Received(kind, flags, serial, fields, data, end + 7 & ~7, endian)


def _fields(data: bytes, endian: int) -> Mapping[int, str | int]:
    """Take header fields apart.

    Args:
        data: their bytes. They are at byte 16 of the message, so that places in them are aligned as they are in it.
        endian: first byte of the message.

    Raises:
        Violation: they are malformed.
    """
    uint32 = _UINT32[endian]
    fields: dict[int, str | int] = {}
    at, end = 0, len(data)
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
            raise Violation("malformed header fields")
    except (IndexError, ValueError, struct.error) as exc:
        raise Violation("malformed header fields") from exc
    return fields


_fields_of_signal = lru_cache(maxsize=SIGNAL_HEADERS_MAX)(_fields)


def _skip(data: bytes, at: int, endian: int) -> int:
    """Return the place after the variant that starts here."""
    try:
        return unmarshal("v", data, at, big_endian=endian == _BIG)[1]
    except Malformed as exc:
        raise Violation("undecodable header field") from exc
