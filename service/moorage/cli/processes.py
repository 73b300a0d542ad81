"""Two ways to name a process to the service."""

from __future__ import annotations

from typing import Any

import msgspec

from moorage.client.leaders import named


def naming(pidfd: int, by_fd: str, by_name: str) -> tuple[dict[str, Any], list[int]]:
    """Return parameters that name a process.

    Args:
        pidfd: the process.
        by_fd: name of the parameter that takes the index of a file descriptor.
        by_name: name of the parameter that takes a ``ProcessId``.

    Returns:
        Parameters, and the file descriptors to send along.
    """
    name = named(pidfd)
    return ({by_fd: 0}, [pidfd]) if name is None else ({by_name: msgspec.to_builtins(name)}, [])
