"""The log of events on disk, so that cursors outlive this service.

One file for each part of the log (:class:`moorage.machines.events.Segment`), JSON, a line for each event after the
line that says what the file is. A line is one write(2) to a tmpfs, which does not wait; nothing is ever read while
calls are served. What cannot be written is dropped together with all that was written before it, since a log with a
hole would tell whoever comes back that nothing had happened there. Nothing here fails a call.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
from collections.abc import Iterator
from typing import TypeVar

import msgspec
from msgspec import Raw

from moorage.machines.events import (
    EVENT_BYTES_CEILING,
    EVENTS_CEILING,
    SEGMENTS_MAX,
    Entry,
    EventLog,
    Extent,
)

VERSION = 1
"""Version of the files. A reader takes its own and older ones."""

FILE_MAX = 2 * EVENT_BYTES_CEILING // SEGMENTS_MAX
"""Bytes of one file that are read: its events, and as much again for the names around them. The instance that wrote it
may have kept more than this one does."""

SHARE = 8
"""Part of the file system that the events may take, one in so many; what is around them takes as much again. Records
and verdicts are there too, and without space for these nothing can be registered: /run of a small host, or a
TemporaryFileSystem= of an administrator's, can be smaller than what the configuration allows."""

T = TypeVar("T")

_NAME = re.compile(r"[0-9a-f]{16}", re.ASCII)
_log = logging.getLogger(__name__)


class _Header(msgspec.Struct, frozen=True):
    version: int
    boot_id: str
    base: int


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    position: int
    kind: str
    name: str
    messages: tuple[Raw, ...]  # the whole one, and the public one where that differs
    invocation_id: str = ""
    uid: int = 0
    helpers: tuple[str, ...] = ()
    counted: tuple[str, int] | None = None


class _Bad(Exception):
    """A file that cannot be used; the reason says why."""


_encode = msgspec.json.Encoder().encode
_header = msgspec.json.Decoder(_Header)
_line = msgspec.json.Decoder(_Line)


