"""The options of moored.conf(5): what each means, and which values it may have.

Only whoever reads a file, or is asked what is in force, needs this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from moorage.configuration.settings import HOUR, LEVELS, SECOND, Settings
from moorage.machines.events import EVENT_BYTES_CEILING, EVENTS_CEILING, SEGMENTS_MAX
from moorage.names import is_slice_name
from moorage.quantities import INFINITY, format_exact_size, format_span, parse_size, parse_span

NUMBER_MAX: Final = 65_536
"""The most of anything that is counted: each takes a file descriptor or a record. moored.service may open as many."""

TASKS_CEILING: Final = 4_194_304
"""``PID_MAX_LIMIT`` of the kernel, proc_sys_kernel(5): more tasks than that there cannot be."""

MINUTE: Final = 60 * SECOND
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
        with contextlib.suppress(ValueError):
            usec = parse_span(value) if isinstance(value, str) else 0
            if self.endless if usec is None else self.least <= usec <= self.most:
                return usec
        raise ValueError(f'must be a span of time in quotation marks, such as "30s" or "2min", {self}')

    def write(self, value: int | None) -> str:
        """Write the span."""
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
        with contextlib.suppress(ValueError):
            size = parse_size(value) if isinstance(value, str) else 0
            if self.least <= size <= self.most:
                return size
        raise ValueError(f'must be a size in quotation marks, such as "64M" or "1G", {self}')

    def write(self, value: int) -> str:
        """Write the size."""
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
        if isinstance(value, str) and is_slice_name(value):
            return value
        raise ValueError('must be the name of a slice in quotation marks, such as "vms.slice"')

    def write(self, value: str) -> str:
        """Write the name."""
        return value

    def __str__(self) -> str:
        """Say which names there are."""
        return "a slice"


class Switch(msgspec.Struct, frozen=True):
    """Whether something is done."""

    def parse(self, value: object) -> bool:
        """Return the truth value."""
        if isinstance(value, bool):
            return value
        raise ValueError(f"must be {self}, without quotation marks")

    def write(self, value: bool) -> str:  # noqa: FBT001 - it is the value
        """Write the truth value."""
        return "true" if value else "false"

    def __str__(self) -> str:
        """Say which values there are."""
        return "true or false"


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


OPTIONS: Final[Mapping[str, Option]] = {
    "machines_max": Option(
        Count(1, NUMBER_MAX), "Machines in all. Each takes a file descriptor, and a record in /run."
    ),
    "machines_per_user_max": Option(
        Count(1, NUMBER_MAX), "Machines of one user; root has as many as there may be."
    ),
    "verdicts_max": Option(Count(1, NUMBER_MAX), "Machines that have ended, and whose verdicts are kept."),
    "verdicts_per_user_max": Option(Count(1, NUMBER_MAX), "The same of one user."),
    "verdict_keep_usec": Option(Span(SECOND, 4 * WEEK), "How long a verdict is kept."),
    "events_max": Option(
        Count(SEGMENTS_MAX, EVENTS_CEILING), "Events kept for those who missed them.", at_restart=True
    ),
    "events_size_bytes": Option(
        Size(MEBIBYTE, EVENT_BYTES_CEILING),
        "The same in bytes of memory, and as much again in /run, but at most a quarter of it.",
        at_restart=True,
    ),
    "connections_max": Option(Count(16, NUMBER_MAX), "Connections of all users together, without root's."),
    "connections_per_user_max": Option(
        Count(1, NUMBER_MAX), "Connections of one user. Each lease needs one."
    ),
    "trusted_connections_max": Option(
        Count(16, NUMBER_MAX), "Connections of root, and of the user whose instance it is."
    ),
    "register_timeout_usec": Option(
        Span(SECOND, HOUR), "How long a start may take if the launcher does not say so."
    ),
    "stop_timeout_usec": Option(
        Span(SECOND, HOUR), "How long a stop may take if the caller does not say so."
    ),
    "timeout_max_usec": Option(Span(SECOND, HOUR), "The longest time that a caller may give a call."),
    "helpers_timeout_usec": Option(Span(SECOND, HOUR), "How long it may take to add or to reload helpers."),
    "lease_grace_usec": Option(
        Span(SECOND, 10 * MINUTE),
        "How long launchers have, after a restart of the service, to take their leases again.",
        at_restart=True,
    ),
    "idle_timeout_usec": Option(
        Span(SECOND, YEAR, endless=True),
        "Exit after so long without machines and callers; the next call starts the service again.",
    ),
    "slice": Option(Slice(), "Slice of new machines whose launcher names none."),
    "tasks_max": Option(
        Count(1, TASKS_CEILING),
        "TasksMax= of new machines whose launcher sets none, and the highest that users may set.",
    ),
    "runtime_directory_size_bytes": Option(
        Size(MEBIBYTE, 1024 * 1024 * MEBIBYTE),
        "Size of the file system on the runtime directory of a machine that is not root's.",
        at_restart=True,
    ),
    "publish": Option(
        Switch(),
        "Register machines with systemd-machined too, where it is, so that its tools see them.",
        at_restart=True,
    ),
    "adopt": Option(
        Switch(),
        "Adopt the machines of systemd-machined, where it is. The service then stays, also with nothing to do.",
        at_restart=True,
    ),
    "log_level": Option(Level(), "The least important messages that are logged."),
}
"""The options by the fields of :class:`Settings`."""


def name_of(field: str) -> str:
    """Return the name that a field of :class:`Settings` has in the file."""
    first, *rest = field.removesuffix("_usec").removesuffix("_bytes").split("_")
    return first + "".join(map(str.title, rest))


FIELDS: Final[Mapping[str, str]] = {name_of(field): field for field in OPTIONS}
"""The fields by the names that they have in the file."""


def written(settings: Settings, field: str) -> str:
    """Return a value as the file has it, without quotation marks."""
    return OPTIONS[field].kind.write(getattr(settings, field))


def changed(one: Settings, other: Settings) -> Sequence[str]:
    """Return the fields in which two differ."""
    return [field for field in OPTIONS if getattr(one, field) != getattr(other, field)]
