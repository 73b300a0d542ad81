"""The leader of a machine: whether it lives, and how it ended."""

from __future__ import annotations

from collections.abc import Callable

from moorage.kernel import process
from moorage.kernel.processes import Processes
from moorage.machines.machine import Machine
from moorage.machines.once import Once


def end_of(known: process.Exit | None) -> dict[str, object]:
    """Return what is told of the end of a leader, by how it ended if that is known."""
    return {} if known is None else {"status": known.status, "signal": known.signal}


class WatchedLeader:
    """One leader, watched by its pidfd until its parent has reaped it: only then does the kernel say how it ended.

    Attributes:
        exit: how; None while that is not known, and where the kernel does not tell it.
        reaped: set when nothing more will be known of its end.
    """

    def __init__(
        self,
        pidfd: int,
        processes: Processes,
        changed: Callable[[], None],
        known: Callable[[process.Exit | None], None],
    ) -> None:
        """Watch a leader.

        Args:
            pidfd: of it; belongs to this object from now on.
            processes: of this host.
            changed: called once, when it has ended.
            known: called once, when its parent has reaped it, with how it ended if the kernel tells that.

        Raises:
            OSError: it cannot be watched; the pidfd stays the caller's.
        """
        self.exit: process.Exit | None = None
        self.reaped = Once()
        self._pidfd = pidfd
        self._processes = processes
        self._changed = changed
        self._known = known
        self._ended = False
        processes.watch(pidfd, self._note_end, self._note_reaping)

    @property
    def ended(self) -> bool:
        """Whether it has ended, by what the kernel knows: its report may wait to be read."""
        if not self._ended and not self.reaped.is_set():
            self._ended = self._processes.has_exited(self._pidfd)
        return self._ended

    @property
    def pidfd(self) -> int | None:
        """Borrowed; None once the leader has ended, or is watched no more."""
        return None if self.ended or self.reaped.is_set() else self._pidfd

    def elsewhere(self, control_group: str) -> str | None:
        """Return the control group that the leader is in, if it lives, and not in this one or below."""
        if self.pidfd is None:
            return None
        try:
            found = self._processes.control_group(self._processes.pid_of(self._pidfd))
        except (process.ProcessGone, process.NotAProcess):
            return None
        # Whoever ended while that was read is shown in the root.
        if self.ended or f"{found}/".startswith(f"{control_group}/"):
            return None
        return found

    def close(self) -> None:
        """Stop watching; nothing happens if that is over already."""
        if not self.reaped.is_set():
            self.reaped.set()
            self._processes.unwatch(self._pidfd)
            self._processes.close(self._pidfd)

    def _note_end(self) -> None:
        self._ended = True
        self._changed()

    def _note_reaping(self) -> None:
        self.exit = self._processes.exit_of(self._pidfd)
        self.close()
        self._known(self.exit)


def lives(machine: Machine, processes: Processes) -> bool:
    """Whether the leader of a machine lives, which need not be watched."""
    if machine.leader is not None:
        return not machine.leader.ended
    leader = machine.record.leader
    return leader is not None and processes.is_alive(leader)
