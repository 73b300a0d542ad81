"""Directories of machines: their roots, handed over."""

from __future__ import annotations

import errno
import os
from typing import Final

from moorage.machines.inside import InsideFailed, Task, do
from moorage.machines.model import MachineClass, Record
from moorage.pid1.manager import Manager
from moorage.pid1.oneshot import CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE
from moorage.probes import root as program

OPEN_ROOT_SECONDS: Final = 5.0
"""For a root directory, s. It takes a tenth of one; a container's may be on a file server of its own (fuse(4))."""

_TASK: Final = Task(
    program.__file__,
    "Open the root directory of {}",
    CAP_SYS_PTRACE | CAP_DAC_READ_SEARCH,
    OPEN_ROOT_SECONDS,
)


class Directories:
    """Opens directories of machines."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    async def open_root(self, machine: Record) -> int:
        """Open the root directory of a machine; the caller owns the descriptor.

        Raises:
            InsideFailed: it cannot be had: EOPNOTSUPP for a virtual machine.
        """
        if machine.class_ is MachineClass.vm:
            raise InsideFailed(errno.EOPNOTSUPP)
        answer = await do(self._manager, machine, _TASK, None)
        try:
            if answer.said != b"0" or not answer.descriptors:
                raise InsideFailed(int(answer.said) if answer.said.isdigit() else errno.EIO)
            return os.dup(answer.descriptors[0])
        finally:
            answer.close()
