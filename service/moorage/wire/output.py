"""Messages waiting to be written, and the file descriptors that go with them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

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


_Chunk = tuple[bytes | memoryview, tuple[int, ...]]


class Output:
    """A queue of messages: (bytes, file descriptors that go with the first byte).

    Attributes:
        size: bytes in the queue.
    """

    __slots__ = ("_chunks", "size")

    def __init__(self) -> None:
        # Nothing where nothing is queued: thousands of connections may have nothing to write.
        self._chunks: list[_Chunk] | None = None
        self.size = 0

    def __len__(self) -> int:
        return len(self._chunks) if self._chunks else 0

    def append(self, data: bytes, fds: tuple[int, ...]) -> None:
        """Queue a message; the queue owns the file descriptors from now on."""
        if self._chunks is None:
            self._chunks = []
        self._chunks.append((data, fds))
        self.size += len(data)

    def first(self) -> tuple[bytes | memoryview, tuple[int, ...]] | None:
        """Return what to write next with one sendmsg(2), None if the queue is empty."""
        chunks = self._chunks
        if chunks is None:
            return None
        if len(chunks) > 1 and not chunks[0][1]:
            _join(chunks)
        return chunks[0]

    def sent(self, count: int) -> None:
        """Remove bytes that were written, at least one; close the file descriptors that were sent."""
        chunks = self._chunks
        assert chunks is not None
        data, fds = chunks[0]
        self.size -= count
        if count < len(data):
            # A view: slicing a message of 16 MiB would copy the rest of it at each write.
            chunks[0] = (memoryview(data)[count:], ())
        elif len(chunks) > 1:
            del chunks[0]
        else:
            self._chunks = None
        close_all(fds)

    def clear(self) -> None:
        """Remove everything, and close all file descriptors."""
        for _, fds in self._chunks or ():
            close_all(fds)
        self._chunks = None
        self.size = 0


def _join(chunks: list[_Chunk]) -> None:
    """Join the first messages, never across file descriptors: they belong to the message that begins there."""
    count, size = 0, 0
    for data, fds in chunks:
        size += len(data)
        if fds or (count and size > WRITE_SIZE):
            break
        count += 1
    if count > 1:
        chunks[:count] = [(b"".join(data for data, _ in chunks[:count]), ())]
