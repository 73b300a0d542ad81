"""For launchers: a process that is a machine's first before it is known what it will execute.

A launcher wants its machine's scope early, because the names of the scope and of what lies beside it go into the
command line of the VMM; and it wants nothing but the VMM in that scope. So a small process is started to wait, is
registered as the leader, and becomes the VMM later::

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

Its PID stays the same, and its scope is never empty. It shares no memory with the launcher, so that a small
``MemoryMax=`` of the scope is not used up by what the launcher has in memory. Where the launcher leaves the block
without :meth:`Payload.run`, is cancelled, or dies, nothing is left.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trio

from moorage.launch import holder
from moorage.wire.client import Client
from moorage.wire.errors import VarlinkError

HOLD_SECONDS: Final = 300
"""How long a payload waits for its command line by default. Helpers start in the meantime, and some are slow."""

EXEC_SECONDS: Final = 60.0
"""For each step that it is asked for: long enough for a program on a file server under load."""

END_SECONDS: Final = 5.0
"""From SIGKILL until the process is gone. The kernel does it at once, unless a device does not answer."""

LEASE_RETRY_SECONDS: Final = 1.0
"""Between attempts to take a lease again: a fifth of the time that a service that was restarted waits for it."""

_SOURCE: Final = Path(holder.__file__).read_bytes()
# The text that belongs to this module, whatever becomes of the files while this process runs. So does the interpreter;
# unless it is part of another program, which cannot be started as one.
_INTERPRETER: Final = (
    "/proc/self/exe" if os.path.samefile("/proc/self/exe", sys.executable) else sys.executable
)
_CAUGHT: Final = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}

Text = str | bytes | os.PathLike[str]


class BadCommand(ValueError):
    """What was given to :func:`hold` or :meth:`Payload.run` cannot be. Nothing was done; a payload still waits.

    Attributes:
        field: the name of the argument.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


class StartFailed(OSError):
    """The payload could not become the program, and has ended.

    An OSError of the system call that failed, with its errno, and in `filename` the path if there is one.

    Attributes:
        field: the name of the argument of :func:`hold` or :meth:`Payload.run` that it was about.
    """

    field: str = ""


class HolderGone(Exception):
    """The payload ended before it became the program.

    Attributes:
        status: as from :meth:`Payload.wait`; -SIGALRM where it had waited too long.
    """

    def __init__(self, status: int) -> None:
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        waited = " (it had waited too long)" if status == -signal.SIGALRM else ""
        super().__init__(f"the payload ended {how} before it was started{waited}")
        self.status = status


async def hold(
    *,
    uid: int | None = None,
    gid: int | None = None,
    groups: Sequence[int] = (),
    seconds: int = HOLD_SECONDS,
) -> Payload:
    """Start a process that waits to become the payload of a machine; it leads a session of its own.

    It has the standard streams, the working directory and the limits of this process, no other file descriptor, and
    all signals as they are by default. It may be registered at once.

    Args:
        uid: user that it is from the start, so that what is made for the machine can be made for that user; by
            default that of this process.
        gid: group; needed with `uid`.
        groups: supplementary groups, where `uid` is given.
        seconds: how long it waits for :meth:`Payload.run`. After that it ends.

    Returns:
        The payload, to be used with ``async with``.

    Raises:
        BadCommand: the arguments contradict each other, or are out of range.
        StartFailed: it may not become that user.
        HolderGone: it ended before it was that user.
        trio.TooSlowError: it was not that user within :data:`EXEC_SECONDS`.
        OSError: no process, memory or file descriptor is left.
    """
    arguments = [str(seconds), *_identity(uid, gid, groups)]
    if not 0 < seconds < _ALARM_END:
        raise BadCommand("seconds", f"{seconds} is out of range")
    await trio.lowlevel.checkpoint()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            pid = _spawn(theirs, arguments)
        except BaseException:
            ours.close()
            raise
    try:
        # It is this process's child: its PID is not given away before it has been waited for.
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


