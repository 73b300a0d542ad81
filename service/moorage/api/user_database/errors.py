"""Errors of io.systemd.UserDatabase."""

from __future__ import annotations

from dataclasses import dataclass

from moorage.wire.errors import VarlinkError


@dataclass(eq=False)
class NoRecordFound(VarlinkError):
    """There is no such user, group or membership."""

    error = "io.systemd.UserDatabase.NoRecordFound"


@dataclass(eq=False)
class BadService(VarlinkError):
    """Another service was asked for."""

    error = "io.systemd.UserDatabase.BadService"


@dataclass(eq=False)
class ConflictingRecordFound(VarlinkError):
    """Whoever has the number has another name."""

    error = "io.systemd.UserDatabase.ConflictingRecordFound"


@dataclass(eq=False)
class EnumerationNotSupported(VarlinkError):
    """All of them cannot be listed."""

    error = "io.systemd.UserDatabase.EnumerationNotSupported"
