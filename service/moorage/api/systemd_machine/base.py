"""What all handlers of io.systemd.Machine stand on."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping

from moorage.api.calls import Authority, authorize, find_named
from moorage.api.descriptions import load_description
from moorage.api.leader import ForeignNumber, check_number
from moorage.api.systemd_machine.errors import NoSuchMachine
from moorage.api.systemd_machine.host import HOST, host
from moorage.api.systemd_machine.types import LookupIn
from moorage.api.wire_types import ProcessId
from moorage.configuration.current import Configuration
from moorage.kernel import process
from moorage.machines import model, texts
from moorage.machines.machine import Machine
from moorage.machines.services import Services
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter, System
from moorage.wire.service import Interface


def _no_variant(_: Machine) -> str:
    return ""


class Handlers(Interface):
    """Finds the machine that a call is about.

    Attributes:
        services: what is done with machines.
        authority: the policy.
        configuration: has deadlines and defaults.
        registry: which machines there are.
    """

    def __init__(self, services: Services, authority: Authority, configuration: Configuration) -> None:
        super().__init__(load_description("io.systemd.Machine"))
        self.configuration = configuration
        self.services = services
        self.registry = services.registry
        self.authority = authority

    async def permitted(
        self,
        call: Call,
        params: LookupIn,
        details: Callable[[Machine], Mapping[str, str]],
        *,
        variant: Callable[[Machine], str] = _no_variant,
    ) -> Machine:
        """Return a machine, or the host, that the caller may do something with.

        Args:
            call: the call.
            params: name the machine.
            details: of the call, for polkit.
            variant: of the method, as in the policy's table. What it raises goes before all authority.
        """
        if params.name is not None:
            await self.services.registrar.wait(params.name)
        machine = self.lookup(call, params)
        await authorize(
            call,
            self.authority,
            details(machine),
            variant=variant(machine),
            owner=machine.record.registrant,
            interactive=params.allowInteractiveAuthentication,
        )
        if self.lookup(call, params) is not machine:
            raise NoSuchMachine
        return machine

    async def managed(self, call: Call, params: LookupIn) -> Machine:
        """Return a machine that the caller may manage; never the host."""
        verb = call.method.rpartition(".")[2].lower()
        machine = await self.permitted(call, params, lambda found: {"name": found.name, "verb": verb})
        if machine.record.class_ is model.MachineClass.host:
            # machined lets the host be unregistered, and then goes on listing it.
            raise System.of(errno.EOPNOTSUPP)
        return machine

    def lookup(self, call: Call, params: LookupIn) -> Machine:
        """Return the machine that a call is about, or the host.

        Raises:
            NoSuchMachine: there is none, or the name is one's and the process another one's.
            InvalidParameter: no machine can have that name, nor a process that number.
        """
        by_name = host() if params.name == HOST and self.authority.policy.user is None else None
        by_name = by_name or find_named(self.registry, params.name)
        if by_name is not None and not by_name.is_there:
            by_name = None
        if params.name is not None and by_name is None:
            raise NoSuchMachine
        if params.pid is None:
            if by_name is None:
                raise NoSuchMachine
            return by_name
        by_process = self._lookup_process(call, params.pid)
        if by_name is None:
            return by_process
        if by_process.name != by_name.name:
            raise NoSuchMachine
        return by_name

    def _lookup_process(self, call: Call, given: ProcessId) -> Machine:
        if given == ProcessId(pid=0):  # the caller itself (PIDREF_AUTOMATIC)
            given = ProcessId(pid=call.peer.pid)
        elif (
            not 0 < given.pid <= process.PID_MAX
            or (given.pidfdId or 0) < 0
            or (given.bootId is not None and not texts.is_id128(given.bootId))
        ):
            raise InvalidParameter("pid")
        else:
            try:
                check_number(call, given)
            except ForeignNumber:
                raise InvalidParameter("pid") from None
        machine = self.services.lookup.by_process(given.pid, given.pidfdId, given.bootId)
        if machine is None:
            raise NoSuchMachine
        return machine
