"""The program that waits for a command line, and executes it.

People do not start it: :mod:`moorage.launch.payload` runs its text, from memory, as
``python3 -I -S -B FILE SECONDS [UID GID [GROUP …]]``, with one end of a socket at :data:`CONTROL_FD`. It becomes that
user, is moved into the control group of its machine, and waits for one message with the command; then it arranges what
the message says, and executes the command with the same PID.

Its memory is charged to the machine, which may be a small one. So it imports only modules that are built into the
interpreter: with ``os``, ``signal`` and ``socket`` it would take 1.3 MiB more, and twice as long to start.

The protocol, over a socket of type SOCK_SEQPACKET, so that messages arrive as a whole:

- to the holder, once: :data:`PROTOCOL` as a decimal number, and file descriptors. The first is a file with a
  :class:`Command`, encoded by :mod:`marshal`; the others are those of the payload.
- from the holder: :data:`HELD` when it has become that user; :data:`READY` just before it executes the command, and
  then only the end of the connection. If a step fails, ``(field of the command, errno, path or None)``, encoded by
  :mod:`marshal`, and the end of the process.
"""

import _signal  # pyright: ignore[reportMissingModuleSource]  # a built-in; see tools/typings
import _socket
import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn, TypedDict

    class Command(TypedDict):
        """A command; the fields are the arguments of :meth:`moorage.launch.trio.Payload.run`."""

        argv: list[bytes]
        paths: list[bytes]
        """Candidates for the program; the first that exists is executed."""
        env: dict[bytes, bytes]
        cwd: bytes | None
        fds: list[int]
        """The number that each file descriptor gets."""
        tty: bool
        """Whether the last file descriptor, which has no number in `fds`, becomes the controlling terminal."""
        umask: int | None
        subgroup: bytes | None


PROTOCOL: "Final" = 1
"""Version, so that two versions of this package cannot misunderstand each other."""

CONTROL_FD: "Final" = 3

FDS_MAX: "Final" = 250
"""File descriptors for the payload. The kernel permits 253 per message (SCM_MAX_FD); the command takes one."""

COMMAND_BYTES_MAX: "Final" = 2 * 1024 * 1024
"""Maximum size of a command: what execve(2) takes of arguments and environment with a stack of 8 MiB."""

REPORT_BYTES_MAX: "Final" = 8192
"""A report holds one path (PATH_MAX is 4096)."""

HELD: "Final" = b"held"
READY: "Final" = b"exec"

_HIERARCHY: "Final" = b"/sys/fs/cgroup"
_MARSHAL_VERSION: "Final" = 2  # covers all types needed here, and has not changed since Python 2.5

# errno(3); importing the module would load another file
_EPERM, _ENOENT, _ENOMEM, _EACCES, _ENOTDIR, _EINVAL, _EMFILE, _EPROTO = 1, 2, 12, 13, 20, 22, 24, 71

_ELSEWHERE: "Final" = (_ENOENT, _ENOTDIR)
"""Errors of execve(2) for a path that does not exist."""


def encode(value: "Any") -> bytes:
    """Encode a command or a report."""
    return marshal.dumps(value, _MARSHAL_VERSION)


def main() -> "NoReturn":
    """Wait for a command and execute it, or end."""
    # Signals that the interpreter ignores would be ignored by the payload, too.
    for number in (_signal.SIGINT, _signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)
    # The kernel enforces the deadline: SIGALRM ends this process, whatever it is doing.
    _signal.alarm(int(sys.argv[1]))
    posix.set_inheritable(CONTROL_FD, False)  # noqa: FBT003  # positional only
    posix.closerange(CONTROL_FD + 1, posix.sysconf("SC_OPEN_MAX"))
    control, field, path = CONTROL_FD, "uid", None
    try:
        if len(sys.argv) > 2:
            _become_user(*map(int, sys.argv[2:]))
            posix.write(control, HELD)
        field = "command"
        command, fds = _receive(control)
        control, fds = _moved_away(command, control, fds)
        for field, arrange in _STEPS:  # noqa: B007  # reported below if the step fails
            arrange(command, fds)
        field = "argv"
        _signal.alarm(0)
        # From now on the launcher takes the end of the connection for success: execve(2) closes it.
        posix.write(control, READY)
        _execute(command)
    except OSError as error:
        number, path = error.errno or _EINVAL, error.filename
    except MemoryError:
        number = _ENOMEM  # the command does not fit into the machine's memory
    posix.write(control, encode((field, number, path)))
    sys.exit(1)


def _become_user(uid: int, gid: int, *groups: int) -> None:
    posix.setgroups(groups)
    posix.setresgid(gid, gid, gid)
    posix.setresuid(uid, uid, uid)


