"""What the core asks of the kernel about processes, as one object that a test can replace.

A pidfd is a number that only this object can do anything with: whoever owns one closes it here.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal as signals
from typing import Protocol

from moorage.kernel import process
from moorage.kernel.poller import Readiness
from moorage.kernel.process import Exit, ProcessId


class Watcher(Protocol):
    """An object that wants to be told of the end of a process."""

    def process_ended(self) -> None:
        """Take note that the process has ended. It must not call :meth:`Processes.unwatch`."""
        ...

    def process_reaped(self) -> None:
        """Take note that its parent has reaped it, and call :meth:`Processes.unwatch`."""
        ...


class Processes(Protocol):
    """The processes of this host. The errors are those of the functions of the same name in `process`."""

    def boot_id(self) -> str:
        """Return the ID of this boot, 32 hexadecimal digits."""
        ...

    def open(self, pid: int, pidfd_id: int | None = None, boot: str | None = None) -> int:
        """Open a process by its number, and check that it is the one that was meant.

        Returns:
            A pidfd, owned by the caller.

        Raises:
            ProcessGone: there is no such process; it is a zombie; or the number belongs to another one now.
            NotAProcess: the number can be no PID, or it is a thread's or a kernel thread's.
            OSError: no file descriptor is left (EMFILE, ENFILE).
        """
        ...

    def identify(self, pid: int, pidfd_id: int | None = None, boot: str | None = None) -> ProcessId:
        """Name a process by its number, checked as :meth:`open` does, and with the same errors."""
        ...

    def duplicate(self, pidfd: int) -> int:
        """Return another pidfd of the same process, owned by the caller.

        Raises:
            OSError: no file descriptor is left (EMFILE).
        """
        ...

    def close(self, pidfd: int) -> None:
        """Close a pidfd."""
        ...

    def watch(self, pidfd: int, watcher: Watcher) -> None:
        """Tell an object, once each, when a process has ended, and then when its parent has reaped it.

        Args:
            pidfd: borrowed; :meth:`unwatch` comes before its end.
            watcher: told of the reaping at once where the kernel does not tell of that.

        Raises:
            OSError: the kernel refuses (ENOSPC, ENOMEM).
        """
        ...

    def unwatch(self, pidfd: int) -> None:
        """Undo :meth:`watch`."""
        ...

    def send_signal(self, pidfd: int, number: int) -> None:
        """Send a signal.

        Raises:
            ProcessLookupError: the process has ended.
        """
        ...

    def pid_of(self, pidfd: int) -> int:
        """Return the PID that a pidfd stands for."""
        ...

    def has_exited(self, pidfd: int) -> bool:
        """Return whether a process has ended; true for a zombie too."""
        ...

    def exit_of(self, pidfd: int) -> Exit | None:
        """Return how a process ended; None while it has not been reaped, and where the kernel does not tell."""
        ...

    def is_alive(self, found: ProcessId) -> bool:
        """Return whether a process that was named before has not ended.

        Raises:
            OSError: no file descriptor is left (EMFILE, ENFILE).
        """
        ...

    def control_group(self, pid: int) -> str:
        """Return the path of a process in the unified hierarchy.

        Raises:
            ProcessGone: it does not exist.
            NotAProcess: it is in no unified hierarchy.
        """
        ...

    def parent(self, pid: int) -> int:
        """Return the PID of a process's parent, 0 where it has none in this PID namespace.

        Raises:
            ProcessGone: the process does not exist.
        """
        ...

    def owner(self, pid: int) -> int:
        """Return the effective uid of a process.

        Raises:
            ProcessGone: it does not exist.
        """
        ...

    def uids(self, pid: int) -> frozenset[int]:
        """Return all uids of a process.

        Raises:
            ProcessGone: it does not exist.
        """
        ...

    def shares_our_ids(self, pid: int) -> bool:
        """Return whether the uids of a process mean what ours do.

        Raises:
            ProcessGone: it does not exist.
        """
        ...


class PidfdProcesses:
    """`Processes` by pidfds and /proc.

    Args:
        readiness: watches pidfds.
    """

    boot_id = staticmethod(process.boot_id)
    open = staticmethod(process.open_process)
    identify = staticmethod(process.identify)
    pid_of = staticmethod(process.pid_of)
    has_exited = staticmethod(process.has_exited)
    exit_of = staticmethod(process.exit_of)
    is_alive = staticmethod(process.is_alive)
    control_group = staticmethod(process.control_group)
    parent = staticmethod(process.parent)
    owner = staticmethod(process.owner)
    uids = staticmethod(process.uids)
    shares_our_ids = staticmethod(process.shares_our_ids)

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    def duplicate(self, pidfd: int) -> int:
        """See `Processes`."""
        return fcntl.fcntl(pidfd, fcntl.F_DUPFD_CLOEXEC, 3)

    def close(self, pidfd: int) -> None:
        """See `Processes`."""
        os.close(pidfd)

    def watch(self, pidfd: int, watcher: Watcher) -> None:
        """See `Processes`."""
        self._readiness.add(pidfd, select.EPOLLIN, _End(pidfd, self._readiness, watcher))

    def unwatch(self, pidfd: int) -> None:
        """See `Processes`."""
        self._readiness.remove(pidfd)

    def send_signal(self, pidfd: int, number: int) -> None:
        """See `Processes`."""
        signals.pidfd_send_signal(pidfd, number)


class _End:
    """The end of a process, and its reaping, as its pidfd tells of them. There is one for each machine."""

    __slots__ = ("_pidfd", "_readiness", "_seen", "_watcher")

    def __init__(self, pidfd: int, readiness: Readiness, watcher: Watcher) -> None:
        self._pidfd = pidfd
        self._readiness = readiness
        self._watcher = watcher
        self._seen = False

    def __call__(self, events: int) -> None:
        if not self._seen:
            self._seen = True
            self._watcher.process_ended()
        if events & select.EPOLLHUP or not process.tells_of_reaping():
            self._watcher.process_reaped()
        else:
            self._readiness.modify(self._pidfd, 0)  # which leaves EPOLLHUP: it is a zombie
