"""One accepted connection: its turns at the socket.

A turn is a function that is called when the socket is ready. It reads once, answers what can be answered without
waiting, and writes. One call is at hand at a time; further ones wait in the buffer or in the socket. The other
direction is the same: while the peer does not read, no further reply is made. :mod:`moorage.wire.turns` has the
states, :mod:`moorage.wire.conversation` what is done with calls.

A peer that breaks the protocol loses its connection. That is logged at debug level only, since anyone could fill the
log otherwise.
"""

# Why our own epoll below trio
#
# A task for each connection and trio.serve_listeners(), which has about sixty lines of code, would do the same;
# poller, turns, watched, conversation and link have 900 lines, and callbacks, which trio exists to abolish. This is
# the price of answering many callers at once. Each call on a task of its own costs two turns of trio's scheduler and
# two epoll_ctl(2). With the same Connection and handlers below serve_listeners(), and none of the limits, a GetInfo
# takes 1.4 times the CPU time on one connection and 2.1 times on 64 (Python 3.11, two cores, 2026-11). That factor is
# most of the margin over machined, which answers one connection at a time in C: at 64 and 120 connections moored
# replies to 81,000 and 80,000 GetInfo a second, 4.2 and 7.4 times as many (docs/performance.md).
#
# What keeps the callbacks readable: a link never waits, all of its states are in one table, everything that does wait
# runs in an ordinary trio task, and no code outside of kernel.poller, this module and wire.server knows that there is
# an epoll.

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import msgspec
import trio

from moorage.kernel.peer import Peer, peer_of
from moorage.kernel.poller import Readiness
from moorage.wire.answering import Answering
from moorage.wire.connection import CALL_MAX, INPUT_MAX, Connection, Role
from moorage.wire.conversation import Conversation, Kept
from moorage.wire.deadlines import Deadlines
from moorage.wire.disposal import Disposal
from moorage.wire.errors import ProtocolError, System
from moorage.wire.fairness import LONG_INPUT, Fairness
from moorage.wire.outlet import Outlet, Unwritten
from moorage.wire.output import close_all
from moorage.wire.service import Service
from moorage.wire.sockets import Inlet, Rights
from moorage.wire.turns import GONE, IN, OUT, TRANSITIONS, WATCHED, Event, State
from moorage.wire.watched import Watched

logger = logging.getLogger(__name__)

TURN_SECONDS = 0.001
"""How long a turn may last before it is cut short at the next call or reply. If the replies are long, or are read from
many files, a turn of the figures above takes ten times as long, and everybody else waits for it."""

OUTPUT_HIGH_WATER = 256 * 1024
"""Bytes waiting to be written at which no further reply is made. It keeps every connection far below the limits of
:mod:`moorage.wire.connection`, at which sd-varlink drops a peer that does not read."""

USER_HIGH_WATER = 16 * 1024
"""The same for the connection of a user; there may be thousands of those."""

_SPENT = Rights.SPENT
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
        kept: the conversations that are kept for the next call.
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
    kept: Kept
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


