"""Processes that cannot be taken for one another.

A PID is a number that the kernel hands out again; a pidfd is the process. Where no pidfd can be kept (a record on
disk, a JSON message), the inode number of the pidfd together with the boot ID names the process for good: since Linux
6.9 that number is unique for the whole uptime (``pidfs``, Documentation/filesystems of the kernel; systemd writes the
same triplet in ``json_variant_new_pidref()``).

All functions here read from the kernel and never wait.
"""

from __future__ import annotations

import fcntl
import functools
import os
import select
import struct
from pathlib import Path

import msgspec

_PF_KTHREAD = 0x00200000  # include/linux/sched.h
_PIDFD_THREAD = os.O_EXCL  # include/uapi/linux/pidfd.h, Linux 6.9
_GET_INFO = 0xC040FF0B  # PIDFD_GET_INFO of include/uapi/linux/pidfd.h: _IOWR(0xFF, 11, struct pidfd_info)
_INFO = struct.Struct("QQ11Ii")  # its first version of 64 bytes: mask, cgroupid, eleven IDs, exit_code
_INFO_EXIT = 1 << 3  # PIDFD_INFO_EXIT, Linux 6.15
PID_MAX = 2**22
"""PID_MAX_LIMIT of the kernel's include/linux/threads.h: no PID is larger on any 64 bit machine."""


_REMOVED = b" (deleted)"  # cgroup_is_dead() in kernel/cgroup/cgroup.c

_PROC_FILE_MAX = 64 * 1024
"""Bytes; the largest of them is /proc/PID/cgroup with a path of PATH_MAX in each hierarchy of a legacy system."""


class ProcessGone(Exception):
    """The process does not exist (any more), or its PID belongs to another one by now.

    Attributes:
        pid: the PID that was asked for; None where only a pidfd was given.
    """

    def __init__(self, pid: int | None) -> None:
        super().__init__(f"process {pid} is gone" if pid is not None else "the process is gone")
        self.pid = pid


class NotAProcess(Exception):
    """What was given can never name a process: a bad PID, a thread, a kernel thread, an fd that is no pidfd."""


class ProcessId(msgspec.Struct, frozen=True):
    """A process, named so that a later one with the same PID cannot be taken for it.

    Attributes:
        pid: the PID in the namespace of this service.
        pidfd_id: inode number of its pidfd; None where the kernel has no unique ones (before 6.9).
        boot_id: 32 hexadecimal digits; None together with pidfd_id.
    """

    pid: int
    pidfd_id: int | None
    boot_id: str | None


class Exit(msgspec.Struct, frozen=True):
    """How a process ended (wait(2)): exactly one of the two is not None.

    Attributes:
        status: what it gave to exit(3).
        signal: number of the signal that ended it.
    """

    status: int | None = None
    signal: int | None = None


