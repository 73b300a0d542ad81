"""Who gets the next turn: users must not be able to take all of the service's time.

Decoding and replying happen in one thread, so a long call delays everybody. Callers that are trusted could do worse
than that; to all others four rules apply, each per uid and not per connection, as connections cost nothing:

- After a long call, nothing is read from the user for a while.
- Of the calls that run in tasks, a limited number runs at the same time; further ones wait.
- Tasks begin, and streams go on, one at a time, and the users take turns at that.
- While a trusted caller waits for a reply, users have a quarter of the time, that of their tasks included.
"""

from __future__ import annotations

import contextlib
import errno
import time
import types
from collections.abc import AsyncGenerator, Coroutine, Generator, Hashable
from typing import Any

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


class _User:
    """What the tasks of a user share."""

    def __init__(self) -> None:
        self.slots = trio.CapacityLimiter(CALLS_PER_USER)
        self.first = trio.Lock()  # of the tasks that wait for a turn


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
        self._users: dict[int, _User] = {}  # those with calls in tasks
        self._turn = trio.Lock()
        self._until = 0.0  # when users may go on, in seconds of trio.current_time()

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
        """Note that turns of users took so many seconds; return for how many they get none."""
        if not self._waiting:
            return 0.0
        now = trio.current_time()
        self._until = max(self._until, now) + CROWD_PAUSE * seconds
        return self._until - now

    @contextlib.asynccontextmanager
    async def slot(self, uid: int, holder: Hashable) -> AsyncGenerator[None]:
        """Take one of the slots of a user for calls that run in tasks.

        Raises:
            System: no slot became free in time (EBUSY).
        """
        user = self._users.setdefault(uid, _User())
        with trio.move_on_after(SLOT_SECONDS) as waiting:
            await user.slots.acquire_on_behalf_of(holder)
        if waiting.cancelled_caught:
            raise System.of(errno.EBUSY)
        try:
            yield
        finally:
            user.slots.release_on_behalf_of(holder)
            if not user.slots.borrowed_tokens:
                # A task that waits would have got the token by now, so nobody else has this user.
                self._users.pop(uid, None)

    async def turn(self, uid: int) -> None:
        """Return when the task of a user, which holds a slot, may begin or go on.

        One of all users' may in each turn of the loop: a trusted caller's reply waits for no more than that.
        """
        async with self._users[uid].first, self._turn:
            await trio.sleep(self.pause(0))

    @types.coroutine
    def counted(self, work: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
        """Run what a task of a user does, and note how long its steps take."""
        value: Any = None
        error: BaseException | None = None
        while True:
            begun = time.perf_counter()
            try:
                trap = work.send(value) if error is None else work.throw(error)
            except StopIteration:
                return
            finally:
                value = error = None  # an error must not be held by a frame that it passes through
                self.pause(time.perf_counter() - begun)
            try:
                value = yield trap
            except BaseException as raised:  # noqa: BLE001 - all of them are for the work
                error = raised
