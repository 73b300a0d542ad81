"""The chronicle: takes note of every fact about machines, once, and has it told and kept.

Facts come by :mod:`moorage.machines.followers`, each from whoever has found it; here it is only decided whether it is
news. The next instance of this service begins with what this one has told (:meth:`Chronicle.opened`), so that what
ended meanwhile is told then, and nothing twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from moorage.kernel.system import System
from moorage.machines.event_files import EventFiles
from moorage.machines.events import Entry, EventLog, Kind, Note, Told, counted, cursor_of
from moorage.machines.followers import Fact, Follower
from moorage.machines.helpers.status import HelperStates
from moorage.machines.machine import Machine
from moorage.machines.model import Cause, HelperStatus, Registration, Timestamp
from moorage.machines.registry import Registry
from moorage.machines.subscriptions import Filter, Subscription, Subscriptions

Key: TypeAlias = tuple[str, str]


class Messages(NamedTuple):
    """An event as it is told.

    Attributes:
        whole: to those who may know all of it.
        public: to everybody else; the same object where there is no difference.
    """

    whole: bytes
    public: bytes


class Happened(msgspec.Struct, frozen=True):
    """Something that is to be told.

    Attributes:
        cursor: of the event.
        at: when it was noticed.
        kind: of the event.
        name: of the machine.
        invocation_id: of its unit, if it has one.
        data: what else is known.
        machine: the machine; None where there is no record of it.
        helpers: their states, of a machine that is new.
        error: why a registration failed.
    """

    cursor: str
    at: Timestamp
    kind: Kind
    name: str
    invocation_id: str
    data: Fact
    machine: Machine | None = None
    helpers: tuple[HelperStatus, ...] = ()
    error: Exception | None = None


class Scribe(Protocol):
    """Words what is told."""

    def write(self, happened: Happened) -> Messages:
        """Return the messages about an event."""
        ...

    def write_lost(self, cursor: str, at: Timestamp, count: int) -> bytes:
        """Return the message that events were not told.

        Args:
            cursor: of the last of them.
            at: when it was noticed.
            count: how many.
        """
        ...


class Recorder(Protocol):
    """A recorder of events besides the log."""

    def record(self, happened: Happened) -> None:
        """Take note of an event; neither waits nor raises."""
        ...


class Chronicle(Follower):
    """Keeps the log of events.

    Attributes:
        counts: events that were told by this instance, by kind.
        ends: machines that have ended, by the cause of that.
    """

    def __init__(
        self,
        files: EventFiles,
        scribe: Scribe,
        registry: Registry,
        states: HelperStates,
        system: System,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self._files = files
        self._scribe = scribe
        self._registry = registry
        self._states = states
        self._clock = system.clock
        self._boot_id = system.processes.boot_id()
        self._subscriptions = Subscriptions(self._boot_id)
        self._log = EventLog(self._clock.monotonic())
        self._recorders: list[Recorder] = []
        # What the instance before has told of machines that had not ended: until they are found again.
        self._stories: dict[Key, Told] | None = None
        self._ending: dict[Key, Machine] = {}  # those whose end is being looked into

    def join(self, recorder: Recorder) -> None:
        """Add a recorder of all later events."""
        self._recorders.append(recorder)

    def open(self) -> None:
        """Go on with the log of the instance before. Machines that are added from now on were found again."""
        self._log = self._files.load(self._clock.monotonic())
        self._stories = self._log.take_stories()
        self._log.trim()

    def opened(self) -> None:
        """Report machines that were not found again: they had ended, or were forgotten."""
        stories = self._stories or {}
        for name, invocation_id in list(stories):
            told = stories[name, invocation_id]
            machine = self._registry.verdict(name)
            if machine is None or machine.record.invocation_id != invocation_id:
                machine = _unrecorded(told)
            if machine is not None:
                machine.told = told
                self.changed(machine)
            else:
                self._write(Kind.forgotten, name, invocation_id, told.registrant, told=told)
            del stories[name, invocation_id]
        self._stories = None
        self._keep_notes()  # also of machines of which the log knows nothing, but which whoever asks is shown

    async def run(self) -> None:
        """Have told what happens, for ever."""
        await self._subscriptions.run()

    def close(self) -> None:
        """Write nothing down any more."""
        self._files.close()

    def subscribe(
        self,
        wanted: Filter,
        sees: Callable[[int], bool],
        *,
        cursor: str | None = None,
        oldest: bool = False,
    ) -> Subscription:
        """Begin to tell somebody: what happens from now on, or what came after a cursor, or all that is kept.

        Args:
            wanted: what is to be told.
            sees: whether it may know all of the machines of a registrant, by uid.
            cursor: of the last event that was told.
            oldest: begin with the oldest event that is kept.

        Raises:
            BadCursor: that is none.
            CursorExpired: what came after it is not known any more.
        """
        return self._subscriptions.begin(
            self._log, wanted, sees, self._write_lost, cursor=cursor, oldest=oldest
        )

    def unsubscribe(self, subscription: Subscription) -> None:
        """Tell somebody no more."""
        self._subscriptions.end(subscription)

    def present(self, *, partial: bool = False, oldest: bool = False) -> tuple[str, Timestamp]:
        """Return the cursor of the latest event, and the time.

        Args:
            partial: the cursor is for a part of a snapshot, after which nobody can go on.
            oldest: the cursor is that before the oldest event that is kept.
        """
        position = self._log.base if oldest else self._log.last
        return cursor_of(self._boot_id, position, partial=partial), self._now()

    @property
    def subscribers(self) -> int:
        """Number of those who are told."""
        return len(self._subscriptions)

    @property
    def ending(self) -> tuple[Machine, ...]:
        """The machines that have ended a moment ago, and of which that will be told: it is being looked into."""
        return tuple(self._ending.values())

    # What is told of machines

    def added(self, machine: Machine) -> None:
        """Report a new machine, also to the log; one that was found again only if the log lacks it."""
        told = None
        if self._stories is not None:
            told = self._stories.pop(_key(machine), None)
            older = machine.record.timestamp.monotonic <= self._log.base
            if (told is None and older) or (told is not None and not told.whole):
                helpers = frozenset(helper.name for helper in machine.record.helpers)
                told = Told(frozen=None, helpers=helpers, counts=None)
        if (before := self._ending.get(_key(machine))) is not None:
            # Nobody could tell what is told of the one from what is told of the other, in the same unit.
            self.changed(before)
        machine.told = told or Told()
        machine.told.registrant = machine.record.registrant
        if not machine.record.allocated:
            machine.told.counts = None  # its control group was there before
        if told is None:
            statuses = tuple(self._states.statuses(machine.record.helpers))
            self._tell(machine, Kind.machine_new, {}, statuses)
            machine.told.since = self._log.last_part
        else:
            self._compare_helpers(machine)

    def changed(self, machine: Machine) -> None:
        """Report a verdict that is complete, or helpers that came and went."""
        if machine.record.verdict is not None:
            if self._ending.get(_key(machine)) is machine:
                del self._ending[_key(machine)]
            self.ends[machine.record.verdict.cause or Cause.unknown] += 1
            self._tell(machine, Kind.exited, {})
        else:
            self._compare_helpers(machine)

    def unrecorded(self, machine: Machine) -> None:
        """Note how a machine has ended, if that is still to be told: the next instance will find no record of it."""
        if self._ending.get(_key(machine)) is machine:
            self._files.note([_note(machine)])

    def ended(self, machine: Machine) -> None:
        """Report a machine that was forgotten. One that has ended is reported once its verdict is complete."""
        if machine.record.verdict is None:
            self._tell(machine, Kind.forgotten, {})
        else:
            self._ending[_key(machine)] = machine

    def happened(self, machine: Machine, kind: Kind, fact: Fact) -> None:
        """Report a fact, if it is news."""
        if machine.told is not None and machine.told.admits(kind, str(fact.get("helper", ""))):
            self._tell(machine, kind, fact)

    def failed(self, registration: Registration, error: Exception) -> None:
        """Report a registration that has failed."""
        self._write(Kind.registration_failed, registration.name, "", registration.registrant, error=error)

    def _compare_helpers(self, machine: Machine) -> None:
        assert machine.told is not None
        names = {helper.name for helper in machine.record.helpers}
        for name in sorted(machine.told.helpers - names):
            self._tell(machine, Kind.helper_removed, {"helper": name})
        for name in sorted(names - machine.told.helpers):
            self._tell(machine, Kind.helper_started, {"helper": name})

    def _tell(
        self, machine: Machine, kind: Kind, fact: Fact, helpers: tuple[HelperStatus, ...] = ()
    ) -> None:
        told, record = machine.told, machine.record
        if told is None or told.ended:
            return
        if "helper" in fact:
            names = (str(fact["helper"]),)
        else:
            names = tuple(helper.name for helper in record.helpers) if kind is Kind.machine_new else ()
        self._write(
            kind,
            record.name,
            record.invocation_id,
            record.registrant,
            told=told,
            fact=fact,
            machine=machine,
            statuses=helpers,
            helpers=names,
        )

    def _write(
        self,
        kind: Kind,
        name: str,
        invocation_id: str,
        registrant: int,
        *,
        told: Told | None = None,
        fact: Fact | None = None,
        machine: Machine | None = None,
        statuses: tuple[HelperStatus, ...] = (),
        helpers: tuple[str, ...] = (),
        error: Exception | None = None,
    ) -> None:
        self.counts[kind] += 1
        log, at = self._log, self._now()
        if self._files.spoiled:
            self._files.renew(log, self._notes(all_of_them=True))  # of what was told before this
        position = max(log.last + 1, at.monotonic)
        cursor = cursor_of(self._boot_id, position)
        data: Mapping[str, object] = fact or {}
        happened = Happened(cursor, at, kind, name, invocation_id, data, machine, statuses, error)
        whole, public = self._scribe.write(happened)
        counts = counted(kind, data)
        if told is not None:
            told.note(kind, helpers, counts)
        entry = Entry(position, kind, name, invocation_id, registrant, helpers, whole, public, counts)
        begins = log.begins_segment(entry.size)
        self._files.append(log, entry, begins=begins)
        if dropped := log.append(entry, begins=begins):
            self._keep_notes()
            self._subscriptions.drop(log.first, dropped)
        self._subscriptions.wake()
        for recorder in self._recorders:
            recorder.record(happened)

    def _keep_notes(self) -> None:
        """Drop from disk what has left the log, but keep notes of the machines that it tells of and that go on."""
        self._files.note(self._notes())
        self._files.drop(self._log.base)

    def _notes(self, *, all_of_them: bool = False) -> Iterator[Note]:
        """Take notes of machines that have not ended; of those that the log does not tell of, or of all of them."""
        base, since = self._log.base, self._log.last_part
        for note, told in self._unfinished():
            if all_of_them or told.since < base:
                yield note()
                told.since = since

    def _unfinished(self) -> Iterator[tuple[Callable[[], Note], Told]]:
        for machine in (*self._registry.snapshot(), *self._ending.values()):
            if machine.told is not None and not machine.told.ended:
                yield partial(_note, machine), machine.told
        for (name, invocation_id), told in (self._stories or {}).items():
            if not told.ended:
                yield partial(Note, name, invocation_id, msgspec.structs.replace(told, since=-1)), told

    def _write_lost(self, cursor: str, count: int) -> bytes:
        return self._scribe.write_lost(cursor, self._now(), count)

    def _now(self) -> Timestamp:
        return Timestamp(self._clock.realtime(), self._clock.monotonic())


def _note(machine: Machine) -> Note:
    assert machine.told is not None
    record = None if machine.record.verdict is None else machine.record
    told = msgspec.structs.replace(machine.told, record=record, since=-1)
    return Note(machine.name, machine.record.invocation_id, told)


def _unrecorded(told: Told) -> Machine | None:
    """Return a machine that has ended, of which there is a note instead of a record; None if there is none."""
    record = told.record
    return None if record is None or record.verdict is None else Machine(record)


def _key(machine: Machine) -> Key:
    return machine.name, machine.record.invocation_id
