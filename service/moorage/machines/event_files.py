"""The log of events on disk, so that cursors outlive this service.

One file for each part of the log (:class:`moorage.machines.events.Segment`), JSON, a line for each event after the
line that says what the file is. A line is one write(2) to a tmpfs, which does not wait; nothing is ever read while
calls are served. What cannot be written is dropped together with all that was written before it, since a log with a
hole would tell whoever comes back that nothing had happened there. Nothing here fails a call.

A machine may outlive the events that tell of it. So that its end is told, whatever becomes of its record, notes of
what was told of it (:class:`moorage.machines.events.Note`) are lines among the events.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator
from itertools import islice
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
    Note,
    Told,
)

VERSION = 2
"""Version of the files. A reader takes its own and older ones."""

FILE_MAX = 2 * EVENT_BYTES_CEILING // SEGMENTS_MAX
"""Bytes of one file that are read: its events, and as much again for the names around them. The instance that wrote it
may have kept more than this one does."""

SHARE = 8
"""Part of the file system that the events may take, one in so many; what is around them takes as much again. Records
and verdicts are there too, and without space for these nothing can be registered: /run of a small host, or a
TemporaryFileSystem= of an administrator's, can be smaller than what the configuration allows."""

NOTES_AT_ONCE = 256
"""Notes in one write(2): where there is no space for all of them, not many are made in vain."""

T = TypeVar("T")

_BEGUN = "begun"
"""Name of a file until it is one of events."""

_NAME = re.compile(r"[0-9a-f]{16}", re.ASCII)
_log = logging.getLogger(__name__)


class _Header(msgspec.Struct, frozen=True):
    version: int
    boot_id: str
    base: int


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    position: int = 0
    kind: str = ""
    messages: tuple[Raw, ...] = ()  # the whole one, and the public one where that differs
    told: Told | None = None  # instead of these three: a note
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
        self._base = -1  # of what is in the file
        self._spoiled = False  # what is there has a hole, or nothing is

    def close(self) -> None:
        """Close what is open."""
        for descriptor in (self._file, self._directory):
            if descriptor is not None:
                os.close(descriptor)
        self._file = self._directory = None

    # Writing

    @property
    def spoiled(self) -> bool:
        """Whether nothing is written any more, as what is there has a hole: it has to be renewed."""
        return self._spoiled

    def renew(self, log: EventLog, notes: Iterable[Note]) -> None:
        """Begin again where there is a hole, if that is possible by now. All that was written before is dropped.

        Args:
            log: whose last event was the last to be told.
            notes: of all machines that have not ended.
        """
        try:
            self._begin(log.last, notes)
        except OSError as error:
            _log.debug("There is still no space for events: %s", error)
        else:
            self._spoiled = False
            self._remove(log.last)

    def note(self, notes: Iterable[Note]) -> None:
        """Write down what was told of machines whose beginning is about to be dropped."""
        if self._directory is None or self._spoiled:
            return
        assert self._file is not None, "else it is spoiled"
        try:
            self._note(self._file, notes)
        except OSError as error:
            self._spoil(error)

    def _note(self, descriptor: int, notes: Iterable[Note]) -> None:
        lines = (
            _encode(_Line(note.name, told=note.told, invocation_id=note.invocation_id)) + b"\n"
            for note in notes
        )
        while some := b"".join(islice(lines, NOTES_AT_ONCE)):
            self.write(descriptor, some)

    def append(self, log: EventLog, entry: Entry, *, begins: bool) -> None:
        """Write an event down.

        Args:
            log: to which it is about to be added.
            entry: the event.
            begins: it begins another part of the log.
        """
        if self._directory is None or self._spoiled:
            return
        try:
            if (
                begins and self._base != log.last
            ):  # else there is a file that has no event yet, but perhaps notes
                self._begin(log.last)
            assert self._file is not None, "else it is spoiled"
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

    def _begin(self, base: int, notes: Iterable[Note] = ()) -> None:
        """Begin a file, which is there as a whole or not at all, should this service be killed meanwhile."""
        descriptor = os.open(
            _BEGUN,
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
            dir_fd=self._directory,
        )
        try:
            self.write(descriptor, _encode(_Header(VERSION, self._boot_id, base)) + b"\n")
            self._note(descriptor, notes)
            os.rename(_BEGUN, f"{base:016x}", src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError:
            os.close(descriptor)
            os.unlink(_BEGUN, dir_fd=self._directory)
            raise
        self._close_file()
        self._file, self._base = descriptor, base

    def _spoil(self, error: OSError) -> None:
        """Invalidate the files: they have a gap.

        It keeps its space until something can be written again: a host without any must not seem to have some.
        """
        if self._spoiled:
            return
        _log.warning("Failed to keep events on disk, beginning again: %s", error)
        self._spoiled = True
        try:
            if self._file is None:
                raise error
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
        """Read the log of the instance before, as far as it can be used. It may exceed the limits.

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
        try:
            self._resume(log.last_part)
        except OSError as error:
            self._spoil(error)
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

    def _resume(self, base: int) -> None:
        self._file = os.open(
            f"{base:016x}", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._directory
        )
        os.lseek(self._file, 0, os.SEEK_END)
        self._base = base

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
        if log is before:
            log.begin()
        else:
            self._remove(header.base)
        for each in _entries(lines[1:], header.base):
            if isinstance(each, Note):
                log.note(each)
            else:
                log.append(each, begins=False)
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


def _entries(lines: list[bytes], base: int) -> Iterator[Entry | Note]:
    last, count = base, 0
    for text in lines:
        line = _decoded(_line, text)
        if line.told is not None:
            yield Note(line.name, line.invocation_id, line.told)
            continue
        count += 1
        if count > EVENTS_CEILING // SEGMENTS_MAX:
            raise _Bad(f"it has more than {EVENTS_CEILING // SEGMENTS_MAX} events")
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
