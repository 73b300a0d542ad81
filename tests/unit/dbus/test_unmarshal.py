"""What others write is what we read: against jeepney's codec; and nothing that is sent reads beyond its end."""

from typing import Any

import pytest
from dbus_values import values
from hypothesis import given
from hypothesis import strategies as st
from jeepney.low_level import Endianness, Header, HeaderFields, Message, MessageType

from moorage.dbus.message import parse
from moorage.dbus.unmarshal import Malformed, unmarshal

SIGNATURES = ("s", "ay", "a{sv}", "v", "(sasbttttuii)", "a(sv)", "as", "g", "o", "b", "a{s(tt)}", "d")


def sent(signature: str, body: tuple[Any, ...], endianness: Endianness) -> bytes:
    """A signal that jeepney writes."""
    fields: dict[HeaderFields, str | int] = {
        HeaderFields.path: "/org/example",
        HeaderFields.interface: "org.example",
        HeaderFields.member: "Done",
    }
    if signature:
        fields[HeaderFields.signature] = signature
    return Message(Header(endianness, MessageType.signal, 0, 1, 0, 7, fields), body).serialise(7)


@given(st.lists(values(3), max_size=4), st.sampled_from([Endianness.little, Endianness.big]))
def test_every_value_that_jeepney_writes_is_read(
    members: list[tuple[str, Any]], endianness: Endianness
) -> None:
    signature = "".join(name for name, _ in members)
    body = tuple(value for _, value in members)
    assert parse(sent(signature, body, endianness)).body() == body


@given(st.lists(values(2), min_size=1, max_size=3), st.data())
def test_what_ends_early_is_refused(members: list[tuple[str, Any]], data: st.DataObject) -> None:
    signature = "".join(name for name, _ in members)
    whole = sent(signature, tuple(value for _, value in members), Endianness.little)
    received = parse(whole)
    end = data.draw(st.integers(received.body_at, len(whole) - 1))
    try:
        _, read = unmarshal(signature, whole[:end], received.body_at, big_endian=False)
    except Malformed:
        return
    # An array of nothing, for one, needs no padding; nothing else may have been made of what is not there.
    assert read >= end


@given(st.sampled_from(SIGNATURES), st.binary(max_size=64), st.booleans())
def test_whatever_comes_is_read_or_refused(signature: str, data: bytes, big_endian: bool) -> None:
    try:
        _, end = unmarshal(signature, data, 0, big_endian=big_endian)
    except Malformed:
        return
    assert end <= len(data) + 7


@pytest.mark.parametrize(
    ("signature", "data"),
    [
        ("b", b"\2\0\0\0"),
        ("s", b"\1\0\0\0ab"),
        ("s", b"\xff\xff\xff\xffa\0"),
        ("s", b"\1\0\0\0\xff\0"),
        ("g", b"\2ssx"),
        ("as", b"\xff\xff\xff\xff"),
        ("au", b"\5\0\0\0" + bytes(8)),
        ("v", b"\2ss\0" + bytes(16)),
        ("v", b"\0\0"),
        ("v", b"\3a()\0" + bytes(16)),
        ("v", b"\1v\0" * 100_000),
        ("a{vs}", bytes(8)),
        ("()", bytes(8)),
    ],
)
def test_what_is_no_value_is_refused(signature: str, data: bytes) -> None:
    with pytest.raises(Malformed):
        unmarshal(signature, data, 0, big_endian=False)
