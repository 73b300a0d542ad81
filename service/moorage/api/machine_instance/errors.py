"""Errors of io.systemd.MachineInstance, and which refusal becomes which of them.

Everything else is the errno that io.systemd.Machine has for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from moorage.api.refusals import Table
from moorage.api.systemd_machine import errors as systemd_machine
from moorage.machines import errors
from moorage.wire.errors import VarlinkError


@dataclass(eq=False)
class NotConnected(VarlinkError):
    """The machine is gone."""

    error = "io.systemd.MachineInstance.NotConnected"


@dataclass(eq=False)
class NotSupported(VarlinkError):
    """A machine like this cannot do that."""

    error = "io.systemd.MachineInstance.NotSupported"


def _not_supported(_: Exception) -> VarlinkError:
    return NotSupported()


REFUSALS: Final[Table] = {
    **systemd_machine.REFUSALS,
    errors.MachineGone: lambda _: NotConnected(),
    errors.GuestUnreachable: _not_supported,
    errors.NotStoppable: _not_supported,
    errors.PartOfUnit: _not_supported,
    errors.ForeignUnit: _not_supported,
    errors.TooOld: _not_supported,
}
"""The errors that callers get for what cannot be done. Any other exception is a bug."""
