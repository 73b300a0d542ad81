"""The inside of a machine as seen without its help: addresses, OS release, UID shift.

The answers are those of systemd-machined 262 (``machine_get_addresses()``, ``machine_get_os_release()``,
``machine_get_uid_shift()``). A container is entered by a short-lived unit of its own (`moorage.probes.namespaces`),
which needs rights that moored does not have.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
import trio

from moorage.kernel.process import NotAProcess, ProcessGone, has_exited, open_process, pid_of, proc_file
from moorage.kernel.threads import in_thread
from moorage.machines.model import MachineClass, Record
from moorage.pid1.manager import Manager
from moorage.pid1.oneshot import Account, ProbeFailed, probe
from moorage.probes import namespaces as namespace_probe
from moorage.probes.capabilities import CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN, CAP_SYS_CHROOT, CAP_SYS_PTRACE

ACQUIRE_SECONDS: Final = 10.0
"""For everything about one machine. A probe takes a tenth of a second; a loaded host may take many times as long."""

UID_NOBODY: Final = 65534
"""A mapping must reach as far, or it is not a simple shift (``machine_get_uid_shift()``)."""

_CAPABILITIES: Final = CAP_SYS_CHROOT | CAP_SYS_PTRACE | CAP_SYS_ADMIN | CAP_SETUID | CAP_SETGID
"""To see the namespaces of the leader, to enter them, and to be nobody there."""

_BLANKS: Final = " \t"

# A comment; or a key with its "=", which may be its first character as well; or a line with neither.
_LINE: Final = re.compile(r"[#;][^\n\r]*|(?P<key>[^#; \t\n\r][^=\n\r]*)=|[^#; \t\n\r][^\n\r]*")

# Quotes count only where no unquoted text has come before; a quote that is not closed goes to the end of the file.
_QUOTED: Final = re.compile(
    r"""[ \t]*(?:'(?P<single>[^']*)'?|"(?P<double>(?:[^"\\]|\\.)*)\\?"?)""", re.DOTALL
)
_PLAIN: Final = re.compile(r"(?P<run>[^\\\n\r]+)|\\(?P<escaped>.?)", re.DOTALL)
_DOUBLE_ESCAPE: Final = re.compile(r"""\\(?:(["\\`$])|\n)""")

NOT_SUPPORTED: Final = frozenset(
    {
        errno.EOPNOTSUPP,
        errno.ENOTTY,
        errno.ENOSYS,
        errno.EAFNOSUPPORT,
        errno.EPFNOSUPPORT,
        errno.EPROTONOSUPPORT,
        errno.ESOCKTNOSUPPORT,
        errno.ENOPROTOOPT,
    }
)
"""``ERRNO_ISNOT_SUPPORTED()`` of systemd."""

_T = TypeVar("_T")


class Address(msgspec.Struct, frozen=True):
    """A network address of a machine.

    Attributes:
        ifindex: number of the interface, in the machine's network namespace; None if not known.
        family: AF_INET or AF_INET6.
        address: 4 or 16 bytes, in network byte order.
    """

    ifindex: int | None
    family: int
    address: bytes


class Metadata(msgspec.Struct, frozen=True):
    """The findings; None for each that could not be had.

    Attributes:
        addresses: IPv4 first, then by scope (widest first) and interface; without those of scope host (127.0.0.1).
        os_release: "KEY=VALUE" strings, unquoted, in the order of the file.
        uid_shift: the host's UID of the machine's root.
    """

    addresses: tuple[Address, ...] | None
    os_release: list[str] | None
    uid_shift: int | None


class MetadataError(Exception):
    """Something about a machine cannot be had; always one of the subclasses below."""


class NotAvailable(MetadataError):
    """Machines of this class, or on this kernel, do not tell."""


class NoPrivateNetworking(MetadataError):
    """The container is in the host's network namespace."""


class NoOSRelease(MetadataError):
    """There is no os-release file."""


class NoUIDShift(MetadataError):
    """UIDs and GIDs of the container are not mapped by one and the same shift."""


class Unreadable(MetadataError):
    """Anything else: the leader is gone, the file is damaged or too large, it took too long.

    Attributes:
        number: errno(3) that says so.
    """

    def __init__(self, reason: str, number: int) -> None:
        super().__init__(reason)
        self.number = number


async def acquire(machine: Record, manager: Manager, *, graceful: bool) -> Metadata:
    """Look into a machine.

    Args:
        machine: which.
        manager: starts the unit that enters a container.
        graceful: take None for what cannot be had, instead of raising the error.

    Raises:
        MetadataError: of what cannot be had the first, in the order of the fields of `Metadata`.
    """
    found = await _look_in_time(machine, manager)
    if not graceful:
        for each in (found.addresses, found.os_release, found.uid_shift):
            if isinstance(each, MetadataError):
                raise each
    return Metadata(_or_none(found.addresses), _or_none(found.os_release), _or_none(found.uid_shift))


