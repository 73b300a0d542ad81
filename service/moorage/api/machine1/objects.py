"""The objects of org.freedesktop.machine1: which there are, what they have, and who does what they are asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from moorage.api.machine1 import description
from moorage.api.machine1.description import (
    EVERYWHERE,
    IMAGES,
    INTERFACES,
    INTROSPECTABLE,
    MACHINE,
    MANAGER,
    MANAGER_NAMES,
    PEER,
    PROPERTIES,
    Property,
)
from moorage.api.machine1.errors import (
    IMAGES_ELSEWHERE,
    INVALID_ARGS,
    NO_MACHINE_FOR_PID,
    NO_SUCH_MACHINE,
    NOT_SUPPORTED,
    READ_ONLY,
    UNKNOWN_INTERFACE,
    UNKNOWN_METHOD,
    UNKNOWN_OBJECT,
    UNKNOWN_PROPERTY,
    Refusal,
)
from moorage.api.machine1.machines import Body, Machines
from moorage.api.machine1.paths import IMAGES as IMAGE_PATH
from moorage.api.machine1.paths import MACHINES, ROOT, SELF, name_of, path_of
from moorage.api.machine1.registering import Registering, ScopeProperties, Variants, Wanted
from moorage.api.machine1.request import Request
from moorage.api.systemd_machine.errors import NoSuchMachine
from moorage.api.systemd_machine.handlers import SystemdMachine
from moorage.api.systemd_machine.host import HOST, host
from moorage.api.systemd_machine.types import LookupIn, MapFromIn, MapToIn
from moorage.api.wire_types import ProcessId
from moorage.kernel import process
from moorage.machines import id_maps
from moorage.machines.machine import Machine
from moorage.machines.model import MachineClass, Phase

_ABOVE: Final[Mapping[str, str]] = {
    "/": "org",
    "/org": "freedesktop",
    "/org/freedesktop": "machine1",
}
"""Nodes above the objects, and what is below each."""


class Objects:
    """All objects."""

    def __init__(self, theirs: SystemdMachine) -> None:
        self._theirs = theirs
        self._machines = Machines(theirs)
        self._registering = Registering(theirs)
        self._has_host = theirs.authority.policy.user is None  # a user's machined has no host either
        self._manager: Mapping[str, Callable[..., Awaitable[Body]]] = {
            "GetMachine": self._get_machine,
            "GetMachineByPID": self._get_machine_by_pid,
            "ListMachines": self._list_machines,
            **dict.fromkeys(("CreateMachine", "CreateMachineWithNetwork"), self._create),
            **dict.fromkeys(("RegisterMachine", "RegisterMachineWithNetwork"), self._register),
            "CreateMachineEx": self._create_extended,
            "RegisterMachineEx": self._register_extended,
            "MapFromMachineUser": self._map_from_user,
            "MapFromMachineGroup": self._map_from_group,
            "MapToMachineUser": self._map_to_user,
            "MapToMachineGroup": self._map_to_group,
        }

    async def call(
        self, request: Request, path: str, interface: str, member: str, signature: str, arguments: Body
    ) -> tuple[str, Body]:
        """Make a call.

        Args:
            request: the call.
            path: of the object.
            interface: of the method; empty where the caller left it open.
            member: the method.
            signature: types of the arguments.
            arguments: of the method.

        Returns:
            The types of the answer, and its values.

        Raises:
            Refusal, VarlinkError: it cannot be made.
        """
        if path.startswith(f"{IMAGE_PATH}/") or interface == description.IMAGE:
            raise Refusal(NOT_SUPPORTED, IMAGES_ELSEWHERE)
        if interface == PEER:
            return _checked(interface, member, signature), self._peer(member)
        machine = await self._object(request, path)
        interfaces = self._interfaces(path, machine)
        if interface in {MANAGER, ""} and MANAGER in interfaces and member in IMAGES:
            raise Refusal(NOT_SUPPORTED, IMAGES_ELSEWHERE)
        found = [
            name for name in interfaces if interface in {name, ""} and member in INTERFACES[name].methods
        ]
        if not found:
            raise Refusal(UNKNOWN_METHOD, f"Unknown method {member} or interface {interface}.")
        answer = _checked(found[0], member, signature)
        if found[0] == INTROSPECTABLE:
            return answer, (description.introspection(interfaces, self._children(path)),)
        if found[0] == PROPERTIES:
            return answer, self._properties(request, machine, member, interfaces, arguments)
        if machine is not None:
            return answer, await self._machines.methods[member](request, machine, *arguments)
        if (method := MANAGER_NAMES.get(member)) is not None:
            named = await self._find(str(arguments[0]))
            return answer, await self._machines.methods[method](request, named, *arguments[1:])
        return answer, await self._manager[member](request, *arguments)

    # Objects

    async def _object(self, request: Request, path: str) -> Machine | None:
        """Return the machine that an object is, None for one of the others.

        Raises:
            Refusal: there is no such object.
        """
        if path in _ABOVE or path in {ROOT, MACHINES, IMAGE_PATH}:
            return None
        try:
            if path == SELF:
                return self._theirs.lookup(request.call("List"), LookupIn(pid=ProcessId(pid=0)))
            if (name := name_of(path)) is not None:
                return await self._find(name)
        except (Refusal, NoSuchMachine):
            pass
        raise Refusal(UNKNOWN_OBJECT, f"Unknown object '{path}'.")

    @staticmethod
    def _interfaces(path: str, machine: Machine | None) -> tuple[str, ...]:
        if machine is not None:
            return (*EVERYWHERE, MACHINE)
        return (*EVERYWHERE, MANAGER) if path == ROOT else EVERYWHERE

    def _children(self, path: str) -> list[str]:
        if path == ROOT:
            return ["machine"]
        if path == MACHINES:
            return [path_of(machine.name).rpartition("/")[2] for machine in self._there()]
        return [_ABOVE[path]] if path in _ABOVE else []

    def _there(self) -> list[Machine]:
        there = [machine for machine in self._theirs.registry if machine.is_there]
        return [host(), *there] if self._has_host else there

    async def _find(self, name: str) -> Machine:
        if name == HOST and self._has_host:
            return host()
        await self._theirs.services.registrar.wait(name)
        machine = self._theirs.registry.get(name)
        if machine is None or not machine.is_there:
            raise Refusal(NO_SUCH_MACHINE, f"No machine '{name}' known")
        return machine

    # Interfaces of every object

    @staticmethod
    def _peer(member: str) -> Body:
        if member == "Ping":
            return ()
        return (Path("/etc/machine-id").read_text(encoding="ascii").strip(),)

    def _properties(
        self,
        request: Request,
        machine: Machine | None,
        member: str,
        interfaces: tuple[str, ...],
        arguments: tuple[Any, ...],
    ) -> Body:
        interface: str = arguments[0]
        # All that there are, where the interface is left open.
        where = interface or interfaces[-1]
        described = INTERFACES[where].properties if where in interfaces else None
        if member == "GetAll":
            if described is None:
                raise Refusal(UNKNOWN_INTERFACE, f"Unknown interface '{interface}'.")
            return ({name: self._value(request, machine, name, each) for name, each in described.items()},)
        name: str = arguments[1]
        if not interface or described is None or (found := described.get(name)) is None:
            raise Refusal(UNKNOWN_PROPERTY, f"Unknown property or interface '{interface}'.")
        if member == "Set":
            raise Refusal(READ_ONLY, f"Property '{name}' is not writable.")
        return (self._value(request, machine, name, found),)

    def _value(
        self, request: Request, machine: Machine | None, name: str, described: Property
    ) -> tuple[str, object]:
        assert machine is not None, "only machines have properties"
        record = machine.record
        whole = self._theirs.authority.policy.tells_all(request.peer.uid, record.registrant)
        return described.type, _VALUES[name](machine, whole)

    # The manager

    async def _get_machine(self, request: Request, name: str) -> Body:
        return (path_of((await self._find(name)).name),)

    async def _get_machine_by_pid(self, request: Request, pid: int) -> Body:
        try:
            machine = self._theirs.lookup(request.call("List"), LookupIn(pid=ProcessId(pid=pid)))
        except NoSuchMachine:
            raise Refusal(NO_MACHINE_FOR_PID, f"PID {pid} does not belong to any known machine") from None
        return (path_of(machine.name),)

    async def _list_machines(self, request: Request) -> Body:
        listed = [
            (
                machine.name,
                machine.record.class_,
                machine.record.identity.service or "",
                path_of(machine.name),
            )
            for machine in self._there()
        ]
        return (listed,)

    async def _create(self, request: Request, name: str, *given: Any) -> Body:
        wanted, properties = Wanted(name, _identity(given[:-1])), ScopeProperties(given[-1])
        return await self._registered(request, wanted, properties)

    async def _register(self, request: Request, name: str, *given: Any) -> Body:
        return await self._registered(request, Wanted(name, _identity(given)), None)

    async def _create_extended(
        self, request: Request, name: str, properties: Variants, scope: Variants
    ) -> Body:
        return await self._registered(request, Wanted.extended(name, properties), ScopeProperties(scope))

    async def _register_extended(self, request: Request, name: str, properties: Variants) -> Body:
        return await self._registered(request, Wanted.extended(name, properties), None)

    async def _registered(
        self, request: Request, wanted: Wanted, properties: ScopeProperties | None
    ) -> Body:
        machine = await self._registering.register(request, wanted, properties)
        return (path_of(machine.name),)

    async def _map_from_user(self, request: Request, name: str, number: int) -> Body:
        return await self._map_from(request, name, number, "uid")

    async def _map_from_group(self, request: Request, name: str, number: int) -> Body:
        return await self._map_from(request, name, number, "gid")

    async def _map_from(self, request: Request, name: str, number: int, kind: id_maps.Kind) -> Body:
        _check_id(number)
        machine = await self._find(name)
        if machine.record.class_ is not MachineClass.container:
            raise Refusal(INVALID_ARGS, "Only containers have users of their own")
        params = MapFromIn(name=machine.name)
        setattr(params, kind, number)
        return (getattr(self._theirs.map_from(request.call("MapFrom"), params), kind),)

    async def _map_to_user(self, request: Request, number: int) -> Body:
        return await self._map_to(request, number, "uid")

    async def _map_to_group(self, request: Request, number: int) -> Body:
        return await self._map_to(request, number, "gid")

    async def _map_to(self, request: Request, number: int, kind: id_maps.Kind) -> Body:
        _check_id(number)
        params = MapToIn()
        setattr(params, kind, number)
        found = await self._theirs.map_to_in_time(request.call("MapTo"), params)
        assert found.machineName is not None
        return (found.machineName, path_of(found.machineName), getattr(found, kind))


def _checked(interface: str, member: str, signature: str) -> str:
    """Check the types of a call's arguments; return those of its answer."""
    described = INTERFACES[interface].methods.get(member)
    if described is None:
        raise Refusal(UNKNOWN_METHOD, f"Unknown method {member} or interface {interface}.")
    if signature != described.signature:
        raise Refusal(
            INVALID_ARGS,
            f"Invalid arguments '{signature}' to call {interface}.{member}(), expecting '{described.signature}'.",
        )
    return described.answer


