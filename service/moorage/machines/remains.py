"""Ends what is left of a machine whose unit has ended, where the service manager has nothing to stop any more.

Processes are left that the manager spared (``KillMode=``, ``SendSIGKILL=``), or that outlived its SIGKILL. They get
what a stop of the unit would have sent to all: SIGTERM, and SIGKILL once ``TimeoutStopUSec=`` is over, unless the
unit has ``SendSIGKILL=no`` (systemd.kill(5)).
"""

from __future__ import annotations

import contextlib
import signal as signals

import trio

from moorage.machines.machine import Machine
from moorage.machines.model import Phase
from moorage.pid1.errors import NoSuchUnit
from moorage.pid1.manager import Manager


def is_all(machine: Machine) -> bool:
    """Whether what is left of an ended unit is all that there is of a machine."""
    return machine.phase is Phase.lingering


async def end(machine: Machine, manager: Manager, *, deadline: float) -> None:
    """End what is left of a machine; return when it has got its last signal, or is gone.

    Args:
        machine: one of the registry's, the whole of its unit.
        manager: has the unit.
        deadline: on trio's clock; also for the time that the processes have.

    Raises:
        ManagerError: as the manager says.
    """
    names = ("TimeoutStopUSec", "SendSIGKILL")
    values = await manager.properties(machine.unit, names, deadline=deadline)
    span = values["TimeoutStopUSec"]
    with contextlib.suppress(NoSuchUnit):  # no process is left
        await manager.kill(machine.unit, "all", signals.SIGTERM, deadline=deadline)
        patience = trio.current_time() + span / 1e6 if isinstance(span, int) else deadline
        with trio.move_on_at(min(patience, deadline)):
            await machine.gone.wait()
            return
        if values["SendSIGKILL"]:
            await manager.kill(machine.unit, "all", signals.SIGKILL, deadline=deadline)
