"""D-Bus messages to bytes.

A call that starts a unit has some fifty values; what they cost is paid while the caller waits. So each type is made
into a function once, and a message is written into one buffer by such functions, a third of the time that a general
codec takes. Little endian, as all that we send.

In Python, arrays are lists (of bytes: ``bytes``; of dictionary entries: dictionaries), structs are tuples, a variant
is a tuple of its signature and its value, a file descriptor its number.

Specification: https://dbus.freedesktop.org/doc/dbus-specification.html, "Marshaling (Wire Format)".

Pure: no I/O.
"""

import array
import re
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

from moorage.dbus.signature import SIGNATURES_MAX, alignment, split

HEADERS_MAX: Final = 256
"""Headers that are kept: most calls go to one object, the others to one of a unit."""

_VERSION: Final = 1
_PADDING: Final = tuple(bytes(count) for count in range(8))
_NUMBERS: Final = {"y": "<B", "n": "<h", "q": "<H", "i": "<i", "u": "<I", "x": "<q", "t": "<Q", "d": "<d"}
_UINT32: Final = struct.Struct("<I")
_FIXED_HEADER: Final = struct.Struct("<cBBBIII")
_OBJECT_PATH: Final = re.compile(r"/|(?:/[A-Za-z0-9_]+)+")
_UNIX_FDS: Final = 9  # code of the header field

_Writer: TypeAlias = Callable[[bytearray, Any, "array.array[int]"], None]


class Unmarshallable(Exception):
    """A value does not fit its signature."""


def message(
    kind: int,
    flags: int,
    serial: int,
    fields: tuple[tuple[int, str, str | int], ...],
    signature: str = "",
    body: Sequence[object] = (),
) -> tuple[bytes, Sequence[int]]:
    """Write a message.

    Args:
        kind: type of the message.
        flags: of the message.
        serial: of the message.
        fields: code, signature and value of each header field but that of the number of file descriptors.
        signature: of the body; among the fields as well.
        body: the values.

    Returns:
        The message, and the file descriptors that go with it.

    Raises:
        Unmarshallable: a value does not fit.
    """
    fds = array.array("i")
    content = bytearray()
    try:
        members = _members(signature)
        if len(members) != len(body):
            raise ValueError(f"{len(body)} values")
        for write, value in zip(members, body, strict=True):
            write(content, value, fds)
        if fds:
            fields = (*fields, (_UNIX_FDS, "u", len(fds)))
        length, rest = _header(fields)
        fixed = _FIXED_HEADER.pack(b"l", kind, flags, _VERSION, len(content), serial, length)
    except (ValueError, TypeError, AttributeError, struct.error, OverflowError) as error:
        raise Unmarshallable(str(error)) from error
    return b"".join((fixed, rest, content)), fds


@lru_cache(maxsize=HEADERS_MAX)
def _header(fields: tuple[tuple[int, str, str | int], ...]) -> tuple[int, bytes]:
    """The length of the header fields, and their bytes with the padding before the body."""
    buffer = bytearray()
    none = array.array("i")
    for code, signature, value in fields:
        # The array begins at byte 16 of the message, so that places in it are aligned as they are in the message.
        buffer += _PADDING[-len(buffer) & 7]
        buffer.append(code)
        _write_variant(buffer, (signature, value), none)
    return len(buffer), bytes(buffer + _PADDING[-len(buffer) & 7])


@lru_cache(maxsize=SIGNATURES_MAX)
def _members(signature: str) -> tuple[_Writer, ...]:
    return tuple(map(_writer, split(signature)))


def _writer(signature: str) -> _Writer:
    """Make the function that writes one complete type."""
    first = signature[0]
    if first in _NUMBERS:
        return _number_writer(struct.Struct(_NUMBERS[first]))
    if first in _SIMPLE:
        return _SIMPLE[first]
    if first == "(":
        return _struct_writer(list(map(_writer, split(signature[1:-1]))))
    if signature == "ay":
        return _write_bytes
    if signature[1] == "{":
        entry = _struct_writer([_writer(signature[2]), _writer(signature[3:-1])])
        return _array_writer(entry, 8, of_entries=True)
    return _array_writer(_writer(signature[1:]), alignment(signature[1:]), of_entries=False)


def _number_writer(format_: struct.Struct) -> _Writer:
    pack, last = format_.pack, format_.size - 1

    def write(buffer: bytearray, value: Any, _: "array.array[int]") -> None:
        if value is True or value is False:
            raise TypeError("a boolean is no number")
        buffer += _PADDING[-len(buffer) & last]
        buffer += pack(value)

    return write


def _write_boolean(buffer: bytearray, value: Any, _: "array.array[int]") -> None:
    if value is not True and value is not False:
        raise TypeError(f"{value!r} is no boolean")
    buffer += _PADDING[-len(buffer) & 3]
    buffer += _UINT32.pack(value)


def _write_text(buffer: bytearray, value: Any, _: "array.array[int]") -> None:
    data = value.encode()
    if b"\0" in data:
        raise ValueError("a string with a NUL")
    buffer += _PADDING[-len(buffer) & 3]
    buffer += _UINT32.pack(len(data))
    buffer += data
    buffer.append(0)


def _write_path(buffer: bytearray, value: Any, fds: "array.array[int]") -> None:
    if _OBJECT_PATH.fullmatch(value) is None:
        raise ValueError(f"{value!r} is no object path")
    _write_text(buffer, value, fds)


def _write_signature(buffer: bytearray, value: Any, _: "array.array[int]") -> None:
    data = value.encode("ascii")
    buffer.append(len(data))
    buffer += data
    buffer.append(0)


def _write_fd(buffer: bytearray, value: Any, fds: "array.array[int]") -> None:
    buffer += _PADDING[-len(buffer) & 3]
    buffer += _UINT32.pack(len(fds))
    fds.append(value)


def _write_bytes(buffer: bytearray, value: Any, _: "array.array[int]") -> None:
    if not isinstance(value, bytes):
        raise TypeError("an array of bytes is bytes")
    buffer += _PADDING[-len(buffer) & 3]
    buffer += _UINT32.pack(len(value))
    buffer += value


def _write_variant(buffer: bytearray, value: Any, fds: "array.array[int]") -> None:
    signature, content = value
    (write,) = _members(signature)
    _write_signature(buffer, signature, fds)
    write(buffer, content, fds)


_SIMPLE: Final[dict[str, _Writer]] = {
    "b": _write_boolean,
    "s": _write_text,
    "o": _write_path,
    "g": _write_signature,
    "h": _write_fd,
    "v": _write_variant,
}


def _array_writer(write_element: _Writer, alignment: int, *, of_entries: bool) -> _Writer:
    last = alignment - 1

    def write(buffer: bytearray, value: Any, fds: "array.array[int]") -> None:
        buffer += _PADDING[-len(buffer) & 3]
        place = len(buffer)
        buffer += b"\0\0\0\0"
        buffer += _PADDING[-len(buffer) & last]  # not counted
        start = len(buffer)
        for item in value.items() if of_entries else value:
            write_element(buffer, item, fds)
        _UINT32.pack_into(buffer, place, len(buffer) - start)

    return write


def _struct_writer(members: Sequence[_Writer]) -> _Writer:
    def write(buffer: bytearray, value: Any, fds: "array.array[int]") -> None:
        buffer += _PADDING[-len(buffer) & 7]
        for write_member, item in zip(members, value, strict=True):
            write_member(buffer, item, fds)

    return write
