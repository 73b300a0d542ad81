"""What machined has, and is not to be adopted: what was published, and what was forgotten here.

A note is written before machined is told of a machine of ours, or when one is forgotten that was adopted, and removed
when machined has it no more. So nothing that was published or forgotten comes back as machined's, however this service
ends in between, and whatever becomes of the records.
"""

from __future__ import annotations

import logging

import msgspec

from moorage.kernel.process import ProcessId, boot_id
from moorage.machines.store import BESIDE, VERSION, BadRecord, Store, check_stored, decoded
from moorage.names import is_host_name

_log = logging.getLogger(__name__)


class Note(msgspec.Struct, frozen=True):
    """A machine of machined's that is not to be adopted.

    Attributes:
        name: of it.
        leader: of it: another machine of that name is not meant. None for any, where it is not known any more.
        ours: this service has registered it there, or is about to, and takes it back.
    """

    name: str
    leader: ProcessId | None
    ours: bool

    def is_of(self, leader: ProcessId | None) -> bool:
        """Whether a machine of that name and that leader is meant."""
        return self.leader is None or self.leader == leader


class _StoredNote(msgspec.Struct, frozen=True):
    version: int
    boot_id: str
    note: Note


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_StoredNote)


def decode_note(content: bytes, name: str) -> Note:
    """Read a note back.

    Args:
        content: its bytes.
        name: the machine that it should be of.

    Raises:
        BadRecord: it is damaged, of a newer version, of another boot, or of another machine.
    """
    stored = decoded(_decoder, content)
    check_stored(stored.version, stored.boot_id, stored.note.name, name)
    return stored.note


class Notes:
    """All notes, in memory and on disk."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._notes: dict[str, Note] = {}

    def restore(self) -> None:
        """Go on with the notes of the instance before."""
        for name, found in self._store.found(BESIDE, decode_note):
            if isinstance(found, BadRecord):
                _log.warning("Failed to load the note about machine %s, leaving it alone: %s", name, found)
                if is_host_name(name):
                    self.add(Note(name, None, ours=False))
            else:
                self._notes[name] = found

    @property
    def names(self) -> frozenset[str]:
        """The names of the machines that there are notes about."""
        return frozenset(self._notes)

    def get(self, name: str) -> Note | None:
        """Return the note about the machine of a name."""
        return self._notes.get(name)

    def add(self, note: Note) -> None:
        """Take note of a machine.

        Raises:
            OSError: one about a machine of ours could not be written, and there is none.
        """
        try:
            self._store.write(BESIDE + note.name, _encoder.encode(_StoredNote(VERSION, boot_id(), note)))
        except OSError as error:
            if note.ours:
                raise
            _log.warning("Failed to write the note about machine %s, ignoring: %s", note.name, error)
        self._notes[note.name] = note

    def drop(self, name: str) -> None:
        """Drop the note about the machine of a name; nothing happens if there is none."""
        if self._notes.pop(name, None) is None:
            return
        try:
            self._store.unlink(BESIDE + name)
        except OSError as error:
            _log.warning("Failed to remove the note about machine %s, ignoring: %s", name, error)
