"""Subscribers to events, and how far each has read.

The log is everybody's queue: a subscription is a number in it. Who is slow costs no memory but that number; what
leaves the log before it was told is counted. Nothing runs here while nothing happens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import msgspec
import trio

from moorage.machines.events import Entry, EventLog, cursor_of, position_of

MESSAGES_MAX = 64
"""Messages given away at once: others get their turn."""

TOLD_AT_ONCE = 16
"""Subscriptions told before others get their turn."""

GATHER_SECONDS = 0.001
"""How long a first event waits for those that come with it, s. The caller who made it happen has its reply by then: it
would come after one write for each subscriber."""

FEW = 4
"""Subscriptions that are told at once, if that was not done a moment ago: writing to them takes 0.1 ms, a tenth of
what they would wait for."""

PAUSE = 3.0
"""For how long nobody is told after everybody was, as a multiple of the time that it took: a burst of events is told
in fewer and longer writes, and takes a quarter of the time at most."""


class Filter(msgspec.Struct, frozen=True):
    """The events that a subscriber wants.

    Attributes:
        names: of machines; None for all.
        kinds: of events; None for all.
    """

    names: frozenset[str] | None = None
    kinds: frozenset[str] | None = None

    @property
    def wants_all(self) -> bool:
        """Whether nothing is left out."""
        return self.names is None and self.kinds is None

    def wants(self, kind: str, name: str) -> bool:
        """Whether an event is wanted."""
        return (self.kinds is None or kind in self.kinds) and (self.names is None or name in self.names)


class Subscription:
    """One of those who are told."""

    def __init__(
        self,
        log: EventLog,
        number: int,
        wanted: Filter,
        sees: Callable[[int], bool],
        lost: Callable[[int], bytes],
        waits: Callable[[Subscription], None],
    ) -> None:
        """Begin.

        Args:
            log: of events.
            number: of the first event to be told.
            wanted: what is to be told.
            sees: whether it may know all of the machines of a registrant, by uid.
            lost: returns the message that so many events were lost.
            waits: called when there is nothing more to tell.
        """
        self._log = log
        self._next = number
        self._wanted = wanted
        self._sees = sees
        self._seen: dict[int, bool] = {}
        self._message_lost = lost
        self._waits = waits
        self._lost = 0
        self.woken: Callable[[], None] = lambda: None

    def take(self, room: int) -> Sequence[bytes]:
        """Return the next messages, none where there are no more; then :attr:`woken` is called once there are.

        Args:
            room: bytes; one message may exceed it.
        """
        if self._lost:
            count, self._lost = self._lost, 0
            return [self._message_lost(count)]
        messages: list[bytes] = []
        while True:
            entries = self._log.since(self._next, MESSAGES_MAX)
            for entry in entries:
                if room <= 0 and messages:
                    return messages
                self._next += 1
                if self._wanted.wants_all or self._wanted.wants(entry.kind, entry.name):
                    message = self._message(entry)
                    messages.append(message)
                    room -= len(message)
            if messages:
                return messages
            if not entries:
                self._waits(self)
                return messages

    def _message(self, entry: Entry) -> bytes:
        if entry.public is entry.whole:
            return entry.whole
        sees = self._seen.get(entry.registrant)
        if sees is None:
            sees = self._seen[entry.registrant] = self._sees(entry.registrant)
        return entry.whole if sees else entry.public

    def drops(self, first: int, dropped: Sequence[Entry]) -> None:
        """Take note of events that have left the log.

        Args:
            first: number of the oldest that is left.
            dropped: those that were before it, to the last.
        """
        if self._next >= first:
            return
        untold = dropped[self._next - first :]
        self._lost += sum(self._wanted.wants(entry.kind, entry.name) for entry in untold)
        self._next = first


class Subscriptions:
    """All of them."""

    def __init__(self, boot_id: str) -> None:
        self._boot_id = boot_id
        self._all: set[Subscription] = set()
        self._waiting: dict[Subscription, None] = {}
        self._news = trio.Event()

    def __len__(self) -> int:
        return len(self._all)

    def begin(
        self,
        log: EventLog,
        wanted: Filter,
        sees: Callable[[int], bool],
        lost: Callable[[str, int], bytes],
        *,
        cursor: str | None = None,
        oldest: bool = False,
    ) -> Subscription:
        """Begin to tell somebody: what happens from now on, or what came after a cursor, or all that is kept.

        Args:
            log: of events.
            wanted: what is to be told.
            sees: whether it may know all of the machines of a registrant, by uid.
            lost: returns the message that events were lost, by the cursor of the last of them and their number.
            cursor: of the last event that was told.
            oldest: begin with the oldest event that is kept.

        Raises:
            BadCursor: that is none.
            CursorExpired: what came after it is not known any more.
        """
        number = log.first if oldest else log.end
        if cursor is not None:
            number = log.after(position_of(cursor, self._boot_id))

        def message(count: int) -> bytes:
            return lost(cursor_of(self._boot_id, log.base), count)

        subscription = Subscription(log, number, wanted, sees, message, self._wait)
        self._all.add(subscription)
        return subscription

    def end(self, subscription: Subscription) -> None:
        """Tell somebody no more."""
        self._all.discard(subscription)
        self._waiting.pop(subscription, None)

    def wake(self) -> None:
        """Take note that there is something to tell."""
        if self._waiting:
            self._news.set()

    def drop(self, first: int, dropped: Sequence[Entry]) -> None:
        """Take note of events that have left the log; parameters as for :meth:`Subscription.drops`."""
        for subscription in self._all:
            subscription.drops(first, dropped)

    def _wait(self, subscription: Subscription) -> None:
        self._waiting[subscription] = None

    async def run(self) -> None:
        """Send events to the subscribers, for ever."""
        told_at = -math.inf
        while True:
            await self._news.wait()
            since = told_at if len(self._waiting) <= FEW else trio.current_time()
            await trio.sleep_until(since + GATHER_SECONDS)
            self._news = trio.Event()
            took = 0.0
            waiting, self._waiting = self._waiting, {}
            for number, subscription in enumerate(waiting, start=1):
                if subscription in self._all:
                    begun = time.perf_counter()
                    subscription.woken()
                    took += time.perf_counter() - begun
                if number % TOLD_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
            told_at = trio.current_time()
            await trio.sleep(PAUSE * took)
