"""Copies files and directories between a container and the host.

Done by a child of `moorage.probes.fork_server`, which finds one JSON object at its socket, the question:

    {"from": BOOL, "host": PATH, "container": PATH, "replace": BOOL, "shift": N}

and answers with an errno as text, 0 if all is well. Paths are absolute, without "." and "..".

It stays on the host, and reaches into the container by the root directory of its leader: every link that it meets on
the way is one below that root (openat2(2), RESOLVE_IN_ROOT), and what it copies is never looked up by a path again.
What is copied, and into what, is what systemd 262 copies (``copy_tree_at()`` with COPY_MERGE and COPY_HARDLINKS).

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
from collections.abc import Callable
from typing import Final

from moorage.probes.handing import ANSWER_FD, LEADER_FD, receive_question
from moorage.probes.namespaces import open_root

DEPTH_MAX: Final = 1024
"""Directories in each other (half of ``COPY_DEPTH_MAX`` of systemd, which counts each twice)."""

LINKS_MAX: Final = 16384
"""Files with several names whose further names are made as such; each is a file descriptor. More are copied again."""

CHUNK: Final = 1 << 27
"""Bytes that the kernel copies at a time."""

_SYS_OPENAT2: Final = 437
_OPEN_HOW: Final = struct.Struct("=QQQ")
_RESOLVE_IN_ROOT: Final = 0x10
_LEAF: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | _LEAF
_AT_ONCE: Final = frozenset({errno.ENOSPC, errno.EINTR})
"""Errors that end it; after others the rest of a directory is copied all the same."""

_NOT_BY_RANGE: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM})
"""Errors of copy_file_range(2) that say that these two files cannot be copied by it."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


def find_in_root(root: int, path: str) -> int:
    """Open a directory below a root directory, as a process sees it that has this for its own.

    Raises:
        OSError: there is none.
    """
    how = _OPEN_HOW.pack(os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    number = _libc.syscall(_SYS_OPENAT2, root, os.fsencode(path), how, len(how))
    if number < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return number


class Copier:
    """Copies one tree.

    Args:
        owner: uid and gid of all that is made; None for that of what is copied.
        replace: of what is there, all but directories is replaced; without it, that is an error on top, and left as
            it is below a directory.
    """

    def __init__(self, owner: int | None, *, replace: bool) -> None:
        self._owner = owner
        self._replace = replace
        self._made: dict[tuple[int, int], tuple[int, str]] = {}

    def copy(self, source: int, from_: str, target: int, to: str, depth: int = DEPTH_MAX) -> None:
        """Copy what has a name in one directory to a name in another one.

        Raises:
            OSError: EEXIST if something is there already, ENAMETOOLONG if it is too deep.
        """
        found = os.stat(from_, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            self._copy_directory(source, from_, found, target, to, depth)
            return
        try:
            self._copy_leaf(source, from_, found, target, to)
        except FileExistsError as exc:
            if not self._replace:
                raise
            try:
                os.unlink(to, dir_fd=target)
            except OSError:
                raise exc from None
            self._copy_leaf(source, from_, found, target, to)

    def _copy_directory(
        self, source: int, from_: str, found: os.stat_result, target: int, to: str, depth: int
    ) -> None:
        if depth == 0:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        first: OSError | None = None
        with contextlib.ExitStack() as opened:
            ours = os.open(from_, _DIRECTORY, dir_fd=source)
            opened.callback(os.close, ours)
            # Read before something is made: a directory may be copied into itself.
            names = sorted(os.listdir(ours))
            made = True
            try:
                os.mkdir(to, 0o700, dir_fd=target)
            except FileExistsError:
                made = False
            theirs = os.open(to, _DIRECTORY, dir_fd=target)
            opened.callback(os.close, theirs)
            for name in names:
                try:
                    self.copy(ours, name, theirs, name, depth - 1)
                except FileExistsError:
                    continue
                except OSError as exc:
                    if exc.errno in _AT_ONCE:
                        raise
                    first = first or exc
            if made:
                self._dress(theirs, ours, found)
        if first is not None:
            raise first

    def _copy_leaf(self, source: int, from_: str, found: os.stat_result, target: int, to: str) -> None:
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(from_, dir_fd=source), to, dir_fd=target)
            self._dress_by_name(target, to, found)
            return
        if self._linked(found, target, to):
            return
        if kind == stat.S_IFREG:
            self._copy_regular(source, from_, target, to)
        else:
            os.mknod(to, kind | stat.S_IMODE(found.st_mode), found.st_rdev, dir_fd=target)
            self._dress_by_name(target, to, found)
        if found.st_nlink > 1 and len(self._made) < LINKS_MAX:
            self._made[found.st_dev, found.st_ino] = (os.dup(target), to)

    def _linked(self, found: os.stat_result, target: int, to: str) -> bool:
        made = self._made.get((found.st_dev, found.st_ino)) if found.st_nlink > 1 else None
        if made is None:
            return False
        try:
            os.link(made[1], to, src_dir_fd=made[0], dst_dir_fd=target, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:  # too many links, or another file system: a copy of its own
            return False
        return True

    def _copy_regular(self, source: int, from_: str, target: int, to: str) -> None:
        # Whatever has the name by now: opening anything but a regular file may have effects, or never return.
        path = os.open(from_, os.O_PATH | _LEAF, dir_fd=source)
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, path)
            if not stat.S_ISREG(os.fstat(path).st_mode):
                raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))
            ours = os.open(f"/proc/self/fd/{path}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
            opened.callback(os.close, ours)
            found = os.fstat(ours)
            theirs = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _LEAF, 0o600, dir_fd=target)
            opened.callback(os.close, theirs)
            try:
                _copy_bytes(ours, theirs)
            except OSError:
                os.unlink(to, dir_fd=target)
                raise
            self._dress(theirs, ours, found)

    def _dress(self, theirs: int, ours: int, found: os.stat_result) -> None:
        """Give a file or a directory the owner, the mode, the attributes and the times of another one."""
        os.fchown(theirs, *self._owners(found))
        os.fchmod(theirs, stat.S_IMODE(found.st_mode))
        _quietly(lambda: _copy_attributes(ours, theirs))
        _quietly(lambda: os.utime(theirs, ns=(found.st_atime_ns, found.st_mtime_ns)))

    def _dress_by_name(self, target: int, to: str, found: os.stat_result) -> None:
        os.chown(to, *self._owners(found), dir_fd=target, follow_symlinks=False)
        times = (found.st_atime_ns, found.st_mtime_ns)
        if not stat.S_ISLNK(found.st_mode):
            path = os.open(to, os.O_PATH | _LEAF, dir_fd=target)
            try:
                if not stat.S_ISLNK(os.fstat(path).st_mode):
                    os.chmod(f"/proc/self/fd/{path}", stat.S_IMODE(found.st_mode))
            finally:
                os.close(path)
        _quietly(lambda: os.utime(to, ns=times, dir_fd=target, follow_symlinks=False))

    def _owners(self, found: os.stat_result) -> tuple[int, int]:
        return (found.st_uid, found.st_gid) if self._owner is None else (self._owner, self._owner)


