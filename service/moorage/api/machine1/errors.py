"""Errors of org.freedesktop.machine1, and which refusal becomes which of them.

Everything that this door does, io.systemd.Machine does; so the errors of that interface are what is translated, and
those of the operating system as sd-bus does (``errno_to_bus_error_const()``).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from moorage.api.machine1.description import NAME
from moorage.api.systemd_machine import errors as theirs
from moorage.wire.errors import (
    InteractiveAuthenticationRequired,
    InvalidParameter,
    PermissionDenied,
    System,
    TimedOut,
    VarlinkError,
)

_DBUS: Final = "org.freedesktop.DBus.Error."
ACCESS_DENIED: Final = f"{_DBUS}AccessDenied"
FAILED: Final = f"{_DBUS}Failed"
INVALID_ARGS: Final = f"{_DBUS}InvalidArgs"
LIMITS_EXCEEDED: Final = f"{_DBUS}LimitsExceeded"
NOT_SUPPORTED: Final = f"{_DBUS}NotSupported"
READ_ONLY: Final = f"{_DBUS}PropertyReadOnly"
UNKNOWN_INTERFACE: Final = f"{_DBUS}UnknownInterface"
UNKNOWN_METHOD: Final = f"{_DBUS}UnknownMethod"
UNKNOWN_OBJECT: Final = f"{_DBUS}UnknownObject"
UNKNOWN_PROPERTY: Final = f"{_DBUS}UnknownProperty"
NO_SUCH_MACHINE: Final = f"{NAME}.NoSuchMachine"
NO_MACHINE_FOR_PID: Final = f"{NAME}.NoMachineForPID"
MACHINE_EXISTS: Final = f"{NAME}.MachineExists"
NO_USER: Final = f"{NAME}.NoSuchUserMapping"
NO_GROUP: Final = f"{NAME}.NoSuchGroupMapping"

_OF_SYSTEM: Final[Mapping[int, str]] = {
    errno.ENOMEM: f"{_DBUS}NoMemory",
    errno.EPERM: ACCESS_DENIED,
    errno.EACCES: ACCESS_DENIED,
    errno.EINVAL: INVALID_ARGS,
    errno.ESRCH: f"{_DBUS}UnixProcessIdUnknown",
    errno.ENOENT: f"{_DBUS}FileNotFound",
    errno.EEXIST: f"{_DBUS}FileExists",
    errno.ETIMEDOUT: f"{_DBUS}Timeout",
    errno.ETIME: f"{_DBUS}Timeout",
    errno.EIO: f"{_DBUS}IOError",
    errno.ENETRESET: f"{_DBUS}Disconnected",
    errno.ECONNABORTED: f"{_DBUS}Disconnected",
    errno.ECONNRESET: f"{_DBUS}Disconnected",
    errno.EOPNOTSUPP: NOT_SUPPORTED,
    errno.EADDRNOTAVAIL: f"{_DBUS}BadAddress",
    errno.ENOBUFS: LIMITS_EXCEEDED,
    errno.EADDRINUSE: f"{_DBUS}AddressInUse",
    errno.EBADMSG: f"{_DBUS}InconsistentMessage",
    errno.ERFKILL: "org.freedesktop.systemd1.UnitMasked",  # of the manager inside, passed on as machined does
}
_TEXTS: Final = {errno.ERFKILL: "The unit is masked."}
"""What the texts of the C library say nothing of."""

IMAGES_ELSEWHERE: Final = (
    "Images are kept by systemd-machined only, in whose place moored is here: a host that keeps images has moored "
    "beside it (moorctl in-place off)."
)


class Refusal(Exception):
    """An error on the bus.

    Attributes:
        name: of the error.
        text: for people.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class _Words(NamedTuple):
    """Name and text of an error; the text has the machine's name in braces."""

    name: str
    text: str


def _system(error: Any) -> _Words:
    number = error.errno or errno.EIO
    name = _OF_SYSTEM.get(number, f"System.Error.{error.errnoName}")
    return _Words(name, _TEXTS.get(number) or os.strerror(number))


def _words(name: str, text: str) -> Callable[[Any], _Words]:
    return lambda _: _Words(name, text)


_TABLE: Final[Mapping[type[VarlinkError], Callable[[Any], _Words]]] = {
    theirs.NoSuchMachine: _words(NO_SUCH_MACHINE, "No machine '{}' known"),
    theirs.MachineExists: _words(MACHINE_EXISTS, "Machine '{}' already exists"),
    theirs.NoPrivateNetworking: _words(
        f"{NAME}.NoPrivateNetworking", "Machine {} does not use private networking"
    ),
    theirs.NoOSReleaseInformation: _words(
        f"{NAME}.NoOSReleaseInformation", "Machine {} does not contain OS release information"
    ),
    theirs.NoUIDShift: _words(
        NOT_SUPPORTED, "Machine {} uses a complex UID/GID mapping, cannot determine shift"
    ),
    theirs.NotAvailable: _words(NOT_SUPPORTED, "This is only supported on container machines."),
    theirs.NotSupported: _words(NOT_SUPPORTED, "This is only supported on container machines."),
    theirs.NoIPC: _words(f"{_DBUS}FileNotFound", "The service manager in machine {} cannot be reached"),
    theirs.NoSuchUser: _words(NO_USER, "No matching user mapping"),
    theirs.UserInHostRange: _words(NO_USER, "User belongs to host UID range"),
    theirs.NoSuchGroup: _words(NO_GROUP, "No matching group mapping"),
    theirs.GroupInHostRange: _words(NO_GROUP, "Group belongs to host GID range"),
    PermissionDenied: _words(ACCESS_DENIED, "Access denied"),
    InteractiveAuthenticationRequired: _words(
        f"{_DBUS}InteractiveAuthorizationRequired", "Interactive authentication required."
    ),
    InvalidParameter: lambda error: _Words(
        INVALID_ARGS, f"Invalid value of {error.parameter}".replace("{", "{{").replace("}", "}}")
    ),
    TimedOut: _words(f"{_DBUS}Timeout", os.strerror(errno.ETIMEDOUT)),
    System: _system,
}


def refusal_of(error: VarlinkError, machine: str) -> Refusal:
    """Return what a caller gets for an error of io.systemd.Machine.

    Args:
        error: the error.
        machine: name of the machine that the call is about.
    """
    make = _TABLE.get(type(error))
    words = _Words(FAILED, "The call failed") if make is None else make(error)
    return Refusal(words.name, words.text.format(machine))
