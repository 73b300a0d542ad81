"""Errors of a varlink connection.

A varlink error is an exception with typed fields. A handler raises it and the server turns it into a reply; the client
receives the reply and raises it. :class:`ProtocolError` is for a peer that breaks the protocol.
"""

from __future__ import annotations

import errno as errno_names
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import msgspec


class ProtocolError(Exception):
    """The peer broke the protocol: the connection cannot be used any more."""


class VarlinkError(Exception):
    """An error that an interface describes. Subclasses are dataclasses; their fields are the error's parameters.

    Attributes:
        error: full name, with the interface.
    """

    error: str

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the error reply; fields that are None are left out."""
        # Subclasses are dataclasses, which the type checker cannot know.
        own: Any = self
        values = {field.name: getattr(own, field.name) for field in fields(own)}
        return {name: value for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.parameters().items())
        return f"{self.error}({values})"


class RemoteError(VarlinkError):
    """An error reply for which the client has no class.

    Attributes:
        error: full name, as the service sent it.
    """

    def __init__(self, error: str, parameters: Mapping[str, Any]) -> None:
        super().__init__(error, parameters)
        self.error = error
        self._parameters = dict(parameters)

    def parameters(self) -> dict[str, Any]:
        """Return the parameters as the service sent them."""
        return self._parameters


@dataclass(eq=False)
class InterfaceNotFound(VarlinkError):
    """The service has no such interface."""

    error = "org.varlink.service.InterfaceNotFound"
    interface: str


@dataclass(eq=False)
class MethodNotFound(VarlinkError):
    """The interface has no such method."""

    error = "org.varlink.service.MethodNotFound"
    method: str


@dataclass(eq=False)
class MethodNotImplemented(VarlinkError):
    """The method is described, but not implemented (yet)."""

    error = "org.varlink.service.MethodNotImplemented"
    method: str


@dataclass(eq=False)
class InvalidParameter(VarlinkError):
    """A field of the parameters is missing, unknown, of the wrong type or out of range.

    Attributes:
        parameter: the field's name; for nested ones a path such as ``leader.pid`` or ``ifIndices[1]``.
    """

    error = "org.varlink.service.InvalidParameter"
    parameter: str


@dataclass(eq=False)
class PermissionDenied(VarlinkError):
    """The caller may not do this."""

    error = "org.varlink.service.PermissionDenied"


@dataclass(eq=False)
class InteractiveAuthenticationRequired(VarlinkError):
    """The caller may do this if a person authenticates; the call did not allow that, or there was nobody to ask."""

    error = "io.systemd.InteractiveAuthenticationRequired"


@dataclass(eq=False)
class ExpectedMore(VarlinkError):
    """The method sends several replies, but the call did not have the flag ``more``."""

    error = "org.varlink.service.ExpectedMore"


@dataclass(eq=False)
class Disconnected(VarlinkError):
    """The service hung up before it replied. Raised by the client, as in sd-varlink."""

    error = "io.systemd.Disconnected"


@dataclass(eq=False)
class TimedOut(VarlinkError):
    """No reply arrived in time. Raised by the client, as in sd-varlink."""

    error = "io.systemd.TimedOut"


@dataclass(eq=False)
class Protocol(VarlinkError):
    """The peer broke the protocol. Defined by sd-varlink for its own clients; ours raise :class:`ProtocolError`."""

    error = "io.systemd.Protocol"


# Where a number has two names, Python may use the one that the kernel and systemd's errno_to_name() do not.
_ERRNO_NAMES = {**errno_names.errorcode, 11: "EAGAIN", 35: "EDEADLK", 95: "EOPNOTSUPP"}


@dataclass(eq=False)
class System(VarlinkError):
    """An error of the operating system (``sd_varlink_error_errno()``).

    Attributes:
        origin: system that the number belongs to; ``linux``.
        errnoName: symbolic name, as in errno(3).
        errno: the number.
    """

    error = "io.systemd.System"
    origin: str | None = None
    errnoName: str | None = None  # noqa: N815  # the name on the wire
    errno: int | None = None

    @classmethod
    def of(cls, number: int) -> System:
        """Return the error for an errno of this system."""
        return cls("linux", _ERRNO_NAMES.get(number), number)


KNOWN_ERRORS: Mapping[str, type[VarlinkError]] = {
    known.error: known
    for known in (
        InterfaceNotFound,
        MethodNotFound,
        MethodNotImplemented,
        InvalidParameter,
        PermissionDenied,
        InteractiveAuthenticationRequired,
        ExpectedMore,
        Disconnected,
        TimedOut,
        Protocol,
        System,
    )
}
"""The errors that any service may reply with."""


def error_table(errors: Iterable[type[VarlinkError]]) -> Mapping[str, type[VarlinkError]]:
    """Return the table for :func:`error_from_reply`: the errors of every service and the given ones."""
    return {**KNOWN_ERRORS, **{known.error: known for known in errors}}


def error_from_reply(
    error: str, parameters: Mapping[str, Any], table: Mapping[str, type[VarlinkError]]
) -> VarlinkError:
    """Return the exception for an error reply.

    If there is no class for it, or the parameters do not fit the class, that is a :class:`RemoteError`: the name of
    the error is worth more than a complaint about its fields.
    """
    known = table.get(error)
    if known is not None:
        try:
            return msgspec.convert(parameters, known)
        except msgspec.ValidationError:
            pass
    return RemoteError(error, parameters)
