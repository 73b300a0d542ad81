"""Handlers of io.systemd.Machine, as systemd-machined 262 serves it.

Register also returns where the machine is. Names, order of checks and errors are those of systemd's
src/machine/machine-varlink.c and machined-varlink.c; deliberate differences are noted. Described methods without a
handler are answered with MethodNotImplemented.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager

from moorage import names
from moorage.api.calls import authorize, permit
from moorage.api.identity import identity
from moorage.api.leader import ForeignNumber, check_leader, open_leader
from moorage.api.refusals import translated
from moorage.api.systemd_machine.errors import REFUSALS, NoSuchMachine
from moorage.api.systemd_machine.host import host
from moorage.api.systemd_machine.inside import Inside
from moorage.api.systemd_machine.types import (
    AcquireMetadata,
    Address,
    KillIn,
    ListIn,
    ListOut,
    LookupIn,
    RegisterIn,
    RegisterOut,
)
from moorage.api.wire_types import ProcessId, process_id, timestamp
from moorage.authz.ownership import NotOwned
from moorage.authz.policy import IN_PLACE, METADATA
from moorage.kernel import process
from moorage.machines import model, texts
from moorage.machines.machine import Machine
from moorage.wire.call import Call
from moorage.wire.errors import ExpectedMore, InvalidParameter, PermissionDenied
from moorage.wire.method import method
from moorage.wire.types import Last

TERMINATE_SECONDS = 5.0
"""How long Terminate waits for the end, in seconds. machined replies at once, and the patience of its clients is 45 s
(sd-varlink); a machine that ignores SIGTERM takes longer than that. Then the service manager goes on by itself."""


class SystemdMachine(Inside):
    """The handlers of io.systemd.Machine."""

    @method("Register")
    async def register(self, call: Call, params: RegisterIn) -> RegisterOut:
        """Register a machine."""
        if not names.is_host_name(params.name):
            raise InvalidParameter("name")
        if params.class_ is model.MachineClass.host:
            raise InvalidParameter("class")
        for field in ("service", "sshAddress"):
            if getattr(params, field) == "":  # nothing, as machined has it
                setattr(params, field, None)
        if params.id is not None and texts.is_null_id128(params.id):  # likewise
            params.id = None
        about = identity(params)
        if params.controlAddress is not None and not texts.is_path(params.controlAddress):
            raise InvalidParameter("controlAddress")
        given, blamed = _named_leader(call, params)
        await authorize(
            call,
            self.authority,
            {"name": params.name, "class": params.class_},
            variant="" if params.allocateUnit else IN_PLACE,
            interactive=params.allowInteractiveAuthentication,
        )
        settings = self.configuration.settings
        try:
            with _there_or(blamed):
                leader = await open_leader(call, self.services.registrar, given, None, blamed)
        except NotOwned:
            raise PermissionDenied from None
        wanted = model.Registration(
            name=params.name,
            class_=params.class_,
            registrant=call.peer.uid,
            leader=leader.id,
            leader_pidfd=leader.pidfd,
            leader_uid=leader.uid,
            supervisor=leader.supervisor,
            allocate_unit=bool(params.allocateUnit),
            identity=about,
            privileged=self.authority.policy.is_root(call.peer.uid),
            defaults=settings.defaults,
        )
        timeout = settings.register_timeout_usec / 1e6
        try:
            with translated(REFUSALS):
                done = await self.services.registrar.register(wanted, timeout=timeout)
        finally:
            leader.close()
        placement = done.machine.record.placement
        return RegisterOut(
            unit=placement.unit,
            subgroup=placement.relative_subgroup,
            slice=placement.slice,
            controlGroup=placement.control_group,
            invocationId=placement.invocation_id,
        )

    @method("Unregister")
    async def unregister(self, call: Call, params: LookupIn) -> None:
        """Forget a machine; its unit goes on."""
        machine = await self.managed(call, params)
        self.services.retirement.forget(machine)

    @method("Terminate")
    async def terminate(self, call: Call, params: LookupIn) -> None:
        """Stop a machine; reply when it is gone, or after a few seconds."""
        machine = await self.managed(call, params)
        with translated(REFUSALS):
            await self.services.control.begin_stop(machine, wait=TERMINATE_SECONDS)

    @method("Kill")
    async def kill(self, call: Call, params: KillIn) -> None:
        """Send a signal to processes of a machine."""
        machine = await self.managed(call, params)
        with translated(REFUSALS):
            await self.services.control.kill(machine, params.whom or model.KillWhom.all, params.signal)

    @method("List")
    def list(self, call: Call, params: ListIn) -> Iterator[ListOut] | AsyncIterator[ListOut | Last[ListOut]]:
        """List one machine, or with ``more`` all of them."""
        permit(call, self.authority)
        if (params.acquireMetadata or AcquireMetadata.no) is not AcquireMetadata.no:
            return self._list_with_metadata(call, params)
        return (self._listed(call, machine) for machine in self._chosen(call, params))

    def _chosen(self, call: Call, params: ListIn) -> list[Machine]:
        """Return the machines that a call of List is about: one at least."""
        if params.name is not None or params.pid is not None:
            return [self.lookup(call, params)]
        if not call.more:
            raise ExpectedMore
        machines = [machine for machine in self.registry if machine.is_there]
        machines[:0] = [host()] if self.authority.policy.user is None else []
        if not machines:
            raise NoSuchMachine
        return machines

    async def _list_with_metadata(
        self, call: Call, params: ListIn
    ) -> AsyncIterator[ListOut | Last[ListOut]]:
        # Before any machine is looked up, as in machined: who may not look learns not even which there are.
        await authorize(
            call,
            self.authority,
            {"name": params.name or "n/a"},  # strna(), as machined says for no name
            variant=METADATA,
            interactive=params.allowInteractiveAuthentication,
        )
        machines = self._chosen(call, params)
        graceful = params.acquireMetadata is AcquireMetadata.graceful
        for number, machine in enumerate(machines, start=1):
            reply = self._listed(call, machine)
            with translated(REFUSALS):
                found = await self.services.looking.metadata(machine, graceful=graceful)
            if found.addresses:
                reply.addresses = [
                    Address(ifindex=address.ifindex, family=address.family, address=list(address.address))
                    for address in found.addresses
                ]
            reply.OSRelease = found.os_release or None
            reply.UIDShift = found.uid_shift
            yield reply if number < len(machines) else Last(reply)

    def _listed(self, call: Call, machine: Machine) -> ListOut:
        record, identity = machine.record, machine.record.identity
        # machined shows everything to everybody.
        whole = self.authority.policy.tells_all(call.peer.uid, machine.record.registrant)
        return ListOut(
            name=machine.name,
            id=identity.id,
            service=identity.service,
            class_=record.class_,
            leader=process_id(record.leader),
            supervisor=process_id(record.supervisor),
            rootDirectory=identity.root_directory,
            unit=machine.unit,
            timestamp=timestamp(record.timestamp),
            vSockCid=identity.vsock_cid,
            sshAddress=identity.ssh_address,
            sshPrivateKeyPath=identity.ssh_private_key_path if whole else None,
            controlAddress=(identity.control_address or machine.control_socket) if whole else None,
            subgroup=record.placement.relative_subgroup,
            UID=record.registrant,
        )


def _named_leader(call: Call, params: RegisterIn) -> tuple[ProcessId | None, str]:
    """Return the leader that the parameters name, None for the caller, and the parameter to blame."""
    given, blamed = params.leaderProcessId, "leaderProcessId"
    if given is None:
        blamed = "leader"
        given = None if params.leader is None else ProcessId(pid=params.leader)
    elif params.leader not in {None, given.pid}:
        raise InvalidParameter("leader")
    if given is not None:
        with _there_or(blamed):
            check_leader(call, given, blamed)
    return given, blamed


@contextmanager
def _there_or(blamed: str) -> Generator[None]:
    """Blame a parameter for a process that is not there."""
    try:
        yield
    except (process.ProcessGone, ForeignNumber):
        raise InvalidParameter(blamed) from None
