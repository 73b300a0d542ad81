"""The one live object of each machine: what is known about it now, in one place.

What is stored and shown is its :class:`~moorage.machines.model.Record`, which is frozen. Everybody may read a machine;
only its own methods write it. It holds an event and awaits nothing.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from enum import StrEnum
from typing import Protocol

import msgspec
import trio

from moorage.kernel.process import Exit
from moorage.machines.accounting import NOTHING_COUNTED, Accounting
from moorage.machines.errors import TooMuchUnderWay
from moorage.machines.events import Told
from moorage.machines.model import (
    Bases,
    Cause,
    End,
    Helper,
    HelperEnd,
    Origin,
    Phase,
    Record,
    Timestamp,
    Verdict,
)
from moorage.machines.once import Once
from moorage.machines.reached import Reached
from moorage.pid1.errors import UnitBusy
from moorage.pid1.manager import UnitHint

UNDER_WAY_MAX = 64
"""Stops of one machine that are under way at once, and as many leases, changes of its helpers, and calls to freeze or
to thaw it: they go on without their callers, so that who hangs up and calls again would leave any number of them."""


class Work(StrEnum):
    """Kinds of what goes on with a machine without its caller; `insist`: it was not stopped, and is in a while."""

    stop = "stop"
    stop_without = "stop without a helper"
    lease = "lease"
    change = "change"
    insist = "insist"
    freeze = "freeze"
    thaw = "thaw"


class Waiting(Protocol):
    """Somebody who wants to be told before the machine is stopped, see `Grace.join`."""

    seconds: float

    def wake(self) -> None:
        """Have it look at the machine."""
        ...


class Period:
    """Time that a machine is given to end by itself.

    Attributes:
        deadline: when it is over, on trio's clock.
        insist_by: the same, µs since boot.
        power_off: its guest is asked to power off.
        ended: it is over, or its machine is gone.
        refusal: what the manager said to the stop that came after it; None if it has said nothing.
        refused: it has said something.
    """

    def __init__(self, deadline: float, insist_by: int, *, power_off: bool) -> None:
        self.deadline = deadline
        self.insist_by = insist_by
        self.power_off = power_off
        self.ended = trio.Event()
        self.refusal: UnitBusy | None = None
        self.refused = trio.Event()
        self._shortened = trio.Event()

    def shorten(self, deadline: float) -> None:
        """Bring the deadline forward; do nothing if it is earlier already."""
        if deadline < self.deadline:
            self.deadline = deadline
            self._shortened.set()

    def refuse(self, refusal: UnitBusy) -> None:
        """Take note that the manager does not stop the machine now."""
        self.refusal = refusal
        self.refused.set()

    async def over(self, gone: Once) -> None:
        """Wait until it is over, or its machine is gone."""
        while not gone.is_set() and trio.current_time() < self.deadline:
            self._shortened = trio.Event()
            with trio.move_on_at(self.deadline):
                await either(gone, self._shortened)


async def either(*events: trio.Event | Once) -> None:
    """Wait until one of some events has happened."""
    async with trio.open_nursery() as nursery:
        for event in events:
            nursery.start_soon(_wait, event, nursery.cancel_scope)


async def _wait(event: trio.Event | Once, over: trio.CancelScope) -> None:
    await event.wait()
    over.cancel()


class Leader(Protocol):
    """A leader that is watched, see :class:`moorage.machines.leader.WatchedLeader`."""

    exit: Exit | None
    reaped: Once

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        ...

    @property
    def pidfd(self) -> int | None:
        """Borrowed; None once the leader has ended, or is watched no more."""
        ...

    def elsewhere(self, control_group: str) -> str | None:
        """Return the control group that the leader is in, if it lives, and not in this one or below."""
        ...

    def close(self) -> None:
        """Stop watching; nothing happens if that is over already."""
        ...


class Recheck(msgspec.Struct):
    """Why a machine is to be looked at.

    Attributes:
        new: it was registered a moment ago: for what happened before it was watched.
        ask: the kernel's word is not enough.
        removed: the manager has forgotten its unit.
        ended: what the manager said of its unit, which has ended for good.
    """

    new: bool = False
    ask: bool = False
    removed: bool = False
    ended: UnitHint | None = None


class Attested(msgspec.Struct, frozen=True):
    """An end by the word of the service manager.

    Attributes:
        at: when it was.
        stopped: the unit was being stopped before.
    """

    at: Timestamp
    stopped: bool


class Machine:
    """A machine, living or gone.

    Attributes:
        record: what is stored and shown.
        leader: its leader, watched; None where that had ended before it could be.
        gone: set once it has ended, or was forgotten.
        completed: set once its verdict is complete, a moment after its end.
        recheck: why it is to be looked at; None if it is not. Written by the agenda.
        due: when it is to be looked at again, on trio's clock. Written by the agenda.
        watched: this service has seen all of its life, and the signals of the service manager that came with it.
        attested: what the service manager tells of an end that nobody has watched; None if it is not asked. Written by
            `Watching`.
        emptied_at: when its last process was seen to be gone; None while it has any.
        counters: the last of its control group that were read.
        final: they were read when the last process had gone.
        accounted: nobody knows more of what it has consumed, and of who was killed.
        by_itself: its unit was active until it had ended, by the word of the service manager. Written by
            `Observer` and `Watching`.
        deactivating: its unit was seen to be stopped before this service was asked to stop it.
        frozen: its control group was, when that was last read.
        helpers_frozen: some of its helpers were, or are, by a call to this service.
        result: of its unit, which has ended; kept here since the manager may forget it.
        leader_gone: its leader had ended before it could be watched.
        asking: what has its leader or supervisor end, by a signal; None if nothing does. Written by `Asking`.
        period: time that it is given to end by itself; None if it is not. Written by `Grace`.
        reached: what is known of its limits; None while they are not watched. Written by `LimitWatch`.
        waiting: who wants to be told before it is stopped. Written by `Grace`.
        told: what was told of it; None while nothing is to be. Written by the chronicle.
        published: machined lists it too; None where that is to be tried. Written beside machined.
        control_socket: path of the socket of ours that it is controlled at; None while there is none. Written by
            `ControlSockets`.
    """

    __slots__ = (
        "_stopping",
        "_work",
        "accounted",
        "asking",
        "attested",
        "by_itself",
        "completed",
        "control_socket",
        "counters",
        "deactivating",
        "due",
        "emptied_at",
        "final",
        "frozen",
        "gone",
        "helpers_frozen",
        "leader",
        "leader_gone",
        "period",
        "published",
        "reached",
        "recheck",
        "record",
        "result",
        "told",
        "waiting",
        "watched",
    )

    def __init__(self, record: Record, *, watched: bool = True) -> None:
        self.record = record
        self.leader: Leader | None = None
        self.gone = Once()
        self.completed = Once()
        self.recheck: Recheck | None = None
        self.due = math.inf
        self.watched = watched
        self.attested: Attested | None = None
        self.emptied_at: Timestamp | None = None
        self.counters = NOTHING_COUNTED
        self.final = False
        self.accounted = False
        self.by_itself = False
        self.deactivating = False
        self.frozen = False
        self.helpers_frozen = False
        self.result: str | None = None
        self.leader_gone = False
        self.asking: object = None
        self.period: Period | None = None
        self.reached: Reached | None = None
        self.waiting: tuple[Waiting, ...] = ()
        self.told: Told | None = None
        self.published: bool | None = True if record.origin is Origin.adopted else None
        self.control_socket: str | None = None
        self._stopping = False  # its unit is deactivating
        self._work: tuple[Work, ...] = ()  # most of the time of most machines there is none
        if record.verdict is not None:
            self.gone.set()
            self.completed.set()
        elif record.end is not None:
            # As an instance before has seen it, which ended before the verdict was complete.
            end = record.end
            self.emptied_at, self.result, self.watched = end.found_at, end.result, end.watched
            self.attested = Attested(end.found_at, stopped=False) if end.attested else None
            self.deactivating, self.counters, self.final = end.deactivating, end.accounting, end.final

    @property
    def name(self) -> str:
        """Its name, unique among the living."""
        return self.record.name

    @property
    def unit(self) -> str:
        """Name of the unit that it lives in."""
        return self.record.placement.unit

    @property
    def is_there(self) -> bool:
        """Whether any process of it is left. One without is listed no more, even before its unit goes."""
        return self.emptied_at is None

    @property
    def phase(self) -> Phase:
        """Its phase, derived from what is known of it."""
        if self.record.verdict is not None:
            return Phase.exited
        if self.result is not None and self.is_there:
            return Phase.lingering
        asked = self.asking is not None or self.period is not None
        stopping = asked or Work.stop in self._work or Work.insist in self._work or self._stopping
        return Phase.stopping if stopping or not self.is_there else Phase.running

    def has_under_way(self, kind: Work) -> bool:
        """Whether something of a kind goes on with it without its caller."""
        return kind in self._work

    @contextmanager
    def under_way(self, kind: Work) -> Generator[None]:
        """Count something that goes on with it without its caller.

        Raises:
            TooMuchUnderWay: there is too much of it.
        """
        if self._work.count(kind) >= UNDER_WAY_MAX and kind is not Work.insist:  # these go on in any case
            raise TooMuchUnderWay
        self._work += (kind,)
        try:
            yield
        finally:
            at = self._work.index(kind)
            self._work = self._work[:at] + self._work[at + 1 :]

    # What was seen of it

    def was_frozen(self, *, frozen: bool) -> None:
        """Take note of whether its control group is frozen."""
        self.frozen = frozen

    def lost_sight(self) -> None:
        """Take note that signals of the service manager may have been missed."""
        self.watched = False

    def was_populated(self) -> bool:
        """Take note that it has processes; return whether it had none before."""
        self.watched = True
        emptied, self.emptied_at = self.emptied_at, None
        if self.told is not None:
            self.told.empty = False
        if emptied is not None:
            self.final = self.accounted = False
        return emptied is not None

    def was_emptied(self, at: Timestamp) -> bool:
        """Take note that it has no process any more; return whether that is news."""
        if self.emptied_at is not None:
            return False
        self.emptied_at = at
        return True

    def was_read(self, counters: Accounting, *, final: bool) -> None:
        """Take note of its counters; final: they will change no more."""
        self.counters = counters
        self.final = final

    def unit_stops(self, *, begins: bool = False) -> bool:
        """Take note that its unit is being stopped.

        Args:
            begins: it began at this moment: by others, unless this service was asked to.

        Returns:
            Whether it is known that others stop it.
        """
        self._stopping = True
        if begins and self.record.asked is None and Work.stop not in self._work:
            self.deactivating = True
        return self.deactivating

    def unit_ended(self, result: str) -> None:
        """Take note of how its unit ended. The first word is the best: the manager may forget it."""
        if self.result is None:
            self.result = result

    def unit_runs(self) -> None:
        """Take note that its unit is active, with processes: nothing that was to stop it has."""
        self._stopping = False
        self.result = None

    # What is done with it

    def was_asked_to_end(
        self, cause: Cause, lost: HelperEnd | None = None, *, insist_by: int | None = None
    ) -> None:
        """Take note of why it is stopped, without which helper, and by when; the first reason counts."""
        if self.record.asked is None:
            self._change(asked=cause, lost=lost, insist_by=insist_by)

    def is_stopped_late(self) -> None:
        """Take note that this service has its unit stopped when it was ending already."""
        self._change(late=True)

    def spared(self) -> None:
        """Take note that it did not listen when it was asked to end, and that nothing else is done."""
        self.asking = None
        if self.told is not None:
            self.told.stopping = False
        self._change(asked=None, insist_by=None)

    def counts_from(self, bases: Bases) -> None:
        """Count from these values on."""
        self._change(bases=bases)

    def watch_leader(self, leader: Leader) -> None:
        """Take over a leader, which belongs to it from now on."""
        self.leader = leader

    def take_leader(self) -> Leader | None:
        """Give away its leader, which belongs to the caller from now on."""
        leader, self.leader = self.leader, None
        return leader

    def with_helpers(self, helpers: tuple[Helper, ...], runtime_directory: str | None) -> None:
        """Replace its helpers, and the runtime directory that their sockets are in."""
        self._change(helpers=helpers, runtime_directory=runtime_directory)

    def retire(self, verdict: Verdict, end: End | None = None) -> None:
        """End with a verdict, which may be completed a moment later by another one, from what was seen."""
        self._change(end=end, verdict=verdict)
        self.gone.set()

    def complete(self, verdict: Verdict) -> None:
        """End with the last verdict, if it has not ended with another one before."""
        self._change(end=None, verdict=verdict)
        self.gone.set()
        self.completed.set()

    def _change(self, **fields: object) -> None:
        self.record = msgspec.structs.replace(self.record, **fields)