def _check_id(number: int) -> None:
    if not id_maps.is_id(number):
        raise Refusal(INVALID_ARGS, "Invalid argument")


def _identity(given: tuple[Any, ...]) -> dict[str, Any]:
    """Return the arguments of CreateMachine and RegisterMachine by the names that CreateMachineEx has for them."""
    names = ("Id", "Service", "Class", "LeaderPID", "RootDirectory", "NetworkInterfaces")
    return dict(zip(names, given, strict=False))


def _pid(found: process.ProcessId | None) -> int:
    return 0 if found is None else found.pid


def _pidfd_id(found: process.ProcessId | None) -> int:
    return 0 if found is None else found.pidfd_id or 0


def _state(machine: Machine) -> str:
    return "running" if machine.phase is Phase.running else "closing"


_CID_ANY: Final = 2**32 - 1
"""``VMADDR_CID_ANY`` (vsock(7)): what machined says of a machine that has none."""

_VALUES: Final[Mapping[str, Callable[[Machine, bool], object]]] = {
    "Name": lambda machine, _: machine.name,
    "Id": lambda machine, _: bytes.fromhex(machine.record.identity.id or ""),
    "Timestamp": lambda machine, _: machine.record.timestamp.realtime,
    "TimestampMonotonic": lambda machine, _: machine.record.timestamp.monotonic,
    "Service": lambda machine, _: machine.record.identity.service or "",
    "Unit": lambda machine, _: machine.unit,
    "Subgroup": lambda machine, _: machine.record.placement.relative_subgroup or "",
    "Leader": lambda machine, _: _pid(machine.record.leader),
    "LeaderPIDFDId": lambda machine, _: _pidfd_id(machine.record.leader),
    "Supervisor": lambda machine, _: _pid(machine.record.supervisor),
    "SupervisorPIDFDId": lambda machine, _: _pidfd_id(machine.record.supervisor),
    "Class": lambda machine, _: machine.record.class_,
    "RootDirectory": lambda machine, _: machine.record.identity.root_directory or "",
    "NetworkInterfaces": lambda machine, _: list(machine.record.identity.if_indices),
    "VSockCID": lambda machine, _: machine.record.identity.vsock_cid or _CID_ANY,
    "SSHAddress": lambda machine, _: machine.record.identity.ssh_address or "",
    "SSHPrivateKeyPath": lambda machine, whole: (
        (machine.record.identity.ssh_private_key_path or "") if whole else ""
    ),
    "State": lambda machine, _: _state(machine),
    "UID": lambda machine, _: machine.record.registrant,
}
"""Properties of a machine; whole: the caller sees all of it."""
