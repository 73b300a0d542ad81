"""Registers machines of this service with machined, and takes them back.

What machined gets is a machine with its leader and in its unit. It is noted before, taken back when it is forgotten
here or goes on without its leader, and nothing is left of it when it has ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from moorage.beside.listed import Listed
from moorage.beside.notes import Note, Notes
from moorage.beside.peer import MachinedAway, MachinedRefused, Peer
from moorage.beside.traces import Traces
from moorage.kernel.processes import Processes
from moorage.machines.events import Kind
from moorage.machines.followers import Followers
from moorage.machines.leader import lives
from moorage.machines.machine import Machine
from moorage.machines.registry import Registry
from moorage.names import is_host_name

_log = logging.getLogger(__name__)


class Publishing:
    """Registers machines, one after the other."""

    def __init__(
        self,
        registry: Registry,
        notes: Notes,
        peer: Peer,
        traces: Traces,
        followers: Followers,
        processes: Processes,
        address: Callable[[Machine], str | None],
        *,
        wanted: bool,
    ) -> None:
        """Publish nothing yet.

        Args:
            registry: which machines there are.
            notes: about what was published.
            peer: machined.
            traces: what it leaves of machines that are no more.
            followers: are told of what is published.
            processes: tell whether leaders live.
            address: returns where a machine can be controlled.
            wanted: machines are published at all.
        """
        self._registry = registry
        self._notes = notes
        self._peer = peer
        self._traces = traces
        self._followers = followers
        self._processes = processes
        self._address = address
        self._wanted = wanted

    def may(self, machine: Machine) -> bool:
        """Whether machined may have a machine: with the whole of its unit, which is what machined stops and kills."""
        record = machine.record
        return (
            self._wanted
            and record.leader is not None
            and record.placement.is_whole
            and is_host_name(record.name)
        )

    def has_leader(self, machine: Machine) -> bool:
        """Whether the leader of a machine lives, or may live: without a file descriptor nobody can say."""
        try:
            return lives(machine, self._processes)
        except OSError:
            return True

    def is_ours(self, machine: Machine) -> bool:
        """Whether this service has published a machine, or is about to."""
        note, leader = self._notes.get(machine.name), machine.record.leader
        return note is not None and note.ours and leader is not None and note.leader == leader

    def may_be_there(self, machine: Machine) -> bool:
        """Whether machined may have a machine: if it was not asked, its files tell, also without it."""
        if machine.published is None:
            return self._traces.are_there(machine.unit)
        return machine.published

    async def publish(self, machine: Machine) -> bool:
        """Publish a machine that may be; return whether that is done.

        Raises:
            MachinedUnavailable: see there. Whether it has the machine is found out when it is back.
            OSError: it could not be noted, and is not published.
        """
        record = machine.record
        if not self.has_leader(machine):
            return False
        ours, note = Note(record.name, record.leader, ours=True), self._notes.get(record.name)
        if note is None:
            self._notes.add(ours)
        elif note != ours:
            return False  # what machined has by that name is settled first
        try:
            await self._peer.register(record, self._address(machine))
        except MachinedRefused as error:
            # Somebody else's machine has the name, or one of ours that has just ended and is about to go; or the
            # leader has ended, whose unit goes on.
            _log.debug("systemd-machined does not take machine %s: %s", machine.name, error)
            if note is None:
                self._notes.drop(record.name)
            return False
        except MachinedAway:
            if note is None:
                self._notes.drop(record.name)
            raise
        if self._registry.get(machine.name) is machine:  # else its end is to be settled
            self.tell(machine, published=True)
        return True

    async def is_taken_back(self, name: str, found: Listed | None, machine: Machine | None) -> bool:
        """Have machined forget a machine of ours that is not here any more, or has no leader.

        Args:
            name: of it.
            found: what machined has by that name.
            machine: that is here by that name.

        Returns:
            Whether there was one to be forgotten.

        Raises:
            MachinedUnavailable: see there.
        """
        note = self._notes.get(name)
        if note is None:
            return False
        if found is None or not note.is_of(found.leader):
            self._notes.drop(name)
            return False
        if machine is not None and note.is_of(machine.record.leader) and self.has_leader(machine):
            if not note.ours:
                self._notes.drop(name)  # it was registered here again
            return False
        if note.ours:
            await self._unregister(name)
        return note.ours

    async def see_off(self, machine: Machine) -> None:
        """See to it that machined has nothing left of a machine of ours that has ended, even if it does not run."""
        if not await self._traces.remain(machine.unit):
            return
        holder = self._registry.by_unit(machine.unit)
        if holder is None or not self.has_leader(holder):  # else it was registered again
            self._traces.remove(machine.unit)

    def tell(self, machine: Machine, *, published: bool) -> None:
        """Take note whether machined has a machine."""
        machine.published = published
        if not published and not machine.is_there:
            return  # it has just ended, which is what is told
        self._followers.happened(machine, Kind.published if published else Kind.unpublished)

    async def _unregister(self, name: str) -> None:
        try:
            await self._peer.unregister(name)
        except MachinedRefused as error:
            _log.warning("systemd-machined does not forget machine %s, ignoring: %s", name, error)
        else:
            self._notes.drop(name)
