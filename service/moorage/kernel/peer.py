"""The process at the other end: of a Unix socket, or of a message bus."""

from __future__ import annotations

import os
import socket
import struct
from functools import lru_cache

import msgspec

from moorage.kernel.process import ProcessGone, ProcessId, pid_of, process_id

# asm-generic/socket.h; not in Python's socket module before 3.14
_SO_PEERPIDFD = getattr(socket, "SO_PEERPIDFD", 77)
_UCRED = struct.Struct("iII")

_NUMBERS_MAX = 256
"""Numbers of users and processes of which there is one object. Of a crowd each has many connections, and an object of
32 bytes for each of them would be a tenth of what a connection takes."""

_same = lru_cache(maxsize=_NUMBERS_MAX)(int)


class Peer(msgspec.Struct, frozen=True, gc=False):
    """Who is at the other end of a Unix socket, as the kernel recorded it when the connection was made (unix(7)).

    Attributes:
        pid: 0 where it is not visible in this PID namespace.
        uid: effective uid.
        gid: effective gid; -1 where it is not known.
    """

    pid: int
    uid: int
    gid: int
    _socket: socket.socket | None
    _known: ProcessId | None = None

    def pidfd(self) -> int:
        """Open the peer (SO_PEERPIDFD, Linux 6.5).

        The socket holds the kernel's own reference to the process since connect(2), so that asking late is as safe as
        asking early, and costs no file descriptor for those who never need it.

        Returns:
            A pidfd, close-on-exec, owned by the caller.

        Raises:
            ProcessGone: it has been reaped.
            OSError: no file descriptor is left (EMFILE, ENFILE).
        """
        if self._socket is None:
            raise ProcessGone(self.pid)
        try:
            return self._socket.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except (ProcessLookupError, ValueError):
            raise ProcessGone(self.pid) from None
        except OSError as error:
            # EINVAL, ENODATA: what kernels before 6.16 say of a peer that has been reaped.
            if error.errno in {22, 61}:
                raise ProcessGone(self.pid) from None
            raise

    def process_id(self) -> ProcessId:
        """Name the peer. The kernel is asked once; who has been named may have ended since.

        Raises:
            ProcessGone: it had ended when it was first asked for.
            NotAProcess: it is not visible in this PID namespace.
            OSError: no file descriptor is left.
        """
        if self._known is not None:
            return self._known
        pidfd = self.pidfd()
        try:
            known = process_id(pidfd)
        finally:
            os.close(pidfd)
        msgspec.structs.force_setattr(self, "_known", known)
        return known


class PinnedPeer(Peer, frozen=True, gc=False):
    """A peer that somebody has pinned by a pidfd: a message bus, for those who are on it.

    The pidfd must stay open for as long as :meth:`Peer.pidfd` is of use.
    """

    _pidfd: int = -1

    def pidfd(self) -> int:
        """Open the peer.

        Returns:
            A pidfd, close-on-exec, owned by the caller.

        Raises:
            OSError: no file descriptor is left (EMFILE).
        """
        return os.dup(self._pidfd)


def pinned_peer(pidfd: int, uid: int) -> PinnedPeer:
    """Return the peer that a pidfd stands for.

    Args:
        pidfd: its pidfd, borrowed.
        uid: effective uid that it had when it came.

    Raises:
        ProcessGone: it has been reaped.
        NotAProcess: it is not visible in this PID namespace.
    """
    return PinnedPeer(pid_of(pidfd), uid, -1, None, None, pidfd)


def peer_of(connection: socket.socket) -> Peer:
    """Return the peer of a connected Unix stream socket (SO_PEERCRED).

    The connection must stay open for as long as :meth:`Peer.pidfd` is of use.
    """
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(found)
    return Peer(_same(pid), _same(uid), gid, connection)
