"""A server: listening sockets, each with a varlink service, and limits for all their connections together.

All connections are handled by one task (:mod:`moorage.kernel.poller`): it reads, decodes, and answers at once if the
handler does not wait. Only a handler that waits gets a task of its own.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from functools import partial

import msgspec
import trio

from moorage.kernel.peer import Peer, peer_of
from moorage.kernel.poller import Readiness
from moorage.wire.conversation import Kept
from moorage.wire.deadlines import Deadlines
from moorage.wire.disposal import Disposal
from moorage.wire.errors import System
from moorage.wire.fairness import Fairness
from moorage.wire.link import Door, Link, ServerContext
from moorage.wire.outlet import Owner, Unwritten
from moorage.wire.places import Places, Unread
from moorage.wire.service import Service
from moorage.wire.sockets import Inlet

logger = logging.getLogger(__name__)

NOBODY = 65534
"""The uid that is assumed for a connection whose peer cannot be determined (overflowuid, user_namespaces(7))."""

ACCEPTS_PER_TURN = 16
"""Connections to accept before those that exist get their turn again."""

CROWD_BATCH = 4
"""Connections of users that get a turn (link.TURN_SECONDS) before trusted callers get theirs: the longest time
that a trusted caller waits, each time that it has to wait."""


class Limits(msgspec.Struct, frozen=True):
    """Limits for the peers. Trusted ones (see :class:`~moorage.wire.fairness.Fairness`) have their own.

    Attributes:
        connections: connections of all users (VARLINK_DEFAULT_CONNECTIONS_MAX of sd-varlink.c).
        connections_per_uid: connections of one user (VARLINK_DEFAULT_CONNECTIONS_PER_UID_MAX).
        trusted_connections: connections of all trusted peers: enough for the launchers of some thousand machines, each
            of which holds a lease. Together with all others, and a pidfd for each machine, it is below LimitNOFILE= of
            moored.service.
        unread: bytes of replies that all users together may leave unread.
        refusals: connections over a limit that may wait at the same time for the answer that says so; further ones are
            closed without an answer.
        refusal_seconds: how long such a connection may take to send the call that is answered with the reason.
        stall_seconds: how long a peer may leave replies unread (VARLINK_DEFAULT_TIMEOUT_USEC, after which sd-varlink
            gives up on the other end).
        accept_retry_seconds: how long the listeners pause if there is not even a file descriptor to refuse with
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
    """Serves varlink on any number of sockets.

    Args:
        limits: limits for the peers.
        trusted: uids that are not counted and slowed down as users are; by default root's and our own.

    Attributes:
        limits: see above.
        last_activity: when the last connection began or ended that counts, in seconds of trio.current_time().
    """

    def __init__(self, *, limits: Limits | None = None, trusted: frozenset[int] | None = None) -> None:
        self.limits = limits or Limits()
        self.last_activity = 0.0
        self._links: set[Link] = set()
        self._fairness = Fairness(frozenset({0, os.geteuid()}) if trusted is None else trusted)
        self._users = Places[Link](self.limits.connections, self.limits.connections_per_uid)
        self._refused = 0
        self._aside: set[Service] = set()
        self._lookers: set[Link] = set()  # connections on listeners that are aside
        self._poller = Readiness()
        self._crowd = Readiness(CROWD_BATCH)
        self._listeners: set[socket.socket] = set()
        self._reserve: int | None = None
        self._short_of_fds = False  # this has been logged
        self._context: ServerContext | None = None
        self._disposal: Disposal | None = None
        self._deadlines = Deadlines()
        self._quiet = trio.Event()
        self._stopped = trio.Event()

    def limit(self, limits: Limits) -> None:
        """Have other limits from now on. Of the connections that there are already, none is closed for them.

        Args:
            limits: for the peers. Those for what is unread, and for how long, are the ones that the server began with.
        """
        self.limits = limits
        self._users.limit(limits.connections, limits.connections_per_uid)

    @property
    def connections(self) -> int:
        """Number of connections, without those that are being refused, and those on listeners that are aside."""
        return len(self._links) - self._refused - len(self._lookers)

    async def unconnected(self) -> None:
        """Return when there is no connection of those that :attr:`connections` counts."""
        while self.connections:
            if self._quiet.is_set():
                self._quiet = trio.Event()
            await self._quiet.wait()

    def listen(
        self, listener: socket.socket, service: Service, *, about: object = None, aside: bool = False
    ) -> None:
        """Serve a service on a socket: at once if the server runs, else as soon as it does.

        Args:
            listener: listening Unix stream socket. It is made non-blocking, and stays open.
            service: answers the calls on its connections.
            about: what these are about, for handlers (:attr:`moorage.wire.call.Call.about`).
            aside: for those who only look on: connections to this service are no activity, and no reason to go on.

        Raises:
            OSError: the socket cannot be watched.
        """
        if aside:
            self._aside.add(service)
        listener.setblocking(False)  # noqa: FBT003  # its only argument
        self._poller.add(
            listener.fileno(), select.EPOLLIN, partial(self._accept, listener, Door(service, about))
        )
        self._listeners.add(listener)

    def unlisten(self, listener: socket.socket) -> None:
        """Accept no further connection on a socket, which the caller may close then. May be called again."""
        if listener in self._listeners:
            self._listeners.remove(listener)
            self._poller.remove(listener.fileno())

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until :meth:`stop` or the end of :meth:`drain`.

        Args:
            task_status: started once connections are accepted, and those that were there already had a turn: whatever
                comes after it at a start is nothing that the first caller waits for.
        """
        self.last_activity = trio.current_time()
        self._reserve = _open_reserve()
        try:
            async with trio.open_nursery() as tasks:
                disposal = self._disposal = Disposal(tasks)
                self._context = ServerContext(
                    poller=self._poller,
                    crowd=self._crowd,
                    deadlines=self._deadlines,
                    disposal=disposal,
                    fairness=self._fairness,
                    unwritten=Unwritten(
                        self._deadlines, Unread[Owner](self.limits.unread), self.limits.stall_seconds
                    ),
                    kept=Kept(),
                    tasks=tasks,
                    give_way=self._poller.poll,
                    ended=self._ended,
                )
                tasks.start_soon(self._poller.run)
                tasks.start_soon(self._crowd.run, self._fairness.pause)
                tasks.start_soon(self._deadlines.run)
                self._poller.poll()
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
            self._poller.close()
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
            grace: seconds that the calls may take.
        """
        self._stop_listening()
        # Connections in the backlog stay there: with socket activation, the next instance accepts them.
        for link in list(self._links):
            link.finish()
        with trio.move_on_after(grace):
            while self._links:
                if self._quiet.is_set():
                    self._quiet = trio.Event()
                await self._quiet.wait()
        self.stop()

    # -- accepting

    def _accept(self, listener: socket.socket, door: Door, events: int) -> None:
        del events
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connected, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE}:
                    self._accept_with_reserve(listener, door, error.errno)
                    return
                if error.errno not in {errno.ECONNABORTED, errno.EPERM}:
                    logger.warning("Failed to accept a connection, trying again: %s", error)
                    self._pause_listening(self.limits.accept_retry_seconds)
                    return
                # The other two are about a connection that has ended already (accept(2)).
            else:
                self._short_of_fds = False
                self._admit(connected, door, None)

    def _admit(self, connected: socket.socket, door: Door, refusal: System | None) -> None:
        try:
            connected.setblocking(False)  # noqa: FBT003  # its only argument
            peer = peer_of(connected)
        except OSError as error:
            logger.debug("Failed to determine the peer of a connection, ignoring it: %s", error)
            self._discard(connected, NOBODY)
            return
        if refusal is None:
            refusal = self._refusal(peer.uid)
        if refusal is not None and self._refused >= self.limits.refusals:
            self._discard(connected, peer.uid)
            return
        self._start(connected, door, peer, refusal)

    def _refusal(self, uid: int) -> System | None:
        """Return why a user gets no further connection, or None; close an idle one of another user if need be."""
        if self._fairness.trusts(uid):
            trusted = len(self._links) - self._refused - len(self._users)
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

    def _accept_with_reserve(self, listener: socket.socket, door: Door, number: int) -> None:
        # Without a free file descriptor, a caller cannot even be refused: its connection would stay at the head of the
        # backlog and wake us for ever. So we hold one in reserve. It is given up for the connection that is refused,
        # and until that has ended, no other connection is accepted.
        if self._reserve is None:
            self._pause_listening(self.limits.accept_retry_seconds)
            return
        os.close(self._reserve)
        self._reserve = None
        try:
            connected, _ = listener.accept()
        except BlockingIOError:
            # There is no connection: the kernel looks for a file descriptor first.
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
            self._admit(connected, door, System.of(number))
            if self._reserve is None and not self._refused:
                self._resume_listening()

    def _start(self, connected: socket.socket, door: Door, peer: Peer, refusal: System | None) -> None:
        assert self._context is not None
        link = Link(self._context, door, connected, peer, refusal)
        try:
            link.start()
        except OSError as error:
            logger.warning("Failed to watch a connection: %s", error)
            return
        self._links.add(link)
        if refusal is None and door.service in self._aside:
            self._lookers.add(link)
        else:
            self.last_activity = trio.current_time()
        if refusal is None:
            if not link.trusted:
                self._users.take(link)
        else:
            self._refused += 1
            self._deadlines.set(link, self.limits.refusal_seconds, link.close)
        # Most callers have sent their first call by now.
        link.ready(select.EPOLLIN)

    def _ended(self, link: Link) -> None:
        self._links.discard(link)
        self._deadlines.clear(link)
        if link in self._lookers:
            self._lookers.remove(link)
        else:
            self.last_activity = trio.current_time()
        if link.refusal is None:
            if not link.trusted:
                self._users.leave(link)
        else:
            self._refused -= 1
        if self._reserve is None:
            self._resume_listening()
        if not self.connections:
            self._quiet.set()

    def _pause_listening(self, seconds: float | None) -> None:
        for listener in self._listeners:
            self._poller.modify(listener.fileno(), 0)
        if seconds is not None:
            self._deadlines.set(self, seconds, self._resume_listening)

    def _resume_listening(self) -> None:
        if self._reserve is None:
            self._reserve = _open_reserve()
        for listener in self._listeners:
            self._poller.modify(listener.fileno(), select.EPOLLIN)

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            self._poller.remove(listener.fileno())
        self._listeners.clear()
        self._deadlines.clear(self)


def _open_reserve() -> int | None:
    """Return a file descriptor to hold in reserve, None if there is no free one."""
    try:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            return None
        raise