async def addresses_of_host() -> tuple[Address, ...]:
    """Return the addresses of this host.

    Raises:
        MetadataError: they cannot be had.
    """
    # The kernel's lock on addresses may make us wait: not in the loop.
    found = await in_thread(_addresses_around, abandon_on_cancel=True)
    return _or_raise(found)


async def acquire_os_release(machine: Record, manager: Manager) -> list[str]:
    """Look for the OS release of a machine, whatever else can be had.

    Raises:
        MetadataError: it cannot be had.
    """
    return _or_raise((await _look_in_time(machine, manager)).os_release)


def acquire_uid_shift(machine: Record) -> int:
    """Return the UID shift of a machine.

    Raises:
        MetadataError: there is none, or its leader is gone.
    """
    if machine.class_ is MachineClass.host:
        return 0
    if machine.class_ is MachineClass.vm:
        raise NotAvailable("a virtual machine has users of its own")
    leader = _open_leader(machine)
    try:
        return uid_shift_of(leader)
    finally:
        os.close(leader)


async def _look_in_time(machine: Record, manager: Manager) -> _Found:
    try:
        with trio.fail_after(ACQUIRE_SECONDS):
            return await _look(machine, manager)
    except MetadataError as exc:
        return _Found(exc, exc, exc)
    except trio.TooSlowError:
        slow = Unreadable(f"it took longer than {ACQUIRE_SECONDS:.0f} s", errno.ETIMEDOUT)
        return _Found(slow, slow, slow)


def parse_os_release(content: bytes) -> list[str]:
    """Read an os-release file as ``parse_env_file_internal()`` of systemd does.

    Like it, this is wider than what os-release(5) allows: any key, values that are put together of quoted parts and
    go on over lines. Of a key that comes twice the last value counts, in the place of the first.

    Args:
        content: of the file.

    Returns:
        "KEY=VALUE" strings, without quotes and escapes.

    Raises:
        Unreadable: a NUL, or a key or value that is not UTF-8.
    """
    if b"\0" in content:
        raise Unreadable("the os-release file is binary", errno.EBADMSG)
    text = content.decode(errors="surrogateescape")
    pairs: dict[str, str] = {}
    at = 0
    while (line := _LINE.search(text, at)) is not None:
        at = line.end()
        if (key := line["key"]) is not None:
            value, at = _value(text, at)
            pairs[key.rstrip(_BLANKS)] = value
    strings = [f"{key}={value}" for key, value in pairs.items()]
    try:
        "".join(strings).encode()
    except UnicodeEncodeError:
        raise Unreadable("the os-release file is not UTF-8", errno.EILSEQ) from None
    return strings


def _value(text: str, at: int) -> tuple[str, int]:
    """The value that begins here, and where it ends."""
    parts: list[str] = []
    while (quoted := _QUOTED.match(text, at)) is not None:
        at = quoted.end()
        if (single := quoted["single"]) is not None:
            parts.append(single)
        else:
            parts.append(_DOUBLE_ESCAPE.sub(lambda match: match[1] or "", quoted["double"]))
    while at < len(text) and text[at] in _BLANKS:
        at += 1
    plain = ""
    while (piece := _PLAIN.match(text, at)) is not None:
        at = piece.end()
        if (escaped := piece["escaped"]) is not None:
            # An escaped end of line is no end, and not there.
            parts.append(plain + escaped.strip("\n\r"))
            plain = ""
        else:
            plain = piece["run"]
    return "".join([*parts, plain.rstrip(_BLANKS)]), at


class _Found(msgspec.Struct, frozen=True):
    addresses: tuple[Address, ...] | MetadataError
    os_release: list[str] | MetadataError
    uid_shift: int | MetadataError


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    """The output of a probe: see `moorage.probes.namespaces`."""

    addresses: list[tuple[int, int, str]] | int
    os_release: str | int


def _or_none(found: _T | MetadataError) -> _T | None:
    return None if isinstance(found, MetadataError) else found


def _or_raise(found: _T | MetadataError) -> _T:
    if isinstance(found, MetadataError):
        raise found
    return found


def _caught(function: Callable[[], _T]) -> _T | MetadataError:
    try:
        return function()
    except MetadataError as exc:
        return exc


def _addresses_error(code: int) -> MetadataError:
    if code == errno.ENONET:
        return NoPrivateNetworking("the container has the network of the host")
    return _error("addresses", code)


def _os_release_error(code: int) -> MetadataError:
    # machined means to say this too, but asks for ENONET.
    if code == errno.ENOENT:
        return NoOSRelease("there is no os-release file")
    return _error("OS release", code)


def _error(what: str, code: int) -> MetadataError:
    reason = f"{what}: {os.strerror(code)}"
    return NotAvailable(reason) if code in NOT_SUPPORTED else Unreadable(reason, code)


def _number(error: Exception) -> int:
    """The errno for a leader that cannot be looked at."""
    return (error.errno if isinstance(error, OSError) else None) or errno.ESRCH