class Link(Watched):
    """One accepted connection.

    What it is made of does not refer back to it: thousands of connections may end at once, and their memory is free
    then, without a pass of the garbage collector. There may be as many on which nothing is under way: what only calls
    need is in :mod:`moorage.wire.conversation`, and exists only then.

    Args:
        context: the server's part.
        door: what the calls are answered by, and about.
        connected: non-blocking socket; the link owns it.
        peer: the process that made the connection.
        refusal: answer to the first call, which then ends the connection; None to have calls handled.

    Attributes:
        refusal: see above.
        uid: uid of the peer.
        trusted: whether the peer is trusted (:class:`~moorage.wire.fairness.Fairness`).
    """

    __slots__ = (
        "_context", "_conversation", "_door", "_finishing", "_gone", "_inlet", "_peer", "_state",
        "refusal", "trusted", "uid",
    )  # fmt: skip

    def __init__(
        self,
        context: ServerContext,
        door: Door,
        connected: socket.socket,
        peer: Peer,
        refusal: System | None = None,
    ) -> None:
        self.uid = peer.uid
        self.trusted = context.fairness.trusts(peer.uid)
        super().__init__(connected, context.poller if self.trusted else context.crowd)
        self.refusal = refusal
        self._context = context
        self._door = door
        self._inlet = Inlet(connected, takes_fds=self.trusted)
        self._conversation: Conversation | None = None  # never without one where a call is at hand
        self._peer: Peer | None = peer  # None while nothing is heard of it: it may be asked for again
        self._state = _READING
        self._finishing = False  # close when everything is answered and written
        self._gone: trio.Event | None = None

    @property
    def peer(self) -> Peer:
        """The process that made the connection."""
        return self._peer or peer_of(self._socket)

    @property
    def about(self) -> object:
        """What the calls are about."""
        return self._door.about

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._state is _CLOSED

    @property
    def idle(self) -> bool:
        """Whether nothing is lost by closing it: no task is at work or waits for its end, and no replies are read.

        Who is fed has to be able to connect again anyway.
        """
        state, conversation = self._state, self._conversation
        stalled = conversation is not None and conversation.outlet.stalled
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
        self.move(Event.CLOSE)
        self._watch(None)
        self._inlet.close(self.dispose)
        context = self._context
        if self._conversation is not None:
            self._conversation.close(self)
            context.kept.discard(self)
        if self._gone is not None:
            self._gone.set()
        context.deadlines.clear((self, "rest"))
        context.ended(self)

    def fail(self, error: Exception) -> None:
        """End the connection because of an error of the peer, or of ours."""
        if isinstance(error, (ProtocolError, OSError)):
            logger.debug("Connection of process %d ended: %s", self.peer.pid, error)
            if isinstance(error, ProtocolError) and not self.closed and self._conversation is not None:
                # Calls before the one that is wrong have been answered: those replies are still due.
                with contextlib.suppress(OSError):
                    self._conversation.outlet.flush(self)
        else:
            logger.error("Failed to serve a connection, closing it:", exc_info=error)
        self.close()

    def move(self, event: Event) -> None:
        """Note what has become of the call at hand, or of the connection."""
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
        conversation = self._conversation
        if conversation is not None:
            conversation.answering.turn_ends = time.monotonic() + TURN_SECONDS
        try:
            if self._state in _AT_SOCKET:
                self._turn(events)
            else:
                assert conversation is not None  # a call is at hand
                if self._state in _FED:
                    self._turn_fed(conversation, events)
                else:
                    self._turn_beside_task(conversation, events)
        except Exception as error:  # noqa: BLE001  # one connection must not take the others with it
            self.fail(error)

    def write(self) -> None:
        """Write the queued replies as far as possible, and the rest when the socket is ready."""
        self.ready(0)

    def answered(self) -> None:
        """Go on with the next call: the task of the last one has ended."""
        self.move(Event.DONE)
        if not self.closed:
            self.ready(0)

    def _turn(self, events: int) -> None:
        may_read = bool(events & ~OUT)
        conversation = self._conversation
        if conversation is None:
            conversation = self._first(may_read=may_read)
            if conversation is None:
                return
            may_read = False
        more = conversation.work(self, may_read=may_read)
        if self._state is _CLOSED:
            return
        more = conversation.outlet.end_turn(self, more=more)
        state = self._state
        if (self._finishing or conversation.over) and not more and state is _READING:
            self.close()
            return
        interest = WATCHED[state][more]
        if interest != self._interest:
            self._watch(interest)
        if state is _READING:
            self._poller.expect()
            if not (conversation.kept or more or conversation.connection.buffered):
                conversation.kept = True
                self._context.kept.add(self)
        if not self.trusted and (conversation.connection.buffered or conversation.unfinished):
            conversation.bound(self, waits=state is _READING and interest == IN)

    def _first(self, *, may_read: bool) -> Conversation | None:
        """Begin a conversation with the first byte that comes."""
        if may_read and self.read() and self._conversation is not None:
            return self._conversation
        if self._finishing:
            self.close()
        else:
            self._peer = None
            self._watch(IN)
            self._poller.expect()
        return None

    def _turn_fed(self, conversation: Conversation, events: int) -> None:
        if events & GONE:
            self.close()
            return
        if events & IN:
            # A call that nobody will answer, or the end of the stream; whoever has sent that may read on.
            self.move(Event.INPUT)
        more = not conversation.outlet.flush(self)
        if not more:
            if (fed := conversation.answering.feed(self)) is None:
                self.answered()
                return
            more = conversation.outlet.end_turn(self, more=fed)
        if self._finishing and not more:
            self.close()
        else:
            self._watch(WATCHED[self._state][more])

    def _turn_beside_task(self, conversation: Conversation, events: int) -> None:
        if events & GONE:
            if not conversation.answering.oneway:
                self.close()
                return
            # Most callers of a oneway call hang up at once. That is no reason not to do what they asked for; what is
            # still to be read is read when the task has ended.
            self.move(Event.HANG_UP)
            self._watch(None)
            return
        if events & IN:
            # A pipelined call, or the end of the stream.
            self.move(Event.INPUT)
        more = not conversation.outlet.flush(self)
        self._watch(WATCHED[self._state][more])

    # -- the socket

    def read(self) -> bool:
        """Read once; return whether anything has come.

        Raises:
            OSError: the peer is gone.
            ProtocolError: the peer broke the protocol.
        """
        inlet = self._inlet
        if inlet.rights is _SPENT:
            return False
        try:
            data, fds, truncated = inlet.receive(self.dispose)
        except BlockingIOError:
            return False
        conversation = self._conversation
        if conversation is None:
            if not (data or fds or truncated):
                self._finishing = True
                return True
            conversation = self._conversation = _begin(
                self._context, self._door.service, self._socket, self.uid, trusted=self.trusted
            )
        connection = conversation.connection
        try:
            connection.receive_data(data, fds, truncated=truncated)
        finally:
            if connection.buffered > LONG_INPUT and not self.trusted:
                self._context.fairness.note_long_input(self.uid)
        if self._peer is None:
            self._peer = peer_of(self._socket)
        if truncated:
            # What has arrived by now is answered; file descriptors that were left in the socket are closed with it.
            self._finishing |= self._inlet.rights is _SPENT
        return True

    def let_go(self) -> None:
        """Keep the conversation only while something is under way."""
        conversation = self._conversation
        assert conversation is not None
        conversation.kept = False
        if self._state is _READING and conversation.at_rest:
            self._conversation = None


def _begin(
    context: ServerContext, service: Service, connected: socket.socket, uid: int, *, trusted: bool
) -> Conversation:
    connection = Connection(
        Role.SERVER,
        INPUT_MAX if trusted else CALL_MAX,
        # None are received from users.
        close_fds=partial(context.disposal.close, uid) if trusted else close_all,
    )
    outlet = Outlet(connection, connected, context.unwritten)
    answering = Answering(
        connection, outlet, OUTPUT_HIGH_WATER if trusted else USER_HIGH_WATER,
        service, context.fairness, context.tasks, context.give_way)  # fmt: skip
    answering.turn_ends = time.monotonic() + TURN_SECONDS
    return Conversation(connection, outlet, answering, context.deadlines)
