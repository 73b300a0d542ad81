"""Events of machines, in order: their kinds, cursors, and the log of the latest ones. Pure.

An event has a position: µs since boot, or one more than the last where that is not more. So positions grow over
restarts of this service without being stored, also where the last ones could not be stored. A cursor is the position
of one event on the wire. What came after it is known only as long as that very event is kept: so a cursor is good
while its event is in the log, or was the last to leave it.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

import msgspec

from moorage.machines.model import Record

EVENTS_MAX = 64 * 1024
"""Events kept: a day of a host on which a machine comes and goes every three seconds."""

EVENT_BYTES_MAX = 16 * 1024 * 1024
"""Bytes of them, in memory, and on disk once more."""

EVENTS_CEILING = 1024 * 1024
"""The most events that may be asked for."""

EVENT_BYTES_CEILING = 256 * 1024 * 1024
"""The most bytes of them."""

SEGMENTS_MAX = 16
"""Parts in which the log is kept, on disk as files. The oldest leaves as a whole, so that at most a sixteenth less is
kept than the limits allow."""

_CURSOR = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})(-snapshot)?", re.ASCII)
_CURSOR_LENGTH_MAX = 58


class Kind(StrEnum):
    """Kinds of events; the values are those of io.moorage.Machine. Each has somebody who tells of it.

    Whoever has a new fact to tell adds its kind here, and calls :meth:`moorage.machines.followers.Followers.happened`.
    """

    machine_new = "machineNew"
    registration_failed = "registrationFailed"
    leader_exited = "leaderExited"
    empty = "empty"
    helper_started = "helperStarted"
    helper_failed = "helperFailed"
    helper_restarted = "helperRestarted"
    helper_reloaded = "helperReloaded"
    helper_removed = "helperRemoved"
    stopping = "stopping"
    lingering = "lingering"
    frozen = "frozen"
    thawed = "thawed"
    properties_changed = "propertiesChanged"
    limit_reached = "limitReached"
    oom_kill = "oomKill"
    exited = "exited"
    forgotten = "forgotten"
    lease_lost = "leaseLost"
    lease_resumed = "leaseResumed"
    published = "published"
    unpublished = "unpublished"


class BadCursor(Exception):
    """A text that is no cursor."""


class CursorExpired(Exception):
    """A cursor of which nobody knows any more, or not yet, what came after it."""


class Told(msgspec.Struct, omit_defaults=True):
    """Events of one machine that were reported, so that not even the next instance of the service reports one twice.

    Attributes:
        registrant: uid of its caller.
        leader_exited: its leader has ended.
        empty: its last process has left, and none came after it.
        stopping: it is being stopped.
        lingering: it was stopped, and has processes left.
        frozen: its control group is; None where nothing is known of what was told.
        published: machined lists it too.
        whole: its beginning is known.
        ended: it has exited, or was forgotten.
        helpers: names of those that it has.
        failed: of these, those that have failed, and were not started again.
        counts: how much was told of what is counted, by the words of :func:`counted`; None where nothing is known of
            what was told, or of what was there before the machine.
        record: its own, with the verdict as far as it is known, where it has ended, that is still to be told, and no
            record of it is left.
        since: position from which on the log has all of this: the base of the part with the machine's beginning, or
            with the last note of it; less than any where that is nowhere. Not stored.
    """

    registrant: int = 0
    leader_exited: bool = False
    empty: bool = False
    stopping: bool = False
    lingering: bool = False
    frozen: bool | None = False
    published: bool = False
    whole: bool = True
    ended: bool = False
    helpers: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    counts: dict[str, int] | None = msgspec.field(default_factory=dict[str, int])
    record: Record | None = None
    since: int = -1

    def admits(self, kind: str, helper: str = "") -> bool:
        """Whether an event is news, and not too late."""
        match kind:
            case _ if self.ended:
                return False
            case Kind.leader_exited:
                return not self.leader_exited
            case Kind.empty:
                return not self.empty
            case Kind.stopping:
                return not (self.stopping or self.empty)
            case Kind.lingering:
                return not self.lingering
            case Kind.frozen:
                return self.frozen is False
            case Kind.thawed:
                return self.frozen is True
            case Kind.published | Kind.unpublished:
                return self.published != (kind == Kind.published)
            case Kind.helper_failed:
                return helper not in self.failed
            case _:
                return True

    def note(self, kind: str, helpers: Iterable[str] = (), counted: tuple[str, int] | None = None) -> None:
        """Take note that an event was told.

        Args:
            kind: of the event.
            helpers: that it is about.
            counted: what it counts, and how much of it.
        """
        if counted is not None and self.counts is not None:
            what, count = counted
            self.counts[what] = self.counts.get(what, 0) + count
        match kind:
            case Kind.leader_exited:
                self.leader_exited = True
            case Kind.empty:
                self.empty = True
            case Kind.stopping:
                self.stopping = True
            case Kind.lingering:
                self.lingering = True
            case Kind.frozen | Kind.thawed:
                self.frozen = kind == Kind.frozen
            case Kind.published | Kind.unpublished:
                self.published = kind == Kind.published
            case Kind.exited | Kind.forgotten:
                self.ended = True
            case Kind.machine_new | Kind.helper_started:
                self.helpers |= set(helpers)
                self.failed -= set(helpers)
            case Kind.helper_failed:
                self.failed |= set(helpers)
            case Kind.helper_restarted:
                self.failed -= set(helpers)
            case Kind.helper_removed:
                self.helpers -= set(helpers)
                self.failed -= set(helpers)
            case _:
                pass


def counted(kind: str, fact: Mapping[str, object]) -> tuple[str, int] | None:
    """Return what an event counts, and how much of it, 0 where that is not known; None if it counts nothing.

    Args:
        kind: of the event.
        fact: what else is known.
    """
    match kind:
        case Kind.oom_kill:
            what = fact["by"]
        case Kind.limit_reached:
            what = fact["resource"]
        case _:
            return None
    count = fact.get("count")
    return str(what), count if isinstance(count, int) else 0


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One event, as it is kept.

    Attributes:
        position: its own, and greater than those before.
        kind: of it; one that this version does not know where another one has written it.
        name: of its machine.
        invocation_id: of the machine's unit; empty where it has none.
        registrant: uid that may know all of it.
        helpers: names of the helpers that it is about.
        whole: the message to those who may know all of it.
        public: the message to everybody else; the same object where there is no difference.
        counted: what it counts, and how much of it.
    """

    position: int
    kind: str
    name: str
    invocation_id: str
    registrant: int
    helpers: tuple[str, ...]
    whole: bytes
    public: bytes
    counted: tuple[str, int] | None = None

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return len(self.whole) + (0 if self.public is self.whole else len(self.public))


