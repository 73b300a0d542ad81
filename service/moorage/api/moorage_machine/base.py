"""What all handlers of io.moorage.Machine stand on."""

from __future__ import annotations

from collections.abc import Sequence

from moorage import errors
from moorage.api.calls import Authority, find_named, managed
from moorage.api.descriptions import load_description
from moorage.api.moorage_machine import convert
from moorage.api.moorage_machine import types as wire
from moorage.configuration.current import Configuration
from moorage.machines import model
from moorage.machines.machine import Machine
from moorage.machines.services import Services
from moorage.pid1.manager import Manager
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter
from moorage.wire.service import Interface


class Handlers(Interface):
    """Finds the machine that a call is about, and shows it to its caller.

    Attributes:
        services: what is done with machines.
        authority: the policy.
        manager: has the properties of units.
        configuration: has deadlines and defaults.
        registry: which machines there are.
    """

    def __init__(
        self, services: Services, authority: Authority, manager: Manager, configuration: Configuration
    ) -> None:
        super().__init__(load_description("io.moorage.Machine"))
        self.services = services
        self.registry = services.registry
        self.authority = authority
        self.manager = manager
        self.configuration = configuration

    def seconds(self, timeout_usec: int | None, default_usec: float) -> float:
        """Return how long a call may take, in s.

        Args:
            timeout_usec: its parameter ``timeoutUSec``; None if the caller leaves it to us.
            default_usec: what it is then.

        Raises:
            InvalidParameter: the caller may not have so much.
        """
        if timeout_usec is not None and timeout_usec > self.configuration.settings.timeout_max_usec:
            raise InvalidParameter("timeoutUSec")
        return (default_usec if timeout_usec is None else timeout_usec) / 1e6

    def known(self, name: str) -> Machine:
        """Return a machine, living or gone.

        Raises:
            NoSuchMachine: there is none of that name.
        """
        machine = find_named(self.registry, name) or self.registry.verdict(name)
        if machine is None:
            raise errors.NoSuchMachine(name)
        return machine

    async def managed(
        self, call: Call, params: wire.ManageIn, invocation_id: str | None = None, *, variant: str = ""
    ) -> Machine:
        """Return a living machine that the caller may manage.

        Args:
            call: the call.
            params: name the machine.
            invocation_id: that its unit must have.
            variant: of the method, as in the policy's table.

        Raises:
            NoSuchMachine: there is none, or its unit has another invocation ID.
            VarlinkError: the caller may not manage it.
        """
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
            variant=variant,
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
        freezer: model.FreezerState | None = None,
    ) -> wire.Machine:
        """Convert a machine, with what its caller may know of it.

        Raises:
            OSError: whether it is frozen cannot be read.
        """
        if machine.record.verdict is not None:
            freezer = model.FreezerState.running
        elif freezer is None:
            freezer = self.services.looking.freezer(machine)
        return convert.machine(
            machine.record,
            phase or machine.phase,
            helpers or self.services.changing.statuses(machine),
            freezer=freezer,
            published=machine.published,
            whole=self.authority.policy.tells_all(call.peer.uid, machine.record.registrant),
        )
