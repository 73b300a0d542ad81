"""What is served to other implementations: the certification dialogue of varlink, and a method of each kind.

Run with a path, it serves there until it is killed; so it can run in a sandbox, too.
"""

from __future__ import annotations

import math
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import trio
from msgspec import Struct, field, to_builtins

from moorage.wire.call import Call
from moorage.wire.errors import VarlinkError
from moorage.wire.method import method
from moorage.wire.server import Server
from moorage.wire.service import Interface, Service
from moorage.wire.types import Empty, Int, Parameters, Reply, WithFds

CERTIFICATION = """\
# A dialogue that shows what an implementation of varlink can do: each call takes what the one before gave.
interface org.varlink.certification

type Interface (
  foo: ?[]?[string](foo, bar, baz),
  anon: (foo: bool, bar: bool)
)

type MyType (
  object: object,
  enum: (one, two, three),
  struct: (first: int, second: string),
  array: []string,
  dictionary: [string]string,
  stringset: [string](),
  nullable: ?string,
  nullable_array_struct: ?[](first: int, second: string),
  interface: Interface
)

method Start() -> (client_id: string)
method Test01(client_id: string) -> (bool: bool)
method Test02(client_id: string, bool: bool) -> (int: int)
method Test03(client_id: string, int: int) -> (float: float)
method Test04(client_id: string, float: float) -> (string: string)
method Test05(client_id: string, string: string) -> (bool: bool, int: int, float: float, string: string)
method Test06(client_id: string, bool: bool, int: int, float: float, string: string)
  -> (struct: (bool: bool, int: int, float: float, string: string))
method Test07(client_id: string, struct: (bool: bool, int: int, float: float, string: string))
  -> (map: [string]string)
method Test08(client_id: string, map: [string]string) -> (set: [string]())
method Test09(client_id: string, set: [string]()) -> (mytype: MyType)
# Gives several replies.
method Test10(client_id: string, mytype: MyType) -> (string: string)
# Must be called as oneway.
method Test11(client_id: string, last_more_replies: []string) -> ()
method End(client_id: string) -> (all_ok: bool)

error ClientIdError ()
error CertificationError (wants: object, got: object)
"""

PEER = """\
# A method of each kind.
interface org.example.peer

# Gives back what it gets.
method Echo(text: string, number: ?int) -> (text: string, number: ?int)
# Counts; needs 'more' for more than one.
method Count(to: int) -> (number: int)
# Fails.
method Fail(reason: string) -> ()
# Gives a file to read.
method Give(text: string) -> (file: int)
# Reads a file.
method Take(file: int) -> (text: string)
# Says what was said in calls of Note.
method Notes() -> (notes: []string)
method Note(text: string) -> ()

error Failed (reason: string)
"""


class Values(Struct, forbid_unknown_fields=True):
    bool_: bool = field(name="bool")
    int_: Int = field(name="int")
    float_: float = field(name="float")
    string: str


class Pair(Struct, forbid_unknown_fields=True):
    first: Int
    second: str


class Anonymous(Struct, forbid_unknown_fields=True):
    foo: bool
    bar: bool


class Nested(Struct, forbid_unknown_fields=True):
    anon: Anonymous
    foo: list[dict[str, Literal["foo", "bar", "baz"]] | None] | None = None


class MyType(Struct, omit_defaults=True, forbid_unknown_fields=True):
    object_: dict[str, Any] = field(name="object")
    enum: Literal["one", "two", "three"]
    struct: Pair
    array: list[str]
    dictionary: dict[str, str]
    stringset: dict[str, Empty]
    interface: Nested
    nullable: str | None = None
    nullable_array_struct: list[Pair] | None = None