class Note(msgspec.Struct, frozen=True, gc=False):
    """What was told of a machine that has not ended: once its beginning leaves the log, this is kept instead.

    Attributes:
        name: of the machine.
        invocation_id: of its unit; empty where it has none.
        told: as it was when the note was taken.
    """

    name: str
    invocation_id: str
    told: Told


def cursor_of(boot_id: str, position: int, *, partial: bool = False) -> str:
    """Return the cursor of an event.

    Args:
        boot_id: 32 hexadecimal digits, or as a UUID.
        position: of the event.
        partial: it is a part of a snapshot, after which nobody can go on.
    """
    return f"{boot_id.replace('-', '')}-{position:016x}{'-snapshot' if partial else ''}"


def position_of(cursor: str, boot_id: str) -> int:
    """Return the position that a cursor stands for.

    Args:
        cursor: a text from anybody.
        boot_id: of this boot.

    Raises:
        BadCursor: it is none.
        CursorExpired: it is of another boot, or of a part of a snapshot.
    """
    found = _CURSOR.fullmatch(cursor) if len(cursor) <= _CURSOR_LENGTH_MAX else None
    if found is None:
        raise BadCursor
    if found[1] != boot_id.replace("-", "") or found[3]:
        raise CursorExpired
    return int(found[2], 16)


class Extent(msgspec.Struct, frozen=True):
    """The number of events that are kept, and their size.

    Attributes:
        events: how many; at least one for each part.
        size: bytes of them.
    """

    events: int = EVENTS_MAX
    size: int = EVENT_BYTES_MAX


class Segment(msgspec.Struct):
    """A part of the log.

    Attributes:
        base: position of the last event before it, or a time before the first.
        count: number of its events.
        size: bytes of them.
    """

    base: int
    count: int = 0
    size: int = 0

    def has_room(self, size: int, extent: Extent) -> bool:
        """Whether an event of that size may be added."""
        return self.count < extent.events // SEGMENTS_MAX and self.size + size <= extent.size // SEGMENTS_MAX

    def add(self, entry: Entry) -> None:
        """Count an event."""
        self.count += 1
        self.size += entry.size


