"""JSON text to calls and replies: strict, and never anything but a message or ProtocolError."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from moorage.wire.errors import ProtocolError
from moorage.wire.message import (
    AROUND_MAX,
    CALL_ARRAYS_MAX,
    DEPTH_MAX,
    CallMessage,
    ReplyMessage,
    decode_call,
    decode_reply,
    encode_call,
    encode_error,
    encode_parameters,
    encode_reply,
    repeated_key,
)


@pytest.mark.parametrize(
    ("text", "method", "parameters", "flags"),
    [
        (b'{"method":"a.B"}', "a.B", b"{}", (False, False, False)),
        (b'{"method":"a.B","parameters":null}', "a.B", b"{}", (False, False, False)),
        (b'{"method":"a.B","parameters":{}}', "a.B", b"{}", (False, False, False)),
        (
            b' { "parameters" : {"x":"\\"y"} , "method" : "a.B" } ',
            "a.B",
            b'{"x":"\\"y"}',
            (False, False, False),
        ),
        (b'{"method":"a.B","more":true}', "a.B", b"{}", (True, False, False)),
        (b'{"oneway":true,"method":"a.B"}', "a.B", b"{}", (False, True, False)),
        (b'{"upgrade":true,"method":"a.B"}', "a.B", b"{}", (False, False, True)),
        (b'{"method":"a.B","more":false,"oneway":true,"upgrade":false}', "a.B", b"{}", (False, True, False)),
        (b'{"method":"a\\"B"}', 'a"B', b"{}", (False, False, False)),
        (b'{"meth\\u006fd":"a.B"}', "a.B", b"{}", (False, False, False)),
        (
            b'{"method":"","parameters":{"method":"x","method":"y"}}',
            "",
            b'{"method":"x","method":"y"}',
            (False,) * 3,
        ),
    ],
)
def test_calls(text: bytes, method: str, parameters: bytes, flags: tuple[bool, bool, bool]) -> None:
    call = decode_call(text)
    assert (call.method, bytes(call.parameters)) == (method, parameters)
    assert (call.more, call.oneway, call.upgrade) == flags


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"method"',
        b"{}",
        b'{"parameters":{}}',
        b'{"method":null}',
        b'{"method":1}',
        b'{"method":["a.B"]}',
        b'{"method":"a.B"',
        b'{"method":"a.B"}}',
        b'{"method":"a.B"} {"method":"a.B"}',
        b'{"method":"a.B",}',
        b"{'method':'a.B'}",
        b'{"method":"a.B","foo":1}',
        b'{"method":"a.B","error":"x"}',
        b'{"method":"a.B","Method":"a.B"}',
        b'{"method":"a.B","parameters":[]}',
        b'{"method":"a.B","parameters":""}',
        b'{"method":"a.B","parameters":1}',
        b'{"method":"a.B","parameters":false}',
        b'{"method":"a.B","more":null}',
        b'{"method":"a.B","more":1}',
        b'{"method":"a.B","more":"true"}',
        b'{"method":"a.B","more":true,"oneway":true}',
        b'{"method":"a.B","more":true,"upgrade":true}',
        b'{"method":"a.B","oneway":true,"upgrade":true}',
        b'{"method":"a.B","method":"a.B"}',
        b'{"method":"a.B","meth\\u006fd":"a.C"}',
        b'{"method":"a.B","more":true,"more":true}',
        b'{"method":"a.B","more":true,"more":false}',
        b'{"method":"a.B","more":false,"more":false}',
        b'{"method":"a.B","parameters":{},"parameters":{}}',
        b'{"method":"a.B","parameters":{},"parameters":null}',
        b'{"method":"a\\"B","parameters":{},"parameters":{}}',
        b'\xef\xbb\xbf{"method":"a.B"}',
        b'{"method":"\xff"}',
        b'{"method":"a.B","parameters":{"x":tru}}',
        b'{"method":"a.B","parameters":' + b'{"x":' * 100_000,
        b'{"method":"a.B","parameters":{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    ],
    ids=lambda text: text[:60],
)
def test_what_is_no_call(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_call(text)


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    """A call of so many arrays, in two objects."""
    return b'{"method":"a.B","parameters":{"x":' + opening * (depth - 2) + closing * (depth - 2) + b"}}"


def test_depth() -> None:
    decode_call(nested(DEPTH_MAX))
    with pytest.raises(ProtocolError, match="deep"):
        decode_call(nested(DEPTH_MAX + 1))
    with pytest.raises(ProtocolError, match="deep"):
        decode_reply(b'{"parameters":{"x":' + b'{"x":' * 300 + b"1" + b"}" * 302)
    wide = b",".join([b'{"[[[\\"[[[":["{{{"]}'] * 5_000)
    decode_call(b'{"method":"a.B","parameters":{"x":[%b]}}' % wide)


@pytest.mark.parametrize(
    ("text", "parameters", "continues", "error"),
    [
        (b"{}", b"{}", False, UNSET),
        (b'{"parameters":null}', b"{}", False, UNSET),
        (b'{"parameters":{"a":"b"}}', b'{"a":"b"}', False, UNSET),
        (b'{"parameters":{},"continues":true}', b"{}", True, UNSET),
        (b'{"continues":false}', b"{}", False, UNSET),
        (b'{"error":"a.B"}', b"{}", False, "a.B"),
        (b'{"error":"","continues":false,"parameters":{"x":1}}', b'{"x":1}', False, ""),
    ],
)
def test_replies(text: bytes, parameters: bytes, continues: bool, error: object) -> None:
    reply = decode_reply(text)
    assert (bytes(reply.parameters), reply.continues, reply.error) == (parameters, continues, error)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"error":null}',
        b'{"error":{}}',
        b'{"error":"a.B","continues":true}',
        b'{"continues":1}',
        b'{"parameters":[]}',
        b'{"method":"a.B"}',
        b'{"error":"a.B","error":"a.B"}',
        b'{"parameters":{},"parameters":{}}',
        b'{"continues":true,"continues":true}',
        b'{"continues":false,"continues":true}',
        b"[" * 100_000,
    ],
    ids=lambda text: text[:60],
)
def test_what_is_no_reply(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_reply(text)


def test_a_tangle_is_refused_before_it_is_decoded() -> None:
    many = b'{"method":"a.B","parameters":{"a":[%b[]]}}'
    decode_call(many % (b"{}," * (CALL_ARRAYS_MAX - 4)))
    with pytest.raises(ProtocolError, match="too many"):
        decode_call(many % (b"{}," * (CALL_ARRAYS_MAX - 3)))
    decode_call(b'{"method":"a.B","parameters":{"a":"%b"}}' % (b'[{\\"' * CALL_ARRAYS_MAX))
    decode_reply(b'{"parameters":{"a":[%b[]]}}' % (b"{}," * CALL_ARRAYS_MAX))


def test_what_is_around_the_parameters_is_looked_at_twice_only_where_it_is_short() -> None:
    long = b'{"method":"a\\"B","parameters":{"a":"%b"}}'
    assert decode_call(long % (b"x" * AROUND_MAX)).method == 'a"B'
    with pytest.raises(ProtocolError, match="too much around"):
        decode_call(long % b"" + b" " * AROUND_MAX)
    with pytest.raises(ProtocolError, match="repeated"):
        decode_call(b'{"method":"a","parameters":{"a":1},"parameters":{}}')


def json_of(texts: st.SearchStrategy[str]) -> st.SearchStrategy[object]:
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
        lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
        max_leaves=10,
    )


UNREADABLE = frozenset(
    ["\0", *map(chr, range(0xFDD0, 0xFDF0))]
    + [chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF)]
)
"""NUL and the noncharacters of Unicode, which sd-json refuses."""

json_values = json_of(st.text())
# Characters that are left out beforehand and not filtered: a text is drawn as one, and not each of its characters.
readable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=UNREADABLE))
keys = st.sampled_from(["method", "parameters", "more", "oneway", "upgrade", "error", "continues", "x"])


@given(st.text(), st.dictionaries(st.text(), json_values), st.sampled_from([None, "more", "oneway"]))
def test_a_call_comes_back_as_it_was(method: str, parameters: dict[str, object], flag: str | None) -> None:
    text = encode_call(method, encode_parameters(parameters), more=flag == "more", oneway=flag == "oneway")
    call = decode_call(text)
    assert (call.method, call.more, call.oneway) == (method, flag == "more", flag == "oneway")
    assert json.loads(bytes(call.parameters)) == parameters
    assert b"\0" not in text


@given(st.dictionaries(readable, json_of(readable)), st.booleans(), st.none() | st.text())
def test_a_reply_comes_back_as_it_was(
    parameters: dict[str, object], continues: bool, error: str | None
) -> None:
    encoded = encode_parameters(parameters)
    text = encode_reply(encoded, continues=continues) if error is None else encode_error(error, encoded)
    reply = decode_reply(text)
    assert json.loads(bytes(reply.parameters)) == parameters
    assert reply.error == (UNSET if error is None else error)
    assert reply.continues is (continues and error is None)


@given(st.lists(st.tuples(keys, json_values), max_size=6))
def test_any_object_is_a_message_or_a_protocol_error(pairs: list[tuple[str, object]]) -> None:
    text = ("{" + ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in pairs) + "}").encode()
    repeated = len({key for key, _ in pairs}) != len(pairs)
    for decode, kind in ((decode_call, CallMessage), (decode_reply, ReplyMessage)):
        try:
            message = decode(text)
        except ProtocolError:
            continue
        assert isinstance(message, kind)
        assert not repeated


@given(
    st.binary()
    | st.text().map(str.encode)
    | st.binary().map(lambda tail: b'{"method":"a.B","parameters":' + tail)
)
def test_any_garbage_is_a_message_or_a_protocol_error(text: bytes) -> None:
    for decode in (decode_call, decode_reply):
        try:
            message = decode(text)
        except ProtocolError:
            continue
        assert isinstance(message, CallMessage | ReplyMessage)


@pytest.mark.parametrize(
    ("parameters", "key"),
    [
        ("{}", None),
        ('{"a":1}', None),
        ('{"a":1,"b":{"a":2}}', None),
        ('[{"a":1},{"a":1}]', None),
        ('{"a":"\\"a\\":1","b":"a"}', None),
        ('{"a\\\\":1,"a":2}', None),
        ('{"a":1,"a":1}', "a"),
        ('{"a":1, "b":2, "a" :3}', "a"),
        ('{"a":1,"\\u0061":2}', "a"),
        ('{"x":[{"a":1,"b":[{"c":1,"c":null}]}]}', "c"),
        ('{"n":' + "9" * 5000 + ',"a":{},"a":{}}', "a"),
    ],
)
def test_a_key_that_an_object_has_twice(parameters: str, key: str | None) -> None:
    assert repeated_key(Raw(parameters.encode())) == key


@pytest.mark.parametrize(
    ("text", "readable"),
    [
        ("plain \u0085 \u202e \ue000 é", None),
        ("a\x7fb", None),
        ("a\0b", "a\ufffdb"),
        ("a\ufdd0b\ufdefc", "a\ufffdb\ufffdc"),
        ("\ufffe\uffff", "\ufffd\ufffd"),
        ("\U0001fffe\U0010ffff", "\ufffd\ufffd"),
        ("\ufdcf\ufdf0\ufffd\U0001fffd\U00020000", None),
        ("\\u0000 \\\\u0000 \\\0", "\\u0000 \\\\u0000 \\\ufffd"),
        ('"\x01\n', None),
    ],
)
def test_what_replies_quote_is_readable_for_everybody(text: str, readable: str | None) -> None:
    for encoded in (
        encode_reply(encode_parameters({"log": text})),
        encode_error("a.B", encode_parameters({"log": text})),
    ):
        assert b"\x7f" not in encoded
        assert json.loads(encoded)["parameters"] == {"log": text if readable is None else readable}


@given(st.text())
def test_what_anybody_can_read_is_left_as_it_is(text: str) -> None:
    decoded = json.loads(encode_reply(encode_parameters({"log": text})))["parameters"]["log"]
    assert len(decoded) == len(text)
    for found, wrote in zip(decoded, text, strict=True):
        assert found == ("\ufffd" if wrote in UNREADABLE else wrote)
