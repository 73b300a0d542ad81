"""Whether the unit of a machine is still the one that was registered."""

from __future__ import annotations

import trio

from moorage.machines.machine import Machine
from moorage.machines.model import Origin
from moorage.pid1.manager import ASK_SECONDS, Manager


def has_scope(machine: Machine) -> bool:
    """Whether the unit of a machine is a scope made for it, which ends with it, and with it all that was set."""
    record = machine.record
    adopted = record.origin is Origin.adopted and record.placement.is_whole
    return record.allocated or (adopted and machine.unit.endswith(".scope"))


async def is_renewed(machine: Machine, manager: Manager) -> bool:
    """Whether the unit of a machine is in another invocation by now: then it is to be spared.

    The name of a unit that is not ours is that of its next invocation as well, and its control group may outlive
    restarts. Between this look and an order that follows there is still a moment.

    Args:
        machine: one of the registry's.
        manager: has the unit.

    Raises:
        ManagerError: as the manager says.
    """
    if machine.record.allocated or machine.record.placement.shared:
        return False
    status = await manager.status(machine.unit, deadline=trio.current_time() + ASK_SECONDS)
    return status is None or status.invocation_id != machine.record.invocation_id
