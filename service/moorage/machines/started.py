"""Units that a start of ours has made: starts them, and finds, stops and removes them later.

Each start puts a mark on all units that it makes. Without it a unit belongs to others, whatever its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import trio

from moorage.machines.errors import UnitNameTaken
from moorage.machines.gather import gather
from moorage.machines.leftovers import Leftovers, stop_thawed
from moorage.pid1.errors import UnitExists
from moorage.pid1.hints import LOOK_SECONDS, Hints
from moorage.pid1.manager import ASK_SECONDS, Job, Manager, ScopeSpec, ServiceSpec, UnitStatus
from moorage.pid1.references import References

ATTEMPTS_MAX: Final = 3
"""Starts of one unit: the first, one after a failed leftover was reset, one after a unit that was just going."""

UNDO_SECONDS: Final = 100.0
"""Deadline for removing what a start has made, s: the manager's DefaultTimeoutStopUSec= and a little."""

UNSEEN_SECONDS: Final = 2.0
"""For how long a start may be on its way to the manager after its sender has died, s: the manager reads in turn from
all that talk to it, and the last of STARTS_MAX starts may come after its answer to our first query (2 to 3 ms each,
loaded five times)."""


class StartedUnits:
    """Starts transient units, and knows them again by their marks.

    A scope is held from the moment it is made, or what ends at once is forgotten before it is looked at.
    """

    def __init__(self, manager: Manager, hints: Hints, leftovers: Leftovers, references: References) -> None:
        self._manager = manager
        self._hints = hints
        self._leftovers = leftovers
        self._references = references

    async def start(
        self,
        spec: ScopeSpec | ServiceSpec,
        mark: str | None = None,
        *,
        deadline: float,
        made: Callable[[], None] | None = None,
    ) -> Job:
        """Start a unit and wait for its job; leftovers that hold one of the names are cleared first.

        Args:
            spec: the unit, with those that come with it.
            mark: that the unit will have. It tells when a repeated call finds what the first one has made.
            deadline: on trio's clock.
            made: called when the manager has made all of them, and begins to start them.

        Raises:
            UnitNameTaken: by something that does not go.
            ManagerError: as the manager says.
        """
        await self._references.freed(spec.unit)  # that of an earlier machine

        def hold() -> None:
            self._references.hold([spec.unit])
            if made is not None:
                made()

        for _ in range(ATTEMPTS_MAX):
            try:
                if isinstance(spec, ServiceSpec):
                    return await self._manager.start_service(spec, deadline=deadline, made=made)
                return await self._manager.start_scope(spec, deadline=deadline, made=hold)
            except UnitExists:
                status = await self._manager.status(spec.unit, deadline=deadline)
                if status is not None and mark in status.documentation:
                    # The link broke, and the call was repeated before the first one had been read.
                    await self.wait_without_job(spec.unit, waits=False, deadline=deadline)
                    return Job("done", spec.unit, 0)
                for unit in (spec.unit, *(each.unit for each in spec.auxiliary)):
                    await self._leftovers.clear(unit, deadline=deadline)
        status = await self._manager.status(spec.unit, deadline=deadline)
        holder = self._leftovers.describe(status) if status else "a unit that comes and goes"
        raise UnitNameTaken(spec.unit, holder)

    async def made(self, unit: str, mark: str, *, deadline: float) -> UnitStatus | None:
        """Return the unit that a start has made; None also if the name is another unit's."""
        status = await self._manager.status(unit, deadline=deadline)
        return status if status is not None and mark in status.documentation else None

    async def all_made(self, units: Sequence[str], mark: str, *, deadline: float) -> list[UnitStatus | None]:
        """Return of each unit whether a start has made it, as `made` does."""
        return await gather([partial(self.made, unit, mark, deadline=deadline) for unit in units])

    async def is_any_made(self, units: Sequence[str], mark: str, *, deadline: float) -> bool:
        """Whether a start has made any of these units; one that is still on its way is waited for."""
        given_up: float | None = None
        with self._hints.of(units[:1]) as news:
            while not any(await self.all_made(units, mark, deadline=deadline)):
                # Counted from the first answer: a manager that was busy until then has read nothing else either.
                given_up = given_up or trio.current_time() + UNSEEN_SECONDS
                if trio.current_time() >= given_up:
                    return False
                await news.next(LOOK_SECONDS)
        return True

    async def appeared(self, unit: str, mark: str, *, deadline: float) -> UnitStatus | None:
        """Return the unit that a start has made, if it has; a start that is still on its way is waited for."""
        if not await self.is_any_made([unit], mark, deadline=deadline):
            return None
        return await self.made(unit, mark, deadline=deadline)

    async def until_started(
        self, status: UnitStatus | None, mark: str, *, deadline: float
    ) -> UnitStatus | None:
        """Wait until the start of a unit has ended, or the deadline has passed; return what it has made by then."""
        if status is None:
            return None
        with self._hints.of([status.unit]) as news:
            while status is not None and status.job_id and trio.current_time() < deadline:
                await news.look_again(deadline)
                status = await self.made(status.unit, mark, deadline=deadline + ASK_SECONDS)
        return status

    async def stop(self, unit: str, marks: str, *, alone: bool = False, deadline: float) -> bool:
        """Stop a unit if one of its marks begins like this; return whether that is so.

        Args:
            unit: its name.
            marks: what the marks begin with of those units that may be stopped.
            alone: leave all units that depend on it as they are.
            deadline: on trio's clock.

        Raises:
            ManagerError: as the manager says.
        """
        status = await self._manager.status(unit, deadline=deadline)
        if status is None or not any(address.startswith(marks) for address in status.documentation):
            return False
        await stop_thawed(self._manager, unit, alone=alone, deadline=deadline)
        return True

    async def remove(self, unit: str, mark: str, *, alone: bool = False, deadline: float) -> None:
        """Stop a unit if it is the one that a start has made, and wait until its name is free.

        Raises:
            ManagerError: as the manager says.
        """
        self._references.release(unit)
        await self._references.freed(unit)
        if await self.stop(unit, mark, alone=alone, deadline=deadline):
            await self._leftovers.wait_gone(unit, mark=mark, deadline=deadline)

    async def remove_all(self, units: Sequence[str], mark: str, *, deadline: float) -> None:
        """Do so with several units at once.

        Raises:
            ManagerError: as the manager says.
        """
        await gather([partial(self.remove, unit, mark, deadline=deadline) for unit in units])

    async def wait_without_job(self, unit: str, *, waits: bool, deadline: float) -> None:
        """Wait until a unit has no job, or only one that waits for others.

        Args:
            unit: its name.
            waits: there are others that it may wait for.
            deadline: on trio's clock.
        """
        with self._hints.of([unit]) as news:
            while True:
                status = await self._manager.status(unit, deadline=deadline)
                if status is None or not status.job_id or (waits and status.active_state == "inactive"):
                    return
                await news.look_again()
