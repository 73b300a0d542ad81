"""Ways to name a process to the service."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import msgspec

from moorage.cli.address import Address
from moorage.cli.commands.options import opened_process
from moorage.client.leaders import named

Naming = tuple[dict[str, Any], list[int]]
"""Parameters that name a process, and the file descriptors to send along."""


def naming(pidfd: int, by_fd: str, by_name: str) -> Naming:
    """Return parameters that name a process.

    Args:
        pidfd: the process.
        by_fd: name of the parameter that takes the index of a file descriptor.
        by_name: name of the parameter that takes a ``ProcessId``.
    """
    name = named(pidfd)
    return ({by_fd: 0}, [pidfd]) if name is None else ({by_name: msgspec.to_builtins(name)}, [])


@contextmanager
def naming_pid(address: Address, pid: int, by_fd: str, by_name: str) -> Generator[Naming]:
    """Name a process by its PID, which on another host is all that is known of it; see :func:`naming`.

    Raises:
        Failure: there is no such process.
    """
    if address.host is not None:
        yield {by_name: {"pid": pid}}, []
        return
    with opened_process(pid) as opened:
        yield naming(opened, by_fd, by_name)
