"""Changes of the helpers of a machine that runs: helpers are added, removed and reloaded."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncGenerator, Sequence

import trio

from moorage.kernel.cgroup import Hierarchy
from moorage.machines import effective
from moorage.machines.detached import Detached
from moorage.machines.errors import NoSuchHelper, NotWhole, RegisteredByUser
from moorage.machines.events import Kind
from moorage.machines.followers import Followers
from moorage.machines.gather import gather
from moorage.machines.helpers.changes import Changes
from moorage.machines.helpers.programs import check_programs
from moorage.machines.helpers.spec import check
from moorage.machines.helpers.status import HelperStates
from moorage.machines.helpers.units import RuntimeDirectories
from moorage.machines.latest import Latest
from moorage.machines.limits import Difference
from moorage.machines.machine import Machine, Work
from moorage.machines.model import Helper, HelperSpec, HelperStatus, Record
from moorage.machines.properties import check_helper
from moorage.machines.registry import Registry, check_runs
from moorage.machines.thawing import check_above, naming_the_slice
from moorage.names import UnitNames
from moorage.pid1.errors import ManagerRefused, NoSuchUnit, UnitBusy
from moorage.pid1.manager import Manager

HELPERS_SECONDS = 90.0
"""Default deadline for helpers that are added or reloaded: the manager's DefaultTimeoutStartSec=."""

REMOVE_SECONDS = 200.0
"""Deadline for the stop of a helper that is removed: two times DefaultTimeoutStopUSec=90s, and a little."""


