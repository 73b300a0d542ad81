"""A service manager on a socket. It replies what PID 1 once replied, and may damage each message."""

import socket
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from jeepney.low_level import Endianness, Header, HeaderFields, Message, MessageType

from fuzzing.target import CORPUS

RECORDED = CORPUS / "manager"
"""Files of one message each: `reply-MEMBER`, of Get `reply-Get-PROPERTY`, of GetAll `reply-GetAll-INTERFACE`;
`error-NAME`; `signal-MEMBER`."""

_FIXED = 16
"""Size of a header up to its fields, in bytes."""

_AFTER = {
    "StartTransientUnit": ("signal-JobRemoved",),
    "StopUnit": ("signal-JobRemoved", "signal-UnitRemoved"),
}
"""Signals that follow the reply."""


class Recorded:
    """Replies as PID 1 did.

    Args:
        damage: given the number and the bytes of each thing that is to be sent; returns what is sent instead.
        each: bytes that are written at once.
    """

    def __init__(
        self, damage: Callable[[int, bytes], bytes] = lambda _, data: data, each: int = 65536
    ) -> None:
        self.path = ""
        self._damage = damage
        self._each = each
        self._count = 0

    @asynccontextmanager
    async def listening(self, directory: str) -> AsyncGenerator[None]:
        """Accept connections, one after the other."""
        self.path = f"{directory}/manager"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.setblocking(False)  # noqa: FBT003 - its only argument
            listener.bind(self.path)
            listener.listen()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve, trio.socket.from_stdlib_socket(listener))
                yield
                nursery.cancel_scope.cancel()

    async def _serve(self, listener: trio.socket.SocketType) -> None:
        while True:
            connected, _ = await listener.accept()
            with connected:
                try:
                    await self._converse(connected)
                except (ConnectionError, BrokenPipeError):
                    continue

    async def _converse(self, connected: trio.socket.SocketType) -> None:
        lines = b""
        while not lines.endswith(b"BEGIN\r\n"):
            if not (data := await connected.recv(4096)):
                return
            lines += data
        await self._send(connected, b"OK 0123\r\nAGREE_UNIX_FD\r\n")
        buffer = b""
        while data := await connected.recv(65536):
            buffer += data
            while len(buffer) >= _FIXED:
                _, _, _, _, body, _, fields = struct.unpack("<BBBBIII", buffer[:_FIXED])
                size = _FIXED + (fields + 7 & ~7) + body
                if len(buffer) < size:
                    break
                await self._answer(connected, buffer[:size])
                buffer = buffer[size:]

    async def _answer(self, connected: trio.socket.SocketType, call: bytes) -> None:
        header, _ = Header.from_buffer(call)
        member = header.fields[HeaderFields.member]
        name = f"reply-{member}"
        if member in {"Get", "GetAll"}:
            *_, asked = Message.from_buffer(call).body
            name += f"-{asked.rpartition('.')[2]}"
        path = RECORDED / name
        serial = header.serial
        await self._send(connected, _reply(path, serial) if path.exists() else _unknown(serial))
        for signal in _AFTER.get(member, ()):
            await self._send(connected, (RECORDED / signal).read_bytes())

    async def _send(self, connected: trio.socket.SocketType, data: bytes) -> None:
        data = self._damage(self._count, data)
        self._count += 1
        while data:
            data = data[await connected.send(data[: self._each]) :]


def _reply(path: Path, serial: int) -> bytes:
    message = Message.from_buffer(path.read_bytes())
    message.header.fields[HeaderFields.reply_serial] = serial
    return message.serialise(message.header.serial)


def _unknown(serial: int) -> bytes:
    fields = {
        HeaderFields.error_name: "org.freedesktop.DBus.Error.UnknownMethod",
        HeaderFields.reply_serial: serial,
    }
    return Message(Header(Endianness.little, MessageType.error, 0, 1, 0, 1, fields), ()).serialise(1)
