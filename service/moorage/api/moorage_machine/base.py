"""What all handlers of io.moorage.Machine stand on."""

from __future__ import annotations

from collections.abc import Sequence

from moorage.api.calls import Authority, find_named, managed
from moorage.api.descriptions import load_description
from moorage.api.moorage_machine import convert, errors
from moorage.api.moorage_machine import types as wire
from moorage.machines import model
from moorage.machines.machine import Machine
from moorage.machines.services import Services
from moorage.pid1.manager import Manager
from moorage.wire.call import Call
from moorage.wire.service import Interface


class Handlers(Interface):
    """Finds the machine that a call is about, and shows it to its caller.

    Attributes:
        services: what is done with machines.
        authority: the policy.
        manager: has the properties of units.
        registry: which machines there are.
    """

    def __init__(self, services: Services, authority: Authority, manager: Manager) -> None:
        super().__init__(load_description("io.moorage.Machine"))
        self.services = services
        self.registry = services.registry
        self.authority = authority
        self.manager = manager

    def known(self, name: str) -> Machine:
        """Return a machine, living or gone.

        Raises:
            NoSuchMachine: there is none of that name.
        """
        machine = find_named(self.registry, name) or self.registry.verdict(name)
        if machine is None:
            raise errors.NoSuchMachine(name)
        return machine

    async def managed(self, call: Call, params: wire.ManageIn, invocation_id: str | None = None) -> Machine:
        """Return a living machine that the caller may manage."""
        gone = errors.NoSuchMachine(params.name)

        def find() -> Machine:
            machine = find_named(self.registry, params.name)
            if machine is None or invocation_id not in {None, machine.record.invocation_id}:
                raise gone
            return machine

        return await managed(
            call,
            self.authority,
            find,
            gone,
            interactive=params.allowInteractiveAuthentication,
            registered=self.services.registrar.wait(params.name),
        )

    def shown(
        self,
        call: Call,
        machine: Machine,
        helpers: Sequence[model.HelperStatus] | None = None,
        *,
        phase: model.Phase | None = None,
        frozen: bool | None = None,
    ) -> wire.Machine:
        """Convert a machine, with what its caller may know of it.

        Raises:
            OSError: whether it is frozen cannot be read.
        """
        if frozen is None:
            frozen = machine.record.verdict is None and self.services.looking.is_frozen(machine)
        return convert.machine(
            machine.record,
            phase or machine.phase,
            helpers or self.services.changing.statuses(machine),
            frozen=frozen,
            whole=self.authority.policy.tells_all(call.peer.uid, machine.record.registrant),
        )
