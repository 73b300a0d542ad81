"""inotify(7): one instance, and what the kernel reports by it.

Well-kept inotify libraries either own a loop or a thread; what is needed here are three system calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

INOTIFY_READ_SIZE = 288
"""Bytes of events taken in one turn of the loop: 18 events without names, each of which may have a machine looked at,
or at least one with a name (inotify(7)); the rest is read in the next turn."""

IN_MODIFY, IN_ATTRIB, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x2, 0x4, 0x40, 0x80, 0x100, 0x200
IN_Q_OVERFLOW, IN_IGNORED, IN_ONLYDIR, IN_DONT_FOLLOW = 0x4000, 0x8000, 0x1000000, 0x2000000
IN_ONESHOT = 0x80000000
_EVENT = struct.Struct("iIII")


class Readiness(Protocol):
    """The part of :class:`moorage.kernel.poller.Readiness` that is needed here."""

    def add(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Have a function called when an fd is ready."""
        ...

    def remove(self, fd: int) -> None:
        """Undo :meth:`add`."""
        ...


class Event(NamedTuple):
    """One event.

    Attributes:
        watch: number of the watch; -1 if events were dropped (IN_Q_OVERFLOW).
        mask: what happened.
        name: of the entry of a watched directory; empty where the event is about what is watched itself.
    """

    watch: int
    mask: int
    name: str


_NO_INSTANCE: Final = "No inotify instance (fs.inotify.max_user_instances) or file descriptor is left"
_NO_WATCH: Final = "No inotify watch is left (fs.inotify.max_user_watches)"
_LIMITS: Final = {
    ("inotify_init1", errno.EMFILE): _NO_INSTANCE,
    ("inotify_add_watch", errno.ENOSPC): _NO_WATCH,
}
"""Which limit has been reached (inotify(7), ERRORS): "Too many open files" and "No space left on device" mislead."""


class InotifyLimit(OSError):
    """A limit of the kernel's for inotify has been reached; the text says which."""


class Inotify:
    """An inotify instance.

    Raises:
        InotifyLimit: none is left (fs.inotify.max_user_instances), or no file descriptor.
    """

    def __init__(self, readiness: Readiness, told: Callable[[Sequence[Event]], None]) -> None:
        """Watch nothing yet.

        Args:
            readiness: calls back when there are events.
            told: called with them.
        """
        self._library = ctypes.CDLL(None, use_errno=True)
        self._told, self._readiness = told, readiness
        self._descriptor = self._call("inotify_init1", os.O_CLOEXEC | os.O_NONBLOCK)
        readiness.add(self._descriptor, 1, self._ready)  # EPOLLIN

    def _call(self, name: str, *arguments: object) -> int:
        result = int(getattr(self._library, name)(*arguments))
        if result < 0:
            number = ctypes.get_errno()
            if (limit := _LIMITS.get((name, number))) is not None:
                raise InotifyLimit(number, limit)
            raise OSError(number, os.strerror(number))
        return result

    def add(self, path: str, mask: int) -> int:
        """Watch a file or a directory, and return the number of the watch.

        Raises:
            InotifyLimit: no watch is left (fs.inotify.max_user_watches).
            OSError: it is not there.
        """
        return self._call("inotify_add_watch", self._descriptor, os.fsencode(path), ctypes.c_uint32(mask))

    def remove(self, watch: int) -> None:
        """Watch something no more; nothing happens if it is gone, and its watch with it.

        An event for it may be in the queue still: the kernel does not reuse numbers.
        """
        try:
            self._call("inotify_rm_watch", self._descriptor, watch)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    def close(self) -> None:
        """Watch nothing any more."""
        self._readiness.remove(self._descriptor)
        os.close(self._descriptor)

    def _ready(self, _events: int) -> None:
        try:
            data = os.read(self._descriptor, INOTIFY_READ_SIZE)
        except BlockingIOError:
            return
        events: list[Event] = []
        position = 0
        while position < len(data):
            watch, mask, _cookie, length = _EVENT.unpack_from(data, position)
            position += _EVENT.size
            name = data[position : position + length].rstrip(b"\0")
            events.append(Event(watch, mask, os.fsdecode(name)))
            position += length
        self._told(events)
