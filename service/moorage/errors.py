"""Errors of io.moorage.Machine, for both ends: the service replies with them, clients raise them.

Their fields have the names that they have on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from moorage.wire.errors import VarlinkError


@dataclass(eq=False)
class NoSuchMachine(VarlinkError):
    """There is no such machine."""

    error = "io.moorage.Machine.NoSuchMachine"
    name: str | None = None


@dataclass(eq=False)
class MachineExists(VarlinkError):
    """The name, the leader or the unit belongs to another machine, or a repeated call differs from the first."""

    error = "io.moorage.Machine.MachineExists"
    name: str
    unit: str | None = None
    invocationId: str | None = None  # noqa: N815
    differs: list[str] | None = None


@dataclass(eq=False)
class UnitNameTaken(VarlinkError):
    """The name of the scope is taken by something other than a machine of this service."""

    error = "io.moorage.Machine.UnitNameTaken"
    unit: str
    holder: str


@dataclass(eq=False)
class ProcessGone(VarlinkError):
    """The process does not exist, or is not the one that was meant."""

    error = "io.moorage.Machine.ProcessGone"
    pid: int | None = None


@dataclass(eq=False)
class ProcessNotOwned(VarlinkError):
    """The caller may not register the process."""

    error = "io.moorage.Machine.ProcessNotOwned"
    pid: int
    uid: int


@dataclass(eq=False)
class UnitNotOwned(VarlinkError):
    """The caller may not take the process out of its unit."""

    error = "io.moorage.Machine.UnitNotOwned"
    unit: str


@dataclass(eq=False)
class NoSuchProperty(VarlinkError):
    """The unit has no such property, or it cannot be set."""

    error = "io.moorage.Machine.NoSuchProperty"
    property: str
    nearest: list[str] | None = None
    helper: str | None = None


@dataclass(eq=False)
class InvalidProperty(VarlinkError):
    """The property cannot have that value, or the caller may not set it."""

    error = "io.moorage.Machine.InvalidProperty"
    property: str
    reason: str
    helper: str | None = None


@dataclass(eq=False)
class JobFailed(VarlinkError):
    """The service manager could not start the unit."""

    error = "io.moorage.Machine.JobFailed"
    unit: str
    jobResult: str  # noqa: N815
    unitResult: str | None = None  # noqa: N815


@dataclass(eq=False)
class HelperFailed(VarlinkError):
    """A helper did not start."""

    error = "io.moorage.Machine.HelperFailed"
    helper: str
    unit: str
    result: str | None = None
    log: list[str] | None = None


@dataclass(eq=False)
class NoSuchHelper(VarlinkError):
    """The machine has no helper of this name."""

    error = "io.moorage.Machine.NoSuchHelper"
    helper: str


@dataclass(eq=False)
class NoSuchSubgroup(VarlinkError):
    """There is no process in this part of the machine's control group."""

    error = "io.moorage.Machine.NoSuchSubgroup"
    subgroup: str


@dataclass(eq=False)
class Busy(VarlinkError):
    """The operation cannot be done now."""

    error = "io.moorage.Machine.Busy"
    operation: str


@dataclass(eq=False)
class NotSupported(VarlinkError):
    """This cannot be done with this machine, or by this service."""

    error = "io.moorage.Machine.NotSupported"
    what: str
    reason: str


AUTHORIZATION: Final = "authorization by polkit"
"""The operation of a `Timeout` before which nothing was done."""


@dataclass(eq=False)
class Timeout(VarlinkError):
    """The operation was not completed in time; it may be going on."""

    error = "io.moorage.Machine.Timeout"
    operation: str
    helper: str | None = None
    log: list[str] | None = None


@dataclass(eq=False)
class ManagerUnavailable(VarlinkError):
    """The service manager cannot be reached, or refuses."""

    error = "io.moorage.Machine.ManagerUnavailable"
    reason: str


@dataclass(eq=False)
class CursorExpired(VarlinkError):
    """What came after the cursor is not known any more."""

    error = "io.moorage.Machine.CursorExpired"