async def keep_lease(
    address: str,
    client: Client,
    parameters: Mapping[str, object],
    payload: Payload,
    complain: Callable[[Exception], None] = lambda _: None,
) -> None:
    """Hold the lease of a machine, also over restarts of the service. Runs until it is cancelled.

    A lease lasts as long as the connection that registered the machine, and a restart or an upgrade of the service
    ends all connections. The new instance gives a launcher some seconds to connect and send the same call again.

    Args:
        address: of the service's socket.
        client: the connection that registered the machine; it is closed at the end.
        parameters: those of Register, with ``lease``, and ``leaderFileDescriptor`` or ``leader``.
        payload: the machine's leader.
        complain: called with the error where the lease could not be taken again, once after each loss; it is tried
            on.
    """
    fds = [payload.pidfd] if "leaderFileDescriptor" in parameters else []
    try:
        while True:
            await client.wait_closed()
            complained = False
            while client.closed:
                try:
                    client = await Client.connect(address)
                    await client.call("io.moorage.Machine.Register", parameters, fds=fds)
                except (OSError, VarlinkError) as error:
                    client.close()
                    if not complained:
                        complain(error)
                    complained = True
                    await trio.sleep(LEASE_RETRY_SECONDS)
    finally:
        client.close()


async def _report(control: trio.socket.SocketType) -> bytes:
    """Return what it says next, which is nothing after its end.

    Raises:
        StartFailed: it has failed.
    """
    try:
        message = await control.recv(holder.REPORT_BYTES_MAX)
    except ConnectionResetError:
        return b""
    if message in {b"", holder.HELD, holder.READY}:
        return message
    field, number, path = marshal.loads(message)  # noqa: S302  # of our own program, which runs nothing else yet
    failed = StartFailed(number, os.strerror(number), path and os.fsdecode(path))
    failed.field = field
    raise failed


def _identity(uid: int | None, gid: int | None, groups: Sequence[int]) -> list[str]:
    if uid is None:
        if gid is not None or groups:
            raise BadCommand("uid", "it is needed where gid or groups are given")
        return []
    if gid is None:
        raise BadCommand("gid", "it is needed where uid is given")
    for field, numbers in (("uid", [uid]), ("gid", [gid]), ("groups", groups)):
        _check_range(field, numbers, _ID_END)
    return [str(number) for number in (uid, gid, *groups)]


