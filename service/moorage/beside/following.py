"""Keeps this service and machined in step: what is registered here is published there, and what is there adopted.

A follower: it takes note of names, and one task settles what is to be done about each, one after the other, as
machined does one thing after the other. Nothing of that delays a call, and nothing of it fails one. While machined
cannot be reached, or makes no sense, all is kept as it is, and settled when it is back.

There is no loop of the two ways. What is published was registered here; what is adopted was not, and is never
published. What machined has of ours is told by a note, which is on disk before machined is called, and goes only when
machined does not have it. So whatever becomes of the record, and whenever this service is killed, what was published
is known as such: by its leader, which is a process that has no second (pidfs).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import trio

from moorage.beside.adopting import Adopting
from moorage.beside.listed import Listed
from moorage.beside.notes import Note, Notes
from moorage.beside.peer import MachinedAway, MachinedRefused, MachinedUnavailable, Peer
from moorage.beside.publishing import Publishing
from moorage.machines.detached import Detached
from moorage.machines.events import Kind
from moorage.machines.followers import Follower
from moorage.machines.machine import Machine
from moorage.machines.model import Origin, Registration
from moorage.machines.registry import Registry
from moorage.machines.renewal import has_scope
from moorage.machines.retirement import Retirement
from moorage.names import is_host_name

RETRY_SECONDS = 1.0
"""First pause before machined is tried again that could not be reached, s. Where it listens anew, that is noticed."""

RETRY_SECONDS_MAX = 60.0
"""The longest one: each is twice the last."""

DROPPED_SECONDS = 5.0
"""For how long a machine may live that was adopted, and that machined has no more, s: it is about to end, for most."""

LEADERLESS_SECONDS = 1.0
"""For how long a machine may go on without its leader before machined is told, s: most end with it."""

NAMES_MAX = 4096
"""Names that wait to be settled. Of more of them it is cheaper to ask for the whole list."""

_log = logging.getLogger(__name__)


class Shown(Protocol):
    """What machined shows of itself, watched; see :class:`moorage.beside.directory.Directory`."""

    def names(self) -> list[str]:
        """Return the names of the machines that machined has."""
        ...

    def close(self) -> None:
        """Watch it no more."""
        ...


Watch: TypeAlias = Callable[[Callable[[str], None], Callable[[str], None], Callable[[], None]], Shown]
"""Begins to watch it, given what is called when a machine came, when one went, and when machined returned."""


class Beside(Follower):
    """Settles who has which machine.

    Attributes:
        first: set when what there was at the start is settled, or cannot be.
    """

    def __init__(
        self,
        registry: Registry,
        notes: Notes,
        peer: Peer,
        watch: Watch,
        publishing: Publishing,
        adopting: Adopting,
        retirement: Retirement,
        detached: Detached,
        *,
        adopt: bool,
    ) -> None:
        """Settle nothing yet.

        Args:
            registry: which machines there are.
            notes: about what was published, and what was forgotten.
            peer: machined.
            watch: begins to watch what it shows of itself.
            publishing: registers machines with machined.
            adopting: adopts machines.
            retirement: forgets those that machined has no more.
            detached: has what nobody waits for.
            adopt: machines that machined has are adopted.
        """
        self._registry = registry
        self._notes = notes
        self._peer = peer
        self._watch = watch
        self._publishing = publishing
        self._adopting = adopting
        self._retirement = retirement
        self._detached = detached
        self._adopt = adopt
        self.first = trio.Event()
        # To be settled; whether there is something to do even if machined has it as it should be.
        self._names: dict[str, bool] = {}
        self._everything = False
        self._woken = trio.Event()
        self._returned = trio.Event()
        self._silent = False  # it was said that machined cannot be reached

    # What is noticed

    def added(self, machine: Machine) -> None:
        """Settle a machine that was registered, or found again."""
        if machine.record.origin is Origin.registered and self._publishing.may(machine):
            self._take(machine.name, sure=True)

    def ended(self, machine: Machine) -> None:
        """Settle a machine that has ended, or was forgotten: what machined has by its name, it may go on having."""
        record = machine.record
        if record.leader is None or not is_host_name(record.name):
            return
        if self._publishing.is_ours(machine):
            self._detached.start(self._publishing.see_off, machine)
        if record.verdict is None or not has_scope(machine):
            if self._notes.get(record.name) is None and self._publishing.may_be_there(machine):
                self._notes.add(Note(record.name, record.leader, ours=False))
            self._take(record.name, sure=True)
            return
        if self._publishing.is_ours(machine):
            self._notes.drop(record.name)  # with its processes it leaves machined by itself
        if self._adopt and not (machine.published and record.origin is Origin.registered):
            self._take(record.name, sure=True)

    def failed(self, registration: Registration, error: Exception) -> None:  # noqa: ARG002 - the protocol's
        """Settle a name that was claimed, and is free again."""
        if self._adopt and is_host_name(registration.name):
            self._take(registration.name, sure=True)

    def happened(self, machine: Machine, kind: Kind, fact: Any) -> None:  # noqa: ARG002 - the protocol's
        """See to a machine that may go on without its leader."""
        if kind is Kind.leader_exited and self._publishing.is_ours(machine):
            self._detached.start(self._lead_no_more, machine)

    def came(self, name: str) -> None:
        """Take note that machined has a machine."""
        self._take(name, sure=False)

    def went(self, name: str) -> None:
        """Take note that machined has a machine no more."""
        if self._registry.get(name) is not None:
            self._take(name, sure=True)
        else:
            self._notes.drop(name)

    def returned(self) -> None:
        """Take note that machined listens anew, or that anything may have been missed."""
        self._everything = True
        self._woken.set()
        self._returned.set()

    def _take(self, name: str, *, sure: bool) -> None:
        if len(self._names) >= NAMES_MAX:
            self._everything = True
        if self._everything:
            self._names.clear()
        else:
            self._names[name] = self._names.get(name, False) or sure
        self._woken.set()

    # What is done

    @property
    def stays(self) -> bool:
        """Whether machines may come by themselves, so that somebody has to be there."""
        return self._adopt and self._peer.is_there

    async def run(self) -> None:
        """Settle what is noticed, for ever."""
        self._notes.restore()
        for machine in self._registry:
            if self._publishing.is_ours(machine) and not self._publishing.has_leader(machine):
                self._detached.start(self._lead_no_more, machine)
        shown = await self._shown()
        try:
            there = shown.names()
            if there or self._notes.names:
                self.returned()  # one list is cheaper than a look for each machine
            if not self._adopt or all(self._registry.get(name) is not None for name in there):
                self.first.set()
            async with trio.open_nursery() as nursery:
                await self._follow(nursery)
        finally:
            shown.close()

    async def _shown(self) -> Shown:
        """Begin to watch machined, as soon as there is a file descriptor for that."""
        pause = RETRY_SECONDS
        while True:
            try:
                return self._watch(self.came, self.went, self.returned)
            except OSError as error:
                _log.warning("Failed to watch systemd-machined, trying again: %s", error)
            self.first.set()
            await trio.sleep(pause)
            pause = min(2 * pause, RETRY_SECONDS_MAX)

    async def _follow(self, nursery: trio.Nursery) -> None:
        pause = RETRY_SECONDS
        while True:
            await self._woken.wait()
            self._woken, self._returned = trio.Event(), trio.Event()
            settled = self._peer.is_there and await self._is_settled(nursery)
            self.first.set()
            if settled:
                pause = RETRY_SECONDS
                continue
            with trio.move_on_after(pause if self._peer.is_there else math.inf):
                await self._returned.wait()
            pause = min(2 * pause, RETRY_SECONDS_MAX)
            self.returned()

    async def _is_settled(self, nursery: trio.Nursery) -> bool:
        """Settle what is noticed; return whether that is done."""
        try:
            await self._settle_all(nursery)
        except MachinedUnavailable as error:
            away = isinstance(error, MachinedAway)  # nothing is wrong with one that does not run
            level = logging.DEBUG if self._silent or away else logging.WARNING
            _log.log(level, "Failed to ask systemd-machined, trying again: %s", error)
            self._silent = self._silent or not away
            return False
        except OSError as error:
            _log.warning("Failed to note what systemd-machined gets, trying again: %s", error)
            return False
        except Exception:  # noqa: BLE001 - whatever it is, the machines are kept
            _log.exception("Failed to settle with systemd-machined, trying again:")
            return False
        finally:
            self._peer.close()
        self._silent = False
        return True

    async def _settle_all(self, nursery: trio.Nursery) -> None:
        while self._everything or self._names:
            if not self._everything:
                name = next(iter(self._names))
                await self._settle_one(name, nursery, sure=self._names.pop(name))
                continue
            self._everything = False
            self._names.clear()
            found = await self._peer.look_at_all()
            names = {machine.name for machine in self._registry}
            async with trio.open_nursery() as batch:
                for name in sorted({*names, *found, *self._notes.names}):
                    machine = self._registry.get(name)
                    if machine is not None and not machine.published:
                        machine.published = None  # to be tried again
                    await self._settle(name, found.get(name), nursery, batch)

    async def _settle_one(self, name: str, nursery: trio.Nursery, *, sure: bool) -> None:
        """Settle a name by itself; the first thing that is done for a new machine is to publish it."""
        machine = self._registry.get(name)
        if machine is not None and machine.record.origin is Origin.registered:
            if machine.published and not sure:
                return
            if (
                self._publishing.may(machine)
                and machine.published is None
                and await self._publishing.publish(machine)
            ):
                return
        try:
            await self._settle(name, await self._peer.look(name), nursery, nursery)
        except MachinedRefused as error:
            _log.debug("systemd-machined does not tell of machine %s: %s", name, error)

    async def _settle(
        self, name: str, found: Listed | None, nursery: trio.Nursery, batch: trio.Nursery
    ) -> None:
        """Settle a name.

        Args:
            name: of one machine here, and one there, or of either.
            found: what machined has.
            nursery: for what takes its time.
            batch: for adoptions.

        Raises:
            MachinedUnavailable: see there.
        """
        machine = self._registry.get(name)
        if await self._publishing.is_taken_back(name, found, machine):
            found = None
        if machine is None:
            if found is not None and self._adopt and self._notes.get(name) is None:
                batch.start_soon(self._adopting.adopt, found)
        elif machine.record.origin is Origin.adopted:
            has = found is not None and found.leader == machine.record.leader
            if machine.published and not has:
                nursery.start_soon(self._drop, machine)
            machine.published = has
        elif found is not None and found.leader == machine.record.leader:
            self._publishing.tell(machine, published=True)
        elif machine.published:
            self._publishing.tell(machine, published=False)
        elif found is None and machine.published is None and self._publishing.may(machine):
            await self._publishing.publish(machine)

    async def _drop(self, machine: Machine) -> None:
        """Forget a machine that machined has no more, unless it ends."""
        with trio.move_on_after(DROPPED_SECONDS):
            await machine.gone.wait()
        if self._registry.get(machine.name) is machine and not machine.published:
            self._retirement.forget(machine)

    async def _lead_no_more(self, machine: Machine) -> None:
        """Take a machine back whose leader has ended, unless it ends: machined would stop the unit that goes on."""
        with trio.move_on_after(LEADERLESS_SECONDS):
            await machine.gone.wait()
        if self._registry.get(machine.name) is machine:
            self._take(machine.name, sure=True)
            await self._publishing.see_off(machine)
