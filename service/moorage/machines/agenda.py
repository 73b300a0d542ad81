"""Which machines are to be looked at, and when. Decides, and never waits.

Whoever notices something about a machine puts it on the agenda; only the watcher takes machines off.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count

from moorage.machines.machine import Machine, Recheck
from moorage.pid1.manager import UnitHint


class Agenda:
    """The machines to be looked at."""

    def __init__(self) -> None:
        self._marked: list[Machine] = []
        self._urgent = False  # one of them is to be looked at now
        self._by = math.inf  # when the others are
        self._due: list[
            tuple[float, int, Machine]
        ] = []  # a heap; an entry is stale if the machine is due otherwise
        self._numbers = count()
        self._woken: Callable[[], None] = lambda: None

    def wakes(self, woken: Callable[[], None]) -> None:
        """Call a function whenever the next look may be due earlier."""
        self._woken = woken

    @property
    def is_empty(self) -> bool:
        """Whether no machine is marked; some may be due later."""
        return not self._marked

    @property
    def next_look(self) -> float:
        """The time of the next look: minus infinity if it is due now, infinity if there is none."""
        return -math.inf if self._urgent else min(self._by, self.next_due)

    @property
    def next_due(self) -> float:
        """The time of the next look that is not due now; infinity if there is none."""
        while self._due and self._due[0][2].due != self._due[0][0]:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else math.inf

    def mark(
        self,
        machine: Machine,
        *,
        ask: bool = False,
        removed: bool = False,
        ended: UnitHint | None = None,
    ) -> None:
        """Schedule a look at a machine now; the reasons of one that is scheduled already are kept."""
        mark = self._marked_for(machine)
        mark.ask |= ask
        mark.removed |= removed
        mark.ended = mark.ended or ended
        self._urgent = True
        self._woken()

    def mark_new(self, machine: Machine, by: float) -> None:
        """Schedule the look at a new machine: together with others, or by a given time."""
        self._marked_for(machine).new = True
        if by < self._by:
            self._by = by
            self._woken()

    def _marked_for(self, machine: Machine) -> Recheck:
        if machine.recheck is None:
            machine.recheck = Recheck()
            self._marked.append(machine)
        return machine.recheck

    def look_later(self, machine: Machine, at: float) -> None:
        """Schedule a query of the service manager about a machine; an earlier one that is scheduled stands."""
        if at < machine.due:
            machine.due = at
            heapq.heappush(self._due, (at, next(self._numbers), machine))
            self._woken()

    def drop(self, machine: Machine) -> None:
        """Look at a machine no more that is gone. A look that is due now still takes place."""
        machine.due = math.inf

    def take(self, present: float) -> list[tuple[Machine, Recheck]]:
        """Take off the machines that are to be looked at by now, each with the reasons.

        Args:
            present: on the clock of :meth:`look_later`.
        """
        while self.next_due <= present:
            machine = heapq.heappop(self._due)[2]
            machine.due = math.inf
            self._marked_for(machine).ask = True
        marked, self._marked = self._marked, []
        self._urgent, self._by = False, math.inf
        taken: list[tuple[Machine, Recheck]] = []
        for machine in marked:
            assert machine.recheck is not None
            taken.append((machine, machine.recheck))
            machine.recheck = None
        return taken
