"""Units of machines that were forgotten: they count towards the limits of their registrants until they are gone.

Nobody else ends those without a process that the manager keeps, as it does with a scope that failed.
"""

from __future__ import annotations

import logging

import trio

from moorage.machines.leftovers import Leftovers
from moorage.machines.machine import Machine
from moorage.machines.registry import Registry
from moorage.machines.store import BadRecord, Store
from moorage.pid1.errors import ManagerError
from moorage.pid1.hints import Hints
from moorage.pid1.manager import ASK_SECONDS, Manager, UnitHint

SCOPES = "machine-*.scope"
"""What the scopes of all machines match."""

_log = logging.getLogger(__name__)


class LeftUnits:
    """Keeps account of them, also on disk."""

    def __init__(
        self, registry: Registry, store: Store, manager: Manager, hints: Hints, leftovers: Leftovers
    ) -> None:
        self._registry = registry
        self._store = store
        self._manager = manager
        self._hints = hints
        self._leftovers = leftovers

    def restore(self) -> None:
        """Go on with the account of the instance before."""
        for name, found in self._store.left():
            if isinstance(found, BadRecord):
                _log.warning("Failed to load the note of the unit of machine %s, ignoring: %s", name, found)
            elif self._registry.leave(Machine(found)):
                self._hints.follow(found.unit, self._hint)
            else:
                self._store.vacate(name)

    def leave(self, machine: Machine) -> None:
        """Take note that a machine is forgotten, whose unit goes on."""
        if not self._registry.leave(machine):
            return
        self._hints.follow(machine.unit, self._hint)
        try:
            self._store.leave(machine.record)
        except OSError as error:
            _log.warning("Failed to note the unit of machine %s, ignoring: %s", machine.name, error)

    async def look(self) -> None:
        """Look which of the units are gone, and end those that have no process."""
        if not self._registry.left:
            return
        try:
            units = await self._manager.units(SCOPES, deadline=trio.current_time() + ASK_SECONDS)
            for machine in self._registry.left:
                if machine.unit not in units or await self._dismiss(machine):
                    self._vacate(machine.unit)
        except (ManagerError, OSError) as error:
            _log.warning("Failed to look for units of machines that were forgotten, ignoring: %s", error)

    async def _dismiss(self, machine: Machine) -> bool:
        deadline = trio.current_time() + ASK_SECONDS
        invocation_id = machine.record.placement.invocation_id
        return await self._leftovers.dismiss(machine.unit, invocation_id, deadline=deadline)

    def _hint(self, hint: UnitHint) -> None:
        if hint.kind == "removed":
            self._vacate(hint.unit)

    def _vacate(self, unit: str) -> None:
        self._hints.unfollow(unit, self._hint)
        if (machine := self._registry.vacate(unit)) is not None:
            try:
                self._store.vacate(machine.name)
            except OSError as error:
                _log.warning("Failed to remove the note of unit %s, ignoring: %s", unit, error)
