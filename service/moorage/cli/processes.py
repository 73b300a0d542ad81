"""Two ways to name a process to the service."""

from __future__ import annotations

import os
from typing import Any

from moorage.kernel import process


def naming(pidfd: int, by_fd: str, by_name: str) -> tuple[dict[str, Any], list[int]]:
    """Return parameters that name a process.

    The system's service takes file descriptors from root only. A PID with the inode number of a pidfd identifies a
    process just as well.

    Args:
        pidfd: the process.
        by_fd: name of the parameter that takes the index of a file descriptor.
        by_name: name of the parameter that takes a ``ProcessId``.

    Returns:
        Parameters, and the file descriptors to send along.
    """
    if os.geteuid() != 0:
        try:
            found = process.process_id(pidfd)
        except (process.NotAProcess, process.ProcessGone):
            pass  # the service refuses it
        else:
            named = {"pid": found.pid, "pidfdId": found.pidfd_id, "bootId": found.boot_id}
            return {by_name: {key: value for key, value in named.items() if value is not None}}, []
    return {by_fd: 0}, [pidfd]
