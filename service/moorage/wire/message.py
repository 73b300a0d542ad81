"""Calls and replies as JSON, strictly (https://varlink.org/Method-Call).

As strict as sd-varlink (``varlink_dispatch_method()``, ``varlink_dispatch_reply()``): an unknown key, a repeated key,
a value of the wrong type or two flags at once is a :class:`ProtocolError`, which ends the connection.

The parameters stay undecoded here: only the method knows their type.
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
"""Maximum nesting of arrays and objects. sd-json accepts 2,048 (DEPTH_MAX of sd-json.c). msgspec accepts what fits on
the stack, between 1,000 and millions depending on the version of Python, and then code that walks through the values
fails. Nothing in our interfaces is nested deeper than ten."""

CALL_ARRAYS_MAX = 16 * 1024
"""Maximum number of arrays and objects in one call: decoding one takes a hundred times as long as its bytes suggest,
and blocks everybody. A Register with 64 helpers has a few thousand. Replies have no such limit: a client blocks only
itself."""

AROUND_MAX = 64 * 1024
"""Maximum size of a message without its parameters (the name of the method, flags) if it must be parsed twice, in
bytes."""

_EMPTY = Raw(b"{}")
_NULL = b"null"
_OBJECT = ord("{")

T = TypeVar("T")


class CallMessage(Struct, forbid_unknown_fields=True, gc=False):
    """A method call.

    Attributes:
        method: full name, with the interface.
        parameters: JSON text of an object.
        more: the caller accepts several replies.
        oneway: the caller wants no reply, not even an error.
        upgrade: the caller wants to use the connection for another protocol after the reply. No method does that; like
            sd-varlink, we answer such a call as any other.
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
"""Characters for which sd-json refuses the whole reply: U+0000 even as an escape, an unescaped DEL, and the
noncharacters of Unicode (tried with systemd 257 and 262). The second alternative skips other escapes, so that an
escaped backslash is not mistaken for the beginning of one."""
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

    Replies quote text from elsewhere: logs, descriptions, paths. One character that sd-json does not accept must not
    make the whole reply unreadable.
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


def prepared_reply(parameters: Any) -> bytes:
    """Return a reply that others will follow as it goes over the wire, to be sent to any number of callers."""
    return encode_reply(encode_parameters(parameters), continues=True) + b"\0"


def encode_error(error: str, parameters: bytes) -> bytes:
    """Return an error reply as JSON text, without the NUL that ends it on the wire."""
    parameters = _readable(parameters)
    return b'{"error":%b,"parameters":%b}' % (_encode(error), parameters)


def decode_call(text: bytes) -> CallMessage:
    """Parse a call.

    Raises:
        ProtocolError: the text is not a well-formed call.
    """
    _refuse_tangle(text, CALL_ARRAYS_MAX)
    try:
        call = _decode_call(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a method call: {error}") from None
    parameters = call.parameters
    # Quotes outside the parameters: two for each key, two for a string. Any other number means a repeated key, or
    # something harmless (an escaped quote, a flag that is false); a second parser tells them apart.
    if parameters is _EMPTY:
        quotes = 4
    else:
        quotes = 6 + bytes(parameters).count(b'"')
        call.parameters = _as_object(parameters)
    if call.more or call.oneway or call.upgrade:
        # sd-varlink refuses a second flag, even a false one, but only after a true one. We treat an explicit false
        # like an absent flag in any position, so every call that sd-varlink accepts is accepted.
        if call.more + call.oneway + call.upgrade > 1:
            raise ProtocolError("not a method call: more than one flag")
        quotes += 2
    if text.count(b'"') != quotes:
        _refuse_repeated_keys(text, parameters)
    return call


def decode_reply(text: bytes) -> ReplyMessage:
    """Parse a reply.

    Raises:
        ProtocolError: the text is not a well-formed reply.
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
        ProtocolError: they are not JSON (this is the first time that they are parsed).
        msgspec.ValidationError: they do not fit the type.
    """
    try:
        return decoder.decode(parameters)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"parameters are not JSON: {error}") from None


def repeated_key(parameters: Raw) -> str | None:
    """Return a key that an object within the parameters has twice, None if there is no such key.

    msgspec silently keeps the last of several equal keys; sd-json refuses the call.

    Args:
        parameters: text that can be decoded.
    """
    text = bytes(parameters)
    if text.count(b":") < 2:
        return None
    keys = [key for key, colon in _KEY.findall(text) if colon]
    # In almost all calls no key occurs twice, not even in different objects.
    if len(set(keys)) == len(keys) and b"\\" not in b"".join(keys):
        return None
    repeated: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)

    # Numbers stay text: Python refuses to convert an integer of more than 4,300 digits.
    json.loads(text, object_pairs_hook=note, parse_int=str)
    return repeated[0] if repeated else None


def _as_object(parameters: Raw) -> Raw:
    if memoryview(parameters)[0] == _OBJECT:
        return parameters
    if bytes(parameters) == _NULL:
        return _EMPTY
    raise ProtocolError("parameters are not an object")


def _refuse_tangle(text: bytes, arrays_max: float) -> None:
    # Almost no message has as many brackets as that.
    if text.count(b"{") + text.count(b"[") <= DEPTH_MAX:
        return
    steps = _STRING.sub(b"", text).translate(_STEPS, _NO_BRACKETS)
    if len(steps) > 2 * arrays_max:
        raise ProtocolError("too many arrays and objects")
    if max(accumulate(memoryview(steps).cast("b")), default=0) > DEPTH_MAX:
        raise ProtocolError("nested too deeply")


def _refuse_repeated_keys(text: bytes, parameters: Raw) -> None:
    # A second parser, because msgspec silently keeps the last of several equal keys. It does not need the parameters,
    # which may be long. Hooks are called from the inside out: the last call is for the message itself.
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
