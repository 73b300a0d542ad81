"""io.systemd.Machine, as systemd-machined 262 serves it, with a Register that also says where the machine is.

Names, order of checks and errors are those of systemd's src/machine/machine-varlink.c and machined-varlink.c; where
they differ on purpose it is said below. Methods without a handler here are answered with MethodNotImplemented.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from msgspec import field

from moorage.api.descriptions import load_description
from moorage.api.requests import (
    Authority,
    ForeignNumber,
    ProcessId,
    Signal,
    Timestamp,
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
from moorage.authz.ownership import NotOwned, UnitNotOwned
from moorage.authz.policy import IN_PLACE, METADATA
from moorage.kernel import process
from moorage.kernel.clock import SystemClock
from moorage.machines import metadata, model
from moorage.machines.errors import (
    Full,
    JobFailed,
    LeaderTaken,
    NameTaken,
    NotStoppable,
    NotUnicode,
    TooMuchUnderWay,
    TooOld,
    UnitNameTaken,
)
from moorage.machines.final_account import now
from moorage.machines.machine import Machine
from moorage.machines.services import Services
from moorage.pid1.manager import AccessDenied, ManagerError, ManagerTimeout, NoSuchUnit
from moorage.wire.call import Call
from moorage.wire.errors import (
    ExpectedMore,
    InvalidParameter,
    PermissionDenied,
    System,
    TimedOut,
    VarlinkError,
)
from moorage.wire.method import method
from moorage.wire.service import Interface
from moorage.wire.types import Int, Last, Parameters, Reply

HOST = ".host"
"""Name of the host among the machines."""

TERMINATE_SECONDS = 5.0
"""How long Terminate waits for the end. machined answers at once, and its clients' patience is 45 s (sd-varlink);
a machine that ignores SIGTERM takes longer than that. After this the manager goes on by itself."""


class MachineClass(StrEnum):
    """What runs in a machine."""

    container = "container"
    vm = "vm"
    host = "host"


class KillWhom(StrEnum):
    """Which processes a signal is for."""

    leader = "leader"
    supervisor = "supervisor"
    all = "all"


class AcquireMetadata(StrEnum):
    """Whether List looks into the machines, and what a failure of that means."""

    no = "no"
    yes = "yes"
    graceful = "graceful"


class Address(Reply, kw_only=True):
    """A network address of a machine: family as in socket(2), address in network byte order."""

    ifindex: Int | None = None
    family: Int
    address: list[Int]


class RegisterIn(Parameters, kw_only=True):
    """What Register takes; ``supervisor`` is ignored, as it is derived from the caller."""

    name: str
    class_: MachineClass = field(name="class")
    id: str | None = None
    service: str | None = None
    leader: Int | None = None
    leaderProcessId: ProcessId | None = None  # noqa: N815 - names on the wire
    supervisor: Int | None = None
    supervisorProcessId: ProcessId | None = None  # noqa: N815
    rootDirectory: str | None = None  # noqa: N815
    ifIndices: list[Int] | None = None  # noqa: N815
    vSockCid: Int | None = None  # noqa: N815
    sshAddress: str | None = None  # noqa: N815
    sshPrivateKeyPath: str | None = None  # noqa: N815
    controlAddress: str | None = None  # noqa: N815
    allocateUnit: bool | None = None  # noqa: N815
    allowInteractiveAuthentication: bool | None = None  # noqa: N815


class RegisterOut(Reply, kw_only=True):
    """What Register gives; machined gives nothing."""

    unit: str | None = None
    subgroup: str | None = None
    slice: str | None = None
    controlGroup: str | None = None  # noqa: N815
    invocationId: str | None = None  # noqa: N815


class LookupIn(Parameters, kw_only=True):
    """A machine by name, by a process in it, or by both."""

    name: str | None = None
    pid: ProcessId | None = None
    allowInteractiveAuthentication: bool | None = None  # noqa: N815


class KillIn(LookupIn, kw_only=True):
    """What Kill takes."""

    whom: KillWhom | None = None
    signal: Signal


class ListIn(LookupIn, kw_only=True):
    """What List takes."""

    acquireMetadata: AcquireMetadata | None = None  # noqa: N815


class ListOut(Reply, kw_only=True):
    """A machine."""

    name: str
    id: str | None = None
    service: str | None = None
    class_: MachineClass = field(name="class")
    leader: ProcessId | None = None
    supervisor: ProcessId | None = None
    rootDirectory: str | None = None  # noqa: N815
    unit: str | None = None
    timestamp: Timestamp | None = None
    vSockCid: Int | None = None  # noqa: N815
    sshAddress: str | None = None  # noqa: N815
    sshPrivateKeyPath: str | None = None  # noqa: N815
    controlAddress: str | None = None  # noqa: N815
    addresses: list[Address] | None = None
    OSRelease: list[str] | None = None
    UIDShift: Int | None = None
    subgroup: str | None = None
    UID: Int | None = None


@dataclass(eq=False)
class NoSuchMachine(VarlinkError):
    """There is no such machine."""

    error = "io.systemd.Machine.NoSuchMachine"


@dataclass(eq=False)
class MachineExists(VarlinkError):
    """The name, the leader or the unit belongs to another machine, or the unit's name is taken."""

    error = "io.systemd.Machine.MachineExists"


