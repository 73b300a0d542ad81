"""Deadlines for callbacks: many of them, watched by one task."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import trio


class Deadlines:
    """Functions that are called at a given time, unless that is cancelled before."""

    def __init__(self) -> None:
        self._due: dict[Hashable, tuple[float, Callable[[], None]]] = {}
        self._rest = trio.CancelScope()  # of run(), until the next one is due

    def set(self, key: Hashable, seconds: float, callback: Callable[[], None]) -> None:
        """Call a function after so many seconds, instead of the one that was set for the same key."""
        due = trio.current_time() + seconds
        self._due[key] = (due, callback)
        if due < self._rest.deadline:
            self._rest.deadline = due

    def clear(self, key: Hashable) -> None:
        """Cancel the call that was set for a key, if there is one."""
        if self._due.pop(key, None) is not None and not self._due:
            self._rest.deadline = math.inf  # nobody is woken for nothing

    async def run(self) -> None:
        """Call the functions that are due; does not return."""
        while True:
            # Few deadlines exist at any time, and this runs once per deadline, not per call: a heap would not pay.
            next_ = min((due for due, _ in self._due.values()), default=math.inf)
            with trio.CancelScope(deadline=next_) as self._rest:
                await trio.sleep_forever()
            self._call_due(trio.current_time())

    def _call_due(self, now: float) -> None:
        """Do so in a frame of its own, which keeps nothing alive until the next one is due."""
        for key in [key for key, (due, _) in self._due.items() if due <= now]:
            # A callback may have cancelled another one.
            expired = self._due.pop(key, None)
            if expired is not None:
                expired[1]()
