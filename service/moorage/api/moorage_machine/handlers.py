"""io.moorage.Machine, our own interface. Methods without a handler here are answered with MethodNotImplemented."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager

import trio
from msgspec.structs import asdict, replace

from moorage.api.descriptions import load_description
from moorage.api.moorage_machine import convert as machine_helpers
from moorage.api.moorage_machine import types as wire
from moorage.api.requests import (
    AsRoot,
    Authority,
    ForeignNumber,
    Leader,
    authorize,
    authorize_managing,
    check_identity,
    check_number,
    find_named,
    open_leader,
    permit,
    process_id,
    timestamp,
)
from moorage.authz import allowed_properties as rights
from moorage.authz.ownership import NotOwned, UnitNotOwned
from moorage.authz.policy import IN_PLACE
from moorage.kernel import process
from moorage.machines import model
from moorage.machines.control import STOP_SECONDS
from moorage.machines.errors import (
    Full,
    HelperFailed,
    HelperLate,
    InvalidHelper,
    JobFailed,
    LeaderTaken,
    MachineGone,
    NameTaken,
    NoIdMapping,
    NoSuchHelper,
    NotStoppable,
    NotUnicode,
    NotWhole,
    RegisteredByUser,
    TooMuchUnderWay,
    TooOld,
    UnitNameTaken,
)
from moorage.machines.helpers import bad_argument, is_program
from moorage.machines.machine import Machine
from moorage.machines.properties import SHOWN
from moorage.machines.registration import REGISTER_SECONDS, Registered
from moorage.machines.services import Services
from moorage.pid1 import manager, unit_files
from moorage.pid1.manager import ASK_USEC, Manager
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter, PermissionDenied, VarlinkError
from moorage.wire.method import method
from moorage.wire.service import Interface
from moorage.wire.types import Empty, Last


def _error(error: Exception) -> VarlinkError | None:
    """Return the error of this interface for what went wrong below; None for what is a bug of ours."""
    match error:
        case NameTaken() | LeaderTaken():
            placement = error.placement
            return wire.MachineExists(
                error.name,
                placement.unit if placement else None,
                placement.invocation_id if placement else None,
                list(error.differs or ()) or None if isinstance(error, NameTaken) else None,
            )
        case UnitNameTaken():
            return wire.UnitNameTaken(error.unit, error.holder)
        case HelperFailed():
            return wire.HelperFailed(error.helper, error.unit, error.result, error.log)
        case InvalidHelper():
            return InvalidParameter(f"helpers{error.field}")
        case MachineGone():
            return wire.NoSuchMachine(error.name)
        case NotWhole():
            return wire.NotSupported(
                "helpers", "the machine is part of a unit, which they cannot be bound to"
            )
        case RegisteredByUser():
            return wire.NotSupported(
                "helpers", "the machine was registered by a user, without the rights of root that they take"
            )
        case NotUnicode():
            return wire.NotSupported(
                "a control group of that name", "it is not UTF-8, so that no reply could tell it"
            )
        case JobFailed():
            return wire.JobFailed(error.unit, error.job_result, error.unit_result)
        case process.ProcessGone():
            return wire.ProcessGone(error.pid)
        case ForeignNumber():
            return wire.NotSupported(
                "PIDs of another PID namespace",
                "send a pidfd along (leaderFileDescriptor, processFileDescriptor), or name its pidfdId",
            )
        case NotOwned():
            return wire.ProcessNotOwned(error.pid, error.uid)
        case UnitNotOwned():
            return wire.UnitNotOwned(error.unit)
        case Full():
            return wire.Busy("Register")
        case TooMuchUnderWay():
            return wire.Busy(str(error))
        case NoIdMapping():
            return wire.NotSupported(
                f"{error.property}=…:idmap",
                "no version of systemd has it up to 262; the helper can make such a mount itself",
            )
        case NotStoppable():
            return wire.NotSupported("Stop", "the machine is part of a unit, and nobody supervises it")
        case TooOld():
            return wire.NotSupported(error.operation, f"it needs systemd {error.version}")
        case manager.NoSuchProperty():
            return wire.NoSuchProperty(error.property, error.nearest or None, error.owner)
        case manager.InvalidProperty():
            return wire.InvalidProperty(error.property, error.reason, error.owner)
        case HelperLate():
            return wire.Timeout(error.operation, error.helper, error.log)
        case manager.ManagerTimeout():
            return wire.Timeout(error.operation)
        case manager.UnitBusy():
            return wire.Busy(error.reason)
        case manager.AccessDenied():
            return PermissionDenied()
        case manager.ManagerError():
            return wire.ManagerUnavailable(str(error))
        case _:
            return None


@contextmanager
def _errors() -> Generator[None]:
    try:
        yield
    except Exception as error:
        translated = _error(error)
        if translated is None:
            raise
        raise translated from None


class MoorageMachine(Interface):
    """The handlers of io.moorage.Machine."""

    def __init__(self, services: Services, authority: Authority, manager: Manager) -> None:
        super().__init__(load_description("io.moorage.Machine"))
        self._services = services
        self._registry = services.registry
        self._authority = authority
        self._manager = manager

    @method("Register")
    async def register(self, call: Call, params: wire.RegisterIn) -> wire.RegisterOut:
        """Register a machine, and give it a scope."""
        self._check(params)
        details = {"name": params.name, "class": params.class_, "verb": "register"}
        as_root = AsRoot(call, self._authority, details, interactive=params.allowInteractiveAuthentication)
        await self._authorize(call, params, details, as_root)
        pidfd = (
            None
            if params.leaderFileDescriptor is None
            else call.take_fd(params.leaderFileDescriptor, "leaderFileDescriptor")
        )
        blamed = "leader" if pidfd is None else "leaderFileDescriptor"
        with _errors():
            leader = await open_leader(call, self._services.registrar, params.leader, pidfd, blamed, as_root)
            try:
                registration = self._registration(call, params, leader, as_root)
                await self._services.changing.check(registration.helpers, registration.name)
                if registration.exec_stop and not await is_program(registration.exec_stop[0]):
                    raise InvalidParameter("execStop[0]")
                timeout = (params.timeoutUSec or 0) / 1e6 or REGISTER_SECONDS
                try:
                    done = await self._registered(call, registration, timeout)
                except UnitNotOwned:
                    if registration.privileged or not await as_root.ask_for_others():
                        raise
                    registration = replace(registration, privileged=True)
                    done = await self._registered(call, registration, timeout)
            finally:
                leader.close()
        frozen = self._is_frozen(done.machine)
        machine = self._machine(call, done.machine, done.helpers, phase=done.phase, frozen=frozen)
        differences = [wire.Difference(**asdict(each)) for each in done.differences]
        units = [wire.PlannedUnit(**asdict(each)) for each in done.units]
        return wire.RegisterOut(machine=machine, differences=differences, units=units or None)

    def _check(self, params: wire.RegisterIn) -> None:
        """Check what can be checked without looking at anything but the parameters."""
        if not model.is_machine_name(params.name):
            raise InvalidParameter("name")
        check_identity(
            id=params.id,
            service=params.service,
            root_directory=params.rootDirectory,
            if_indices=params.ifIndices,
            vsock_cid=params.vSockCid,
            ssh_address=params.sshAddress,
            ssh_private_key_path=params.sshPrivateKeyPath,
            control_address=params.controlAddress,
        )
        if params.execStop and (place := bad_argument(params.execStop)) is not None:
            raise InvalidParameter(f"execStop{place}")
        if params.slice is not None and not model.is_slice_name(params.slice):
            raise InvalidParameter("slice")
        if params.sliceProperties is not None and not model.is_slice_name(
            model.own_slice(params.slice or rights.MACHINE_SLICE, params.name)
        ):
            raise InvalidParameter("sliceProperties")  # no slice can have so long a name
        if params.description is not None and not (
            model.is_text(params.description) and unit_files.LINE.broken_by(params.description) is None
        ):
            raise InvalidParameter("description")
        if params.allocateUnit is False:
            for name, value in (
                ("slice", params.slice),
                ("description", params.description),
                ("properties", params.properties),
                ("sliceProperties", params.sliceProperties is not None),
                ("helpers", params.helpers),
                ("execStop", params.execStop),
            ):
                if value:
                    raise InvalidParameter(name)  # of a unit that is somebody else's

    async def _authorize(
        self, call: Call, params: wire.RegisterIn, details: Mapping[str, str], as_root: AsRoot
    ) -> None:
        """Let a registration pass or not.

        Raises:
            PermissionDenied, InteractiveAuthenticationRequired, System: as polkit says.
            InvalidProperty: of all that it asks for, this takes the rights of root.
        """
        if params.helpers or params.execStop:
            await as_root.require()
        excess: manager.InvalidProperty | None = None
        try:
            rights.check(
                params.properties or {},
                params.slice,
                call.peer.uid,
                slice_properties=params.sliceProperties,
            )
        except manager.InvalidProperty as error:
            excess = error
            await as_root.ask()
        if as_root.granted:
            return
        await authorize(
            call,
            self._authority,
            details,
            variant=IN_PLACE if params.allocateUnit is False else "",
            # Who has just been asked for more is not asked again.
            interactive=params.allowInteractiveAuthentication if excess is None else False,
        )
        if excess is not None:
            raise wire.InvalidProperty(excess.property, excess.reason)

    def _registration(
        self, call: Call, params: wire.RegisterIn, leader: Leader, as_root: AsRoot
    ) -> model.Registration:
        return model.Registration(
            name=params.name,
            class_=model.MachineClass(params.class_),
            registrant=call.peer.uid,
            leader=leader.id,
            leader_pidfd=leader.pidfd,
            leader_uid=leader.uid,
            supervisor=leader.supervisor,
            allocate_unit=params.allocateUnit is not False,
            identity=model.Identity(
                id=None if params.id is None else params.id.replace("-", "").lower(),
                service=params.service,
                root_directory=params.rootDirectory,
                if_indices=tuple(params.ifIndices or ()),
                vsock_cid=params.vSockCid,
                ssh_address=params.sshAddress,
                ssh_private_key_path=params.sshPrivateKeyPath,
                control_address=params.controlAddress,
            ),
            slice=params.slice,
            description=params.description,
            properties=params.properties or {},
            slice_properties=params.sliceProperties,
            helpers=machine_helpers.specs(params.helpers),
            exec_stop=tuple(params.execStop or ()),
            exec_stop_timeout_usec=params.execStopTimeoutUSec,
            lease=bool(params.lease),
            dry_run=bool(params.dryRun),
            privileged=as_root.granted,
        )

    async def _registered(self, call: Call, registration: model.Registration, timeout: float) -> Registered:
        lease = call.wait_gone if registration.lease else None
        registrar = self._services.registrar
        return await registrar.find_or_register(registration, timeout=timeout, lease=lease)

    @method("List", requires_more=True)
    def list(self, call: Call, params: Empty) -> Iterator[wire.MachineOut]:
        """List the living machines: each is looked at when there is room for it on the connection."""
        permit(call, self._authority)
        return self._listed(call)

    def _listed(self, call: Call) -> Iterator[wire.MachineOut]:
        listed = False
        for machine in self._registry.snapshot():
            if self._registry.get(machine.name) is machine and machine.is_there:
                listed = True
                yield wire.MachineOut(machine=self._machine(call, machine, frozen=machine.frozen))
        if not listed:
            raise wire.NoSuchMachine  # a call has an answer; this one is also machined's

    @method("Describe")
    async def describe(self, call: Call, params: wire.NameIn) -> wire.DescribeOut:
        """Describe a machine, also one that is gone while its verdict is kept."""
        permit(call, self._authority)
        machine = find_named(self._registry, params.name) or self._registry.verdict(params.name)
        if machine is None:
            raise wire.NoSuchMachine(params.name)
        if machine.record.verdict is None:
            with _errors():
                try:
                    limits = await self._services.looking.limits(machine, SHOWN)
                except (manager.NoSuchUnit, manager.NoSuchProperty):
                    limits = {}  # it is just going, or it is a unit of a type that has none
            if machine.record.verdict is None:
                return wire.DescribeOut(
                    machine=self._machine(call, machine),
                    accounting=_accounting(self._services.looking.counters(machine)),
                    limits=limits,
                )
        await machine.completed.wait()
        assert machine.record.verdict is not None
        return wire.DescribeOut(
            machine=self._machine(call, machine),
            accounting=_accounting(machine.record.verdict.accounting),
            limits={},
        )

    @method("DescribeProperties")
    async def describe_properties(
        self, call: Call, params: wire.DescribePropertiesIn
    ) -> wire.DescribePropertiesOut:
        """Return the properties that the service manager has for a type of unit."""
        permit(call, self._authority)
        deadline = trio.current_time() + ASK_USEC / 1e6
        with _errors():
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
        given = [name for name in wire.FindIn.__struct_fields__ if getattr(params, name) is not None]
        if len(given) != 1:
            raise InvalidParameter(given[1] if given else "process")
        with _errors():
            machine = self._found(call, params)
        if machine is None or not machine.is_there:
            raise wire.NoSuchMachine
        return wire.MachineOut(machine=self._machine(call, machine))

    def _found(self, call: Call, params: wire.FindIn) -> Machine | None:
        if params.unit is not None:
            return self._registry.by_unit(params.unit)
        if params.controlGroup is not None:
            if not model.is_path(params.controlGroup):
                raise InvalidParameter("controlGroup")
            return self._registry.by_control_group(params.controlGroup.rstrip("/"))
        if params.invocationId is not None:
            if not model.is_id128(params.invocationId):
                raise InvalidParameter("invocationId")
            return self._registry.by_invocation(params.invocationId.replace("-", "").lower())
        if params.processFileDescriptor is not None:
            pidfd = call.take_fd(params.processFileDescriptor, "processFileDescriptor")
            try:
                target = process.process_id(pidfd)
            except process.NotAProcess:
                raise InvalidParameter("processFileDescriptor") from None
            finally:
                call.give_back(pidfd)
        else:
            assert params.process is not None
            check_number(call, params.process)
            try:
                target = process.identify(params.process.pid, params.process.pidfdId, params.process.bootId)
            except process.NotAProcess:
                raise InvalidParameter("process") from None
        return self._services.lookup.by_process(target.pid, target.pidfd_id, target.boot_id)

    @method("Kill")
    async def kill(self, call: Call, params: wire.KillIn) -> None:
        """Send a signal to processes of a machine."""
        if params.subgroup is not None and not model.is_path("/" + params.subgroup.lstrip("/")):
            raise InvalidParameter("subgroup")
        whom = model.KillWhom(params.whom or model.KillWhom.all)
        if params.subgroup is not None and whom is not model.KillWhom.all:
            raise InvalidParameter("subgroup")
        machine = await self._managed(call, params, params.ifInvocationId)
        with _errors():
            try:
                await self._services.control.kill(machine, whom, params.signal, subgroup=params.subgroup)
            except manager.NoSuchUnit:
                raise wire.ProcessGone from None

    @method("Stop")
    async def stop(
        self, call: Call, params: wire.StopIn
    ) -> AsyncIterator[wire.MachineOut | Last[wire.MachineOut]]:
        """Stop a machine; answered when it is gone, with ``more`` also when it begins to stop."""
        machine = await self._managed(call, params, params.ifInvocationId)
        with _errors():
            if call.more:
                await self._services.control.begin_stop(machine, wait=0)
                yield wire.MachineOut(machine=self._machine(call, machine))
            timeout = (params.timeoutUSec or 0) / 1e6 or STOP_SECONDS
            await self._services.control.stop(machine, timeout=timeout)
        yield Last(wire.MachineOut(machine=self._machine(call, machine)))

    @method("AddHelpers")
    async def add_helpers(
        self, call: Call, params: wire.AddHelpersIn
    ) -> AsyncIterator[wire.HelpersOut | Last[wire.HelpersOut]]:
        """Start helpers for a machine that runs; with ``more`` answered as each of them changes."""
        machine = await self._managed(call, params)
        specs = machine_helpers.specs(params.helpers)
        if not specs:
            raise InvalidParameter("helpers")
        statuses: Sequence[model.HelperStatus] = ()
        with _errors():
            async with aclosing(self._services.changing.add(machine, specs)) as changes:
                async for statuses in changes:
                    if call.more:
                        yield wire.HelpersOut(helpers=[machine_helpers.status(each) for each in statuses])
        found = await self._services.changing.differences(machine, specs, statuses)
        yield Last(
            wire.HelpersOut(
                helpers=[machine_helpers.status(each) for each in statuses],
                differences=[wire.Difference(**asdict(each)) for each in found],
            )
        )

    @method("RemoveHelper")
    async def remove_helper(self, call: Call, params: wire.RemoveHelperIn) -> None:
        """Stop a helper and forget it."""
        machine = await self._managed(call, params)
        with _errors():
            try:
                await self._services.changing.remove(machine, params.helper)
            except NoSuchHelper:
                raise wire.NoSuchHelper(params.helper) from None

    @method("Reload")
    async def reload(self, call: Call, params: wire.ManageIn) -> wire.ReloadOut:
        """Reload the helpers that can be reloaded."""
        machine = await self._managed(call, params)
        with _errors():
            reloaded, skipped = await self._services.changing.reload(machine)
        return wire.ReloadOut(reloaded=reloaded, skipped=skipped)

    @method("Forget")
    async def forget(self, call: Call, params: wire.ManageIn) -> None:
        """Drop the record of a machine, living or gone; its unit goes on."""
        machine = self._known(params.name)
        await authorize_managing(
            call, self._authority, machine, interactive=params.allowInteractiveAuthentication
        )
        if self._known(params.name) is not machine:
            raise wire.NoSuchMachine(params.name)
        self._services.retirement.forget(machine)

    def _known(self, name: str) -> Machine:
        machine = find_named(self._registry, name) or self._registry.verdict(name)
        if machine is None:
            raise wire.NoSuchMachine(name)
        return machine

    async def _managed(self, call: Call, params: wire.ManageIn, invocation_id: str | None = None) -> Machine:
        """Find a living machine that the caller may do something with."""
        find_named(self._registry, params.name)  # refuses what is no name
        await self._services.registrar.wait(params.name)
        machine = self._registry.get(params.name)
        if machine is None or (invocation_id is not None and machine.record.invocation_id != invocation_id):
            raise wire.NoSuchMachine(params.name)
        await authorize_managing(
            call, self._authority, machine, interactive=params.allowInteractiveAuthentication
        )
        if self._registry.get(params.name) is not machine:  # the name may be another's by now
            raise wire.NoSuchMachine(params.name)
        return machine

    def _is_frozen(self, machine: Machine) -> bool:
        """Whether a machine that was registered a moment ago is frozen: where that cannot be seen it is not yet."""
        try:
            return self._services.looking.is_frozen(machine)
        except OSError:
            return False

    def _machine(
        self,
        call: Call,
        machine: Machine,
        helpers: Sequence[model.HelperStatus] | None = None,
        *,
        phase: model.Phase | None = None,
        frozen: bool | None = None,
    ) -> wire.Machine:
        record, placement, identity = machine.record, machine.record.placement, machine.record.identity
        whole = self._authority.policy.tells_all(call.peer.uid, record.registrant)
        if frozen is None:
            frozen = record.verdict is None and self._services.looking.is_frozen(machine)
        return wire.Machine(
            name=machine.name,
            class_=wire.MachineClass(record.class_),
            phase=wire.Phase(phase or machine.phase),
            freezer=wire.FreezerState.frozen if frozen else wire.FreezerState.running,
            id=identity.id,
            service=identity.service,
            uid=record.registrant,
            unit=placement.unit,
            subgroup=placement.subgroup,
            slice=placement.slice,
            controlGroup=placement.control_group,
            controlGroupId=placement.control_group_id,
            invocationId=placement.invocation_id,
            leader=process_id(record.leader),
            supervisor=process_id(record.supervisor),
            runtimeDirectory=record.runtime_directory,
            rootDirectory=identity.root_directory,
            ifIndices=list(identity.if_indices),
            vSockCid=identity.vsock_cid,
            sshAddress=identity.ssh_address,
            sshPrivateKeyPath=identity.ssh_private_key_path if whole else None,
            controlAddress=identity.control_address if whole else None,
            timestamp=timestamp(record.timestamp),
            helpers=[
                machine_helpers.status(helper)
                for helper in helpers or self._services.changing.statuses(machine)
            ],
            verdict=None if record.verdict is None else _verdict(record.verdict, whole=whole),
        )


def _verdict(verdict: model.Verdict, *, whole: bool) -> wire.Verdict:
    """Say how a machine ended; what a helper wrote is told to those only who may know all of the machine."""
    return wire.Verdict(
        result=verdict.result,
        exitedAt=timestamp(verdict.exited_at),
        cause=None if verdict.cause is None else wire.Cause(verdict.cause),
        oomKilled=verdict.oom_killed,
        leaderStatus=verdict.leader_status,
        leaderSignal=verdict.leader_signal,
        helper=verdict.helper,
        helperResult=verdict.helper_result,
        log=(list(verdict.log) or None) if whole else None,
        accounting=_accounting(verdict.accounting),
    )


def _accounting(found: model.Accounting) -> wire.Accounting:
    return wire.Accounting(
        cpuUsageNSec=found.cpu_usage_nsec,
        memoryCurrent=found.memory_current,
        memoryPeak=found.memory_peak,
        memorySwapCurrent=found.memory_swap_current,
        tasksCurrent=found.tasks_current,
        ioReadBytes=found.io_read_bytes,
        ioWriteBytes=found.io_write_bytes,
        ioReadOperations=found.io_read_operations,
        ioWriteOperations=found.io_write_operations,
        ipIngressBytes=found.ip_ingress_bytes,
        ipEgressBytes=found.ip_egress_bytes,
        oomKills=found.oom_kills,
        managedOomKills=found.managed_oom_kills,
    )
