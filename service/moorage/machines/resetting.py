"""Has the counters of machines begin at zero again: by bases of our own, since the kernel's are not ours to write."""

from __future__ import annotations

import msgspec

from moorage.kernel.cgroup import Hierarchy
from moorage.machines.agenda import Agenda
from moorage.machines.errors import MachineGone, PartOfUnit
from moorage.machines.looking import Looking
from moorage.machines.machine import Machine
from moorage.machines.registry import Registry
from moorage.machines.store import Store
from moorage.pid1.errors import NoSuchUnit


class Resetting:
    """Resets counters."""

    def __init__(
        self, registry: Registry, store: Store, agenda: Agenda, looking: Looking, hierarchy: Hierarchy
    ) -> None:
        self._registry = registry
        self._store = store
        self._agenda = agenda
        self._looking = looking
        self._hierarchy = hierarchy

    async def reset(self, machine: Machine) -> None:
        """Reset the counters of a machine and of its helpers; stored before it is in force.

        Args:
            machine: one of the registry's.

        Raises:
            PartOfUnit: it shares its control group, and has no counters.
            MachineGone: it has ended.
            ManagerError: the manager does not tell what it has counted.
            OSError: the record cannot be written, or no file descriptor is left; nothing is reset.
        """
        record = machine.record
        if record.placement.shared:
            raise PartOfUnit("ResetAccounting")
        try:
            network = await self._looking.network(machine)
        except NoSuchUnit:
            self._agenda.mark(machine, ask=True)
            raise MachineGone(machine.name) from None
        there = machine.is_there and self._registry.get(machine.name) is machine
        bases = self._looking.bases(machine, network) if there else None
        # Looked at last: what was read is of this group only if it is still there.
        if (
            bases is None
            or self._hierarchy.identity(record.control_group) != record.placement.control_group_id
        ):
            raise MachineGone(machine.name)
        self._store.save(msgspec.structs.replace(machine.record, bases=bases))
        machine.counts_from(bases)
