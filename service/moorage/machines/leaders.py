"""The leaders of machines: which of them live, and how the others ended."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

import trio

from moorage.kernel import process
from moorage.kernel.poller import Readiness
from moorage.machines.model import Machine


class Leader:
    """One leader, watched by its pidfd until its parent has reaped it: only then does the kernel say how it ended.

    Attributes:
        ended: it has ended.
        exit: how; None while that is not known, and where the kernel does not tell it.
        reaped: set when nothing more will be known of its end.
    """

    def __init__(self, pidfd: int, readiness: Readiness, changed: Callable[[], None]) -> None:
        """Watch a leader.

        Args:
            pidfd: of it; belongs to this object from now on.
            readiness: watches it.
            changed: called once, when it has ended.

        Raises:
            OSError: it cannot be watched; the pidfd stays the caller's.
        """
        self.ended = False
        self.exit: process.Exit | None = None
        self.reaped = trio.Event()
        self._pidfd = pidfd
        self._readiness = readiness
        self._changed = changed
        readiness.add(pidfd, select.EPOLLIN, self._ready)

    @property
    def pidfd(self) -> int | None:
        """Borrowed; None once the leader has ended, or is watched no more."""
        return None if self.ended or self.reaped.is_set() else self._pidfd

    def elsewhere(self, control_group: str) -> str | None:
        """Return the control group that the leader is in, if it lives, and not in this one or below."""
        if self.pidfd is None or process.has_exited(self._pidfd):
            return None
        try:
            found = process.control_group(process.pid_of(self._pidfd))
        except (process.ProcessGone, process.NotAProcess):
            return None
        # Whoever ended while that was read is shown in the root.
        if process.has_exited(self._pidfd) or f"{found}/".startswith(f"{control_group}/"):
            return None
        return found

    def close(self) -> None:
        """Stop watching; nothing happens if that is over already."""
        if not self.reaped.is_set():
            self.reaped.set()
            self._readiness.remove(self._pidfd)
            os.close(self._pidfd)

    def _ready(self, events: int) -> None:
        first = not self.ended
        self.ended = True
        if events & select.EPOLLHUP or not process.tells_of_reaping():
            self.exit = process.exit_of(self._pidfd)
            self.close()
        else:
            self._readiness.modify(self._pidfd, 0)  # which leaves EPOLLHUP: it is a zombie
        if first:
            self._changed()


class Leaders:
    """The leaders of the machines that live: a file descriptor for each."""

    def __init__(self, readiness: Readiness, ended: Callable[[Machine], None]) -> None:
        """Watch nothing yet.

        Args:
            readiness: watches them.
            ended: called with the machine whose leader has ended.
        """
        self._readiness = readiness
        self._ended = ended
        self._leaders: dict[Machine, Leader] = {}

    def keep(self, machine: Machine, pidfd: int) -> None:
        """Watch the leader of a machine by a pidfd, which belongs to this object from now on.

        Raises:
            OSError: it cannot be watched; the pidfd stays the caller's.
        """
        self._leaders[machine] = Leader(pidfd, self._readiness, lambda: self._ended(machine))

    def open(self, machine: Machine) -> None:
        """Watch the leader of a machine, if it was named and has not ended.

        Raises:
            OSError: no file descriptor is left.
        """
        if machine.leader is None:
            return
        try:
            pidfd = process.open_process(machine.leader.pid, machine.leader.pidfd_id, machine.leader.boot_id)
        except (process.ProcessGone, process.NotAProcess):
            return  # a machine lives as long as its unit, not as its leader
        try:
            self.keep(machine, pidfd)
        except OSError:
            os.close(pidfd)
            raise

    def pidfd(self, machine: Machine) -> int | None:
        """Return the pidfd of a leader that lives, borrowed."""
        leader = self._leaders.get(machine)
        return None if leader is None else leader.pidfd

    def take(self, machine: Machine) -> Leader | None:
        """Return the leader of a machine, which belongs to the caller from now on; None where it was not watched."""
        return self._leaders.pop(machine, None)

    def close(self) -> None:
        """Stop watching all of them."""
        for leader in self._leaders.values():
            leader.close()
        self._leaders.clear()
