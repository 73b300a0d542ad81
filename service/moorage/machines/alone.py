"""One after the other: what must not be done with one machine by two callers at once."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncGenerator

import trio

from moorage.pid1.errors import ManagerTimeout


class Alone:
    """Locks by name; there is none while nobody needs it.

    By name, since the names of units are at stake, also those of a machine that is gone.
    """

    def __init__(self) -> None:
        self._locks: dict[str, trio.Lock] = {}

    @contextlib.asynccontextmanager
    async def of(
        self, name: str, operation: str = "", *, deadline: float = math.inf
    ) -> AsyncGenerator[None]:
        """Hold the lock of a name.

        Args:
            name: of a machine.
            operation: what is to be done, for the error.
            deadline: on trio's clock.

        Raises:
            ManagerTimeout: others are busy with it.
        """
        lock = self._locks.setdefault(name, trio.Lock())
        try:
            with trio.move_on_at(deadline) as waiting:
                await lock.acquire()
            if waiting.cancelled_caught:
                raise ManagerTimeout(operation)
            try:
                yield
            finally:
                lock.release()
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._locks.pop(name, None)
