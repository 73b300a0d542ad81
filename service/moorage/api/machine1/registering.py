"""CreateMachine, RegisterMachine and their younger sisters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from moorage import names
from moorage.api.calls import authorize
from moorage.api.leader import ForeignNumber, Leader, check_number, open_leader
from moorage.api.machine1.errors import ACCESS_DENIED, INVALID_ARGS, Refusal
from moorage.api.machine1.request import Request
from moorage.api.refusals import translated
from moorage.api.systemd_machine import checks
from moorage.api.systemd_machine.errors import REFUSALS, MachineExists
from moorage.api.systemd_machine.handlers import SystemdMachine
from moorage.api.wire_types import ProcessId
from moorage.authz.ownership import NotOwned
from moorage.authz.policy import IN_PLACE
from moorage.kernel import process
from moorage.machines import model, texts
from moorage.machines.machine import Machine
from moorage.pid1.errors import InvalidProperty, NoSuchProperty
from moorage.pid1.manager import Json
from moorage.pid1.properties import to_json
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter

Variants: TypeAlias = Sequence[tuple[str, tuple[str, Any]]]
"""Properties by name, as pairs of type and value."""

_TYPES: Final[Mapping[str, str]] = {
    "Id": "ay",
    "Service": "s",
    "Class": "s",
    "LeaderPID": "u",
    "LeaderPIDFD": "h",
    "LeaderPIDFDID": "t",
    "RootDirectory": "s",
    "NetworkInterfaces": "ai",
    "VSockCID": "u",
    "SSHAddress": "s",
    "SSHPrivateKeyPath": "s",
}
"""Properties of CreateMachineEx and RegisterMachineEx."""

_OURS: Final = frozenset({"CollectMode", "Controller"})
"""Properties of a scope that are ignored, since systemd-nspawn of 257 has them for every container. A failed unit is
kept until its result has been read, and then collected. A controller is a peer on the bus that is asked for a stop in
place of the processes (org.freedesktop.systemd1(5)), and the service manager takes none over its private socket."""


class Wanted:
    """A machine as a caller describes it.

    Attributes:
        name: of the machine.
        class_: its class; that of containers where the caller left it open.
        identity: what is said of it.
        leader: the process that leads it by its number; None for the caller, or if there is a pidfd.
        pidfd: index of the pidfd that came with the call; None for none.
        pidfd_id: the pidfd's inode number; None if that is not said.
    """

    def __init__(self, name: str, given: Mapping[str, Any]) -> None:
        """Check what the caller says, in the order in which machined does.

        Args:
            name: of the machine.
            given: values by the names that CreateMachineEx has for them; none is of another type.

        Raises:
            Refusal: something cannot be.
        """
        if not names.is_host_name(name):
            raise Refusal(INVALID_ARGS, "Invalid machine name")
        self.name = name
        number = given.get("Id", b"")
        if len(number) not in {0, 16}:
            raise Refusal(INVALID_ARGS, "Invalid machine ID parameter")
        indices = tuple(given.get("NetworkInterfaces", ()))
        for index in indices:
            if index <= 0:
                raise Refusal(INVALID_ARGS, f"Invalid network interface index {index}")
        if len(indices) > model.IF_INDICES_MAX:
            raise Refusal(INVALID_ARGS, "Too many network interfaces")
        cid = given.get("VSockCID")
        if cid is not None and not model.VSOCK_CID_FIRST <= cid <= model.VSOCK_CID_LAST:
            raise Refusal(INVALID_ARGS, f"{cid} is not a regular VSOCK CID")
        self.class_ = _class(given.get("Class", ""))
        root = given.get("RootDirectory", "")
        if root and not checks.is_absolute(root):
            raise Refusal(INVALID_ARGS, "Root directory must be empty or an absolute path")
        self.leader = given.get("LeaderPID", 0) or None
        self.pidfd = given.get("LeaderPIDFD")
        self.pidfd_id = given.get("LeaderPIDFDID", 0) or None
        if self.leader == 1:
            raise Refusal(INVALID_ARGS, "Invalid leader PID")
        self.identity = model.Identity(
            id=number.hex() if any(number) else None,
            service=_text("Service", given),
            root_directory=root or None,
            if_indices=indices,
            vsock_cid=cid,
            ssh_address=_text("SSHAddress", given),
            ssh_private_key_path=_path("SSHPrivateKeyPath", given),
        )

    @classmethod
    def extended(cls, name: str, properties: Variants) -> Wanted:
        """Check what the caller of CreateMachineEx or RegisterMachineEx says.

        Raises:
            Refusal: something cannot be.
        """
        given: dict[str, Any] = {}
        for key, (kind, value) in properties:
            if (expected := _TYPES.get(key)) is None:
                raise Refusal(INVALID_ARGS, f"Unknown property '{key}'")
            if kind != expected:
                raise Refusal(INVALID_ARGS, f"Property '{key}' is of type '{kind}', expected '{expected}'")
            given[key] = value
        wanted = cls(name, given)
        if wanted.pidfd is None and (wanted.leader is None) != (wanted.pidfd_id is None):
            raise Refusal(
                INVALID_ARGS,
                "Both LeaderPID and LeaderPIDFDID must be specified to identify the leader process by PIDFDID",
            )
        return wanted


def _class(word: str) -> model.MachineClass:
    try:
        found = model.MachineClass(word or model.MachineClass.container)
    except ValueError:
        found = model.MachineClass.host
    if found is model.MachineClass.host:
        raise Refusal(INVALID_ARGS, "Invalid machine class parameter")
    return found


def _text(key: str, given: Mapping[str, Any]) -> str | None:
    text = given.get(key, "")
    if text and not texts.is_text(text):
        raise Refusal(INVALID_ARGS, f"Invalid value of {key}")
    return text or None


def _path(key: str, given: Mapping[str, Any]) -> str | None:
    path = given.get(key, "")
    if path and not texts.is_path(path):
        raise Refusal(INVALID_ARGS, f"Invalid value of {key}")
    return path or None


class ScopeProperties:
    """What a caller wants of a scope.

    Attributes:
        slice: where it goes; None for the default.
        description: of it; None for the default.
        rest: further properties, by name.
    """

    def __init__(self, properties: Variants) -> None:
        """Take them apart.

        Raises:
            Refusal: slice or description are no texts.
        """
        self.rest: dict[str, Json] = {
            key: to_json(kind, value, "infinity") for key, (kind, value) in properties if key not in _OURS
        }
        self.slice = self._take("Slice")
        self.description = self._take("Description")
        if self.slice is not None and not names.is_slice_name(self.slice):
            raise Refusal(INVALID_ARGS, "Invalid value of Slice")
        if self.description is not None and not texts.is_text(self.description):
            raise Refusal(INVALID_ARGS, "Invalid value of Description")

    def _take(self, key: str) -> str | None:
        value = self.rest.pop(key, None)
        if value is not None and not isinstance(value, str):
            raise Refusal(INVALID_ARGS, f"Invalid value of {key}")
        return value or None


class Registering:
    """Registers machines for callers on the bus."""

    def __init__(self, theirs: SystemdMachine) -> None:
        self._theirs = theirs

    async def register(
        self, request: Request, wanted: Wanted, properties: ScopeProperties | None
    ) -> Machine:
        """Register a machine.

        Args:
            request: the call.
            wanted: the machine.
            properties: of a scope for it; None to leave it where it is.

        Raises:
            Refusal, VarlinkError: that is impossible.
        """
        call = request.call("Register")
        try:
            given = _pinned(call, wanted)
            await self._check_name(wanted.name)
            await authorize(
                call,
                self._theirs.authority,
                {"name": wanted.name, "class": wanted.class_},
                variant=IN_PLACE if properties is None else "",
                interactive=request.interactive,
            )
            pidfd = None if wanted.pidfd is None else call.take_fd(wanted.pidfd, "LeaderPIDFD")
            with translated(REFUSALS):
                leader = await self._open(call, given, pidfd)
            try:
                if wanted.pidfd_id is not None and leader.id.pidfd_id not in {None, wanted.pidfd_id}:
                    # The other ways to name it have been compared by now.
                    words = "LeaderPIDFDID does not match the inode number of LeaderPIDFD"
                    raise Refusal(INVALID_ARGS, words)
                return await self._register(call, wanted, properties, leader)
            finally:
                leader.close()
        finally:
            call.close()

    async def _check_name(self, name: str) -> None:
        await self._theirs.services.registrar.wait(name)
        found = self._theirs.registry.get(name)
        if found is not None and found.is_there:
            raise MachineExists

    async def _open(self, call: Call, given: ProcessId | None, pidfd: int | None) -> Leader:
        try:
            return await open_leader(call, self._theirs.services.registrar, given, pidfd, "leader")
        except ForeignNumber:
            raise InvalidParameter("leader") from None
        except NotOwned:
            raise Refusal(ACCESS_DENIED, "Only root may register machines for other users") from None

    async def _register(
        self,
        call: Call,
        wanted: Wanted,
        properties: ScopeProperties | None,
        leader: Leader,
    ) -> Machine:
        theirs = self._theirs
        privileged = theirs.authority.policy.is_root(call.peer.uid)
        if properties is not None and properties.slice is not None and not privileged:
            raise Refusal(ACCESS_DENIED, "Only root may choose the slice of a machine")
        settings = theirs.configuration.settings
        registration = model.Registration(
            name=wanted.name,
            class_=wanted.class_,
            registrant=call.peer.uid,
            leader=leader.id,
            leader_pidfd=leader.pidfd,
            leader_uid=leader.uid,
            supervisor=leader.supervisor,
            allocate_unit=properties is not None,
            identity=wanted.identity,
            slice=None if properties is None else properties.slice,
            description=None if properties is None else properties.description,
            properties={} if properties is None else properties.rest,
            privileged=privileged,
            defaults=settings.defaults,
        )
        with translated(REFUSALS):
            try:
                done = await theirs.services.registrar.register(
                    registration, timeout=settings.register_timeout_usec / 1e6
                )
            except (InvalidProperty, NoSuchProperty) as error:
                raise Refusal(INVALID_ARGS, str(error)) from None
        return done.machine


def _pinned(call: Call, wanted: Wanted) -> ProcessId | None:
    """Return the leader that is named by its number, which machined looks for before it looks at names.

    A person may take minutes to authenticate, and the number may be another process's by then.

    Raises:
        VarlinkError: there is no such process.
    """
    if wanted.leader is None:
        return None
    given = ProcessId(pid=wanted.leader, pidfdId=wanted.pidfd_id)
    if wanted.pidfd is not None:
        return given
    try:
        with translated(REFUSALS):
            check_number(call, given)
            found = process.identify(given.pid, given.pidfdId)
    except process.NotAProcess:
        raise InvalidParameter("leader") from None
    return ProcessId(pid=found.pid, pidfdId=found.pidfd_id)
