"""What paths lead to, and which BPF programs are attached to control groups.

Run as a program, by a unit that has the right to look (`moorage.pid1.oneshot`): the service itself sees neither the
host's devices nor everybody's files. Its file descriptor 3 (sd_listen_fds(3)) is a file with the question, its answer
one JSON object on standard output:

- question: ``{"paths": [path, …], "groups": [path of a directory, …], "types": [attach type of bpf(2), …]}``
- answer: ``{"devices": {path: [kind, whole disk or null] or null}, "programs": {group: {type: number}}}``

A path that cannot be looked at is left out, one that does not exist is null. A group is left out if its programs may
not be looked at, or if it has gone.

Only the standard library, and nothing of this package: it is run by its path, without site-packages.
"""

import ctypes
import json
import os
import platform
import stat
import struct
import sys

QUESTION_FD = 3
"""Where the question is: the first of the descriptors that are passed (``SD_LISTEN_FDS_START``)."""

QUESTION_MAX = 8 * 1024 * 1024
"""Bytes; larger than any call that a question can come from."""

PROGRAMS_MAX = 64
"""Programs of one type at one group; the kernel's own limit (``BPF_CGROUP_MAX_PROGS``)."""

LEVELS_MAX = 16
"""Devices below each other; each is a layer of the device mapper, a partition or a loop."""

_BTRFS = "/sys/fs/btrfs"
_BPF_PROG_QUERY = 16
_NR_BPF = {"x86_64": 321, "i386": 357, "i686": 357, "s390x": 351, "ppc64le": 361, "ppc64": 361, "arm": 386}
_NR_BPF_GENERIC = 280  # aarch64, riscv64, loongarch64


def device(path: str) -> "tuple[str, str | None] | None":
    """Return what a path leads to: its kind, and the numbers of the whole disk below it; None if it does not exist.

    This is the search of systemd's ``lookup_block_device()``.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISCHR(found.st_mode):
        return "char", None
    if stat.S_ISBLK(found.st_mode):
        return "block", whole_disk(found.st_rdev)
    number = found.st_dev if os.major(found.st_dev) else _backing(path)
    return "file", None if number is None else whole_disk(number)


def _backing(path: str) -> "int | None":
    """The one block device of a file system whose files have numbers of their own, which is btrfs.

    There every subvolume has one (st_dev), and the mount another one: the file's mount is found by its ID.
    """
    mount = _mount(path)
    # Only a newline ends a line: the kernel escapes no carriage return.
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        line = next((each for each in file if each.startswith(f"{mount} ")), "")
    kind, _, source = line.partition(" - ")[2].partition(" ")
    source = source.partition(" ")[0]
    if kind != "btrfs":
        return None
    found = os.stat(source).st_rdev  # the kernel names one of its devices there
    name = os.path.basename(os.path.realpath(f"/sys/dev/block/{os.major(found)}:{os.minor(found)}"))
    for system in os.listdir(_BTRFS):
        devices = f"{_BTRFS}/{system}/devices"
        if os.path.isdir(devices) and name in (members := os.listdir(devices)):
            return found if len(members) == 1 else None
    return None


def _mount(path: str) -> str:
    """Return the ID of the mount that a path is on (``mnt_id`` of proc_pid_fdinfo(5))."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
            return next(line.split()[1] for line in file if line.startswith("mnt_id:"))
    finally:
        os.close(descriptor)


def whole_disk(number: int) -> "str | None":
    """Return the numbers ("8:0") of the disk that a block device is on, below partitions and mapped devices."""
    name = f"{os.major(number)}:{os.minor(number)}"
    for _ in range(LEVELS_MAX):
        path = os.path.realpath(f"/sys/dev/block/{name}")
        if not os.path.isdir(path):
            return None
        below = os.listdir(f"{path}/slaves") if os.path.isdir(f"{path}/slaves") else []
        if os.path.exists(f"{path}/partition"):
            name = _read(f"{os.path.dirname(path)}/dev")
        elif len(below) == 1:
            name = _read(f"{path}/slaves/{below[0]}/dev")
        else:
            return name
    return None


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def programs(group: str, attach_type: int) -> int:
    """Return how many BPF programs of a type are attached to a control group itself.

    Raises:
        OSError: the group has gone, or it may not be asked for.
    """
    library = ctypes.CDLL(None, use_errno=True)
    ids = (ctypes.c_uint32 * PROGRAMS_MAX)()
    directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # union bpf_attr, "query": target_fd, attach_type, query_flags, attach_flags, prog_ids, prog_cnt
        query = struct.pack("=IIIIQI", directory, attach_type, 0, 0, ctypes.addressof(ids), PROGRAMS_MAX)
        attributes = ctypes.create_string_buffer(query, 64)
        number = _NR_BPF.get(platform.machine(), _NR_BPF_GENERIC)
        if library.syscall(number, _BPF_PROG_QUERY, attributes, len(attributes)) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return int(struct.unpack_from("=I", attributes.raw, 24)[0])
    finally:
        os.close(directory)


def answer(question: "dict[str, list[str]]") -> "dict[str, object]":
    """Answer a question, as far as that is possible."""
    devices: dict[str, object] = {}
    for path in question["paths"]:
        try:
            devices[path] = device(path)
        except (OSError, ValueError):
            continue
    attached: dict[str, object] = {}
    for group in question["groups"]:
        try:
            attached[group] = {each: programs(group, int(each)) for each in question["types"]}
        except OSError:
            continue
    return {"devices": devices, "programs": attached}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answer(json.loads(os.pread(QUESTION_FD, QUESTION_MAX, 0)))))
    sys.stdout.flush()
