"""Handlers of io.systemd.Metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import trio

from moorage import __version__
from moorage.api.calls import Authority, permit
from moorage.api.descriptions import load_description
from moorage.api.metrics.families import FAMILIES, PREFIX
from moorage.api.metrics.machines import messages
from moorage.api.metrics.service import Insides
from moorage.api.metrics.types import DescribeOut, ListOut
from moorage.machines.ceilings import Known
from moorage.machines.services import Services
from moorage.wire.call import Call
from moorage.wire.method import method
from moorage.wire.service import Interface
from moorage.wire.types import Empty, Last, Prepared

SLICE = 4
"""Machines that are looked at before others get their turn: a dozen files are read of each, a millisecond in all."""


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
        known: Known = {}
        for start in range(0, len(machines), SLICE):
            # However many callers there are, one slice is looked at in one turn of everybody else.
            async with self._turn:
                now = services.looking.now()
                found = tuple(
                    each
                    for machine in machines[start : start + SLICE]
                    if registry.get(machine.name) is machine and machine.is_there
                    for each in messages(machine, services, known, now)
                )
            yield Prepared(found)
        yield Last(ListOut(name=f"{PREFIX}Version", value=__version__))

    @method("Describe", requires_more=True)
    def describe(self, call: Call, params: Empty) -> Iterator[DescribeOut]:
        """Describe all families."""
        permit(call, self._authority)
        for family in FAMILIES.values():
            yield DescribeOut(name=PREFIX + family.name, description=family.description, type=family.type)
