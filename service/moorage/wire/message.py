"""Calls and replies as JSON, strictly (https://varlink.org/Method-Call).

As strict as sd-varlink (``varlink_dispatch_method()``, ``varlink_dispatch_reply()``): an unknown key, a repeated one,
a value of the wrong type or two flags at once is a :class:`ProtocolError`, which ends the connection.

Values inside the parameters stay undecoded here: what they must look like is known to the method only.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from itertools import accumulate
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from moorage.wire.errors import ProtocolError

DEPTH_MAX = 256
"""Deepest nesting of arrays and objects. sd-json takes 2,048 (DEPTH_MAX of sd-json.c); msgspec takes what fits on the
stack, which is anything between 1,000 and millions by the version of Python, and then whoever walks through the values
fails. Nothing that is described here is deeper than ten."""

CALL_ARRAYS_MAX = 16 * 1024
"""Arrays and objects in one call: each costs a hundred times its bytes, while everybody waits. A Register with 64
helpers has a few thousand. Of replies there is no such limit, as nobody waits for a client."""

AROUND_MAX = 64 * 1024
"""Bytes of a message without its parameters, where they are looked at twice: the name of a method, and flags."""

_EMPTY = Raw(b"{}")
_NULL = b"null"
_OBJECT = ord("{")

T = TypeVar("T")


class CallMessage(Struct, forbid_unknown_fields=True, gc=False):
    """A method call.

    Attributes:
        method: full name, with the interface.
        parameters: JSON text of an object.
        more: several replies are welcome.
        oneway: no reply is wanted, not even an error.
        upgrade: the connection is to be used for another protocol after the reply. No method here does that, and such
            a call is answered as any other (as sd-varlink does).
    """

    method: str
    parameters: Raw = _EMPTY
    more: bool = False
    oneway: bool = False
    upgrade: bool = False


class ReplyMessage(Struct, forbid_unknown_fields=True, gc=False):
    """A reply.

    Attributes:
        parameters: JSON text of an object.
        continues: more replies to the same call will follow.
        error: full name of the error; UNSET in a success.
    """

    parameters: Raw = _EMPTY
    continues: bool = False
    error: str | UnsetType = UNSET


_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_KEY = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"(\s*:)?')
_OPENING, _CLOSING = b"[{", b"]}"
_NO_BRACKETS = bytes(set(range(256)) - {*_OPENING, *_CLOSING})
_STEPS = bytes(1 if byte in _OPENING else 255 for byte in range(256))  # 255: -1, as a signed byte

_UNREADABLE = re.compile(
    rb"\\u0000|\\.|\x7f|\xef\xb7[\x90-\xaf]|\xef\xbf[\xbe\xbf]|[\xf0-\xf4][\x8f\x9f\xaf\xbf]\xbf[\xbe\xbf]"
)
"""What sd-json refuses to read, and with it the whole reply: U+0000 even as an escape, DEL as it is, the noncharacters
of Unicode (tried with systemd 257 and 262). The second alternative steps over other escapes, so that an escaped
backslash is not taken for the beginning of one."""
_ESCAPED_DEL = rb"\u007f"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()

_decode_call = msgspec.json.Decoder(CallMessage).decode
_decode_reply = msgspec.json.Decoder(ReplyMessage).decode
_encode = msgspec.json.Encoder().encode


def encode_parameters(parameters: Any) -> bytes:
    """Return the JSON text of a Struct or a mapping; ``{}`` for None."""
    return b"{}" if parameters is None else _encode(parameters)


def encode_call(method: str, parameters: bytes, *, more: bool = False, oneway: bool = False) -> bytes:
    """Return a call as JSON text, without the NUL that ends it on the wire."""
    flag = b',"more":true' if more else b',"oneway":true' if oneway else b""
    return b'{"method":%b,"parameters":%b%b}' % (_encode(method), parameters, flag)


def _readable(parameters: bytes) -> bytes:
    """Return JSON text that every peer can read.

    Replies quote what others wrote: logs, descriptions, paths. One character that sd-json does not know must not make
    the whole reply unreadable.
    """
    if parameters.isascii() and b"\x7f" not in parameters and b"u0000" not in parameters:
        return parameters
    return _UNREADABLE.sub(_replaced, parameters)


def _replaced(match: re.Match[bytes]) -> bytes:
    found = match[0]
    if found == b"\x7f":
        return _ESCAPED_DEL
    return found if found.startswith(b"\\") and found != rb"\u0000" else _REPLACEMENT


def encode_reply(parameters: bytes, *, continues: bool = False) -> bytes:
    """Return a reply as JSON text, without the NUL that ends it on the wire."""
    parameters = _readable(parameters)
    if continues:
        return b'{"parameters":%b,"continues":true}' % parameters
    return b'{"parameters":%b}' % parameters


def encode_error(error: str, parameters: bytes) -> bytes:
    """Return an error reply as JSON text, without the NUL that ends it on the wire."""
    parameters = _readable(parameters)
    return b'{"error":%b,"parameters":%b}' % (_encode(error), parameters)


def decode_call(text: bytes) -> CallMessage:
    """Parse a call.

    Raises:
        ProtocolError: anything else than a well-formed call.
    """
    _refuse_tangle(text, CALL_ARRAYS_MAX)
    try:
        call = _decode_call(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a method call: {error}") from None
    parameters = call.parameters
    # Quotes outside the parameters: two for each key, two for a string. Any other number is either a repeated key or
    # something harmless (an escaped quote, a flag that is false), which the slow look tells apart.
    if parameters is _EMPTY:
        quotes = 4
    else:
        quotes = 6 + bytes(parameters).count(b'"')
        call.parameters = _as_object(parameters)
    if call.more or call.oneway or call.upgrade:
        # sd-varlink refuses a second flag, even a false one, but only if it comes after a true one. Here an explicit
        # false is the same as none, wherever it stands: no call that it takes is refused.
        if call.more + call.oneway + call.upgrade > 1:
            raise ProtocolError("not a method call: more than one flag")
        quotes += 2
    if text.count(b'"') != quotes:
        _refuse_repeated_keys(text, parameters)
    return call


def decode_reply(text: bytes) -> ReplyMessage:
    """Parse a reply.

    Raises:
        ProtocolError: anything else than a well-formed reply.
    """
    _refuse_tangle(text, math.inf)
    try:
        reply = _decode_reply(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a reply: {error}") from None
    parameters = reply.parameters
    quotes = 2 if reply.continues else 0
    if parameters is not _EMPTY:
        quotes += 2 + bytes(parameters).count(b'"')
        reply.parameters = _as_object(parameters)
    if reply.error is not UNSET:
        if reply.continues:
            raise ProtocolError("not a reply: an error that continues")
        quotes += 4
    if text.count(b'"') != quotes:
        _refuse_repeated_keys(text, parameters)
    return reply


def decode_parameters(parameters: Raw, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode the parameters of a message.

    Raises:
        ProtocolError: they are no JSON after all (they are looked at here for the first time).
        msgspec.ValidationError: they are not what the type says.
    """
    try:
        return decoder.decode(parameters)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"parameters are not JSON: {error}") from None


