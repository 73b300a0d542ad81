"""State files of machines, for libsystemd: sd_machine_get_class(3), sd_pid_get_machine_name(3) and what uses them.

There is a file for each machine, and a link to it by the name of its unit, as machined 262 has them
(``machine_save()``), for machines whose names machined would take. Each is written when its machine is committed, so
that it is there when a registration is answered, and goes with the machine. After a restart they are compared with the
machines that there are. Nothing that goes wrong with one fails anything else.

Whoever takes the place away has files of his own here from then on: nothing is written or removed any more.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
from collections.abc import Callable, Generator, Iterator

from moorage.kernel.process import NotAProcess, ProcessGone, ProcessId, open_process
from moorage.machines.followers import Follower
from moorage.machines.machine import Machine
from moorage.machines.model import Origin, Record
from moorage.machines.registry import Registry
from moorage.names import is_host_name

MARK = "# Kept by moored."
"""A line of each file of ours: moored-machined.socket removes these when it stops, so that machined, which may start
then, does not take our machines for its own."""

FILE_MAX = 64 * 1024
"""Bytes that are read of a file: ours have four texts of 4096 characters at most."""

_NEW = ".moored"
"""Name of a file until it is complete: that of no machine."""

_LINK = "unit:"
_NO_CID = 2**32 - 1  # VMADDR_CID_ANY of vsock(7)

# What shells split, expand or take for quotes (``SHELL_NEED_QUOTES`` of systemd), and what is escaped between quotes.
_TO_QUOTE = re.compile(r"""[\s"\\`$*?\['()<>|&;!]""")
_TO_ESCAPE = re.compile(r'(["\\`$])')
_LEADER = re.compile(r"^LEADER(?P<id>_PIDFDID)?=(?P<number>[0-9]{1,20})$", re.MULTILINE)

_log = logging.getLogger(__name__)


def content(record: Record) -> str:
    """Return what the state file of a machine says: lines of NAME=value, in quotes where need be."""
    return f"# This is private data. Do not parse.\n{MARK}\n" + "".join(
        f"{name}={_quoted(value)}\n" for name, value in _fields(record)
    )


def _fields(record: Record) -> Iterator[tuple[str, str]]:
    identity, placement = record.identity, record.placement
    yield "NAME", record.name
    yield "UID", str(record.registrant)
    yield "SCOPE", placement.unit
    if placement.relative_subgroup is not None:
        yield "SUBGROUP", placement.relative_subgroup
    if identity.service is not None:
        yield "SERVICE", identity.service
    if identity.root_directory is not None:
        yield "ROOT", identity.root_directory
    if identity.id is not None:
        yield "ID", identity.id.replace("-", "").lower()
    yield from _process("LEADER", record.leader)
    yield from _process("SUPERVISOR", record.supervisor)
    yield "CLASS", record.class_.value
    yield "REALTIME", str(record.timestamp.realtime)
    yield "MONOTONIC", str(record.timestamp.monotonic)
    if identity.if_indices:
        yield "NETIF", "".join(f" {index}" for index in identity.if_indices)
    yield "VSOCK_CID", str(_NO_CID if identity.vsock_cid is None else identity.vsock_cid)
    if identity.ssh_address is not None:
        yield "SSH_ADDRESS", identity.ssh_address
    if identity.ssh_private_key_path is not None:
        yield "SSH_PRIVATE_KEY_PATH", identity.ssh_private_key_path
    if identity.control_address is not None:
        yield "CONTROL_ADDRESS", identity.control_address


def _process(name: str, process: ProcessId | None) -> Iterator[tuple[str, str]]:
    if process is not None:
        yield name, str(process.pid)
        if process.pidfd_id is not None:
            yield f"{name}_PIDFDID", str(process.pidfd_id)


def _quoted(value: str) -> str:
    # Texts of callers have no control characters (machines.texts): a value never begins another line.
    if _TO_QUOTE.search(value) is None:
        return value
    escaped = _TO_ESCAPE.sub(r"\\\1", value)
    return f'"{escaped}"'


