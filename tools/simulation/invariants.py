"""What has to hold when all is quiet, and when all is over."""

from __future__ import annotations

import os
from collections.abc import Mapping

from fakes.units import Unit

from moorage.machines.machine import Machine
from moorage.machines.model import Cause, Phase
from moorage.names import UnitNames, machine_of_helper
from simulation.world import Instance, World, key_of


def look_at_the_living(world: World, instance: Instance) -> None:
    """Check that the registry, the records, the units and the control groups agree."""
    kept = {machine.name: machine for machine in instance.core.machines()}
    for machine in kept.values():
        _look_at(world, machine)
    for machine, _ in world.answered:
        key = key_of(machine)
        there = kept.get(machine.name)
        is_kept = there is not None and key_of(there) == key_of(machine)
        if not is_kept and not world.ended[key] and key not in world.forgotten:
            world.wrong("lost", f"{machine.name} was answered, and is neither kept nor has it ended")
        if (
            world.is_populated(machine)
            and not is_kept
            and key not in world.forgotten
            and machine.record.allocated
        ):
            world.wrong("ghost", f"{machine.name} lives, and is not kept")
    # One can be forgotten that was never answered: its registrant, or moored, was killed.
    known = {key_of(machine)[:2] for machine in kept.values()} | {key[:2] for key in world.forgotten}
    invocations = {(UnitNames(name).scope, invocation) for name, invocation in known}
    for unit in world.pid1.units:
        if unit.kind == "scope" and world.is_ours(unit) and (unit.name, unit.invocation) not in invocations:
            world.wrong("orphan", f"{unit.name} is a scope of ours ({unit.active}), and of no machine")
    named = {machine.name for machine in kept.values()} | {key[0] for key in world.forgotten}
    for unit in world.pid1.units:
        name = machine_of_helper(unit.name)
        if name is None or name in named or unit.main is None or not world.is_ours(unit):
            continue
        if UnitNames(name).scope in unit.names("BindsTo"):
            world.wrong("helper", f"{unit.name} runs ({unit.active}), and its machine has ended")
    if instance.core.claims():
        world.wrong("claim", "a claim is left")
    for name in os.listdir(world.directory):
        if name.startswith((".start-", ".change-")):
            world.wrong("intent", f"{name.split('-')[0]} is left")
    if kept and instance.core.idle:
        world.wrong("idle", "it is idle, and keeps machines")


def _look_at(world: World, machine: Machine) -> None:
    if not world.is_populated(machine):
        world.wrong("dead", f"{machine.name} is kept, and has no process ({machine.phase})")
    # The end of a lease insists.
    if machine.phase is Phase.stopping and machine.record.asked is not Cause.lease_ended:
        world.wrong("phase", f"{machine.name} is stopping, and nobody stops it")
    if not os.path.exists(os.path.join(world.directory, machine.name)):
        world.wrong("record", f"{machine.name} has no record")
    counts = None if machine.told is None else machine.told.counts
    if machine.record.allocated and counts is not None:
        _look_at_counts(world, machine, counts)
    if machine.record.allocated:
        unit = world.pid1.units.get(machine.unit)
        if unit is None or unit.invocation != machine.record.placement.invocation_id:
            world.wrong("unit", f"{machine.name} has no unit")


def _look_at_counts(world: World, machine: Machine, counts: Mapping[str, int]) -> None:
    """Check that all was told of the limits of a machine that lives, since nothing has happened for long."""
    path = machine.record.control_group
    group = world.kernel.groups[path]
    there = {
        "kernel": world.kernel.total(path, "oom_kills"),
        "oomd": group.counts["oomd_kills"],
        "memoryHigh": group.counts["memory_high"],
        "memoryMax": group.counts["memory_max"],
        "tasksMax": group.counts["tasks_max"],
    }
    told = {what: counts.get(what, 0) for what in there}
    if told != there:
        world.wrong("untold", f"of the limits of {machine.name} {told} was told of {there}")


def look_at_the_end(world: World, instance: Instance, tasks: int) -> None:
    """Check that nothing is left when all machines have ended and their verdicts are old."""
    for machine in instance.core.machines():
        world.wrong("undead", f"{machine.name} does not end: {machine.phase}")
    if not instance.core.idle:
        world.wrong("idle", "it is not idle at the end")
    kept = {each.name for each in instance.core.machines()}
    if left := sorted(
        name for name in os.listdir(world.directory) if name not in kept and not _is_damaged(world, name)
    ):
        kinds = [name.split("-")[0] if name.startswith(".") else "record" for name in left]
        world.wrong("entry", f"{', '.join(kinds)} left in the directory of records")
    abandoned = world.pid1.kept_by(unit for unit in world.pid1.units if _is_abandoned(world, unit))
    for unit in world.pid1.units:
        if world.is_ours(unit) and unit not in abandoned:
            world.wrong("leftover", f"{unit.name} is left: {unit.active}/{unit.sub}")
    watches = sum(len(each) for each in world.kernel.watches if each.hierarchy is instance.hierarchy)
    for count, what in (
        (watches, "watch"),
        (instance.processes.open_pidfds, "descriptor"),
        (len(instance.references), "reference"),
    ):
        if count:
            world.wrong(what, f"{count} left at the end")
    if not instance.manager.idle:
        world.wrong("job", "a job is waited for at the end")
    if tasks:
        world.wrong("task", f"{tasks} tasks are left")
    for machine, _ in world.answered:
        key = key_of(machine)
        if not world.ended[key] and key not in world.forgotten:
            world.wrong("lost", f"{machine.name} was answered, and never ended")


def _is_damaged(world: World, name: str) -> bool:
    """Whether a record is of no use, and was left alone."""
    return os.lstat(os.path.join(world.directory, name)).st_ino == world.damaged.get(name)


def _is_abandoned(world: World, unit: Unit) -> bool:
    """Whether a unit is nobody's, and may stay with all that it refers to.

    That is a scope that has failed, or was missed by the manager, after root has forgotten it; and what is bound to
    the unit of a machine in place that was forgotten, for as long as that unit is active.
    """
    if unit.missed or unit.active == "failed":
        roots = {(UnitNames(name).scope, invocation) for name, invocation, _ in world.forgotten_by_root}
        return (unit.name, unit.invocation) in roots
    forgotten = {invocation for _, invocation, _ in world.forgotten}
    bound = world.pid1.units.of(unit, "BindsTo")
    return any(
        each.active == "active" and not world.is_ours(each) and each.invocation in forgotten
        for each in bound
    )


def look_at_changes(world: World) -> None:
    """Check that what was set together is there together, and only where somebody wanted it."""
    for unit in world.pid1.units:
        memory, tasks = unit.properties.get("MemoryMax"), unit.properties.get("TasksMax")
        if "DevicePolicy" in unit.properties or (memory is not None and memory != tasks):
            world.wrong("mixed", f"{unit.name} has a part of what was set")
        if memory is not None and unit.name not in world.changed:
            world.wrong("foreign", f"{unit.name} has properties that were set for another one")


def look_at_strangers(world: World) -> None:
    """Check that nothing of somebody else's was stopped."""
    whole = {machine.unit for machine, _ in world.answered if machine.record.placement.is_whole}
    for name in world.pid1.stopped_by_call:
        if name in world.strangers and name not in whole:
            world.wrong("foreign", f"{name} is somebody else's, and was stopped")
