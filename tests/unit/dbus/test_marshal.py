"""What we write is what others read: against jeepney's codec, byte for byte."""

import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jeepney.low_level import Endianness, Header, HeaderFields, Message, MessageType

from moorage.dbus.marshal import Unmarshallable, message

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
BASIC: dict[str, st.SearchStrategy[Any]] = {
    "y": st.integers(0, 2**8 - 1),
    "b": st.booleans(),
    "n": st.integers(-(2**15), 2**15 - 1),
    "q": st.integers(0, 2**16 - 1),
    "i": st.integers(-(2**31), 2**31 - 1),
    "u": st.integers(0, 2**32 - 1),
    "x": st.integers(-(2**63), 2**63 - 1),
    "t": st.integers(0, 2**64 - 1),
    "d": st.floats(allow_nan=False),
    "s": TEXT,
    "o": st.just("/org/example"),
    "g": st.sampled_from(["", "s", "a(sv)"]),
}


def values(depth: int) -> st.SearchStrategy[tuple[str, Any]]:
    """A complete type, and a value of it."""
    basic = st.sampled_from(sorted(BASIC)).flatmap(lambda name: BASIC[name].map(lambda value: (name, value)))
    if depth == 0:
        return basic
    lower = values(depth - 1)
    # All elements of an array are of one type: the same value several times is enough for the padding.
    arrays = st.tuples(lower.filter(lambda one: one[0] != "y"), st.integers(0, 3)).map(
        lambda pair: (f"a{pair[0][0]}", [pair[0][1]] * pair[1])
    )
    structs = st.lists(lower, min_size=1, max_size=4).map(
        lambda members: (f"({''.join(name for name, _ in members)})", tuple(value for _, value in members))
    )
    dictionaries = st.tuples(st.lists(TEXT, unique=True, max_size=3), lower).map(
        lambda pair: (f"a{{s{pair[1][0]}}}", dict.fromkeys(pair[0], pair[1][1]))
    )
    blobs = st.binary(max_size=9).map(lambda value: ("ay", value))
    return st.one_of(basic, arrays, structs, dictionaries, blobs, lower.map(lambda one: ("v", one)))


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
