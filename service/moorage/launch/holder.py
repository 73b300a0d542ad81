"""The program that waits for its command line, and becomes it.

It is not for a person to start: :mod:`moorage.launch.payload` runs its text, from memory, as
``python3 -I -S -B FILE SECONDS [UID GID [GROUP …]]``, with one end of a socket at :data:`CONTROL_FD`. There it waits,
as that user, and a member already of the control group that its payload shall live in, until one message names the
command; then it arranges what the message says, and executes the command with the same PID.

What it takes is charged to the machine, which may be a small one. So it imports nothing that is not part of the
interpreter: with ``os``, ``signal`` and ``socket`` it would be larger by 1.3 MiB, and twice as long under way.

The protocol, over a socket of type SOCK_SEQPACKET, so that a message is there wholly or not at all:

- to the holder, once: :data:`PROTOCOL` as a decimal number, and file descriptors. The first is of a file with a
  :class:`Command`, by :mod:`marshal`; the others are those of the payload.
- from the holder: :data:`HELD` when it has become that user; :data:`READY` just before it executes, and then nothing
  but the end of the connection. Where it cannot do something, ``(field of the command, errno, path or None)``, by
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
        """What to become; the fields are the arguments of :meth:`moorage.launch.payload.Payload.run`."""

        argv: list[bytes]
        paths: list[bytes]
        """Where the program may be; the first that is there is executed."""
        env: dict[bytes, bytes]
        cwd: bytes | None
        fds: list[int]
        """The number that each file descriptor shall have."""
        tty: bool
        """The last file descriptor, which has no number in `fds`, is to be the controlling terminal."""
        umask: int | None
        subgroup: bytes | None


PROTOCOL: "Final" = 1
"""So that two versions of this package cannot misunderstand each other."""

CONTROL_FD: "Final" = 3

FDS_MAX: "Final" = 250
"""File descriptors for the payload. The kernel lets 253 go with a message (SCM_MAX_FD), and one is the command's."""

COMMAND_BYTES_MAX: "Final" = 2 * 1024 * 1024
"""All that goes to the holder: as much as execve(2) takes of arguments and environment with a stack of 8 MiB."""

REPORT_BYTES_MAX: "Final" = 8192
"""A report holds one path (PATH_MAX is 4096)."""

HELD: "Final" = b"held"
READY: "Final" = b"exec"

_HIERARCHY: "Final" = b"/sys/fs/cgroup"
_MARSHAL_VERSION: "Final" = 2  # knows all that is needed here, and has not changed since Python 2.5

# errno(3); the module would be another file to load
_EPERM, _ENOENT, _ENOMEM, _EACCES, _ENOTDIR, _EINVAL, _EMFILE, _EPROTO = 1, 2, 12, 13, 20, 22, 24, 71

_ELSEWHERE: "Final" = (_ENOENT, _ENOTDIR)
"""What execve(2) says of a path that leads nowhere."""


def encode(value: "Any") -> bytes:
    """Encode a command or a report."""
    return marshal.dumps(value, _MARSHAL_VERSION)


def main() -> "NoReturn":
    """Wait for a command and become it, or end."""
    # What the interpreter ignores or handles would be ignored by the payload, too.
    for number in (_signal.SIGINT, _signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)
    # The kernel keeps the deadline: whatever this process is busy with, SIGALRM ends it.
    _signal.alarm(int(sys.argv[1]))
    posix.set_inheritable(CONTROL_FD, False)  # noqa: FBT003  # it has no other name
    posix.closerange(CONTROL_FD + 1, posix.sysconf("SC_OPEN_MAX"))
    control, field, path = CONTROL_FD, "uid", None
    try:
        if len(sys.argv) > 2:
            _become_user(*map(int, sys.argv[2:]))
            posix.write(control, HELD)
        field = "command"
        command, fds = _receive(control)
        control, fds = _moved_away(command, control, fds)
        for field, arrange in _STEPS:  # noqa: B007  # told below where it fails
            arrange(command, fds)
        field = "argv"
        _signal.alarm(0)
        # From here on the launcher takes the end of the connection, which execve(2) brings, for success.
        posix.write(control, READY)
        _execute(command)
    except OSError as error:
        number, path = error.errno or _EINVAL, error.filename
    except MemoryError:
        number = _ENOMEM  # the machine is smaller than its command
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
        sys.exit(0)  # the launcher has given up, or is dead
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
        # Of whoever started this process, who could as well have started another one.
        command: Command = marshal.loads(text)  # noqa: S302
        if len(command["fds"]) + command["tty"] == len(fds):
            return command, fds
    except (EOFError, ValueError, TypeError, KeyError):
        pass
    raise OSError(_EPROTO, None)


def _moved_away(command: "Command", control: int, fds: "list[int]") -> "tuple[int, list[int]]":
    """Move the file descriptors away from all numbers that they, or others, are to have in the end."""
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
    for fd, number in zip(fds, command["fds"], strict=False):  # that of the terminal has no number
        posix.dup2(fd, number)


def _enter_subgroup(command: "Command", fds: "list[int]") -> None:
    """Move below the control group of the machine: a group with processes in it has no controllers to give away.

    Control Group APIs and Delegation (systemd.io), "Delegation": only what is delegated may be written to.
    """
    del fds
    name = command["subgroup"]
    if name is None:
        return
    # A carriage return in the name of a group is no end of a line, as splitlines() has it.
    unified = [line[3:] for line in _content(b"/proc/self/cgroup").split(b"\n") if line.startswith(b"0::")]
    group = _HIERARCHY + unified[0]
    try:
        delegated = posix.getxattr(group, "user.delegate") == b"1"
    except OSError:
        # A user's service manager sets no such attribute. What it has is the user's, delegated to it as a whole.
        delegated = 0 < posix.stat(group).st_uid == posix.geteuid()
    if not delegated:
        raise OSError(_EPERM, None, group)
    below = group + b"/" + name
    try:  # noqa: SIM105  # contextlib would be loaded from a file
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
    ("fds", _place_fds),  # also over those of the terminal
    ("subgroup", _enter_subgroup),
    ("umask", _set_umask),
    ("cwd", _change_directory),
)
"""Each with the field of the command that is to blame where it fails."""


def _execute(command: "Command") -> None:
    """Execute the first path that can be, as execvp(3) does; never returns."""
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
