"""Messages waiting to be written, and the file descriptors that go with them."""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice

WRITE_SIZE = 64 * 1024
"""Bytes up to which short messages are joined, so that a stream of them does not cost a system call each."""


def close_all(fds: Iterable[int]) -> None:
    """Close file descriptors. Errors of close(2) are ignored: they are about data that others wrote."""
    for fd in fds:
        with suppress(OSError):  # the file descriptor is closed all the same (close(2))
            os.close(fd)


def duplicates_of(fds: Sequence[int]) -> list[int]:
    """Duplicate file descriptors, all or none of them.

    Raises:
        OSError: one of them is not open, or there is no room for more.
    """
    duplicates: list[int] = []
    try:
        for fd in fds:
            duplicates.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))  # noqa: PERF401  # a loop keeps the others if one fails
    except BaseException:
        close_all(duplicates)
        raise
    return duplicates


class Output:
    """A queue of messages: (bytes, file descriptors that go with the first byte).

    Attributes:
        size: bytes in the queue.
    """

    __slots__ = ("_chunks", "size")

    def __init__(self) -> None:
        self._chunks: deque[tuple[bytes | memoryview, tuple[int, ...]]] = deque()
        self.size = 0

    def __len__(self) -> int:
        return len(self._chunks)

    def append(self, data: bytes, fds: tuple[int, ...]) -> None:
        """Queue a message; the queue owns the file descriptors from now on."""
        self._chunks.append((data, fds))
        self.size += len(data)

    def first(self) -> tuple[bytes | memoryview, tuple[int, ...]]:
        """Return what to write next with one sendmsg(2). The queue must not be empty."""
        chunks = self._chunks
        if len(chunks) > 1 and not chunks[0][1]:
            self._join()
        return chunks[0]

    def _join(self) -> None:
        # Never across file descriptors: they belong to the message that begins at their position.
        chunks, count, size = self._chunks, 0, 0
        for data, fds in chunks:
            size += len(data)
            if fds or (count and size > WRITE_SIZE):
                break
            count += 1
        if count > 1:
            joined = b"".join(data for data, _ in islice(chunks, count))
            for _ in range(count):
                chunks.popleft()
            chunks.appendleft((joined, ()))

    def sent(self, count: int) -> None:
        """Remove bytes that were written, at least one; close the file descriptors that were sent."""
        data, fds = self._chunks.popleft()
        self.size -= count
        if count < len(data):
            # A view: slicing a message of 16 MiB would copy the rest of it at each write.
            self._chunks.appendleft((memoryview(data)[count:], ()))
        close_all(fds)

    def clear(self) -> None:
        """Remove everything, and close all file descriptors."""
        for _, fds in self._chunks:
            close_all(fds)
        self._chunks.clear()
        self.size = 0
