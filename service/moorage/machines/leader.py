"""The leader of a machine: whether it lives, and how it ended."""

from __future__ import annotations

from typing import Protocol

from moorage.kernel import process
from moorage.kernel.processes import Processes
from moorage.machines.machine import Machine
from moorage.machines.once import Once


def end_of(known: process.Exit | None) -> dict[str, object]:
    """Return what is told of the end of a leader, by how it ended if that is known."""
    return {} if known is None else {"status": known.status, "signal": known.signal}


class LeaderWatcher(Protocol):
    """An object that wants to be told of the ends of leaders."""

    def leader_ended(self, machine: Machine) -> None:
        """Take note that the leader of a machine has ended."""
        ...

    def leader_reaped(self, machine: Machine, known: process.Exit | None) -> None:
        """Take note that its parent has reaped it, and of how it ended if the kernel tells that."""
        ...


class WatchedLeader:
    """One leader, watched by its pidfd until its parent has reaped it: only then does the kernel say how it ended.

    There are as many as machines: it has neither a dictionary nor functions of its own.

    Attributes:
        exit: how; None while that is not known, and where the kernel does not tell it.
        reaped: set when nothing more will be known of its end.
    """

    __slots__ = ("_ended", "_machine", "_pidfd", "_processes", "_watcher", "exit", "reaped")

    def __init__(
        self,
        pidfd: int,
        processes: Processes,
        machine: Machine,
        watcher: LeaderWatcher,
    ) -> None:
        """Watch a leader.

        Args:
            pidfd: of it; belongs to this object from now on.
            processes: of this host.
            machine: whose leader it is.
            watcher: told once of each, its end and its reaping.

        Raises:
            OSError: it cannot be watched; the pidfd stays the caller's.
        """
        self.exit: process.Exit | None = None
        self.reaped = Once()
        self._pidfd = pidfd
        self._processes = processes
        self._machine = machine
        self._watcher = watcher
        self._ended = False
        processes.watch(pidfd, self)

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

    def process_ended(self) -> None:
        """Take note of its end, and pass that on."""
        self._ended = True
        self._watcher.leader_ended(self._machine)

    def process_reaped(self) -> None:
        """Take note of how it ended, pass that on, and stop watching."""
        self.exit = self._processes.exit_of(self._pidfd)
        self.close()
        self._watcher.leader_reaped(self._machine, self.exit)


def lives(machine: Machine, processes: Processes) -> bool:
    """Whether the leader of a machine lives, which need not be watched."""
    if machine.leader is not None:
        return not machine.leader.ended
    leader = machine.record.leader
    return leader is not None and processes.is_alive(leader)