def _spawn(control: socket.socket, arguments: Sequence[str]) -> int:
    # Above all numbers that are assigned below, so that none is overwritten before it is used.
    lowest = holder.CONTROL_FD + 2
    fds: list[int] = []
    try:
        fds.append(fcntl.fcntl(control.fileno(), fcntl.F_DUPFD_CLOEXEC, lowest))
        source = _memory_file("moorage-holder", _SOURCE)
        fds.append(source)
        fds.append(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, lowest))
        return os.posix_spawn(
            _INTERPRETER,
            # Its executable is found by the first of them.
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

    At the end of its ``async with`` block a payload that still waits is killed. One that runs is not: it is the
    machine's.

    Attributes:
        pid: its PID, before and after.
        pidfd: the same as a file descriptor; it is closed with the block.
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
        """Let it execute a program. Returns when that has happened.

        If it does not return, because of an error or because it is cancelled, the payload is killed; a
        :exc:`BadCommand` leaves it as it was.

        Args:
            argv: program and arguments. A program without a slash is looked for in the PATH of `env`.
            env: environment; by default that of this process.
            cwd: working directory; a relative `argv[0]` starts there.
            fds: its number in the payload, and the file descriptor here, of each that shall be passed. They stay open
                here.
            tty: file descriptor of a terminal, which becomes the controlling terminal and, where `fds` does not name
                them, the standard streams.
            umask: file mode creation mask.
            subgroup: control group to make below that of the machine, which must be delegated (class container, or
                ``Delegate=``), and to move to first. Only then can controllers be enabled for groups below the
                machine's: a control group that has processes has none to give (cgroups(7), "no internal
                processes"). In a user's service manager the caller has to see to it that the machine is delegated:
                there all control groups are the user's.

        Raises:
            BadCommand: the arguments make no command.
            StartFailed: the program could not be executed.
            HolderGone: the payload has ended in the meantime.
            trio.TooSlowError: it was not executed within :data:`EXEC_SECONDS`.
        """
        control = self._control
        if control is None:
            raise RuntimeError("this payload runs already, or has ended")
        passed = dict(fds or {})
        command = _command(argv, env, cwd, passed, tty, umask, subgroup)
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
        with contextlib.suppress(BrokenPipeError):  # its last words are there to be read
            await control.sendmsg(
                [b"%d" % holder.PROTOCOL],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)],
                socket.MSG_NOSIGNAL,
            )
        if await _report(control) != holder.READY:
            raise HolderGone(await self.wait())
        await _report(control)  # the end, unless it is an error

    async def wait(self) -> int:
        """Wait for its end.

        The process is a child of this one: who does not wait for it leaves a zombie until this process ends.

        Returns:
            Its exit status, or -N where signal N ended it.

        Raises:
            ChildProcessError: somebody else has waited for it; its status is not known.
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


def _command(
    argv: Sequence[Text],
    env: Mapping[str, str] | Mapping[bytes, bytes] | None,
    cwd: Text | None,
    fds: Mapping[int, int],
    tty: int | None,
    umask: int | None,
    subgroup: str | None,
) -> bytes:
    """Check what can be checked here, and encode it for the holder."""
    words = [_encoded("argv", word) for word in argv]
    if not words or not words[0]:
        raise BadCommand("argv", "there is no program")
    variables = {
        _encoded("env", name): _encoded("env", value)
        for name, value in (os.environb if env is None else env).items()
    }
    if any(not name or b"=" in name for name in variables):
        raise BadCommand("env", "the name of a variable is empty or has a '=' in it")
    for field, fd in [*(("fds", fd) for fd in fds.values()), *([] if tty is None else [("tty", tty)])]:
        try:
            os.fstat(fd)
        except (OSError, OverflowError):
            raise BadCommand(field, f"file descriptor {fd} is not open") from None
    if len(fds) + (tty is not None) > holder.FDS_MAX:
        raise BadCommand("fds", f"{len(fds)} file descriptors are more than {holder.FDS_MAX}")
    _check_range("fds", fds, _FD_END)
    _check_range("umask", [] if umask is None else [umask], 0o1000)
    if subgroup is not None and (
        subgroup in {"", ".", ".."} or "/" in subgroup or "\0" in subgroup or subgroup.startswith("cgroup.")
    ):
        raise BadCommand("subgroup", f"{subgroup!r} is no name of a control group")
    command: holder.Command = {
        "argv": words,
        "paths": _paths(words[0], variables),
        "env": variables,
        "cwd": None if cwd is None else _encoded("cwd", cwd),
        "fds": list(fds),
        "tty": tty is not None,
        "umask": umask,
        "subgroup": None if subgroup is None else os.fsencode(subgroup),
    }
    encoded = holder.encode(command)
    if len(encoded) > holder.COMMAND_BYTES_MAX:
        raise BadCommand("argv", f"with the environment it is longer than {holder.COMMAND_BYTES_MAX} bytes")
    return encoded


_ID_END: Final = 2**32 - 1
"""The last number stands for none in setresuid(2)."""

_FD_END: Final = 2**31


_ALARM_END: Final = 2**31


def _check_range(field: str, numbers: Iterable[int], end: int) -> None:
    for number in numbers:
        if not 0 <= number < end:
            raise BadCommand(field, f"{number} is out of range")


def _encoded(field: str, text: Text) -> bytes:
    encoded = os.fsencode(text)
    if b"\0" in encoded:
        raise BadCommand(field, "there is a zero byte in it")
    return encoded


def _paths(program: bytes, env: Mapping[bytes, bytes]) -> list[bytes]:
    if b"/" in program:
        return [program]
    search = env.get(b"PATH", os.fsencode(os.defpath))
    return [os.path.join(directory or b".", program) for directory in search.split(b":")]
