"""Errors of io.systemd.Machine, and which refusal becomes which of them.

machined answers most failures with the errno of its own functions; so do we, with the same numbers where it has the
case.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from moorage.api.leader import ForeignNumber
from moorage.api.refusals import Table
from moorage.authz.ownership import NotOwned, UnitNotOwned
from moorage.kernel import process
from moorage.machines import errors, inside, metadata
from moorage.pid1 import errors as pid1
from moorage.wire.errors import InvalidParameter, PermissionDenied, System, TimedOut, VarlinkError


@dataclass(eq=False)
class NoSuchMachine(VarlinkError):
    """There is no such machine."""

    error = "io.systemd.Machine.NoSuchMachine"


@dataclass(eq=False)
class MachineExists(VarlinkError):
    """The name, the leader or the unit belongs to another machine, or the name of the unit is taken."""

    error = "io.systemd.Machine.MachineExists"


@dataclass(eq=False)
class NoPrivateNetworking(VarlinkError):
    """The machine has no network of its own."""

    error = "io.systemd.Machine.NoPrivateNetworking"


@dataclass(eq=False)
class NoOSReleaseInformation(VarlinkError):
    """The machine has no os-release(5)."""

    error = "io.systemd.Machine.NoOSReleaseInformation"


@dataclass(eq=False)
class NoUIDShift(VarlinkError):
    """The machine's user namespace is not a simple shift."""

    error = "io.systemd.Machine.NoUIDShift"


@dataclass(eq=False)
class NotAvailable(VarlinkError):
    """This is not available for machines of this class."""

    error = "io.systemd.Machine.NotAvailable"


@dataclass(eq=False)
class NotSupported(VarlinkError):
    """Machines of this class do not support this."""

    error = "io.systemd.Machine.NotSupported"


@dataclass(eq=False)
class NoIPC(VarlinkError):
    """The service manager in the machine cannot be reached."""

    error = "io.systemd.Machine.NoIPC"


@dataclass(eq=False)
class NoSuchUser(VarlinkError):
    """The machine has no user of that number, or nobody has a machine with it."""

    error = "io.systemd.Machine.NoSuchUser"


@dataclass(eq=False)
class NoSuchGroup(VarlinkError):
    """The same of groups."""

    error = "io.systemd.Machine.NoSuchGroup"


@dataclass(eq=False)
class UserInHostRange(VarlinkError):
    """The user is one of the host."""

    error = "io.systemd.Machine.UserInHostRange"


@dataclass(eq=False)
class GroupInHostRange(VarlinkError):
    """The group is one of the host."""

    error = "io.systemd.Machine.GroupInHostRange"


def _system(number: int) -> Callable[[Any], VarlinkError]:
    return lambda _: System.of(number)


def _plain(error: type[VarlinkError]) -> Callable[[Any], VarlinkError]:
    return lambda _: error()


def _inside(error: inside.InsideFailed) -> VarlinkError:
    # ERRNO_IS_NOT_SUPPORTED() of systemd.
    return NotSupported() if error.number in metadata.NOT_SUPPORTED else System.of(error.number)


REFUSALS: Final[Table] = {
    errors.NameTaken: _plain(MachineExists),
    errors.LeaderTaken: _plain(MachineExists),
    errors.Full: _system(errno.ENOSPC),
    errors.NoPlace: _system(errno.ENOSPC),
    errors.UnitNameTaken: _plain(MachineExists),
    errors.NotUnicode: _system(errno.EILSEQ),
    errors.OutsideUnits: _system(errno.ESRCH),
    errors.JobFailed: _system(errno.EPROTO),
    errors.MachineGone: _plain(NoSuchMachine),
    errors.TooMuchUnderWay: _system(errno.EBUSY),
    errors.NotStoppable: _system(errno.EOPNOTSUPP),
    errors.TooOld: _system(errno.EOPNOTSUPP),
    errors.MachineBusy: _system(errno.EBUSY),
    errors.ForeignUnit: _system(errno.EOPNOTSUPP),
    errors.GuestUnreachable: _system(errno.EOPNOTSUPP),
    errors.PartOfUnit: _system(errno.EOPNOTSUPP),
    # This interface has neither subgroups nor helpers.
    errors.NoSuchSubgroup: _system(errno.ENOENT),
    errors.InvalidHelper: _system(errno.EINVAL),
    errors.HelperFailed: _system(errno.EPROTO),
    errors.HelperLate: _plain(TimedOut),
    errors.NoIdMapping: _system(errno.EOPNOTSUPP),
    errors.NotWhole: _system(errno.EOPNOTSUPP),
    errors.RegisteredByUser: _system(errno.EOPNOTSUPP),
    errors.NoSuchHelper: _system(errno.ENOENT),
    NotOwned: _plain(PermissionDenied),
    UnitNotOwned: _plain(PermissionDenied),
    ForeignNumber: lambda _: InvalidParameter("pid"),
    process.ProcessGone: _system(errno.ESRCH),
    pid1.NoSuchUnit: _system(errno.ESRCH),
    pid1.ManagerTimeout: _plain(TimedOut),
    pid1.AccessDenied: _plain(PermissionDenied),
    pid1.ManagerError: _system(errno.EIO),
    metadata.NoPrivateNetworking: _plain(NoPrivateNetworking),
    metadata.NoOSRelease: _plain(NoOSReleaseInformation),
    metadata.NoUIDShift: _plain(NoUIDShift),
    metadata.NotAvailable: _plain(NotAvailable),  # as in machined, only what never is
    inside.InsideFailed: _inside,
    inside.NoBus: _plain(NoIPC),
    metadata.Unreadable: lambda error: System.of(error.number),
}
"""The errors that callers get for what cannot be done. Any other exception is a bug."""
