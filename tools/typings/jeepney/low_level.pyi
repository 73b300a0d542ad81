import array
from collections.abc import Mapping, Sequence
from enum import Enum, IntEnum, IntFlag
from typing import Any, Protocol

class Endianness(Enum):
    little = 1
    big = 2

class MessageType(Enum):
    method_call = 1
    method_return = 2
    error = 3
    signal = 4

class MessageFlag(IntFlag):
    no_reply_expected = 1
    no_auto_start = 2
    allow_interactive_authorization = 4

class HeaderFields(IntEnum):
    path = 1
    interface = 2
    member = 3
    error_name = 4
    reply_serial = 5
    destination = 6
    sender = 7
    signature = 8
    unix_fds = 9

class Type(Protocol):
    def parse_data(
        self, buf: bytes, pos: int, endianness: Endianness, fds: Sequence[int] = ...
    ) -> tuple[Any, int]: ...

class Struct:
    fields: list[Type]
    def parse_data(
        self, buf: bytes, pos: int, endianness: Endianness, fds: Sequence[int] = ...
    ) -> tuple[tuple[Any, ...], int]: ...

def parse_signature(sig: list[str]) -> Type: ...

class Header:
    endianness: Endianness
    message_type: MessageType
    flags: MessageFlag
    protocol_version: int
    body_length: int
    serial: int
    fields: dict[HeaderFields, Any]
    def __init__(
        self,
        endianness: Endianness,
        message_type: MessageType,
        flags: int,
        protocol_version: int,
        body_length: int,
        serial: int,
        fields: Mapping[HeaderFields, Any],
    ) -> None: ...
    @classmethod
    def from_buffer(cls, buf: bytes) -> tuple[Header, int]: ...

class Message:
    header: Header
    body: tuple[Any, ...]
    def __init__(self, header: Header, body: tuple[Any, ...]) -> None: ...
    @classmethod
    def from_buffer(cls, buf: bytes, fds: Sequence[int] = ...) -> Message: ...
    def serialise(self, serial: int | None = ..., fds: array.array[int] | None = ...) -> bytes: ...

class Parser:
    def feed(self, data: bytes) -> list[Message]: ...
