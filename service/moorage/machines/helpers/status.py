"""The states of helpers, as the service manager reports them.

The manager reports each change of a unit anyway. So what List, Describe and Find return about helpers is kept here,
and no caller makes us ask: a thousand helpers and a hundred callers would be a hundred thousand rounds of questions to
a manager that works on one at a time.

A change comes before the report that a job of that unit is done. What may have been missed, since the link was down or
the manager has reloaded, is asked for once.

A helper that has ended may be unloaded at once. Its last state stays known for as long as it is followed; where this
service was not there to see its end, the journal may have it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import trio

from moorage.kernel.process import NotAProcess, ProcessGone, ProcessId
from moorage.kernel.processes import Processes
from moorage.kernel.threads import in_thread
from moorage.machines.gather import gather
from moorage.machines.model import Helper, HelperStatus
from moorage.pid1.errors import ManagerError
from moorage.pid1.hints import Hints
from moorage.pid1.journal import Journal
from moorage.pid1.manager import ASK_SECONDS, Manager, UnitHint

ENDED = frozenset({"inactive", "failed", "deactivating"})
"""States that a helper is not in once it has been started. It may be "activating": again, as ``restart`` says."""

GONE = frozenset({"inactive", "failed"})
"""States of a helper that has ended for good: one that is to be started again has others (``RestartMode=direct``)."""

BATCH_MAX = 32
"""Helpers asked about at once after a reconnect or a reload, so that other calls to the manager get in between."""


class Known(NamedTuple):
    """A service's state as the manager has reported it.

    Attributes:
        active_state: of it.
        invocation_id: of its last start; empty if it never ran.
        result: why it ended; None if that is not known.
    """

    active_state: str
    invocation_id: str
    result: str | None


_log = logging.getLogger(__name__)


class _State:
    """The state of one unit.

    Attributes:
        since_usec: when the helper began to exist at the earliest, µs since boot.
        has_state: what all units have is up to date.
        has_main: what a service adds to it is.
        main_process: the process of main_pid, once it was named; None before that and where there is none.
        restarts: how often the manager has restarted it by itself; None before that was said.
        known: what was last passed on.
        ran: invocation ID of the last start after which it was active; empty where that is not known.
    """

    __slots__ = (
        "active_state", "has_main", "has_state", "invocation_id", "known", "main_pid", "main_process", "ran",
        "restarts", "result", "since_usec", "sub_state",
    )  # fmt: skip

    def __init__(self, since_usec: int) -> None:
        self.since_usec = since_usec
        self.has_state = self.has_main = False
        self.active_state, self.sub_state, self.invocation_id = "inactive", "dead", ""
        self.result: str | None = None
        self.main_pid = 0
        self.main_process: ProcessId | None = None
        self.restarts: int | None = None
        self.known: Known | None = None
        self.ran = ""

    def set_state(self, active_state: str, sub_state: str, invocation_id: str) -> None:
        self.active_state, self.sub_state = active_state, sub_state
        # All zeroes, or nothing, is none; the unit keeps that of its last start.
        if invocation_id.strip("0"):
            self.invocation_id = invocation_id
        self.has_state = True

    def set_main(self, result: str | None, main_pid: int, restarts: int | None) -> None:
        self.result = result
        self.restarts = restarts
        if main_pid != self.main_pid:
            self.main_pid, self.main_process = main_pid, None
        self.has_main = True

    def unload(self) -> None:
        """Note that the manager has the unit no more: what it ended as, it has ended as."""
        if self.active_state != "failed":
            self.active_state, self.sub_state = "inactive", "dead"
        self.set_main(self.result, 0, self.restarts)
        self.has_state = True


class HelperStates:
    """Keeps what the manager last reported of each helper's service."""

    def __init__(
        self, manager: Manager, hints: Hints, processes: Processes, journal: Journal, *, user: bool
    ) -> None:
        """Follow nothing yet.

        Args:
            manager: to ask what was missed.
            hints: from it.
            processes: of this host.
            journal: of this host.
            user: it is a user's.
        """
        self._manager = manager
        self._hints = hints
        self._processes = processes
        self._journal = journal
        self._user = user
        self._states: dict[str, _State] = {}
        self._missed = trio.Event()
        self._ended: Callable[[str], None] = lambda _: None
        self._changed: Callable[[str, str, Known], None] = lambda _unit, _ran, _present: None
        hints.follow_all(lambda _hint: self.miss())

    def watch(self, ended: Callable[[str], None], changed: Callable[[str, str, Known], None]) -> None:
        """Call functions with each service whose state is found out.

        Args:
            ended: when it has ended for good, perhaps more than once.
            changed: when its state has changed: with the invocation ID of the last start after which it was active,
                empty where that is not known, and what is known now.
        """
        self._ended, self._changed = ended, changed

    def follow(self, units: Iterable[str], *, since_usec: int) -> None:
        """Begin to keep the states of services, of which nothing is known yet.

        Args:
            units: their names.
            since_usec: when they began to exist at the earliest, µs since boot.
        """
        for unit in units:
            self._states[unit] = _State(since_usec)
            self._hints.follow(unit, self._hint)

    def drop(self, units: Iterable[str]) -> None:
        """Forget services."""
        for unit in units:
            self._states.pop(unit, None)
            self._hints.unfollow(unit, self._hint)

    def _hint(self, hint: UnitHint) -> None:
        """Take note of what the manager reports of a unit."""
        if (state := self._states.get(hint.unit)) is None:
            return
        if hint.kind == "changed" and hint.active_state:
            if hint.main_pid is not None:
                state.set_main(hint.result or None, hint.main_pid, hint.restarts)
            state.set_state(hint.active_state, hint.sub_state, hint.invocation_id)
        elif hint.kind == "removed":
            state.unload()
        self._tell(hint.unit, state)

    def _tell(self, unit: str, state: _State) -> None:
        if not state.has_state:
            return
        result = state.result if state.has_main else None
        before, state.known = state.known, Known(state.active_state, state.invocation_id, result)
        if before is None or before[:2] != state.known[:2]:
            self._changed(unit, state.ran, state.known)
            if state.active_state == "active":
                state.ran = state.invocation_id
        if state.active_state in GONE:
            self._ended(unit)

    def miss(self) -> None:
        """Take note that changes may have been missed, of any unit: they are asked for."""
        for state in self._states.values():
            state.has_state = state.has_main = False
        self._missed.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Query states that were missed, whenever some were. Started once it has been tried for the first time."""
        while True:
            await self._missed.wait()
            self._missed = trio.Event()
            try:
                await self.catch_up(tuple(self._states))
            except ManagerError as error:
                _log.warning("Failed to ask for the states of helpers, trying again: %s", error)
                self._missed.set()
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            if self._missed.is_set():
                await trio.sleep(ASK_SECONDS)

    def status(self, helper: Helper) -> HelperStatus:
        """Return the state of a helper, as last reported; its main process only while it runs."""
        if (state := self._states.get(helper.unit)) is None:
            return HelperStatus(helper)
        return HelperStatus(
            helper=helper,
            active_state=state.active_state,
            sub_state=state.sub_state,
            result=state.result,
            main_process=_main_process(helper.unit, state, self._processes),
            invocation_id=state.invocation_id,
            restarts=state.restarts,
        )

    def has_ended(self, helper: Helper) -> bool:
        """Whether a helper is known to have ended for good."""
        state = self._states.get(helper.unit)
        return state is not None and state.has_state and state.active_state in GONE

    def statuses(self, helpers: Iterable[Helper]) -> list[HelperStatus]:
        """Return the states of helpers."""
        return [self.status(helper) for helper in helpers]

    def unsettled(self, helper: Helper) -> bool:
        """Whether the kernel knows already of an end that the manager has not reported yet."""
        state = self._states.get(helper.unit)
        if state is None or not state.main_pid or state.active_state in ENDED:
            return False
        try:
            self._processes.identify(state.main_pid)
        except ProcessGone:
            return True
        except NotAProcess:
            pass
        return False

    async def catch_up(self, units: Sequence[str], *, deadline: float | None = None) -> None:
        """Query the states of services that are out of date.

        Args:
            units: their names.
            deadline: on trio's clock; None for one of each batch.

        Raises:
            ManagerError: as the manager says.
        """
        missing = [unit for unit in units if unit in self._states and not self._is_complete(unit)]
        for start in range(0, len(missing), BATCH_MAX):
            until = trio.current_time() + ASK_SECONDS if deadline is None else deadline
            batch = missing[start : start + BATCH_MAX]
            await gather([functools.partial(self._ask, unit, until) for unit in batch])

    def _is_complete(self, unit: str) -> bool:
        state = self._states[unit]
        return state.has_state and state.has_main

    async def _ask(self, unit: str, deadline: float) -> None:
        state = self._states.get(unit)
        if state is None:
            return
        found = await self._manager.status(unit, deadline=deadline)
        # A signal that came meanwhile is as new as the answer, or newer.
        if found is not None and found.load_state != "not-found":
            if not state.has_state:
                state.set_state(found.active_state, found.sub_state, found.invocation_id)
            if not state.has_main:
                # One that could not be loaded has a result all the same: "success".
                result = found.result if found.load_state == "loaded" else found.load_state
                state.set_main(result, found.main_pid, found.restarts)
        elif not state.has_state:
            seen = state.active_state == "failed" or (state.active_state == "inactive" and state.result)
            state.unload()
            if not seen:
                await self._read_end(unit, state)
        self._tell(unit, state)

    async def _read_end(self, unit: str, state: _State) -> None:
        """Look into the journal for how a service ended that was unloaded when nobody listened."""
        state.result = None
        read = functools.partial(
            self._journal.read,
            (unit,),
            since_usec=state.since_usec,
            boot_id=self._processes.boot_id(),
            user=self._user,
            wait=0,
        )
        try:
            log = (await in_thread(read))[unit]
        except OSError as error:
            _log.warning("Failed to read the journal, ignoring: %s", error)
            return
        if log.succeeded:
            state.result = "success"
        elif log.result is not None:
            state.active_state = state.sub_state = "failed"
            state.result = log.result


def _main_process(unit: str, state: _State, processes: Processes) -> ProcessId | None:
    """Name the main process of a unit, if it is still there and still in it."""
    if not state.main_pid:
        return None
    try:
        if state.main_process is not None and state.main_process.pidfd_id is not None:
            return state.main_process if processes.is_alive(state.main_process) else None
        found = processes.identify(state.main_pid)
        # Only one that is in the unit is the one that the manager meant, not one that has its number by now.
        state.main_process = found if f"/{unit}" in processes.control_group(state.main_pid) else None
    except (ProcessGone, NotAProcess, OSError):
        return None  # no file descriptor may be left: what cannot be checked is left out
    return state.main_process
