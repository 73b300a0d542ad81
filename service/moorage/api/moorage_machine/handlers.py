"""Handlers of io.moorage.Machine. Described methods without a handler are answered with MethodNotImplemented."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing

import trio
from msgspec.structs import asdict, replace

from moorage.api.calls import AsRoot, Authority, find_named, managed, permit
from moorage.api.descriptions import load_description
from moorage.api.identity import identity
from moorage.api.leader import open_leader
from moorage.api.moorage_machine import convert, errors
from moorage.api.moorage_machine import types as wire
from moorage.api.moorage_machine.checks import authorize_registration, check_registration
from moorage.api.moorage_machine.errors import REFUSALS
from moorage.api.moorage_machine.finding import find
from moorage.api.refusals import translated
from moorage.authz.ownership import UnitNotOwned
from moorage.machines import model
from moorage.machines.control import STOP_SECONDS
from moorage.machines.helpers.programs import is_program
from moorage.machines.machine import Machine
from moorage.machines.properties import SHOWN
from moorage.machines.registration import REGISTER_SECONDS, Registered
from moorage.machines.services import Services
from moorage.pid1.manager import ASK_USEC, Manager, NoSuchProperty, NoSuchUnit
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter
from moorage.wire.method import method
from moorage.wire.service import Interface
from moorage.wire.types import Empty, Last


class MoorageMachine(Interface):
    """The handlers.

    Args:
        services: what is done with machines.
        authority: the policy.
        manager: has the properties of units.
    """

    def __init__(self, services: Services, authority: Authority, manager: Manager) -> None:
        super().__init__(load_description("io.moorage.Machine"))
        self._services = services
        self._registry = services.registry
        self._authority = authority
        self._manager = manager

    @method("Register")
    async def register(self, call: Call, params: wire.RegisterIn) -> wire.RegisterOut:
        """Register a machine, in a scope of its own or where its leader is."""
        check_registration(params)
        about = identity(params)
        details = {"name": params.name, "class": params.class_, "verb": "register"}
        as_root = AsRoot(call, self._authority, details, interactive=params.allowInteractiveAuthentication)
        await authorize_registration(call, self._authority, params, details, as_root)
        pidfd, blamed = None, "leader"
        if params.leaderFileDescriptor is not None:
            blamed = "leaderFileDescriptor"
            pidfd = call.take_fd(params.leaderFileDescriptor, blamed)
        with translated(REFUSALS):
            leader = await open_leader(call, self._services.registrar, params.leader, pidfd, blamed, as_root)
            try:
                wanted = convert.registration(
                    params, call.peer.uid, about, leader, privileged=as_root.granted
                )
                await self._services.changing.check(wanted.helpers, wanted.name)
                if wanted.exec_stop and not await is_program(wanted.exec_stop[0]):
                    raise InvalidParameter("execStop[0]")
                done = await self._registered(call, wanted, params.timeoutUSec, as_root)
            finally:
                leader.close()
        return wire.RegisterOut(
            machine=self._shown(
                call, done.machine, done.helpers, phase=done.phase, frozen=self._is_frozen(done.machine)
            ),
            differences=convert.differences(done.differences),
            units=[wire.PlannedUnit(**asdict(each)) for each in done.units] or None,
        )

    async def _registered(
        self, call: Call, wanted: model.Registration, timeout_usec: int | None, as_root: AsRoot
    ) -> Registered:
        """Register; ask for the rights of root if that fails because the unit belongs to another user."""
        registrar = self._services.registrar
        timeout = REGISTER_SECONDS if timeout_usec is None else timeout_usec / 1e6
        lease = call.wait_gone if wanted.lease else None
        try:
            return await registrar.find_or_register(wanted, timeout=timeout, lease=lease)
        except UnitNotOwned:
            if wanted.privileged or not await as_root.ask_for_others():
                raise
            return await registrar.find_or_register(
                replace(wanted, privileged=True), timeout=timeout, lease=lease
            )

    @method("List", requires_more=True)
    def list(self, call: Call, params: Empty) -> Iterator[wire.MachineOut]:
        """List the living machines; each is converted when there is room for it on the connection."""
        permit(call, self._authority)
        return self._listed(call)

    def _listed(self, call: Call) -> Iterator[wire.MachineOut]:
        listed = False
        for machine in self._registry.snapshot():
            if self._registry.get(machine.name) is machine and machine.is_there:
                listed = True
                yield wire.MachineOut(machine=self._shown(call, machine, frozen=machine.frozen))
        if not listed:
            raise errors.NoSuchMachine  # a call must be answered; machined's answer is the same

    @method("Describe")
    async def describe(self, call: Call, params: wire.NameIn) -> wire.DescribeOut:
        """Describe a machine, living or gone."""
        permit(call, self._authority)
        machine = self._known(params.name)
        looking = self._services.looking
        if machine.record.verdict is None:
            with translated(REFUSALS):
                try:
                    limits = await looking.limits(machine, SHOWN)
                except (NoSuchUnit, NoSuchProperty):
                    limits = {}  # the unit is just going, or its type has none of them
            if machine.record.verdict is None:
                counters = convert.accounting(looking.counters(machine))
                return wire.DescribeOut(
                    machine=self._shown(call, machine), accounting=counters, limits=limits
                )
        await machine.completed.wait()
        assert machine.record.verdict is not None
        return wire.DescribeOut(
            machine=self._shown(call, machine),
            accounting=convert.accounting(machine.record.verdict.accounting),
            limits={},
        )

    @method("DescribeProperties")
    async def describe_properties(
        self, call: Call, params: wire.DescribePropertiesIn
    ) -> wire.DescribePropertiesOut:
        """Return the properties that the service manager has for a type of unit."""
        permit(call, self._authority)
        deadline = trio.current_time() + ASK_USEC / 1e6
        with translated(REFUSALS):
            types = await self._manager.property_types(params.type.value, deadline=deadline)
        return wire.DescribePropertiesOut(
            properties={
                name: signature for name, signature in types.settable.items() if "h" not in signature
            }
        )

    @method("Find")
    async def find(self, call: Call, params: wire.FindIn) -> wire.MachineOut:
        """Find the machine that a process, a unit, a control group or an invocation belongs to."""
        permit(call, self._authority)
        with translated(REFUSALS):
            machine = find(call, params, self._registry, self._services.lookup)
        if machine is None or not machine.is_there:
            raise errors.NoSuchMachine
        return wire.MachineOut(machine=self._shown(call, machine))

    @method("Kill")
    async def kill(self, call: Call, params: wire.KillIn) -> None:
        """Send a signal to processes of a machine."""
        if params.subgroup is not None and not model.is_path("/" + params.subgroup.lstrip("/")):
            raise InvalidParameter("subgroup")
        whom = params.whom or model.KillWhom.all
        if params.subgroup is not None and whom is not model.KillWhom.all:
            raise InvalidParameter("subgroup")
        machine = await self._managed(call, params, params.ifInvocationId)
        with translated(REFUSALS):
            try:
                await self._services.control.kill(machine, whom, params.signal, subgroup=params.subgroup)
            except NoSuchUnit:
                raise errors.ProcessGone from None

    @method("Stop")
    async def stop(
        self, call: Call, params: wire.StopIn
    ) -> AsyncIterator[wire.MachineOut | Last[wire.MachineOut]]:
        """Stop a machine; reply when it is gone, with ``more`` also when it begins to stop."""
        machine = await self._managed(call, params, params.ifInvocationId)
        with translated(REFUSALS):
            if call.more:
                await self._services.control.begin_stop(machine, wait=0)
                yield wire.MachineOut(machine=self._shown(call, machine))
            timeout = STOP_SECONDS if params.timeoutUSec is None else params.timeoutUSec / 1e6
            await self._services.control.stop(machine, timeout=timeout)
        yield Last(wire.MachineOut(machine=self._shown(call, machine)))

    @method("AddHelpers")
    async def add_helpers(
        self, call: Call, params: wire.AddHelpersIn
    ) -> AsyncIterator[wire.HelpersOut | Last[wire.HelpersOut]]:
        """Start helpers for a machine that runs; with ``more``, reply at each change of their states."""
        machine = await self._managed(call, params)
        specs = convert.specs(params.helpers)
        if not specs:
            raise InvalidParameter("helpers")
        statuses: Sequence[model.HelperStatus] = ()
        with translated(REFUSALS):
            async with aclosing(self._services.changing.add(machine, specs)) as changes:
                async for statuses in changes:
                    if call.more:
                        yield wire.HelpersOut(helpers=[convert.helper_status(each) for each in statuses])
        found = await self._services.changing.differences(machine, specs, statuses)
        yield Last(
            wire.HelpersOut(
                helpers=[convert.helper_status(each) for each in statuses],
                differences=convert.differences(found),
            )
        )

    @method("RemoveHelper")
    async def remove_helper(self, call: Call, params: wire.RemoveHelperIn) -> None:
        """Stop a helper and forget it."""
        machine = await self._managed(call, params)
        with translated(REFUSALS):
            await self._services.changing.remove(machine, params.helper)

    @method("Reload")
    async def reload(self, call: Call, params: wire.ManageIn) -> wire.ReloadOut:
        """Reload the helpers that can be reloaded."""
        machine = await self._managed(call, params)
        with translated(REFUSALS):
            reloaded, skipped = await self._services.changing.reload(machine)
        return wire.ReloadOut(reloaded=reloaded, skipped=skipped)

    @method("Forget")
    async def forget(self, call: Call, params: wire.ManageIn) -> None:
        """Forget a machine, living or gone; its unit goes on."""
        machine = await managed(
            call,
            self._authority,
            lambda: self._known(params.name),
            errors.NoSuchMachine(params.name),
            interactive=params.allowInteractiveAuthentication,
        )
        self._services.retirement.forget(machine)

    def _known(self, name: str) -> Machine:
        machine = find_named(self._registry, name) or self._registry.verdict(name)
        if machine is None:
            raise errors.NoSuchMachine(name)
        return machine

    async def _managed(self, call: Call, params: wire.ManageIn, invocation_id: str | None = None) -> Machine:
        """Return a living machine that the caller may manage."""
        gone = errors.NoSuchMachine(params.name)

        def find() -> Machine:
            machine = find_named(self._registry, params.name)
            if machine is None or invocation_id not in {None, machine.record.invocation_id}:
                raise gone
            return machine

        return await managed(
            call,
            self._authority,
            find,
            gone,
            interactive=params.allowInteractiveAuthentication,
            registered=self._services.registrar.wait(params.name),
        )

    def _shown(
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
            frozen = machine.record.verdict is None and self._services.looking.is_frozen(machine)
        return convert.machine(
            machine.record,
            phase or machine.phase,
            helpers or self._services.changing.statuses(machine),
            frozen=frozen,
            whole=self._authority.policy.tells_all(call.peer.uid, machine.record.registrant),
        )

    def _is_frozen(self, machine: Machine) -> bool:
        """Return whether a machine that has just been registered is frozen; if that cannot be read, it is not yet."""
        try:
            return self._services.looking.is_frozen(machine)
        except OSError:
            return False
