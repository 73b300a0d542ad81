"""Terminals of machines: a pseudo terminal of a container or of the host, and a login or a shell at it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from moorage.kernel.process import ProcessGone
from moorage.kernel.processes import Processes
from moorage.machines.inside import InsideFailed, NoBus, Task, do
from moorage.machines.model import MachineClass, Record
from moorage.pid1.fork_server import ForkServer

OPEN_SECONDS: Final = 25.0
"""For a terminal and for what runs at it, s. It takes a tenth of one; a bus in there may have to be started."""

_ALONE: Final = Task("tty", OPEN_SECONDS)
_TASK: Final = Task("terminal", OPEN_SECONDS)

_ONLY_FROM_OUTSIDE: Final = {errno.EACCES, errno.EAGAIN}
"""Errors that may be because the terminal is looked for from outside: what a user namespace serves (fuse(4)) is shown
to those only who are in it, and a link with ".." is not followed while others mount or rename (RESOLVE_IN_ROOT)."""

_BUS: Final = "/run/dbus/system_bus_socket"
_PRIVATE: Final = "/run/systemd/private"
"""The service manager's own socket: on the host no bus is needed."""

DEFAULT_SHELL: Final = "/bin/sh"

_LOGIN_SHELL: Final = """\
shell=$(getent passwd "$1" 2>/dev/null | { IFS=: read _ _ _ _ _ _ x; echo "$x"; })
exec "${shell:-/bin/sh}" -l"""


class Shell(msgspec.Struct, frozen=True):
    """A command at a terminal.

    Attributes:
        user: who runs it, by the user's name in the machine.
        path: of the program.
        args: all of them, the name of the program first.
        environment: "NAME=VALUE" strings.
    """

    user: str
    path: str
    args: Sequence[str]
    environment: Sequence[str]


class Terminal(msgspec.Struct, frozen=True):
    """A pseudo terminal.

    Attributes:
        fd: its controlling end; whoever gets this owns it.
        path: the other end's, in the machine.
    """

    fd: int
    path: str


class _Said(msgspec.Struct):
    """What the program says: see `moorage.probes.terminal`."""

    number: int | None
    failed: tuple[str, int] | None


def shell_of(
    user: str | None, path: str | None, args: Sequence[str] | None, environment: Sequence[str]
) -> Shell:
    """Return the command that is meant: without a path the user's own shell, as a login shell."""
    user = user or "root"
    if path is None:
        return Shell(user, DEFAULT_SHELL, ("sh", "-c", _LOGIN_SHELL, "sh", user), environment)
    return Shell(user, path, args or (path,), environment)


class Terminals:
    """Opens terminals of machines."""

    def __init__(self, server: ForkServer, processes: Processes) -> None:
        self._server = server
        self._processes = processes

    def is_users_on_host(self, machine: Record) -> bool:
        """Whether a user who is not root has registered a process that has the users of the host.

        Raises:
            InsideFailed: its leader is gone.
        """
        if not machine.registrant:
            return False
        try:
            return machine.leader is None or self._processes.shares_our_ids(machine.leader.pid)
        except ProcessGone:
            raise InsideFailed(errno.ESRCH) from None

    async def open(self, machine: Record, start: Shell | Literal["getty"] | None) -> Terminal:
        """Open a terminal of a machine.

        Args:
            machine: which.
            start: what is to run at it; None for nothing.

        Raises:
            InsideFailed: it cannot be had: EOPNOTSUPP for a virtual machine, or what the service manager says.
            NoBus: the service manager in there cannot be reached.
        """
        if machine.class_ is MachineClass.vm:
            raise InsideFailed(errno.EOPNOTSUPP)
        on_host = machine.class_ is MachineClass.host
        question = {"bus": _PRIVATE if on_host else _BUS, "hello": not on_host, "start": start}
        if start is None:
            try:
                return await self._ask(machine, _ALONE, None)
            except InsideFailed as error:
                if error.number not in _ONLY_FROM_OUTSIDE:
                    raise
        return await self._ask(machine, _TASK, question)

    async def _ask(self, machine: Record, task: Task, question: object) -> Terminal:
        answer = await do(self._server, machine, task, question)
        try:
            said = msgspec.json.decode(answer.said, type=_Said)
            if said.failed is None and said.number is not None and answer.descriptors:
                return Terminal(os.dup(answer.descriptors[0]), f"/dev/pts/{said.number}")
        except msgspec.MsgspecError:
            raise InsideFailed(errno.EBADMSG) from None
        finally:
            answer.close()
        step, number = said.failed or ("terminal", errno.EIO)
        if step == "start" and number == errno.ENOENT:
            raise NoBus
        raise InsideFailed(number)
