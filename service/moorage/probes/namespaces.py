"""Addresses and OS release of this host, or, run as a program, of the container that a process is in.

As a program it is the short-lived unit that enters a container, so that moored needs no right to do so: the pidfd of
the container's leader is its file descriptor 3 (sd_listen_fds(3)), its answer is one JSON object on standard output:

    {"addresses": [[INDEX, FAMILY, "HEX"], …] or an errno, "os_release": TEXT or an errno}

TEXT is the file with each byte as the character of that number: what is in it is for the reader to judge.

It enters the network, mount and user namespaces and the root directory of the leader, all by the pidfd. Before it
looks up any path in there it gives up what it is here: it becomes root of the container where that is an ordinary
user of the host, and nobody elsewhere, without a capability in either. So it can read no more than the container
itself, and a container whose users are mapped to nobody that is safe to be is not read at all. It does not enter the
PID namespace, where processes of the container could find it; and once inside, it imports nothing.

Only the standard library and what is as plain: it is run by its path, without site-packages.
"""

import contextlib
import ctypes
import errno
import json
import os
import select
import socket
import stat
import struct
import sys
from collections.abc import Generator, Iterator
from typing import Final, NamedTuple

if __name__ == "__main__":  # run by its path, it finds nothing of this package by itself
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from moorage.probes import capabilities
from moorage.probes.handing import LEADER_FD

OS_RELEASE_MAX: Final = 64 * 1024
"""Bytes of an os-release file; those of distributions have less than 1 KiB."""

ADDRESSES_MAX: Final = 4096
"""Addresses of one network namespace; a host has one or two for each of its interfaces."""

NETLINK_SECONDS: Final = 5.0
"""The kernel answers a dump while it is asked: this only ends what can never end."""

# Of linux/netlink.h, linux/rtnetlink.h and linux/if_addr.h.
_RTM_NEWADDR: Final = 20
_RTM_GETADDR: Final = 22
_NLM_F_REQUEST: Final = 0x1
_NLM_F_DUMP: Final = 0x300
_NLM_F_DUMP_INTR: Final = 0x10
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_FLAGS: Final = 8
_IFA_F_DEPRECATED: Final = 0x20
_IFA_F_TENTATIVE: Final = 0x40
_RT_SCOPE_HOST: Final = 254
_RT_SCOPE_NOWHERE: Final = 255
_NLMSGHDR: Final = struct.Struct("=IHHII")
_IFADDRMSG: Final = struct.Struct("=BBBBI")
_RTATTR: Final = struct.Struct("=HH")
_INT: Final = struct.Struct("=i")
_UINT: Final = struct.Struct("=I")
_NETLINK_READ: Final = 64 * 1024  # the kernel fills up to 32 KiB of a dump at a time
_DUMPS_MAX: Final = 8  # a dump during which addresses changed is asked for again

_ADDRESS_SIZE: Final = {int(socket.AF_INET): 4, int(socket.AF_INET6): 16}

# Of linux/sched.h.
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_NAMESPACES: Final = {"mnt": _CLONE_NEWNS, "user": _CLONE_NEWUSER, "net": _CLONE_NEWNET}

# Of linux/openat2.h, and of every architecture's table of system calls that Debian has.
_SYS_OPENAT2: Final = 437
_OPEN_HOW: Final = struct.Struct("=QQQ")
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_IN_ROOT: Final = 0x10
_AT_FDCWD: Final = -100

_ROOT: Final = 0
_NOBODY: Final = 65534
"""Has no rights but those of everybody, on every Linux (``overflowuid``)."""

_ID: Final = 0xFFFFFFFF
"""The bits of a number of a user or a group."""

