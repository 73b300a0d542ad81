"""The journal in memory: what the service manager in memory writes about the end of units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio

from fakes.kernel import BOOTED
from fakes.units import Unit
from moorage.pid1.journal import Culprit, UnitEnd, UnitLog


class FakeJournal:
    """See `moorage.pid1.journal`, of which this has the functions.

    Attributes:
        deaf: nothing of what is written arrives.
    """

    def __init__(self) -> None:
        self._ends: dict[str, UnitEnd] = {}
        self._results: dict[str, str] = {}
        self.deaf = False

    def end(self, unit: Unit) -> None:
        """Write about the end of a unit."""
        present = round(trio.current_time() * 1e6) + 1_000_000
        self._results[unit.name] = unit.result
        if unit.invocation and not self.deaf:
            self._ends[unit.invocation] = UnitEnd(unit.result, BOOTED + present, present)

    def read(
        self, units: Sequence[str], *, since_usec: int, boot_id: str, user: bool, wait: float
    ) -> dict[str, UnitLog]:
        """See `Journal`."""
        logs: dict[str, UnitLog] = {}
        for unit in units:
            result = self._results.get(unit)
            logs[unit] = UnitLog(
                result=None if result == "success" else result, succeeded=result == "success"
            )
        return logs

    def ends(self, invocations: Sequence[str], *, user: bool, wait: float) -> dict[str, UnitEnd]:
        """See `Journal`."""
        return {each: self._ends[each] for each in invocations if each in self._ends}

    def culprit(
        self,
        bonds: Mapping[str, str],
        stopped: str,
        *,
        otherwise: str | None = None,
        boot_id: str,
        user: bool,
    ) -> tuple[Culprit | None, bool]:
        """See `Journal`."""
        return None, True
