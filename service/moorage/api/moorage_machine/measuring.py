"""Handler of Measure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from moorage import errors
from moorage.api.calls import find_named, permit
from moorage.api.moorage_machine import convert
from moorage.api.moorage_machine import types as wire
from moorage.api.moorage_machine.base import Handlers
from moorage.api.moorage_machine.subscribing import NAMES_MAX
from moorage.api.wire_types import timestamp
from moorage.machines.machine import Machine
from moorage.machines.sampling import COUNTERS, Round
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter
from moorage.wire.method import method


class Measuring(Handlers):
    """Measures machines."""

    @method("Measure", requires_more=True)
    def measure(self, call: Call, params: wire.MeasureIn) -> Iterator[wire.SampleOut]:
        """Measure the living machines, or those that are named; each when there is room for it on the connection."""
        permit(call, self.authority)
        wanted = self._wanted(params.names)
        counters = COUNTERS if params.counters is None else frozenset(params.counters)
        round_ = self.services.sampling.round(counters, limits=bool(params.limits))
        return self._measured(wanted, round_)

    def _measured(self, wanted: Iterable[Machine], round_: Round) -> Iterator[wire.SampleOut]:
        measured = False
        for machine in wanted:
            if self.registry.get(machine.name) is machine and machine.is_there:
                measured = True
                yield wire.SampleOut(sample=self._sample(machine, round_))
        if not measured:
            raise errors.NoSuchMachine  # a call must be answered, as that of List

    def _wanted(self, wanted: list[str] | None) -> Sequence[Machine]:
        """Return the machines that are to be measured.

        Raises:
            InvalidParameter: a name that cannot be that of a machine, or too many names.
            NoSuchMachine: there is none of a name.
        """
        if wanted is None:
            return self.registry.snapshot()
        if not 0 < len(wanted) <= NAMES_MAX:
            raise InvalidParameter("names")
        found: dict[str, Machine] = {}
        for number, name in enumerate(wanted):
            machine = find_named(self.registry, name, f"names[{number}]")
            if machine is None:
                raise errors.NoSuchMachine(name)
            found[name] = machine
        return list(found.values())

    def _sample(self, machine: Machine, round_: Round) -> wire.Sample:
        found, bases = round_.sample(machine), machine.record.bases
        helpers = [
            wire.HelperSample(helper=name, accounting=convert.accounting(each))
            for name, each in found.helpers.items()
        ]
        return wire.Sample(
            name=machine.name,
            invocationId=machine.record.invocation_id,
            timestamp=timestamp(found.timestamp),
            accounting=convert.accounting(found.accounting),
            accountingSince=None if bases is None else timestamp(bases.at),
            pressure=convert.pressures(found.pressure),
            helpers=helpers or None,
            phase=machine.phase,
            freezer=self.services.looking.noted_freezer(machine),
            limits=found.limits or None,
        )