_PAGE: Final = 4096
"""Bytes; the kernel gives no more of such a file at a time."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


class InterfaceAddress(NamedTuple):
    """An address of a network interface.

    Attributes:
        ifindex: number of the interface.
        family: AF_INET or AF_INET6.
        address: 4 or 16 bytes, in network byte order.
    """

    ifindex: int
    family: int
    address: bytes


def local_addresses() -> list[InterfaceAddress]:
    """Addresses in this network namespace: which, and in which order, as ``local_addresses()`` of systemd has them.

    Raises:
        OSError: E2BIG for more than ADDRESSES_MAX; others from netlink(7).
    """
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as netlink:
        netlink.settimeout(NETLINK_SECONDS)
        netlink.bind((0, 0))
        for sequence in range(1, _DUMPS_MAX + 1):
            found = _dump(netlink, sequence)
            if found is not None:
                # IPv4 before IPv6, narrow scopes last; sorted and without duplicates.
                return [
                    InterfaceAddress(index, family, address) for family, _, index, address in sorted(found)
                ]
    raise OSError(errno.EINTR, "addresses changed whenever they were read")


def _dump(netlink: socket.socket, sequence: int) -> set[tuple[int, int, int, bytes]] | None:
    """One dump: family, scope, interface, address. None if it is not consistent."""
    request = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    size = _NLMSGHDR.size + len(request)
    header = _NLMSGHDR.pack(size, _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, sequence, 0)
    netlink.sendto(header + request, (0, 0))
    found: set[tuple[int, int, int, bytes]] = set()
    consistent = True
    while True:
        data, (sender, _) = netlink.recvfrom(_NETLINK_READ)
        if sender != 0:  # only the kernel knows
            continue
        for kind, flags, number, body in _messages(data):
            if number != sequence:
                continue
            consistent &= not flags & _NLM_F_DUMP_INTR
            if kind == _NLMSG_DONE:
                return found if consistent else None
            if kind == _NLMSG_ERROR:
                code = -_INT.unpack_from(body)[0]
                raise OSError(code, os.strerror(code))
            if kind == _RTM_NEWADDR and (address := _wanted(body)) is not None:
                found.add(address)
                if len(found) > ADDRESSES_MAX:
                    raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Messages of a datagram: type, flags, sequence number, body (netlink(7))."""
    at = 0
    while at + _NLMSGHDR.size <= len(data):
        size, kind, flags, sequence, _ = _NLMSGHDR.unpack_from(data, at)
        if not _NLMSGHDR.size <= size <= len(data) - at:
            raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
        yield kind, flags, sequence, data[at + _NLMSGHDR.size : at + size]
        at += (size + 3) & ~3


def _wanted(body: bytes) -> tuple[int, int, int, bytes] | None:
    """Family, scope, interface and address of a message, if it is one of those that are told (rtnetlink(7))."""
    family, _, flags, scope, index = _IFADDRMSG.unpack_from(body)
    attributes: dict[int, bytes] = {}
    at = _IFADDRMSG.size
    while at + _RTATTR.size <= len(body):
        size, kind = _RTATTR.unpack_from(body, at)
        if not _RTATTR.size <= size <= len(body) - at:
            raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
        attributes[kind] = body[at + _RTATTR.size : at + size]
        at += (size + 3) & ~3
    if _IFA_FLAGS in attributes:
        (flags,) = _UINT.unpack(attributes[_IFA_FLAGS])
    address = attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS))
    if (
        address is None
        or len(address) != _ADDRESS_SIZE.get(family)
        or flags & (_IFA_F_DEPRECATED | _IFA_F_TENTATIVE)
        or scope in (_RT_SCOPE_HOST, _RT_SCOPE_NOWHERE)
    ):
        return None
    return family, scope, index, address


def os_release(descriptors: int | None = None) -> bytes:
    """Return the content of the os-release file below this root directory (os-release(5)), unjudged.

    It is a regular file of bounded size, or an error: opening anything else may have effects, or never return.

    Args:
        descriptors: the directory of this process's own descriptors, /proc/self/fd, where that is not to be found
            by its name any more, in a container; None on the host.

    Raises:
        OSError: ENOENT if there is none, EBADFD if it is no regular file, EFBIG if it is larger than OS_RELEASE_MAX.
    """
    # A service with RestrictSUIDSGID= has no openat2(), and the files of the host are nobody else's.
    find = _open_path if descriptors is None else find_inside
    try:
        path = find(b"/etc/os-release")
    except FileNotFoundError:
        path = find(b"/usr/lib/os-release")
    try:
        if not stat.S_ISREG(os.fstat(path).st_mode):
            raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))
        # Not by its path again, which may lead to something else by now.
        name = str(path) if descriptors is not None else f"/proc/self/fd/{path}"
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        file = os.open(name, flags, dir_fd=descriptors)
    finally:
        os.close(path)
    try:
        content = bytearray()
        while len(content) <= OS_RELEASE_MAX:
            piece = os.read(file, OS_RELEASE_MAX + 1 - len(content))
            if not piece:
                return bytes(content)
            content += piece
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    finally:
        os.close(file)


