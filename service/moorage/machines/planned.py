"""Plan of a machine that is not made: its units with their properties, including the defaults.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from moorage.machines import own_slice
from moorage.machines.model import HelperFailure, Registration
from moorage.machines.properties import for_scope, sandbox
from moorage.names import UnitNames
from moorage.pid1.manager import Json


class PlannedUnit(msgspec.Struct, frozen=True):
    """A unit that a machine would get.

    Attributes:
        unit: its name.
        helper: the helper that it is; None for the machine's own.
        defaults: what it has without being asked for, but for what only ties the units of a machine together.
        properties: what was asked for. Of a list it comes after the default, and is added to it.
    """

    unit: str
    helper: str | None
    defaults: dict[str, Json]
    properties: dict[str, Json]


def planned(registration: Registration, root: str, directory: str, *, user: bool) -> list[PlannedUnit]:
    """Return the units that a registration asks for: the scope, a slice of its own, and the helpers.

    Args:
        registration: what is wanted, checked.
        root: ``/run``, or the user's ``$XDG_RUNTIME_DIR``.
        directory: the runtime directory that the machine would have.
        user: the service manager is that of a user.
    """
    if not registration.allocate_unit:
        return []
    asked = registration.properties
    stopped = any(helper.on_failure is HelperFailure.stop_machine for helper in registration.helpers)
    scope = for_scope(registration.class_, asked, registration.defaults.tasks_max, stopped_by_helper=stopped)
    defaults = {name: value for name, value in scope.items() if name not in asked}
    units = [_unit(UnitNames(registration.name).scope, None, defaults, asked)]
    if registration.slice_properties is not None:
        units.append(_unit(own_slice.slice_of(registration), None, {}, registration.slice_properties))
    for helper in registration.helpers:
        unit = UnitNames(registration.name).helper(helper.name)
        units.append(_unit(unit, helper.name, sandbox(root, directory, user=user), helper.properties))
    return units


def _unit(
    unit: str, helper: str | None, defaults: Mapping[str, Json], asked: Mapping[str, Json]
) -> PlannedUnit:
    staying = {
        name: value for name, value in defaults.items() if name not in asked or _adds(value, asked[name])
    }
    return PlannedUnit(unit, helper, staying, dict(asked))


def _adds(default: Json, asked: Json) -> bool:
    """Whether what is asked for is added to a default: to a list, which an empty one takes away."""
    match default, asked:
        case [bool(), list()], [bool(), [*names]]:  # a list of what is allowed, or of what is not
            return bool(names)
        case list(), [*values]:
            return bool(values)
        case _:
            return False
