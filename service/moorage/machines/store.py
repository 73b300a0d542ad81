"""Records of machines on disk: what the service manager cannot keep for us.

One file for each machine, JSON, in a directory below ``/run``. A record is written under another name and then
renamed, so that whoever reads finds the old one or the new one, never a part (rename(2)). Nothing is synced: ``/run``
is a tmpfs and goes with the boot, as the machines do. Reading and writing a tmpfs does not wait, which is why both
happen in the loop.

What is under way is in the same directory, under names that no machine has: see :mod:`moorage.machines.intents`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, TypeVar

import msgspec

from moorage.kernel.process import ProcessId, boot_id
from moorage.machines.model import (
    Bases,
    Cause,
    End,
    Helper,
    HelperEnd,
    Identity,
    Intent,
    MachineClass,
    Origin,
    Phase,
    Placement,
    Record,
    Timestamp,
    Verdict,
    Wanted,
)
from moorage.names import is_machine_name

VERSION = 11
"""Version of the records. A reader takes its own and older ones. Before 3 a verdict said that nothing was killed for
lack of memory where that was not known; before 6 nothing was known of who else lives in its unit; before 7
less was told of what it used; before 8 its counters could not be reset;
before 9 none was adopted; before 10 it was not given time to end by itself;
before 11 nothing was noted of its end until the verdict."""

RECORD_MAX = 320 * 1024
"""Bytes; a record with every text at its limit, all its helpers, and the bases of all its counters, stays below
256 KiB."""

NAME_MAX = 255
"""Bytes of one component of a path (limits.h of the kernel)."""

CONTROL_GROUP_MAX = 4000
"""Bytes of a control group's path: PATH_MAX of the kernel, less the root's path before it and a file's name after."""

# Names of machines do not start with a dot.
_TEMPORARY = ".new-"
_LEFT = ".left-"
START = ".start-"
CHANGE = ".change-"
BESIDE = ".beside-"

SEPARATOR = "#"
"""After the machine's name, which has none, in the names of files of which a machine may have more than one."""


class BadRecord(Exception):
    """A record that cannot be used; the reason says why."""


