"""A process that becomes the leader of a machine before its command line is known.

A launcher needs the scope of its machine early, because the command line of the VMM contains the names of the scope
and of sockets; and nothing but the VMM should be in that scope. So a small process is started to wait, is registered
as the leader, and becomes the VMM later. Its PID stays the same, and the scope is never empty. It shares no memory
with the launcher, so that memory of the launcher is not charged to the scope, whose ``MemoryMax=`` may be small. If
the launcher gives it up, or dies, the process ends.

What waits here are steps (:mod:`moorage.steps.waits`); :mod:`moorage.launch.trio`, :mod:`moorage.launch.asyncio` and
:mod:`moorage.launch.blocking` take them.
"""

from __future__ import annotations

import contextlib
import fcntl
import marshal
import math
import os
import signal
import socket
import sys
import threading
from array import array
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Final

from moorage.launch import holder
from moorage.launch.command import Settings, Text, encoded_command, holder_arguments
from moorage.launch.errors import HolderGone, StartFailed, TooSlow
from moorage.steps.waits import Steps, Wait, shielded

HOLD_SECONDS: Final = 300
"""Default for how long a payload waits for its command line. Helpers start in the meantime, and some are slow."""

EXEC_SECONDS: Final = 60.0
"""Deadline for each step of the payload: enough for a program on a file server under load."""

END_SECONDS: Final = 5.0
"""Deadline for a process to be gone after SIGKILL. That is immediate, unless a device does not respond."""


_SOURCE: Final = Path(holder.__file__).read_bytes()
# Read once, so that the text matches this module even if the files are upgraded while this process runs. The same goes
# for the interpreter, unless it is embedded in another program. One that was started without a PATH, as hooks of OCI
# runtimes are, may not know its own.
_EXECUTABLE: Final = sys.executable or "python3"
_INTERPRETER: Final = (
    "/proc/self/exe"
    if not sys.executable or os.path.samefile("/proc/self/exe", sys.executable)
    else sys.executable
)
_CAUGHT: Final = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


def hold(
    uid: int | None = None,
    gid: int | None = None,
    groups: Sequence[int] = (),
    seconds: int = HOLD_SECONDS,
) -> Steps[Held]:
    """Start a process that waits to become the payload of a machine; see :func:`moorage.launch.trio.hold`."""
    arguments = holder_arguments(seconds, uid, gid, groups)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)  # noqa: FBT003  # its only argument
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
        os.waitpid(pid, 0)  # at once
        raise
    held = Held(pid, pidfd, ours)
    if uid is not None:
        try:
            if (yield from _report(ours, monotonic() + EXEC_SECONDS)) != holder.HELD:
                raise HolderGone((yield from held.wait()))
        except BaseException:
            yield from held.end()
            raise
    return held


def _report(control: socket.socket, until: float) -> Steps[bytes]:
    """Return the next message of a holder; an empty one after its end.

    Raises:
        StartFailed: the message reports an error.
        TooSlow: there was no message in time.
    """
    while True:
        try:
            message = control.recv(holder.REPORT_BYTES_MAX)
        except BlockingIOError:
            if not (yield Wait(control.fileno(), until)):
                raise TooSlow from None
        except ConnectionResetError:
            return b""
        else:
            break
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
            [_EXECUTABLE, "-I", "-S", "-B", f"/proc/self/fd/{holder.CONTROL_FD + 1}", *arguments],
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


class Held:
    """A process that waits to become the payload of a machine. Made by :func:`hold`.

    Attributes:
        pid: its PID, which does not change.
        pidfd: a pidfd, which :meth:`end` closes.
        status: exit status, or -N if signal N ended it; None before somebody has waited for it.
    """

    def __init__(self, pid: int, pidfd: int, control: socket.socket) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._control: socket.socket | None = control
        self._burying = threading.Lock()
        self.status: int | None = None

    def run(self, argv: Sequence[Text], settings: Settings) -> Steps[None]:
        """Execute a program in the payload, and wait until that has happened.

        See :meth:`moorage.launch.trio.Payload.run`.
        """
        control = self._control
        if control is None:
            raise RuntimeError("this payload already runs, or has ended")
        passed = dict(settings.get("fds") or {})
        tty = settings.get("tty")
        command = encoded_command(
            argv,
            settings.get("env"),
            settings.get("cwd"),
            passed,
            tty,
            settings.get("umask"),
            settings.get("subgroup"),
        )
        content = _memory_file("moorage-command", command)
        self._control = None
        try:
            with control:
                rights = array("i", [content, *passed.values(), *([] if tty is None else [tty])])
                yield from self._exchange(control, rights)
        except BaseException:
            yield from self._kill()
            raise
        finally:
            os.close(content)

    def _exchange(self, control: socket.socket, rights: array[int]) -> Steps[None]:
        until = monotonic() + EXEC_SECONDS
        # It can be written at once. Who was cancelled before learns it here: a fast holder leaves nothing to wait for.
        yield Wait(control.fileno(), until, writable=True)
        with contextlib.suppress(BrokenPipeError):  # its last message can still be read
            # The first message of this side: there is room for it.
            control.sendmsg(
                [b"%d" % holder.PROTOCOL],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)],
                socket.MSG_NOSIGNAL,
            )
        if (yield from _report(control, until)) != holder.READY:
            raise HolderGone((yield from self.wait()))
        # Empty when the program runs; an error is raised.
        yield from _report(control, until)

    def wait(self, until: float = math.inf) -> Steps[int]:
        """Wait for the end of the payload.

        Args:
            until: time of :func:`time.monotonic` at which to give up, s.

        Returns:
            Its exit status, or -N if signal N ended it.

        Raises:
            ChildProcessError: other code has waited for it, so its status is unknown.
            TooSlow: it has not ended in time.
        """
        if self.status is not None:
            return self.status
        watched = os.dup(self.pidfd)  # others may wait, too, or end it
        try:
            if not (yield Wait(watched, until)):
                raise TooSlow
            with self._burying:  # only one of several threads can
                if self.status is None:
                    ended = os.waitid(os.P_PIDFD, watched, os.WEXITED)  # it has ended
                    assert ended is not None
                    exited = ended.si_code == os.CLD_EXITED
                    self.status = ended.si_status if exited else -ended.si_status
            return self.status
        finally:
            os.close(watched)

    def end(self) -> Steps[None]:
        """Kill a payload that still waits, and close the pidfd. One that runs belongs to the machine, and lives on."""
        try:
            if self._control is not None:
                self._control.close()
                self._control = None
                yield from self._kill()
        finally:
            os.close(self.pidfd)

    def _kill(self) -> Steps[None]:
        with contextlib.suppress(ProcessLookupError, ChildProcessError, TooSlow):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            yield from shielded(self.wait(monotonic() + END_SECONDS))
