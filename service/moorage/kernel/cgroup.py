"""Control groups, read and never written (systemd's CGROUP_DELEGATION document, rules 1 and 2).

Everything here reads cgroupfs of the unified hierarchy (cgroups(7); Documentation/admin-guide/cgroup-v2.rst of the
kernel). Paths are those of the service manager, below the root of the hierarchy: "/machine.slice/machine-web.scope".
A read of one of these files is answered from memory and does not wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fnmatch
import os
import struct
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from moorage.kernel import process

ROOT = "/sys/fs/cgroup"

PROCS_SIZE = 1024 * 1024
"""Bytes read of ``cgroup.procs``: more than a hundred thousand processes."""

NUMBER_MAX = 32
"""Bytes of a number, with the space around it. The parser of numbers refuses very long ones with an exception."""

_CGROUP2_SUPER_MAGIC = 0x63677270  # statfs(2)


class Events(msgspec.Struct, frozen=True):
    """``cgroup.events``: whether any process is in the group or below it, and whether it is frozen."""

    populated: bool
    frozen: bool


class Usage(msgspec.Struct, frozen=True):
    """Counters of a group; None where the controller is not there. CPU in ns, memory and I/O in bytes."""

    cpu_usage_nsec: int | None = None
    cpu_user_nsec: int | None = None
    cpu_system_nsec: int | None = None
    cpu_throttled_nsec: int | None = None
    memory_current: int | None = None
    memory_peak: int | None = None
    memory_swap_current: int | None = None
    memory_swap_peak: int | None = None
    tasks_current: int | None = None
    tasks_peak: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    io_read_operations: int | None = None
    io_write_operations: int | None = None
    oom_kills: int | None = None
    managed_oom_kills: int | None = None


class Limits(msgspec.Struct, frozen=True):
    """How often the limits of a group were reached, and who was killed for it; None where that is not counted.

    Attributes:
        memory_high: times that its own ``memory.high`` had processes throttled.
        memory_max: times that its own ``memory.max`` was about to be exceeded.
        tasks_max: forks that its own ``pids.max`` refused; not counted by kernels before 6.11.
        oom: times that its own limit of memory left nothing but to kill.
        oom_below: the same of limits of groups below it.
        oom_kills: processes of it and of groups below that the kernel killed, whosever limit it was.
        oomd_kills: processes of it that systemd-oomd killed, by its note on the group.
        oomd_ooms: how often systemd-oomd set about that; noted before the first is killed.
    """

    memory_high: int | None = None
    memory_max: int | None = None
    tasks_max: int | None = None
    oom: int | None = None
    oom_below: int | None = None
    oom_kills: int | None = None
    oomd_kills: int | None = None
    oomd_ooms: int | None = None


class NotUnified(Exception):
    """The control group hierarchy of this system is not the unified one."""


def _read(control_group: str, attribute: str, size: int = 64 * 1024) -> bytes | None:
    try:
        descriptor = os.open(f"{ROOT}{control_group}/{attribute}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, size)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENODEV:  # the group is being removed (kernfs says so of open and of read)
            return None
        raise


def _pairs(text: bytes | None) -> dict[bytes, int]:
    words = (text or b"").split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


def _number(text: bytes | None) -> int | None:
    """Return a number of 63 bits. Not all texts are the kernel's: a group's owner may note anything on it."""
    if text is None or not text.strip().isdigit() or len(text) > NUMBER_MAX:
        return None
    return number if (number := int(text)) < 1 << 63 else None


def check_unified() -> None:
    """Check that the unified hierarchy is mounted where systemd mounts it.

    Raises:
        NotUnified: it is not: a legacy or hybrid system.
    """
    library = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(
        256
    )  # larger than struct statfs on any architecture; f_type comes first
    if library.statfs(ROOT.encode(), buffer) != 0:
        raise NotUnified(f"{ROOT}: {os.strerror(ctypes.get_errno())}")
    if struct.unpack_from("@l", buffer.raw)[0] != _CGROUP2_SUPER_MAGIC:
        raise NotUnified(f"{ROOT} is not the unified control group hierarchy (cgroup2)")


def events(control_group: str) -> Events | None:
    """Read ``cgroup.events``; None if there is no such group."""
    text = _read(control_group, "cgroup.events")
    if not text:
        return None
    return Events(b"populated 1" in text, b"frozen 1" in text)


def attribute(control_group: str, name: str) -> str | None:
    """Read one attribute of a group, without the newline; None if the group or its controller is not there."""
    text = _read(control_group, name)
    return None if text is None else text.decode("ascii", "replace").strip()


def is_recursive() -> bool:
    """Whether protections of memory are spread over what is below (mounted with ``memory_recursiveprot``)."""
    with open("/proc/self/mountinfo", "rb") as file:
        lines = [line.split() for line in file]
    options = [line[-1] for line in lines if line[4] == ROOT.encode() and line[-3] == b"cgroup2"]
    return bool(options) and b"memory_recursiveprot" in options[-1].split(b",")


def manager_root() -> str:
    """Return the group that holds all that our manager manages; empty for the root of the hierarchy."""
    # The manager is in a group of its own below the root of its tree (systemd.special(7), "init.scope").
    return process.control_group(os.getppid()).removesuffix("/init.scope").rstrip("/")


def find(pattern: str) -> list[str]:
    """Find the groups in the slices of our manager whose name matches a pattern of fnmatch(3), with processes in them.

    Reads the directories of all slices: for a thread.
    """
    found: list[str] = []
    slices = [manager_root()]
    while slices:
        group = slices.pop()
        with contextlib.suppress(FileNotFoundError), os.scandir(ROOT + group) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            slices += [f"{group}/{name}" for name in names if name.endswith(".slice")]
            found += [f"{group}/{name}" for name in names if fnmatch.fnmatchcase(name, pattern)]
    return [path for path in found if (state := events(path)) is not None and state.populated]


def identity(control_group: str) -> int | None:
    """Return the inode number of a group, which no later group has (``ControlGroupId``); None if it is gone."""
    try:
        return os.stat(ROOT + control_group).st_ino
    except FileNotFoundError:
        return None


def owner(control_group: str) -> int | None:
    """Return the uid that a group was given to, that of root where it was to nobody; None if it is gone."""
    try:
        return os.stat(ROOT + control_group).st_uid
    except FileNotFoundError:
        return None


def processes(control_group: str, most: int) -> list[int] | None:
    """Read the PIDs of all processes in a group and below it; None where they cannot be told.

    That is so for more than *most* of them, and for a group that is no domain ("threaded", cgroups(7)). The processes
    in threaded groups below, as libvirt makes them for each virtual CPU, are told by the domain that they are in.
    """
    found: list[int] = []
    groups = [control_group]
    while groups:
        group = groups.pop()
        try:
            text = _read(group, "cgroup.procs", PROCS_SIZE)
            with os.scandir(ROOT + group) as entries:
                groups += [
                    f"{group}/{entry.name}" for entry in entries if entry.is_dir(follow_symlinks=False)
                ]
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            if group == control_group:
                return None
            continue
        found += [int(pid) for pid in (text or b"").split()]
        if len(found) > most or len(groups) > most:
            return None
    return found


def controllers(control_group: str) -> frozenset[str]:
    """Return the names of the controllers that a group has; those below the same group have the same."""
    return frozenset((attribute(control_group, "cgroup.controllers") or "").split())


USAGE = frozenset({
    "cpu.stat", "io.stat", "memory.current", "memory.peak", "memory.swap.current", "memory.swap.peak", "memory.events",
    "pids.current", "pids.peak", "user.oomd_kill",
})  # fmt: skip
"""Attributes that counters are read from."""


_CPU = {
    "cpu_usage_nsec": b"usage_usec",
    "cpu_user_nsec": b"user_usec",
    "cpu_system_nsec": b"system_usec",
    "cpu_throttled_nsec": b"throttled_usec",
}
_IO = {
    "io_read_bytes": b"rbytes",
    "io_write_bytes": b"wbytes",
    "io_read_operations": b"rios",
    "io_write_operations": b"wios",
}
_NUMBERS = {
    "memory.current": "memory_current",
    "memory.peak": "memory_peak",
    "memory.swap.current": "memory_swap_current",
    "memory.swap.peak": "memory_swap_peak",
    "pids.current": "tasks_current",
    "pids.peak": "tasks_peak",
}


def usage(control_group: str, attributes: Collection[str] = USAGE) -> Usage:
    """Read the counters of a group; all None if it is gone.

    Args:
        control_group: path of it.
        attributes: those to read: one that is not there takes half as long as one that is.
    """
    found: dict[str, int | None] = {}
    if "cpu.stat" in attributes:
        cpu = _pairs(_read(control_group, "cpu.stat"))
        found = {field: cpu[key] * 1000 for field, key in _CPU.items() if key in cpu}
    for name, field in _NUMBERS.items():
        if name in attributes:
            found[field] = _number(_read(control_group, name))
    if "io.stat" in attributes and (io := _read(control_group, "io.stat")) is not None:
        totals = _sums(io)
        found |= {field: totals.get(key, 0) for field, key in _IO.items()}
    if "memory.events" in attributes:
        found["oom_kills"] = _pairs(_read(control_group, "memory.events")).get(b"oom_kill")
    if "user.oomd_kill" in attributes:
        found["managed_oom_kills"] = _noted(control_group, "user.oomd_kill")
    return Usage(**found)


def _sums(io: bytes) -> dict[bytes, int]:
    """Return the counters of ``io.stat``, over all devices."""
    totals: dict[bytes, int] = {}
    for line in io.splitlines():
        for pair in line.split()[1:]:
            key, _, value = pair.partition(b"=")
            if value.isdigit():
                totals[key] = totals.get(key, 0) + int(value)
    return totals


def limits(control_group: str) -> Limits:
    """Read how often the limits of a group were reached; all None if it is gone."""
    memory = _pairs(_read(control_group, "memory.events"))
    # What was counted nowhere below was not counted here.
    own = _pairs(_read(control_group, "memory.events.local")) if any(memory.values()) else memory
    oom = own.get(b"oom")
    return Limits(
        memory_high=own.get(b"high"),
        memory_max=own.get(b"max"),
        tasks_max=_pairs(_read(control_group, "pids.events.local")).get(b"max"),
        oom=oom,
        oom_below=None if oom is None else max(0, memory.get(b"oom", 0) - oom),
        oom_kills=memory.get(b"oom_kill"),
        oomd_kills=_noted(control_group, "user.oomd_kill"),
        oomd_ooms=_noted(control_group, "user.oomd_ooms"),
    )


def ooms(control_group: str) -> int | None:
    """Read how often a group's own limit of memory left nothing but to kill; None where that is not counted."""
    return _pairs(_read(control_group, "memory.events.local")).get(b"oom")