def _open_path(path: bytes) -> int:
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def find_inside(path: bytes, root: int | None = None) -> int:
    """Find a file, without the links of /proc that lead to what others have open, wherever that is (openat2(2)).

    Args:
        path: absolute.
        root: what is the root directory for it, and for all links on the way; None for that of this process.
    """
    resolve = _RESOLVE_NO_MAGICLINKS | (_RESOLVE_IN_ROOT if root is not None else 0)
    how = _OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, resolve)
    number = _libc.syscall(_SYS_OPENAT2, _AT_FDCWD if root is None else root, path, how, len(how))
    if number < 0:
        raise capabilities.last_error()
    return number


def _read(path: str) -> bytes:
    """Read a file of /proc, without a buffer, which would cost more than the rest."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces: list[bytes] = []
        while piece := os.read(file, _PAGE):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(file)


def pid_of(pidfd: int) -> int:
    """Return the PID that a pidfd stands for (proc_pid_fdinfo(5)).

    Raises:
        OSError: ESRCH if the process is gone.
    """
    for line in _read(f"/proc/self/fdinfo/{pidfd}").splitlines():
        if line.startswith(b"Pid:") and int(line[4:]) > 0:
            return int(line[4:])
    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


def _harmless(maps: bytes) -> int | None:
    """Return the ID to have in a user namespace: of its root, else of its nobody, unless that is root of the host.

    Args:
        maps: uid_map or gid_map of it, as seen from here (user_namespaces(7)).
    """
    ranges = [tuple(map(int, line.split())) for line in maps.splitlines()]
    for wanted in (_ROOT, _NOBODY):
        for first, outside, count in ranges:
            if first <= wanted < first + count and outside + wanted - first != _ROOT:
                return wanted
    return None


def _identity(pid: int) -> tuple[int, int] | None:
    """Return the UID and GID to have in a process's user namespace, which is not ours."""
    found: list[int] = []
    for name in ("uid_map", "gid_map"):
        wanted = _harmless(_read(f"/proc/{pid}/{name}"))
        if wanted is None:
            return None
        found.append(wanted)
    return found[0], found[1]


@contextlib.contextmanager
def files_as_root_of(pidfd: int) -> Generator[None]:
    """Have the rights to files, for a moment, that the root of a process's container has, without entering it.

    Raises:
        OSError: EACCES if this process cannot be that user, or the container has no root; ESRCH if it is gone.
    """
    pid = pid_of(pidfd)
    ids = [_root_of(pid, name) for name in ("uid_map", "gid_map")]
    _check_lives(pidfd)  # or they may be those of another process that has the number now
    uid, gid = ids
    own_uid, own_gid = os.geteuid(), os.getegid()
    try:
        # They return who it was before, as a signed number, and no error.
        _libc.setfsgid(gid)
        _libc.setfsuid(uid)
        if (_libc.setfsuid(uid) & _ID, _libc.setfsgid(gid) & _ID) != (uid, gid):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        yield
    finally:
        _libc.setfsuid(own_uid)
        _libc.setfsgid(own_gid)


def _root_of(pid: int, name: str) -> int:
    """Return the ID on the host of the root of a container."""
    for line in _read(f"/proc/{pid}/{name}").splitlines():
        inside, outside, _ = map(int, line.split())
        if inside == _ROOT:
            return outside
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _become(uid: int, gid: int) -> None:
    """Take another identity, and keep the right to change the root directory."""
    capabilities.keep_when_changing_users()
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    capabilities.keep(capabilities.CAP_SYS_CHROOT)