@functools.cache
def boot_id() -> str:
    """Return the ID of this boot, 32 hexadecimal digits (random(4), ``/proc/sys/kernel/random/boot_id``)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", "")


@functools.cache
def _pidfd_inodes_are_unique() -> bool:
    # Before pidfs every pidfd, like every other anonymous inode, had one and the same inode.
    pidfd, other = os.pidfd_open(os.getpid()), select.epoll()
    try:
        ours, anonymous = os.fstat(pidfd), os.fstat(other.fileno())
        return (ours.st_dev, ours.st_ino) != (anonymous.st_dev, anonymous.st_ino)
    finally:
        os.close(pidfd)
        other.close()


def tells_of_reaping() -> bool:
    """Return whether a pidfd says when its process was reaped, by POLLHUP (Linux 6.9, as its unique inode number)."""
    return _pidfd_inodes_are_unique()


def proc_file(path: str) -> bytes:
    """Read a file of /proc, of which a page is enough.

    Raises:
        OSError: it cannot be read.
    """
    # Pathlib and a buffered file cost as much again as the kernel's answer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _PROC_FILE_MAX)
    finally:
        os.close(descriptor)


def _lines(path: str) -> list[bytes]:
    """Read a file of /proc line by line: only a newline ends one.

    The kernel escapes newlines in what others choose, such as names of processes and of control groups, but not what
    ``bytes.splitlines()`` takes for the end of a line besides: a carriage return.

    Raises:
        OSError: it cannot be read.
    """
    return proc_file(path).split(b"\n")


def _is_kernel_thread(pid: int) -> bool:
    # Threads of the kernel have no memory (proc_pid_statm(5)), but who has ended has none either.
    if not proc_file(f"/proc/{pid}/statm").startswith(b"0 "):
        return False
    # The second field of proc_pid_stat(5), the command, may hold anything: what counts starts after its last ')'.
    text = proc_file(f"/proc/{pid}/stat")
    return bool(int(text[text.rindex(b")") + 2 :].split()[6]) & _PF_KTHREAD)


def _thread_group(pid: int) -> int:
    for line in _lines(f"/proc/{pid}/status"):
        if line.startswith(b"Tgid:"):
            return int(line[5:])
    raise ProcessGone(pid)


def _pid_and_flags(pidfd: int) -> tuple[int, int]:
    flags = 0
    for line in _lines(f"/proc/self/fdinfo/{pidfd}"):
        if line.startswith(b"flags:"):
            flags = int(line[6:], 8)
        elif line.startswith(b"Pid:"):
            pid = int(line[4:])
            if pid < 0:
                raise ProcessGone(None)
            if pid == 0:
                raise NotAProcess("the process is in another PID namespace")
            return pid, flags
    raise NotAProcess("the file descriptor is no pidfd")


def pid_of(pidfd: int) -> int:
    """Return the PID that a pidfd stands for (proc_pid_fdinfo(5)).

    Raises:
        ProcessGone: it has been reaped.
        NotAProcess: the fd is no pidfd, or its process is not visible in this PID namespace.
    """
    return _pid_and_flags(pidfd)[0]


def has_exited(pidfd: int) -> bool:
    """Return whether the process of a pidfd has ended; true for a zombie too (pidfd_open(2))."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def exit_of(pidfd: int) -> Exit | None:
    """Return how the process of a pidfd ended, its parent's or not (PIDFD_GET_INFO).

    Returns:
        None while it has not been reaped by its parent, and on kernels before 6.15, which tell only parents.
    """
    buffer = bytearray(_INFO.pack(_INFO_EXIT, *(0,) * 13))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, buffer)
    except OSError:  # ENOTTY, EINVAL: an older kernel; ESRCH: one that forgets whoever has been reaped
        return None
    mask, *_, code = _INFO.unpack(buffer)
    if not mask & _INFO_EXIT:
        return None
    number = code & 0x7F  # WTERMSIG of wait(2)
    return Exit(signal=number) if number else Exit(status=code >> 8 & 0xFF)


def process_id(pidfd: int) -> ProcessId:
    """Name the process of a pidfd.

    Raises:
        ProcessGone: it has ended.
        NotAProcess: no pidfd, or that of a thread or a kernel thread.
    """
    pid, flags = _pid_and_flags(pidfd)
    try:
        # Any other pidfd is that of a process (pidfd_open(2)).
        if flags & _PIDFD_THREAD and _thread_group(pid) != pid:
            raise NotAProcess(f"{pid} is a thread of another process")
        return _named(pid, pidfd)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None


def _named(pid: int, pidfd: int) -> ProcessId:
    """Name a process by both."""
    if _is_kernel_thread(pid):
        raise NotAProcess(f"{pid} is a thread of the kernel")
    # Only now is it sure that what was read above was read of this process, not of its successor.
    if has_exited(pidfd):
        raise ProcessGone(pid)
    if not _pidfd_inodes_are_unique():
        return ProcessId(pid, None, None)
    return ProcessId(pid, os.fstat(pidfd).st_ino, boot_id())


def open_and_name(pid: int, pidfd_id: int | None = None, boot: str | None = None) -> tuple[int, ProcessId]:
    """Open a process by its number, and check that it is the one that was meant.

    Args:
        pid: the PID.
        pidfd_id: inode number that its pidfd must have.
        boot: ID of the boot that the PID is from, 32 hexadecimal digits or a UUID.

    Returns:
        A pidfd, close-on-exec, owned by the caller, and what names the process for good.

    Raises:
        ProcessGone: there is no such process; it is a zombie; or the number belongs to another one now.
        NotAProcess: the number can be no PID, or it is a thread's or a kernel thread's.
        OSError: no file descriptor is left (EMFILE, ENFILE).
    """
    if not 0 < pid <= PID_MAX:
        raise NotAProcess(f"{pid} is no PID")
    if boot is not None and boot.replace("-", "").lower() != boot_id():
        raise ProcessGone(pid)
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise ProcessGone(pid) from None
    except OSError as error:
        # EINVAL, since 6.18 ENOENT: the number of a thread that does not lead its process.
        if error.errno in {22, 2}:
            raise NotAProcess(f"{pid} is a thread of another process") from None
        raise
    try:
        found = _named(pid, pidfd)
        if pidfd_id is not None and found.pidfd_id is not None and pidfd_id != found.pidfd_id:
            raise ProcessGone(pid)
    except (FileNotFoundError, ProcessLookupError):
        os.close(pidfd)
        raise ProcessGone(pid) from None
    except BaseException:
        os.close(pidfd)
        raise
    return pidfd, found


