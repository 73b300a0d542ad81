"""Hints of the service manager, passed on to whoever waits for news of a unit.

The manager sends several signals for each change of each unit of the system. One look into one dictionary decides
whether a signal is of interest, and whose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Final, TypeAlias

import trio

from moorage.pid1.manager import Manager, UnitHint

Listener: TypeAlias = Callable[[UnitHint], None]
"""Called synchronously from the reader of the link: it only takes a note, and does not raise."""

ABOUT_ALL: Final = frozenset({"reloaded", "connected", "disconnected"})
"""Kinds of hints that are about all units."""

LOOK_SECONDS: Final = 0.1
"""Pause before a first look that no hint has called for, s."""

LOOK_SECONDS_MAX: Final = 1.0
"""Longest one, s. The manager runs jobs only while nobody asks it anything (its run queue has SD_EVENT_PRIORITY_IDLE):
on a loaded host, dozens of tasks that ask ten times a second keep it from what they wait for."""


class News:
    """Hints about some units, for one task that waits for them.

    Attributes:
        last: the last "changed" or "removed" hint about each unit that any came about.
    """

    def __init__(self) -> None:
        self.last: dict[str, UnitHint] = {}
        self._came = trio.Event()
        self._pause = LOOK_SECONDS

    def note(self, hint: UnitHint) -> None:
        """Take note of a hint."""
        if hint.unit:
            self.last[hint.unit] = hint
        self._came.set()

    async def next(self, seconds: float = math.inf) -> None:
        """Wait for a hint that has come since the last wait ended; return without one after so many seconds."""
        with trio.move_on_after(seconds):
            await self._came.wait()
        self._came = trio.Event()

    async def look_again(self, deadline: float = math.inf) -> None:
        """Wait as :meth:`next` does; return without a hint after a while, each time a longer one, or at a deadline."""
        came = self._came
        with trio.move_on_at(min(trio.current_time() + self._pause, deadline)):
            await came.wait()
        self._came = trio.Event()
        self._pause = LOOK_SECONDS if came.is_set() else min(1.5 * self._pause, LOOK_SECONDS_MAX)


class Hints:
    """Passes each hint on to the listeners of its unit, and those about all units to everybody."""

    def __init__(self, manager: Manager) -> None:
        """Have a manager deliver its hints here."""
        self._listeners: dict[str, tuple[Listener, ...]] = {}
        self._everybody: tuple[Listener, ...] = ()
        manager.watch(self._pass_on, self._listeners.__contains__)

    def follow_all(self, listener: Listener) -> None:
        """Have a listener called with the hints about all units: what came before may have been missed."""
        self._everybody += (listener,)

    def follow(self, unit: str, listener: Listener) -> None:
        """Have a listener called with the hints about a unit; nothing happens if it is already."""
        listeners = self._listeners.get(unit, ())
        if listener not in listeners:
            self._listeners[unit] = (*listeners, listener)

    def unfollow(self, unit: str, listener: Listener) -> None:
        """Undo `follow`; nothing happens if the listener does not follow the unit."""
        rest = tuple(each for each in self._listeners.get(unit, ()) if each != listener)
        if rest:
            self._listeners[unit] = rest
        else:
            self._listeners.pop(unit, None)

    @contextmanager
    def of(self, units: Iterable[str]) -> Generator[News]:
        """Collect the hints about some units, and those about all of them."""
        news, names = News(), tuple(units)
        for unit in names:
            self.follow(unit, news.note)
        self.follow_all(news.note)
        try:
            yield news
        finally:
            for unit in names:
                self.unfollow(unit, news.note)
            self._everybody = tuple(each for each in self._everybody if each != news.note)

    def _pass_on(self, hint: UnitHint) -> None:
        listeners = self._everybody if hint.kind in ABOUT_ALL else self._listeners.get(hint.unit, ())
        for listener in listeners:
            listener(hint)