class Changing:
    """Changes the helpers of machines. A change once begun goes on without its caller."""

    def __init__(
        self,
        registry: Registry,
        changes: Changes,
        states: HelperStates,
        followers: Followers,
        manager: Manager,
        hierarchy: Hierarchy,
        directories: RuntimeDirectories,
        detached: Detached,
    ) -> None:
        self._registry = registry
        self._changes = changes
        self._states = states
        self._followers = followers
        self._manager = manager
        self._hierarchy = hierarchy
        self._directories = directories
        self._detached = detached
        # These users could ask the service manager directly: there is nothing to keep from them.
        self._trusted = frozenset({0, os.geteuid()})

    async def check(
        self, specs: Sequence[HelperSpec], machine: str, existing: Sequence[Helper] = ()
    ) -> None:
        """Check whether a machine may have helpers.

        Args:
            specs: what is wanted.
            machine: name of the machine.
            existing: what the machine has already.

        Raises:
            InvalidHelper: a field is not what it should be.
            InvalidProperty: a property that is not a caller's to set.
        """
        if not specs:
            return
        check(specs, machine, existing, self._directories)
        for spec in specs:
            check_helper(spec.name, spec.properties)
        await check_programs(specs)

    def statuses(self, machine: Machine) -> list[HelperStatus]:
        """Return the states of a machine's helpers, as last reported; those of one that is gone went before it."""
        if machine.record.verdict is not None:
            return [HelperStatus(helper) for helper in machine.record.helpers]
        return self._states.statuses(machine.record.helpers)

    async def add(
        self, machine: Machine, specs: Sequence[HelperSpec], *, timeout: float = HELPERS_SECONDS
    ) -> AsyncGenerator[list[HelperStatus]]:
        """Start helpers for a machine that runs: all of them or none.

        Args:
            machine: one of the registry's.
            specs: what is wanted.
            timeout: in seconds.

        Yields:
            Their state whenever it has changed, but not each change for a slow reader; at last always that in which
            all are active.

        Raises:
            NotWhole: the machine is a part of a unit.
            RegisteredByUser: it is in the hands of somebody without the rights of the manager.
            MachineGone: it has ended meanwhile, or was forgotten.
            MachineBusy: it is being stopped.
            UnitBusy: a slice that it is in is frozen.
            InvalidHelper, InvalidProperty: as :meth:`check` says.
            HelperFailed, UnitNameTaken, JobFailed: as the start says. The machine has none of them.
            ManagerError: as the manager says.
            OSError: the record could not be written.
        """
        record = machine.record
        if not record.placement.is_whole:
            raise NotWhole
        if not record.privileged and record.registrant not in self._trusted:
            raise RegisteredByUser
        deadline = trio.current_time() + timeout
        news = Latest[list[HelperStatus]]()

        async def add() -> None:
            with contextlib.closing(news), machine.under_way(Work.change):
                async with self._changes.alone(machine.name):
                    staying = await self._changes.staying(machine, specs, deadline=deadline)
                    await self.check(specs, machine.name, staying)
                    try:
                        check_above(record, self._hierarchy)
                        with naming_the_slice(record, self._hierarchy):
                            news.set(await self._changes.add(machine, specs, news.set, deadline=deadline))
                    except UnitBusy:
                        check_runs(self._registry, machine)
                        raise

        done = await self._detached.begin(add)
        async for statuses in news:
            yield statuses
        await done()

    async def remove(self, machine: Machine, name: str) -> None:
        """Stop a helper of a machine and forget it.

        Raises:
            NoSuchHelper: it has none of that name.
            MachineGone: it has ended meanwhile, or was forgotten.
            ManagerError: as the manager says.
            OSError: the record could not be written.
        """

        async def remove() -> None:
            with machine.under_way(Work.change):
                async with self._changes.alone(machine.name):
                    helper = next((each for each in machine.record.helpers if each.name == name), None)
                    if helper is None:
                        raise NoSuchHelper(name)
                    deadline = trio.current_time() + REMOVE_SECONDS
                    with naming_the_slice(machine.record, self._hierarchy):
                        await self._changes.remove(machine, helper, deadline=deadline)

        await self._detached.shielded(remove)

    async def differences(
        self, machine: Machine, specs: Sequence[HelperSpec], statuses: Sequence[HelperStatus]
    ) -> list[Difference]:
        """Compare what was asked for of helpers that were added with what is in force.

        Args:
            machine: that has them.
            specs: what was asked for.
            statuses: their states.
        """
        units = helper_units(machine.record, specs, statuses)
        slice_, user = machine.record.placement.slice, self._directories.user
        return await effective.compare(self._manager, units, slice_, user=user)

    async def reload(
        self, machine: Machine, *, timeout: float = HELPERS_SECONDS
    ) -> tuple[list[str], list[str]]:
        """Reload the helpers of a machine that can be reloaded: a scope cannot pass it on.

        Args:
            machine: one of the registry's.
            timeout: in seconds.

        Returns:
            Names of those that were, and of those that were not.

        Raises:
            ManagerError: as the manager says.
        """
        deadline = trio.current_time() + timeout
        statuses = self.statuses(machine)

        async def reload(status: HelperStatus) -> bool:
            if status.active_state not in {"active", "reloading"}:
                return False
            try:
                return (await self._manager.reload(status.helper.unit, deadline=deadline)).result == "done"
            except (NoSuchUnit, ManagerRefused):  # it has ended meanwhile, or has no way to reload
                return False

        done = await gather([functools.partial(reload, status) for status in statuses])
        names: dict[bool, list[str]] = {True: [], False: []}
        for status, reloaded in zip(statuses, done, strict=True):
            names[reloaded].append(status.helper.name)
            if reloaded:
                self._followers.happened(machine, Kind.helper_reloaded, {"helper": status.helper.name})
        return names[True], names[False]


def helper_units(
    record: Record, specs: Sequence[HelperSpec], statuses: Sequence[HelperStatus], *, rehearsed: bool = False
) -> list[effective.Unit]:
    """Return the units of helpers, to compare what was asked for with what is in force."""
    above = record.control_group.rpartition("/")[0]  # they are in the slice of their machine
    processes = {status.helper.name: status.main_process for status in statuses}
    units: list[effective.Unit] = []
    for spec in specs:
        group = None if rehearsed else f"{above}/{UnitNames(record.name).helper(spec.name)}"
        main = processes.get(spec.name)
        units.append(effective.Unit(spec.properties, group, spec.name, main.pid if main else None))
    return units