def _copy_bytes(ours: int, theirs: int) -> None:
    try:
        while os.copy_file_range(ours, theirs, CHUNK):
            pass
    except OSError as exc:
        if exc.errno not in _NOT_BY_RANGE:
            raise
    # The rest, and files of which the kernel does not know the size.
    while os.sendfile(theirs, ours, None, CHUNK):
        pass


def _copy_attributes(ours: int, theirs: int) -> None:
    # Those of everybody, as in systemd; what the host's programs are trusted for by others is none of a copy's.
    for name in os.listxattr(ours):
        if name.startswith("user."):
            os.setxattr(theirs, name, os.getxattr(ours, name))


def _quietly(function: Callable[[], None]) -> None:
    """Do what is not worth a failure: times, and attributes that a file system does not have."""
    with contextlib.suppress(OSError):
        function()


def copy(leader: int, *, from_container: bool, host: str, container: str, replace: bool, shift: int) -> None:
    """Copy between a container and the host; the parameters are those of a question.

    Raises:
        OSError: it cannot be done, or not all of it.
    """
    above, _, name = host.rstrip("/").rpartition("/")
    above_inside, _, name_inside = container.rstrip("/").rpartition("/")
    if not name or not name_inside:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    outside = os.open(above or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    inside = find_in_root(open_root(leader, os.O_PATH), above_inside or "/")
    if from_container:
        Copier(0 if shift else None, replace=replace).copy(inside, name_inside, outside, name)
    else:
        Copier(shift or None, replace=replace).copy(outside, name, inside, name_inside)


def main() -> None:
    """Copy, and say how that went."""
    answer = socket.socket(fileno=ANSWER_FD)
    question = json.loads(receive_question(answer))
    number = 0
    os.umask(0)
    try:
        copy(
            LEADER_FD,
            from_container=question["from"],
            host=question["host"],
            container=question["container"],
            replace=question["replace"],
            shift=question["shift"],
        )
    except OSError as exc:
        number = exc.errno or errno.EIO
    answer.send(str(number).encode())
