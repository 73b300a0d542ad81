"""The other end of a link over D-Bus, which a test plays on a real socket."""

from __future__ import annotations

import array
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio
from jeepney.low_level import Endianness, Header, HeaderFields, Message, MessageType


def message(
    kind: MessageType,
    serial: int,
    body: tuple[object, ...] = (),
    signature: str = "",
    endianness: Endianness = Endianness.little,
    **fields: str | int,
) -> bytes:
    all_fields: dict[HeaderFields, str | int] = {HeaderFields[name]: value for name, value in fields.items()}
    if signature:
        all_fields[HeaderFields.signature] = signature
    return Message(Header(endianness, kind, 0, 1, 0, serial, all_fields), body).serialise(serial)


class Peer:
    """The other end: reads whole messages, writes what it is told."""

    def __init__(self, sock: socket.socket | trio.socket.SocketType) -> None:
        self.sock = trio.socket.from_stdlib_socket(sock) if isinstance(sock, socket.socket) else sock
        self._buffer = b""
        self.fds: list[int] = []

    async def send(self, data: bytes, *, each: int | None = None) -> None:
        step = each or len(data) or 1
        for at in range(0, len(data), step):
            chunk = data[at : at + step]
            while chunk:
                chunk = chunk[await self.sock.send(chunk) :]

    async def receive(self) -> Message:
        """The next message, which must be whole and well-formed."""
        while True:
            if len(self._buffer) >= 16:
                _, _, _, _, body, _, fields = struct.unpack("<BBBBIII", self._buffer[:16])
                size = 16 + (fields + 7 & ~7) + body
                if len(self._buffer) >= size:
                    data, self._buffer = self._buffer[:size], self._buffer[size:]
                    header, _ = Header.from_buffer(data)
                    count = header.fields.get(HeaderFields.unix_fds, 0)
                    fds, self.fds = self.fds[:count], self.fds[count:]
                    return Message.from_buffer(data, fds)
            data, ancillary, flags, _ = await self.sock.recvmsg(65536, socket.CMSG_SPACE(64 * 4))
            assert not flags & socket.MSG_CTRUNC
            for _, _, raw in ancillary:
                self.fds += array.array("i", raw)
            assert data, "closed by the link"
            self._buffer += data


@asynccontextmanager
async def accepted(listener: trio.socket.SocketType, *, each: int | None = None) -> AsyncGenerator[Peer]:
    """The peer of the next link, authenticated.

    Args:
        listener: a socket that listens.
        each: in how many bytes at once it is let in.
    """
    sock, _ = await listener.accept()
    with sock:
        peer = Peer(sock)
        lines = b""
        while not lines.endswith(b"\r\nBEGIN\r\n"):
            lines += await sock.recv(4096)
        await peer.send(b"OK 0123\r\nAGREE_UNIX_FD\r\n", each=each)
        yield peer
