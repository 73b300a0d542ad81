"""Payloads on trio.

::

    async with await hold() as payload:
        reply = await moored.call(Register("web", class_="vm", leader_file_descriptor=0), fds=[payload.pidfd])
        await payload.run(["qemu-system-x86_64", "-name", reply.machine.unit, ...])
        status = await payload.wait()

:func:`moorage.client.trio.machine` does all of it, and holds the lease of the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

from moorage.launch import payload
from moorage.launch.command import Identity, Settings, Text
from moorage.steps.trio import take


class Payload:
    """A process that waits to become the payload of a machine. Made by :func:`hold`.

    The end of its ``async with`` block kills a payload that still waits. One that runs belongs to the machine, and
    lives on.
    """

    def __init__(self, held: payload.Held) -> None:
        self._held = held

    @property
    def pid(self) -> int:
        """Its PID, which does not change."""
        return self._held.pid

    @property
    def pidfd(self) -> int:
        """A pidfd, which is closed at the end of the block."""
        return self._held.pidfd

    async def run(self, argv: Sequence[Text], **settings: Unpack[Settings]) -> None:
        """Execute a program in the payload, and wait until that has happened.

        Cancel safety: the payload is killed, as after every error but :exc:`BadCommand`, which leaves it waiting.

        Args:
            argv: program and arguments. A program without a slash is searched for in the PATH of `env`.
            settings: environment, working directory and more; see :class:`~moorage.launch.command.Settings`.

        Raises:
            BadCommand: the arguments make no command.
            StartFailed: the program could not be executed.
            HolderGone: the payload has ended in the meantime.
            TooSlow: the program was not executed within :data:`moorage.launch.payload.EXEC_SECONDS`.
        """
        await take(self._held.run(argv, settings))

    async def wait(self) -> int:
        """Wait for the end of the payload.

        It is a child of this process, and a zombie until it has been waited for.

        Returns:
            Its exit status, or -N if signal N ended it.

        Raises:
            ChildProcessError: other code has waited for it, so its status is unknown.
        """
        return await take(self._held.wait())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await take(self._held.end())


async def hold(**identity: Unpack[Identity]) -> Payload:
    """Start a process that waits to become the payload of a machine; it leads a session of its own.

    It has the standard streams, the working directory and the limits of this process, but no other file descriptors;
    all signals have their default actions. It may be registered at once.

    Args:
        identity: user, and how long to wait; see :class:`~moorage.launch.command.Identity`.

    Returns:
        The payload, an asynchronous context manager.

    Raises:
        BadCommand: the arguments contradict each other, or are out of range.
        StartFailed: the process may not become that user.
        HolderGone: the process ended before it had become that user.
        TooSlow: it had not become that user within :data:`moorage.launch.payload.EXEC_SECONDS`.
        OSError: there are no processes, memory or file descriptors left.
    """
    return Payload(await take(payload.hold(**identity)))
