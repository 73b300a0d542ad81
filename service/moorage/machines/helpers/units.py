"""The units of helpers, as they are described to the service manager.

Pure: no I/O, but for a look for where programs are.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from moorage.machines.model import Helper, HelperFailure, HelperSpec, SocketType, Timestamp
from moorage.machines.properties import sandbox
from moorage.names import UnitNames, directory_name, in_description
from moorage.pid1.errors import InvalidProperty, NoSuchProperty
from moorage.pid1.manager import AuxiliaryUnit, Json, PropertyTypes, TypedProperty

DIRECTORY_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes in the runtime directory of a machine: sockets have none, the state of a TPM and the variables of a firmware
have up to 4 MiB each, and a launcher may leave a kernel and its initrd there."""

DIRECTORY_INODES_MAX: Final = 4096
"""Files in it, sockets and directories counted: its helpers' sockets are 1024 at most, and the rest is the launcher's.
Each takes 1 KiB of the kernel's memory."""

_LISTEN: Final = {
    SocketType.stream: "Stream",
    SocketType.datagram: "Datagram",
    SocketType.seqpacket: "SequentialPacket",
}


class Change(msgspec.Struct, frozen=True):
    """A change of the helpers of a machine that is about to be made.

    Attributes:
        machine: its name.
        invocation_id: of its unit, so that it is not taken for a successor.
        timestamp: when that began.
        helpers: those that are added or removed.
        removes: they are removed.
        with_place: the machine's runtime directory is made for them.
    """

    machine: str
    invocation_id: str
    timestamp: Timestamp
    helpers: tuple[Helper, ...]
    removes: bool = False
    with_place: bool = False


class RuntimeDirectories(msgspec.Struct, frozen=True):
    """Places of the runtime directories of a manager's services.

    Attributes:
        user: it is the manager of a user.
        root: ``/run``, or the user's ``$XDG_RUNTIME_DIR``.
        bytes_max: in the runtime directory of a machine whose sockets are not for root.
    """

    user: bool
    root: str
    bytes_max: int = DIRECTORY_BYTES_MAX

    @property
    def base(self) -> str:
        """The directory of this service, with all that is below."""
        return f"{self.root}/moorage"

    def directory(self, machine: str) -> str:
        """Path of a machine's runtime directory."""
        return f"{self.root}/{relative_directory(machine)}"


class MachineRef(msgspec.Struct, frozen=True):
    """The machine that units are for.

    Attributes:
        names: of its units.
        unit: that it lives in.
        slice: of that unit.
        owner: uid of those who use its sockets.
        mark: what tells the units that are started now from others of their names.
    """

    names: UnitNames
    unit: str
    slice: str
    owner: int
    mark: str

    @property
    def described(self) -> str:
        """Its name, for the end of a description."""
        return in_description(self.names.machine)


def relative_directory(machine: str) -> str:
    """Path of a machine's runtime directory as ``RuntimeDirectory=`` has it."""
    return f"moorage/m/{directory_name(machine)}"


class UnitTypes(msgspec.Struct, frozen=True):
    """The types of properties of services and sockets."""

    service: PropertyTypes
    socket: PropertyTypes

    def helpers(
        self,
        machine: MachineRef,
        specs: Sequence[HelperSpec],
        directories: RuntimeDirectories,
        *,
        with_directory: bool,
        with_scope: bool,
    ) -> tuple[AuxiliaryUnit, ...]:
        """Describe the units of helpers, without what starts them.

        Args:
            machine: theirs.
            specs: checked.
            directories: of the manager.
            with_directory: and of the machine's runtime directory, which is not there yet.
            with_scope: they come with the scope.

        Raises:
            NoSuchProperty, InvalidProperty: one that the caller sets.
        """
        names = machine.names
        units: list[AuxiliaryUnit] = []
        if with_directory:
            units.append(self.unit(names.runtime, _runtime(machine, directories)))
            units.append(self.unit(names.stopper, _stopper(machine)))
        for spec in specs:
            ours = self.service.convert(_service(machine, spec, directories))
            # The caller's come after the defaults: they take their place, or are added where a property is a list.
            ours += self._convert(spec)
            if "Documentation" in spec.properties:  # an empty one takes the mark away
                ours += self.service.convert({"Documentation": [machine.mark]})
            units.append(AuxiliaryUnit(names.helper(spec.name), ours, spec.name, tuple(spec.properties)))
            if spec.sockets:
                sockets = self.socket.convert(_socket(machine, spec, directories))
                units.append(AuxiliaryUnit(names.socket(spec.name), sockets))
            if spec.on_failure is HelperFailure.stop_machine:
                bond = _bond(machine, spec, with_scope=with_scope)
                units.append(self.unit(names.bond(spec.name), bond))
        return tuple(units)

    def unit(self, name: str, properties: Mapping[str, Json]) -> AuxiliaryUnit:
        """Describe a service."""
        return AuxiliaryUnit(name, self.service.convert(properties))

    def _convert(self, spec: HelperSpec) -> tuple[TypedProperty, ...]:
        try:
            return self.service.convert(spec.properties)
        except InvalidProperty as error:
            raise InvalidProperty(error.property, error.reason, spec.name) from None
        except NoSuchProperty as error:
            raise NoSuchProperty(error.property, error.nearest, spec.name) from None