async def _look(machine: Record, manager: Manager) -> _Found:
    if machine.class_ is MachineClass.vm:
        raise NotAvailable("a virtual machine does not tell")
    if machine.class_ is MachineClass.host:
        # The disk that the file is on, or the kernel's lock on addresses, may make us wait: not in the loop.
        try:
            return await in_thread(_look_around, abandon_on_cancel=True)
        except OSError as exc:
            raise Unreadable(f"host: {exc}", _number(exc)) from exc
    leader = _open_leader(machine)
    try:
        return await _look_into(machine, leader, manager)
    finally:
        os.close(leader)


def _open_leader(machine: Record) -> int:
    """Return a pidfd of the leader, owned by the caller."""
    if machine.leader is None:
        raise Unreadable("the machine has no leader", errno.ESRCH)
    try:
        return open_process(machine.leader.pid, machine.leader.pidfd_id, machine.leader.boot_id)
    except (ProcessGone, NotAProcess, OSError) as exc:
        raise Unreadable(f"leader: {exc}", _number(exc)) from exc


def _addresses_around() -> tuple[Address, ...] | MetadataError:
    try:
        return tuple(Address(*each) for each in namespace_probe.local_addresses())
    except OSError as exc:
        return _addresses_error(exc.errno or errno.EIO)


def _look_around() -> _Found:
    os_release: list[str] | MetadataError
    try:
        content = namespace_probe.os_release()
        os_release = _caught(lambda: parse_os_release(content))
    except OSError as exc:
        os_release = _os_release_error(exc.errno or errno.EIO)
    return _Found(_addresses_around(), os_release, 0)


async def _look_into(machine: Record, leader: int, manager: Manager) -> _Found:
    """Look into a container, by the pidfd of its leader."""
    uid_shift = _caught(lambda: uid_shift_of(leader))
    try:
        answer = await _probe(machine, leader, manager)
    except MetadataError as exc:
        return _Found(exc, exc, uid_shift)
    addresses: tuple[Address, ...] | MetadataError
    if isinstance(answer.addresses, int):
        addresses = _addresses_error(answer.addresses)
    else:
        addresses = tuple(
            Address(index, family, bytes.fromhex(address)) for index, family, address in answer.addresses
        )
    os_release: list[str] | MetadataError
    if isinstance(answer.os_release, int):
        os_release = _os_release_error(answer.os_release)
    else:
        content = answer.os_release.encode("latin-1")
        os_release = _caught(lambda: parse_os_release(content))
    return _Found(addresses, os_release, uid_shift)


async def _probe(machine: Record, leader: int, manager: Manager) -> _Answer:
    """Run a probe in a unit that enters the container."""
    try:
        data = await probe(
            manager,
            namespace_probe.__file__,
            leader,
            f"Look into container {machine.name}",
            account=account(machine),
            capabilities=_CAPABILITIES,
            system_calls=("chroot", "setns"),
        )
    except ProbeFailed as exc:
        raise Unreadable(f"cannot look into the container: {exc}", errno.EAGAIN) from exc
    try:
        return msgspec.json.decode(data, type=_Answer)
    except msgspec.MsgspecError as exc:
        raise Unreadable(f"the probe's answer is malformed: {exc}", errno.EBADMSG) from exc


def account(machine: Record) -> Account:
    """Return the account of units that deal with a machine: a user answers for all machines, root for each alone."""
    if machine.registrant in {0, os.geteuid()}:
        return Account(f"machine-{machine.invocation_id}", of_user=False)
    return Account(f"user-{machine.registrant}", of_user=True)


def uid_shift_of(leader: int) -> int:
    """Return the UID shift of a container, as ``machine_get_uid_shift()`` does.

    Args:
        leader: pidfd of its leader.

    Raises:
        NoUIDShift, Unreadable: as they say.
    """
    try:
        pid = pid_of(leader)
        uids = _only_mapping(pid, "uid_map")
        # A kernel without user namespaces has neither file.
        gids = _only_mapping(pid, "gid_map") if uids is not None else None
        if has_exited(leader):
            raise ProcessGone(pid)
    except (ProcessGone, NotAProcess, OSError) as exc:
        raise Unreadable(f"leader: {exc}", _number(exc)) from exc
    if uids is None:
        return 0
    if uids != gids:
        raise NoUIDShift("UIDs and GIDs are not mapped alike")
    first, shift, count = uids
    if first != 0 or count < UID_NOBODY:
        raise NoUIDShift(f"{count} UIDs are mapped from {first} on, not all")
    return shift


def _only_mapping(pid: int, name: str) -> tuple[int, int, int] | None:
    """First ID inside, first ID outside, number of IDs (user_namespaces(7)); None without such a file."""
    try:
        text = proc_file(f"/proc/{pid}/{name}")
    except FileNotFoundError:
        return None
    lines = text.splitlines()
    if not lines:
        raise Unreadable(f"no mapping in {name} yet", errno.EAGAIN)
    if len(lines) > 1:
        raise NoUIDShift(f"more than one range in {name}")
    first, outside, count = map(int, lines[0].split())
    return first, outside, count
