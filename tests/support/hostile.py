"""What a peer does who keeps no rule: raw bytes and file descriptors, and wrong values for every field."""

import contextlib
import enum
import json
import os
import signal
import socket
import struct
import types
import typing
from array import array
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import msgspec
from moored import SOCKET
from msgspec import Struct

from moorage.api.moorage_machine.handlers import MoorageMachine
from moorage.api.systemd_machine.handlers import SystemdMachine
from moorage.api.systemd_service import GenericService
from moorage.wire.method import marked
from moorage.wire.service import GetInterfaceDescriptionParameters
from moorage.wire.types import Empty

ANSWER_SECONDS = 20.0
"""Longest wait for an answer that should come at once."""

LINGER_SECONDS = 600


def dial(path: str = SOCKET) -> socket.socket:
    """Connect, also while thousands of connections wait to be accepted: connect(2) waits only if it may block."""
    connected = socket.socket(socket.AF_UNIX)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(ANSWER_SECONDS), 0))
    try:
        connected.connect(path)
        connected.settimeout(ANSWER_SECONDS)
    except OSError:
        connected.close()
        raise
    return connected


@contextlib.contextmanager
def as_user(uid: int) -> Generator[None]:
    """What connect(2) tells the other end (SO_PEERCRED) are the effective ids."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def busy(pid: int) -> Generator[None]:
    """Have a service accept and read nothing meanwhile: as if another call took that long."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def lingering() -> Generator[int]:
    """A TCP socket whose last close(2) waits: its peer reads nothing, and it has sent all that it may."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
        with receiver:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER_SECONDS))
            sender.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sender.send(bytes(65536))
            yield sender.detach()


def connect_as(uid: int) -> socket.socket:
    """Connect as a user."""
    with as_user(uid):
        return dial()


def send(connected: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send, also to a peer that has hung up."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    try:
        sent = connected.sendmsg([data], rights)
        connected.sendall(data[sent:])
    except (BrokenPipeError, ConnectionResetError):
        pass


def receive(connected: socket.socket) -> bytes:
    """Return what comes until the peer hangs up."""
    received = bytearray()
    try:
        while data := connected.recv(64 * 1024):
            received += data
    except ConnectionResetError:
        pass
    return bytes(received)


def ask(data: bytes, fds: Sequence[int] = (), *, path: str = SOCKET) -> list[dict[str, Any]]:
    """Send bytes on a connection of their own and return the replies to them.

    Raises:
        AssertionError: what came is no reply.
    """
    with dial(path) as connected:
        send(connected, data, fds)
        with contextlib.suppress(OSError):  # hung up already
            connected.shutdown(socket.SHUT_WR)
        received = receive(connected)
    assert received.endswith(b"\0") or not received, received[-200:]
    replies = [json.loads(text) for text in received.split(b"\0")[:-1]]
    for reply in replies:
        assert isinstance(reply, dict)
        assert reply.keys() <= {"error", "parameters", "continues"}
        assert isinstance(reply.get("parameters", {}), dict)
    return replies


def encode(method: str, parameters: Any = None, **flags: bool) -> bytes:
    """Encode a call, with its NUL."""
    call = {"method": method, **({} if parameters is None else {"parameters": parameters}), **flags}
    return json.dumps(call).encode() + b"\0"


def call(
    method: str, parameters: Any = None, fds: Sequence[int] = (), *, path: str = SOCKET
) -> dict[str, Any] | None:
    """Make one call on a connection of its own; return the reply, None where the peer hung up instead."""
    replies = ask(encode(method, parameters), fds, path=path)
    assert len(replies) <= 1
    return replies[0] if replies else None


def parameters_types() -> dict[str, type[Struct]]:
    """What each method takes that is served, by its full name."""
    found: dict[str, type[Struct]] = {
        "org.varlink.service.GetInfo": Empty,
        "org.varlink.service.GetInterfaceDescription": GetInterfaceDescriptionParameters,
    }
    for interface, name in (
        (MoorageMachine, "io.moorage.Machine"),
        (SystemdMachine, "io.systemd.Machine"),
        (GenericService, "io.systemd.service"),
    ):
        for attribute, mark in marked(interface):
            hints = typing.get_type_hints(getattr(interface, attribute), include_extras=True)
            found[f"{name}.{mark.name}"] = hints["params"]
    return found


ANYTHING: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**63, -(2**63) - 1, 10**400, 0.5, 1e300, "", "x", "\0", [], [[]], [None], {}, {"x": 1},
)  # fmt: skip
"""Values of every type that JSON has."""


def _strip(kind: Any) -> Any:
    while typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    return kind


def _alternatives(kind: Any) -> tuple[Any, ...]:
    bare = _strip(kind)
    if typing.get_origin(bare) in {types.UnionType, typing.Union}:
        return typing.get_args(bare)
    return (kind,)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a scalar is of a type, by the rules of varlink rather than those of a decoder."""
    if len(alternatives := _alternatives(kind)) > 1:
        return any(_fits(value, each) for each in alternatives)
    bare = _strip(kind)
    if bare is Any:
        return True
    if bare is types.NoneType:
        return value is None
    if bare is int:
        low, high = -(2**63), 2**63 - 1
        for meta in getattr(kind, "__metadata__", ()):
            low = low if meta.ge is None else meta.ge
            high = high if meta.le is None else meta.le
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    if isinstance(bare, type) and issubclass(bare, enum.Enum):
        return value in {member.value for member in bare}
    return bare in {str, bool} and type(value) is bare


def sample(kind: Any) -> Any:
    """Return some value of a type."""
    kind = _strip(_alternatives(kind)[0])
    if kind is Any:
        return {}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return [sample(arguments[0])]
    if origin is dict:
        return {"x": 1}
    if issubclass(kind, Struct):
        return {
            field.encode_name: sample(field.type) for field in msgspec.structs.fields(kind) if field.required
        }
    if issubclass(kind, enum.Enum):
        return next(iter(kind)).value
    return {str: "x", int: 1, bool: True}[kind]


def _wrong(kind: Any) -> Iterator[tuple[str, Any]]:
    """Yield wrong values of a type, each with the path below it that is to blame."""
    for value in ANYTHING:
        if not isinstance(value, list | dict) and not _fits(value, kind):
            yield "", value
    bare = _strip(_alternatives(kind)[0])
    origin = typing.get_origin(bare)
    if origin is list:
        (item,) = typing.get_args(bare)
        yield "", {}
        for path, value in _wrong(item):
            yield f"[1]{path}", [sample(item), value]
    elif origin is dict:
        yield "", []
    elif isinstance(bare, type) and issubclass(bare, Struct):
        yield "", []
        for path, value in wrong_parameters(bare):
            yield f".{path}", value
    else:
        yield "", []
        yield "", {}


def wrong_parameters(struct: type[Struct]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield parameters with one thing wrong, each with the path of the field that is to blame."""
    good = sample(struct)
    yield "unheardOf", {**good, "unheardOf": 1}
    for field in msgspec.structs.fields(struct):
        name = field.encode_name
        if field.required:
            yield name, {key: value for key, value in good.items() if key != name}
        for path, value in _wrong(field.type):
            yield f"{name}{path}", {**good, name: value}
