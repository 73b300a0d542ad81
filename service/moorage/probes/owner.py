"""Whose user namespaces a process is in.

Run as a program, by a unit that has the right to look (`moorage.pid1.oneshot`). The pidfd of the process is its file
descriptor 3 (sd_listen_fds(3)), its answer one JSON array on standard output: the uids that own the namespaces, from
the innermost up to, and without, the one that the program itself is in. This is the walk of systemd's
``process_is_owned_by_uid()``.

Only the standard library, and nothing of this package: it is run by its path, without site-packages.
"""

import array
import errno
import fcntl
import json
import os
import select
import sys

LEVELS_MAX = 16
"""Namespaces that are looked at; systemd gives up there as well, the kernel allows 32."""

PROCESS_FD = 3
"""Where the pidfd is: the first of the descriptors that are passed (``SD_LISTEN_FDS_START``)."""

# Of linux/nsfs.h: _IO(0xb7, 0x1) and _IO(0xb7, 0x4).
_NS_GET_USERNS = 0xB701
_NS_GET_OWNER_UID = 0xB704


def owners(pidfd: int) -> list[int]:
    """Return who owns the user namespaces that a process is in.

    Raises:
        OSError: ESRCH if it is gone, ELOOP if they are more than LEVELS_MAX, EACCES if we may not look.
    """
    pid = _pid_of(pidfd)
    ours = os.stat("/proc/self/ns/user")
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if poller.poll(0):
        # What was opened may be that of another process that has the number now.
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    found: list[int] = []
    while not os.path.samestat(os.fstat(namespace), ours):
        if len(found) == LEVELS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        uid = array.array("I", [0])
        fcntl.ioctl(namespace, _NS_GET_OWNER_UID, uid)
        found.append(uid[0])
        try:
            above = fcntl.ioctl(namespace, _NS_GET_USERNS)
        except PermissionError:
            break  # it is no descendant of ours
        os.close(namespace)
        namespace = above
    os.close(namespace)
    return found


def _pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
        for line in file:
            if line.startswith(b"Pid:") and int(line[4:]) > 0:
                return int(line[4:])
    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(owners(PROCESS_FD)))
    sys.stdout.flush()