def open_root(pidfd: int, access: int) -> int:
    """Open the root directory of a process, as it is in the process's mount namespace.

    Args:
        pidfd: of the process.
        access: O_PATH or O_RDONLY.

    Raises:
        OSError: ESRCH if it is gone.
    """
    root = os.open(f"/proc/{pid_of(pidfd)}/root", access | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_lives(pidfd)  # or it may be that of another process that has the number now
    except OSError:
        os.close(root)
        raise
    return root


def _check_lives(pidfd: int) -> None:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if poller.poll(0):
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


def enter(pidfd: int, *, as_root: bool = False) -> tuple[bool, int | None]:
    """Move into the container of a process.

    Args:
        pidfd: of the process.
        as_root: be the root of the container, also where that is root of the host: for what nobody else may do in it.
            The right to change the root directory is all that is kept of root's.

    Returns:
        Whether it has a network namespace of its own; its root directory, None if there is nobody to be in it who is
        not root of the host.

    Raises:
        OSError: it is gone, or it does not let us in.
    """
    pid = pid_of(pidfd)
    flags = 0
    for name, flag in _NAMESPACES.items():
        # Only those that are not ours: a user namespace cannot be entered twice, the others only with CAP_SYS_ADMIN.
        if not os.path.samestat(os.stat(f"/proc/{pid}/ns/{name}"), os.stat(f"/proc/self/ns/{name}")):
            flags |= flag
    private = bool(flags & _CLONE_NEWNET)
    own_users = bool(flags & _CLONE_NEWUSER)
    privileged = os.geteuid() == _ROOT
    identity: tuple[int, int] | None = (_ROOT, _ROOT)
    if not as_root:
        identity = _identity(pid) if own_users else (_NOBODY, _NOBODY)
    # setns(2) goes to the root of the mount namespace, but the leader may have one of its own.
    # Nor is all of the above of another process that has the number now.
    root = open_root(pidfd, os.O_PATH)
    if privileged:
        os.setgroups([])
    # In one step, so that the kernel judges with the rights in the user namespace too.
    if flags and _libc.setns(pidfd, flags) < 0:
        raise capabilities.last_error()
    if identity is None:
        return private, None
    if own_users or privileged:
        _become(*identity)
    return private, root


def enter_network(pidfd: int) -> bool:
    """Move into the network namespace of a process; return whether that is another one than ours.

    Raises:
        OSError: ESRCH if it is gone.
    """
    pid = pid_of(pidfd)
    private = not os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), os.stat("/proc/self/ns/net"))
    # By the pidfd, which fails where what was looked at may be another process that has the number now.
    if private and _libc.setns(pidfd, _CLONE_NEWNET) < 0:
        raise capabilities.last_error()
    if not private:
        _check_lives(pidfd)
    return private


def change_root(root: int) -> None:
    """Make a directory the root directory, and give up the right to do so."""
    os.fchdir(root)
    # A user's manager can see a leader of the same user and the same root without any right.
    if not os.path.samestat(os.stat("."), os.stat("/")):
        os.chroot(".")
    capabilities.keep(0)


def _addresses_inside(*, private: bool) -> list[tuple[int, int, str]] | int:
    if not private:
        return errno.ENONET
    try:
        return [(index, family, address.hex()) for index, family, address in local_addresses()]
    except OSError as exc:
        return exc.errno or errno.EIO


def _os_release_inside(descriptors: int, root: int | None) -> str | int:
    if root is None:
        return errno.EPERM
    try:
        change_root(root)
        return os_release(descriptors).decode("latin-1")
    except OSError as exc:
        return exc.errno or errno.EIO


def main() -> None:
    """Enter the container of the process that is passed, look around, and print what is seen."""
    descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    answer: dict[str, object]
    # What is not loaded by now would be the container's.
    sys.meta_path.clear()
    try:
        private, root = enter(LEADER_FD)
    except OSError as exc:
        # What is not found in /proc is a process that is not there.
        code = errno.ESRCH if exc.errno == errno.ENOENT else exc.errno or errno.EIO
        answer = {"addresses": code, "os_release": code}
    else:
        answer = {
            "addresses": _addresses_inside(private=private),
            "os_release": _os_release_inside(descriptors, root),
        }
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
