"""The check that finds differences finds each kind of them, and none where there is none."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import msgspec
import pytest

from moorage.api.descriptions import load_description
from moorage.wire.call import Call
from moorage.wire.conformance import check
from moorage.wire.errors import KNOWN_ERRORS, VarlinkError
from moorage.wire.method import method
from moorage.wire.service import DESCRIPTION, Interface, ServiceInterface
from moorage.wire.types import Empty, Int, Last, Parameters, Reply

TEXT = """
interface org.example.a
type Kind (one, two)
type Tree (name: string, kind: ?Kind, children: ?[]Tree)
method Take(
  tree: Tree, number: ?int, names: ?[]string, map: [string]int, set: [string](), object: ?object, flag: bool, any: any
) -> ()
method Give() -> (kind: Kind, number: ?int, names: []string)
method Later() -> ()
error Bad (why: string, number: ?int)
"""


class Kind(StrEnum):
    ONE = "one"
    TWO = "two"


class Tree(Parameters):
    name: str
    kind: Kind | None = None
    children: "list[Tree] | None" = None


class TakeIn(Parameters, kw_only=True):
    tree: Tree
    number: Int | None = None
    names: list[str] | None = None
    map: dict[str, Int]
    set: dict[str, Empty]
    object: dict[str, Any] | None = None
    flag: bool
    any: Any


class GiveOut(Reply, kw_only=True):
    kind: Literal["one", "two"]
    number: int | None = None
    names: list[str]


@dataclass(eq=False)
class Bad(VarlinkError):
    error = "org.example.a.Bad"
    why: str
    number: int | None = None


class Good(Interface):
    @method("Take")
    def take(self, call: Call, params: TakeIn) -> None: ...

    @method("Give", requires_more=True)
    async def give(self, call: Call, params: Empty) -> AsyncIterator[GiveOut | Last[GiveOut]]:
        yield Last(GiveOut(kind="one", names=[]))


def test_no_difference() -> None:
    assert check(Good, TEXT, errors=[Bad, *KNOWN_ERRORS.values()], unimplemented=["Later"]) == []
    assert check(ServiceInterface, DESCRIPTION, errors=KNOWN_ERRORS.values()) == []
    assert check(Interface, load_description("io.systemd"), errors=KNOWN_ERRORS.values()) == []


@pytest.mark.parametrize(
    ("described", "written", "difference"),
    [
        ("number: ?int, names: ?[]string", "names: ?[]string", "Take() number is not described"),
        ("flag: bool", "flag: bool, more: int", "Take() more is described only"),
        ("number: ?int, names: ?", "number: int, names: ?", "Take() number is not described as nullable"),
        ("flag: bool", "flag: ?bool", "Take() flag does not take null"),
        ("flag: bool", "flag: string", "Take() flag is described as"),
        ("map: [string]int", "map: []int", "Take() map is described as"),
        ("map: [string]int", "map: [string]string", "Take() map[string] is described as"),
        ("set: [string]()", "set: []string", "Take() set is described as"),
        ("object: ?object", "object: ?string", "Take() object is described as"),
        ("names: ?[]string,", "names: ?[]int,", "Take() names[] is described as"),
        ("type Kind (one, two)", "type Kind (one, two, three)", "Take() tree kind has three in only one"),
        ("type Kind (one, two)", "type Kind (one, zwei)", "Give() -> kind has two in only one"),
        ("children: ?[]Tree)", "children: ?[]Tree, x: int)", "Take() tree x is described only"),
        ("names: []string)", "names: []string, more: int)", "Give() -> more is described only"),
        (
            "-> (kind: Kind, number: ?int",
            "-> (kind: Kind, number: int",
            "Give() -> number is not described as nullable",
        ),
        ("method Later() -> ()", "method Later() -> ()\nmethod New() -> ()", "New has no handler"),
        ("method Give()", "method Gave()", "Give is not described"),
        ("error Bad (why: string", "error Bad (wherefore: string", "error Bad why is not described"),
        ("error Bad", "error Worse", "error Worse has no class"),
        ("error Bad", "error Worse", "error Bad is not described"),
    ],
)
def test_each_difference_in_the_text_is_found(described: str, written: str, difference: str) -> None:
    assert described in TEXT
    found = check(Good, TEXT.replace(described, written, 1), errors=[Bad], unimplemented=["Later"])
    assert any(each.startswith(difference) for each in found), found


class Loose(Parameters):
    number: int


class Optional(Parameters):
    number: Int = 0


class Required(Parameters):
    number: Int | None


class Unknown(msgspec.Struct):
    number: Int


class Omitted(Reply):
    number: Int = 0


def one(takes: type[msgspec.Struct], gives: type[msgspec.Struct]) -> type[Interface]:
    class One(Interface):
        @method("Do")
        def do(self, call: Call, params: Any) -> Any: ...

    One.do.__annotations__.update(params=takes)
    One.do.__annotations__["return"] = gives
    return One


@pytest.mark.parametrize(
    ("takes", "gives", "text", "difference"),
    [
        (Loose, Empty, "(number: int) -> ()", "takes integers of more than 64 bits"),
        (Optional, Empty, "(number: int) -> ()", "may be left out"),
        (Required, Empty, "(number: ?int) -> ()", "must be there"),
        (Unknown, Empty, "(number: int) -> ()", "takes unknown fields"),
        (Empty, Omitted, "() -> (number: int)", "is left out at its default"),
    ],
)
def test_each_difference_in_the_structs_is_found(
    takes: type[msgspec.Struct], gives: type[msgspec.Struct], text: str, difference: str
) -> None:
    found = check(one(takes, gives), f"interface org.example.a\nmethod Do{text}")
    assert len(found) == 1
    assert difference in found[0]


def test_a_handler_for_what_should_have_none() -> None:
    assert check(Good, TEXT, errors=[Bad], unimplemented=["Later", "Give"]) == ["Give has a handler"]
    assert check(Good, TEXT, errors=[Bad], unimplemented=["Later", "Bad"]) == ["error Bad has a class"]
    assert check(Good, TEXT, unimplemented=["Later", "Bad"]) == []


def test_either_kind_of_stream() -> None:
    class Either(Interface):
        @method("Give")
        def give(
            self, call: Call, params: Empty
        ) -> Iterator[GiveOut] | AsyncIterator[GiveOut | Last[GiveOut]]:
            return iter(())

    text = (
        "interface a.b\ntype Kind (one, two)\nmethod Give() -> (kind: Kind, number: ?int, names: []string)"
    )
    assert check(Either, text) == []
