"""Watches helpers while they start: which of them fails, or is not ready, and what it wrote last."""

from __future__ import annotations

import functools
import logging
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import trio

from moorage.kernel.system import System
from moorage.kernel.threads import in_thread
from moorage.machines.errors import HelperFailed, HelperLate
from moorage.machines.helpers.status import ENDED, HelperStates
from moorage.machines.helpers.units import to_records
from moorage.machines.model import Helper, HelperSpec, HelperStatus
from moorage.names import UnitNames
from moorage.pid1.errors import ManagerTimeout
from moorage.pid1.hints import Hints, News
from moorage.pid1.journal import Journal, UnitLog
from moorage.pid1.manager import UnitHint

LOG_WAIT_SECONDS: Final = 0.5
"""For how long the journal may take to get what a helper wrote last, s: it needs a few ms on an idle machine."""

_log = logging.getLogger(__name__)


class StartWatch:
    """Units of helpers while they start.

    Attributes:
        units: the helper's name by unit.
        records: what the machine keeps of these helpers.
        failed: units that have been seen to fail, in that order.
        results: of those, what the manager reported.
        news: of these units.
        since_usec: when the start began, µs since boot.
    """

    def __init__(
        self, units: Mapping[str, str], records: Sequence[Helper], news: News, *, since_usec: int
    ) -> None:
        self.units = units
        self.records = records
        self.news = news
        self.failed: list[str] = []
        self.results: dict[str, str] = {}
        self.since_usec = since_usec

    def made(self) -> None:
        """Take note that the manager has made the units: what failed before were others of the same names."""
        self.failed.clear()

    def hint(self, hint: UnitHint) -> None:
        """Take note of a unit that has failed."""
        if hint.active_state == "failed" and hint.unit not in self.failed:
            self.failed.append(hint.unit)

    def note(self, statuses: Iterable[HelperStatus]) -> None:
        """Take note of helpers that have ended, right after their start."""
        for status in statuses:
            if status.active_state in ENDED:
                self.failed.append(status.helper.unit)
                self.results[status.helper.unit] = status.result or ""


class StartWatcher:
    """Watches helpers while they start."""

    def __init__(
        self, states: HelperStates, hints: Hints, system: System, journal: Journal, *, user: bool
    ) -> None:
        """Watch nothing yet.

        Args:
            states: of all helpers.
            hints: news of units.
            system: the kernel.
            journal: what helpers wrote.
            user: the manager is that of a user.
        """
        self._states = states
        self._hints = hints
        self._system = system
        self._journal = journal
        self._user = user

    @contextmanager
    def watching(self, names: UnitNames, specs: Sequence[HelperSpec]) -> Generator[StartWatch]:
        """Watch the units of helpers while they start. Their states are kept from here on, until they are dropped."""
        if not specs:
            yield StartWatch({}, (), News(), since_usec=self._system.clock.monotonic())
            return
        records = to_records(names, specs)
        units: dict[str, str] = {}
        for helper in records:
            units[helper.unit] = helper.name
            if helper.sockets:
                units[names.socket(helper.name)] = helper.name
        with self._hints.of(units) as news:
            start = StartWatch(units, records, news, since_usec=self._system.clock.monotonic())
            self._states.follow([helper.unit for helper in records], since_usec=start.since_usec)
            for unit in units:
                self._hints.follow(unit, start.hint)
            try:
                yield start
            finally:
                for unit in units:
                    self._hints.unfollow(unit, start.hint)

    def statuses(self, start: StartWatch) -> list[HelperStatus]:
        """Return the states of the helpers, as last reported."""
        return self._states.statuses(start.records)

    async def settled(self, start: StartWatch, *, deadline: float) -> list[HelperStatus]:
        """Return the states of helpers after the job that started them, and take note of those that have ended.

        A program may end right after its start, which is when the manager's job is done: until the manager reports
        that, it calls the helper active. So wherever the main process is gone, its next report is waited for.

        Raises:
            ManagerError: as the manager says, or it reports nothing.
        """
        while True:
            await self._states.catch_up([helper.unit for helper in start.records], deadline=deadline)
            statuses = self._states.statuses(start.records)
            unsettled = [
                status.helper.unit
                for status in statuses
                if status.main_process is None and self._states.unsettled(status.helper)
            ]
            if not unsettled:
                start.note(statuses)
                return statuses
            with trio.move_on_at(deadline) as waiting:
                await start.news.next()
            if waiting.cancelled_caught:
                raise ManagerTimeout(f"end of the main process of {unsettled[0]}")

    async def failure(self, start: StartWatch) -> HelperFailed | None:
        """Return the helper that failed, and how; None if none seems to be to blame.

        A failed unit is gone at once together with what it was to start with: what is left of it is in the journal.
        """
        logs = await self._logs(start, tuple(start.failed or start.units), LOG_WAIT_SECONDS)
        failed = start.failed or [unit for unit, log in logs.items() if log.result is not None]
        if not failed:
            return None
        log = logs.get(failed[0], UnitLog())
        result = log.result or start.results.get(failed[0]) or None
        return HelperFailed(start.units[failed[0]], failed[0], result, log.lines)

    async def lateness(self, start: StartWatch) -> HelperLate | None:
        """Return the helper that is not ready; None if all are, or nothing is known of them."""
        for status in self._states.statuses(start.records):
            if status.active_state == "activating":
                unit = status.helper.unit
                logs = await self._logs(start, (unit,), 0)
                return HelperLate(status.helper.name, unit, logs.get(unit, UnitLog()).lines)
        return None

    async def _logs(self, start: StartWatch, units: Sequence[str], wait: float) -> Mapping[str, UnitLog]:
        """Return what units have written since a start began, none where the journal cannot be read."""
        read = functools.partial(
            self._journal.read,
            units,
            since_usec=start.since_usec,
            boot_id=self._system.processes.boot_id(),
            user=self._user,
            wait=wait,
        )
        try:
            return await in_thread(read)
        except OSError as error:
            _log.warning("Failed to read the journal, ignoring: %s", error)
            return {}