VALUES = Values(bool_=False, int_=2, float_=math.pi, string="a lot of string")
MAP = {"foo": "Foo", "bar": "Bar"}
SET = {"one": Empty(), "two": Empty(), "three": Empty()}
MY_TYPE = MyType(
    object_={"method": "org.varlink.certification.Test09", "parameters": {"map": MAP}},
    enum="two",
    struct=Pair(1, "2"),
    array=["one", "two", "three"],
    dictionary=MAP,
    stringset=SET,
    interface=Nested(
        foo=[None, {"foo": "foo", "bar": "bar"}, None, {"one": "foo", "two": "bar"}],
        anon=Anonymous(foo=True, bar=False),
    ),
)
REPLIES = [f"Reply number {number}" for number in range(1, 11)]


class ClientId(Parameters):
    client_id: str


class BoolIn(ClientId):
    bool_: bool = field(name="bool")


class IntIn(ClientId):
    int_: Int = field(name="int")


class FloatIn(ClientId):
    float_: float = field(name="float")


class StringIn(ClientId):
    string: str


class ValuesIn(ClientId):
    bool_: bool = field(name="bool")
    int_: Int = field(name="int")
    float_: float = field(name="float")
    string: str


class StructIn(ClientId):
    struct: Values


class MapIn(ClientId):
    map_: dict[str, str] = field(name="map")


class SetIn(ClientId):
    set_: dict[str, Empty] = field(name="set")


class MyTypeIn(ClientId):
    mytype: MyType


class RepliesIn(ClientId):
    last_more_replies: list[str]


class StartOut(Reply):
    client_id: str


class BoolOut(Reply):
    bool_: bool = field(name="bool")


class IntOut(Reply):
    int_: Int = field(name="int")


class FloatOut(Reply):
    float_: float = field(name="float")


class StringOut(Reply):
    string: str


class ValuesOut(Reply):
    bool_: bool = field(name="bool")
    int_: Int = field(name="int")
    float_: float = field(name="float")
    string: str


class StructOut(Reply):
    struct: Values


class MapOut(Reply):
    map_: dict[str, str] = field(name="map")


class SetOut(Reply):
    set_: dict[str, Empty] = field(name="set")


class MyTypeOut(Reply):
    mytype: MyType


class EndOut(Reply):
    all_ok: bool


@dataclass(eq=False)
class ClientIdError(VarlinkError):
    error = "org.varlink.certification.ClientIdError"


@dataclass(eq=False)
class CertificationError(VarlinkError):
    error = "org.varlink.certification.CertificationError"
    wants: dict[str, Any]
    got: dict[str, Any]


class Certification(Interface):
    """The serving half of the dialogue; refuses what is out of order or is not what it gave before."""

    def __init__(self) -> None:
        super().__init__(CERTIFICATION)
        self._next: dict[str, str] = {}

    def _step(self, call: Call, params: ClientId, after: str, /, **wants: object) -> None:
        name = call.method.rpartition(".")[2]
        if params.client_id not in self._next:
            raise ClientIdError
        expected = self._next.pop(params.client_id)
        if name != expected:
            raise CertificationError({"method": expected}, {"method": name})
        got = to_builtins(params)
        wants = to_builtins(wants) | {"client_id": params.client_id}
        if got != wants or call.more != (name == "Test10") or call.oneway != (name == "Test11"):
            raise CertificationError(wants, got)
        self._next[params.client_id] = after

    @method("Start")
    def start(self, call: Call, params: Empty) -> StartOut:
        client_id = secrets.token_hex(16)
        self._next[client_id] = "Test01"
        return StartOut(client_id=client_id)

    @method("Test01")
    def test01(self, call: Call, params: ClientId) -> BoolOut:
        self._step(call, params, "Test02")
        return BoolOut(bool_=True)

    @method("Test02")
    def test02(self, call: Call, params: BoolIn) -> IntOut:
        self._step(call, params, "Test03", bool=True)
        return IntOut(int_=1)

    @method("Test03")
    def test03(self, call: Call, params: IntIn) -> FloatOut:
        self._step(call, params, "Test04", int=1)
        return FloatOut(float_=1.0)

    @method("Test04")
    def test04(self, call: Call, params: FloatIn) -> StringOut:
        self._step(call, params, "Test05", float=1.0)
        return StringOut(string="ping")

    @method("Test05")
    def test05(self, call: Call, params: StringIn) -> ValuesOut:
        self._step(call, params, "Test06", string="ping")
        return ValuesOut(bool_=False, int_=2, float_=math.pi, string="a lot of string")

    @method("Test06")
    def test06(self, call: Call, params: ValuesIn) -> StructOut:
        self._step(call, params, "Test07", bool=False, int=2, float=math.pi, string="a lot of string")
        return StructOut(struct=VALUES)

    @method("Test07")
    def test07(self, call: Call, params: StructIn) -> MapOut:
        self._step(call, params, "Test08", struct=VALUES)
        return MapOut(map_=MAP)

    @method("Test08")
    def test08(self, call: Call, params: MapIn) -> SetOut:
        self._step(call, params, "Test09", map=MAP)
        return SetOut(set_=SET)

    @method("Test09")
    def test09(self, call: Call, params: SetIn) -> MyTypeOut:
        self._step(call, params, "Test10", set=SET)
        return MyTypeOut(mytype=MY_TYPE)

    @method("Test10", requires_more=True)
    def test10(self, call: Call, params: MyTypeIn) -> Iterator[StringOut]:
        self._step(call, params, "Test11", mytype=MY_TYPE)
        yield from (StringOut(string=reply) for reply in REPLIES)

    @method("Test11")
    async def test11(self, call: Call, params: RepliesIn) -> None:
        self._step(call, params, "End", last_more_replies=REPLIES)

    @method("End")
    async def end(self, call: Call, params: ClientId) -> EndOut:
        self._step(call, params, "Start")
        del self._next[params.client_id]
        return EndOut(all_ok=True)


