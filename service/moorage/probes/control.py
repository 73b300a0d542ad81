"""Calls a method at the control socket of a machine.

Run as a program, by a short-lived unit (`moorage.pid1.oneshot`): whoever is at the other end, and whatever file system
the socket is in, keeps nobody waiting but this process. Its file descriptor 3 (sd_listen_fds(3)) is a file with the
question, its answer one JSON object on standard output:

    {"path": PATH, "method": METHOD, "uid": UID, "seconds": SECONDS}
    {"done": true} or {"error": NAME} or {"refused": REASON} or {"slow": true}

The socket belongs to the user who registered the machine, UID, or to root; and this process becomes that user before
it looks up the path. So it reaches nothing that the user could not reach as well, and no other user's machine is taken
for this one. The path is walked without symbolic links, which others could have put into it, and what is connected to
is the very file whose owner was looked at.

Only the standard library, and nothing of this package: it is run by its path, without site-packages.
"""

import contextlib
import ctypes
import errno
import json
import os
import pwd
import socket
import stat
import struct
import sys
import time
from typing import Any, Final, cast

QUESTION_FD: Final = 3
"""Where the question is: the first of the descriptors that are passed (``SD_LISTEN_FDS_START``)."""

REPLY_MAX: Final = 64 * 1024
"""Bytes of a reply; it has no parameters, or those of an error."""

TEXT_MAX: Final = 256
"""Characters of an error's name that are passed on."""

RETRY_SECONDS: Final = 0.05
"""Pause before it is tried again to connect to a socket whose queue is full."""

ROOT: Final = 0
NOBODY: Final = 65534
"""Group of a user who is not in the user database."""

# Of linux/openat2.h, and of every architecture's table of system calls that Debian has.
_SYS_OPENAT2: Final = 437
_OPEN_HOW: Final = struct.Struct("=QQQ")
_RESOLVE_NO_SYMLINKS: Final = 0x04
_AT_FDCWD: Final = -100

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """There is no socket that may be connected to; the text says why, as a clause."""


class Slow(Exception):
    """It takes too long."""


def become(uid: int) -> None:
    """Have the rights of a user, and no others.

    Raises:
        OSError: that is not possible.
    """
    if uid == os.getuid():
        return
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
    else:
        os.initgroups(user.pw_name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(uid, uid, uid)


def connect(path: str, uid: int, until: float) -> socket.socket:
    """Connect to the socket at a path.

    Args:
        path: absolute.
        uid: whose it must be, unless it is root's.
        until: deadline, on the monotonic clock.

    Raises:
        Refused: there is none, or nobody listens there.
        Slow: those who listen there accept nobody.
    """
    try:
        found = _opened(path)
        try:
            _check(os.fstat(found), uid)
            return _connected(f"/proc/self/fd/{found}", until)
        finally:
            os.close(found)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Refused("there is a symbolic link in its path") from None
        raise Refused(os.strerror(error.errno or errno.EIO)) from None


def _opened(path: str) -> int:
    """Open a path as a place, without symbolic links in it."""
    how = _OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS)
    found: int = _libc.syscall(_SYS_OPENAT2, _AT_FDCWD, os.fsencode(path), how, len(how))
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return found


def _check(status: os.stat_result, uid: int) -> None:
    if not stat.S_ISSOCK(status.st_mode):
        raise Refused("it is no socket")
    if status.st_uid not in {ROOT, uid}:
        raise Refused(f"it belongs to uid {status.st_uid}")


def _connected(path: str, until: float) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                made.connect(path)
            except BlockingIOError:  # its queue is full
                if time.monotonic() >= until:
                    raise Slow from None
                time.sleep(RETRY_SECONDS)
            else:
                return made
    except BaseException:
        made.close()
        raise


def call(connected: socket.socket, method: str, until: float) -> str | None:
    """Call a method without parameters; return the name of the error that it replies with, None for a success.

    Raises:
        Refused: what comes back is no reply.
        Slow: nothing comes back.
    """
    message = json.dumps({"method": method, "parameters": {}}).encode() + b"\0"
    received = b""
    try:
        _bound(connected, until)
        connected.sendall(message)
        while b"\0" not in received:
            if len(received) > REPLY_MAX:
                raise Refused("what it replies is too long")
            _bound(connected, until)
            part = connected.recv(REPLY_MAX)
            if not part:
                raise Refused("it hung up without a reply")
            received += part
    except TimeoutError:
        raise Slow from None
    except OSError as error:
        raise Refused(os.strerror(error.errno or errno.EIO)) from None
    try:
        reply: Any = json.loads(received.partition(b"\0")[0])
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict):
        raise Refused("what it replies is no varlink")
    error = cast("dict[str, object]", reply).get("error")
    return None if error is None else str(error)[:TEXT_MAX]


def _bound(connected: socket.socket, until: float) -> None:
    left = until - time.monotonic()
    if left <= 0:
        raise Slow
    connected.settimeout(left)


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Answer a question, with the rights of the user that it names."""
    until = time.monotonic() + question["seconds"]
    try:
        become(question["uid"])
        with contextlib.closing(connect(question["path"], question["uid"], until)) as connected:
            error = call(connected, question["method"], until)
    except Refused as refused:
        return {"refused": str(refused)}
    except Slow:
        return {"slow": True}
    return {"done": True} if error is None else {"error": error}


if __name__ == "__main__":
    with open(QUESTION_FD, "rb", closefd=False) as file:
        asked = json.load(file)
    sys.stdout.write(json.dumps(answer(asked)))
    sys.stdout.flush()