def repeated_key(parameters: Raw) -> str | None:
    """Return a key that an object within the parameters has twice; None if there is no such key.

    msgspec keeps the last of several equal keys without a word, where sd-json refuses the call.

    Args:
        parameters: text that was decoded without an error.
    """
    text = bytes(parameters)
    if text.count(b":") < 2:
        return None
    keys = [key for key, colon in _KEY.findall(text) if colon]
    # In almost every call no key occurs twice at all, in whatever objects.
    if len(set(keys)) == len(keys) and b"\\" not in b"".join(keys):
        return None
    repeated: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)

    # Numbers as text: Python refuses to read an integer of more than 4,300 digits.
    json.loads(text, object_pairs_hook=note, parse_int=str)
    return repeated[0] if repeated else None


def _as_object(parameters: Raw) -> Raw:
    if memoryview(parameters)[0] == _OBJECT:
        return parameters
    if bytes(parameters) == _NULL:
        return _EMPTY
    raise ProtocolError("parameters are not an object")


def _refuse_tangle(text: bytes, arrays_max: float) -> None:
    # Almost no message has so many brackets at all.
    if text.count(b"{") + text.count(b"[") <= DEPTH_MAX:
        return
    steps = _STRING.sub(b"", text).translate(_STEPS, _NO_BRACKETS)
    if len(steps) > 2 * arrays_max:
        raise ProtocolError("too many arrays and objects")
    if max(accumulate(memoryview(steps).cast("b")), default=0) > DEPTH_MAX:
        raise ProtocolError("nested too deeply")


def _refuse_repeated_keys(text: bytes, parameters: Raw) -> None:
    # A second parser, because msgspec keeps the last of several equal keys without a word. The parameters are not its
    # business, and may be long. Hooks are called from the inside out: what the last call got is the message itself.
    around = text.replace(bytes(parameters), b"{}", 1)
    if len(around) > AROUND_MAX:
        raise ProtocolError("too much around the parameters")
    keys: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        keys[:] = [key for key, _ in pairs]

    try:
        json.loads(around, object_pairs_hook=note)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from None
    if len(set(keys)) != len(keys):
        raise ProtocolError("a key is repeated")
