"""Many deadlines watched by one task, for those that are no tasks themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import trio


class Deadlines:
    """Functions to be called at a time unless that is called off before."""

    def __init__(self) -> None:
        self._due: dict[Hashable, tuple[float, Callable[[], None]]] = {}
        self._next = math.inf  # what run() sleeps until
        self._changed = trio.Event()

    def set(self, key: Hashable, seconds: float, callback: Callable[[], None]) -> None:
        """Call a function after some seconds; replaces what was set for the same key."""
        due = trio.current_time() + seconds
        self._due[key] = (due, callback)
        if due < self._next:
            self._changed.set()

    def clear(self, key: Hashable) -> None:
        """Call it off, where it is still due."""
        self._due.pop(key, None)

    async def run(self) -> None:
        """Call for ever what is due."""
        while True:
            self._changed = trio.Event()
            # Few are set at any time, and this runs when one is set or due, not for each call: no heap is needed.
            self._next = min((due for due, _ in self._due.values()), default=math.inf)
            with trio.move_on_at(self._next):
                await self._changed.wait()
            now = trio.current_time()
            for key in [key for key, (due, _) in self._due.items() if due <= now]:
                # A callback may call off another one.
                expired = self._due.pop(key, None)
                if expired is not None:
                    expired[1]()