def _receive(control: int) -> "tuple[Command, list[int]]":
    """Wait for the command, and return it with the file descriptors of the payload."""
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, control)
    room = _socket.CMSG_SPACE(4 * (1 + FDS_MAX))
    message, ancillary, flags, _ = channel.recvmsg(32, room, _socket.MSG_CMSG_CLOEXEC)
    channel.detach()
    if not message:
        sys.exit(0)  # the launcher has given up, or has died
    if flags & _socket.MSG_CTRUNC:
        raise OSError(_EMFILE, None)
    fds = [
        int.from_bytes(data[at : at + 4], sys.byteorder)
        for level, kind, data in ancillary
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS)
        for at in range(0, len(data), 4)
    ]
    if message != b"%d" % PROTOCOL or not fds:
        raise OSError(_EPROTO, None)
    text = posix.pread(fds[0], COMMAND_BYTES_MAX + 1, 0)
    posix.close(fds.pop(0))
    try:
        # From the process that started this one, which could as well have started another program.
        command: Command = marshal.loads(text)  # noqa: S302
        if len(command["fds"]) + command["tty"] == len(fds):
            return command, fds
    except (EOFError, ValueError, TypeError, KeyError):
        pass
    raise OSError(_EPROTO, None)


def _moved_away(command: "Command", control: int, fds: "list[int]") -> "tuple[int, list[int]]":
    """Move the file descriptors away from all numbers that they, or others, will get in the end."""
    wanted = {*command["fds"], *((0, 1, 2) if command["tty"] else ())}
    occupied = {control, *fds, *wanted}
    spare = [number for number in range(3, 3 + len(occupied) * 2) if number not in occupied]
    control, *moved = (
        posix.dup2(fd, spare.pop(), False) if fd in wanted else fd  # noqa: FBT003
        for fd in (control, *fds)
    )
    return control, moved


def _take_terminal(command: "Command", fds: "list[int]") -> None:
    if not command["tty"]:
        return
    posix.login_tty(fds[-1])


def _place_fds(command: "Command", fds: "list[int]") -> None:
    for fd, number in zip(fds, command["fds"], strict=False):  # the terminal has no number
        posix.dup2(fd, number)


def _enter_subgroup(command: "Command", fds: "list[int]") -> None:
    """Move to a control group below that of the machine, which can then enable controllers for it.

    Control Group APIs and Delegation (systemd.io), "Delegation": only delegated groups may be written to.
    """
    del fds
    name = command["subgroup"]
    if name is None:
        return
    # Not splitlines(), which would split at a carriage return in the name of a group.
    unified = [line[3:] for line in _content(b"/proc/self/cgroup").split(b"\n") if line.startswith(b"0::")]
    group = _HIERARCHY + unified[0]
    try:
        delegated = posix.getxattr(group, "user.delegate") == b"1"
    except OSError:
        # A user's service manager sets no such attribute; its whole subtree is delegated, and belongs to the user.
        delegated = 0 < posix.stat(group).st_uid == posix.geteuid()
    if not delegated:
        raise OSError(_EPERM, None, group)
    below = group + b"/" + name
    try:  # noqa: SIM105  # importing contextlib would load a file
        posix.mkdir(below)
    except FileExistsError:
        pass
    procs = posix.open(below + b"/cgroup.procs", posix.O_WRONLY | posix.O_CLOEXEC)
    posix.write(procs, b"0")
    posix.close(procs)


def _content(path: bytes) -> bytes:
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    content = posix.read(fd, REPORT_BYTES_MAX)
    posix.close(fd)
    return content


def _set_umask(command: "Command", fds: "list[int]") -> None:
    del fds
    if command["umask"] is not None:
        posix.umask(command["umask"])


def _change_directory(command: "Command", fds: "list[int]") -> None:
    del fds
    if command["cwd"] is not None:
        posix.chdir(command["cwd"])


_STEPS: "Final" = (
    ("tty", _take_terminal),
    ("fds", _place_fds),  # may replace those of the terminal
    ("subgroup", _enter_subgroup),
    ("umask", _set_umask),
    ("cwd", _change_directory),
)
"""Steps, each with the field of the command that is to blame if it fails."""


def _execute(command: "Command") -> None:
    """Execute the first path that can be executed, as execvp(3) does; never return."""
    found = OSError(_ENOENT, None)
    for path in command["paths"]:
        try:
            posix.execve(path, command["argv"], command["env"])
        except OSError as error:
            if found.errno in _ELSEWHERE:
                found = error
            if error.errno not in {*_ELSEWHERE, _EACCES}:
                break
    raise found


if __name__ == "__main__":
    main()