@dataclass(eq=False)
class NoPrivateNetworking(VarlinkError):
    """The machine has no network of its own."""

    error = "io.systemd.Machine.NoPrivateNetworking"


@dataclass(eq=False)
class NoOSReleaseInformation(VarlinkError):
    """The machine has no os-release(5)."""

    error = "io.systemd.Machine.NoOSReleaseInformation"


@dataclass(eq=False)
class NoUIDShift(VarlinkError):
    """The machine's user namespace is not a simple shift."""

    error = "io.systemd.Machine.NoUIDShift"


@dataclass(eq=False)
class NotAvailable(VarlinkError):
    """Machines of this class do not tell."""

    error = "io.systemd.Machine.NotAvailable"


@dataclass(eq=False)
class NotSupported(VarlinkError):
    """Machines of this class do not do that."""

    error = "io.systemd.Machine.NotSupported"


def _error(error: Exception) -> VarlinkError:
    """Return the error of this interface for what went wrong below."""
    match error:
        case NameTaken() | LeaderTaken() | UnitNameTaken():
            return MachineExists()
        case metadata.NoPrivateNetworking():
            return NoPrivateNetworking()
        case metadata.NoOSRelease():
            return NoOSReleaseInformation()
        case metadata.NoUIDShift():
            return NoUIDShift()
        case metadata.NotAvailable():  # as in machined, only what never is
            return NotAvailable()
        case metadata.Unreadable():
            return System.of(error.number)
        case Full():
            return System.of(errno.ENOSPC)
        case TooMuchUnderWay():
            return System.of(errno.EBUSY)
        case process.ProcessGone() | NoSuchUnit():
            return System.of(errno.ESRCH)
        case JobFailed():
            return System.of(errno.EPROTO)
        case NotUnicode():
            return System.of(errno.EILSEQ)
        case NotStoppable() | TooOld():
            return System.of(errno.EOPNOTSUPP)
        case ManagerTimeout():
            return TimedOut()
        case AccessDenied() | NotOwned() | UnitNotOwned():
            return PermissionDenied()
        case _:
            return System.of(errno.EIO)


_DOMAIN_ERRORS = (
    NameTaken,
    LeaderTaken,
    UnitNameTaken,
    Full,
    process.ProcessGone,
    JobFailed,
    NotUnicode,
    NotOwned,
    UnitNotOwned,
    NotStoppable,
    TooMuchUnderWay,
    TooOld,
    ManagerError,
    metadata.MetadataError,
)


