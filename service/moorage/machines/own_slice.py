"""A slice of its own for a machine: what limits the scope and the helpers together.

The slice lies below the one that the machine would be in. It is a transient unit of the same transaction, and the
service manager takes it away with the last unit in it (``StopWhenUnneeded=``: units need the slice that they are in,
systemd.slice(5)).

Pure: no I/O.
"""

from __future__ import annotations

from typing import Final

from moorage import names
from moorage.machines.model import Registration
from moorage.machines.properties import check_slice
from moorage.names import UnitNames
from moorage.pid1.errors import InvalidProperty
from moorage.pid1.manager import AuxiliaryUnit, Json, PropertyTypes

PARAMETER: Final = "sliceProperties"
"""The parameter of Register that asks for it, as in what is kept of a call (`moorage.machines.asked`)."""


def slice_of(registration: Registration) -> str:
    """Return the name of the slice that the units of a machine are to be in."""
    if registration.slice_properties is None:
        return registration.parent_slice
    return UnitNames(registration.name).slice(registration.parent_slice)


def describe(registration: Registration, types: PropertyTypes, mark: str) -> AuxiliaryUnit:
    """Describe the slice to the manager.

    Args:
        registration: which asks for one.
        types: what slices have.
        mark: what tells this start from others.

    Raises:
        InvalidProperty: a property that a caller may not set, or a value that it cannot have.
        NoSuchProperty: no such property of slices.
    """
    asked = registration.slice_properties or {}
    check_slice(asked)
    ours: dict[str, Json] = {
        "Description": f"All of machine {names.in_description(registration.name)}",
        "CollectMode": "inactive-or-failed",
        "StopWhenUnneeded": True,
        # At shutdown it goes after the units in it.
        "DefaultDependencies": False,
    }
    try:
        converted = types.convert(asked)
    except InvalidProperty as error:
        raise InvalidProperty(error.property, f"slice of the machine: {error.reason}") from None
    # The mark comes last: an empty Documentation= of the caller's would take it away.
    return AuxiliaryUnit(
        slice_of(registration), types.convert(ours) + converted + types.convert({"Documentation": [mark]})
    )
