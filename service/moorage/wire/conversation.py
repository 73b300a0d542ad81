"""What a connection needs while something is under way on it, and who keeps that for longer.

Of thousands of connections, few have a call under way. The others are a socket and its place among those that are
watched; what is here is made with the first byte of a call. That is half of the memory of a connection, and most of
what a crowd has used once is never returned: the interpreter takes memory by the MiB, and one object that is left in
a MiB keeps all of it.
"""

from __future__ import annotations

import time
from typing import Protocol

from moorage.wire.answering import Answering, Turns
from moorage.wire.connection import CLOSED, NEED_DATA, Connection, State, Wait
from moorage.wire.deadlines import Deadlines
from moorage.wire.outlet import Outlet, Owner
from moorage.wire.turns import Event

MESSAGES_PER_TURN = 16
"""Pipelined calls of one connection to answer before the others get their turn."""

UNFINISHED_SECONDS = 30.0
"""How long a user may take to send the rest of a call. Programs write a call at once; a person at a keyboard has this
long."""

KEPT_MAX = 512
"""Conversations that are kept with nothing under way, for the next call: making one takes a third of the time of a
small call. So many callers in turns are no slower than one; if there are more, who has not called for longest has it
made again. Those that are kept take 0.2 MiB."""

_IDLE = State.IDLE


class Conversation:
    """Calls and replies of an accepted connection.

    Args:
        connection: its protocol.
        outlet: writes the replies.
        answering: handles the calls.
        deadlines: calls back when a user takes too long.

    Attributes:
        connection, outlet, answering: see above.
        over: nothing more is to be answered.
        kept: it is kept with nothing under way.
        unfinished: the rest of a call is waited for, with a deadline.
    """

    __slots__ = ("_deadlines", "answering", "connection", "kept", "outlet", "over", "unfinished")

    def __init__(
        self, connection: Connection, outlet: Outlet, answering: Answering, deadlines: Deadlines
    ) -> None:
        self.connection = connection
        self.outlet = outlet
        self.answering = answering
        self.over = False
        self.kept = False
        self._deadlines = deadlines
        self.unfinished = False

    @property
    def at_rest(self) -> bool:
        """Whether nothing is under way, so that a new one would do as well."""
        connection = self.connection
        return (
            connection.state is _IDLE
            and not (connection.queued or connection.buffered or self.over)
            and self.outlet.at_rest
        )

    def work(self, turns: Turns, *, may_read: bool) -> bool:
        """Answer as much as is fair; return whether more can be done as soon as there is room.

        Args:
            turns: the connection.
            may_read: the socket may have something to read.

        Raises:
            OSError: the peer is gone.
            ProtocolError: the peer broke the protocol.
        """
        connection, answering = self.connection, self.answering
        if connection.queued and not self.outlet.flush(turns):
            return True
        if answering.stream is not None and not self._advance(turns):
            return True
        for _ in range(MESSAGES_PER_TURN):
            call = connection.next_call()
            if call is NEED_DATA and may_read and turns.read():
                may_read = False
                call = connection.next_call()
            if isinstance(call, Wait):
                self.over |= call is CLOSED
                return False
            if turns.refusal is not None:
                answering.refuse(turns, call, turns.refusal)
                self.over = True
                return False
            if self.unfinished:
                # What is in the buffer now is another call, with a time of its own.
                self.unfinished = False
                self._deadlines.clear((turns, "unfinished"))
            event = answering.answer(turns, call)
            if event is not Event.DONE:
                turns.move(event)
                if event is Event.TASK:
                    return False
                if event is Event.FEED:
                    return True
                if not self._advance(turns):
                    return True
            if connection.queued > answering.high_water and not self.outlet.flush(turns):
                return True
            if time.monotonic() > answering.turn_ends:
                break
        return connection.buffered > 0

    def _advance(self, turns: Turns) -> bool:
        """Make replies of the stream at hand; return whether it has ended."""
        ended = self.answering.advance(turns)
        if ended:
            turns.move(Event.DONE)
        return ended

    def bound(self, turns: Turns, *, waits: bool) -> None:
        """Bound the time that a user may take to send the rest of a call.

        Args:
            turns: the connection.
            waits: it waits for what the user sends, and for nothing else.
        """
        unfinished = waits and self.connection.buffered > 0
        if unfinished == self.unfinished:
            return
        self.unfinished = unfinished
        if unfinished:
            self._deadlines.set((turns, "unfinished"), UNFINISHED_SECONDS, turns.close)
        else:
            self._deadlines.clear((turns, "unfinished"))

    def close(self, owner: Owner) -> None:
        """End the call at hand, and drop what is queued."""
        self.connection.close()
        self.answering.close()
        self.outlet.close(owner)
        self._deadlines.clear((owner, "unfinished"))


class Keeper(Protocol):
    """A connection with a conversation."""

    def let_go(self) -> None:
        """Keep the conversation only while something is under way."""
        ...


class Kept:
    """The conversations that are kept with nothing under way: of those who have called last."""

    def __init__(self) -> None:
        self._keepers: dict[Keeper, None] = {}  # oldest first

    def add(self, keeper: Keeper) -> None:
        """Keep one more; the oldest is let go if there are too many."""
        self._keepers[keeper] = None
        if len(self._keepers) > KEPT_MAX:
            oldest = next(iter(self._keepers))
            del self._keepers[oldest]
            oldest.let_go()

    def discard(self, keeper: Keeper) -> None:
        """Forget one, whose connection has ended."""
        self._keepers.pop(keeper, None)
