"""What the methods of a machine do: each what a method of io.systemd.Machine does, or looks up."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

from moorage.api.calls import authorize
from moorage.api.machine1.errors import ACCESS_DENIED, INVALID_ARGS, NOT_SUPPORTED, Refusal
from moorage.api.machine1.request import Request
from moorage.api.refusals import translated
from moorage.api.systemd_machine import checks
from moorage.api.systemd_machine.errors import REFUSALS, NoSuchMachine
from moorage.api.systemd_machine.handlers import SystemdMachine
from moorage.api.systemd_machine.types import (
    BindMountIn,
    CopyIn,
    KillIn,
    LookupIn,
    OpenIn,
    OpenMode,
)
from moorage.api.wire_types import SIGNAL_MAX
from moorage.authz.policy import ADDRESSES, METADATA
from moorage.machines import model
from moorage.machines.machine import Machine
from moorage.wire.errors import System

Body: TypeAlias = tuple[object, ...]
"""The values of an answer. File descriptors in it belong to whoever gets it."""

_REPLACE: Final = 1
"""``MACHINE_COPY_REPLACE``, the only flag of CopyFromWithFlags and CopyToWithFlags."""

_PLAIN: Final = re.compile(r"/(?:\./|/)*")


class Machines:
    """Makes the calls of one machine.

    Attributes:
        methods: what does each of them.
    """

    def __init__(self, theirs: SystemdMachine) -> None:
        self._theirs = theirs
        self._looking = theirs.services.looking
        self.methods: Mapping[str, Callable[..., Awaitable[Body]]] = {
            "Unregister": self._unregister,
            "Terminate": self._terminate,
            "Kill": self._kill,
            "GetAddresses": self._addresses,
            "GetSSHInfo": self._ssh_info,
            "GetOSRelease": self._os_release,
            "GetUIDShift": self._uid_shift,
            "OpenPTY": self._open_pty,
            "OpenLogin": self._open_login,
            "OpenShell": self._open_shell,
            "BindMount": self._bind_mount,
            "CopyFrom": self._copy_from,
            "CopyTo": self._copy_to,
            "CopyFromWithFlags": self._copy_from,
            "CopyToWithFlags": self._copy_to,
            "OpenRootDirectory": self._open_root_directory,
        }

    async def _unregister(self, request: Request, machine: Machine) -> Body:
        await self._theirs.unregister(request.call("Unregister"), _named(LookupIn, request, machine))
        return ()

    async def _terminate(self, request: Request, machine: Machine) -> Body:
        await self._theirs.terminate(request.call("Terminate"), _named(LookupIn, request, machine))
        return ()

    async def _kill(self, request: Request, machine: Machine, whom: str, signal: int) -> Body:
        # "leader" and "supervisor" came with systemd 258; whoever leaves it open means all.
        try:
            meant = model.KillWhom(whom or model.KillWhom.all)
        except ValueError:
            raise Refusal(INVALID_ARGS, f"Invalid kill parameter '{whom}'") from None
        if not 0 < signal <= SIGNAL_MAX:
            raise Refusal(INVALID_ARGS, f"Invalid signal {signal}")
        params = _named(KillIn, request, machine, whom=meant, signal=signal)
        await self._theirs.kill(request.call("Kill"), params)
        return ()

    async def _addresses(self, request: Request, machine: Machine) -> Body:
        if machine.record.class_ is not model.MachineClass.host:
            # machined asks nobody here; we start a process inside the machine.
            await self._may_look(request, machine, ADDRESSES, {"name": machine.name})
        with translated(REFUSALS):
            found = await self._theirs.services.networks.addresses(machine)
        return ([(address.family, address.address) for address in found],)

    async def _os_release(self, request: Request, machine: Machine) -> Body:
        details = {"machine": machine.name, "verb": "get_os_release"}
        await self._may_look(request, machine, METADATA, details)
        with translated(REFUSALS):
            found = await self._looking.os_release(machine)
        return (dict(pair.split("=", 1) for pair in found),)

    async def _uid_shift(self, request: Request, machine: Machine) -> Body:
        with translated(REFUSALS):
            return (self._looking.uid_shift(machine),)

    async def _may_look(
        self, request: Request, machine: Machine, variant: str, details: dict[str, str]
    ) -> None:
        """Authorise what starts a process inside a machine, or reads files there."""
        await authorize(
            request.call("List"),
            self._theirs.authority,
            details,
            variant=variant,
            owner=machine.record.registrant,
            interactive=request.interactive,
        )
        self._still_there(machine)

    async def _ssh_info(self, request: Request, machine: Machine) -> Body:
        identity = machine.record.identity
        if not identity.ssh_address or not identity.ssh_private_key_path:
            raise System.of(errno.ENOENT)
        if not self._theirs.authority.policy.tells_all(request.peer.uid, machine.record.registrant):
            raise Refusal(ACCESS_DENIED, "Only its owner is told with which key one gets into a machine")
        return (identity.ssh_address, identity.ssh_private_key_path)

    async def _open_pty(self, request: Request, machine: Machine) -> Body:
        return await self._open(request, machine, OpenMode.tty)

    async def _open_login(self, request: Request, machine: Machine) -> Body:
        return await self._open(request, machine, OpenMode.login)

    async def _open_shell(
        self,
        request: Request,
        machine: Machine,
        user: str,
        path: str,
        args: list[str],
        environment: list[str],
    ) -> Body:
        if path and not checks.is_absolute(path):
            raise Refusal(INVALID_ARGS, f"Specified path '{path}' is not absolute")
        if not checks.is_environment(environment):
            raise Refusal(INVALID_ARGS, "Invalid environment assignments")
        return await self._open(
            request,
            machine,
            OpenMode.shell,
            user=user or None,
            path=path or None,
            # Without a path it is the user's own shell, and machined takes no notice of arguments either.
            args=(args or None) if path else None,
            environment=environment or None,
        )

    async def _open(self, request: Request, machine: Machine, mode: OpenMode, **how: Any) -> Body:
        params = _named(OpenIn, request, machine, mode=mode, **how)
        opened = await self._theirs.open(request.call("Open"), params)
        return (opened.fds[0], opened.reply.ptyPath)

    async def _open_root_directory(self, request: Request, machine: Machine) -> Body:
        call = request.call("OpenRootDirectory")
        opened = await self._theirs.open_root_directory(call, _named(LookupIn, request, machine))
        return (opened.fds[0],)

    async def _bind_mount(
        self,
        request: Request,
        machine: Machine,
        source: str,
        destination: str,
        read_only: bool,  # noqa: FBT001 - as they come
        mkdir: bool,  # noqa: FBT001
    ) -> Body:
        _is_container(machine, "Bind mounting")
        for what, path in (("Source", source), ("Destination", destination)):
            if (path or what == "Source") and not checks.is_normalized(path):
                raise Refusal(INVALID_ARGS, f"{what} path must be absolute and normalized.")
        params = _named(
            BindMountIn,
            request,
            machine,
            source=source,
            destination=destination or None,
            readOnly=read_only,
            mkdir=mkdir,
        )
        await self._theirs.bind_mount(request.call("BindMount"), params)
        return ()

    async def _copy_from(self, request: Request, machine: Machine, *given: Any) -> Body:
        params = _copied(request, machine, *given)
        await self._theirs.copy_from(request.call("CopyFrom"), params)
        return ()

    async def _copy_to(self, request: Request, machine: Machine, *given: Any) -> Body:
        params = _copied(request, machine, *given)
        await self._theirs.copy_to(request.call("CopyTo"), params)
        return ()

    def _still_there(self, machine: Machine) -> None:
        if machine.gone.is_set() or not machine.is_there:
            raise NoSuchMachine


def _named(kind: Any, request: Request, machine: Machine, **fields: Any) -> Any:
    return kind(name=machine.name, allowInteractiveAuthentication=request.interactive, **fields)


def _is_container(machine: Machine, what: str) -> None:
    if machine.record.class_ is not model.MachineClass.container:
        raise Refusal(NOT_SUPPORTED, f"{what} is only supported on container machines.")


def _copied(request: Request, machine: Machine, source: str, destination: str, flags: int = 0) -> CopyIn:
    _is_container(machine, "Copying files")
    if flags & ~_REPLACE:
        raise Refusal(INVALID_ARGS, os.strerror(errno.EINVAL))
    for what, path in (("Source", source), ("Destination", destination)):
        if (path or what == "Source") and not path.startswith("/"):
            raise Refusal(INVALID_ARGS, f"{what} path must be absolute.")
    return _named(
        CopyIn,
        request,
        machine,
        source=_plain(source),
        destination=_plain(destination) if destination else None,
        replace=bool(flags & _REPLACE),
    )


def _plain(path: str) -> str:
    """Return a path without what means nothing: the caller may have put it together (``path_simplify()``)."""
    plain = _PLAIN.sub("/", path).removesuffix("/.")
    return plain or "/"
