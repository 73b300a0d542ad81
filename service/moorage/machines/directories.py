"""Files of machines: their root directories, handed over, copies to and from the host, mounts."""

from __future__ import annotations

import errno
import os
from typing import Final

from moorage.kernel.process import NotAProcess, ProcessGone, open_process
from moorage.machines.inside import InsideFailed, Task, do
from moorage.machines.metadata import NoUIDShift, Unreadable, uid_shift_of
from moorage.machines.model import MachineClass, Record
from moorage.pid1.fork_server import Answer, ForkServer

OPEN_ROOT_SECONDS: Final = 5.0
"""For a root directory, s. It takes a tenth of one; a container's may be on a file server of its own (fuse(4))."""

COPY_SECONDS: Final = 3600.0
"""For a copy, s: 100 GiB at 30 MiB/s. It ends by itself; a guest whose file server does not answer is not waited for
any longer."""

COPIES_MAX: Final = 8
"""Copies under way: half of the places for children that are at work in machines."""

_OPEN_ROOT: Final = Task("root", OPEN_ROOT_SECONDS)
_COPY: Final = Task("copy", COPY_SECONDS)

BIND_SECONDS: Final = 5.0
"""For a mount, s. It takes a tenth of one; the place for it may be on a file server of the guest's (fuse(4))."""

_BIND: Final = Task("bind", BIND_SECONDS)


class Directories:
    """Opens directories of machines, and copies files and mounts them."""

    def __init__(self, server: ForkServer) -> None:
        self._server = server
        self._copies = 0

    async def open_root(self, machine: Record) -> int:
        """Open the root directory of a machine; the caller owns the descriptor.

        Raises:
            InsideFailed: it cannot be had: EOPNOTSUPP for a virtual machine.
        """
        if machine.class_ is MachineClass.vm:
            raise InsideFailed(errno.EOPNOTSUPP)
        answer = await do(self._server, machine, _OPEN_ROOT, None)
        try:
            _check(answer)
            if not answer.descriptors:
                raise InsideFailed(errno.EIO)
            return os.dup(answer.descriptors[0])
        finally:
            answer.close()

    async def copy(
        self, machine: Record, *, from_container: bool, host: str, container: str, replace: bool
    ) -> None:
        """Copy a file, or a directory with all that is in it. A caller that leaves does not stop it.

        Args:
            machine: a container.
            from_container: out of it, not into it.
            host: path on the host.
            container: path in the container.
            replace: replace what is there already, but for directories.

        Raises:
            InsideFailed: it cannot be done, or not all of it: EBUSY if too many are under way.
        """
        if self._copies >= COPIES_MAX:
            raise InsideFailed(errno.EBUSY)
        self._copies += 1
        try:
            question = {
                "from": from_container,
                "host": host,
                "container": container,
                "replace": replace,
                "shift": _shift(machine),
            }
            answer = await do(self._server, machine, _COPY, question)
        finally:
            self._copies -= 1
        answer.close()
        _check(answer)

    async def bind(
        self, machine: Record, *, source: str, destination: str, read_only: bool, mkdir: bool
    ) -> None:
        """Mount a file or a directory of the host in a container that has the users of the host.

        Raises:
            InsideFailed: it cannot be done: EOPNOTSUPP if the container has users of its own.
        """
        if _shift(machine):
            raise InsideFailed(errno.EOPNOTSUPP)
        question = {
            "source": source,
            "destination": destination,
            "readOnly": read_only,
            "mkdir": mkdir,
        }
        answer = await do(self._server, machine, _BIND, question)
        answer.close()
        _check(answer)


def _shift(machine: Record) -> int:
    """Return the UID shift of a container."""
    if machine.leader is None:
        raise InsideFailed(errno.ESRCH)
    try:
        leader = open_process(machine.leader.pid, machine.leader.pidfd_id, machine.leader.boot_id)
    except (ProcessGone, NotAProcess):
        raise InsideFailed(errno.ESRCH) from None
    try:
        return uid_shift_of(leader)
    except NoUIDShift:
        raise InsideFailed(errno.ENXIO) from None
    except Unreadable as exc:
        raise InsideFailed(exc.number) from None
    finally:
        os.close(leader)


def _check(answer: Answer) -> None:
    """Raise what a unit says that went wrong."""
    if answer.said != b"0":
        raise InsideFailed(int(answer.said) if answer.said.isdigit() else errno.EIO)
