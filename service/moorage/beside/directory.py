"""The directories in which machined shows itself: its socket, and a file for each of its machines.

Of the files only the names are looked at: what is in them is private (so they say), and machined is asked. The file of
a machine is there when its registration was answered, and has its final name at once (rename(2) of a hidden one).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

from moorage.kernel.inotify import (
    IN_CREATE,
    IN_DELETE,
    IN_DONT_FOLLOW,
    IN_IGNORED,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_ONLYDIR,
    IN_Q_OVERFLOW,
    Event,
    Inotify,
    Readiness,
)
from moorage.names import is_host_name

PARENT = "/run/systemd"
SOCKETS = "machine"
SOCKET = "io.systemd.Machine"
MACHINES = "machines"

_CAME, _WENT = IN_CREATE | IN_MOVED_TO, IN_DELETE | IN_MOVED_FROM


class Directory:
    """Tells when machines of machined come and go, and when machined itself is back.

    Raises:
        OSError: no inotify instance or no watch is left, or there is no such parent.
    """

    def __init__(
        self,
        readiness: Readiness,
        came: Callable[[str], None],
        went: Callable[[str], None],
        returned: Callable[[], None],
        parent: str = PARENT,
    ) -> None:
        """Begin to watch.

        Args:
            readiness: calls back when there are events.
            came: called with the name of a machine that is there, or is there again.
            went: called with the name of one that is not.
            returned: called when machined listens anew, or when events were dropped.
            parent: of both directories.
        """
        self._parent = parent
        self._came, self._went, self._returned = came, went, returned
        self._inotify = Inotify(readiness, self._told)
        self._watches: dict[int, str] = {}
        try:
            self._above = self._inotify.add(parent, _CAME | IN_ONLYDIR)
            self._watch(SOCKETS)
            self._watch(MACHINES)
        except OSError:
            self._inotify.close()
            raise

    def close(self) -> None:
        """Watch nothing any more."""
        self._inotify.close()

    def names(self) -> list[str]:
        """Return the names of the machines that have a file."""
        try:
            found = os.listdir(f"{self._parent}/{MACHINES}")
        except OSError:  # machined never ran, or no file descriptor is left: then it is told of each later
            return []
        return [name for name in found if is_host_name(name)]

    def _watch(self, directory: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            mask = _CAME | _WENT | IN_ONLYDIR | IN_DONT_FOLLOW
            self._watches[self._inotify.add(f"{self._parent}/{directory}", mask)] = directory

    def _told(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.mask & IN_Q_OVERFLOW:
                self._returned()
            elif event.mask & IN_IGNORED:
                self._watches.pop(event.watch, None)
            elif event.watch == self._above:
                if event.name in {SOCKETS, MACHINES}:
                    self._watch(event.name)
                    self._returned()  # for what was in it before the watch
            elif self._watches.get(event.watch) == SOCKETS:
                if event.name == SOCKET and event.mask & _CAME:
                    self._returned()
            elif is_host_name(event.name):
                (self._came if event.mask & _CAME else self._went)(event.name)
