"""Records of machines on disk: what the service manager cannot keep for us.

One file for each machine, JSON, in a directory below ``/run``. A record is written under another name and then
renamed, so that whoever reads finds the old one or the new one, never a part (rename(2)). Nothing is synced: ``/run``
is a tmpfs and goes with the boot, as the machines do. Reading and writing a tmpfs does not wait, which is why both
happen in the loop.

Between the manager's start of a scope and the record there is a moment in which this service may be killed. So what is
asked for is written down before: an *intent*, a record without a place, under a name of its own, removed when the
record is there or the start was taken back. The intent tells what was asked for; whether a scope that has the name is
the one that came of it, the scope tells by its mark (:meth:`Store.mark`), which only the manager keeps. Neither can
do without the other: what was asked for holds things that are not for all who may look at units (the owner, paths of
keys), and a name, or a leader that has moved on, proves nothing. An intent needs no rename: one that is not whole was
never followed by a start. Helpers that are added to a machine, or removed, have an intent of their own, and their
units the mark of that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import msgspec

from moorage.kernel.process import ProcessId, boot_id
from moorage.machines.model import (
    Cause,
    Change,
    Helper,
    HelperEnd,
    Machine,
    MachineClass,
    Phase,
    Timestamp,
    Verdict,
    is_machine_name,
)

VERSION = 5
"""Version of the records. A reader takes its own and older ones. Before 3 a verdict said that nothing was killed for
lack of memory where that was not known."""

RECORD_MAX = 256 * 1024
"""Bytes; a record with every text at its limit, and all its helpers, stays below 200 KiB."""

NAME_MAX = 255
"""Bytes of one component of a path (limits.h of the kernel)."""

CONTROL_GROUP_MAX = 4000
"""Bytes of a control group's path: PATH_MAX of the kernel, less the root's path before it and a file's name after."""

# Names of machines do not start with a dot.
_TEMPORARY = ".new-"
_INTENT = ".start-"
_CHANGE = ".change-"
_LEFT = ".left-"


class BadRecord(Exception):
    """A record that cannot be used; the reason says why."""


class StoredMachine(msgspec.Struct, frozen=True, omit_defaults=True):
    """The stored form of :class:`moorage.machines.model.Machine`, field by field, with version and boot."""

    version: int
    boot_id: str
    name: str
    class_: MachineClass
    uid: int
    unit: str
    slice: str
    control_group: str
    control_group_id: int
    invocation_id: str
    allocated: bool
    timestamp: Timestamp
    phase: Phase
    subgroup: str | None = None
    leader: ProcessId | None = None
    supervisor: ProcessId | None = None
    id: str | None = None
    service: str | None = None
    root_directory: str | None = None
    if_indices: tuple[int, ...] = ()
    vsock_cid: int | None = None
    ssh_address: str | None = None
    ssh_private_key_path: str | None = None
    control_address: str | None = None
    owner: int = 0
    runtime_directory: str | None = None
    helpers: tuple[Helper, ...] = ()
    lease: bool = False
    privileged: bool = False
    asked: Cause | None = None
    lost: HelperEnd | None = None
    request: dict[str, str] = {}
    start_by: int = 0
    verdict: Verdict | None = None


class StoredChange(msgspec.Struct, frozen=True):
    """The stored form of :class:`moorage.machines.model.Change`, with version and boot."""

    version: int
    boot_id: str
    change: Change


T = TypeVar("T")
Stored = TypeVar("Stored", StoredMachine, StoredChange)