class StoredMachine(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The stored form of a :class:`~moorage.machines.model.Record` or an intent, with version and boot: flat."""

    version: int
    boot_id: str
    name: str
    class_: MachineClass
    registrant: int = msgspec.field(name="uid")
    unit: str
    slice: str
    control_group: str
    control_group_id: int
    invocation_id: str
    allocated: bool
    timestamp: Timestamp
    phase: Phase
    subgroup: str | None = None
    shared: bool = False
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
    leader_uid: int = msgspec.field(default=0, name="owner")
    runtime_directory: str | None = None
    helpers: tuple[Helper, ...] = ()
    lease: bool = False
    privileged: bool = False
    asked: Cause | None = None
    insist_by: int | None = None
    lost: HelperEnd | None = None
    late: bool = False
    bases: Bases | None = None
    end: End | None = None
    request: dict[str, str] = {}
    origin: Origin = Origin.registered
    start_by: int = 0
    verdict: Verdict | None = None


T = TypeVar("T")

_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that say nothing of a file."""

_WANTED = tuple(name for name in Wanted.__struct_fields__ if name != "identity")
_PARTS = tuple(
    (names, attrgetter(*names))
    for names in (_WANTED, Identity.__struct_fields__, Placement.__struct_fields__)
)
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(StoredMachine)


def encode(record: Record) -> bytes:
    """Return the stored form of a record."""
    phase = Phase.running if record.verdict is None else Phase.exited
    return _encoded(
        record,
        record.placement,
        phase=phase,
        asked=record.asked,
        insist_by=record.insist_by,
        lost=record.lost,
        late=record.late,
        bases=record.bases,
        end=record.end,
        verdict=record.verdict,
    )


def encode_intent(intent: Intent) -> bytes:
    """Return the stored form of the intent to start a machine."""
    phase = Phase.stopping if intent.revoked else Phase.starting
    return _encoded(
        intent, Placement(intent.scope, slice=intent.slice), phase=phase, start_by=intent.start_by
    )


def _encoded(wanted: Wanted, placement: Placement, **values: Any) -> bytes:
    for part, (names, read) in zip((wanted, wanted.identity, placement), _PARTS, strict=True):
        values |= zip(names, read(part), strict=True)
    return _encoder.encode(StoredMachine(version=VERSION, boot_id=boot_id(), **values))


def decode(content: bytes, name: str) -> Record:
    """Read a record back.

    Args:
        content: its bytes.
        name: the machine that it should be of.

    Raises:
        BadRecord: it is damaged, of a newer version, of another boot, or of another machine.
    """
    stored = _decoded(content, name)
    if (stored.phase is Phase.exited) != (stored.verdict is not None):
        raise BadRecord("phase and verdict do not agree")
    if not _may_be_control_group(stored.control_group):
        raise BadRecord("its control group can be none")
    verdict = stored.verdict
    if stored.version < 3 and verdict is not None and not verdict.oom_killed:
        verdict = msgspec.structs.replace(verdict, oom_killed=None)
    return Record(
        **_wanted(stored),
        placement=Placement(*(getattr(stored, field) for field in Placement.__struct_fields__)),
        asked=stored.asked,
        insist_by=stored.insist_by,
        lost=stored.lost,
        late=stored.late,
        bases=stored.bases,
        end=stored.end,
        verdict=verdict,
    )


def decode_intent(content: bytes, name: str) -> Intent:
    """Read the intent to start a machine back.

    Args:
        content: its bytes.
        name: the machine that it should be of.

    Raises:
        BadRecord: as :func:`decode` says.
    """
    stored = _decoded(content, name)
    if stored.verdict is not None or stored.control_group:
        raise BadRecord("it has begun already")
    revoked = stored.phase is not Phase.starting
    return Intent(**_wanted(stored), slice=stored.slice, start_by=stored.start_by, revoked=revoked)


def _wanted(stored: StoredMachine) -> dict[str, Any]:
    identity = Identity(*(getattr(stored, field) for field in Identity.__struct_fields__))
    return {**{field: getattr(stored, field) for field in _WANTED}, "identity": identity}


def _decoded(content: bytes, name: str) -> StoredMachine:
    stored = decoded(_decoder, content)
    check_stored(stored.version, stored.boot_id, stored.name, name)
    return stored


def decoded(decoder: msgspec.json.Decoder[T], content: bytes) -> T:
    """Decode what lies in the directory.

    Raises:
        BadRecord: it is damaged.
    """
    try:
        return decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRecord(str(error) or type(error).__name__) from None


def check_stored(version: int, boot: str, machine: str, name: str) -> None:
    """Check that something stored is of use.

    Args:
        version: of it.
        boot: that it is of.
        machine: that it is of.
        name: of the machine that it should be of.

    Raises:
        BadRecord: it is not.
    """
    if version > VERSION:
        raise BadRecord(f"it is of version {version}, newer than {VERSION}")
    if boot != boot_id():
        raise BadRecord("it is of another boot")
    if machine != name:
        raise BadRecord(f"it is of machine {machine!r}")


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

    Raises:
        OSError: the directory cannot be made or opened.
    """

    def __init__(self, path: str) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)
        self.path = path
        self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def close(self) -> None:
        """Close the directory."""
        os.close(self._directory)

    def save(self, record: Record) -> None:
        """Write a record.

        Raises:
            OSError: it could not be written (a full ``/run``, no fd left); the old record is as it was.
        """
        self.replace(record.name, record.name, encode(record))

    def remove(self, name: str) -> None:
        """Remove the record of a machine; nothing happens if there is none.

        Raises:
            OSError: it is there and stays.
        """
        self.unlink(name)

    def load(self) -> Iterator[tuple[str, Record | BadRecord]]:
        """Read all records, and tidy up what a crash in the middle of a write left behind.

        Yields:
            The file's name, with its record or with what is wrong with it.
        """
        for name in sorted(os.listdir(self._directory)):
            if name.startswith(_TEMPORARY):
                self._tidy(name)
            elif not name.startswith((_LEFT, START, CHANGE, BESIDE)):
                yield name, self._found(name, name, decode)

    def leave(self, record: Record) -> None:
        """Write down that a machine is forgotten, but not its unit.

        Raises:
            OSError: it could not be written.
        """
        self.replace(_LEFT + record.name, record.name, encode(record))

    def vacate(self, name: str) -> None:
        """Remove what :meth:`leave` has written; nothing happens if that is gone.

        Raises:
            OSError: it is there and stays.
        """
        self.unlink(_LEFT + name)

    def left(self) -> Iterator[tuple[str, Record | BadRecord]]:
        """Read which machines were forgotten, but not their units, and remove what is of no use.

        Yields:
            The machine's name, with its record or with what is wrong with it.
        """
        return self.found(_LEFT, decode)

    # Files of any kind, also for what is under way

    def write(self, file: str, content: bytes) -> None:
        """Write a file. Whoever reads may find a part of it.

        Raises:
            OSError: it could not be written; nothing is left of it.
        """
        descriptor = os.open(
            file,
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
            dir_fd=self._directory,
        )
        try:
            if os.write(descriptor, content) != len(content):
                raise OSError(28, os.strerror(28))  # ENOSPC: tmpfs writes short only when it is full
        except OSError:
            os.unlink(file, dir_fd=self._directory)
            raise
        finally:
            os.close(descriptor)

    def replace(self, file: str, name: str, content: bytes) -> None:
        """Replace a file as a whole.

        Args:
            file: name of it.
            name: of the machine that it is of.
            content: its bytes.

        Raises:
            OSError: it could not be written; the old file is as it was.
        """
        temporary = _TEMPORARY + name
        self.write(temporary, content)
        try:
            os.rename(temporary, file, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError:
            os.unlink(temporary, dir_fd=self._directory)
            raise

    def unlink(self, file: str) -> None:
        """Remove a file; nothing happens if there is none.

        Raises:
            OSError: it is there and stays.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file, dir_fd=self._directory)

    def rename(self, file: str, other: str) -> None:
        """Give a file another name.

        Raises:
            FileNotFoundError: there is none.
            OSError: it keeps its name.
        """
        os.rename(file, other, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def found(self, prefix: str, decoded: Callable[[bytes, str], T]) -> Iterator[tuple[str, T | BadRecord]]:
        """Read all files whose names begin in a way, and remove those that are of no use.

        Args:
            prefix: of their names; the rest is the machine's, up to SEPARATOR.
            decoded: reads the content of one, given the name of its machine.

        Yields:
            The machine's name, with what its file holds or with what is wrong with it.
        """
        for file in sorted(os.listdir(self._directory)):
            if not file.startswith(prefix):
                continue
            name = file.removeprefix(prefix).partition(SEPARATOR)[0]
            found = self._found(name, file, decoded)
            if isinstance(found, BadRecord):
                self._tidy(file)
            yield name, found

    def _tidy(self, name: str) -> None:
        with contextlib.suppress(OSError):  # a directory, which is none of ours
            os.unlink(name, dir_fd=self._directory)

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
