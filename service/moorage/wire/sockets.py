"""Bytes and file descriptors over a Unix stream socket (unix(7), cmsg(3)), without waiting."""

from __future__ import annotations

import contextlib
import enum
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


Received = tuple[bytes, Sequence[int], bool]
"""The result of one recvmsg(2), as `Connection.receive_data()` takes it in: the bytes; file descriptors, owned by
whoever has this; and whether some were lost."""


def _received(connected: socket.socket, close: Callable[[Iterable[int]], None]) -> Received:
    """Read once, bytes and file descriptors. See :func:`receive`."""
    data, ancillary, flags, _ = connected.recvmsg(READ_SIZE, _ANCILLARY_SIZE, _CMSG_CLOEXEC)
    if not ancillary and not flags & _CTRUNC:
        return data, (), False
    fds = array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & _CTRUNC:
        # We cannot know which ones were lost, so the indices of the others are unknown too.
        close(fds)
        return data, (), True
    return data, fds.tolist(), False


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
    data, fds, truncated = _received(connected, close)
    connection.receive_data(data, fds, truncated=truncated)


class Rights(enum.Enum):
    """What becomes of file descriptors that a peer sends.

    Attributes:
        TAKEN: they are received.
        LEFT: they are left in the queue.
        SEALED: the kernel keeps the peer from sending any; what it had sent before is left in the queue.
        CLEAN: the same, and it had sent none.
        SPENT: the next bytes have some that are left, so that nothing more can be read.
    """

    TAKEN = enum.auto()
    LEFT = enum.auto()
    SEALED = enum.auto()
    CLEAN = enum.auto()
    SPENT = enum.auto()


_TAKEN, _CLEAN, _SPENT = Rights.TAKEN, Rights.CLEAN, Rights.SPENT


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
        rights: what becomes of file descriptors that the peer sends.
    """

    __slots__ = ("_socket", "rights")

    def __init__(self, connected: socket.socket, *, takes_fds: bool) -> None:
        self._socket = connected
        if takes_fds:
            self.rights = _TAKEN
            return
        self.rights = Rights.LEFT
        with contextlib.suppress(OSError):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, USER_SEND_BUFFER)
            # Otherwise the next read drops a byte sent out of band, and with it the file descriptors.
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            connected.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)  # ENOPROTOOPT before Linux 6.16
            self.rights = Rights.SEALED

    def receive(self, close: Callable[[Iterable[int]], None]) -> Received:
        """Read once.

        Args:
            close: closes file descriptors that cannot be used.

        Raises:
            BlockingIOError: there is nothing to read now.
            OSError: the peer is gone.
        """
        rights = self.rights
        if rights is _TAKEN:
            return _received(self._socket, close)
        if rights is _CLEAN:
            return self._socket.recv(READ_SIZE), (), False
        try:
            data, _, flags, _ = self._socket.recvmsg(READ_SIZE, 0, _PEEK)
        except BlockingIOError:
            if rights is Rights.SEALED:
                self.rights = _CLEAN
            raise
        if flags & _CTRUNC:
            self.rights = _SPENT
            return data, (), True
        if data:
            self._socket.recv(len(data))
        return data, (), False

    def close(self, dispose: Callable[[Iterable[int]], None]) -> None:
        """Close the socket.

        Args:
            dispose: closes it if its queue may hold file descriptors, which are closed with it.
        """
        if self.rights is not _CLEAN and _may_hold_fds(self._socket):
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