def barrier(machine: MachineRef, specs: Sequence[HelperSpec]) -> dict[str, Json]:
    """Describe a service whose start succeeds when all helpers are ready."""
    units: list[Json] = [machine.names.helper(spec.name) for spec in specs]
    return {
        **_common(machine, f"Helpers of machine {machine.described}"),
        **_without_process(),
        "Requires": units,
        "After": units,
    }


def scope_barrier(machine: MachineRef, specs: Sequence[HelperSpec]) -> dict[str, Json]:
    """Describe the barrier that holds back the scope until all helpers that come with it are ready."""
    return {
        **barrier(machine, specs),
        "Before": [machine.unit],
        "OnFailure": [machine.names.stopper],
    }


def _runtime(machine: MachineRef, directories: RuntimeDirectories) -> dict[str, Json]:
    directory = directories.directory(machine.names.machine)
    if directories.user or machine.owner == 0:
        commands: dict[str, Json] = {"ExecStart": [[_program("true"), ["true"], False]]}
    else:
        commands = _mounted(directory, machine.owner, directories.bytes_max)
    return {
        **_bound(machine, f"Runtime directory of machine {machine.described}"),
        # Before the stopper only to keep it loaded for as long as there may be helpers.
        "Before": [machine.unit, machine.names.stopper],
        "Type": "oneshot",
        "RemainAfterExit": True,
        "RuntimeDirectory": [relative_directory(machine.names.machine)],
        "RuntimeDirectoryMode": 0o700,
        **commands,
    }


def _mounted(directory: str, owner: int, bytes_max: int) -> dict[str, Json]:
    """Properties of a service that mounts a file system on its runtime directory.

    What is below stays root's, so that there is no moment in which others can write to the file system of ``/run``. It
    is no unit of the type mount, which would be ordered before the service that makes the directory
    (RequiresMountsFor= of RuntimeDirectory=, systemd.exec(5)). It is taken away whoever is in it: what is open there
    goes when it is closed.

    Every sandboxed service gets a copy of every mount, so that a hundred of these make the next start of helpers take
    twice as long. Where it would bound nobody there is none: root can fill ``/run`` anyway, and what a user's manager
    makes is on that user's own bounded file system.
    """
    bounds = f"size={bytes_max},nr_inodes={DIRECTORY_INODES_MAX}"
    options = f"nosuid,nodev,noexec,mode=0700,uid={owner},{bounds}"
    mount: list[Json] = ["mount", "-t", "tmpfs", "-o", options, "moorage", directory]
    return {
        "ExecStart": [[_program("mount"), mount, False]],
        "ExecStopPost": [[_program("umount"), ["umount", "-l", directory], True]],
    }


def _stopper(machine: MachineRef) -> dict[str, Json]:
    return {
        **_common(machine, f"Stop of machine {machine.names.machine}, of which a helper did not start"),
        **_without_process(),
        "Conflicts": [machine.unit],
    }


def _service(machine: MachineRef, spec: HelperSpec, directories: RuntimeDirectories) -> dict[str, Json]:
    names = machine.names
    needed: list[Json] = [names.runtime]
    if spec.sockets:
        needed.append(names.socket(spec.name))
    directory = directories.directory(names.machine)
    properties: dict[str, Json] = {
        **_bound(machine, f"Helper {spec.name} of machine {machine.described}"),
        # Without them systemd 262 gives a service with PrivateTmp= a /tmp that only root can use.
        "DefaultDependencies": True,
        "Requires": needed,
        "After": [*needed, *(names.helper(other) for other in spec.after)],
        "Type": spec.type,
        # The arguments are what they are: no variable of any environment is put into them.
        "ExecStartEx": [[spec.exec_start[0], list(spec.exec_start), ["no-env-expand"]]],
        **sandbox(directories.root, directory, user=directories.user),
    }
    if directories.user:
        # So that what it wrote is found as its own in any case (`moorage.pid1.journal`).
        properties["SyslogIdentifier"] = names.helper(spec.name)
    if spec.type == "oneshot":
        properties["RemainAfterExit"] = True
    if spec.restart is not None:
        # Restarted "directly" a service has not failed for those that watch for it, until it is given up.
        properties |= {"Restart": spec.restart, "RestartMode": "direct"}
    if spec.on_failure is HelperFailure.stop_machine:
        properties["Wants"] = [names.bond(spec.name)]
    return properties


