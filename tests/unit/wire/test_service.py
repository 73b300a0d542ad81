"""Interfaces as classes, and what msgspec's complaints become."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta, Raw

from moorage.api.descriptions import load_description
from moorage.wire.call import Call
from moorage.wire.errors import InterfaceNotFound, InvalidParameter, MethodNotFound, MethodNotImplemented
from moorage.wire.method import Kind, Method, method
from moorage.wire.service import Interface, Service
from moorage.wire.types import Empty, Int, Last, Parameters, Reply, WithFds

INTERFACES = Path(__file__).parents[3] / "interfaces"


class Process(Parameters):
    pid: Int
    start: Int | None = None


class Everything(Parameters):
    name: str
    kind: Literal["vm", "container"] = "vm"
    leader: Process | None = None
    numbers: list[Annotated[int, Meta(ge=0)]] = []  # noqa: RUF012  # msgspec copies it
    named: dict[str, Int] = {}  # noqa: RUF012
    flag: bool | None = None


class Out(Reply):
    number: int


class Kinds(Interface):
    def __init__(self) -> None:
        super().__init__(
            "interface a.b # method No()\nmethod Plain() -> ()\n method Gen()->()\nmethod Co ()->()\n"
            "method Agen() -> ()\n"
            "method PlainStream() -> ()\nmethod Fds() -> ()\nmethod Missing() -> ()"
        )

    @method("Plain")
    def plain(self, call: Call, params: Everything) -> None: ...

    @method("Gen")
    def gen(self, call: Call, params: Empty) -> Iterator[Out]:
        yield Out(number=1)

    @method("Co")
    async def co(self, call: Call, params: Empty) -> Out | WithFds[Out]:
        return Out(number=1)

    @method("Agen", requires_more=True)
    async def agen(self, call: Call, params: Empty) -> AsyncIterator[Out | Last[Out]]:
        yield Last(Out(number=1))

    @method("PlainStream")
    def plain_stream(self, call: Call, params: Empty) -> Iterator[Out]:
        return self.gen(call, params)

    @method("Fds")
    def fds(self, call: Call, params: Empty) -> WithFds[Out]:
        return WithFds(Out(number=1), [])


def plain() -> Method:
    found = Kinds().handler("Plain")
    assert found is not None
    return found


def test_handlers_are_what_their_annotations_say() -> None:
    kinds = Kinds()
    handlers = {name: kinds.handler(name) for name in sorted(kinds.described)}
    assert {
        name: (found.kind, found.reply_type, found.requires_more)
        for name, found in handlers.items()
        if found is not None
    } == {
        "Plain": (Kind.PLAIN, Empty, False),
        "Gen": (Kind.GENERATOR, Out, False),
        "Co": (Kind.COROUTINE, Out, False),
        "Agen": (Kind.ASYNC_GENERATOR, Out, True),
        "PlainStream": (Kind.GENERATOR, Out, False),
        "Fds": (Kind.PLAIN, Out, False),
    }
    assert plain().parameters_type is Everything


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("a.b.Missing", MethodNotImplemented("a.b.Missing")),
        ("a.b.No", MethodNotFound("a.b.No")),
        ("a.b.plain", MethodNotFound("a.b.plain")),
        ("a.c.Plain", InterfaceNotFound("a.c")),
        ("a.b", InterfaceNotFound("a")),
        ("Plain", InterfaceNotFound("Plain")),
        ("", InterfaceNotFound("")),
        (".", InterfaceNotFound(".")),
    ],
)
def test_methods_that_are_not_there(name: str, error: Exception) -> None:
    service = Service(vendor="", product="", version="", url="", interfaces=[Kinds()])
    with pytest.raises(type(error)) as caught:
        service.find(name)
    assert str(caught.value) == str(error)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        (b"{}", "name"),
        (b'{"name":null}', "name"),
        (b'{"name":1}', "name"),
        (b'{"name":"a","what":1}', "what"),
        (b'{"name":"a","w`t":1}', "w`t"),
        (b'{"name":"a","x` - at `$.y":1}', "y.x"),  # nobody else's loss
        (b'{"name":"a","kind":"host"}', "kind"),
        (b'{"name":"a","kind":1}', "kind"),
        (b'{"name":"a","leader":1}', "leader"),
        (b'{"name":"a","leader":{}}', "leader.pid"),
        (b'{"name":"a","leader":{"pid":"x"}}', "leader.pid"),
        (b'{"name":"a","leader":{"pid":"1 "}}', "leader.pid"),
        (b'{"name":"a","leader":{"pid":"9223372036854775808"}}', "leader.pid"),
        (b'{"name":"a","leader":{"pid":"1","start":"x"}}', "leader.start"),
        (b'{"name":"a","flag":"true"}', "flag"),
        (b'{"name":"a","name":"a"}', "name"),
        (b'{"name":"a","leader":{"pid":1,"pid":1}}', "pid"),
        (b'{"name":"a","named":{"x":1,"x":2}}', "x"),
        (b'{"name":"a","leader":{"pid":true}}', "leader.pid"),
        (b'{"name":"a","leader":{"pid":1.5}}', "leader.pid"),
        (b'{"name":"a","leader":{"pid":9223372036854775808}}', "leader.pid"),
        (b'{"name":"a","leader":{"pid":-9223372036854775809}}', "leader.pid"),
        (b'{"name":"a","leader":{"pid":123456789012345678901234567890}}', "leader.pid"),
        (b'{"name":"a","leader":{"pid":1e400}}', "leader.pid"),
        (b'{"name":"a","leader":{"pid":1,"boot":1}}', "leader.boot"),
        (b'{"name":"a","numbers":{}}', "numbers"),
        (b'{"name":"a","numbers":[1,-1]}', "numbers[1]"),
        (b'{"name":"a","named":{"x":null}}', "named[...]"),
        (b'{"name":"a","flag":0}', "flag"),
    ],
)
def test_the_field_that_is_wrong_is_named(parameters: bytes, field: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        plain().decode(Raw(parameters))
    assert caught.value.parameter == field


def test_an_integer_may_be_written_as_sd_json_reads_it() -> None:
    decoded = plain().decode(Raw(b'{"name":"1","leader":{"pid":"65","start":66.0}}'))
    assert decoded == Everything(name="1", leader=Process(pid=65, start=66))


def test_the_largest_integers() -> None:
    for number in (2**63 - 1, -(2**63)):
        text = msgspec.json.encode({"name": "a", "leader": {"pid": number}})
        decoded = plain().decode(Raw(text))
        assert isinstance(decoded, Everything)
        assert decoded.leader == Process(pid=number)


def test_bugs_of_an_interface_are_found() -> None:
    with pytest.raises(ValueError, match="interface"):
        Interface("method Nope() -> ()")

    class Undescribed(Interface):
        @method("Nope")
        def nope(self, call: Call, params: Empty) -> None: ...

    with pytest.raises(TypeError, match="Nope"):
        Undescribed("interface a.b")

    class NoStruct(Interface):
        @method("Nope")
        def nope(self, call: Call, params: Empty) -> int: ...

    with pytest.raises(TypeError, match="Struct"):
        NoStruct("interface a.b\nmethod Nope() -> ()").handler("Nope")

    class NoParameters(Interface):
        @method("Nope")
        def nope(self, call: Call) -> None: ...

    with pytest.raises(TypeError, match="parameters"):
        NoParameters("interface a.b\nmethod Nope() -> ()").handler("Nope")


def test_an_interface_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="the same name"):
        Service(vendor="", product="", version="", url="", interfaces=[Kinds(), Kinds()])


def test_every_description_is_found_and_served_as_it_is() -> None:
    names = sorted(path.stem for path in INTERFACES.glob("*.varlink"))
    assert "io.moorage.Machine" in names
    for name in names:
        interface = Interface(load_description(name))
        assert interface.name == name
        assert interface.description == (INTERFACES / f"{name}.varlink").read_text()
