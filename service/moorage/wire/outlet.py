"""The writing side of an accepted connection."""

from __future__ import annotations

import errno
import socket
from functools import partial
from typing import Protocol

import msgspec
import trio

from moorage.wire.connection import Connection
from moorage.wire.deadlines import Deadlines
from moorage.wire.errors import System
from moorage.wire.places import Occupant, Unread
from moorage.wire.sockets import send_chunk

UNREAD = TimeoutError(errno.ETIMEDOUT, "its peer does not read")


class Owner(Occupant, Protocol):
    """The connection that an outlet writes for."""

    @property
    def trusted(self) -> bool:
        """Whether the peer is trusted."""
        ...

    @property
    def refusal(self) -> System | None:
        """The answer to its only call, if the connection is refused."""
        ...

    def fail(self, error: Exception) -> None:
        """End the connection because of an error."""
        ...


class Unwritten(msgspec.Struct, frozen=True):
    """What all outlets of a server share.

    Attributes:
        deadlines: calls back when a peer takes too long.
        unread: counts the replies that users have not read.
        stall_seconds: how long a peer may leave replies unread.
    """

    deadlines: Deadlines
    unread: Unread[Owner]
    stall_seconds: float


class Outlet:
    """Sends queued replies, and bounds how long they may stay unread.

    Args:
        connection: has the replies.
        connected: non-blocking socket, owned by the connection's link.
        unwritten: the server's part.

    Attributes:
        stalled: the peer has to read before more can be written.
    """

    __slots__ = ("_connection", "_socket", "_unwritten", "_waits", "_written", "stalled")

    def __init__(self, connection: Connection, connected: socket.socket, unwritten: Unwritten) -> None:
        self.stalled = False
        self._waits = False
        self._connection = connection
        self._socket = connected
        self._unwritten = unwritten
        self._written: trio.Event | None = None

    @property
    def at_rest(self) -> bool:
        """Whether it waits neither for the peer to read, nor for room to go on."""
        return not (self.stalled or self._waits)

    def flush(self, owner: Owner) -> bool:
        """Write the queued replies; return whether nothing is left.

        Raises:
            OSError: the peer is gone.
        """
        connection = self._connection
        progress = False
        while (chunk := connection.outgoing()) is not None:
            try:
                count = send_chunk(self._socket, *chunk)
            except BlockingIOError:
                self._stall(owner, progress=progress)
                return False
            connection.sent(count)
            progress = True
        if self.stalled:
            self.stalled = False
            self._unwritten.deadlines.clear((owner, "unread"))
            self._note_unread(owner, 0)
        if self._written is not None:
            self._written.set()
        return True

    def end_turn(self, owner: Owner, *, more: bool) -> bool:
        """Write the queued replies; return whether anything is left to do as soon as the socket has room.

        Args:
            owner: the connection.
            more: there is, even if all of them are written. The socket may not have room all the same: one that takes
                a little more is not ready (unix_writable() of the kernel), and its peer may never read.

        Raises:
            OSError: the peer is gone.
        """
        if not self.flush(owner):
            return True
        if more:
            self._waits = True
            unwritten = self._unwritten
            unwritten.deadlines.set((owner, "room"), unwritten.stall_seconds, partial(owner.fail, UNREAD))
        elif self._waits:
            self._has_room(owner)
        return more

    def _has_room(self, owner: Owner) -> None:
        if self._waits:
            self._waits = False
            self._unwritten.deadlines.clear((owner, "room"))

    async def wait_written(self) -> None:
        """Return when all queued replies are written; the caller has seen that some are."""
        self._written = trio.Event()
        await self._written.wait()
        self._written = None

    def close(self, owner: Owner) -> None:
        """Note that nothing is written any more."""
        self._has_room(owner)
        self._unwritten.deadlines.clear((owner, "unread"))
        self._note_unread(owner, 0)

    def _stall(self, owner: Owner, *, progress: bool) -> None:
        self._has_room(owner)
        # Each byte that the peer reads renews its deadline. A connection that is refused has one of its own.
        if owner.refusal is None and (progress or not self.stalled):
            self.stalled = True
            unwritten = self._unwritten
            unwritten.deadlines.set((owner, "unread"), unwritten.stall_seconds, partial(owner.fail, UNREAD))
        self._note_unread(owner, self._connection.queued)

    def _note_unread(self, owner: Owner, size: int) -> None:
        if owner.trusted:
            return
        worst = self._unwritten.unread.note(owner, size)
        if worst is not None:
            # Later, because it may be in the middle of its own turn.
            self._unwritten.deadlines.set((worst, "unread"), 0, partial(worst.fail, UNREAD))
