"""Descriptions as trees."""

import pytest

from moorage.api.descriptions import load_description
from moorage.wire.idl import (
    Array,
    Builtin,
    Description,
    Fields,
    Map,
    Named,
    Nullable,
    StringSet,
    Values,
    parse,
)
from moorage.wire.service import DESCRIPTION

TEXT = """
# A comment with a method Hidden() -> () in it.
interface org.example.a

type Kind (one, two) # inline
type Pair (first: int, second: ?Kind)
method Do(
  # about the field
  a: ?[]string, b: [string]Pair, c: [string](), d: (x: bool, y: float), e: (p, q), f: object, g: any, h: ?any
) -> (pairs: []Pair)
method Nothing() -> ()
error Bad (why: string)
error Worse ()
"""

STRING, INT = Builtin("string"), Builtin("int")


def test_everything_there_is() -> None:
    assert parse(TEXT) == Description(
        name="org.example.a",
        types={
            "Kind": Values(frozenset({"one", "two"})),
            "Pair": Fields({"first": INT, "second": Nullable(Named("Kind"))}),
        },
        methods={
            "Do": (
                Fields(
                    {
                        "a": Nullable(Array(STRING)),
                        "b": Map(Named("Pair")),
                        "c": StringSet(),
                        "d": Fields({"x": Builtin("bool"), "y": Builtin("float")}),
                        "e": Values(frozenset({"p", "q"})),
                        "f": Builtin("object"),
                        "g": Builtin("any"),
                        "h": Nullable(Builtin("any")),
                    }
                ),
                Fields({"pairs": Array(Named("Pair"))}),
            ),
            "Nothing": (Fields({}), Fields({})),
        },
        errors={"Bad": Fields({"why": STRING}), "Worse": Fields({})},
    )


def test_lines_may_end_as_on_other_systems() -> None:
    assert parse(TEXT.replace("\n", "\r\n")) == parse(TEXT)


def test_an_enumeration_may_have_one_value() -> None:
    found = parse("interface org.example.a\ntype Only (one)\nmethod Do(a: ( one )) -> (b: ?Only)")
    assert found.types == {"Only": Values(frozenset({"one"}))}
    assert found.methods["Do"] == (
        Fields({"a": Values(frozenset({"one"}))}),
        Fields({"b": Nullable(Named("Only"))}),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "interface",
        "method Do() -> ()",
        "interface org.example.a\nmethod Do()",
        "interface org.example.a\nmethod do() -> ()",
        "interface org.example.a\nmethod Do(a: ??int) -> ()",
        "interface org.example.a\nmethod Do(a, b: int) -> ()",
        "interface org.example.a\nerror Bad (a)",
        "interface org.example.a\nerror Bad int",
        "interface org.example.a\ntype A (x: int)\ntype A (x: int)",
        "interface org.example.a\nmethod A() -> ()\nerror A ()",
        "interface org.example.a\nwhat A ()",
    ],
)
def test_what_is_no_description(text: str) -> None:
    with pytest.raises(ValueError, match=r"line|twice|fields expected"):
        parse(text)


OURS = ("io.moorage.Machine", "io.systemd.Machine", "io.systemd.service", "io.systemd")


@pytest.mark.parametrize("text", [DESCRIPTION, *map(load_description, OURS)], ids=("service", *OURS))
def test_ours(text: str) -> None:
    parsed = parse(text)
    assert parsed.name in {"org.varlink.service", *OURS}
    for found in parsed.types.values():
        assert parsed.resolve(found) is found
