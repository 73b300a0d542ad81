"""Bytes and file descriptors over a Unix stream socket (unix(7), cmsg(3)), never waiting."""

from __future__ import annotations

import socket
from array import array
from collections.abc import Sequence

from moorage.wire.connection import FDS_MAX, READ_SIZE, Connection, close_all

# As plain numbers: the arithmetic of flag enums takes longer than the system call.
_CTRUNC = int(socket.MSG_CTRUNC)
_CMSG_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_NOSIGNAL = int(socket.MSG_NOSIGNAL)
_ANCILLARY_SIZE = socket.CMSG_SPACE(FDS_MAX * array("i").itemsize)


def receive(connected: socket.socket, connection: Connection) -> None:
    """Read once, into a connection.

    Raises:
        BlockingIOError: there is nothing for now.
        OSError: the peer is gone.
        ProtocolError: the peer broke the protocol.
    """
    data, ancillary, flags, _ = connected.recvmsg(READ_SIZE, _ANCILLARY_SIZE, _CMSG_CLOEXEC)
    if not ancillary and not flags & _CTRUNC:
        connection.receive_data(data)
        return
    fds = array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & _CTRUNC:
        # Which ones were lost is not known, so neither is the place in the list of those that were not.
        close_all(fds)
        connection.receive_data(data, truncated=True)
    else:
        connection.receive_data(data, fds.tolist())


def send_chunk(connected: socket.socket, data: bytes | memoryview, fds: Sequence[int]) -> int:
    """Write once; return how many bytes were taken.

    Raises:
        BlockingIOError: none for now.
        OSError: the peer is gone.
    """
    if not fds:
        return connected.send(data, _NOSIGNAL)
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))
    return connected.sendmsg([data], [rights], _NOSIGNAL)
