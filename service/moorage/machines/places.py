"""Places for starts: how many may be under way at once, and of whom.

The manager works on one start at a time; what waits here does not fill its queue, so that other calls get in between.
A start may take as long as its caller allows, so whoever has all places keeps everybody waiting: those who have the
rights of the manager anyway have places of their own, and no other user gets more than some of the rest.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from moorage.machines.errors import NoPlace

STARTS_MAX = 128
"""Start jobs under way at once of those who have the rights of the manager."""

USERS_STARTS_MAX = 64
"""The same of all others together: with the former, not more than the manager's queue bears."""

STARTS_PER_UID_MAX = 16
"""The same of each of them: a quarter, so that several who start whatever never ends do not keep out the rest. A start
without helpers takes a few ms."""


class Places:
    """The places.

    Args:
        trusted: uids that have the rights of the manager.
    """

    def __init__(self, trusted: frozenset[int]) -> None:
        self._trusted = trusted
        self._of_trusted = trio.CapacityLimiter(STARTS_MAX)
        self._of_others = trio.CapacityLimiter(USERS_STARTS_MAX)
        self._by_uid: dict[int, trio.CapacityLimiter] = {}

    @asynccontextmanager
    async def one(self, uid: int, *, deadline: float) -> AsyncGenerator[None]:
        """Hold a place, after waiting for it.

        Args:
            uid: whose start it is.
            deadline: on trio's clock, of the wait.

        Raises:
            NoPlace: there was none until then.
        """
        taken: list[trio.CapacityLimiter] = []
        try:
            for limiter in self._limiters(uid):
                await _acquire(limiter, deadline)
                taken.append(limiter)
            yield
        finally:
            for limiter in taken:
                limiter.release()
            self._tidy(uid)

    def _limiters(self, uid: int) -> tuple[trio.CapacityLimiter, ...]:
        if uid in self._trusted:
            return (self._of_trusted,)
        # First one's own: who waits for that is not in the way of others.
        return self._by_uid.setdefault(uid, trio.CapacityLimiter(STARTS_PER_UID_MAX)), self._of_others

    def _tidy(self, uid: int) -> None:
        limiter = self._by_uid.get(uid)
        if limiter is not None and not limiter.borrowed_tokens and not limiter.statistics().tasks_waiting:
            del self._by_uid[uid]


async def _acquire(limiter: trio.CapacityLimiter, deadline: float) -> None:
    try:
        limiter.acquire_nowait()
    except trio.WouldBlock:
        with trio.move_on_at(deadline) as waiting:
            await limiter.acquire()
        if waiting.cancelled_caught:
            raise NoPlace from None
