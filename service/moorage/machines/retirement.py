"""The end of a machine: its verdict, its record, and who is told.

A machine leaves by one of two doors. It has ended, and is kept for a while with its verdict; or it is forgotten, and
its unit goes on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

import msgspec
import trio

from moorage.kernel.clock import Clock
from moorage.machines.agenda import Agenda
from moorage.machines.final_account import FinalAccounts
from moorage.machines.followers import Followers
from moorage.machines.left_units import LeftUnits
from moorage.machines.machine import Machine
from moorage.machines.model import Record
from moorage.machines.registry import VERDICT_KEEP_USEC, Registry
from moorage.machines.store import Store
from moorage.machines.verdicts import described

TIDY_SECONDS = 60.0
"""How often old verdicts are dropped."""

TIDIES = math.ceil(VERDICT_KEEP_USEC / 1e6 / TIDY_SECONDS) + 1
"""How often it is looked for them after a machine has gone; by then its verdict is old, too."""

_log = logging.getLogger(__name__)


class Retirement:
    """Takes machines out of the registry."""

    def __init__(
        self,
        registry: Registry,
        store: Store,
        agenda: Agenda,
        accounts: FinalAccounts,
        left_units: LeftUnits,
        followers: Followers,
        clock: Clock,
    ) -> None:
        self._registry = registry
        self._store = store
        self._agenda = agenda
        self._accounts = accounts
        self._left_units = left_units
        self._followers = followers
        self._clock = clock
        self._kept = trio.Event()  # something is to be dropped later

    async def run(self) -> None:
        """Drop old verdicts for ever; nothing is done while there are none."""
        while True:
            if not self._registry.left:
                await self._kept.wait()
            self._kept = trio.Event()
            for _ in range(TIDIES):
                await trio.sleep(TIDY_SECONDS)
                self._remove_records(self._registry.expire(self._clock.monotonic()))
                await self._left_units.look()

    def retire(self, machine: Machine, result: str | None) -> None:
        """End a machine that has no process left.

        Args:
            machine: one of the registry's.
            result: of its unit; None where the manager has forgotten it.
        """
        complete = self._accounts.close(machine, result)
        self._agenda.drop(machine)
        self._remove_records(self._registry.retire(machine))
        # Before its unit is let go: should this process end before the verdict is complete, nobody else knows.
        record = machine.record
        self._save(machine, record if complete else msgspec.structs.replace(record, verdict=None))
        self._kept.set()
        self._followers.ended(machine)
        if complete:
            self._told(machine)

    def keep(self, machine: Machine) -> None:
        """Keep a machine that has ended, with the verdict that its record has; it was found after a restart."""
        self._remove_records(self._registry.retire(machine))
        self._kept.set()

    def complete(self, machine: Machine) -> None:
        """Store a verdict that is complete; should we end before, the next instance finds it out again."""
        self._save(machine, machine.record)
        self._told(machine)

    def _told(self, machine: Machine) -> None:
        assert machine.record.verdict is not None
        _log.debug("Machine %s exited: %s.", machine.name, described(machine.record.verdict))
        self._followers.changed(machine)

    def forget(self, machine: Machine) -> None:
        """Drop the record of a machine, living or gone; its unit is left alone."""
        living = self._registry.get(machine.name) is machine
        if not living:
            self._followers.unrecorded(machine)
        self._registry.remove(machine)
        self._registry.drop_verdict(machine.name)
        self._agenda.drop(machine)
        self._remove_record(machine.name)
        if living:
            machine.gone.set()
            self._followers.ended(machine)
            self._left_units.leave(machine)
            self._kept.set()

    def _remove_records(self, machines: Iterable[Machine]) -> None:
        for machine in machines:
            if self._registry.get(machine.name) is None:
                self._followers.unrecorded(machine)
                self._remove_record(machine.name)

    def _save(self, machine: Machine, record: Record) -> None:
        if self._registry.verdict(machine.name) is not machine:
            return  # it was forgotten, or another one has the name
        try:
            self._store.save(record)
        except OSError as error:
            _log.warning("Failed to save how machine %s ended, ignoring: %s", record.name, error)
            if record.verdict is not None:
                self._followers.unrecorded(machine)
                self._remove_record(record.name)

    def _remove_record(self, name: str) -> None:
        try:
            self._store.remove(name)
        except OSError as error:
            _log.warning("Failed to remove the record of machine %s, ignoring: %s", name, error)