def open_process(pid: int, pidfd_id: int | None = None, boot: str | None = None) -> int:
    """Open a process as :func:`open_and_name` does, with the same errors, and return its pidfd alone."""
    return open_and_name(pid, pidfd_id, boot)[0]


def identify(pid: int, pidfd_id: int | None = None, boot: str | None = None) -> ProcessId:
    """Name a process by its number, checked as :func:`open_and_name` does, and with the same errors."""
    pidfd, found = open_and_name(pid, pidfd_id, boot)
    os.close(pidfd)
    return found


def is_alive(found: ProcessId) -> bool:
    """Whether a process that was named before has not ended: two calls of the kernel, where naming it takes six.

    Args:
        found: with a pidfd_id; without one its number alone would be no proof.

    Raises:
        OSError: no file descriptor is left (EMFILE, ENFILE).
    """
    try:
        pidfd = os.pidfd_open(found.pid)
    except ProcessLookupError:
        return False
    except OSError as error:
        if error.errno in {22, 2}:  # a thread has the number now
            return False
        raise
    try:
        return os.fstat(pidfd).st_ino == found.pidfd_id and not has_exited(pidfd)
    finally:
        os.close(pidfd)


def control_group(pid: int) -> str:
    """Return the path of a process in the unified hierarchy, below its root (cgroups(7), ``/proc/PID/cgroup``).

    Raises:
        ProcessGone: it does not exist.
        NotAProcess: it is in no unified hierarchy.
    """
    try:
        text = proc_file(f"/proc/{pid}/cgroup")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None
    # Each hierarchy has a line, and the kernel escapes newlines in the names of groups.
    _, found, rest = (b"\n" + text).partition(b"\n0::")
    if found:
        # The kernel marks a group that was removed under a process, which is then a zombie. With any other process
        # it is a part of the name.
        path = rest.partition(b"\n")[0]
        if path.endswith(_REMOVED) and _is_zombie(pid):
            path = path.removesuffix(_REMOVED)
        return os.fsdecode(path)
    raise NotAProcess(f"{pid} is in no control group of the unified hierarchy")


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and is not reaped yet.

    Raises:
        ProcessGone: it does not exist.
    """
    try:
        # After the last ')', as what comes before it may hold anything (proc_pid_stat(5)).
        return proc_file(f"/proc/{pid}/stat").rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None


def numbers_like_us(pid: int) -> bool:
    """Whether a PID means the same to another process as to us: it is in our PID namespace (pid_namespaces(7)).

    Raises:
        ProcessGone: it does not exist.
    """
    try:
        text = proc_file(f"/proc/{pid}/status")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None
    # The kernel escapes newlines in the name of a process, which comes first.
    _, found, rest = text.partition(b"\nNSpid:")
    # One number for each namespace, from that of /proc downwards; a kernel without PID namespaces has no such line.
    return not found or len(rest.partition(b"\n")[0].split()) == 1


def parent(pid: int) -> int:
    """Return the PID of a process's parent, 0 where it has none in this PID namespace.

    Raises:
        ProcessGone: the process does not exist.
    """
    try:
        text = proc_file(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None
    return int(text[text.rindex(b")") + 2 :].split()[1])


def owner(pid: int) -> int:
    """Return the effective uid of a process.

    Raises:
        ProcessGone: it does not exist.
    """
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None


def uids(pid: int) -> frozenset[int]:
    """Return all uids of a process: real, effective, saved, of the file system (proc_pid_status(5)).

    Raises:
        ProcessGone: it does not exist.
    """
    try:
        lines = _lines(f"/proc/{pid}/status")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None
    for line in lines:
        if line.startswith(b"Uid:"):
            return frozenset(map(int, line[4:].split()))
    raise ProcessGone(pid)


def shares_our_ids(pid: int) -> bool:
    """Whether the uids of a process mean what ours do: it is in our user namespace, or in one mapped like it.

    Raises:
        ProcessGone: it does not exist.
    """
    try:
        return proc_file(f"/proc/{pid}/uid_map") == proc_file("/proc/self/uid_map")
    except FileNotFoundError:
        if os.path.exists("/proc/self/uid_map"):
            raise ProcessGone(pid) from None
        return True  # a kernel without user namespaces
    except ProcessLookupError:
        raise ProcessGone(pid) from None
