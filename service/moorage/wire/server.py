"""A varlink service on listening sockets.

All connections are handled by one task (:mod:`moorage.kernel.poller`): read, decode, and where the handler does not
wait, answer at once. Only a handler that waits gets a task of its own.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from collections.abc import Sequence
from functools import partial

import msgspec
import trio

from moorage.kernel.peer import Peer, peer_of
from moorage.kernel.poller import Readiness
from moorage.wire.deadlines import Deadlines
from moorage.wire.dispatch import Service
from moorage.wire.disposal import Disposal
from moorage.wire.errors import System
from moorage.wire.link import Link, Surroundings
from moorage.wire.memory import give_back
from moorage.wire.places import Places, Unread
from moorage.wire.sockets import Inlet

logger = logging.getLogger(__name__)

NOBODY = 65534
"""Whose a connection is taken to be that cannot be looked at (overflowuid, user_namespaces(7))."""

ACCEPTS_PER_TURN = 16
"""Connections to accept before those that exist get their turn again."""


CROWD_BATCH = 4
"""Connections of users that get a turn (link.USER_TURN_SECONDS) before everybody else gets theirs: what a caller that
is trusted waits for at most, each time that it has to wait."""

CROWD_PAUSE = 3.0
"""For how long users get no turn while a call of a trusted caller is under way, as a multiple of the time that their
last ones took. They have a quarter of the time then, however many they are."""


CROWD = 64
"""Connections at a time of which half have to go until memory is given back."""

CROWD_GONE_SECONDS = 1.0
"""How long after that: the other half goes soon, as a rule."""


class Limits(msgspec.Struct, frozen=True):
    """What the peers may cost. Those who are trusted (link.Surroundings) have limits of their own.

    Attributes:
        connections: of users in all (VARLINK_DEFAULT_CONNECTIONS_MAX of sd-varlink.c).
        connections_per_uid: of one user (VARLINK_DEFAULT_CONNECTIONS_PER_UID_MAX).
        trusted_connections: of all that are trusted: a place each for the launchers of some thousand machines, that
            hold leases. With all others, and a pidfd for each machine, below LimitNOFILE= of moored.service.
        unread: bytes of replies to users that they may leave unread, in all.
        refusals: connections over the limit that may wait at the same time for being told so; further ones are closed
            without a word.
        refusal_seconds: how long such a connection may take to send the call that is answered with the reason.
        stall_seconds: how long a peer may leave what it asked for unread (VARLINK_DEFAULT_TIMEOUT_USEC, after which
            sd-varlink gives up on the other end).
        accept_retry_seconds: pause of the listeners when there is not even a file descriptor to refuse with
            (trio.serve_listeners has the same figure, and the reasons).
    """

    connections: int = 4096
    connections_per_uid: int = 128
    trusted_connections: int = 16 * 1024
    unread: int = 32 * 1024 * 1024
    refusals: int = 64
    refusal_seconds: float = 1.0
    stall_seconds: float = 45.0
    accept_retry_seconds: float = 0.1


class Server:
    """Serves one service.

    Args:
        service: what to serve.
        limits: what the peers may cost.
        trusted: uids whose connections are not counted with those of users; by default root's and our own.

    Attributes:
        service: see above.
        limits: see above.
        last_activity: when the last connection came or ended, in seconds of trio.current_time().
    """

    def __init__(
        self, service: Service, *, limits: Limits | None = None, trusted: frozenset[int] | None = None
    ) -> None:
        self.service = service
        self.limits = limits or Limits()
        self.last_activity = 0.0
        self._links: set[Link] = set()
        self._trusted = frozenset({0, os.geteuid()}) if trusted is None else trusted
        self._users = Places[Link](self.limits.connections, self.limits.connections_per_uid)
        self._refused = 0
        self._most = 0  # connections at a time, since memory was last given back
        self._readiness = Readiness()
        self._crowd = Readiness(CROWD_BATCH)
        self._listeners: list[socket.socket] = []
        self._reserve: int | None = None
        self._short_of_fds = False  # said so already
        self._surroundings: Surroundings | None = None
        self._disposal: Disposal | None = None
        self._deadlines = Deadlines()
        self._quiet = trio.Event()
        self._stopped = trio.Event()

    @property
    def connections(self) -> int:
        """Connections that exist, without those about to be refused."""
        return len(self._links) - self._refused

    @property
    def calls_running(self) -> int:
        """Calls that are being handled."""
        return sum(link.busy for link in self._links)

    async def serve(
        self,
        listeners: Sequence[socket.socket],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until :meth:`stop` or the end of :meth:`drain`.

        Args:
            listeners: listening Unix stream sockets. They are made non-blocking, and stay open.
            task_status: told once connections are accepted.

        Raises:
            OSError: a listener cannot be watched.
        """
        self.last_activity = trio.current_time()
        self._reserve = _open_reserve()
        try:
            async with trio.open_nursery() as tasks:
                disposal = self._disposal = Disposal(tasks)
                self._surroundings = Surroundings(
                    service=self.service,
                    readiness=self._readiness,
                    crowd=self._crowd,
                    deadlines=self._deadlines,
                    disposal=disposal,
                    trusted=self._trusted,
                    unread=Unread[Link](self.limits.unread),
                    tasks=tasks,
                    stall_seconds=self.limits.stall_seconds,
                    ended=self._ended,
                )
                for listener in listeners:
                    listener.setblocking(False)  # noqa: FBT003  # its only argument
                    self._readiness.add(listener.fileno(), select.EPOLLIN, partial(self._accept, listener))
                    self._listeners.append(listener)
                tasks.start_soon(self._readiness.run)
                tasks.start_soon(self._crowd.run, self._pause)
                tasks.start_soon(self._deadlines.run)
                task_status.started()
                await self._stopped.wait()
                tasks.cancel_scope.cancel()
        finally:
            self._stop_listening()
            if self._disposal is not None:
                self._disposal.end()
            for link in list(self._links):
                link.close()
            if self._disposal is not None:
                self._disposal.finish()
            self._readiness.close()
            self._crowd.close()
            if self._reserve is not None:
                os.close(self._reserve)
                self._reserve = None

    def stop(self) -> None:
        """Stop at once: calls under way are cancelled, connections closed."""
        self._stopped.set()

    async def drain(self, grace: float) -> None:
        """Stop accepting, let the calls under way end, then stop.

        Args:
            grace: seconds that they are given.
        """
        self._stop_listening()
        # Connections that wait in the backlog stay there: of an activated socket, the next instance gets them.
        for link in list(self._links):
            link.finish()
        with trio.move_on_after(grace):
            while self._links:
                self._quiet = trio.Event()
                await self._quiet.wait()
        self.stop()

    def _pause(self, seconds: float) -> float:
        """Return for how long users get no turn after one of so many seconds."""
        assert self._surroundings is not None
        return CROWD_PAUSE * seconds if self._surroundings.trusted_busy else 0.0

    # -- accepting

    def _accept(self, listener: socket.socket, events: int) -> None:
        del events
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connected, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE}:
                    self._accept_with_reserve(listener, error.errno)
                    return
                if error.errno not in {errno.ECONNABORTED, errno.EPERM}:
                    logger.warning("Failed to accept a connection, trying again: %s", error)
                    self._pause_listening(self.limits.accept_retry_seconds)
                    return
                # These two are about a connection that is gone again (accept(2)).
            else:
                self._short_of_fds = False
                self._admit(connected, None)

    def _admit(self, connected: socket.socket, refusal: System | None) -> None:
        try:
            connected.setblocking(False)  # noqa: FBT003  # its only argument
            peer = peer_of(connected)
        except OSError as error:
            logger.debug("Failed to look at a new connection, ignoring: %s", error)
            self._discard(connected, NOBODY)
            return
        if refusal is None:
            refusal = self._refusal(peer.uid)
        if refusal is not None and self._refused >= self.limits.refusals:
            self._discard(connected, peer.uid)
            return
        self._start(connected, peer, refusal)

    def _refusal(self, uid: int) -> System | None:
        """Look for a place; make room for it if need be."""
        if uid in self._trusted:
            trusted = self.connections - len(self._users)
            return System.of(errno.EBUSY) if trusted >= self.limits.trusted_connections else None
        assert self._disposal is not None
        number, leaves = self._users.refusal(uid, *self._disposal.pending(uid))
        if leaves is not None:
            logger.debug(
                "Closing a connection of process %d to make room for another user.", leaves.peer.pid
            )
            leaves.close()
        return System.of(number) if number else None

    def _discard(self, connected: socket.socket, uid: int) -> None:
        assert self._disposal is not None
        Inlet(connected, takes_fds=False).close(partial(self._disposal.close, uid))

    def _accept_with_reserve(self, listener: socket.socket, number: int) -> None:
        # Without a file descriptor left a caller cannot even be told so, and its connection would stay at the head of
        # the backlog, where it wakes us for ever. So one is held in reserve: it is given up, the caller gets its
        # answer, and while that takes no other one is accepted.
        if self._reserve is None:
            self._pause_listening(self.limits.accept_retry_seconds)
            return
        os.close(self._reserve)
        self._reserve = None
        try:
            connected, _ = listener.accept()
        except BlockingIOError:
            # Nobody there: the kernel looks for a file descriptor before it looks for a connection.
            self._reserve = _open_reserve()
        except OSError:
            self._pause_listening(self.limits.accept_retry_seconds)
        else:
            if not self._short_of_fds:
                self._short_of_fds = True
                logger.warning(
                    "Failed to serve a connection, refusing more of them: %s", os.strerror(number)
                )
            self._pause_listening(None)
            self._admit(connected, System.of(number))
            if self._reserve is None and not self._refused:
                self._resume_listening()

    def _start(self, connected: socket.socket, peer: Peer, refusal: System | None) -> None:
        assert self._surroundings is not None
        link = Link(self._surroundings, connected, peer, refusal)
        try:
            link.start()
        except OSError as error:
            logger.warning("Failed to watch a connection: %s", error)
            return
        self._links.add(link)
        self._most = max(self._most, len(self._links))
        self.last_activity = trio.current_time()
        if refusal is None:
            if not link.trusted:
                self._users.take(link)
        else:
            self._refused += 1
            self._deadlines.set(link, self.limits.refusal_seconds, link.close)
        # Most callers have sent their call by the time that they are accepted.
        link.ready(select.EPOLLIN)

    def _ended(self, link: Link) -> None:
        self._links.discard(link)
        self._deadlines.clear(link)
        self.last_activity = trio.current_time()
        if link.refusal is None:
            if not link.trusted:
                self._users.leave(link)
        else:
            self._refused -= 1
        if self._reserve is None:
            self._resume_listening()
        if not self._links:
            self._quiet.set()
        self._note_crowd()

    def _note_crowd(self) -> None:
        """Give memory back when a crowd has gone."""
        count = len(self._links)
        if self._most >= CROWD and count <= self._most // 2:
            self._most = count
            self._deadlines.set("memory", CROWD_GONE_SECONDS, give_back)

    def _pause_listening(self, seconds: float | None) -> None:
        for listener in self._listeners:
            self._readiness.modify(listener.fileno(), 0)
        if seconds is not None:
            self._deadlines.set(self, seconds, self._resume_listening)

    def _resume_listening(self) -> None:
        if self._reserve is None:
            self._reserve = _open_reserve()
        for listener in self._listeners:
            self._readiness.modify(listener.fileno(), select.EPOLLIN)

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            self._readiness.remove(listener.fileno())
        self._listeners.clear()
        self._deadlines.clear(self)


def _open_reserve() -> int | None:
    """Return a file descriptor that stands for nothing, None where there is none left."""
    try:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            return None
        raise
