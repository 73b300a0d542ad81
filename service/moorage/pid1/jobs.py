"""The ledger of jobs: no result is lost between asking for a job and knowing which one it is.

The manager tells the end of a job by a signal, and the job's number by the reply to the call that made it. Over one
connection the signal may be read before the task that made the call has seen the reply. So every end of a job is
recorded from the moment a call is sent until its number is known.

Pure: no I/O, no waiting, no clock.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

RECORDS_MAX: Final = 16_384
"""Ends of jobs that are remembered for calls without a reply. Booting a large machine ends some thousand jobs; a
manager that ends more than this before it answers one call is not believed to answer it at all."""


class JobEnd(NamedTuple):
    """The end of a job, as the manager announced it."""

    job_id: int
    unit: str
    result: str


class Ticket(msgspec.Struct, eq=False):
    """One call's claim to the end of its job.

    Attributes:
        wake: called once, when `end` or `lost` has been set.
        end: the end of the job, once it is known.
        lost: the end cannot become known any more: ask the manager for the state of the unit.
    """

    wake: Callable[[], None]
    since: int
    job_id: int | None = None
    end: JobEnd | None = None
    lost: bool = False


class JobLedger:
    """All calls that wait for a job, over one connection at a time."""

    def __init__(self) -> None:
        self._count = 0  # ends recorded so far: the time of this ledger
        self._unclaimed: dict[Ticket, None] = {}  # in the order of `since`
        self._waiting: dict[int, list[Ticket]] = {}
        self._records: deque[tuple[int, JobEnd]] = deque()  # (count, end), for the unclaimed

    @property
    def idle(self) -> bool:
        """Nobody waits: ends of jobs need not even be decoded."""
        return not self._unclaimed and not self._waiting

    @property
    def remembered(self) -> int:
        """Ends of jobs that are kept for calls without a reply."""
        return len(self._records)

    def expect(self, wake: Callable[[], None]) -> Ticket:
        """A call is about to be sent. Pair with `forget`."""
        ticket = Ticket(wake, self._count)
        self._unclaimed[ticket] = None
        return ticket

    def claim(self, ticket: Ticket, job_id: int) -> None:
        """The call was answered with this job; `wake` may be called right here."""
        if ticket.lost:
            return
        del self._unclaimed[ticket]
        ticket.job_id = job_id
        for count, end in self._records:
            # Not taken out: two calls to stop a unit are answered with the same job.
            if count >= ticket.since and end.job_id == job_id:
                ticket.end = end
                ticket.wake()
                break
        else:
            self._waiting.setdefault(job_id, []).append(ticket)
        self._prune()

    def record(self, end: JobEnd) -> None:
        """A job ended."""
        for ticket in self._waiting.pop(end.job_id, ()):
            ticket.end = end
            ticket.wake()
        if self._unclaimed:
            self._records.append((self._count, end))
            self._count += 1
            if len(self._records) > RECORDS_MAX:
                self._lose_oldest()

    def forget(self, ticket: Ticket) -> None:
        """The call is over, one way or another."""
        self._unclaimed.pop(ticket, None)
        if ticket.job_id is not None and (waiting := self._waiting.get(ticket.job_id)):
            if ticket in waiting:
                waiting.remove(ticket)
            if not waiting:
                del self._waiting[ticket.job_id]
        self._prune()

    def lose_all(self) -> None:
        """The connection is gone, and with it everything it would have told."""
        tickets = [*self._unclaimed, *(each for waiting in self._waiting.values() for each in waiting)]
        self._unclaimed.clear()
        self._waiting.clear()
        self._records.clear()
        for ticket in tickets:
            ticket.lost = True
            ticket.wake()

    def _lose_oldest(self) -> None:
        """Too much to remember: who has waited longest without a reply has to ask for the state instead."""
        oldest = next(iter(self._unclaimed))
        del self._unclaimed[oldest]
        oldest.lost = True
        oldest.wake()
        self._prune()
        if len(self._records) > RECORDS_MAX:
            self._lose_oldest()

    def _prune(self) -> None:
        """Drop what happened before the oldest call without a reply was sent."""
        if not self._unclaimed:
            self._records.clear()
            return
        since = next(iter(self._unclaimed)).since
        while self._records and self._records[0][0] < since:
            self._records.popleft()
