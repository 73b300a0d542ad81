"""Completion of starts, including those that the previous instance had begun: a machine, or nothing."""

from __future__ import annotations

import contextlib
import logging

import trio

from moorage.authz.ownership import NotOwned, runs_as
from moorage.kernel.process import NotAProcess, ProcessGone
from moorage.kernel.system import System
from moorage.machines.agenda import Agenda
from moorage.machines.final_account import now
from moorage.machines.followers import Followers
from moorage.machines.intents import Intents
from moorage.machines.machine import Machine
from moorage.machines.model import Intent, Placement, Record, record_of
from moorage.machines.observer import Observer
from moorage.machines.registry import Claim, Registry
from moorage.machines.scope_units import auxiliary_names
from moorage.machines.scopes import Scopes
from moorage.machines.store import Store
from moorage.pid1.errors import ManagerError
from moorage.pid1.manager import ASK_SECONDS

NEW_SECONDS = 0.02
"""For how long a new machine may wait for its first look, s. Where many are registered one after the other, a look
after each keeps the next caller waiting; in this time the manager starts some ten scopes, which are looked at
together."""

_log = logging.getLogger(__name__)


class Starts:
    """Enters machines that have got their place, and finds out what came of starts that were cut off."""

    def __init__(
        self,
        registry: Registry,
        store: Store,
        intents: Intents,
        agenda: Agenda,
        observer: Observer,
        scopes: Scopes,
        followers: Followers,
        system: System,
    ) -> None:
        self._registry = registry
        self._store = store
        self._intents = intents
        self._agenda = agenda
        self._observer = observer
        self._scopes = scopes
        self._followers = followers
        self._processes = system.processes
        self._clock = system.clock

    async def enter(self, intent: Intent, placement: Placement, claim: Claim, pidfd: int | None) -> Machine:
        """Enter a machine that has its place.

        Args:
            intent: what was asked for.
            placement: where it is.
            claim: to its name and its leader.
            pidfd: of its leader, which belongs to the machine if it is entered; None to open it.

        Raises:
            OSError: no file descriptor is left, or the record could not be written. Nothing is left of the machine.
            NotOwned: its leader became somebody else's meanwhile. The same.
            ManagerError: nor of its scope, but for what the manager did not take away.
        """
        machine = Machine(record_of(intent, placement, now(self._clock)))
        try:
            self._check_still_owned(machine.record)
            self._observer.watch(machine)
            if (before := self._registry.verdict(machine.name)) is not None:
                self._followers.unrecorded(before)
            self._store.save(machine.record)
            if pidfd is None:
                self._observer.open_leader(machine)
            else:
                self._observer.keep_leader(machine, pidfd)
        except (OSError, NotOwned):
            self._observer.unwatch(machine)
            self._remove_record(machine.name)
            if intent.allocated:
                await self._scopes.undo(intent.scope, self._intents.mark(intent), auxiliary_names(intent))
            raise
        self._registry.commit(claim, machine)
        self._followers.added(machine)
        # For what happened before the watch was there; but for that, the end of its leader is enough to be looked at.
        self._agenda.mark_new(machine, trio.current_time() + NEW_SECONDS)
        return machine

    async def resume(self, intent: Intent) -> Placement | None:
        """Find what came of a start, however long that takes: all that was asked for, or nothing.

        Args:
            intent: what was asked for; of one that was revoked nothing is to be left.

        Returns:
            Where the machine is; None if it is nowhere, and nothing is left of the start.
        """
        mark = self._intents.mark(intent)
        while True:
            deadline = trio.current_time() + (intent.start_by - now(self._clock).monotonic) / 1e6
            try:
                return await self._scopes.resume(intent, mark, keep=not intent.revoked, deadline=deadline)
            except (ManagerError, OSError) as error:
                what = "take back" if intent.revoked else "finish"
                _log.warning("Failed to %s the start of %s, trying again: %s", what, intent.scope, error)
                await trio.sleep(ASK_SECONDS)

    def _check_still_owned(self, record: Record) -> None:
        """Check that a leader has not become somebody else's while it was moved: by a set-user-ID program.

        What is in a user namespace of the caller's cannot leave it; what has ended harms nobody.
        """
        leader = record.leader
        if leader is None or record.registrant == 0 or record.registrant != record.leader_uid:
            return
        with contextlib.suppress(ProcessGone, NotAProcess):
            pidfd = self._processes.open(leader.pid, leader.pidfd_id, leader.boot_id)
            try:
                if not runs_as(leader.pid, pidfd, record.registrant, self._processes):
                    raise NotOwned(leader.pid, self._processes.owner(leader.pid))
            finally:
                self._processes.close(pidfd)

    def _remove_record(self, name: str) -> None:
        try:
            self._store.remove(name)
        except OSError as error:
            _log.warning("Failed to remove the record of machine %s, ignoring: %s", name, error)
