"""The process at the other end of a Unix socket."""

from __future__ import annotations

import os
import socket
import struct

import msgspec

from moorage.kernel.process import ProcessGone, ProcessId, process_id

# asm-generic/socket.h; not in Python's socket module before 3.14
_SO_PEERPIDFD = getattr(socket, "SO_PEERPIDFD", 77)
_UCRED = struct.Struct("iII")


class Peer(msgspec.Struct, frozen=True):
    """Who is at the other end of a Unix socket, as the kernel recorded it when the connection was made (unix(7)).

    Attributes:
        pid: 0 where it is not visible in this PID namespace.
        uid: effective uid.
        gid: effective gid.
    """

    pid: int
    uid: int
    gid: int
    _socket: socket.socket
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


def peer_of(connection: socket.socket) -> Peer:
    """Return the peer of a connected Unix stream socket (SO_PEERCRED).

    The connection must stay open for as long as :meth:`Peer.pidfd` is of use.
    """
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid, uid, gid, connection)
