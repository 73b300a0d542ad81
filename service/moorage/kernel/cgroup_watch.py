"""Control groups watched for changes of ``cgroup.events`` (Documentation/admin-guide/cgroup-v2.rst of the kernel)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from typing import Protocol

from moorage.kernel.cgroup import ROOT

INOTIFY_READ_SIZE = 16 * 1024
"""Bytes of events taken in one turn of the loop: 1,000 events without names; the rest is read in the next turn."""

_IN_MODIFY, _IN_IGNORED, _IN_Q_OVERFLOW = 0x2, 0x8000, 0x4000
_EVENT = struct.Struct("iIII")


class Readiness(Protocol):
    """The part of :class:`moorage.kernel.poller.Readiness` that a watch needs."""

    def add(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Have a function called when an fd is ready."""
        ...

    def remove(self, fd: int) -> None:
        """Undo :meth:`add`."""
        ...


class InotifyWatch:
    """Tells when ``cgroup.events`` of a group changes: one inotify instance for all groups (inotify(7)).

    Well-kept inotify libraries either own a loop or a thread; what is needed here are three system calls.

    Raises:
        OSError: no inotify instance is left (fs.inotify.max_user_instances).
    """

    def __init__(
        self, readiness: Readiness, changed: Callable[[str], None], overflow: Callable[[], None]
    ) -> None:
        """Start watching.

        Args:
            readiness: calls back when there are events.
            changed: called with the path of a group whose ``cgroup.events`` may have changed.
            overflow: called when the kernel dropped events (fs.inotify.max_queued_events).
        """
        self._library = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._call("inotify_init1", os.O_CLOEXEC | os.O_NONBLOCK)
        self._groups: dict[int, str] = {}
        self._watches: dict[str, int] = {}
        self._changed, self._overflow, self._readiness = changed, overflow, readiness
        readiness.add(self._descriptor, 1, self._ready)  # EPOLLIN

    def __len__(self) -> int:
        return len(self._groups)

    def _call(self, name: str, *arguments: object) -> int:
        result = int(getattr(self._library, name)(*arguments))
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def add(self, control_group: str) -> bool:
        """See `Watch`."""
        if control_group in self._watches:
            return True
        path = f"{ROOT}{control_group}/cgroup.events".encode()
        try:
            watch = self._call("inotify_add_watch", self._descriptor, path, _IN_MODIFY)
        except FileNotFoundError:
            return False
        self._groups[watch] = control_group
        self._watches[control_group] = watch
        return True

    def remove(self, control_group: str) -> None:
        """See `Watch`."""
        watch = self._watches.pop(control_group, None)
        if watch is None:
            return
        # An event for it may be in the queue still: the kernel does not reuse numbers, so that it is just unknown.
        del self._groups[watch]
        try:
            self._call("inotify_rm_watch", self._descriptor, watch)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: the group is gone, and its watch with it
                raise

    def close(self) -> None:
        """See `Watch`."""
        self._readiness.remove(self._descriptor)
        os.close(self._descriptor)

    def _ready(self, _events: int) -> None:
        try:
            data = os.read(self._descriptor, INOTIFY_READ_SIZE)
        except BlockingIOError:
            return
        # A group that changes several times at once is worth one look.
        changed: dict[str, None] = {}
        position = 0
        while position < len(data):
            watch, mask, _cookie, length = _EVENT.unpack_from(data, position)
            position += _EVENT.size + length
            if mask & _IN_Q_OVERFLOW:
                self._overflow()
            elif (group := self._groups.get(watch)) is not None:
                if mask & _IN_IGNORED:
                    del self._groups[watch], self._watches[group]
                changed[group] = None
        for group in changed:
            self._changed(group)
