"""A process that becomes the leader of a machine before its command line is known.

A launcher needs the scope of its machine early, because the command line of the VMM contains the names of the scope
and of sockets; and nothing but the VMM should be in that scope. So a small process is started to wait, is registered
as the leader, and becomes the VMM later::

    async with await hold() as payload, await Client.connect("/run/moorage/io.moorage.Machine") as client:
        reply = await client.call(
            "io.moorage.Machine.Register",
            parameters := {"name": "web", "class": "vm", "leaderFileDescriptor": 0, "lease": True},
            fds=[payload.pidfd],
        )
        await payload.run(["qemu-system-x86_64", "-name", reply["machine"]["unit"], ...])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_lease, "/run/moorage/io.moorage.Machine", client, parameters, payload)
            status = await payload.wait()
            nursery.cancel_scope.cancel()

Its PID stays the same, and the scope is never empty. It shares no memory with the launcher, so that memory of the
launcher is not charged to the scope, whose ``MemoryMax=`` may be small. If the launcher leaves the block without
:meth:`Payload.run`, is cancelled, or dies, the process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import marshal
import os
import signal
import socket
import sys
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trio

from moorage.launch import holder
from moorage.launch.command import Text, encoded_command, holder_arguments
from moorage.launch.errors import HolderGone, StartFailed

HOLD_SECONDS: Final = 300
"""Default for how long a payload waits for its command line. Helpers start in the meantime, and some are slow."""

EXEC_SECONDS: Final = 60.0
"""Deadline for each step of the payload: enough for a program on a file server under load."""

END_SECONDS: Final = 5.0
"""Deadline for a process to be gone after SIGKILL. That is immediate, unless a device does not respond."""


_SOURCE: Final = Path(holder.__file__).read_bytes()
# Read once, so that the text matches this module even if the files are upgraded while this process runs. The same goes
# for the interpreter, unless it is embedded in another program.
_INTERPRETER: Final = (
    "/proc/self/exe" if os.path.samefile("/proc/self/exe", sys.executable) else sys.executable
)
_CAUGHT: Final = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


async def hold(
    *,
    uid: int | None = None,
    gid: int | None = None,
    groups: Sequence[int] = (),
    seconds: int = HOLD_SECONDS,
) -> Payload:
    """Start a process that waits to become the payload of a machine; it leads a session of its own.

    It has the standard streams, the working directory and the limits of this process, but no other file descriptors;
    all signals have their default actions. It may be registered at once.

    Args:
        uid: user that the process runs as from the start, so that things can be made for that user; by default that
            of this process.
        gid: group; required with `uid`.
        groups: supplementary groups, if `uid` is given.
        seconds: how long the process waits for :meth:`Payload.run` before it ends.

    Returns:
        The payload, an asynchronous context manager.

    Raises:
        BadCommand: the arguments contradict each other, or are out of range.
        StartFailed: the process may not become that user.
        HolderGone: the process ended before it had become that user.
        trio.TooSlowError: it had not become that user within :data:`EXEC_SECONDS`.
        OSError: there are no processes, memory or file descriptors left.
    """
    arguments = holder_arguments(seconds, uid, gid, groups)
    await trio.lowlevel.checkpoint()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            pid = _spawn(theirs, arguments)
        except BaseException:
            ours.close()
            raise
    try:
        # A child's PID is not reused before the child has been waited for.
        pidfd = os.pidfd_open(pid)
    except BaseException:
        ours.close()  # which ends it
        os.waitpid(pid, 0)  # noqa: ASYNC222  # at once
        raise
    control = trio.socket.from_stdlib_socket(ours)
    payload = Payload(pid, pidfd, control)
    if uid is not None:
        try:
            with trio.fail_after(EXEC_SECONDS):
                if await _report(control) != holder.HELD:
                    raise HolderGone(await payload.wait())
        except BaseException:
            async with payload:  # which ends it
                raise
    return payload


async def _report(control: trio.socket.SocketType) -> bytes:
    """Return the next message of a holder; an empty one after its end.

    Raises:
        StartFailed: the message reports an error.
    """
    try:
        message = await control.recv(holder.REPORT_BYTES_MAX)
    except ConnectionResetError:
        return b""
    if message in {b"", holder.HELD, holder.READY}:
        return message
    field, number, path = marshal.loads(message)  # noqa: S302  # from our own program, which runs nothing else yet
    failed = StartFailed(number, os.strerror(number), path and os.fsdecode(path))
    failed.field = field
    raise failed


def _spawn(control: socket.socket, arguments: Sequence[str]) -> int:
    # Above the numbers that are assigned below, so that nothing is overwritten before it is used.
    lowest = holder.CONTROL_FD + 2
    fds: list[int] = []
    try:
        fds.append(fcntl.fcntl(control.fileno(), fcntl.F_DUPFD_CLOEXEC, lowest))
        source = _memory_file("moorage-holder", _SOURCE)
        fds.append(source)
        fds.append(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, lowest))
        return os.posix_spawn(
            _INTERPRETER,
            # argv[0] tells the interpreter where its files are.
            [sys.executable, "-I", "-S", "-B", f"/proc/self/fd/{holder.CONTROL_FD + 1}", *arguments],
            {},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, fds[0], holder.CONTROL_FD),
                (os.POSIX_SPAWN_DUP2, fds[2], holder.CONTROL_FD + 1),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=_CAUGHT,
        )
    finally:
        for fd in fds:
            os.close(fd)


def _memory_file(name: str, content: bytes) -> int:
    fd = os.memfd_create(name)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


class Payload:
    """A process that waits to become the payload of a machine. Made by :func:`hold`.

    The end of its ``async with`` block kills a payload that still waits. One that runs belongs to the machine, and
    lives on.

    Attributes:
        pid: its PID, which does not change.
        pidfd: a pidfd, which is closed at the end of the block.
    """

    def __init__(self, pid: int, pidfd: int, control: trio.socket.SocketType) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._control: trio.socket.SocketType | None = control
        self._waiting = trio.Lock()
        self._status: int | None = None

    async def run(
        self,
        argv: Sequence[Text],
        *,
        env: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
        cwd: Text | None = None,
        fds: Mapping[int, int] | None = None,
        tty: int | None = None,
        umask: int | None = None,
        subgroup: str | None = None,
    ) -> None:
        """Execute a program in the payload, and wait until that has happened.

        Cancel safety: the payload is killed, as after every error but :exc:`BadCommand`, which leaves it waiting.

        Args:
            argv: program and arguments. A program without a slash is searched for in the PATH of `env`.
            env: environment; by default that of this process.
            cwd: working directory, to which a relative `argv[0]` refers.
            fds: file descriptors to pass, by their number in the payload. They stay open in this process.
            tty: file descriptor of a terminal, which becomes the controlling terminal, and also those standard streams
                that `fds` does not name.
            umask: file mode creation mask.
            subgroup: control group to create below that of the machine, and to move to first. The machine must be
                delegated (class container, or ``Delegate=``). A control group that has processes cannot enable
                controllers for those below it (cgroups(7), "no internal processes"), so a payload that manages control
                groups needs this. In a user's service manager all control groups belong to the user, so there the
                caller must make sure that the machine is delegated.

        Raises:
            BadCommand: the arguments make no command.
            StartFailed: the program could not be executed.
            HolderGone: the payload has ended in the meantime.
            trio.TooSlowError: the program was not executed within :data:`EXEC_SECONDS`.
        """
        control = self._control
        if control is None:
            raise RuntimeError("this payload already runs, or has ended")
        passed = dict(fds or {})
        command = encoded_command(argv, env, cwd, passed, tty, umask, subgroup)
        content = _memory_file("moorage-command", command)
        self._control = None
        try:
            with control, trio.fail_after(EXEC_SECONDS):
                rights = array("i", [content, *passed.values(), *([] if tty is None else [tty])])
                await self._exchange(control, rights)
        except BaseException:
            await self._kill()
            raise
        finally:
            os.close(content)

    async def _exchange(self, control: trio.socket.SocketType, rights: array[int]) -> None:
        with contextlib.suppress(BrokenPipeError):  # its last message can still be read
            await control.sendmsg(
                [b"%d" % holder.PROTOCOL],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)],
                socket.MSG_NOSIGNAL,
            )
        if await _report(control) != holder.READY:
            raise HolderGone(await self.wait())
        await _report(control)  # empty when the program runs; an error is raised

    async def wait(self) -> int:
        """Wait for the end of the payload.

        It is a child of this process, and a zombie until it has been waited for.

        Returns:
            Its exit status, or -N if signal N ended it.

        Raises:
            ChildProcessError: other code has waited for it, so its status is unknown.
        """
        async with self._waiting:
            if self._status is None:
                await trio.lowlevel.wait_readable(self.pidfd)
                ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)  # noqa: ASYNC222  # it has ended
                assert ended is not None
                exited = ended.si_code == os.CLD_EXITED
                self._status = ended.si_status if exited else -ended.si_status
            return self._status

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._control is not None:
                self._control.close()
                self._control = None
                await self._kill()
        finally:
            os.close(self.pidfd)

    async def _kill(self) -> None:
        with trio.move_on_after(END_SECONDS, shield=True):
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
                await self.wait()
            except (ProcessLookupError, ChildProcessError):
                pass
