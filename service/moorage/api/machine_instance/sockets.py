"""The control sockets: one for each machine that has no control address of its own.

A follower: a socket is made a moment after the machine was registered, when the caller has its reply, and goes with
the machine. Nothing that goes wrong with one fails anything else: that machine has no control address then.

A socket costs a file descriptor and 4 KiB of the kernel's memory, and neither the service manager nor the machine
anything. After a restart of this service each machine gets a new one at the same path.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat

import trio

from moorage.machines.followers import Follower
from moorage.machines.machine import Machine
from moorage.machines.registry import Registry
from moorage.names import is_machine_name
from moorage.wire.server import Server
from moorage.wire.service import Service

GATHER_SECONDS = 0.05
"""How long a machine waits for its socket, s: its registrant has its reply by then, and a launcher of many has its
next call answered first."""

BACKLOG = 128
"""Connections to one machine that wait to be accepted: they are accepted at once."""

SPARED = 1024
"""File descriptors of which no control socket gets any: where there are few, machines and callers need them."""

SHARE = 4
"""Of the others one in so many is a control socket at most, so that no machine and no caller is refused for them: with
the 65,536 of moored.service that are 16,128. A machine beyond that has no control address."""

_NEW = ".new"
"""Name of a socket until it is ready: that of no machine."""

_log = logging.getLogger(__name__)


def share(descriptors: int) -> int:
    """Return how many control sockets there may be, where so many file descriptors can be open."""
    return max(0, descriptors - SPARED) // SHARE


class ControlSockets(Follower):
    """Makes them, and removes them."""

    def __init__(
        self, server: Server, service: Service, registry: Registry, directory: str, *, most: int, mode: int
    ) -> None:
        """Begin without any.

        Args:
            server: accepts the connections.
            service: answers the calls; each is about a `Machine`.
            registry: which machines there are.
            directory: where they are; made if it is not there.
            most: how many there may be.
            mode: permission bits of each. Calls are authorised anyway.
        """
        self._server = server
        self._service = service
        self._registry = registry
        self._directory = directory
        self._most = most
        self._mode = mode
        self._listeners: dict[str, socket.socket] = {}  # by path
        self._pending: dict[str, Machine] = {}  # by name
        self._woken = trio.Event()
        self._failed = False  # and it was said

    def added(self, machine: Machine) -> None:
        """Have a socket made for a machine that has no control address."""
        if machine.record.identity.control_address is None:
            self._pending[machine.name] = machine
            self._woken.set()

    def ended(self, machine: Machine) -> None:
        """Remove the socket of a machine."""
        if self._pending.get(machine.name) is machine:
            del self._pending[machine.name]
        path, machine.control_socket = machine.control_socket, None
        if path is None:
            return
        listener = self._listeners.pop(path)
        self._server.unlisten(listener)
        listener.close()
        with contextlib.suppress(OSError):
            os.unlink(path)

    def address(self, machine: Machine) -> str | None:
        """Return where a machine can be controlled, with a socket that is made now if it has none yet."""
        if self._pending.get(machine.name) is machine:
            del self._pending[machine.name]
            self._make(machine)
        return machine.record.identity.control_address or machine.control_socket

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make sockets, for ever; started once machines that were found again have theirs."""
        self._sweep()
        await self._make_all()
        task_status.started()
        while True:
            await self._woken.wait()
            await trio.sleep(GATHER_SECONDS)
            await self._make_all()

    async def _make_all(self) -> None:
        self._woken = trio.Event()
        while self._pending:
            self._make(self._pending.pop(next(iter(self._pending))))
            await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Accept nothing any more. The paths are left for the next instance, whose machines they are."""
        for listener in self._listeners.values():
            self._server.unlisten(listener)
            listener.close()

    def _make(self, machine: Machine) -> None:
        if len(self._listeners) >= self._most:
            self._report("there are as many as there may be")
            return
        new, path = os.path.join(self._directory, _NEW), os.path.join(self._directory, machine.name)
        listener = None
        try:
            self._prepare()
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(new)
            os.chmod(new, self._mode)
            listener.listen(BACKLOG)
            os.rename(new, path)
            self._server.listen(listener, self._service, about=machine)
        except OSError as error:
            if listener is not None:
                listener.close()
            self._report(str(error))  # what is left of it, the next one removes
            return
        self._listeners[path] = listener
        machine.control_socket = path
        self._failed = False

    def _report(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            _log.warning(
                "Failed to make a control socket in %s, going on without: %s", self._directory, reason
            )

    def _prepare(self) -> None:
        """See to it that the directory is there, is ours alone, and has no socket that is not ready.

        Raises:
            OSError: that cannot be had: it is something else, or others could put something into it.
        """
        try:
            os.mkdir(self._directory)
            os.chmod(self._directory, 0o755)  # noqa: S103  # each call is authorised
        except FileExistsError:
            found = os.lstat(self._directory)
            if not stat.S_ISDIR(found.st_mode):
                raise NotADirectoryError(f"{self._directory} is no directory") from None
            if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise PermissionError(f"{self._directory} can be written by others") from None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._directory, _NEW))

    def _sweep(self) -> None:
        """Remove the sockets of machines that ended while this service was not running."""
        try:
            self._prepare()
            found = os.listdir(self._directory)
        except OSError as error:
            self._report(str(error))
            return
        for name in found:
            if is_machine_name(name) and self._registry.get(name) is None:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self._directory, name))
