"""Both ends of a varlink connection: bytes and file descriptors in pieces, as far as the parameters of the methods.

A conversation is a file of calls, or of replies; a server gets the ones, a client the others.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from hypothesis import strategies as st

from fuzzing.mutation import POSITIONS, damaged, damaged_json, encode_json
from fuzzing.target import Target, corpus
from moorage import errors as machine_errors
from moorage.api.moorage_machine.handlers import MoorageMachine
from moorage.api.systemd_machine import errors as systemd_errors
from moorage.api.systemd_machine.handlers import SystemdMachine
from moorage.api.systemd_service import GenericService
from moorage.wire.connection import Connection, Role, Wait
from moorage.wire.errors import ProtocolError, VarlinkError, error_from_reply, error_table
from moorage.wire.message import CallMessage, ReplyMessage, decode_parameters
from moorage.wire.method import handlers_of, invalid_field

PIECES_MAX = 6
FDS_MAX = 3
"""Maximum number of file descriptors with one piece."""

CALLS = 8
"""Calls that a client has made before replies arrive; every other one asked for more than one reply."""

_DECODERS: Mapping[str, msgspec.json.Decoder[Any]] = {
    f"{prefix}.{name}": msgspec.json.Decoder(shape.parameters_type)
    for prefix, interface in (
        ("io.moorage.Machine", MoorageMachine),
        ("io.systemd.Machine", SystemdMachine),
        ("io.systemd.service", GenericService),
    )
    for name, shape in handlers_of(interface).items()
}
_OBJECT = msgspec.json.Decoder(dict[str, Any])
_ERRORS = error_table(
    value
    for module in (machine_errors, systemd_errors)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, VarlinkError) and value is not VarlinkError
)


@dataclass(frozen=True)
class Received:
    """Input of one end.

    Attributes:
        data: all of it.
        cuts: where it is cut into pieces.
        fds: how many file descriptors come with each piece; those that are not mentioned have none.
        truncated: the number of the piece with which file descriptors were lost, if there is one.
    """

    data: bytes
    cuts: tuple[int, ...] = ()
    fds: tuple[int, ...] = ()
    truncated: int | None = None

    def pieces(self) -> Iterator[bytes]:
        """Return the pieces. An empty piece would mean the end, so there is none."""
        places = sorted({min(cut * len(self.data) // POSITIONS, len(self.data)) for cut in self.cuts})
        for start, end in zip([0, *places], [*places, len(self.data)], strict=True):
            if start < end:
                yield self.data[start:end]


def _inputs(goods: Sequence[bytes]) -> st.SearchStrategy[Received]:
    messages = sorted({text for good in goods for text in good.split(b"\0") if text})
    values: list[Any] = []
    for message in messages:
        with contextlib.suppress(ValueError, RecursionError):
            values.append(json.loads(message))
    damaged_messages = st.lists(damaged_json(values).map(encode_json), min_size=1, max_size=3)
    return st.builds(
        Received,
        damaged(goods) | damaged_messages.map(lambda texts: b"".join(text + b"\0" for text in texts)),
        st.lists(st.integers(0, POSITIONS - 1), max_size=PIECES_MAX).map(tuple),
        st.lists(st.integers(0, FDS_MAX), max_size=PIECES_MAX).map(tuple),
        st.none() | st.integers(0, PIECES_MAX),
    )


def _of_file(data: bytes) -> Iterator[Received]:
    yield Received(data)
    yield Received(data, tuple(number * 2048 for number in range(32)))
    yield Received(data, fds=(FDS_MAX,))
    yield Received(data, (POSITIONS // 2,), (1, 2), 1)


def _examine(received: Received, role: Role) -> str:
    before = len(os.listdir("/proc/self/fd"))
    with contextlib.closing(Connection(role)) as connection:
        if role is Role.CLIENT:
            for number in range(CALLS):
                connection.send_call("a.B", more=bool(number % 2))
        outcomes: set[str] = set()
        try:
            for number, piece in enumerate(received.pieces()):
                count = received.fds[number] if number < len(received.fds) else 0
                fds = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(count)]
                connection.receive_data(piece, fds, truncated=number == received.truncated)
                outcomes |= set(_events(connection))
            connection.receive_data(b"")
            outcomes |= set(_events(connection))
        except ProtocolError:
            outcomes.add("closed")
    after = len(os.listdir("/proc/self/fd"))
    assert before == after, f"{after - before} file descriptors leaked"
    return next((word for word in ("closed", "refused", "taken") if word in outcomes), "unfinished")


def _events(connection: Connection) -> Iterator[str]:
    while not isinstance(event := connection.next_event(), Wait):
        for fd in connection.take_fds():
            os.close(fd)
        if isinstance(event, CallMessage):
            yield _answered(connection, event)
        else:
            yield _understood(event)


def _answered(connection: Connection, call: CallMessage) -> str:
    """Do what a server does up to the handler; its reply must be encodable."""
    decoder = _DECODERS.get(call.method)
    error: str | None = None
    parameters: Mapping[str, Any] = {"method": call.method}
    if decoder is None:
        error = "org.varlink.service.MethodNotFound"
    else:
        try:
            decode_parameters(call.parameters, decoder)
        except msgspec.ValidationError as exc:
            error, parameters = "org.varlink.service.InvalidParameter", {"parameter": invalid_field(exc)}
    if call.oneway:
        connection.oneway_done()
    elif error is None:
        connection.send_reply(bytes(call.parameters))
    else:
        connection.send_error(error, msgspec.json.encode(parameters))
    while (chunk := connection.outgoing()) is not None:
        text = bytes(chunk[0])
        connection.sent(len(text))
        assert text.endswith(b"\0"), text
        assert isinstance(json.loads(text[:-1]), dict), text
    return "taken" if error is None else "refused"


def _understood(reply: ReplyMessage) -> str:
    """Do what a client does with a reply."""
    parameters = decode_parameters(reply.parameters, _OBJECT)
    if isinstance(reply.error, str):
        str(error_from_reply(reply.error, parameters, _ERRORS))
        return "refused"
    return "taken"


SERVER = Target("calls", _inputs(corpus("calls")), lambda each: _examine(each, Role.SERVER), _of_file)
CLIENT = Target("replies", _inputs(corpus("replies")), lambda each: _examine(each, Role.CLIENT), _of_file)
