"""Finding machines by what belongs to them."""

from __future__ import annotations

from moorage.kernel.process import NotAProcess, ProcessGone, ProcessId
from moorage.kernel.processes import Processes
from moorage.machines.machine import Machine
from moorage.machines.registry import Registry

ANCESTORS_MAX = 64
"""Parents asked for the machine that a process is in; a deeper tree of processes is no machine's."""


class Lookup:
    """Finds the machine of a process; the rest is the registry's."""

    def __init__(self, registry: Registry, processes: Processes) -> None:
        self._registry = registry
        self._processes = processes

    def by_process(
        self, pid: int, pidfd_id: int | None = None, boot_id: str | None = None
    ) -> Machine | None:
        """Find the machine that a process belongs to: as its leader, by its control group, or by its ancestors.

        The ancestors are asked as machined does: a process in a unit of a user inside the machine has the machine's
        first process above it. A machine in whose control group others live as well has its leader, and all that is
        below that.

        Args:
            pid: the process.
            pidfd_id: inode number that its pidfd must have.
            boot_id: boot that it must be of.
        """
        processes, registry = self._processes, self._registry
        try:
            found: ProcessId | None = processes.identify(pid, pidfd_id, boot_id)
            for _ in range(ANCESTORS_MAX):
                machine = registry.by_leader(found) if found is not None else None
                machine = machine or registry.by_control_group(processes.control_group(pid))
                if machine is not None or pid == 1:
                    return machine
                pid = processes.parent(pid)
                found = processes.identify(pid) if registry.shared else None
        except (ProcessGone, NotAProcess):
            pass
        return None
