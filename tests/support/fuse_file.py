"""A file of a FUSE server that decides what comes of closing it.

The whole file system is one file: the root of a FUSE may be a regular file, mounted on another (fuse(4), and the
structures of include/uapi/linux/fuse.h).
"""

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
from pathlib import Path

_REQUEST = struct.Struct("IIQQIIII")
_REPLY = struct.Struct("IiQ")
_REQUEST_MAX = 1 << 17
_LIBC = ctypes.CDLL(None, use_errno=True)
_MNT_FORCE, _MNT_DETACH = 1, 2

_FORGET, _GETATTR, _OPEN, _RELEASE, _FLUSH, _INIT, _INTERRUPT, _BATCH_FORGET = 2, 3, 14, 18, 25, 26, 36, 42
_SILENT = {_FORGET, _INTERRUPT, _BATCH_FORGET}

_INIT_REPLY = struct.pack("IIIIHHIIHHI7I", 7, 31, 0, 0, 16, 12, 4096, 1, 1, 0, 0, *[0] * 7)
_ATTRIBUTES = struct.pack(
    "QII6Q10I", 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, stat.S_IFREG | 0o666, 1, 0, 0, 0, 4096, 0
)
_REPLIES = {_INIT: _INIT_REPLY, _GETATTR: _ATTRIBUTES, _OPEN: bytes(16)}


def device() -> Path:
    """Return the device of FUSE servers, which every user of a usual host may open; a container has none at first."""
    path = Path("/dev/fuse")
    if not path.exists():
        os.mknod(path, stat.S_IFCHR, os.makedev(10, 229))  # devices.txt of the kernel
        path.chmod(0o666)
    return path


class FuseFile:
    """The file, and its server, a thread of this process.

    Args:
        path: where it is mounted; made here.
        victim: PID of the process whose close(2) does not go well.
        error: what it gets, a number of errno(3); 0 leaves it waiting until the end.

    Attributes:
        flushed: processes that have flushed the file: that is what close(2) does.
    """

    def __init__(self, path: Path, victim: int, error: int) -> None:
        self.flushed: set[int] = set()
        self._path, self._victim, self._error = path, victim, error
        self._device = os.open(device(), os.O_RDWR | os.O_CLOEXEC)
        path.touch()
        options = f"fd={self._device},rootmode={stat.S_IFREG:o},user_id=0,group_id=0,allow_other"
        if _LIBC.mount(b"moorage", bytes(path), b"fuse.moorage", 0, options.encode()) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    def open(self) -> int:
        """Open the file."""
        return os.open(self._path, os.O_RDWR | os.O_CLOEXEC)

    def end(self) -> None:
        """Answer whoever waits, with an error, and unmount."""
        _LIBC.umount2(bytes(self._path), _MNT_FORCE | _MNT_DETACH)  # forced: requests are aborted
        self._server.join()
        os.close(self._device)
        self._path.unlink()

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, _REQUEST_MAX)
            except OSError as error:
                if error.errno in {errno.ENOENT, errno.EINTR, errno.EAGAIN}:
                    continue  # a request that was interrupted
                return  # ENODEV: unmounted
            _length, operation, unique, _node, _uid, _gid, pid, _ = _REQUEST.unpack_from(request)
            if operation in _SILENT:
                continue
            body, error_number = _REPLIES.get(operation, b""), 0
            if operation == _FLUSH:
                self.flushed.add(pid)
                if pid == self._victim:
                    if not self._error:
                        continue
                    error_number = self._error
            elif operation not in {*_REPLIES, _RELEASE}:
                error_number = errno.ENOSYS
            if error_number:
                body = b""
            with contextlib.suppress(OSError):
                os.write(self._device, _REPLY.pack(_REPLY.size + len(body), -error_number, unique) + body)
