"""Whether a machine that is registered in place has its control group for itself.

It does if the leader is the main process of the service, or if every process in the group is the leader's descendant,
or the caller itself. Where others live there too, as in the session of a user, the machine is its leader alone: it
ends with the leader, Stop and Kill are for the leader, and other machines may be registered there. This is decided at
the time of the registration.

A subgroup of a unit was made by somebody for what is in it, so it is the machine's; unless it is the unit of another
service manager, that of a user.
"""

from __future__ import annotations

from moorage.kernel.process import ProcessGone, ProcessId
from moorage.kernel.processes import Processes
from moorage.kernel.system import System
from moorage.machines.model import Placement
from moorage.pid1.errors import NoSuchProperty, NoSuchUnit
from moorage.pid1.manager import Manager

PROCESSES_MAX = 1024
"""Processes looked at, 10 µs each, while other calls wait; with more of them there are others among them, as far as
anybody can tell in that time."""


async def is_shared(
    placement: Placement,
    leader: ProcessId,
    caller: ProcessId | None,
    manager: Manager,
    system: System,
    *,
    deadline: float,
) -> bool:
    """Return whether others live in the control group of a machine.

    Args:
        placement: where the machine is.
        leader: of the machine.
        caller: that registers it, where that is another process.
        manager: says what the main process of the unit is.
        system: says which processes there are.
        deadline: on trio's clock.

    Raises:
        ManagerError: as the manager says.
        OSError: no file descriptor is left.
    """
    if placement.subgroup is not None and not placement.subgroup.endswith((".service", ".scope")):
        return False
    if placement.subgroup is None and placement.unit.endswith(".service"):
        try:
            values = await manager.properties(placement.unit, ("MainPID",), deadline=deadline)
        except (NoSuchUnit, NoSuchProperty):
            values = {}
        if values.get("MainPID") == leader.pid:
            return False
    found = system.hierarchy.processes(placement.control_group, PROCESSES_MAX)
    known = {leader.pid}
    if caller is not None:
        known.add(caller.pid)
    return found is None or not all(_is_below(pid, known, system.processes) for pid in found)


def _is_below(pid: int, known: set[int], processes: Processes) -> bool:
    """Whether a process is one of those that are known, or below one; then it is known too."""
    above: list[int] = []
    while pid not in known:
        if pid <= 1 or len(above) >= PROCESSES_MAX:
            return False
        above.append(pid)
        try:
            pid = processes.parent(pid)
        except ProcessGone:
            return True  # it has ended meanwhile, or its parent has
    known.update(above)
    return True
