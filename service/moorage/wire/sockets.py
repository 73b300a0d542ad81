"""Bytes and file descriptors over a Unix stream socket (unix(7), cmsg(3)), without waiting."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import termios
from array import array
from collections.abc import Callable, Iterable, Sequence

from moorage.wire.connection import FDS_MAX, READ_SIZE, Connection
from moorage.wire.output import close_all

# Plain numbers: arithmetic with flag enums takes longer than the system call.
_CTRUNC = int(socket.MSG_CTRUNC)
_CMSG_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_NOSIGNAL = int(socket.MSG_NOSIGNAL)
_PEEK = int(socket.MSG_PEEK)
_ANCILLARY_SIZE = socket.CMSG_SPACE(FDS_MAX * array("i").itemsize)
_SO_PASSRIGHTS = 83  # include/uapi/asm-generic/socket.h, Linux 6.16; not in Python's socket module

USER_SEND_BUFFER = 32 * 1024
"""Bytes of replies that the kernel buffers for a user's connection (it doubles the figure, socket(7)). With the
default of 208 KiB, a thousand connections whose peers never read would take 200 MiB."""


def receive(
    connected: socket.socket, connection: Connection, close: Callable[[Iterable[int]], None] = close_all
) -> None:
    """Read once, into a connection, bytes and file descriptors.

    Args:
        connected: the socket.
        connection: the connection that takes them in.
        close: closes file descriptors that cannot be used.

    Raises:
        BlockingIOError: there is nothing to read now.
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
        # We cannot know which ones were lost, so the indices of the others are unknown too.
        close(fds)
        connection.receive_data(data, truncated=True)
    else:
        connection.receive_data(data, fds.tolist())


class Inlet:
    """The reading side of an accepted connection.

    A file descriptor that is received has to be closed, and the file decides how long that takes
    (:mod:`moorage.wire.disposal`). So none is received from a peer that may not send any: the input is first peeked at
    (MSG_PEEK) without room for file descriptors. The kernel then reports that there are some (MSG_CTRUNC) and leaves
    them in the queue, where they stay until the socket is closed. Such a peer names processes by their numbers, with
    ``pidfdId``.

    Args:
        connected: non-blocking socket; the inlet owns it.
        takes_fds: whether the peer may send file descriptors.

    Attributes:
        spent: nothing more can be read, because the next bytes have file descriptors that are not accepted.
    """

    __slots__ = ("_clean", "_sealed", "_socket", "_takes_fds", "spent")

    def __init__(self, connected: socket.socket, *, takes_fds: bool) -> None:
        self.spent = False
        self._socket = connected
        self._takes_fds = takes_fds
        self._sealed = False  # the kernel keeps the peer from sending file descriptors
        self._clean = False  # and the peer had not sent any before
        if not takes_fds:
            with contextlib.suppress(OSError):
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, USER_SEND_BUFFER)
                # Otherwise the next read drops a byte sent out of band, and with it the file descriptors.
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
                connected.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)  # ENOPROTOOPT before Linux 6.16
                self._sealed = True

    def receive(self, connection: Connection, close: Callable[[Iterable[int]], None]) -> None:
        """Read once, into a connection.

        Args:
            connection: see :func:`receive`.
            close: closes file descriptors that cannot be used.

        Raises:
            BlockingIOError: there is nothing to read now.
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
            dispose: closes it if its queue may hold file descriptors, which are closed with it.
        """
        if not self._clean and _may_hold_fds(self._socket):
            dispose((self._socket.detach(),))
        else:
            self._socket.close()


def _may_hold_fds(connected: socket.socket) -> bool:
    """Shut a socket down; return whether there is anything in its queue."""
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
        BlockingIOError: the socket takes nothing now.
        OSError: the peer is gone.
    """
    if not fds:
        return connected.send(data, _NOSIGNAL)
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))
    return connected.sendmsg([data], [rights], _NOSIGNAL)
