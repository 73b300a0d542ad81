"""The ways to name a process to the service."""

from __future__ import annotations

import os
from typing import Any

from moorage.kernel import process


def naming(pidfd: int, by_fd: str, by_name: str) -> tuple[dict[str, Any], list[int]]:
    """Name a process.

    The system's instance receives file descriptors from root only. The number of a process together with the inode
    number of its pidfd says as much.

    Args:
        pidfd: the process.
        by_fd: parameter that takes the index of a file descriptor.
        by_name: parameter that takes a ``ProcessId``.

    Returns:
        Parameters, and the file descriptors to go along.
    """
    if os.geteuid() != 0:
        try:
            found = process.process_id(pidfd)
        except (process.NotAProcess, process.ProcessGone):
            pass  # for the service to refuse
        else:
            named = {"pid": found.pid, "pidfdId": found.pidfd_id, "bootId": found.boot_id}
            return {by_name: {key: value for key, value in named.items() if value is not None}}, []
    return {by_fd: 0}, [pidfd]
