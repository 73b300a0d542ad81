"""Mounts a file or a directory of the host in a container.

Done by a child of `moorage.probes.fork_server`, which finds one JSON object at its socket, the question:

    {"source": PATH, "destination": PATH, "readOnly": BOOL, "mkdir": BOOL}

and answers with an errno as text, 0 if all is well.

The copy of the mount is made on the host; then a thread of its own enters the mount namespace and the root directory
of the leader, and puts it there in the place of what is mounted (``bind_mount_in_namespace()`` of systemd).

Only the standard library and what is as plain: it is run without site-packages.
"""

import contextlib
import ctypes
import errno
import json
import os
import socket
import stat
import struct
from typing import Any, Final

from moorage.probes.apart import in_thread
from moorage.probes.handing import ANSWER_FD, LEADER_FD, receive_question
from moorage.probes.namespaces import find_inside, open_root, pid_of

# Of linux/mount.h, linux/fcntl.h and linux/sched.h, and of every architecture's table of system calls that Debian has.
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_MOUNT_SETATTR: Final = 442
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 0x1
_MOUNT_ATTR: Final = struct.pack("=QQQQ", 0x1, 0, 0, 0)  # MOUNT_ATTR_RDONLY
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
_MOVE_MOUNT_BENEATH: Final = 0x200
_UMOUNT: Final = 0x2 | 0x8  # MNT_DETACH, UMOUNT_NOFOLLOW
_CLONE_NEWNS: Final = 0x00020000

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def bind(leader: int, *, source: str, destination: str, read_only: bool, mkdir: bool) -> None:
    """Mount something in a container; the parameters are those of a question.

    Raises:
        OSError: EINVAL if it has no mount namespace of its own; others as the kernel says.
    """
    root = open_root(leader, os.O_PATH)
    ours, its = (os.stat(f"/proc/{which}/ns/mnt") for which in ("self", pid_of(leader)))
    if os.path.samestat(ours, its):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    found = os.open(source, os.O_PATH | os.O_CLOEXEC)
    is_directory = stat.S_ISDIR(os.fstat(found).st_mode)
    mount = _checked(
        _libc.syscall(_SYS_OPEN_TREE, found, b"", _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH)
    )
    if read_only:
        _checked(
            _libc.syscall(_SYS_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, _MOUNT_ATTR, len(_MOUNT_ATTR))
        )
    _checked(_libc.setns(leader, _CLONE_NEWNS))
    os.fchdir(root)
    os.chroot(".")
    above, _, name = os.fsencode(destination.rstrip("/")).rpartition(b"/")
    if mkdir:
        _make(above)
    place = find_inside(above or b"/")
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    os.fchdir(place)  # from here on nothing that the container puts there leads elsewhere
    if mkdir:
        with contextlib.suppress(OSError):
            if is_directory:
                os.mkdir(name, 0o700)
            else:
                os.mknod(name, stat.S_IFREG | 0o600)
    _put(mount, name or b".")


def _make(path: bytes) -> None:
    """Make a directory of the container, and those above it, if they are not there."""
    parent, reached = find_inside(b"/"), b""
    for name in filter(None, path.split(b"/")):
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=parent)
        reached += b"/" + name
        parent = find_inside(reached)


def _put(mount: int, destination: bytes) -> None:
    """Put a mount in the place of another one, or on a directory or file where there is none."""
    try:
        flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_BENEATH
        _checked(_libc.syscall(_SYS_MOVE_MOUNT, mount, b"", _AT_FDCWD, destination, flags))
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
    else:
        _checked(_libc.umount2(destination, _UMOUNT))
        return
    _checked(_libc.syscall(_SYS_MOVE_MOUNT, mount, b"", _AT_FDCWD, destination, _MOVE_MOUNT_F_EMPTY_PATH))


def main() -> None:
    """Mount, and say how that went."""
    with socket.socket(fileno=ANSWER_FD) as answer:
        question = json.loads(receive_question(answer))
        os.umask(0o022)
        in_thread(lambda: answer.send(str(_number(question)).encode()))


def _number(question: Any) -> int:
    """Mount; return the errno that says how that went."""
    try:
        bind(
            LEADER_FD,
            source=question["source"],
            destination=question["destination"],
            read_only=question["readOnly"],
            mkdir=question["mkdir"],
        )
    except OSError as exc:
        return exc.errno or errno.EIO
    return 0