def ooms_below(control_group: str, most: int) -> dict[str, int] | None:
    """Read :func:`ooms` of those groups below another one that ever came to that, by their paths.

    Returns:
        None where more than *most* groups would have to be read: who lives in a group may make any number of them.
    """
    found: dict[str, int] = {}
    groups, count = [control_group], 0
    while groups:
        group = groups.pop()
        with contextlib.suppress(FileNotFoundError), os.scandir(ROOT + group) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    continue
                if (count := count + 1) > most:
                    return None
                path = f"{group}/{entry.name}"
                if _pairs(_read(path, "memory.events")).get(b"oom"):  # in it, or further below
                    groups.append(path)
                    if own := ooms(path):
                        found[path] = own
    return found


def _noted(control_group: str, name: str) -> int | None:
    """Return a number that systemd-oomd has noted on a group, 0 if it has not; None where there is no such group."""
    try:
        return _number(os.getxattr(ROOT + control_group, name))
    except OSError as error:
        if error.errno == errno.ENODATA:
            return 0
        if error.errno in {errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP}:
            return None
        raise


class Watch(Protocol):
    """Watched groups.

    What a group is watched for depends on whose method has returned the watch.
    """

    def __len__(self) -> int: ...

    def add(self, control_group: str) -> bool:
        """Watch a group; nothing happens if it is watched already.

        Returns:
            False if there is no such group.

        Raises:
            OSError: no watch is left (fs.inotify.max_user_watches).
        """
        ...

    def remove(self, control_group: str) -> None:
        """Stop watching a group; nothing happens if it is not watched."""
        ...

    def close(self) -> None:
        """Stop watching everything."""
        ...


