"""Who gets the next turn: users must not be able to take all of the service's time.

Decoding and replying happen in one thread, so a long call delays everybody. Callers that are trusted could do worse
than that; to all others three rules apply, each per uid and not per connection, as connections cost nothing:

- After a long call, nothing is read from the user for a while.
- Of the calls that run in tasks, a limited number runs at the same time; further ones wait.
- While a trusted caller waits for a reply, users have a quarter of the time.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncGenerator, Hashable

import trio

from moorage.wire.errors import System

LONG_INPUT = 16 * 1024
"""Bytes of calls that have arrived and are not yet decoded at which a user is taken to send long calls."""

REST_SECONDS = 0.02
"""How long we stop reading from a user's connections after a long call. This caps the CPU time that one uid can
consume at about a tenth, however many connections it opens. A call of 256 KiB then takes at least 80 ms to arrive."""

CALLS_PER_USER = 64
"""Calls of one user that may run in tasks at the same time. Further ones wait. A launcher of a hundred machines
notices nothing; a user with calls that take minutes delays only itself."""

SLOT_SECONDS = 45.0
"""How long such a call waits before it is answered with EBUSY: as long as most callers wait for a reply
(VARLINK_DEFAULT_TIMEOUT_USEC of sd-varlink.c)."""

CROWD_PAUSE = 3.0
"""How long users get no turn while a trusted caller waits for a reply, as a multiple of the time that their last turns
took. They have a quarter of the time then, however many they are."""


class Fairness:
    """The turns and tasks of all users of a server.

    Args:
        trusted: uids that could do worse than to keep the service busy: root, and the user that an instance serves.

    Attributes:
        resting: users that get no turn, and until when, in seconds of trio.current_time(). Read-only for others.
    """

    def __init__(self, trusted: frozenset[int]) -> None:
        self._trusted = trusted
        self.resting: dict[int, float] = {}
        self._waiting: set[Hashable] = set()  # trusted connections with a call at hand
        self._slots: dict[int, trio.CapacityLimiter] = {}

    def trusts(self, uid: int) -> bool:
        """Return whether a user is trusted."""
        return uid in self._trusted

    def note_long_input(self, uid: int) -> None:
        """Note that more than LONG_INPUT bytes have arrived from a user."""
        now = trio.current_time()
        resting = self.resting
        # All rest equally long, so the oldest entries end first; users that never come back are forgotten here.
        while resting and resting[oldest := next(iter(resting))] <= now:
            del resting[oldest]
        resting.pop(uid, None)
        resting[uid] = now + REST_SECONDS

    def rest(self, uid: int) -> float:
        """Return for how many seconds a user gets no turn; zero or less if it may have one."""
        left = self.resting.get(uid, 0.0) - trio.current_time()
        if left <= 0:
            self.resting.pop(uid, None)
        return left

    def trusted_waits(self, connection: Hashable) -> None:
        """Note that a trusted caller has a call at hand."""
        self._waiting.add(connection)

    def trusted_answered(self, connection: Hashable) -> None:
        """Note that a call is answered, or that its connection has ended. May be called for any connection."""
        self._waiting.discard(connection)

    def pause(self, seconds: float) -> float:
        """Return for how many seconds users get no turn after turns that took so many."""
        return CROWD_PAUSE * seconds if self._waiting else 0.0

    @contextlib.asynccontextmanager
    async def slot(self, uid: int, holder: Hashable) -> AsyncGenerator[None]:
        """Take one of the slots of a user for calls that run in tasks.

        Raises:
            System: no slot became free in time (EBUSY).
        """
        slots = self._slots.setdefault(uid, trio.CapacityLimiter(CALLS_PER_USER))
        with trio.move_on_after(SLOT_SECONDS) as waiting:
            await slots.acquire_on_behalf_of(holder)
        if waiting.cancelled_caught:
            raise System.of(errno.EBUSY)
        try:
            yield
        finally:
            slots.release_on_behalf_of(holder)
            if not slots.borrowed_tokens:
                # A task that waits would have got the token by now, so nobody else has this limiter.
                self._slots.pop(uid, None)