class SystemdMachine(Interface):
    """The handlers of io.systemd.Machine."""

    def __init__(self, services: Services, authority: Authority) -> None:
        super().__init__(load_description("io.systemd.Machine"))
        self._services = services
        self._registry = services.registry
        self._authority = authority

    @method("Register")
    async def register(self, call: Call, params: RegisterIn) -> RegisterOut:
        """Register a machine."""
        if not model.is_host_name(params.name):
            raise InvalidParameter("name")
        if params.class_ is MachineClass.host:
            raise InvalidParameter("class")
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
        if params.controlAddress is not None and not model.is_path(params.controlAddress):
            raise InvalidParameter("controlAddress")
        await authorize(
            call,
            self._authority,
            {"name": params.name, "class": params.class_},
            variant="" if params.allocateUnit else IN_PLACE,
            interactive=params.allowInteractiveAuthentication,
        )
        given, blamed = params.leaderProcessId, "leaderProcessId"
        if given is None:
            blamed = "leader"
            given = None if params.leader is None else ProcessId(pid=params.leader)
        elif params.leader not in {None, given.pid}:
            raise InvalidParameter("leader")
        try:
            leader = await open_leader(call, self._services.registrar, given, None, blamed)
        except (process.ProcessGone, ForeignNumber):
            raise InvalidParameter(blamed) from None
        except NotOwned:
            raise PermissionDenied from None
        try:
            done = await self._services.registrar.register(
                model.Registration(
                    name=params.name,
                    class_=model.MachineClass(params.class_),
                    registrant=call.peer.uid,
                    leader=leader.id,
                    leader_pidfd=leader.pidfd,
                    leader_uid=leader.uid,
                    supervisor=leader.supervisor,
                    allocate_unit=bool(params.allocateUnit),
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
                    privileged=self._authority.policy.is_root(call.peer.uid),
                )
            )
        except _DOMAIN_ERRORS as error:
            raise _error(error) from None
        finally:
            leader.close()
        placement = done.machine.record.placement
        return RegisterOut(
            unit=placement.unit,
            subgroup=placement.subgroup,
            slice=placement.slice,
            controlGroup=placement.control_group,
            invocationId=placement.invocation_id,
        )

    @method("Unregister")
    async def unregister(self, call: Call, params: LookupIn) -> None:
        """Drop the record of a machine; its unit goes on."""
        machine = await self._managed(call, params)
        if machine.record.class_ is model.MachineClass.host:
            raise System.of(errno.EOPNOTSUPP)  # machined agrees, and then goes on listing it
        self._services.retirement.forget(machine)

    @method("Terminate")
    async def terminate(self, call: Call, params: LookupIn) -> None:
        """Stop a machine; answered when it is gone, or after a few seconds when it takes its time."""
        machine = await self._managed(call, params)
        if machine.record.class_ is model.MachineClass.host:
            raise System.of(errno.EOPNOTSUPP)
        try:
            await self._services.control.begin_stop(machine, wait=TERMINATE_SECONDS)
        except _DOMAIN_ERRORS as error:
            raise _error(error) from None

    @method("Kill")
    async def kill(self, call: Call, params: KillIn) -> None:
        """Send a signal to processes of a machine."""
        machine = await self._managed(call, params)
        if machine.record.class_ is model.MachineClass.host:
            raise System.of(errno.EOPNOTSUPP)
        whom = model.KillWhom(params.whom or KillWhom.all)
        try:
            await self._services.control.kill(machine, whom, params.signal)
        except _DOMAIN_ERRORS as error:
            raise _error(error) from None

    @method("List")
    def list(self, call: Call, params: ListIn) -> Iterator[ListOut] | AsyncIterator[ListOut | Last[ListOut]]:
        """List one machine, or with ``more`` all of them."""
        permit(call, self._authority)
        if params.name is not None or params.pid is not None:
            machines = [self._lookup(call, params)]
        elif call.more:
            machines = [machine for machine in self._registry if machine.is_there]
            machines[:0] = [_host()] if self._authority.policy.user is None else []
        else:
            raise ExpectedMore
        if not machines:
            raise NoSuchMachine
        if (params.acquireMetadata or AcquireMetadata.no) is AcquireMetadata.no:
            return (self._listed(call, machine) for machine in machines)
        return self._list_with_metadata(call, params, machines)

    async def _list_with_metadata(
        self, call: Call, params: ListIn, machines: list[Machine]
    ) -> AsyncIterator[ListOut | Last[ListOut]]:
        owners = {machine.record.registrant for machine in machines}
        await authorize(
            call,
            self._authority,
            {"name": params.name or "n/a"},  # strna(), what machined has for none
            variant=METADATA,
            owner=owners.pop() if len(owners) == 1 else None,
            interactive=params.allowInteractiveAuthentication,
        )
        graceful = params.acquireMetadata is AcquireMetadata.graceful
        for number, machine in enumerate(machines, start=1):
            reply = self._listed(call, machine)
            try:
                found = await self._services.looking.metadata(machine, graceful=graceful)
            except _DOMAIN_ERRORS as error:
                raise _error(error) from None
            if found.addresses:
                reply.addresses = [
                    Address(ifindex=address.ifindex, family=address.family, address=list(address.address))
                    for address in found.addresses
                ]
            reply.OSRelease = found.os_release or None
            reply.UIDShift = found.uid_shift
            yield reply if number < len(machines) else Last(reply)

    async def _managed(self, call: Call, params: LookupIn) -> Machine:
        """Find a machine that the caller may do something with."""
        if params.name is not None and self._registry.claim(params.name) is not None:
            await self._services.registrar.wait(params.name)
        machine = self._lookup(call, params)
        await authorize_managing(
            call, self._authority, machine, interactive=params.allowInteractiveAuthentication
        )
        if self._lookup(call, params) is not machine:  # it may be another one by now
            raise NoSuchMachine
        return machine

    def _lookup(self, call: Call, params: LookupIn) -> Machine:
        by_name = _host() if params.name == HOST and self._authority.policy.user is None else None
        by_name = by_name or find_named(self._registry, params.name)
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
            or (given.bootId is not None and not model.is_id128(given.bootId))
        ):
            raise InvalidParameter("pid")
        else:
            try:
                check_number(call, given)
            except ForeignNumber:
                raise InvalidParameter("pid") from None
        machine = self._services.lookup.by_process(given.pid, given.pidfdId, given.bootId)
        if machine is None:
            raise NoSuchMachine
        return machine

    def _listed(self, call: Call, machine: Machine) -> ListOut:
        record, identity = machine.record, machine.record.identity
        # machined tells everybody everything.
        whole = self._authority.policy.tells_all(call.peer.uid, machine.record.registrant)
        return ListOut(
            name=machine.name,
            id=identity.id,
            service=identity.service,
            class_=MachineClass(record.class_),
            leader=process_id(record.leader),
            supervisor=process_id(record.supervisor),
            rootDirectory=identity.root_directory,
            unit=machine.unit,
            timestamp=timestamp(record.timestamp),
            vSockCid=identity.vsock_cid,
            sshAddress=identity.ssh_address,
            sshPrivateKeyPath=identity.ssh_private_key_path if whole else None,
            controlAddress=identity.control_address if whole else None,
            subgroup=record.placement.subgroup,
            UID=record.registrant,
        )


@functools.cache
def _host() -> Machine:
    """Return the machine that we are on (``manager_add_host_machine()``)."""
    present = now(SystemClock())
    return Machine(
        model.Record(
            name=HOST,
            class_=model.MachineClass.host,
            registrant=0,
            placement=model.Placement("-.slice", control_group="/", control_group_id=1),
            allocated=False,
            leader=process.identify(1),
            supervisor=None,
            identity=model.Identity(
                id=Path("/etc/machine-id").read_text(encoding="ascii").strip(),
                root_directory="/",
                vsock_cid=1
                if Path("/dev/vsock").exists()
                else None,  # VMADDR_CID_LOCAL, the same on every host
            ),
            timestamp=model.Timestamp(present.realtime - present.monotonic, 0),
        )
    )