def _socket(machine: MachineRef, spec: HelperSpec, directories: RuntimeDirectories) -> dict[str, Json]:
    directory = directories.directory(machine.names.machine)
    mode = 0o600 if spec.sockets[0].mode is None else spec.sockets[0].mode
    if machine.owner != 0 and not directories.user:
        # They stay root's. The manager gives them to others by their path, which leads wherever the directory's owner
        # wants (chown(2) in socket_chown()). As that owner is the only other one who gets into the directory, it may
        # do with them what the mode says of an owner.
        mode |= mode >> 6 & 0o7
    return {
        **_bound(machine, f"Sockets of helper {spec.name} of machine {machine.described}"),
        # Nobody shall wait on a socket that nobody will ever accept from.
        "StopWhenUnneeded": True,
        "Requires": [machine.names.runtime],
        "After": [machine.names.runtime],
        "Listen": [[_LISTEN[socket.type], f"{directory}/{socket.name}"] for socket in spec.sockets],
        "FileDescriptorName": spec.name,
        "SocketMode": mode,
        "RemoveOnStop": True,
    }


def _bond(machine: MachineRef, spec: HelperSpec, *, with_scope: bool) -> dict[str, Json]:
    helper = machine.names.helper(spec.name)
    # The bond must not start if its helper did not. A scope that starts after its helpers sees to that; one that runs
    # already does not.
    requires: dict[str, Json] = {} if with_scope else {"Requires": [helper]}
    return {
        **_common(machine, f"Bond of machine {machine.described} and its helper {spec.name}"),
        "Type": "oneshot",
        "RemainAfterExit": True,
        "ExecStart": [[_program("true"), ["true"], False]],
        "BindsTo": [machine.unit],
        **requires,
        "After": [machine.unit, helper],
        "StopWhenUnneeded": True,
        "PropagatesStopTo": [machine.unit],
    }


def _bound(machine: MachineRef, description: str) -> dict[str, Json]:
    """Properties of what lives for the machine only: comes before its scope, goes after it."""
    return {**_common(machine, description), "BindsTo": [machine.unit], "Before": [machine.unit]}


def _common(machine: MachineRef, description: str) -> dict[str, Json]:
    return {
        "Description": description,
        "Documentation": [machine.mark],
        "Slice": machine.slice,
        "CollectMode": "inactive-or-failed",
        # At shutdown all of this is stopped with the scope, and in its order.
        "DefaultDependencies": False,
    }


def _without_process() -> dict[str, Json]:
    """Properties of a service that is started for its dependencies only: its condition is never met."""
    return {"Type": "oneshot", "ExecStart": [[_program("true"), ["true"], False]],
            "Conditions": [["ConditionPathExists", False, True, "/"]]}  # fmt: skip


@functools.cache
def _program(name: str) -> str:
    return shutil.which(name) or f"/usr/bin/{name}"


def wanted(names: UnitNames, specs: Sequence[HelperSpec]) -> list[str]:
    """Return the names of the units that a scope pulls in: for ever, so not those that go when nothing needs them."""
    if not specs:
        return []
    return [names.runtime, *(names.helper(spec.name) for spec in specs), names.barrier]


def auxiliary_names(names: UnitNames, specs: Sequence[HelperSpec | Helper]) -> list[str]:
    """Return the names of all units that come with a machine that has these helpers."""
    if not specs:
        return []
    common = [names.runtime, names.stopper, names.barrier]
    return [*common, *helper_names(names, specs), *bond_names(names, specs)]


def change_names(change: Change) -> list[str]:
    """Return the names of all units that are started when helpers are added."""
    names = UnitNames(change.machine)
    directory = [names.runtime, names.stopper] if change.with_place else []
    helpers = helper_names(names, change.helpers)
    return [names.add_barrier, *helpers, *bond_names(names, change.helpers), *directory]


def helper_names(names: UnitNames, specs: Iterable[HelperSpec | Helper]) -> list[str]:
    """Return the names of the units of helpers, but for their bonds."""
    return [
        unit
        for spec in specs
        for unit in (names.helper(spec.name), *([names.socket(spec.name)] if spec.sockets else []))
    ]


def bond_names(names: UnitNames, specs: Iterable[HelperSpec | Helper]) -> list[str]:
    """Return the names of the bonds of those helpers that have one."""
    return [names.bond(spec.name) for spec in specs if spec.on_failure is HelperFailure.stop_machine]


def to_records(names: UnitNames, specs: Iterable[HelperSpec]) -> tuple[Helper, ...]:
    """Return what a machine keeps of its helpers."""
    return tuple(
        Helper(
            name=spec.name,
            unit=names.helper(spec.name),
            on_failure=spec.on_failure,
            sockets=tuple(socket.name for socket in spec.sockets),
        )
        for spec in specs
    )