class EventFiles:
    """A directory of files of events.

    Args:
        path: of the directory, made where it is not there.
        boot_id: of this boot.
        extent: how much is kept, where the file system is large enough for it.
    """

    def __init__(self, path: str, boot_id: str, extent: Extent = Extent()) -> None:  # noqa: B008 - frozen
        self._path = path
        self._extent = extent
        self._boot_id = boot_id
        self._directory: int | None = None
        self._file: int | None = None
        self._spoiled = False  # what is there has a hole, or nothing is

    def close(self) -> None:
        """Close what is open."""
        for descriptor in (self._file, self._directory):
            if descriptor is not None:
                os.close(descriptor)
        self._file = self._directory = None

    # Writing

    def append(self, log: EventLog, entry: Entry, *, begins: bool) -> None:
        """Write an event down.

        Args:
            log: to which it is about to be added.
            entry: the event.
            begins: it begins another part of the log.
        """
        if self._directory is None:
            return
        try:
            if self._file is None or begins or self._spoiled:
                self._begin(log.last)
            assert self._file is not None
            self.write(self._file, _encode(_stored(entry)) + b"\n")
        except OSError as error:
            self._spoil(error)

    def drop(self, base: int) -> None:
        """Remove the file of a part that has left the log, and all before it.

        Args:
            base: of the oldest part that is kept.
        """
        if self._directory is not None:
            self._remove(base)

    def _begin(self, base: int) -> None:
        name = f"{base:016x}"
        descriptor = os.open(
            name,
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
            dir_fd=self._directory,
        )
        try:
            self.write(descriptor, _encode(_Header(VERSION, self._boot_id, base)) + b"\n")
        except OSError:
            os.close(descriptor)
            os.unlink(name, dir_fd=self._directory)
            raise
        self._close_file()
        self._file = descriptor
        if self._spoiled:
            self._spoiled = False
            self._remove(base)

    def _spoil(self, error: OSError) -> None:
        """Invalidate the files: they have a gap.

        It keeps its space until something can be written again: a host without any must not seem to have some.
        """
        if self._spoiled:
            return
        _log.warning("Failed to keep events on disk, beginning again: %s", error)
        self._spoiled = True
        if self._file is not None:
            try:
                os.pwrite(self._file, b"\0", 0)
            except OSError:
                self._remove(1 << 64)

    def write(self, descriptor: int, content: bytes) -> None:
        """Write to a file.

        Raises:
            OSError: it could not be written as a whole.
        """
        if os.write(descriptor, content) != len(content):
            raise OSError(28, os.strerror(28))  # ENOSPC: tmpfs writes short only when it is full

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _remove(self, before: int) -> None:
        with contextlib.suppress(OSError):
            for name in self._names():
                if int(name, 16) < before:
                    with contextlib.suppress(OSError):  # a directory, which is none of ours
                        os.unlink(name, dir_fd=self._directory)

    # Reading

    def load(self, present: int) -> EventLog:
        """Read the log of the instance before, as far as it can be used.

        Args:
            present: µs since boot.
        """
        try:
            os.makedirs(self._path, mode=0o700, exist_ok=True)
            self._directory = os.open(
                self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
            )
            names = self._names()
            self._extent = _within(self._extent, os.fstatvfs(self._directory))
        except OSError as error:
            _log.warning("Failed to open %s, keeping events in memory only: %s", self._path, error)
            self.close()
            return EventLog(present, self._extent)
        log: EventLog | None = None
        for name in names:
            try:
                log = self._read(name, log)
            except (_Bad, OSError) as error:
                _log.warning("Failed to read events from %s/%s, ignoring them: %s", self._path, name, error)
                log = None
                self.drop(int(name, 16) + 1)
        if log is None:
            return self._fresh(present)
        log.trim()
        self.drop(log.base)
        if len(log.segments) == len(self._names()):
            self._resume(f"{log.segments[-1].base:016x}")
        return log

    def _fresh(self, present: int) -> EventLog:
        """Begin a log, also on disk: what happens first may happen to the next instance."""
        try:
            self._begin(present)
        except OSError as error:
            self._spoil(error)
        return EventLog(present, self._extent)

    def _names(self) -> list[str]:
        assert self._directory is not None
        return sorted(name for name in os.listdir(self._directory) if _NAME.fullmatch(name))

    def _resume(self, name: str) -> None:
        with contextlib.suppress(OSError):  # then the next event begins another file
            self._file = os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._directory)
            os.lseek(self._file, 0, os.SEEK_END)

    def _read(self, name: str, before: EventLog | None) -> EventLog:
        """Add the events of a file to those of the files before it.

        Returns:
            All of them; those of the file only, where one is missing between them.

        Raises:
            _Bad: it is damaged, of a newer version or of another boot, or no regular file of ours.
            OSError: it cannot be read.
        """
        content, whole = self._content(name)
        lines = content.split(b"\n")
        lines.pop()  # nothing, or a line that was being written when this service was killed
        if not lines:
            raise _Bad("it is empty")
        header = _decoded(_header, lines[0])
        if header.version > VERSION:
            raise _Bad(f"it is of version {header.version}, newer than {VERSION}")
        if header.boot_id != self._boot_id:
            raise _Bad("it is of another boot")
        if header.base != int(name, 16):
            raise _Bad("it has the name of another one")
        log = (
            before
            if before is not None and before.last == header.base
            else EventLog(header.base, self._extent)
        )
        if not (begins := log is before):
            self._remove(header.base)
        for entry in _entries(lines[1:], header.base):
            log.append(entry, begins=begins)
            begins = False
        if not whole:
            self._truncate(name, content.rfind(b"\n") + 1)
        return log

    def _content(self, name: str) -> tuple[bytes, bool]:
        """Return what a file has, and whether its last line is whole."""
        # O_NONBLOCK: what lies there might be a FIFO.
        descriptor = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._directory
        )
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _Bad("it is no regular file")
            if status.st_uid != os.geteuid():
                raise _Bad(f"it belongs to uid {status.st_uid}")
            if status.st_size > FILE_MAX:
                raise _Bad(f"it has {status.st_size} bytes")
            content = os.read(descriptor, FILE_MAX)
        finally:
            os.close(descriptor)
        return content, content.endswith(b"\n")

    def _truncate(self, name: str, size: int) -> None:
        descriptor = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)


def _within(extent: Extent, there: os.statvfs_result) -> Extent:
    """Return how much is kept on a file system."""
    return msgspec.structs.replace(extent, size=min(extent.size, there.f_blocks * there.f_frsize // SHARE))


def _stored(entry: Entry) -> _Line:
    messages = (entry.whole,) if entry.public is entry.whole else (entry.whole, entry.public)
    return _Line(
        position=entry.position,
        kind=entry.kind,
        name=entry.name,
        messages=tuple(Raw(each[:-1]) for each in messages),  # without the NUL that ends each on the wire
        invocation_id=entry.invocation_id,
        uid=entry.registrant,
        helpers=entry.helpers,
        counted=entry.counted,
    )


def _entries(lines: list[bytes], base: int) -> Iterator[Entry]:
    if len(lines) > EVENTS_CEILING // SEGMENTS_MAX:
        raise _Bad(f"it has {len(lines)} events")
    last = base
    for text in lines:
        line = _decoded(_line, text)
        if line.position <= last:
            raise _Bad("its events are not in order")
        last = line.position
        if not 0 < len(line.messages) <= 2:
            raise _Bad(f"an event has {len(line.messages)} messages")
        messages = [bytes(each) + b"\0" for each in line.messages]
        yield Entry(
            line.position,
            line.kind,
            line.name,
            line.invocation_id,
            line.uid,
            line.helpers,
            messages[0],
            messages[-1],
            line.counted,
        )


def _decoded(decoder: msgspec.json.Decoder[T], text: bytes) -> T:
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _Bad(str(error) or type(error).__name__) from None