class Hierarchy(Protocol):
    """The unified hierarchy of control groups, as the core sees it; the errors are those of cgroupfs."""

    def events(self, control_group: str) -> Events | None:
        """Read ``cgroup.events``; None if there is no such group.

        Raises:
            OSError: no file descriptor is left (EMFILE, ENFILE), or no memory.
        """
        ...

    def attribute(self, control_group: str, name: str) -> str | None:
        """Read one attribute of a group, without the newline; None if the group or its controller is not there.

        Raises:
            OSError: as :meth:`events` says.
        """
        ...

    def identity(self, control_group: str) -> int | None:
        """Return the inode number of a group, which no later group has; None if it is gone."""
        ...

    def controllers(self, control_group: str) -> frozenset[str]:
        """Return the names of the controllers that a group has; those below the same group have the same.

        Raises:
            OSError: as :meth:`events` says.
        """
        ...

    def usage(self, control_group: str, attributes: Collection[str] = ...) -> Usage:
        """Read the counters of a group; all None if it is gone.

        Args:
            control_group: path of it.
            attributes: those to read.

        Raises:
            OSError: as :meth:`events` says.
        """
        ...

    def limits(self, control_group: str) -> Limits:
        """Read how often the limits of a group were reached; all None if it is gone.

        Raises:
            OSError: as :meth:`events` says.
        """
        ...

    def ooms(self, control_group: str) -> int | None:
        """Read how often a group's own limit of memory left nothing but to kill; None where that is not counted.

        Raises:
            OSError: as :meth:`events` says.
        """
        ...

    def ooms_below(self, control_group: str, most: int) -> dict[str, int] | None:
        """Read :meth:`ooms` of the groups below another one that ever came to that, by their paths.

        Args:
            control_group: path of that one.
            most: with more groups to be read the answer is None.

        Raises:
            OSError: as :meth:`events` says.
        """
        ...

    def processes(self, control_group: str, most: int) -> list[int] | None:
        """Read the PIDs of all processes in a group and below it; None where they cannot be told.

        Args:
            control_group: path of it.
            most: with more of them the answer is None.

        Raises:
            OSError: as :meth:`events` says.
        """
        ...

    async def find(self, pattern: str) -> list[str]:
        """Find the groups in the slices of our manager whose name matches, with processes in them (fnmatch(3))."""
        ...

    def watch(self, changed: Callable[[str], None], overflow: Callable[[], None]) -> Watch:
        """Start watching.

        Args:
            changed: called with the path of a group whose ``cgroup.events`` may have changed.
            overflow: called when the kernel dropped events (fs.inotify.max_queued_events).

        Raises:
            OSError: no inotify instance is left (fs.inotify.max_user_instances).
        """
        ...

    def watch_limits(self, reached: Callable[[str], None], overflow: Callable[[], None]) -> Watch:
        """Start watching the limits of groups: each added group is reported once, and is then to be added again.

        So whoever lives in a group cannot have us woken more often than we want to be.

        Args:
            reached: called with the path of a group of which :meth:`limits` may have changed.
            overflow: called when the kernel dropped events (fs.inotify.max_queued_events).

        Raises:
            OSError: no inotify instance is left (fs.inotify.max_user_instances).
        """
        ...
