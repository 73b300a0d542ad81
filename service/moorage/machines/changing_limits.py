"""Properties of machines that run, and of their helpers, changed: all that one call names, or none.

The service manager changes them at once, and keeps them as drop-ins beside the transient unit, which go with it: they
outlive its reloads and restarts, and those of this service, which stores nothing of them. What a launcher asked for in
Register stays what it asked for: the same call again is a repetition, and its differences tell what was changed since.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Final, NamedTuple

import trio
from msgspec.structs import asdict, replace

from moorage.machines import drop_ins, effective, shares
from moorage.machines.alone import Alone
from moorage.machines.compared.bpf import MORE_PROGRAMS, RULES
from moorage.machines.detached import Detached
from moorage.machines.errors import ForeignUnit, MachineBusy, NoSuchHelper
from moorage.machines.events import Kind
from moorage.machines.followers import Followers
from moorage.machines.helpers.status import ENDED
from moorage.machines.in_force import Group
from moorage.machines.in_use import use
from moorage.machines.limits import Difference
from moorage.machines.machine import Machine
from moorage.machines.properties import REFUSED_ON_SCOPES, check_helper
from moorage.machines.registry import Registry, check_runs
from moorage.machines.renewal import has_scope
from moorage.machines.thawing import helper_group
from moorage.pid1.errors import InvalidProperty, NoSuchProperty, NoSuchUnit
from moorage.pid1.manager import Json, Manager, TypedProperty, UnitType

SET_SECONDS: Final = 25.0
"""Deadline for a change of properties, that of a call on D-Bus; the manager needs a millisecond."""


class _Target(NamedTuple):
    """The unit that is changed."""

    unit: str
    kind: UnitType
    control_group: str
    main_pid: int | None = None


class ChangingLimits:
    """Changes properties. A change once begun goes on without its caller."""

    def __init__(
        self,
        registry: Registry,
        marks_of: Callable[[str], str],
        manager: Manager,
        followers: Followers,
        detached: Detached,
        *,
        user: bool,
    ) -> None:
        """Change nothing yet.

        Args:
            registry: which machines there are.
            marks_of: returns what all marks of the units of a machine begin with, by its name.
            manager: has the units.
            followers: are told of changes.
            detached: runs what outlives its caller.
            user: the manager is that of a user.
        """
        self._registry = registry
        self._marks_of = marks_of
        self._manager = manager
        self._followers = followers
        self._detached = detached
        self._user = user
        # So that what a caller is told of is what that caller has set.
        self._alone = Alone()

    async def set(
        self,
        machine: Machine,
        properties: Mapping[str, Json],
        *,
        helper: str | None = None,
        dry_run: bool = False,
    ) -> list[Difference]:
        """Set properties of a machine's scope, or of one of its helpers.

        Args:
            machine: one of the registry's.
            properties: by name; the caller may set them.
            helper: name of the helper; None for the scope.
            dry_run: check everything, change nothing.

        Returns:
            What is not in force as it was asked for; of a rehearsal, what would not be.

        Raises:
            ForeignUnit: the unit was not made for the machine.
            NoSuchHelper: the machine has none of this name.
            MachineBusy: the machine is being stopped, or the helper has ended.
            MachineGone: the machine has ended meanwhile, or was forgotten.
            NoSuchProperty, InvalidProperty: nothing was changed.
            ManagerTimeout: others were busy with it, or the manager; it may have been done all the same, whole.
            ManagerError: as the manager says.
        """
        deadline = trio.current_time() + SET_SECONDS
        async with self._alone.of(machine.name, f"change of {machine.unit}", deadline=deadline):
            return await self._detached.shielded(
                partial(self._set, machine, properties, helper, deadline, dry_run=dry_run)
            )

    async def _set(
        self,
        machine: Machine,
        properties: Mapping[str, Json],
        helper: str | None,
        deadline: float,
        *,
        dry_run: bool,
    ) -> list[Difference]:
        with _of(helper):
            check_runs(self._registry, machine)
            target = await self._target(machine, properties, helper, deadline)
            types = await self._manager.property_types(target.kind, deadline=deadline)
            converted = types.convert(properties)
            there = await self._drop_ins(machine, target, deadline)
            lasting = shares.lasting(converted, {path.rpartition("/")[2] for path in there})
            undone = drop_ins.undone(properties, converted, there)
            check_runs(self._registry, machine)
            before = use(properties, Group(target.control_group))
            await self._set_on(machine, target, lasting.sent, deadline, dry_run=dry_run)
        group = None if dry_run else target.control_group
        unit = effective.Unit(properties, group, helper, target.main_pid, before=before)
        slice_ = machine.record.placement.slice
        different: list[Difference] | None = None
        try:
            if group is not None and properties.keys() & RULES:
                unit = unit._replace(configured=await self._rules(target.unit, deadline))
            found = await effective.compare(self._manager, [unit], slice_, user=self._user)
            # Of a helper in a user's manager also what it lacks in any case is told, which was told when it started.
            different = [each for each in found if each.property in properties]
            different += [replace(each, helper=helper) for each in (*lasting.differences, *undone)]
            return different
        finally:
            if not dry_run:
                self._followers.happened(
                    machine, Kind.properties_changed, _changed(properties, different, helper)
                )

    async def _rules(self, unit: str, deadline: float) -> Mapping[str, Json]:
        """Return what a unit has now of what takes BPF programs; nothing if it has just ended."""
        try:
            return await self._manager.properties(unit, sorted(RULES | MORE_PROGRAMS), deadline=deadline)
        except NoSuchUnit:
            return {}

    async def _set_on(
        self,
        machine: Machine,
        target: _Target,
        converted: tuple[TypedProperty, ...],
        deadline: float,
        *,
        dry_run: bool,
    ) -> None:
        with self._there(machine, target):
            await self._manager.set_properties(target.unit, converted, check=dry_run, deadline=deadline)

    async def _drop_ins(self, machine: Machine, target: _Target, deadline: float) -> list[str]:
        """Return the paths of the drop-ins that the unit has."""
        with self._there(machine, target):
            found = await self._manager.properties(target.unit, ["DropInPaths"], deadline=deadline)
        paths = found.get("DropInPaths")
        return [path for path in paths if isinstance(path, str)] if isinstance(paths, list) else []

    @contextlib.contextmanager
    def _there(self, machine: Machine, target: _Target) -> Generator[None]:
        """Raise what is known of the machine where its unit has ended."""
        try:
            yield
        except NoSuchUnit:
            check_runs(self._registry, machine)
            raise MachineBusy(f"{target.unit} has ended") from None

    async def _target(
        self, machine: Machine, properties: Mapping[str, Json], helper: str | None, deadline: float
    ) -> _Target:
        """Return the unit that is to be changed."""
        record = machine.record
        if helper is None:
            if not has_scope(machine):
                raise ForeignUnit("SetProperties")
            for name in properties:
                if name in REFUSED_ON_SCOPES:
                    raise InvalidProperty(name, REFUSED_ON_SCOPES[name])
            return _Target(record.unit, "scope", record.control_group)
        found = next((each for each in record.helpers if each.name == helper), None)
        if found is None:
            raise NoSuchHelper(helper)
        check_helper(helper, properties)
        status = await self._manager.status(found.unit, deadline=deadline)
        # A unit of somebody else may have the name by now.
        marks = self._marks_of(machine.name)
        if (
            status is None
            or status.active_state in ENDED
            or not any(each.startswith(marks) for each in status.documentation)
        ):
            raise MachineBusy(f"helper {helper} has ended")
        return _Target(found.unit, "service", helper_group(record, found), status.main_pid or None)


def _changed(
    properties: Mapping[str, Json], different: list[Difference] | None, helper: str | None
) -> dict[str, object]:
    """Return what is told of a change: what is not in force only where that is known."""
    fact: dict[str, object] = {"properties": dict(properties)}
    if different is not None:
        fact["differences"] = [
            {name: value for name, value in asdict(each).items() if value is not None} for each in different
        ]
    return fact if helper is None else {**fact, "helper": helper}


@contextlib.contextmanager
def _of(helper: str | None) -> Generator[None]:
    """Add the helper whose property is at fault to refusals."""
    try:
        yield
    except (NoSuchProperty, InvalidProperty) as error:
        error.owner = helper
        raise
