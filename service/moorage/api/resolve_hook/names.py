"""The names of machines that can be looked up, and who is told when they change."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import trio

from moorage.api.resolve_hook.types import QueryFilterOut
from moorage.machines.followers import Follower
from moorage.machines.machine import Machine
from moorage.machines.model import MachineClass
from moorage.machines.registry import Registry
from moorage.names import is_host_name
from moorage.wire.message import prepared_reply
from moorage.wire.types import Feed

GATHER_SECONDS = 0.02
"""Pause after names were told, s: where hundreds of machines come at once, each list is as long as all of them."""


class Names(Follower):
    """The names of machines, as they are.

    A machine of root's has its name and all that is below it, as in machined. One of an ordinary user has its name
    only, and that has no dot: nobody else's domain becomes his, nor does it vanish.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._trusted = frozenset({0, os.geteuid()})
        self._changed = trio.Event()
        self._feeds: set[Filter] = set()
        self._message: bytes | None = None

    def added(self, machine: Machine) -> None:
        """Have those who follow told of a name."""
        del machine
        self._changed.set()
        self._message = None

    def ended(self, machine: Machine) -> None:
        """Have those who follow told that a name is gone."""
        self.added(machine)

    def find(self, name: str) -> Machine | None:
        """Return the machine that has a name."""
        machine = self._registry.get(name)
        return machine if machine is not None and self._is_told(machine) else None

    def owns_below(self, name: str) -> bool:
        """Whether a machine has a name, and all that is below it."""
        machine = self.find(name)
        return machine is not None and machine.record.registrant in self._trusted

    def all(self) -> QueryFilterOut:
        """Return all of them."""
        machines = self._registry.snapshot()
        return QueryFilterOut(filterDomains=[each.name for each in machines if self._is_told(each)])

    def follow(self) -> Filter:
        """Return what tells them to one caller, whenever they change."""
        return Filter(self._feeds, self._prepared)

    async def run(self) -> None:
        """Tell those who follow, for ever."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            self._message = None
            for each in tuple(self._feeds):
                each.wake()
            await trio.sleep(GATHER_SECONDS)

    def _is_told(self, machine: Machine) -> bool:
        record = machine.record
        return (
            machine.is_there
            and record.class_ is not MachineClass.host
            and is_host_name(machine.name)
            and (record.registrant in self._trusted or "." not in machine.name)
        )

    def _prepared(self) -> bytes:
        if self._message is None:
            self._message = prepared_reply(self.all())
        return self._message


class Filter(Feed[QueryFilterOut]):
    """The names, told to one caller: only the latest, if it is slow."""

    def __init__(self, feeds: set[Filter], message: Callable[[], bytes]) -> None:
        self._feeds = feeds
        self._message = message
        self._woken: Callable[[], None] | None = None
        self._due = True
        self._last: bytes | None = None
        feeds.add(self)

    def wake(self) -> None:
        """Take note that names have changed."""
        self._due = True
        if self._woken is not None:
            self._woken()

    def follow(self, woken: Callable[[], None]) -> None:
        """See `Feed`."""
        self._woken = woken

    def take(self, room: int) -> Sequence[bytes]:
        """See `Feed`."""
        del room
        if not self._due:
            return ()
        self._due = False
        message = self._message()
        if message == self._last:
            return ()
        self._last = message
        return (message,)

    def close(self) -> None:
        """See `Feed`."""
        self._feeds.discard(self)
