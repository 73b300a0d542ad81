"""Asks machines to end that are not the whole of their unit: by signals, since their unit is not to be stopped.

The supervisor is asked, whose business the machine is. Where it ends without the machine, or is not there, the leader
is; where others live in the machine's control group, the leader alone. Each is asked once: many programs take a second
SIGTERM for "abort now" (as machine_stop() of machined, which asks once and forgets). Nothing insists. A machine is
stopping for as long as one of them that was asked is there, and has time left; after that it runs on.
"""

from __future__ import annotations

import logging
import os
import signal as signals
from collections.abc import Sequence
from typing import Final

import trio

from moorage.authz.ownership import may_signal
from moorage.kernel.process import NotAProcess, ProcessGone, ProcessId
from moorage.kernel.system import System
from moorage.machines.detached import Detached
from moorage.machines.errors import NotStoppable
from moorage.machines.followers import Follower
from moorage.machines.machine import Machine
from moorage.machines.model import Phase, Record
from moorage.machines.registry import Registry
from moorage.machines.store import Store

ASKED_SECONDS: Final = 200.0
"""For how long a machine that was asked to end counts as stopping: as long as the default deadline of a stop."""

LOOK_SECONDS: Final = 1.0
"""Between two looks at a process that was asked, s; for as long the rest of the machine may follow it."""

_log = logging.getLogger(__name__)


class Asking(Follower):
    """Asks machines to end, and sends signals to their leaders and supervisors."""

    def __init__(self, registry: Registry, store: Store, system: System, detached: Detached) -> None:
        self._registry = registry
        self._store = store
        self._processes = system.processes
        self._detached = detached
        # These users could ask the service manager directly: there is nothing to protect from them.
        self._trusted = frozenset({0, os.geteuid()})

    def begin(self, machine: Machine) -> None:
        """Ask a machine to end, unless it is stopping already. That goes on without the caller.

        Raises:
            NotStoppable: nobody is there who could be asked.
            OSError: no file descriptor is left.
        """
        if machine.phase is not Phase.stopping:
            left = self._ask(machine, _addressees(machine.record))
            if not left:
                raise NotStoppable
            self._go_on(machine, left)

    def spare(self, machine: Machine) -> None:
        """Take note that a machine did not listen, and that nothing else is done."""
        if self._registry.get(machine.name) is not machine:
            return
        machine.spared()
        try:
            self._store.save(machine.record)
        except OSError as error:
            _log.warning("Failed to note that machine %s runs on, ignoring: %s", machine.name, error)

    def added(self, machine: Machine) -> None:
        """Go on with a machine that an earlier instance has asked to end."""
        record = machine.record
        if record.asked is not None and not record.placement.is_whole:
            self._go_on(machine, _addressees(record))

    def _go_on(self, machine: Machine, asked: Sequence[ProcessId]) -> None:
        machine.asking = begun = object()
        self._detached.start(self._see_through, machine, begun, asked)

    def _ask(self, machine: Machine, addressees: Sequence[ProcessId]) -> Sequence[ProcessId]:
        """Ask the first of them that exists; return it and those after it, or an empty sequence."""
        for number, addressee in enumerate(addressees):
            try:
                self.signal(machine, addressee, signals.SIGTERM)
            except ProcessGone:
                continue
            return addressees[number:]
        return ()

    async def _see_through(self, machine: Machine, begun: object, asked: Sequence[ProcessId]) -> None:
        """Wait for the end of whom was asked, and ask the next one if that is not the end of the machine.

        Args:
            machine: that is to end.
            begun: tells this from a later attempt.
            asked: who was asked, and who may be asked after that.
        """
        with trio.move_on_after(ASKED_SECONDS):
            while asked and machine.asking is begun:
                there = self._is_there(asked[0])
                with trio.move_on_after(LOOK_SECONDS):
                    await machine.gone.wait()
                    return
                if not there:
                    asked = self._ask_next(machine, asked[1:])
        if machine.asking is begun:
            self.spare(machine)

    def _ask_next(self, machine: Machine, addressees: Sequence[ProcessId]) -> Sequence[ProcessId]:
        try:
            return self._ask(machine, addressees)
        except OSError as error:
            _log.warning("Failed to ask machine %s to end, ignoring: %s", machine.name, error)
            return ()

    def _is_there(self, process: ProcessId) -> bool:
        try:
            return self._processes.is_alive(process)
        except OSError:  # no file descriptor is left: that passes
            return True

    def signal(self, machine: Machine, target: ProcessId | None, number: int) -> None:
        """Send a signal to the leader or the supervisor of a machine.

        One that has become somebody else's is spared: a registrant without rights would signal what it may not.

        Raises:
            ProcessGone: it has exited, is somebody else's now, or was never told.
            OSError: no file descriptor is left.
        """
        record, processes = machine.record, self._processes
        leads = target == record.leader
        if target is None or not (
            record.registrant in self._trusted
            or may_signal(
                target,
                record.registrant,
                processes,
                within=record.control_group if leads else None,
                mapped=leads and record.leader_uid != record.registrant,
            )
        ):
            raise ProcessGone(target.pid if target else None)
        pidfd = machine.leader.pidfd if leads and machine.leader is not None else None
        try:
            if pidfd is not None:
                processes.send_signal(pidfd, number)
                return
            pidfd = processes.open(target.pid, target.pidfd_id, target.boot_id)
            try:
                processes.send_signal(pidfd, number)
            finally:
                processes.close(pidfd)
        except (ProcessLookupError, ProcessGone, NotAProcess):
            raise ProcessGone(target.pid) from None


def _addressees(record: Record) -> list[ProcessId]:
    """Return whom to ask, one after the other."""
    both = [record.leader] if record.placement.shared else [record.supervisor, record.leader]
    return list(dict.fromkeys(each for each in both if each is not None))
