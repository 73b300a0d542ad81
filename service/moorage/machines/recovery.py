"""The start of this service: what the instance before has left is compared with what is there.

Records become machines again, or verdicts. Starts and changes that were cut off are finished or taken back. What looks
like machines and is none of ours is left alone, and logged.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

import trio

from moorage.authz.ownership import NotOwned
from moorage.kernel.cgroup import Hierarchy
from moorage.machines.agenda import Agenda
from moorage.machines.errors import Full, LeaderTaken, NameTaken
from moorage.machines.followers import Followers
from moorage.machines.helpers.status import HelperStates
from moorage.machines.intents import Intents
from moorage.machines.leases import Leases
from moorage.machines.left_units import SCOPES, LeftUnits
from moorage.machines.leftovers import Leftovers
from moorage.machines.machine import Machine
from moorage.machines.model import Intent, Wanted
from moorage.machines.observer import Observer
from moorage.machines.registry import Claim, Registry
from moorage.machines.retirement import Retirement
from moorage.machines.starts import Starts
from moorage.machines.store import BadRecord, Store
from moorage.names import machine_of_scope
from moorage.pid1.errors import ManagerError
from moorage.pid1.manager import ASK_SECONDS, Manager, UnitStatus
from moorage.pid1.references import References

_log = logging.getLogger(__name__)


class Recovery:
    """Finds again what there was."""

    def __init__(
        self,
        registry: Registry,
        store: Store,
        intents: Intents,
        agenda: Agenda,
        observer: Observer,
        retirement: Retirement,
        left_units: LeftUnits,
        starts: Starts,
        leases: Leases,
        leftovers: Leftovers,
        states: HelperStates,
        followers: Followers,
        manager: Manager,
        hierarchy: Hierarchy,
        references: References,
    ) -> None:
        self._registry = registry
        self._store = store
        self._intents = intents
        self._agenda = agenda
        self._observer = observer
        self._retirement = retirement
        self._left_units = left_units
        self._starts = starts
        self._leases = leases
        self._leftovers = leftovers
        self._states = states
        self._followers = followers
        self._manager = manager
        self._hierarchy = hierarchy
        self._references = references

    def restore(self) -> None:
        """Go on with the records. What became of their machines is to be looked at."""
        for name, found in self._store.load():
            if isinstance(found, BadRecord):
                _log.warning("Failed to load the record of machine %s, ignoring: %s", name, found)
            elif found.verdict is not None:
                self._retirement.keep(Machine(found))
            else:
                self._restore(Machine(found, watched=False))
        self._left_units.restore()

    def _restore(self, machine: Machine) -> None:
        self._registry.add(machine)
        self._followers.added(machine)
        self._follow_helpers(machine.record)
        try:
            self._observer.open_leader(machine)
            self._observer.watch(machine)
        except OSError as error:  # it is kept, and looked at until it can be watched
            _log.warning("Failed to watch machine %s, trying again: %s", machine.name, error)
        self._agenda.mark(machine, ask=True)

    def claim(self) -> list[tuple[Intent, Claim]]:
        """Claim what an instance that was killed had begun, before anybody else asks for it."""
        begun: list[tuple[Intent, Claim]] = []
        for name, intent in self._intents.starts():
            if isinstance(intent, BadRecord):
                _log.warning("Failed to load the intent of machine %s, ignoring: %s", name, intent)
                continue
            there = self._registry.get(name) or self._registry.verdict(name)
            began = intent.timestamp.monotonic
            if intent.leader is None or (there is not None and there.record.timestamp.monotonic >= began):
                self._intents.withdraw(name)  # it had just been completed
                continue
            try:
                begun.append((intent, self._registry.begin(name, intent.leader, intent.registrant)))
            except (NameTaken, LeaderTaken, Full) as error:
                _log.warning("Failed to resume the start of machine %s, ignoring: %s", name, error)
                self._intents.withdraw(name)
        return begun

    async def run(self, begun: Sequence[tuple[Intent, Claim]]) -> None:
        """Finish or take back what was begun, and look for what is not ours. All that ended was looked at by now."""
        self._references.succeed()
        async with trio.open_nursery() as nursery:
            for intent, claim in begun:
                nursery.start_soon(self._resume, intent, claim)
        await self._left_units.look()
        await self._report_others()

    async def _resume(self, intent: Intent, claim: Claim) -> None:
        """Finish or take back a start whose caller never got an answer: it may come and ask again."""
        machine: Machine | None = None
        with contextlib.ExitStack() as steps:
            steps.callback(self._registry.abandon, claim)
            steps.push(self._intents.withdrawal(intent.name))
            self._follow_helpers(intent)
            placement = await self._starts.resume(intent)
            if placement is not None:
                try:
                    machine = await self._starts.enter(intent, placement, claim, None)
                except (OSError, NotOwned, ManagerError) as error:
                    _log.warning("Failed to keep machine %s, ignoring: %s", intent.name, error)
            if machine is None:
                self._states.drop(helper.unit for helper in intent.helpers)
        if machine is not None and intent.lease:
            await self._leases.spare([machine])

    def _follow_helpers(self, wanted: Wanted) -> None:
        units = (helper.unit for helper in wanted.helpers)
        self._states.follow(units, since_usec=wanted.timestamp.monotonic)

    async def _report_others(self) -> None:
        """Log scopes that look like machines but are not ours. We leave them alone; their names stay blocked."""
        deadline = trio.current_time() + ASK_SECONDS
        try:
            units = await self._manager.units(SCOPES, deadline=deadline)
            for unit in units:
                status = (
                    await self._manager.status(unit, deadline=deadline) if self._is_other(unit) else None
                )
                if status is not None and self._is_other(unit) and not self._is_over(status):
                    _log.warning("%s is no machine of ours: %s.", unit, self._leftovers.describe(status))
            paths = await self._hierarchy.find(SCOPES)
        except (ManagerError, OSError) as error:
            _log.warning("Failed to look for scopes without a machine, ignoring: %s", error)
            return
        for path in paths:
            unit = path.rpartition("/")[2]
            if unit not in units and self._is_other(unit):
                _log.warning("%s has processes, but no unit.", path)
                self._leftovers.orphans[unit] = path

    def _is_over(self, status: UnitStatus) -> bool:
        """Whether a unit is that of a machine that has ended, and goes once it is kept no longer."""
        machine = self._registry.verdict(machine_of_scope(status.unit) or "")
        return machine is not None and machine.record.invocation_id == status.invocation_id

    def _is_other(self, unit: str) -> bool:
        name = machine_of_scope(unit)
        return self._registry.by_unit(unit) is None and (name is None or self._registry.claim(name) is None)
