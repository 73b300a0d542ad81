"""Bytes and file descriptors over a Unix stream socket (unix(7), cmsg(3)), never waiting.

File descriptors are received only from peers that may send some: see :class:`Inlet`.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import termios
from array import array
from collections.abc import Callable, Iterable, Sequence

from moorage.wire.connection import FDS_MAX, READ_SIZE, Connection
from moorage.wire.output import close_all

# As plain numbers: the arithmetic of flag enums takes longer than the system call.
_CTRUNC = int(socket.MSG_CTRUNC)
_CMSG_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_NOSIGNAL = int(socket.MSG_NOSIGNAL)
_PEEK = int(socket.MSG_PEEK)
_ANCILLARY_SIZE = socket.CMSG_SPACE(FDS_MAX * array("i").itemsize)
_SO_PASSRIGHTS = 83  # include/uapi/asm-generic/socket.h, Linux 6.16; not in Python's socket module

USER_SEND_BUFFER = 32 * 1024
"""Bytes of replies that the kernel keeps for a user's connection (it doubles the figure, socket(7)): what a thousand
connections of those that never read may take, with the default of 208 KiB, is 200 MiB."""


def receive(
    connected: socket.socket, connection: Connection, close: Callable[[Iterable[int]], None] = close_all
) -> None:
    """Read once, into a connection, with the file descriptors that come.

    Args:
        connected: the socket.
        connection: what it is read for.
        close: closes file descriptors that are of no use.

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
        close(fds)
        connection.receive_data(data, truncated=True)
    else:
        connection.receive_data(data, fds.tolist())


class Inlet:
    """The reading side of an accepted connection.

    Who receives a file descriptor has to close it, and the file decides how long that takes
    (:mod:`moorage.wire.disposal`). Of a peer that may not send any none is opened: what has come is looked at first
    (MSG_PEEK), without room for file descriptors, so that the kernel tells that there are some (MSG_CTRUNC) and leaves
    them in the queue. They end with the socket. Such a peer names processes by their numbers, with ``pidfdId``.

    Args:
        connected: non-blocking socket; the inlet owns it.
        takes_fds: whether the peer may send file descriptors.

    Attributes:
        spent: nothing more can be read: what comes next is, or came with, file descriptors that are not taken.
    """

    __slots__ = ("_clean", "_sealed", "_socket", "_takes_fds", "spent")

    def __init__(self, connected: socket.socket, *, takes_fds: bool) -> None:
        self.spent = False
        self._socket = connected
        self._takes_fds = takes_fds
        self._sealed = False  # the kernel lets the peer send no file descriptors
        self._clean = False  # and none were sent before
        if not takes_fds:
            with contextlib.suppress(OSError):
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, USER_SEND_BUFFER)
                # Or a byte out of band is dropped by the next read, and the file descriptors with it.
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
                connected.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)  # ENOPROTOOPT before Linux 6.16
                self._sealed = True

    def receive(self, connection: Connection, close: Callable[[Iterable[int]], None]) -> None:
        """Read once, into a connection.

        Args:
            connection: see :func:`receive`.
            close: closes file descriptors that are of no use.

        Raises:
            BlockingIOError: there is nothing for now.
            OSError: the peer is gone.
            ProtocolError: the peer broke the protocol.
        """
        if self._takes_fds:
            receive(self._socket, connection, close)
            return
        if self._clean:
            connection.receive_data(self._socket.recv(READ_SIZE))
            return
        try:
            data, _, flags, _ = self._socket.recvmsg(READ_SIZE, 0, _PEEK)
        except BlockingIOError:
            self._clean = self._sealed
            raise
        if flags & _CTRUNC:
            self.spent = True
            connection.receive_data(data, truncated=True)
            return
        if data:
            self._socket.recv(len(data))
        connection.receive_data(data)

    def close(self, dispose: Callable[[Iterable[int]], None]) -> None:
        """Close the socket.

        Args:
            dispose: closes it where file descriptors are in its queue, which are closed with it.
        """
        if not self._clean and _may_hold_fds(self._socket):
            dispose((self._socket.detach(),))
        else:
            self._socket.close()


def _may_hold_fds(connected: socket.socket) -> bool:
    """Whether something lies in the queue of a socket; after this nothing more comes."""
    waiting = array("i", [0])
    try:
        connected.shutdown(socket.SHUT_RDWR)
        fcntl.ioctl(connected.fileno(), termios.FIONREAD, waiting)  # SIOCINQ of unix(7)
    except OSError:
        return True
    return waiting[0] != 0


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