_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that say nothing of a file."""

_FIELDS = Machine.__struct_fields__
_RESERVED = re.compile(rb"[^A-Za-z0-9/._~-]")
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(StoredMachine)
_change_decoder = msgspec.json.Decoder(StoredChange)


def encode(machine: Machine) -> bytes:
    """Return the record of a machine."""
    values: dict[str, Any] = {name: getattr(machine, name) for name in _FIELDS}
    return _encoder.encode(StoredMachine(version=VERSION, boot_id=boot_id(), **values))


def decode(record: bytes, name: str, *, intent: bool = False) -> Machine:
    """Read a record back.

    Args:
        record: its bytes.
        name: the machine that it should be of.
        intent: of one that has no place yet.

    Raises:
        BadRecord: it is damaged, of a newer version, of another boot, or of another machine.
    """
    stored = _decoded(_decoder, record)
    _check_machine(stored.name, name)
    if (stored.phase is Phase.exited) != (stored.verdict is not None):
        raise BadRecord("phase and verdict do not agree")
    if stored.control_group if intent else not _may_be_control_group(stored.control_group):
        raise BadRecord("its control group can be none")
    machine = Machine(**{field: getattr(stored, field) for field in _FIELDS})
    if stored.version < 3 and machine.verdict is not None and not machine.verdict.oom_killed:
        machine.verdict = msgspec.structs.replace(machine.verdict, oom_killed=None)
    return machine


def encode_change(change: Change) -> bytes:
    """Return the intent of a change."""
    return _encoder.encode(StoredChange(VERSION, boot_id(), change))


def decode_change(record: bytes, name: str) -> Change:
    """Read the intent of a change back.

    Args:
        record: its bytes.
        name: the machine that it should be of.

    Raises:
        BadRecord: as :func:`decode` says.
    """
    change = _decoded(_change_decoder, record).change
    _check_machine(change.machine, name)
    return change


def _decoded(decoder: msgspec.json.Decoder[Stored], record: bytes) -> Stored:
    try:
        stored = decoder.decode(record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRecord(str(error) or type(error).__name__) from None
    if stored.version > VERSION:
        raise BadRecord(f"it is of version {stored.version}, newer than {VERSION}")
    if stored.boot_id != boot_id():
        raise BadRecord("it is of another boot")
    return stored


def _check_machine(stored: str, name: str) -> None:
    if stored != name:
        raise BadRecord(f"it is of machine {stored!r}")


def _may_be_control_group(path: str) -> bool:
    """Whether the kernel would as much as look for a path below the root of the hierarchy (path_resolution(7))."""
    encoded = os.fsencode(path)
    root, *parts = encoded.split(b"/")
    return (
        not root
        and len(encoded) <= CONTROL_GROUP_MAX
        and b"\0" not in encoded
        and len(parts) > 0
        and all(0 < len(part) <= NAME_MAX and part not in {b".", b".."} for part in parts)
    )


class Store:
    """The directory of records.

    Attributes:
        path: of the directory.
        marks: what all marks begin with.

    Raises:
        OSError: the directory cannot be made or opened.
    """

    def __init__(self, path: str) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)
        self.path = path
        # RFC 3986, 2.1; urllib.parse would be a fiftieth of the start.
        whole = _RESERVED.sub(lambda match: b"%%%02X" % ord(match[0]), os.fsencode(os.path.abspath(path)))
        self.marks = f"file:{whole.decode()}/"
        self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def close(self) -> None:
        """Close the directory."""
        os.close(self._directory)

    def save(self, machine: Machine) -> None:
        """Write the record of a machine.

        Raises:
            OSError: it could not be written (a full ``/run``, no fd left); the old record is as it was.
        """
        self._replace(machine.name, machine)

    def _replace(self, name: str, machine: Machine) -> None:
        temporary = _TEMPORARY + machine.name
        self._write(temporary, encode(machine))
        try:
            os.rename(temporary, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError:
            os.unlink(temporary, dir_fd=self._directory)
            raise

    def _write(self, name: str, content: bytes) -> None:
        descriptor = os.open(
            name,
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
            dir_fd=self._directory,
        )
        try:
            if os.write(descriptor, content) != len(content):
                raise OSError(28, os.strerror(28))  # ENOSPC: tmpfs writes short only when it is full
        except OSError:
            os.unlink(name, dir_fd=self._directory)
            raise
        finally:
            os.close(descriptor)

    def mark(self, begun: Machine | Change) -> str:
        """Return what tells the units of an intent from all others: where the record is, and the intent's time.

        It is kept by the manager as ``Documentation=`` of the units (systemd.unit(5)): there systemctl shows it to
        people as well, and no other property of a scope is both free for any text and without effect.
        """
        name = begun.name if isinstance(begun, Machine) else begun.machine
        return f"{self.marks_of(name)}{begun.timestamp.monotonic}"

    def marks_of(self, machine: str) -> str:
        """Return what all marks begin with that units of one machine have."""
        return f"{self.marks}{machine}#"

    def intend(self, machine: Machine) -> None:
        """Write down what is about to be started.

        Raises:
            OSError: it could not be written; nothing is left of it.
        """
        self._write(_INTENT + machine.name, encode(machine))

    def revoke(self, machine: Machine) -> None:
        """Write down that what was about to be started is not wanted any more; a whole intent is never missing.

        Raises:
            OSError: it could not be written; the intent is as it was.
        """
        self._replace(_INTENT + machine.name, msgspec.structs.replace(machine, phase=Phase.stopping))

    def withdraw(self, name: str) -> None:
        """Remove an intent; nothing happens if there is none.

        Raises:
            OSError: it is there and stays.
        """
        self.remove(_INTENT + name)

    def intend_change(self, change: Change) -> None:
        """Write down what is about to be done with helpers of a machine.

        Raises:
            OSError: it could not be written; nothing is left of it.
        """
        self._write(_CHANGE + change.machine, encode_change(change))

    def withdraw_change(self, machine: str) -> None:
        """Remove the intent of a change; nothing happens if there is none.

        Raises:
            OSError: it is there and stays.
        """
        self.remove(_CHANGE + machine)

    def leave(self, machine: Machine) -> None:
        """Write down that a machine is forgotten, but not its unit.

        Raises:
            OSError: it could not be written.
        """
        self._replace(_LEFT + machine.name, machine)

    def vacate(self, name: str) -> None:
        """Remove what :meth:`leave` has written; nothing happens if that is gone.

        Raises:
            OSError: it is there and stays.
        """
        self.remove(_LEFT + name)

    def left(self) -> Iterator[tuple[str, Machine | BadRecord]]:
        """Read which machines were forgotten, but not their units, and remove what is of no use.

        Yields:
            The machine's name, with the machine or with what is wrong.
        """
        return self._begun(_LEFT, decode)

    def changes(self) -> Iterator[tuple[str, Change | BadRecord]]:
        """Read what was being done with helpers when the service was killed, and remove what is of no use.

        Yields:
            The machine's name, with the change or with what is wrong with its intent.
        """
        return self._begun(_CHANGE, decode_change)

    def intents(self) -> Iterator[tuple[str, Machine | BadRecord]]:
        """Read what was about to be started when the service was killed, and remove what is of no use.

        Yields:
            The machine's name, with what was asked for or with what is wrong with it.
        """
        return self._begun(_INTENT, partial(decode, intent=True))

    def _begun(self, prefix: str, decoded: Callable[[bytes, str], T]) -> Iterator[tuple[str, T | BadRecord]]:
        for file in sorted(os.listdir(self._directory)):
            if not file.startswith(prefix):
                continue
            name = file.removeprefix(prefix)
            found = self._found(name, file, decoded)
            if isinstance(found, BadRecord):
                self._tidy(file)
            yield name, found

    def _tidy(self, name: str) -> None:
        with contextlib.suppress(OSError):  # a directory, which is none of ours
            os.unlink(name, dir_fd=self._directory)

    def remove(self, name: str) -> None:
        """Remove the record of a machine; nothing happens if there is none.

        Raises:
            OSError: it is there and stays.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._directory)

    def load(self) -> Iterator[tuple[str, Machine | BadRecord]]:
        """Read all records, and tidy up what a crash in the middle of a write left behind.

        Yields:
            The file's name, with its machine or with what is wrong with it.
        """
        for name in sorted(os.listdir(self._directory)):
            if name.startswith(_TEMPORARY):
                self._tidy(name)
                continue
            if not name.startswith((_INTENT, _CHANGE, _LEFT)):
                yield name, self._found(name, name, decode)

    def _found(self, name: str, file: str, decoded: Callable[[bytes, str], T]) -> T | BadRecord:
        try:
            return decoded(self._read(name, file), name)
        except BadRecord as error:
            return error
        except OSError as error:
            if error.errno in _PASSING:
                raise  # not to know a machine is worse than to begin again
            return BadRecord(error.strerror or "cannot be read")

    def _read(self, name: str, file: str) -> bytes:
        if not is_machine_name(name):
            raise BadRecord("its name is none of a machine")
        # O_NONBLOCK: what lies there might be a FIFO.
        descriptor = os.open(
            file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._directory
        )
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadRecord("it is no regular file")
            if status.st_uid != os.geteuid():
                raise BadRecord(f"it belongs to uid {status.st_uid}")
            if status.st_size > RECORD_MAX:
                raise BadRecord(f"it has {status.st_size} bytes")
            return os.read(descriptor, RECORD_MAX + 1)
        finally:
            os.close(descriptor)