class EchoIn(Parameters):
    text: str
    number: Int | None = None


class EchoOut(Reply):
    text: str
    number: Int | None = None


class CountIn(Parameters):
    to: Int


class CountOut(Reply):
    number: Int


class FailIn(Parameters):
    reason: str


class TextIn(Parameters):
    text: str


class TextOut(Reply):
    text: str


class FileIn(Parameters):
    file: Int


class FileOut(Reply):
    file: Int


class NotesOut(Reply):
    notes: list[str]


@dataclass(eq=False)
class Failed(VarlinkError):
    error = "org.example.peer.Failed"
    reason: str


class Peer(Interface):
    """A method of each kind."""

    def __init__(self) -> None:
        super().__init__(PEER)
        self._notes: list[str] = []

    @method("Echo")
    async def echo(self, call: Call, params: EchoIn) -> EchoOut:
        return EchoOut(text=params.text, number=params.number)

    @method("Count")
    def count(self, call: Call, params: CountIn) -> Iterator[CountOut]:
        yield from (CountOut(number=number) for number in range(params.to))

    @method("Fail")
    def fail(self, call: Call, params: FailIn) -> None:
        raise Failed(params.reason)

    @method("Give")
    def give(self, call: Call, params: TextIn) -> WithFds[FileOut]:
        read, write = os.pipe()
        os.write(write, params.text.encode())
        os.close(write)
        return WithFds(FileOut(file=0), [read])

    @method("Take")
    def take(self, call: Call, params: FileIn) -> TextOut:
        with open(call.take_fd(params.file, "file"), encoding="utf-8") as file:
            return TextOut(text=file.read())

    @method("Notes")
    def notes(self, call: Call, params: Empty) -> NotesOut:
        return NotesOut(notes=self._notes)

    @method("Note")
    def note(self, call: Call, params: TextIn) -> None:
        self._notes.append(params.text)


def service() -> Service:
    """Both interfaces."""
    return Service(
        vendor="Moorage",
        product="Peers",
        version="1",
        url="https://example.org",
        interfaces=[Certification(), Peer()],
    )


async def serve(path: str) -> None:
    """Serve at a path, for ever."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(128)
        print("ready", flush=True)
        server = Server()
        server.listen(listener, service())
        await server.serve()


if __name__ == "__main__":
    trio.run(serve, sys.argv[1])
