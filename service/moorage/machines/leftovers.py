"""Units in the way of a name: waits for those that are about to go, and says who holds the others."""

from __future__ import annotations

import contextlib
from typing import Final, Protocol

import trio

from moorage.kernel.cgroup import Hierarchy
from moorage.machines.errors import UnitNameTaken
from moorage.pid1.errors import NoSuchUnit, UnitBusy
from moorage.pid1.hints import Hints
from moorage.pid1.manager import Manager, UnitStatus

KEPT_SECONDS: Final = 1.0
"""For how long a unit may be kept in memory by others, s, before its name counts as taken: those that are bound to it
are stopped after it, and let it go then."""

THAW_SECONDS: Final = 1.0
"""For how long a unit is asked to thaw that has a job, s. The manager drops its own jobs to stop what is frozen at
once, and has had too many of them in no time (``auto_start_stop_ratelimit`` of its src/core/manager.c)."""

THAW_PAUSE_SECONDS: Final = 0.02
"""Pause before a unit is asked again to thaw, s."""


class Elsewhere(Protocol):
    """Another service that keeps account of units by their names, and may stop them by these."""

    def are_there(self, unit: str) -> bool:
        """Whether there is anything of a unit."""
        ...

    async def see_off(self, unit: str) -> None:
        """Wait until there is nothing of a unit that has ended, however that is done."""
        ...


