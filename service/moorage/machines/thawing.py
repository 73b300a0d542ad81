"""Frozen units of a machine, and their thawing: the kernel reports the one, the service manager does the other.

The manager refuses to stop what is frozen, and drops the job (``unit_stop()`` of systemd's src/core/unit.c): whatever
ends a machine or a helper thaws it first.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Iterable, Iterator
from typing import Final

import trio

from moorage.kernel.cgroup import Hierarchy
from moorage.machines.detached import Detached
from moorage.machines.followers import Follower
from moorage.machines.helpers.status import GONE, HelperStates
from moorage.machines.leftovers import stop_thawed
from moorage.machines.machine import Machine
from moorage.machines.model import Helper, Record
from moorage.pid1.errors import ManagerError, NoSuchUnit, UnitBusy
from moorage.pid1.manager import ASK_SECONDS, Manager

STOP_SECONDS: Final = 200.0
"""Deadline for the stop of a helper: two times DefaultTimeoutStopUSec=90s, and a little."""

_log = logging.getLogger(__name__)


def helper_group(record: Record, helper: Helper) -> str:
    """Return the path of a helper's control group: helpers are in the slice of their machine."""
    return f"{record.control_group.rpartition('/')[0]}/{helper.unit}"


def is_frozen(control_group: str, hierarchy: Hierarchy) -> bool:
    """Whether a control group is frozen, by itself or with one above.

    Raises:
        OSError: no file descriptor is left, or no memory.
    """
    state = hierarchy.events(control_group)
    return state is not None and state.frozen


def is_to_freeze(control_group: str, hierarchy: Hierarchy) -> bool:
    """Whether a control group was told to freeze by itself, whether or not all its processes have stopped yet.

    Raises:
        OSError: no file descriptor is left, or no memory.
    """
    return hierarchy.attribute(control_group, "cgroup.freeze") == "1"


def freezer_above(control_group: str, hierarchy: Hierarchy) -> str | None:
    """Return the name of the highest group above that is frozen; None if there is none.

    Raises:
        OSError: no file descriptor is left, or no memory.
    """
    for group in _above(control_group):
        if is_to_freeze(group, hierarchy):
            return group.rpartition("/")[2]
    return None


@contextlib.contextmanager
def naming_the_slice(record: Record, hierarchy: Hierarchy) -> Generator[None]:
    """Name the slice where the manager does not thaw a machine because of one that is frozen above.

    Raises:
        UnitBusy: as the manager says, with what stands in the way.
        OSError: no file descriptor is left, or no memory.
    """
    try:
        yield
    except UnitBusy:
        if (above := freezer_above(record.control_group, hierarchy)) is None:
            raise
        raise frozen_with(record, above) from None


def check_above(record: Record, hierarchy: Hierarchy) -> None:
    """Check that no slice above a machine is frozen: the manager starts nothing in it, and does not say why.

    Raises:
        UnitBusy: one is.
        OSError: no file descriptor is left, or no memory.
    """
    if (above := freezer_above(record.control_group, hierarchy)) is not None:
        raise frozen_with(record, above)


def frozen_with(record: Record, above: str) -> UnitBusy:
    """Return the refusal for a machine that is frozen with a slice above it."""
    return UnitBusy(record.unit, f"{above} is frozen, and the machine with it")


def _above(control_group: str) -> Iterator[str]:
    """Yield the groups above one, the highest first."""
    parts = control_group.split("/")[1:-1]
    yield from ("/" + "/".join(parts[: number + 1]) for number in range(len(parts)))


async def thaw_helpers(
    record: Record, helpers: Iterable[Helper], manager: Manager, hierarchy: Hierarchy, *, deadline: float
) -> None:
    """Thaw those helpers of a machine that are frozen.

    Raises:
        UnitBusy: one of them cannot be thawed now.
        ManagerError: as the manager says.
        OSError: no file descriptor is left, or no memory.
    """
    for helper in helpers:
        group = helper_group(record, helper)
        if is_to_freeze(group, hierarchy):
            with contextlib.suppress(NoSuchUnit):
                await manager.thaw(helper.unit, deadline=deadline)


class FrozenHelpers(Follower):
    """Ends the helpers that were frozen when their machine ended: the manager dropped their jobs."""

    def __init__(
        self, states: HelperStates, manager: Manager, hierarchy: Hierarchy, detached: Detached
    ) -> None:
        self._states = states
        self._manager = manager
        self._hierarchy = hierarchy
        self._detached = detached

    def ended(self, machine: Machine) -> None:
        """Begin to stop those of its helpers that are frozen, or may have been when they were to be stopped."""
        if machine.record.verdict is None:
            return
        for status in self._states.statuses(machine.record.helpers):
            if machine.helpers_frozen or self._may_be_frozen(machine.record, status.helper):
                self._detached.start(self._stop, status.helper.unit, status.invocation_id)

    def _may_be_frozen(self, record: Record, helper: Helper) -> bool:
        try:
            return is_to_freeze(helper_group(record, helper), self._hierarchy)
        except OSError:  # no file descriptor is left
            return True

    async def _stop(self, unit: str, invocation_id: str) -> None:
        while True:
            try:
                status = await self._manager.status(unit, deadline=trio.current_time() + ASK_SECONDS)
                if status is None or status.active_state in GONE:
                    return
                if status.invocation_id != (invocation_id or status.invocation_id):
                    return  # the helper of a machine that has come since
                invocation_id = status.invocation_id
                await stop_thawed(self._manager, unit, deadline=trio.current_time() + STOP_SECONDS)
            except ManagerError as error:
                _log.warning("Failed to stop helper %s, trying again: %s", unit, error)
                await trio.sleep(ASK_SECONDS)
            else:
                return
