"""The leaders of machines: which of them live, and how the others ended."""

from __future__ import annotations

from collections.abc import Callable

import trio

from moorage.kernel.process import Exit, NotAProcess, ProcessGone
from moorage.kernel.processes import Processes
from moorage.machines.model import Machine


class Leader:
    """One leader, watched by its pidfd until its parent has reaped it: only then does the kernel say how it ended.

    Attributes:
        ended: it has ended.
        exit: how; None while that is not known, and where the kernel does not tell it.
        reaped: set when nothing more will be known of its end.
    """

    def __init__(self, pidfd: int, processes: Processes, changed: Callable[[], None]) -> None:
        """Watch a leader.

        Args:
            pidfd: of it; belongs to this object from now on.
            processes: of this host.
            changed: called once, when it has ended.

        Raises:
            OSError: it cannot be watched; the pidfd stays the caller's.
        """
        self.ended = False
        self.exit: Exit | None = None
        self.reaped = trio.Event()
        self._pidfd = pidfd
        self._processes = processes
        self._changed = changed
        processes.watch(pidfd, self._note_end, self._note_reaping)

    @property
    def pidfd(self) -> int | None:
        """Borrowed; None once the leader has ended, or is watched no more."""
        return None if self.ended or self.reaped.is_set() else self._pidfd

    def elsewhere(self, control_group: str) -> str | None:
        """Return the control group that the leader is in, if it lives, and not in this one or below."""
        if self.pidfd is None or self._processes.has_exited(self._pidfd):
            return None
        try:
            found = self._processes.control_group(self._processes.pid_of(self._pidfd))
        except (ProcessGone, NotAProcess):
            return None
        # Whoever ended while that was read is shown in the root.
        if self._processes.has_exited(self._pidfd) or f"{found}/".startswith(f"{control_group}/"):
            return None
        return found

    def close(self) -> None:
        """Stop watching; nothing happens if that is over already."""
        if not self.reaped.is_set():
            self.reaped.set()
            self._processes.unwatch(self._pidfd)
            self._processes.close(self._pidfd)

    def _note_end(self) -> None:
        self.ended = True
        self._changed()

    def _note_reaping(self) -> None:
        self.exit = self._processes.exit_of(self._pidfd)
        self.close()


class Leaders:
    """The leaders of the machines that live: a file descriptor for each."""

    def __init__(self, processes: Processes, ended: Callable[[Machine], None]) -> None:
        """Watch nothing yet.

        Args:
            processes: of this host.
            ended: called with the machine whose leader has ended.
        """
        self._processes = processes
        self._ended = ended
        self._leaders: dict[Machine, Leader] = {}

    def keep(self, machine: Machine, pidfd: int) -> None:
        """Watch the leader of a machine by a pidfd, which belongs to this object from now on.

        Raises:
            OSError: it cannot be watched; the pidfd stays the caller's.
        """
        self._leaders[machine] = Leader(pidfd, self._processes, lambda: self._ended(machine))

    def open(self, machine: Machine) -> None:
        """Watch the leader of a machine, if it was named and has not ended.

        Raises:
            OSError: no file descriptor is left.
        """
        if machine.leader is None:
            return
        try:
            pidfd = self._processes.open(machine.leader.pid, machine.leader.pidfd_id, machine.leader.boot_id)
        except (ProcessGone, NotAProcess):
            return  # a machine lives as long as its unit, not as its leader
        try:
            self.keep(machine, pidfd)
        except OSError:
            self._processes.close(pidfd)
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
