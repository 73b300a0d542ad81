"""Holders of the name that a registration requests, and of the unit that its leader is in.

A machine that is about to end is waited for: its name, its leader and its unit are free then.
"""

from __future__ import annotations

import trio

from moorage.kernel.system import System
from moorage.machines.agenda import Agenda
from moorage.machines.errors import LeaderTaken
from moorage.machines.leader import lives
from moorage.machines.machine import Machine
from moorage.machines.model import Phase, Registration
from moorage.machines.registry import Registry
from moorage.pid1.errors import ManagerTimeout
from moorage.pid1.manager import Manager


class Holders:
    """Waits for machines that are about to end."""

    def __init__(self, registry: Registry, agenda: Agenda, manager: Manager, system: System) -> None:
        self._registry = registry
        self._agenda = agenda
        self._manager = manager
        self._hierarchy = system.hierarchy
        self._processes = system.processes

    async def wait(self, registration: Registration, deadline: float) -> None:
        """Wait for the ends of machines that are about to end, and that have the name, or the leader in their unit.

        Raises:
            LeaderTaken: the leader lives in the unit of another machine.
            ProcessGone: it has ended.
            ManagerTimeout: the manager does not say what became of the other machine.
        """
        group = self._processes.control_group(registration.leader.pid)
        holders = self._registry.get(registration.name), self._registry.by_control_group(group)
        if holders == (None, None):
            return
        for holder in holders:
            if holder is not None:
                await self._wait_until_gone(holder, deadline)
        holder = self._registry.by_control_group(self._processes.control_group(registration.leader.pid))
        if holder is not None and holder.record.placement.is_whole:
            raise LeaderTaken(holder.name, holder.record.placement)

    async def _wait_until_gone(self, machine: Machine, deadline: float) -> None:
        """Wait for the end of a machine that is about to end: its name, its leader and its unit are free then.

        That is one without processes, one in a unit that has been started anew since, and one in a scope that we stop.

        Raises:
            ManagerTimeout: the manager does not say what became of it.
        """
        stopped = machine.record.allocated and machine.phase is Phase.stopping
        if (
            self._has_processes(machine)
            and not stopped
            and not await self._is_started_anew(machine, deadline)
        ):
            return
        self._agenda.mark(machine, ask=True)
        with trio.move_on_at(deadline) as waiting:
            await machine.gone.wait()
        if waiting.cancelled_caught and not self._has_processes(machine):
            raise ManagerTimeout(f"end of {machine.unit}")

    def _has_processes(self, machine: Machine) -> bool:
        """Whether a machine's control group is still there, and not empty; another one may have its path by now."""
        placement = machine.record.placement
        if placement.shared:
            return lives(machine, self._processes)
        if self._hierarchy.identity(placement.control_group) != placement.control_group_id:
            return False
        state = self._hierarchy.events(placement.control_group)
        return state is not None and state.populated

    async def _is_started_anew(self, machine: Machine, deadline: float) -> bool:
        """Whether a unit that is not ours is in another invocation by now; its control group outlives restarts."""
        if machine.record.allocated:
            return False
        status = await self._manager.status(machine.unit, deadline=deadline)
        return status is None or status.invocation_id != machine.record.invocation_id
