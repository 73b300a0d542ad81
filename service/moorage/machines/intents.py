"""Operations under way, written down before they begin, for the next instance should this one be killed.

Between the manager's start of a scope and the record there is a moment in which this service may be killed. So what is
asked for is written down before: an *intent*, a record without a place, removed when the record is there or the start
was taken back. The intent says what was asked for; whether a scope that has the name is the one that came of it, the
scope says by its mark (:meth:`Intents.mark`), which only the manager keeps. We need both. The intent holds what others
may not read (the registrant, paths of keys); the mark proves that the scope is the one we asked for, which its name or
its leader cannot. An intent needs no rename: one that is not whole was never followed by a start. Helpers that are
added to a machine, or removed, have an intent of their own, and their units the mark of that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator

import msgspec

from moorage.kernel.process import boot_id
from moorage.machines.helpers.units import Change
from moorage.machines.model import Intent
from moorage.machines.store import (
    CHANGE,
    SEPARATOR,
    START,
    VERSION,
    BadRecord,
    Store,
    check_stored,
    decode_intent,
    decoded,
    encode_intent,
)


class StoredChange(msgspec.Struct, frozen=True):
    """The stored form of a :class:`~moorage.machines.helpers.units.Change`, with version and boot."""

    version: int
    boot_id: str
    change: Change


_RESERVED = re.compile(rb"[^A-Za-z0-9/._~-]")
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(StoredChange)
_log = logging.getLogger(__name__)


def encode_change(change: Change) -> bytes:
    """Return the stored form of the intent of a change."""
    return _encoder.encode(StoredChange(VERSION, boot_id(), change))


def decode_change(content: bytes, name: str) -> Change:
    """Read the intent of a change back.

    Args:
        content: its bytes.
        name: the machine that it should be of.

    Raises:
        BadRecord: it is damaged, of a newer version, of another boot, or of another machine.
    """
    stored = decoded(_decoder, content)
    check_stored(stored.version, stored.boot_id, stored.change.machine, name)
    return stored.change


def _file(change: Change) -> str:
    """Name the intent of a change: one that is finished later has others of its machine beside it."""
    return f"{CHANGE}{change.machine}{SEPARATOR}{change.timestamp.monotonic}"


class Intents:
    """Starts and changes under way.

    Attributes:
        marks: what all marks begin with.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # RFC 3986, 2.1; urllib.parse would be a fiftieth of the start.
        whole = _RESERVED.sub(
            lambda match: b"%%%02X" % ord(match[0]), os.fsencode(os.path.abspath(store.path))
        )
        self.marks = f"file:{whole.decode()}/"

    def mark(self, begun: Intent | Change) -> str:
        """Return what tells the units of an intent from all others: where the record is, and the intent's time.

        It is kept by the manager as ``Documentation=`` of the units (systemd.unit(5)): there systemctl shows it to
        people as well, and no other property of a scope is both free for any text and without effect.
        """
        name = begun.name if isinstance(begun, Intent) else begun.machine
        return f"{self.marks_of(name)}{begun.timestamp.monotonic}"

    def marks_of(self, machine: str) -> str:
        """Return what all marks begin with that units of one machine have."""
        return f"{self.marks}{machine}#"

    def intend(self, intent: Intent) -> None:
        """Write down what is about to be started.

        Raises:
            OSError: it could not be written; nothing is left of it.
        """
        self._store.write(START + intent.name, encode_intent(intent))

    def revoke(self, intent: Intent) -> None:
        """Write down that what was about to be started is not wanted any more; a whole intent is never missing."""
        revoked = msgspec.structs.replace(intent, revoked=True)
        try:
            self._store.replace(START + intent.name, intent.name, encode_intent(revoked))
        except OSError as error:  # whoever comes after us may keep it
            _log.warning("Failed to note that %s is taken back, ignoring: %s", intent.scope, error)

    def withdraw(self, machine: str) -> None:
        """Remove the intent to start a machine; nothing happens if there is none."""
        try:
            self._store.unlink(START + machine)
        except OSError as error:
            _log.warning("Failed to remove the intent of machine %s, ignoring: %s", machine, error)

    def withdrawal(self, machine: str) -> Callable[..., None]:
        """Return an exit callback that removes an intent, except when this service itself is shutting down.

        Then the next instance resumes from it.
        """

        def withdraw(kind: type[BaseException] | None, *_: object) -> None:
            if kind is None or issubclass(kind, Exception):
                self.withdraw(machine)

        return withdraw

    def starts(self) -> Iterator[tuple[str, Intent | BadRecord]]:
        """Read what was about to be started when the service was killed, and remove what is of no use.

        Yields:
            The machine's name, with what was asked for or with what is wrong with it.
        """
        return self._store.found(START, decode_intent)

    def intend_change(self, change: Change) -> None:
        """Write down what is about to be done with helpers of a machine.

        Raises:
            OSError: it could not be written; nothing is left of it.
        """
        self._store.write(_file(change), encode_change(change))

    def withdraw_change(self, change: Change) -> None:
        """Remove the intent of a change; nothing happens if there is none."""
        try:
            self._store.unlink(_file(change))
        except OSError as error:
            _log.warning(
                "Failed to remove the intent of a change of machine %s, ignoring: %s", change.machine, error
            )

    def changes(self) -> Iterator[tuple[str, Change | BadRecord]]:
        """Read what was being done with helpers when the service was killed, and remove what is of no use.

        Yields:
            The machine's name, with the change or with what is wrong with its intent.
        """
        for name, found in self._store.found(CHANGE, decode_change):
            if isinstance(found, Change):
                # Versions before wrote one for each machine. If it keeps its name, it is gone on with once more.
                with contextlib.suppress(OSError):
                    self._store.rename(CHANGE + name, _file(found))
            yield name, found
