"""A value for each option of moored.conf(5), with the defaults: all that a service needs that has no such file.

What each default is good for is said where it is declared, in the room that applies it; ``docs/limits.md`` has the
reasons together. :mod:`moorage.configuration.options` says what each option means, and which values it may have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from moorage.machines.control import STOP_SECONDS
from moorage.machines.events import (
    EVENT_BYTES_MAX,
    EVENTS_MAX,
    Extent,
)
from moorage.machines.helpers.changing import HELPERS_SECONDS
from moorage.machines.helpers.units import DIRECTORY_BYTES_MAX
from moorage.machines.leases import LEASE_GRACE_SECONDS
from moorage.machines.model import MACHINE_SLICE, TASKS_MAX, Defaults
from moorage.machines.registration import REGISTER_SECONDS
from moorage.machines.registry import (
    MACHINES_MAX,
    MACHINES_PER_UID_MAX,
    VERDICT_KEEP_USEC,
    VERDICTS_MAX,
    VERDICTS_PER_UID_MAX,
    Bounds,
)
from moorage.wire.server import Limits

IDLE_USEC: Final = 30_000_000
"""How long the service keeps running with nothing to do, µs: as long as machined does (DEFAULT_EXIT_USEC)."""

TIMEOUT_MAX_USEC: Final = 600_000_000
"""Longest deadline that a caller may set, µs: no start or stop that takes longer ends well."""

LEVELS: Final = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
"""The levels of syslog(3), by their numbers, in the words of ``LogLevel=`` of systemd-system.conf(5)."""

INFO: Final = LEVELS.index("info")

SECOND: Final = 1_000_000
HOUR: Final = 3600 * SECOND


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A value for each option. The names in the file are these in camel case, without the unit at their end."""

    machines_max: int = MACHINES_MAX
    machines_per_user_max: int = MACHINES_PER_UID_MAX
    verdicts_max: int = VERDICTS_MAX
    verdicts_per_user_max: int = VERDICTS_PER_UID_MAX
    verdict_keep_usec: int = VERDICT_KEEP_USEC
    events_max: int = EVENTS_MAX
    events_size_bytes: int = EVENT_BYTES_MAX
    connections_max: int = Limits().connections
    connections_per_user_max: int = Limits().connections_per_uid
    trusted_connections_max: int = Limits().trusted_connections
    register_timeout_usec: int = round(REGISTER_SECONDS * SECOND)
    stop_timeout_usec: int = round(STOP_SECONDS * SECOND)
    timeout_max_usec: int = TIMEOUT_MAX_USEC
    helpers_timeout_usec: int = round(HELPERS_SECONDS * SECOND)
    lease_grace_usec: int = round(LEASE_GRACE_SECONDS * SECOND)
    idle_timeout_usec: int | None = IDLE_USEC
    slice: str = MACHINE_SLICE
    tasks_max: int = TASKS_MAX
    runtime_directory_size_bytes: int = DIRECTORY_BYTES_MAX
    publish: bool = True
    adopt: bool = True
    log_level: int = INFO

    @property
    def bounds(self) -> Bounds:
        """How many machines there may be."""
        return Bounds(
            machines=self.machines_max,
            machines_per_uid=self.machines_per_user_max,
            verdicts=self.verdicts_max,
            verdicts_per_uid=self.verdicts_per_user_max,
            verdict_keep_usec=self.verdict_keep_usec,
        )

    @property
    def events(self) -> Extent:
        """How many events are kept."""
        return Extent(events=self.events_max, size=self.events_size_bytes)

    @property
    def limits(self) -> Limits:
        """How many connections there may be."""
        return Limits(
            connections=self.connections_max,
            connections_per_uid=self.connections_per_user_max,
            trusted_connections=self.trusted_connections_max,
        )

    @property
    def defaults(self) -> Defaults:
        """What the scope of a machine has if its caller does not say otherwise."""
        return Defaults(slice=self.slice, tasks_max=self.tasks_max)


DEFAULT: Final = "default"
"""The source of what nobody has set."""


class Problem(msgspec.Struct, frozen=True):
    """Something that is wrong with the configuration.

    Attributes:
        where: the file, with its line where that is known.
        text: what it is, and what comes of it.
        severe: something is not in force that is meant to be; otherwise somebody should look at it.
    """

    where: str
    text: str
    severe: bool

    def __str__(self) -> str:
        """Write it as a line of the log."""
        return f"{self.where}: {self.text}"


class Loaded(msgspec.Struct, frozen=True):
    """What the files, and the command line, say.

    Attributes:
        settings: all values.
        sources: where those that are no defaults come from: ``FILE:LINE``, or an option of the command line; by field.
        problems: what is wrong, in the order in which it was met.
    """

    settings: Settings
    sources: Mapping[str, str]
    problems: tuple[Problem, ...]
