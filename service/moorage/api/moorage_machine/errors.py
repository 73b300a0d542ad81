"""Errors of io.moorage.Machine, and which refusal becomes which of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from moorage.api.leader import ForeignNumber
from moorage.api.refusals import Table
from moorage.authz.ownership import NotOwned
from moorage.authz.ownership import UnitNotOwned as UnitIsNotOwned
from moorage.kernel import process
from moorage.machines import errors
from moorage.pid1 import manager
from moorage.wire.errors import InvalidParameter, PermissionDenied, VarlinkError


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


def _exists(error: errors.NameTaken | errors.LeaderTaken) -> VarlinkError:
    placement = error.placement
    differs = error.differs if isinstance(error, errors.NameTaken) else None
    return MachineExists(
        error.name,
        placement.unit if placement else None,
        placement.invocation_id if placement else None,
        list(differs) if differs else None,
    )


REFUSALS: Final[Table] = {
    errors.NameTaken: _exists,
    errors.LeaderTaken: _exists,
    errors.Full: lambda _: Busy("Register"),
    errors.NoPlace: lambda _: Busy("Register"),
    errors.UnitNameTaken: lambda error: UnitNameTaken(error.unit, error.holder),
    errors.NotUnicode: lambda _: NotSupported(
        "a control group of that name", "it is not UTF-8, so that no reply could contain it"
    ),
    errors.JobFailed: lambda error: JobFailed(error.unit, error.job_result, error.unit_result),
    errors.InvalidHelper: lambda error: InvalidParameter(f"helpers{error.field}"),
    errors.HelperFailed: lambda error: HelperFailed(error.helper, error.unit, error.result, error.log),
    errors.HelperLate: lambda error: Timeout(error.operation, error.helper, error.log),
    errors.NoIdMapping: lambda error: NotSupported(
        f"{error.property}=…:idmap",
        "no version of systemd has it up to 262; the helper can make such a mount itself",
    ),
    errors.MachineGone: lambda error: NoSuchMachine(error.name),
    errors.NotWhole: lambda _: NotSupported(
        "helpers", "the machine is part of a unit, which they cannot be bound to"
    ),
    errors.RegisteredByUser: lambda _: NotSupported(
        "helpers", "the machine was registered by a user, without the rights of root that they take"
    ),
    errors.PartOfUnit: lambda error: NotSupported(
        error.operation, "the machine is part of a unit, and the rest of it is not"
    ),
    errors.MachineBusy: lambda error: Busy(str(error)),
    errors.TooMuchUnderWay: lambda error: Busy(str(error)),
    errors.NoSuchHelper: lambda error: NoSuchHelper(error.helper),
    errors.NotStoppable: lambda _: NotSupported(
        "Stop", "the machine is part of a unit, and nobody supervises it"
    ),
    errors.TooOld: lambda error: NotSupported(error.operation, f"it needs systemd {error.version}"),
    NotOwned: lambda error: ProcessNotOwned(error.pid, error.uid),
    UnitIsNotOwned: lambda error: UnitNotOwned(error.unit),
    ForeignNumber: lambda _: NotSupported(
        "PIDs of another PID namespace",
        "send a pidfd along (leaderFileDescriptor, processFileDescriptor), or name its pidfdId",
    ),
    process.ProcessGone: lambda error: ProcessGone(error.pid),
    manager.NoSuchProperty: lambda error: NoSuchProperty(error.property, error.nearest or None, error.owner),
    manager.InvalidProperty: lambda error: InvalidProperty(error.property, error.reason, error.owner),
    manager.ManagerTimeout: lambda error: Timeout(error.operation),
    manager.UnitBusy: lambda error: Busy(error.reason),
    manager.AccessDenied: lambda _: PermissionDenied(),
    manager.ManagerError: lambda error: ManagerUnavailable(str(error)),
}
"""The errors that callers get for what cannot be done. Any other exception is a bug."""
