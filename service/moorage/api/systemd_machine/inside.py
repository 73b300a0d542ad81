"""Methods of io.systemd.Machine that reach into a machine."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Iterator

from moorage.api.calls import permit
from moorage.api.refusals import translated
from moorage.api.systemd_machine import checks
from moorage.api.systemd_machine.base import Handlers
from moorage.api.systemd_machine.errors import (
    REFUSALS,
    GroupInHostRange,
    NoSuchGroup,
    NoSuchMachine,
    NoSuchUser,
    NotSupported,
    UserInHostRange,
)
from moorage.api.systemd_machine.types import (
    BindMountIn,
    CopyIn,
    LookupIn,
    MapFromIn,
    MapFromOut,
    MapToIn,
    MapToOut,
    OpenIn,
    OpenMode,
    OpenOut,
    OpenRootOut,
)
from moorage.authz.policy import OPEN, OPEN_HOST
from moorage.machines import id_maps, model
from moorage.machines.inside import InsideFailed
from moorage.machines.machine import Machine
from moorage.machines.terminals import Shell, shell_of
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter, PermissionDenied
from moorage.wire.method import method
from moorage.wire.types import Last, WithFds


class Inside(Handlers):
    """Part of the handlers."""

    @method("Open")
    async def open(self, call: Call, params: OpenIn) -> WithFds[OpenOut]:
        """Open a terminal of a machine or of the host, and start a login or a shell at it."""
        if (blamed := _wrong_in_open(params)) is not None:
            raise InvalidParameter(blamed)
        shell = shell_of(params.user, params.path, params.args, params.environment or ())

        def variant(machine: Machine) -> str:
            # A user who registers a process of the host's own users would get a shell of root's.
            if self.authority.policy.user is None and self.services.terminals.is_users_on_host(
                machine.record
            ):
                raise PermissionDenied
            on_host = machine.record.class_ is model.MachineClass.host
            return (OPEN_HOST if on_host else OPEN)[params.mode]

        machine = await self.permitted(
            call, params, lambda found: _details(found.name, params.mode, shell), variant=variant
        )
        start = shell if params.mode is OpenMode.shell else None
        with translated(REFUSALS):
            terminal = await self.services.terminals.open(
                machine.record, "getty" if params.mode is OpenMode.login else start
            )
        return WithFds(OpenOut(ptyFileDescriptor=0, ptyPath=terminal.path), [terminal.fd])

    @method("OpenRootDirectory")
    async def open_root_directory(self, call: Call, params: LookupIn) -> WithFds[OpenRootOut]:
        """Open the root directory of a machine or of the host."""
        machine = await self.permitted(
            call, params, lambda found: {"name": found.name, "verb": "open_root_directory"}
        )
        with translated(REFUSALS):
            root = await self.services.directories.open_root(machine.record)
        return WithFds(OpenRootOut(fileDescriptor=0), [root])

    @method("CopyFrom")
    async def copy_from(self, call: Call, params: CopyIn) -> None:
        """Copy files of a container to the host."""
        await self._copy(call, params, from_container=True)

    @method("CopyTo")
    async def copy_to(self, call: Call, params: CopyIn) -> None:
        """Copy files of the host into a container."""
        await self._copy(call, params, from_container=False)

    async def _copy(self, call: Call, params: CopyIn, *, from_container: bool) -> None:
        machine, source, destination = await self._container(call, params, "copy")
        with translated(REFUSALS):
            try:
                await self.services.directories.copy(
                    machine.record,
                    from_container=from_container,
                    host=destination if from_container else source,
                    container=source if from_container else destination,
                    replace=bool(params.replace),
                )
            except InsideFailed as error:
                if error.number in {errno.EACCES, errno.EPERM}:
                    raise PermissionDenied from None
                raise

    @method("BindMount")
    async def bind_mount(self, call: Call, params: BindMountIn) -> None:
        """Mount a file or a directory of the host in a container."""
        machine, source, destination = await self._container(call, params, "bind")
        with translated(REFUSALS):
            await self.services.directories.bind(
                machine.record,
                source=source,
                destination=destination,
                read_only=bool(params.readOnly),
                mkdir=bool(params.mkdir),
            )

    async def _container(
        self, call: Call, params: CopyIn | BindMountIn, verb: str
    ) -> tuple[Machine, str, str]:
        """Return the container that a call is about, and its two paths, once its caller may make it."""
        source, destination = params.source, params.destination
        for name, path in (("source", source), ("destination", destination)):
            if path is not None and not checks.is_normalized(path):
                raise InvalidParameter(name)
        target = source if destination is None else destination

        def details(machine: Machine) -> dict[str, str]:
            if machine.record.class_ is not model.MachineClass.container:
                raise NotSupported
            return {"name": machine.name, "verb": verb, "src": source, "dest": target}

        return await self.permitted(call, params, details), source, target

    @method("MapFrom")
    def map_from(self, call: Call, params: MapFromIn) -> MapFromOut:
        """Return the numbers on the host of a user and a group of a machine."""
        permit(call, self.authority)
        _check_ids(params.uid, params.gid)
        machine, maps = self.lookup(call, params), self.services.id_maps
        if machine.record.class_ is not model.MachineClass.container:
            raise NotSupported
        reply = MapFromOut()
        with translated(REFUSALS):
            if params.uid is not None:
                with translated({id_maps.NoSuchId: lambda _: NoSuchUser()}):
                    reply.uid = maps.to_host(machine, "uid", params.uid)
            if params.gid is not None:
                with translated({id_maps.NoSuchId: lambda _: NoSuchGroup()}):
                    reply.gid = maps.to_host(machine, "gid", params.gid)
        return reply

    @method("MapTo")
    def map_to(self, call: Call, params: MapToIn) -> Iterator[MapToOut] | AsyncIterator[Last[MapToOut]]:
        """Return the machine of a user and a group of the host, and their numbers in it."""
        self._check_map_to(call, params)
        if all(self.services.id_maps.is_ready(kind) for kind in _kinds(params)):
            return iter((self._mapped_to(params),))
        return self._map_to_later(params)

    async def map_to_in_time(self, call: Call, params: MapToIn) -> MapToOut:
        """Return the same, for a caller who can wait."""
        self._check_map_to(call, params)
        async for last in self._map_to_later(params):
            return last.reply
        raise NoSuchMachine

    async def _map_to_later(self, params: MapToIn) -> AsyncIterator[Last[MapToOut]]:
        for kind in _kinds(params):
            await self.services.id_maps.read(kind)
        yield Last(self._mapped_to(params))

    def _check_map_to(self, call: Call, params: MapToIn) -> None:
        permit(call, self.authority)
        _check_ids(params.uid, params.gid)
        if params.uid is not None and params.uid < id_maps.HOST_MAX:
            raise UserInHostRange
        if params.gid is not None and params.gid < id_maps.HOST_MAX:
            raise GroupInHostRange

    def _mapped_to(self, params: MapToIn) -> MapToOut:
        reply, maps = MapToOut(), self.services.id_maps
        found: set[str] = set()
        with translated(REFUSALS):
            if params.uid is not None:
                with translated({id_maps.NoSuchId: lambda _: NoSuchUser()}):
                    machine, reply.uid = maps.from_host("uid", params.uid)
                found.add(machine.name)
            if params.gid is not None:
                with translated({id_maps.NoSuchId: lambda _: NoSuchGroup()}):
                    machine, reply.gid = maps.from_host("gid", params.gid)
                found.add(machine.name)
        if len(found) != 1:  # nothing was asked for, or two machines have one each
            raise NoSuchMachine
        reply.machineName = found.pop()
        return reply


def _kinds(params: MapToIn) -> list[id_maps.Kind]:
    """Return of which kinds numbers are asked for."""
    found: list[id_maps.Kind] = []
    if params.uid is not None:
        found.append("uid")
    if params.gid is not None:
        found.append("gid")
    return found


def _check_ids(uid: int | None, gid: int | None) -> None:
    for name, number in (("uid", uid), ("gid", gid)):
        if number is not None and not id_maps.is_id(number):
            raise InvalidParameter(name)


def _details(name: str, mode: OpenMode, shell: Shell) -> dict[str, str]:
    """Return what polkit is told, as machined does."""
    if mode is OpenMode.tty:
        return {"machine": name}
    if mode is OpenMode.login:
        return {"machine": name, "verb": "login"}
    return {
        "machine": name,
        "verb": "shell",
        "user": shell.user,
        "program": shell.path,
        "command_line": " ".join(shell.args),
    }


def _wrong_in_open(params: OpenIn) -> str | None:
    if params.user is not None and not checks.is_user(params.user):
        return "user"
    if params.path is not None and not checks.is_absolute(params.path):
        return "path"
    if not all(map(checks.is_sendable, params.args or ())):
        return "args"
    if not checks.is_environment(params.environment or ()):
        return "environment"
    return None
