"""Bytes of D-Bus messages to values: the counterpart of `moorage.dbus.marshal`, with values as described there.

Each type is made into a function once. What comes may be from a stranger: nothing is read beyond the end of the
message, and nothing is made larger than what came.

Specification: https://dbus.freedesktop.org/doc/dbus-specification.html, "Marshaling (Wire Format)".

Pure: no I/O.
"""

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, TypeAlias

from moorage.dbus.signature import SIGNATURES_MAX, alignment, split

_NUMBERS: Final = {"y": "B", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I"}

_Reader: TypeAlias = Callable[[bytes, int], tuple[Any, int]]
"""Takes a message and a place in it; returns the value there, and where the next one begins."""


class Malformed(Exception):
    """The bytes are no values of these types."""


def unmarshal(signature: str, data: bytes, at: int, *, big_endian: bool) -> tuple[tuple[Any, ...], int]:
    """Read values, such as the body of a message.

    Args:
        signature: their types.
        data: the message from its beginning, which is what they are aligned to.
        at: where the first one is.
        big_endian: how its numbers are written.

    Returns:
        The values, and where they end.

    Raises:
        Malformed: there are no such values.
    """
    values: list[Any] = []
    try:
        for read in _readers(signature, big_endian):
            value, at = read(data, at)
            values.append(value)
    except (ValueError, IndexError, struct.error) as error:
        raise Malformed(f"no value of type {signature!r}: {error}") from error
    except RecursionError:  # variants in variants: their depth is the sender's choice
        raise Malformed(f"value of type {signature!r} is nested too deeply") from None
    return tuple(values), at


@lru_cache(maxsize=SIGNATURES_MAX)
def _readers(signature: str, big_endian: bool) -> tuple[_Reader, ...]:  # noqa: FBT001 - a key of the cache
    return tuple(_reader(each, ">" if big_endian else "<") for each in split(signature))


def _reader(signature: str, order: str) -> _Reader:
    """Make the function that reads one complete type, in one of the byte orders of `struct`."""
    first = signature[0]
    if first in _NUMBERS:
        return _number_reader(struct.Struct(order + _NUMBERS[first]))
    length = struct.Struct(f"{order}I")
    if first == "b":
        return _boolean_reader(length)
    if first in "so":
        return _text_reader(length)
    if first == "g":
        return _read_signature
    if first == "v":
        return _variant_reader(big_endian=order == ">")
    if first == "(":
        return _struct_reader([_reader(each, order) for each in split(signature[1:-1])])
    if signature == "ay":
        return _bytes_reader(length)
    if signature[1] == "{":
        entry = _struct_reader([_reader(signature[2], order), _reader(signature[3:-1], order)])
        return _dictionary_reader(length, entry)
    return _array_reader(length, _reader(signature[1:], order), alignment(signature[1:]))


def _number_reader(number: struct.Struct) -> _Reader:
    unpack, size, last = number.unpack_from, number.size, number.size - 1

    def read(data: bytes, at: int) -> tuple[Any, int]:
        at = at + last & ~last
        return unpack(data, at)[0], at + size

    return read


def _boolean_reader(number: struct.Struct) -> _Reader:
    unpack = number.unpack_from

    def read(data: bytes, at: int) -> tuple[Any, int]:
        at = at + 3 & ~3
        value = unpack(data, at)[0]
        if value > 1:
            raise ValueError(f"{value} is no boolean")
        return value == 1, at + 4

    return read


def _text_reader(length: struct.Struct) -> _Reader:
    unpack = length.unpack_from

    def read(data: bytes, at: int) -> tuple[Any, int]:
        at = at + 3 & ~3
        end = at + 4 + unpack(data, at)[0]
        if data[end]:  # also IndexError
            raise ValueError("a string that does not end")
        return data[at + 4 : end].decode(), end + 1

    return read


def _read_signature(data: bytes, at: int) -> tuple[Any, int]:
    end = at + 1 + data[at]
    if data[end]:
        raise ValueError("a signature that does not end")
    return data[at + 1 : end].decode("ascii"), end + 1


def _variant_reader(*, big_endian: bool) -> _Reader:
    def read(data: bytes, at: int) -> tuple[Any, int]:
        signature, at = _read_signature(data, at)
        (content,) = _readers(signature, big_endian)  # another number is a ValueError
        value, at = content(data, at)
        return (signature, value), at

    return read


def _struct_reader(members: list[_Reader]) -> _Reader:
    def read(data: bytes, at: int) -> tuple[Any, int]:
        at = at + 7 & ~7
        values: list[Any] = []
        for member in members:
            value, at = member(data, at)
            values.append(value)
        return tuple(values), at

    return read


def _extent(length: struct.Struct, data: bytes, at: int, aligned: int) -> tuple[int, int]:
    """Return where the elements of an array begin and end."""
    at = at + 3 & ~3
    start = at + 4 + aligned - 1 & ~(aligned - 1)
    end = start + length.unpack_from(data, at)[0]
    if end > len(data):
        raise ValueError("an array that does not end")
    return start, end


def _bytes_reader(length: struct.Struct) -> _Reader:
    def read(data: bytes, at: int) -> tuple[Any, int]:
        start, end = _extent(length, data, at, 1)
        return data[start:end], end

    return read


def _array_reader(length: struct.Struct, element: _Reader, aligned: int) -> _Reader:
    def read(data: bytes, at: int) -> tuple[Any, int]:
        at, end = _extent(length, data, at, aligned)
        values: list[Any] = []
        while at < end:
            value, at = element(data, at)
            values.append(value)
        if at != end:
            raise ValueError("an array that ends within an element")
        return values, end

    return read


def _dictionary_reader(length: struct.Struct, entry: _Reader) -> _Reader:
    entries = _array_reader(length, entry, 8)

    def read(data: bytes, at: int) -> tuple[Any, int]:
        values, at = entries(data, at)
        return dict(values), at

    return read
