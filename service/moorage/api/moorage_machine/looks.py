"""Handlers of the calls that only look: List, Describe, DescribeProperties, DescribeConfiguration, Find."""

from __future__ import annotations

from collections.abc import Iterator

import trio

from moorage import errors
from moorage.api.calls import permit
from moorage.api.moorage_machine import convert
from moorage.api.moorage_machine import types as wire
from moorage.api.moorage_machine.base import Handlers
from moorage.api.moorage_machine.errors import REFUSALS
from moorage.api.moorage_machine.finding import find
from moorage.api.refusals import translated
from moorage.api.wire_types import timestamp
from moorage.machines.accounting import Accounting
from moorage.machines.properties import SHOWN
from moorage.pid1.errors import NoSuchProperty, NoSuchUnit
from moorage.pid1.manager import ASK_SECONDS
from moorage.wire.call import Call
from moorage.wire.method import method
from moorage.wire.types import Empty


class Looks(Handlers):
    """Shows machines."""

    @method("List", requires_more=True)
    def list(self, call: Call, params: Empty) -> Iterator[wire.MachineOut]:
        """List the living machines; each is converted when there is room for it on the connection."""
        permit(call, self.authority)
        return self._listed(call)

    def _listed(self, call: Call) -> Iterator[wire.MachineOut]:
        listed = False
        for machine in self.registry.snapshot():
            if self.registry.get(machine.name) is machine and machine.is_there:
                listed = True
                yield wire.MachineOut(
                    machine=self.shown(call, machine, freezer=self.services.looking.noted_freezer(machine))
                )
        if not listed:
            raise errors.NoSuchMachine  # a call must be answered; machined's answer is the same

    @method("Describe")
    async def describe(self, call: Call, params: wire.NameIn) -> wire.DescribeOut:
        """Describe a machine, living or gone."""
        permit(call, self.authority)
        machine = self.known(params.name)
        looking = self.services.looking
        if machine.record.verdict is None:
            with translated(REFUSALS):
                try:
                    limits = await looking.limits(machine, SHOWN)
                    network = await looking.network(machine)
                except (NoSuchUnit, NoSuchProperty):
                    limits, network = (
                        {},
                        Accounting(),
                    )  # the unit is just going, or its type has none of them
            in_force = await looking.in_force(machine, limits)
            if machine.record.verdict is None:
                bases = machine.record.bases
                return wire.DescribeOut(
                    machine=self.shown(call, machine),
                    accounting=convert.accounting(looking.counters(machine, network)),
                    accountingSince=None if bases is None else timestamp(bases.at),
                    limits=limits,
                    effective=in_force.limits,
                    devices=in_force.devices,
                    pressure=convert.pressures(looking.pressure(machine)),
                    io=looking.traffic(machine) or None,
                )
        await machine.completed.wait()
        assert machine.record.verdict is not None
        return wire.DescribeOut(
            machine=self.shown(call, machine),
            accounting=convert.accounting(machine.record.verdict.accounting),
            limits={},
        )

    @method("DescribeProperties")
    async def describe_properties(
        self, call: Call, params: wire.DescribePropertiesIn
    ) -> wire.DescribePropertiesOut:
        """Return the properties that the service manager has for a type of unit."""
        permit(call, self.authority)
        deadline = trio.current_time() + ASK_SECONDS
        with translated(REFUSALS):
            types = await self.manager.property_types(params.type.value, deadline=deadline)
        return wire.DescribePropertiesOut(
            properties={
                name: signature for name, signature in types.settable.items() if "h" not in signature
            }
        )

    @method("DescribeConfiguration")
    def describe_configuration(self, call: Call, params: Empty) -> wire.DescribeConfigurationOut:
        """Return the options in force; to root and the owner also where they come from, and what is wrong."""
        permit(call, self.authority)
        whole = self.authority.policy.is_root(call.peer.uid)
        found = self.configuration
        return wire.DescribeConfigurationOut(
            options=convert.options(found.entries(), sources=whole),
            problems=(found.problems or None) if whole else None,
        )

    @method("Find")
    async def find(self, call: Call, params: wire.FindIn) -> wire.MachineOut:
        """Find the machine that a process, a unit, a control group or an invocation belongs to."""
        permit(call, self.authority)
        with translated(REFUSALS):
            machine = find(call, params, self.registry, self.services.lookup)
        if machine is None or not machine.is_there:
            raise errors.NoSuchMachine
        return wire.MachineOut(machine=self.shown(call, machine))
