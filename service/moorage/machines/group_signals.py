"""Sends a signal to a part of a unit, where the service manager is too old to do it (KillUnitSubgroup of systemd 258).

Each process is signalled by its pidfd, and only while it is in the control group: its number may be another one's, and
it may have moved, between the look at the group and the signal. What is forked meanwhile is found by another look.
"""

from __future__ import annotations

from typing import Final

import trio

from moorage.kernel.process import NotAProcess, ProcessGone
from moorage.kernel.system import System

PROCESSES_MAX: Final = 4096
"""Processes of a group that are signalled one by one; 50 µs each, with others in between."""

LOOKS_MAX: Final = 16
"""How often a group is looked at again that has new processes each time: a fork bomb has no last one."""


async def signal_group(control_group: str, number: int, system: System) -> bool:
    """Send a signal to all processes in a control group and below it, each once.

    Returns:
        Whether they could be told; False for too many, and for a group that is no domain (cgroups(7)).

    Raises:
        OSError: no file descriptor is left, or no memory.
    """
    signalled: set[int] = set()
    for _ in range(LOOKS_MAX):
        found = system.hierarchy.processes(control_group, PROCESSES_MAX)
        if found is None:
            return False
        new = [pid for pid in found if pid not in signalled]
        if not new:
            break
        for pid in new:
            signalled.add(pid)
            _signal(control_group, pid, number, system)
            await trio.lowlevel.checkpoint()
    return True


def _signal(control_group: str, pid: int, number: int, system: System) -> None:
    processes = system.processes
    try:
        pidfd = processes.open(pid)
    except (ProcessGone, NotAProcess):
        return
    try:
        # Looked at when it is held: a process that has got the number since is somewhere else.
        group = processes.control_group(pid)
        if group == control_group or group.startswith(f"{control_group}/"):
            processes.send_signal(pidfd, number)
    except (ProcessGone, NotAProcess, ProcessLookupError):
        pass
    finally:
        processes.close(pidfd)
