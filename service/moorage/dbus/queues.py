"""What waits on a connection: messages to be written, and calls for their turn."""

import os
from collections.abc import Sequence

import trio


class Outgoing:
    """A message, or what is left of it, that did not fit into the socket.

    Attributes:
        serial: of the message, or of the last one if these are several.
        data: what is left to be written.
        fds: file descriptors that go with its first byte.
        owned: they are closed once the message is written, or never will be; otherwise they are borrowed.
        begun: some of it is written.
    """

    __slots__ = ("begun", "data", "fds", "owned", "serial")

    def __init__(
        self, serial: int, data: bytes | memoryview, fds: Sequence[int], *, owned: bool = False
    ) -> None:
        self.serial = serial
        self.data = memoryview(data)
        self.fds = fds
        self.owned = owned
        self.begun = False

    def close(self) -> None:
        """Close the descriptors that belong to it; nothing is left to be done for it."""
        if self.owned:
            for fd in self.fds:
                os.close(fd)
            self.owned = False


class CallPlaces:
    """Places for calls under way."""

    def __init__(self, count: int) -> None:
        self.free = count
        self._turn = trio.StrictFIFOLock()
        self._freed = trio.Event()

    async def take(self, count: int) -> None:
        """Take some, as soon as there are so many."""
        if self.free < count or self._turn.locked():
            # One after the other: two that each hold a part of what they need would wait for ever.
            async with self._turn:
                while self.free < count:
                    self._freed = trio.Event()
                    await self._freed.wait()
        self.free -= count

    def give(self, count: int) -> None:
        """Give some back."""
        self.free += count
        self._freed.set()
