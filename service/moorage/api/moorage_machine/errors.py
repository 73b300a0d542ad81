"""Which refusal becomes which error of io.moorage.Machine."""

from __future__ import annotations

from typing import Final

from moorage.api.leader import ForeignNumber
from moorage.api.refusals import Table
from moorage.authz.ownership import NotOwned
from moorage.authz.ownership import UnitNotOwned as UnitIsNotOwned
from moorage.errors import (
    Busy,
    HelperFailed,
    InvalidProperty,
    JobFailed,
    MachineExists,
    ManagerUnavailable,
    NoSuchHelper,
    NoSuchMachine,
    NoSuchProperty,
    NoSuchSubgroup,
    NotSupported,
    ProcessGone,
    ProcessNotOwned,
    Timeout,
    UnitNameTaken,
    UnitNotOwned,
)
from moorage.kernel import process
from moorage.machines import errors
from moorage.pid1 import errors as pid1
from moorage.wire.errors import InvalidParameter, PermissionDenied, VarlinkError


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
    errors.OutsideUnits: lambda error: UnitNotOwned(error.unit or "no unit"),
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
    errors.ForeignUnit: lambda error: NotSupported(
        error.operation,
        "the unit was not made for the machine, and may outlive it: see systemctl set-property",
    ),
    errors.MachineBusy: lambda error: Busy(str(error)),
    errors.TooMuchUnderWay: lambda error: Busy(str(error)),
    errors.NoSuchHelper: lambda error: NoSuchHelper(error.helper),
    errors.NoSuchSubgroup: lambda error: NoSuchSubgroup(error.subgroup),
    errors.NotStoppable: lambda _: NotSupported(
        "Stop", "the machine is part of a unit, and nobody supervises it"
    ),
    errors.GuestUnreachable: lambda error: NotSupported(error.operation, error.reason),
    errors.TooOld: lambda error: NotSupported(error.operation, f"it needs systemd {error.version}"),
    NotOwned: lambda error: ProcessNotOwned(error.pid, error.uid),
    UnitIsNotOwned: lambda error: UnitNotOwned(error.unit),
    ForeignNumber: lambda _: NotSupported(
        "PIDs of another PID namespace",
        "send a pidfd along (leaderFileDescriptor, processFileDescriptor), or name its pidfdId",
    ),
    process.ProcessGone: lambda error: ProcessGone(error.pid),
    pid1.NoSuchProperty: lambda error: NoSuchProperty(error.property, error.nearest or None, error.owner),
    pid1.InvalidProperty: lambda error: InvalidProperty(error.property, error.reason, error.owner),
    pid1.ManagerTimeout: lambda error: Timeout(error.operation),
    pid1.UnitBusy: lambda error: Busy(error.reason),
    pid1.AccessDenied: lambda _: PermissionDenied(),
    pid1.ManagerError: lambda error: ManagerUnavailable(str(error)),
}
"""The errors that callers get for what cannot be done. Any other exception is a bug."""
