"""Names of machines and of what belongs to them: the rules, and the names of units. For daemon and command line.

Pure: no I/O.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

NAME_MAX: Final = 64
"""``HOST_NAME_MAX`` of Linux, which machined applies to machines as well (``hostname_is_valid()``)."""

UNIT_NAME_MAX: Final = 255
"""``UNIT_NAME_MAX`` of systemd's basic/unit-name.h."""

SUN_PATH_MAX: Final = 107
"""Bytes of a socket's path (unix(7): 108 with the final NUL)."""

ESCAPED_MAX: Final = 256
"""Names whose escaped form is kept: that of a machine is needed five times for each of its registrations."""

SHUTDOWN: Final = "moored-shutdown.service"
"""The service whose stop gives machines time when the host shuts down; what is before it is stopped after it."""

_SURELY_SHORT = (UNIT_NAME_MAX - len("machine-.scope")) // 4
_NAME = re.compile(r"[A-Za-z0-9_@\\:][A-Za-z0-9_.@\\:-]*")
_HELPER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HOST_NAME_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_SLICE_PART = re.compile(r"[A-Za-z0-9:_.\\]+")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.")


class UnitNames:
    r"""The names of the units of one machine.

    Escaping leaves no hyphen in the names of machines and helpers, so that a hyphen separates parts and nothing else:
    names can be read back, and no two of these are ever the same. No helper has an empty name, so that a unit with two
    hyphens in a row is no helper's.

    Attributes:
        machine: name of the machine.
        scope: the scope; the same that machined gives it.
        runtime: the service that holds the runtime directory.
        barrier: the service whose start waits for all helpers that come with the machine.
        add_barrier: the service whose start waits for helpers that are added.
        stopper: the service whose start stops the machine.
        stop_command: the service whose stop asks the machine to end.
    """

    __slots__ = (
        "_prefix",
        "add_barrier",
        "barrier",
        "machine",
        "runtime",
        "scope",
        "stop_command",
        "stopper",
    )

    def __init__(self, machine: str) -> None:
        prefix = f"machine-{escape(machine)}"
        self.machine = machine
        self._prefix = prefix
        self.scope = f"{prefix}.scope"
        self.runtime = f"{prefix}.service"
        self.barrier = f"{prefix}--barrier.service"
        self.add_barrier = f"{prefix}--add.service"
        self.stopper = f"{prefix}--stop.service"
        self.stop_command = f"{prefix}--ask.service"

    def helper(self, helper: str) -> str:
        """Return the name of a helper's service."""
        return f"{self._prefix}-{escape(helper)}.service"

    def socket(self, helper: str) -> str:
        """Return the name of the unit with a helper's sockets."""
        return f"{self._prefix}-{escape(helper)}.socket"

    def bond(self, helper: str) -> str:
        """Return the name of the service that ends the machine with a helper; only this one has three parts."""
        return f"{self._prefix}-{escape(helper)}-bond.service"

    def slice(self, parent: str) -> str:
        """Return the name of the slice for all of these units, below another one: each raw hyphen is a level."""
        return f"{parent.removesuffix('.slice')}-{escape(self.machine)}.slice"


def is_host_name(name: str) -> bool:
    """Whether machined would take this as the name of a machine (``hostname_is_valid()`` without flags)."""
    return len(name) <= NAME_MAX and all(_HOST_NAME_LABEL.fullmatch(label) for label in name.split("."))


def is_machine_name(name: str) -> bool:
    r"""Whether a name is one that a machine may have.

    Wider than that of machined: ``_``, ``@``, ``\`` and ``:`` are allowed, and labels may be empty. A name starts
    neither with a dot (records and directories of that name would be hidden) nor with a hyphen (it would be an option
    on every command line), and its unit's name must not get too long by escaping.
    """
    if len(name) > NAME_MAX or not _NAME.fullmatch(name):
        return False
    # Escaping makes four characters of one at most: only the longest names are worth the counting.
    return len(name) <= _SURELY_SHORT or len(UnitNames(name).scope) <= UNIT_NAME_MAX


def is_helper_name(name: str, machine: str) -> bool:
    """Whether a helper of a machine may have that name."""
    return (
        len(name) <= NAME_MAX
        and bool(_HELPER_NAME.fullmatch(name))
        and len(UnitNames(machine).bond(name)) <= UNIT_NAME_MAX
    )


def is_socket_name(name: str) -> bool:
    """Whether a socket may have that name: a plain component of a path, not hidden."""
    return len(name) <= SUN_PATH_MAX and bool(_HELPER_NAME.fullmatch(name))


def is_slice_name(name: str) -> bool:
    """Whether a name is a valid slice other than the root (systemd.slice(5), ``slice_name_is_valid()``)."""
    if len(name) > UNIT_NAME_MAX or not name.endswith(".slice"):
        return False
    return all(_SLICE_PART.fullmatch(part) for part in name.removesuffix(".slice").split("-"))


@lru_cache(maxsize=ESCAPED_MAX)
def escape(text: str) -> str:
    r"""Escape a string for use in a unit's name (systemd.unit(5), "String Escaping for Inclusion in Unit Names")."""
    return "".join(
        "-" if character == "/"
        else character if character in _PLAIN and not (character == "." and position == 0)
        else "".join(f"\\x{byte:02x}" for byte in character.encode())
        for position, character in enumerate(text)
    )  # fmt: skip


def unescape(text: str) -> str:
    """Undo :func:`escape`, for names in ASCII, as those of machines are."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text.replace("-", "/"))


def machine_of_scope(unit: str) -> str | None:
    """Return the machine that a scope of this name is for; None if it is not one of ours."""
    if not (unit.startswith("machine-") and unit.endswith(".scope")):
        return None
    name = unescape(unit[len("machine-") : -len(".scope")])
    return name if is_machine_name(name) and UnitNames(name).scope == unit else None


def machine_of_helper(unit: str) -> str | None:
    """Return the machine that the service of a helper is for; None if it is not one of ours."""
    name = unescape(unit.removeprefix("machine-").partition("-")[0])
    return name if is_machine_name(name) and unit.startswith(f"machine-{escape(name)}-") else None


def in_description(machine: str) -> str:
    """Write a machine's name for the end of a unit's description, which must not be a backslash."""
    return f"“{machine}”" if machine.endswith("\\") else machine


def directory_name(machine: str) -> str:
    r"""Return the name of a machine's runtime directory: ``:`` and ``\`` mean something in ``RuntimeDirectory=``."""
    return machine.replace(":", "+3a").replace("\\", "+5c")
