"""What we write is what others read: against jeepney's codec, byte for byte."""

import array
from typing import Any

import pytest
from dbus_values import values
from hypothesis import given
from hypothesis import strategies as st
from jeepney.low_level import Endianness, Header, HeaderFields, Message, MessageType

from moorage.dbus.marshal import Unmarshallable, message


def by_jeepney(signature: str, body: tuple[Any, ...], fds: "array.array[int] | None" = None) -> bytes:
    fields: dict[HeaderFields, str | int] = {
        HeaderFields.path: "/org/example",
        HeaderFields.member: "Do",
    }
    if signature:
        fields[HeaderFields.signature] = signature
    header = Header(Endianness.little, MessageType.method_call, 0, 1, 0, 7, fields)
    return Message(header, body).serialise(7, fds)


def by_us(signature: str, body: tuple[Any, ...]) -> tuple[bytes, list[int]]:
    fields: tuple[tuple[int, str, str | int], ...] = ((1, "o", "/org/example"), (3, "s", "Do"))
    if signature:
        fields = (*fields, (8, "g", signature))
    data, fds = message(MessageType.method_call.value, 0, 7, fields, signature, body)
    return data, list(fds)


@given(st.lists(values(3), max_size=4))
def test_every_value_is_written_as_jeepney_writes_it(members: list[tuple[str, Any]]) -> None:
    signature = "".join(name for name, _ in members)
    body = tuple(value for _, value in members)
    assert by_us(signature, body) == (by_jeepney(signature, body), [])


def test_file_descriptors_are_numbered_in_their_order() -> None:
    signature, body = "sa(hs)h", ("x", [(5, "a"), (6, "b")], 5)
    fds = array.array("i")
    assert by_us(signature, body) == (by_jeepney(signature, body, fds), [5, 6, 5])
    assert list(fds) == [5, 6, 5]


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("s", ()),
        ("", ("x",)),
        ("s", ("x", "y")),
        ("s", (5,)),
        ("s", (None,)),
        ("s", (b"x",)),
        ("s", ("a\0b",)),
        ("s", ("\ud800",)),
        ("o", ("",)),
        ("o", ("x",)),
        ("o", ("/a/",)),
        ("o", (5,)),
        ("g", ("é",)),
        ("g", ("s" * 256,)),
        ("b", (1,)),
        ("b", (None,)),
        ("u", (True,)),
        ("u", ("5",)),
        ("u", (-1,)),
        ("u", (2**32,)),
        ("u", (1.5,)),
        ("y", (256,)),
        ("d", ("x",)),
        ("h", ("x",)),
        ("h", (2**31,)),
        ("ay", ([1, 2],)),
        ("as", (5,)),
        ("as", (["x", 5],)),
        ("(su)", (("x",),)),
        ("(su)", (("x", 5, 6),)),
        ("(su)", (5,)),
        ("a{su}", ([("x", 5)],)),
        ("a{su}", ({5: 5},)),
        ("v", ("s",)),
        ("v", (("s", 5),)),
        ("v", (("ss", "x"),)),
        ("v", (("", "x"),)),
        ("()", ((),)),
        ("a", ([],)),
        ("a{s}", ({},)),
        ("{su}", (("x", 5),)),
        ("(s", (("x",),)),
        ("s)", ("x",)),
        ("z", ("x",)),
        ("a" * 40 + "s", ([],)),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(signature: str, body: tuple[Any, ...]) -> None:
    with pytest.raises(Unmarshallable):
        by_us(signature, body)


def test_a_header_field_that_does_not_fit_is_refused() -> None:
    with pytest.raises(Unmarshallable):
        message(1, 0, 1, ((1, "o", "/\0"),))
