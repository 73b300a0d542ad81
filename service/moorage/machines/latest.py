"""A value that changes, and its reader, which may be slow."""

from __future__ import annotations

from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Latest(Generic[T]):
    """The latest of the values that somebody sets, for one reader.

    It holds one value and no queue: a slow reader misses what came in between, but never the last value before
    :meth:`close`. Iterate over it to read; the iteration ends when it is closed and its last value has been read.
    """

    def __init__(self) -> None:
        self._values: list[T] = []
        self._unread = False
        self._closed = False
        self._changed = trio.Event()

    def set(self, value: T) -> None:
        """Replace the value. One that equals the value before it is no change."""
        if self._values != [value]:
            self._values = [value]
            self._unread = True
            self._changed.set()

    def close(self) -> None:
        """End the iteration after the last value."""
        self._closed = True
        self._changed.set()

    def __aiter__(self) -> Latest[T]:
        return self

    async def __anext__(self) -> T:
        while not self._unread:
            if self._closed:
                raise StopAsyncIteration
            self._changed = trio.Event()
            await self._changed.wait()
        self._unread = False
        return self._values[0]
