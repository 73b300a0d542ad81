"""One accepted connection: its turns at the socket.

A turn is a function that is called when the socket is ready. It reads once, answers what can be answered without
waiting, and writes. One call is at hand at a time; further ones wait in the buffer or in the socket. The other
direction is the
same: while the peer does not read, no further reply is made. :mod:`moorage.wire.turns` has the states.

A peer that breaks the protocol loses its connection. That is logged at debug level only, since anyone could fill the
log otherwise.
"""

# Why our own epoll below trio
#
# A task for each connection and trio.serve_listeners(), which has about sixty lines of code, would do the same;
# poller, turns and link have 650 lines, and callbacks, which trio exists to abolish. This is the price of answering
# many callers at once. Each call on a task of its own costs two turns of trio's scheduler and two epoll_ctl(2). With
# the same Connection and handlers below serve_listeners(), and none of the limits, a GetInfo takes 1.4 times the CPU
# time on one connection and 2.1 times on 64 (Python 3.11, two cores, 2026-11). That factor is most of the margin over
# machined, which answers one connection at a time in C: at 64 and 120 connections moored replies to 81,000 and
# 80,000 GetInfo a second, 4.2 and 7.4 times as many (docs/performance.md).
#
# What keeps the callbacks readable: a link never waits, all of its states are in one table, everything that does wait
# runs in an ordinary trio task, and no code outside of kernel.poller, this module and wire.server knows that there is
# an epoll.

from __future__ import annotations

import abc
import contextlib
import logging
import math
import socket
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import msgspec
import trio

from moorage.kernel.peer import Peer
from moorage.kernel.poller import Readiness
from moorage.wire.answering import Answering
from moorage.wire.connection import CALL_MAX, CLOSED, INPUT_MAX, NEED_DATA, Connection, Role, Wait
from moorage.wire.deadlines import Deadlines
from moorage.wire.disposal import Disposal
from moorage.wire.errors import ProtocolError, System
from moorage.wire.fairness import LONG_INPUT, Fairness
from moorage.wire.outlet import Outlet, Unwritten
from moorage.wire.output import close_all
from moorage.wire.service import Service
from moorage.wire.sockets import Inlet
from moorage.wire.turns import GONE, IN, OUT, TRANSITIONS, WATCHED, Event, State

logger = logging.getLogger(__name__)

MESSAGES_PER_TURN = 16
"""Pipelined calls of one connection to answer before the others get their turn."""

TURN_SECONDS = 0.001
"""How long a turn may last before it is cut short at the next call or reply. If the replies are long, or are read from
many files, a turn of the figures above takes ten times as long, and everybody else waits for it."""

UNFINISHED_SECONDS = 30.0
"""How long a user may take to send the rest of a call. Programs write a call at once; a person at a keyboard has this
long."""

OUTPUT_HIGH_WATER = 256 * 1024
"""Bytes waiting to be written at which no further reply is made. It keeps every connection far below the limits of
:mod:`moorage.wire.connection`, at which sd-varlink drops a peer that does not read."""

USER_HIGH_WATER = 16 * 1024
"""The same for the connection of a user; there may be thousands of those."""

_READING, _STREAMING, _CLOSED = State.READING, State.STREAMING, State.CLOSED
_AT_SOCKET = frozenset({_READING, _STREAMING})
_FED = frozenset({State.FEEDING, State.DEAF})
_ANSWERED = frozenset({_READING, _CLOSED}) | _FED
"""States in which the peer waits for no answer."""


class ServerContext(msgspec.Struct, frozen=True):
    """The parts of a server that all its connections share.

    Attributes:
        poller: watches the sockets of trusted peers.
        crowd: watches the sockets of users.
        deadlines: calls back when a peer takes too long.
        disposal: closes files that peers have sent.
        fairness: decides whose turn it is.
        unwritten: bounds how much is left unread, and for how long.
        tasks: nursery for handlers that wait.
        give_way: gives turns to trusted peers that are ready; one for all connections.
        ended: called with each connection that has ended.
    """

    poller: Readiness
    crowd: Readiness
    deadlines: Deadlines
    disposal: Disposal
    fairness: Fairness
    unwritten: Unwritten
    tasks: trio.Nursery
    give_way: Callable[[], object]
    ended: Callable[[Link], None]


class Door(NamedTuple):
    """What there is behind a listening socket.

    Attributes:
        service: answers the calls.
        about: what they are about, for handlers that serve more than one socket.
    """

    service: Service
    about: object


class Watched(abc.ABC):
    """A socket that is watched for what can be done with it next.

    Args:
        connected: the socket.
        poller: watches it.
    """

    __slots__ = ("_interest", "_poller", "_socket")

    def __init__(self, connected: socket.socket, poller: Readiness) -> None:
        self._socket = connected
        self._poller = poller
        self._interest: int | None = None  # what the poller watches the socket for; None if it does not

    @abc.abstractmethod
    def ready(self, events: int) -> None:
        """Take note of what epoll has seen of the socket."""

    def __call__(self, events: int) -> None:
        """Do the same: so the poller keeps no object more of each, of which there may be thousands."""
        self.ready(events)

    def _watch(self, interest: int | None) -> None:
        if interest == self._interest:
            return
        fd = self._socket.fileno()
        if interest is None:
            self._poller.remove(fd)
        elif self._interest is None:
            self._poller.add(fd, interest, self)
        else:
            self._poller.modify(fd, interest)
        self._interest = interest