class Leftovers:
    """Frees the names of units, or says who holds them.

    Attributes:
        orphans: populated control groups that have no unit, by the name of the unit that they are in the way of.
        elsewhere: who else has to do with units, if anybody has.
    """

    elsewhere: Elsewhere | None = None

    def __init__(self, manager: Manager, hints: Hints, hierarchy: Hierarchy, marks: str) -> None:
        """Know of no orphans yet.

        Args:
            manager: has the units.
            hints: news of units.
            hierarchy: of control groups.
            marks: what marks of our own begin with.
        """
        self._manager = manager
        self._hints = hints
        self._hierarchy = hierarchy
        self._marks = marks
        self.orphans: dict[str, str] = {}

    def check_orphan(self, unit: str) -> None:
        """Check that no processes without a unit are where those of this unit would be.

        Raises:
            UnitNameTaken: some are: the manager would put the leader among them.
        """
        if (path := self.orphans.get(unit)) is None:
            return
        state = self._hierarchy.events(path)
        if state is not None and state.populated:
            where = f"{path}, a control group of no unit, which systemd-cgls can show"
            raise UnitNameTaken(unit, f"processes in {where}")
        del self.orphans[unit]

    async def see_off(self, unit: str, *, deadline: float) -> None:
        """Report to others that an earlier unit of a name has ended; do nothing while one of that name exists.

        Raises:
            ManagerError: as the manager says.
        """
        if self.elsewhere is None or not self.elsewhere.are_there(unit):
            return
        status = await self._manager.status(unit, deadline=deadline)
        if status is None or not self.is_populated(status):
            await self.elsewhere.see_off(unit)

    async def clear(self, unit: str, *, deadline: float) -> None:
        """Free a name: reset a failed leftover, wait for a unit that is going, stop what was forgotten and is empty.

        Raises:
            UnitNameTaken: by something that does not go.
            ManagerError: as the manager says.
        """
        status = await self._manager.status(unit, deadline=deadline)
        if status is None or _is_only_a_name(status):
            return
        if self._is_failed_leftover(status):
            await self.reset(unit, deadline=deadline)
        elif not self._is_going(status):
            raise UnitNameTaken(unit, self.describe(status))
        if await self.wait_gone(unit, deadline=deadline):
            return
        status = await self._manager.status(unit, deadline=deadline)
        if status is not None and self._is_empty_scope(status) and self.is_ours(status):
            # One that was forgotten, and whose end the manager has missed.
            await stop_thawed(self._manager, unit, deadline=deadline)
            if await self.wait_gone(unit, deadline=deadline):
                return
            status = await self._manager.status(unit, deadline=deadline)
        if status is not None:
            raise UnitNameTaken(unit, self.describe(status))

    async def clear_slice(self, unit: str, *, deadline: float) -> None:
        """Wait until the slice of an earlier machine is gone, and leave any other slice alone.

        Not left to the manager: it takes a slice without a file for a new one, even if others have units in it.

        Raises:
            UnitNameTaken: it is there, and stays.
            ManagerError: as the manager says.
        """
        status = await self._manager.status(unit, deadline=deadline)
        if status is None or _is_only_a_name(status):
            return
        if not self.is_ours(status) or not await self.wait_gone(unit, deadline=deadline):
            raise UnitNameTaken(unit, self.describe(status))

    async def dismiss(self, unit: str, invocation_id: str, *, deadline: float) -> bool:
        """End a scope that is nobody's any more once it has no process: it failed, or the manager missed its end.

        Args:
            unit: its name, which may be another unit's by now.
            invocation_id: of the scope that is meant.
            deadline: on trio's clock.

        Returns:
            Whether it is gone. One that is just being ended goes a moment later.

        Raises:
            ManagerError: as the manager says.
        """
        status = await self._manager.status(unit, deadline=deadline)
        if status is None or status.invocation_id != invocation_id:
            return True
        if not self.is_ours(status):
            return False
        if self._is_failed_leftover(status):
            await self.reset(unit, deadline=deadline)
        elif self._is_empty_scope(status) and not status.job_id:
            await stop_thawed(self._manager, unit, deadline=deadline)
        return False

    async def stop_revived(self, scope: str, invocation_id: str, *, deadline: float) -> None:
        """Stop the units of ours that the manager has started for a scope after its end.

        The start of a helper pulls in its scope, and with it all that the scope wants. A scope starts only once: its
        job fails, and what was pulled in with it goes on, bound to a scope that is not active.

        Args:
            scope: its name, which may be another scope's by now.
            invocation_id: of the scope that is meant.
            deadline: on trio's clock.

        Raises:
            ManagerError: as the manager says.
        """
        status = await self._manager.status(scope, deadline=deadline)
        if status is None or status.invocation_id != invocation_id:
            return
        if status.active_state not in {"inactive", "failed"}:
            return
        for unit in status.dependants:
            found = await self._manager.status(unit, deadline=deadline)
            if found is not None and self.is_ours(found):
                await stop_thawed(self._manager, unit, deadline=deadline)

    async def check_scope(self, unit: str, *, deadline: float) -> None:
        """Check that the name of a scope is free, or will be in a moment; nothing is changed.

        Raises:
            UnitNameTaken: it is not.
            ManagerError: as the manager says.
        """
        status = await self._manager.status(unit, deadline=deadline)
        if status is None or self._is_failed_leftover(status):
            return
        if not self._is_going(status) or await self._is_kept(status, deadline=deadline):
            raise UnitNameTaken(unit, self.describe(status))

    async def check_slice(self, unit: str, *, deadline: float) -> None:
        """Check that a slice is not there, or is that of an earlier machine; nothing is changed.

        Raises:
            UnitNameTaken: it is that of others.
            ManagerError: as the manager says.
        """
        status = await self._manager.status(unit, deadline=deadline)
        if status is not None and not _is_only_a_name(status) and not self.is_ours(status):
            raise UnitNameTaken(unit, self.describe(status))

    async def wait_gone(self, unit: str, *, mark: str | None = None, deadline: float) -> bool:
        """Wait until a unit that is going is gone: inactive units leave the manager's memory a moment later.

        A failed one is reset on the way.

        Args:
            unit: its name.
            mark: of the unit that is meant; another one of that name is none of ours, and ours is gone.
            deadline: on trio's clock.

        Returns:
            Whether it went before the deadline, and as long as nothing keeps it.
        """
        kept_until = deadline
        with self._hints.of([unit]) as news:
            while True:
                status = await self._manager.status(unit, deadline=deadline)
                if status is None or _is_only_a_name(status):
                    return True
                if mark is not None and mark not in status.documentation:
                    return True
                if not (self._is_going(status) or status.active_state == "failed"):
                    return False
                if self._is_failed_leftover(status):
                    await self.reset(unit, deadline=deadline)
                if not await self._is_kept(status, deadline=deadline):
                    kept_until = deadline
                elif kept_until == deadline:
                    kept_until = min(deadline, trio.current_time() + KEPT_SECONDS)
                await news.look_again(kept_until)
                if trio.current_time() >= kept_until:
                    return False

    async def reset(self, unit: str, *, deadline: float) -> None:
        """Reset a failed unit, unless it has gone by itself."""
        with contextlib.suppress(NoSuchUnit):
            await self._manager.reset_failed(unit, deadline=deadline)

    def describe(self, status: UnitStatus) -> str:
        """Describe the holder of a unit's name, so that a person knows what to do."""
        if status.load_state not in {"loaded", "not-found"}:
            where = f", by {status.fragment_path}" if status.fragment_path else ""
            return f"a unit that is {status.load_state}{where}"
        if not status.transient and status.fragment_path:
            state = "" if status.active_state == "inactive" else f", and the unit is {status.active_state}"
            return f"a unit file on disk: {status.fragment_path}{state}"
        kind = (
            "a failed unit" if status.active_state == "failed" else f"a unit that is {status.active_state}"
        )
        details = [f"“{status.description}”"] if status.description not in {"", status.unit} else []
        populated = self.is_populated(status)
        if status.control_group:
            details.append("with processes" if populated else "without processes")
        if status.job_id:
            details.append(f"with job {status.job_id} queued")
        if status.dependants:
            details.append(f"needed by {', '.join(status.dependants)}")
        if populated and self.is_ours(status):
            details.append(
                "once a machine whose record is lost: it can be registered again without a new unit"
            )
        return ", ".join([kind, *details])

    def is_ours(self, status: UnitStatus) -> bool:
        """Whether a unit was made by this service, whatever has become of the record: its mark tells."""
        return any(address.startswith(self._marks) for address in status.documentation)

    def is_populated(self, status: UnitStatus) -> bool:
        """Whether a unit has processes."""
        state = self._hierarchy.events(status.control_group) if status.control_group else None
        return state is not None and state.populated

    async def _is_kept(self, status: UnitStatus, *, deadline: float) -> bool:
        """Whether what keeps a unit in the manager's memory may do so for ever.

        These are a job that waits; units that need an inactive one, or are in a slice, and are not about to go; and,
        with an active scope whose last process has just ended, the manager itself, should it have lost that event.
        """
        if status.active_state == "active" and not status.unit.endswith(".slice"):
            return True
        if status.active_state not in {"active", "inactive"}:
            return False
        others = [await self._manager.status(unit, deadline=deadline) for unit in status.dependants]
        if any(each and each.active_state == "deactivating" for each in others):
            return False  # the others may be needed by that one, and go after it
        if any(each and each.active_state in {"active", "failed"} and not each.job_id for each in others):
            return True
        return bool(status.job_id)

    def _is_failed_leftover(self, status: UnitStatus) -> bool:
        """Whether a unit is a transient one that failed, with nothing left in it, and nobody else's business."""
        return status.active_state == "failed" and status.transient and not self.is_populated(status)

    def _is_going(self, status: UnitStatus) -> bool:
        """Whether a unit is a transient one that is being stopped, or that nothing keeps in the manager's memory."""
        if not status.transient:
            return False
        match status.active_state:
            case "deactivating" | "inactive":
                return True  # should it have a job, that may be one to stop it
            case _ if status.unit.endswith(".slice"):
                return True  # with the last unit in it
            case _:
                return self._is_empty_scope(status)  # a job can only be one that stops it

    def _is_empty_scope(self, status: UnitStatus) -> bool:
        """Whether a unit is an active scope without processes: the manager is about to notice that."""
        if status.active_state != "active" or not status.unit.endswith(".scope"):
            return False
        return not self.is_populated(status)  # its control group may be gone before its state changes


async def stop_thawed(manager: Manager, unit: str, *, alone: bool = False, deadline: float) -> None:
    """Stop a unit if it is there, also one that somebody has frozen: of its own accord the manager does not.

    While it has a job, a unit is not thawed either, and what is bound to a unit that has ended may get such a job
    again and again, each of which is dropped.

    Raises:
        ManagerError: as the manager says.
    """
    until = trio.current_time() + THAW_SECONDS
    with contextlib.suppress(NoSuchUnit):
        while (await manager.stop(unit, alone=alone, deadline=deadline)).result == "frozen":
            try:
                await manager.thaw(unit, deadline=deadline)
            except UnitBusy:
                if trio.current_time() >= until:
                    raise
                await trio.sleep(THAW_PAUSE_SECONDS)
            else:
                await manager.stop(unit, alone=alone, deadline=deadline)
                return


def _is_only_a_name(status: UnitStatus) -> bool:
    """Whether a unit is a slice that is not there: without a file, one is loaded as soon as somebody names it."""
    if not status.unit.endswith(".slice") or status.fragment_path or status.job_id:
        return False
    return status.active_state == "inactive"
