"""The options of moored.conf(5): one declaration each, with its unit, its range and its default.

What each default is good for is said where it is declared, in the room that applies it; ``docs/limits.md`` has the
reasons together, and ``docs/configuration.md`` what the options mean.

Nothing here is needed to start with the defaults but the defaults: the table is made when it is first asked for.
"""

from __future__ import annotations

import contextlib
import functools
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Protocol

import msgspec

from moorage.machines.control import STOP_SECONDS
from moorage.machines.events import (
    EVENT_BYTES_CEILING,
    EVENT_BYTES_MAX,
    EVENTS_CEILING,
    EVENTS_MAX,
    SEGMENTS_MAX,
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

NUMBER_MAX: Final = 65_536
"""The most of anything that is counted: each takes a file descriptor or a record. moored.service may open as many."""

TASKS_CEILING: Final = 4_194_304
"""``PID_MAX_LIMIT`` of the kernel, proc_sys_kernel(5): more tasks than that there cannot be."""

SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
WEEK: Final = 7 * 24 * HOUR
YEAR: Final = 31_557_600 * SECOND
MEBIBYTE: Final = 1024 * 1024


class Kind(Protocol):
    """The values of an option."""

    def parse(self, value: object) -> Any:
        """Return what a value of the file stands for.

        Raises:
            ValueError: it has another type, or is out of range; the message says what is right.
        """
        ...

    def write(self, value: Any) -> str:
        """Write a value as the file has it, without quotation marks."""
        ...

    def __str__(self) -> str:
        """Say which values there are."""
        ...


class Count(msgspec.Struct, frozen=True):
    """A number of things.

    Attributes:
        least: the smallest.
        most: the largest.
    """

    least: int
    most: int

    def parse(self, value: object) -> int:
        """Return the number."""
        if isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most:
            return value
        raise ValueError(f"must be an integer, {self}")

    def write(self, value: int) -> str:
        """Write the number."""
        return str(value)

    def __str__(self) -> str:
        """Say which numbers there are."""
        return f"{self.least} to {self.most}"


class Span(msgspec.Struct, frozen=True):
    """A span of time, as a text in the notation of systemd.time(7).

    Attributes:
        least: the shortest, µs.
        most: the longest, µs.
        endless: "infinity" may be set as well, and stands for None.
    """

    least: int
    most: int
    endless: bool = False

    def parse(self, value: object) -> int | None:
        """Return the span in µs."""
        from moorage.quantities import parse_span

        with contextlib.suppress(ValueError):
            usec = parse_span(value) if isinstance(value, str) else 0
            if self.endless if usec is None else self.least <= usec <= self.most:
                return usec
        raise ValueError(f'must be a span of time in quotation marks, such as "30s" or "2min", {self}')

    def write(self, value: int | None) -> str:
        """Write the span."""
        from moorage.quantities import INFINITY, format_span

        return INFINITY if value is None else format_span(value)

    def __str__(self) -> str:
        """Say which spans there are."""
        return f"{self.write(self.least)} to {self.write(self.most)}" + (", or infinity" * self.endless)


class Size(msgspec.Struct, frozen=True):
    """A number of bytes, as a text with a suffix to the base of 1024.

    Attributes:
        least: the smallest.
        most: the largest.
    """

    least: int
    most: int

    def parse(self, value: object) -> int:
        """Return the number of bytes."""
        from moorage.quantities import parse_size

        with contextlib.suppress(ValueError):
            size = parse_size(value) if isinstance(value, str) else 0
            if self.least <= size <= self.most:
                return size
        raise ValueError(f'must be a size in quotation marks, such as "64M" or "1G", {self}')

    def write(self, value: int) -> str:
        """Write the size."""
        from moorage.quantities import format_exact_size

        return format_exact_size(value)

    def __str__(self) -> str:
        """Say which sizes there are."""
        return f"{self.write(self.least)} to {self.write(self.most)}"


class Level(msgspec.Struct, frozen=True):
    """A level of syslog(3), by its name; inside, its number."""

    def parse(self, value: object) -> int:
        """Return the number of a level."""
        if isinstance(value, str) and value in LEVELS:
            return LEVELS.index(value)
        raise ValueError(f"must be a level in quotation marks: {self}")

    def write(self, value: int) -> str:
        """Write the name of a level."""
        return LEVELS[value]

    def __str__(self) -> str:
        """Say which levels there are."""
        return ", ".join(LEVELS)


class Slice(msgspec.Struct, frozen=True):
    """The name of a slice."""

    def parse(self, value: object) -> str:
        """Return the name."""
        from moorage.names import is_slice_name

        if isinstance(value, str) and is_slice_name(value):
            return value
        raise ValueError('must be the name of a slice in quotation marks, such as "vms.slice"')

    def write(self, value: str) -> str:
        """Write the name."""
        return value

    def __str__(self) -> str:
        """Say which names there are."""
        return "a slice"


class Option(msgspec.Struct, frozen=True):
    """An option, but for its name and its default.

    Attributes:
        kind: its values.
        about: what it means, in a sentence or two.
        at_restart: it is in force from the next start of the service; the others are at once when it is reloaded.
    """

    kind: Kind
    about: str
    at_restart: bool = False


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A value for each option. The names in the file are these in camel case, without the unit at their end."""

    machines_max: Annotated[
        int,
        Option(Count(1, NUMBER_MAX), "Machines in all. Each takes a file descriptor, and a record in /run."),
    ] = MACHINES_MAX
    machines_per_user_max: Annotated[
        int, Option(Count(1, NUMBER_MAX), "Machines of one user; root has as many as there may be.")
    ] = MACHINES_PER_UID_MAX
    verdicts_max: Annotated[
        int, Option(Count(1, NUMBER_MAX), "Machines that have ended, and whose verdicts are kept.")
    ] = VERDICTS_MAX
    verdicts_per_user_max: Annotated[int, Option(Count(1, NUMBER_MAX), "The same of one user.")] = (
        VERDICTS_PER_UID_MAX
    )
    verdict_keep_usec: Annotated[int, Option(Span(SECOND, 4 * WEEK), "How long a verdict is kept.")] = (
        VERDICT_KEEP_USEC
    )
    events_max: Annotated[
        int,
        Option(
            Count(SEGMENTS_MAX, EVENTS_CEILING), "Events kept for those who missed them.", at_restart=True
        ),
    ] = EVENTS_MAX
    events_size_bytes: Annotated[
        int,
        Option(
            Size(MEBIBYTE, EVENT_BYTES_CEILING),
            "The same in bytes of memory, and as much again in /run.",
            at_restart=True,
        ),
    ] = EVENT_BYTES_MAX
    connections_max: Annotated[
        int, Option(Count(16, NUMBER_MAX), "Connections of all users together, without root's.")
    ] = Limits().connections
    connections_per_user_max: Annotated[
        int, Option(Count(1, NUMBER_MAX), "Connections of one user. Each lease needs one.")
    ] = Limits().connections_per_uid
    trusted_connections_max: Annotated[
        int, Option(Count(16, NUMBER_MAX), "Connections of root, and of the user whose instance it is.")
    ] = Limits().trusted_connections
    register_timeout_usec: Annotated[
        int, Option(Span(SECOND, HOUR), "How long a start may take if the launcher does not say so.")
    ] = round(REGISTER_SECONDS * SECOND)
    stop_timeout_usec: Annotated[
        int, Option(Span(SECOND, HOUR), "How long a stop may take if the caller does not say so.")
    ] = round(STOP_SECONDS * SECOND)
    timeout_max_usec: Annotated[
        int, Option(Span(SECOND, HOUR), "The longest time that a caller may give a call.")
    ] = TIMEOUT_MAX_USEC
    helpers_timeout_usec: Annotated[
        int, Option(Span(SECOND, HOUR), "How long it may take to add or to reload helpers.")
    ] = round(HELPERS_SECONDS * SECOND)
    lease_grace_usec: Annotated[
        int,
        Option(
            Span(SECOND, 10 * MINUTE),
            "How long launchers have, after a restart of the service, to take their leases again.",
            at_restart=True,
        ),
    ] = round(LEASE_GRACE_SECONDS * SECOND)
    idle_timeout_usec: Annotated[
        int | None,
        Option(
            Span(SECOND, YEAR, endless=True),
            "Exit after so long without machines and callers; the next call starts the service again.",
        ),
    ] = IDLE_USEC
    slice: Annotated[str, Option(Slice(), "Slice of new machines whose launcher names none.")] = (
        MACHINE_SLICE
    )
    tasks_max: Annotated[
        int,
        Option(
            Count(1, TASKS_CEILING),
            "TasksMax= of new machines whose launcher sets none, and the highest that users may set.",
        ),
    ] = TASKS_MAX
    runtime_directory_size_bytes: Annotated[
        int,
        Option(
            Size(MEBIBYTE, 1024 * 1024 * MEBIBYTE),
            "Size of the file system on the runtime directory of a machine that is not root's.",
            at_restart=True,
        ),
    ] = DIRECTORY_BYTES_MAX
    log_level: Annotated[int, Option(Level(), "The least important messages that are logged.")] = INFO

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


@functools.cache
def options() -> Mapping[str, Option]:
    """Return the options by the names of their fields."""
    hints = typing.get_type_hints(Settings, include_extras=True)
    return {
        field: next(each for each in hints[field].__metadata__ if isinstance(each, Option))
        for field in Settings.__struct_fields__
    }


@functools.cache
def fields() -> Mapping[str, str]:
    """Return the fields of :class:`Settings` by the names that they have in the file."""
    return {name_of(field): field for field in Settings.__struct_fields__}


def name_of(field: str) -> str:
    """Return the name that a field of :class:`Settings` has in the file."""
    first, *rest = field.removesuffix("_usec").removesuffix("_bytes").split("_")
    return first + "".join(map(str.title, rest))


def written(settings: Settings, field: str) -> str:
    """Return a value as the file has it, without quotation marks."""
    return options()[field].kind.write(getattr(settings, field))


def changed(one: Settings, other: Settings) -> Sequence[str]:
    """Return the fields in which two differ."""
    return [field for field in Settings.__struct_fields__ if getattr(one, field) != getattr(other, field)]