class Link(Watched):
    """One accepted connection.

    What it is made of does not refer back to it: thousands of connections may end at once, and their memory is free
    then, without a pass of the garbage collector.

    Args:
        context: the server's part.
        door: what the calls are answered by, and about.
        connected: non-blocking socket; the link owns it.
        peer: the process that made the connection.
        refusal: answer to the first call, which then ends the connection; None to have calls handled.

    Attributes:
        peer, refusal: see above.
        about: what the calls are about.
        outlet: writes the replies.
        uid: uid of the peer.
        trusted: whether the peer is trusted (:class:`~moorage.wire.fairness.Fairness`).
        high_water: bytes waiting to be written at which no further reply is made.
        turn_ends: when the current turn has to end, in seconds of time.monotonic().
    """

    __slots__ = (
        "_answering", "_connection", "_context", "_finishing", "_gone", "_inlet", "_state", "_unfinished",
        "about", "high_water", "outlet", "peer", "refusal", "trusted", "turn_ends", "uid",
    )  # fmt: skip

    def __init__(
        self,
        context: ServerContext,
        door: Door,
        connected: socket.socket,
        peer: Peer,
        refusal: System | None = None,
    ) -> None:
        self.peer, self.about = peer, door.about
        self.uid = peer.uid
        self.trusted = context.fairness.trusts(peer.uid)
        super().__init__(connected, context.poller if self.trusted else context.crowd)
        self.refusal = refusal
        self.high_water = OUTPUT_HIGH_WATER if self.trusted else USER_HIGH_WATER
        self.turn_ends = math.inf
        self._context = context
        self._inlet = Inlet(connected, takes_fds=self.trusted)
        self._connection = Connection(
            Role.SERVER,
            INPUT_MAX if self.trusted else CALL_MAX,
            # None are received from users.
            close_fds=partial(context.disposal.close, peer.uid) if self.trusted else close_all,
        )
        self.outlet = Outlet(self._connection, connected, context.unwritten)
        self._answering = Answering(
            self._connection, door.service, context.fairness, context.tasks, context.give_way)  # fmt: skip
        self._state = _READING
        self._finishing = False  # close when everything is answered and written
        self._unfinished = False  # the deadline for the rest of a call is set
        self._gone: trio.Event | None = None

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._state is _CLOSED

    @property
    def idle(self) -> bool:
        """Whether nothing is lost by closing it: no task is at work or waits for its end, and no replies are read.

        Who is fed has to be able to connect again anyway.
        """
        state, stalled = self._state, self.outlet.stalled
        return self._gone is None and (
            state is _READING or state in _FED or (state is _STREAMING and stalled)
        )

    def dispose(self, fds: Iterable[int]) -> None:
        """Close file descriptors that the peer has sent."""
        self._context.disposal.close(self.uid, fds)

    async def wait_gone(self) -> None:
        """Return when the connection has ended."""
        if self._gone is None:
            self._gone = trio.Event()
            if self.closed:
                self._gone.set()
        await self._gone.wait()

    def start(self) -> None:
        """Begin to watch the socket.

        Raises:
            OSError: that is impossible; the socket is closed.
        """
        try:
            self._watch(IN)
            self._poller.expect()
        except OSError:
            self._state = _CLOSED
            self._inlet.close(self.dispose)
            raise

    def finish(self) -> None:
        """Close as soon as everything that has arrived is answered and written, and what a feed has by now."""
        self._finishing = True
        if self._state in _AT_SOCKET:
            self.ready(IN)
        elif self._state in _FED:
            self.ready(0)

    def close(self) -> None:
        """End the connection and the call at hand. May be called again."""
        if self.closed:
            return
        self._move(Event.CLOSE)
        self._watch(None)
        self._connection.close()
        self._inlet.close(self.dispose)
        self._answering.close()
        if self._gone is not None:
            self._gone.set()
        deadlines = self._context.deadlines
        deadlines.clear((self, "rest"))
        deadlines.clear((self, "unfinished"))
        self.outlet.close(self)
        self._context.ended(self)

    def fail(self, error: Exception) -> None:
        """End the connection because of an error of the peer, or of ours."""
        if isinstance(error, (ProtocolError, OSError)):
            logger.debug("Connection of process %d ended: %s", self.peer.pid, error)
            if isinstance(error, ProtocolError) and not self.closed:
                # Calls before the one that is wrong have been answered: those replies are still due.
                with contextlib.suppress(OSError):
                    self.outlet.flush(self)
        else:
            logger.error("Failed to serve a connection, closing it:", exc_info=error)
        self.close()

    def _move(self, event: Event) -> None:
        state = self._state = TRANSITIONS[self._state][event]
        if self.trusted:
            if state in _ANSWERED:
                self._context.fairness.trusted_answered(self)
            else:
                self._context.fairness.trusted_waits(self)

    # -- turns

    def ready(self, events: int) -> None:
        """Take a turn.

        Args:
            events: what epoll has seen of the socket.
        """
        if not self.trusted:
            fairness = self._context.fairness
            if fairness.resting and (rest := fairness.rest(self.uid)) > 0:
                self._watch(None)
                self._context.deadlines.set((self, "rest"), rest, partial(self.ready, IN | OUT))
                return
        self.turn_ends = time.monotonic() + TURN_SECONDS
        try:
            if self._state in _AT_SOCKET:
                self._turn(events)
            elif self._state in _FED:
                self._turn_fed(events)
            else:
                self._turn_beside_task(events)
        except Exception as error:  # noqa: BLE001  # one connection must not take the others with it
            self.fail(error)

    def write(self) -> None:
        """Write the queued replies as far as possible, and the rest when the socket is ready."""
        self.ready(0)

    def answered(self) -> None:
        """Go on with the next call: the task of the last one has ended."""
        self._move(Event.DONE)
        if not self.closed:
            self.ready(0)

    def _turn(self, events: int) -> None:
        more = self._work(may_read=bool(events & ~OUT))
        if self.closed:
            return
        more = self.outlet.end_turn(self, more=more)
        if self._finishing and not more and self._state is _READING:
            self.close()
            return
        self._watch(WATCHED[self._state][more])
        if self._state is _READING:
            self._poller.expect()
        if not self.trusted and (self._connection.buffered or self._unfinished):
            self._watch_unfinished()

    def _work(self, *, may_read: bool) -> bool:
        """Answer as much as is fair; return whether more can be done as soon as there is room."""
        connection, answering = self._connection, self._answering
        if connection.queued and not self.outlet.flush(self):
            return True
        if self._state is _STREAMING and not self._advance():
            return True
        for _ in range(MESSAGES_PER_TURN):
            call = connection.next_call()
            if call is NEED_DATA and may_read and self._read():
                may_read = False
                call = connection.next_call()
            if isinstance(call, Wait):
                self._finishing |= call is CLOSED
                return False
            if self.refusal is not None:
                answering.refuse(self, call, self.refusal)
                self._finishing = True
                return False
            if self._unfinished:
                # What is in the buffer now is another call, with a time of its own.
                self._unfinished = False
                self._context.deadlines.clear((self, "unfinished"))
            event = answering.answer(self, call)
            if event is not Event.DONE:
                self._move(event)
                if event is Event.TASK:
                    return False
                if event is Event.FEED:
                    return True
                if not self._advance():
                    return True
            if connection.queued > self.high_water and not self.outlet.flush(self):
                return True
            if time.monotonic() > self.turn_ends:
                break
        return connection.buffered > 0

    def _advance(self) -> bool:
        """Make replies of the stream at hand; return whether it has ended."""
        ended = self._answering.advance(self)
        if ended:
            self._move(Event.DONE)
        return ended

    def _turn_fed(self, events: int) -> None:
        if events & GONE:
            self.close()
            return
        if events & IN:
            # A call that nobody will answer, or the end of the stream; whoever has sent that may read on.
            self._move(Event.INPUT)
        more = not self.outlet.flush(self)
        if not more:
            if (fed := self._answering.feed(self)) is None:
                self.answered()
                return
            more = self.outlet.end_turn(self, more=fed)
        if self._finishing and not more:
            self.close()
        else:
            self._watch(WATCHED[self._state][more])

    def _turn_beside_task(self, events: int) -> None:
        if events & GONE:
            if not self._answering.oneway:
                self.close()
                return
            # Most callers of a oneway call hang up at once. That is no reason not to do what they asked for; what is
            # still to be read is read when the task has ended.
            self._move(Event.HANG_UP)
            self._watch(None)
            return
        if events & IN:
            # A pipelined call, or the end of the stream.
            self._move(Event.INPUT)
        more = not self.outlet.flush(self)
        self._watch(WATCHED[self._state][more])

    def _watch_unfinished(self) -> None:
        """Bound the time that a user may take to send the rest of a call."""
        unfinished = self._state is _READING and self._interest == IN and self._connection.buffered > 0
        if unfinished == self._unfinished:
            return
        self._unfinished = unfinished
        if unfinished:
            self._context.deadlines.set((self, "unfinished"), UNFINISHED_SECONDS, self.close)
        else:
            self._context.deadlines.clear((self, "unfinished"))

    # -- the socket

    def _read(self) -> bool:
        if self._inlet.spent:
            return False
        try:
            self._inlet.receive(self._connection, self.dispose)
        except BlockingIOError:
            return False
        finally:
            if self._connection.buffered > LONG_INPUT and not self.trusted:
                self._context.fairness.note_long_input(self.uid)
        # What has arrived by now is answered; file descriptors that were left in the socket are closed with it.
        self._finishing |= self._inlet.spent
        return True
