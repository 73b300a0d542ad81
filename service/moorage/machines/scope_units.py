"""The scope of a machine, and the units that come with it, as they are described to the service manager.

Pure: no I/O.
"""

from __future__ import annotations

import msgspec

from moorage.machines import own_slice, properties, stop_command
from moorage.machines.helpers import units
from moorage.machines.helpers.units import MachineRef, RuntimeDirectories, UnitTypes
from moorage.machines.model import HelperFailure, Intent, MachineClass, Registration
from moorage.names import SHUTDOWN, UnitNames, in_description
from moorage.pid1.manager import AuxiliaryUnit, Json, PropertyTypes, ScopeSpec


class Types(msgspec.Struct, frozen=True):
    """The properties of those types of units that a machine needs.

    Attributes:
        scope: of scopes.
        services: of services and sockets; None without helpers and a stop command.
        slice: of slices; None without a slice of its own.
    """

    scope: PropertyTypes
    services: UnitTypes | None
    slice: PropertyTypes | None


def describe(
    registration: Registration, pidfd: int, mark: str, types: Types, directories: RuntimeDirectories
) -> ScopeSpec:
    """Describe the scope, with all that comes with it.

    Args:
        registration: what is wanted.
        pidfd: of the leader.
        mark: for all units of this start.
        types: all that are needed.
        directories: of the manager.

    Raises:
        InvalidProperty: a property that a caller may not set, or a value that it cannot have.
        NoSuchProperty: no such property of that type of unit.
    """
    names = UnitNames(registration.name)
    scope = properties.for_scope(
        registration.class_,
        registration.properties,
        registration.defaults.tasks_max,
        stopped_by_helper=any(
            helper.on_failure is HelperFailure.stop_machine for helper in registration.helpers
        ),
    )
    asking = [names.stop_command] if registration.exec_stop else []
    wanted: list[Json] = [*units.wanted(names, registration.helpers), *asking]
    return ScopeSpec(
        unit=names.scope,
        pidfds=(pidfd,),
        slice=own_slice.slice_of(registration),
        description=scope_description(registration),
        # All of them are lists, which grow by what comes later.
        properties=types.scope.convert(scope)
        + types.scope.convert(
            {"Documentation": [mark], "Before": [SHUTDOWN], **({"Wants": wanted} if wanted else {})}
        ),
        auxiliary=tuple(_auxiliary(registration, names, mark, types, directories)),
        chosen=tuple(registration.properties),
    )


def scope_description(registration: Registration) -> str:
    """Return the description of a machine's scope, in machined's words where the caller has none."""
    kind = "Virtual Machine" if registration.class_ is MachineClass.vm else "Container"
    return registration.description or f"{kind} {in_description(registration.name)}"


def auxiliary_names(intent: Intent) -> list[str]:
    """Return the names of all units that come with a machine's scope."""
    names = UnitNames(intent.name)
    asking = [names.stop_command] if stop_command.PARAMETER in intent.request else []
    slices = [intent.slice] if own_slice.PARAMETER in intent.request else []
    return [*units.auxiliary_names(names, intent.helpers), *asking, *slices]


def _auxiliary(
    registration: Registration, names: UnitNames, mark: str, types: Types, directories: RuntimeDirectories
) -> list[AuxiliaryUnit]:
    """Describe the units that come with the scope: its slice, those of its helpers, and its stop command."""
    found: list[AuxiliaryUnit] = []
    if types.slice is not None:
        found.append(own_slice.describe(registration, types.slice, mark))
    if types.services is None:
        return found
    machine = MachineRef(names, names.scope, own_slice.slice_of(registration), registration.leader_uid, mark)
    if registration.helpers:
        found += types.services.helpers(
            machine, registration.helpers, directories, with_directory=True, with_scope=True
        )
        barrier = units.scope_barrier(machine, registration.helpers)
        found.append(types.services.unit(names.barrier, barrier))
    if registration.exec_stop:
        command = stop_command.describe(machine, registration.exec_stop, registration.exec_stop_timeout_usec)
        found.append(types.services.unit(names.stop_command, command))
    return found