class EventLog:
    """The latest events, numbered from the first that this instance knows.

    Args:
        base: µs since boot: nothing is known of what came before.
        extent: how much is kept.

    Attributes:
        first: number of the oldest event that is kept.
    """

    def __init__(self, base: int, extent: Extent = Extent()) -> None:  # noqa: B008 - frozen
        self.first = 0
        self._extent = extent
        self._entries: list[Entry] = []
        self._segments = [Segment(base)]
        self._notes: list[
            tuple[int, Note]
        ] = []  # that were read, each with the number of the event after it

    @property
    def end(self) -> int:
        """Number that the next event will have."""
        return self.first + len(self._entries)

    @property
    def base(self) -> int:
        """Position of the last event before the oldest that is kept, or a time before that."""
        return self._segments[0].base

    @property
    def last(self) -> int:
        """Position of the latest event; the base where there is none."""
        return self._entries[-1].position if self._entries else self.base

    @property
    def last_part(self) -> int:
        """Base of the latest part."""
        return self._segments[-1].base

    @property
    def segments(self) -> Sequence[Segment]:
        """Its parts, oldest first; always at least one."""
        return self._segments

    def begins_segment(self, size: int) -> bool:
        """Whether an event of that size begins another part."""
        return not self._segments[-1].has_room(size, self._extent)

    def begin(self) -> None:
        """Begin another part."""
        self._segments.append(Segment(self.last))

    def note(self, note: Note) -> None:
        """Add a note that was read."""
        self._notes.append((self.end, note))

    def append(self, entry: Entry, *, begins: bool) -> list[Entry]:
        """Add an event.

        Args:
            entry: of a position after the last.
            begins: it begins another part.

        Returns:
            Those that leave the log to make room.
        """
        if begins:
            self.begin()
        self._entries.append(entry)
        self._segments[-1].add(entry)
        return self.trim() if begins else []

    def trim(self) -> list[Entry]:
        """Drop the oldest segments until the limits hold; return their events.

        Only a log of an instance that kept more has more than one part too many.
        """
        count = 0
        while len(self._segments) > 1 and self._has_too_much(count):
            count += self._segments.pop(0).count
        dropped, self._entries[:count] = self._entries[:count], []
        self.first += count
        return dropped

    def _has_too_much(self, leaving: int) -> bool:
        return (
            len(self._segments) > SEGMENTS_MAX
            or len(self._entries) - leaving > self._extent.events
            or sum(segment.size for segment in self._segments) > self._extent.size
        )

    def since(self, number: int, most: int) -> list[Entry]:
        """Return events from a number on.

        Args:
            number: not before the first that is kept.
            most: how many of them.
        """
        start = number - self.first
        return self._entries[start : start + most]

    def after(self, position: int) -> int:
        """Return the number of the event that came after the one of a position.

        Raises:
            CursorExpired: that one is not kept.
        """
        if position == self.base:
            return self.first
        index = bisect.bisect_left(self._entries, position, key=lambda entry: entry.position)
        if index == len(self._entries) or self._entries[index].position != position:
            raise CursorExpired
        return self.first + index + 1

    def take_stories(self) -> dict[tuple[str, str], Told]:
        """Return what was told of each machine that has not ended, by its name and invocation ID; give the notes away.

        Of one that is older than the log, and of which there is no note, its latest events may be known, and have to
        be followed by an end.
        """
        stories: dict[tuple[str, str], Told] = {}
        notes, self._notes = self._notes, []
        notes.reverse()
        number = self.first
        for segment in self._segments:
            for entry in self.since(number, segment.count):
                self._go_on(stories, notes, number, segment.base)
                _tell(stories, entry, segment.base)
                number += 1
            self._go_on(stories, notes, number, segment.base)
        return stories

    def _go_on(
        self, stories: dict[tuple[str, str], Told], notes: list[tuple[int, Note]], number: int, base: int
    ) -> None:
        """Go on with what is noted before an event, in a part with that base."""
        while notes and notes[-1][0] <= number:
            _, note = notes.pop()
            note.told.since = base
            stories[note.name, note.invocation_id] = note.told


def _tell(stories: dict[tuple[str, str], Told], entry: Entry, base: int) -> None:
    """Take note of an event in a part with that base."""
    if entry.kind == Kind.registration_failed:
        return
    key = entry.name, entry.invocation_id
    begins = entry.kind == Kind.machine_new
    if begins or key not in stories:
        stories[key] = Told(registrant=entry.registrant, whole=begins, since=base)
    told = stories[key]
    told.note(entry.kind, entry.helpers, entry.counted)
    if told.ended:
        del stories[key]
