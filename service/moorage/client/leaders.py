"""The leader of a machine: how it is given, opened, and named to the service."""

from __future__ import annotations

import enum
import os
from typing import Protocol

from moorage.client.types import ProcessId
from moorage.kernel import process


class Caller(enum.Enum):
    """This process, as the leader of a machine."""

    CALLER = enum.auto()


CALLER = Caller.CALLER
"""This process is to be the leader."""


class HasPid(Protocol):
    """A child process, as subprocess, trio, asyncio and multiprocessing have it."""

    @property
    def pid(self) -> int | None:
        """Its PID; None if it has not been started."""
        ...


Leader = HasPid | int
"""A child process, or a pidfd."""


def open_leader(leader: Leader) -> int:
    """Return a pidfd of a leader; the caller owns it.

    Args:
        leader: a child that has not been waited for, or a pidfd, which stays the caller's.

    Raises:
        ValueError: neither is meant: the number is not that of a pidfd, or the process was not started.
        ProcessLookupError: the process has ended, and has been waited for.
        OSError: there are no file descriptors left.
    """
    if isinstance(leader, int):
        try:
            process.pid_of(leader)
        except (OSError, process.NotAProcess):
            raise ValueError(f"leader: {leader} is not a pidfd (see os.pidfd_open())") from None
        except process.ProcessGone as gone:
            raise ProcessLookupError(f"leader: {gone}") from None
        return os.dup(leader)
    if leader.pid is None:
        raise ValueError("leader: the process has not been started")
    return os.pidfd_open(leader.pid)


def named(pidfd: int) -> ProcessId | None:
    """Return the name of a process for the service; None if the pidfd is to be sent along.

    The system's service takes file descriptors from root only. A PID with the inode number of a pidfd identifies a
    process just as well.
    """
    if os.geteuid() == 0:
        return None
    try:
        found = process.process_id(pidfd)
    except (process.NotAProcess, process.ProcessGone):
        return None  # the service refuses it
    return ProcessId(found.pid, found.pidfd_id, found.boot_id)
