"""Handlers of io.systemd.Metrics."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

import trio

from moorage import __version__
from moorage.api.calls import Authority, permit
from moorage.api.descriptions import load_description
from moorage.api.metrics.families import FAMILIES, PREFIX
from moorage.api.metrics.machines import messages
from moorage.api.metrics.service import Insides
from moorage.api.metrics.types import DescribeOut, ListOut
from moorage.machines.machine import Machine
from moorage.machines.sampling import Round
from moorage.machines.services import Services
from moorage.wire.call import Call
from moorage.wire.method import method
from moorage.wire.service import Interface
from moorage.wire.types import Empty, Last, Prepared

SLICE_SECONDS = 0.001
"""How long machines are looked at before others get their turn, s: up to a dozen files are read of each, of two dozen
machines in that time."""


class Metrics(Interface):
    """The handlers of io.systemd.Metrics."""

    def __init__(self, services: Services, authority: Authority, insides: Insides) -> None:
        super().__init__(load_description("io.systemd.Metrics"))
        self._services = services
        self._authority = authority
        self._insides = insides
        self._turn = trio.Lock()

    @method("List", requires_more=True)
    async def list(self, call: Call, params: Empty) -> AsyncIterator[Prepared[ListOut] | Last[ListOut]]:
        """List all values: those of the service, then those of each machine that lives, as List shows them."""
        permit(call, self._authority)
        services = self._services
        registry = services.registry
        machines = [machine for machine in registry.snapshot() if machine.is_there]
        yield Prepared(tuple(self._insides.messages(machines)))
        looked, round_ = iter(machines), services.sampling.round(limits=True)
        while True:
            # However many callers there are, one slice is looked at in one turn of everybody else.
            async with self._turn:
                found = tuple(self._slice(looked, round_))
            if not found:
                break
            yield Prepared(found)
        yield Last(ListOut(name=f"{PREFIX}Version", value=__version__))

    def _slice(self, machines: Iterator[Machine], round_: Round) -> Iterator[bytes]:
        """Return the values of the next machines, as many as there is time for; of at least one, if any is left."""
        services, until = self._services, time.monotonic() + SLICE_SECONDS
        now = services.looking.now()
        for machine in machines:
            if services.registry.get(machine.name) is machine and machine.is_there:
                yield from messages(machine, services, round_, now)
                if time.monotonic() > until:
                    return

    @method("Describe", requires_more=True)
    def describe(self, call: Call, params: Empty) -> Iterator[DescribeOut]:
        """Describe all families."""
        permit(call, self._authority)
        for family in FAMILIES.values():
            yield DescribeOut(name=PREFIX + family.name, description=family.description, type=family.type)