class StateFiles(Follower):
    """Writes them, and removes them."""

    def __init__(self, directory: str, registry: Registry, holds: Callable[[], bool]) -> None:
        """Begin.

        Args:
            directory: where the files are; made if it is not there.
            registry: which machines there are.
            holds: whether this service still has machined's place.
        """
        self._directory = directory
        self._registry = registry
        self._holds = holds
        self._failed = False  # and it was said

    def added(self, machine: Machine) -> None:
        """Write the file of a machine, and the link to it.

        The file of a machine that was adopted is machined's, which has the machine by it when it is back.
        """
        record = machine.record
        if is_host_name(machine.name):
            self._do(lambda directory: _is_machineds(directory, record) or _write(directory, record))

    def ended(self, machine: Machine) -> None:
        """Remove the file of a machine, and the link to it."""
        if is_host_name(machine.name):
            self._do(lambda directory: _remove(directory, machine.record))

    def sweep(self) -> None:
        """Remove what is left of machines that are no more: ours, and those that machined had when it last ran.

        A machine of machined's that goes on keeps its file, for machined when it is back.
        """
        self._do(self._sweep)

    def _sweep(self, directory: int) -> None:
        names = os.listdir(directory)
        links = [name for name in names if name.startswith(_LINK)]
        for name in names:
            if name == _NEW or (is_host_name(name) and not self._stays(directory, name)):
                _unlink(directory, name)
        for link in links:
            if not self._leads(directory, link):
                _unlink(directory, link)

    def _stays(self, directory: int, name: str) -> bool:
        if self._registry.get(name) is not None:
            return True
        found = _read(directory, name)
        return found is not None and MARK not in found.splitlines() and _has_leader(found)

    def _leads(self, directory: int, link: str) -> bool:
        """Whether a link leads to the machine of its unit, or to the file of one that is not ours."""
        name = _target(directory, link)
        machine = None if name is None else self._registry.get(name)
        if machine is not None:
            return machine.record.placement.is_whole and link == _LINK + machine.unit
        return name is not None and _read(directory, name) is not None

    def _do(self, work: Callable[[int], object]) -> None:
        """Do something in the directory, if the place is still ours; what goes wrong is logged, once."""
        if not self._holds():
            return
        try:
            directory = self._open()
            try:
                work(directory)
            finally:
                os.close(directory)
        except OSError as error:
            if not self._failed:
                self._failed = True
                _log.warning(
                    "Failed to keep state files in %s, going on without: %s", self._directory, error
                )
        else:
            self._failed = False

    def _open(self) -> int:
        """Open the directory, which must be ours alone: nobody else can have put a link into it.

        Raises:
            OSError: that cannot be had.
        """
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._directory)
            os.chmod(self._directory, 0o755)  # noqa: S103  # everybody may read
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        found = os.fstat(directory)
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            os.close(directory)
            raise PermissionError(errno.EPERM, "others can write to it", self._directory)
        return directory


def _is_machineds(directory: int, record: Record) -> bool:
    """Whether machined has left the file of a machine that goes on, and that it would not be told of."""
    if record.origin is not Origin.adopted:
        return False
    found = _read(directory, record.name)
    return found is not None and MARK not in found.splitlines() and _has_leader(found)


def _write(directory: int, record: Record) -> None:
    name, text = record.name, content(record)
    if _read(directory, name) != text:
        _unlink(directory, _NEW)
        file = os.open(
            _NEW,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o644,
            dir_fd=directory,
        )
        with open(file, "w", encoding="utf-8") as written:
            os.fchmod(file, 0o644)
            written.write(text)
        os.rename(_NEW, name, src_dir_fd=directory, dst_dir_fd=directory)
    link = _LINK + record.unit
    if record.placement.is_whole and _target(directory, link) != name:
        _unlink(directory, link)
        # The longest names of units leave no room for the prefix; machined does without the link then, too.
        with _unless(errno.ENAMETOOLONG):
            os.symlink(name, link, dir_fd=directory)


def _remove(directory: int, record: Record) -> None:
    link = _LINK + record.unit
    if _target(directory, link) == record.name:
        _unlink(directory, link)
    _unlink(directory, record.name)


def _read(directory: int, name: str) -> str | None:
    """Return what is in a file, None if it is no such file."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        return os.read(file, FILE_MAX).decode(errors="replace")
    except OSError:  # a directory
        return None
    finally:
        os.close(file)


def _target(directory: int, link: str) -> str | None:
    try:
        return os.readlink(link, dir_fd=directory)
    except OSError:
        return None


def _unlink(directory: int, name: str) -> None:
    with _unless(errno.ENOENT, errno.ENAMETOOLONG, errno.EISDIR):
        os.unlink(name, dir_fd=directory)


@contextlib.contextmanager
def _unless(*numbers: int) -> Generator[None]:
    """Raise no error of these numbers."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


def _has_leader(text: str) -> bool:
    """Whether the leader that a file tells of lives, or is not told."""
    found = {match["id"] or "": int(match["number"]) for match in _LEADER.finditer(text)}
    if "" not in found:
        return True
    try:
        os.close(open_process(found[""], found.get("_PIDFDID"), None))
    except (ProcessGone, NotAProcess, OverflowError):
        return False
    except OSError:
        return True
    return True
