"""Which helpers can be: checks what is asked for, before anything is done.

Pure: no I/O.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Sequence
from typing import Final

from moorage.machines.errors import InvalidHelper
from moorage.machines.helpers.units import RuntimeDirectories
from moorage.machines.model import HELPER_SOCKETS_MAX, HELPERS_MAX, Helper, HelperSpec
from moorage.machines.texts import is_path
from moorage.names import SUN_PATH_MAX, is_helper_name, is_socket_name
from moorage.pid1 import unit_files

ARGUMENTS_MAX: Final = 1024
"""Strings in one command: a hundred devices of a VMM, and then some. Their bytes are bounded with the properties'."""

TYPES: Final = frozenset({"simple", "exec", "notify", "notify-reload", "oneshot"})
"""Types of services that helpers may be. With "forking" and "idle" nobody can tell when they are ready, and "dbus"
needs a bus."""

RESTARTS: Final = frozenset(
    {"no", "on-success", "on-failure", "on-abnormal", "on-watchdog", "on-abort", "always"}
)
"""What systemd.service(5) has for ``Restart=``."""


def check(
    specs: Sequence[HelperSpec], machine: str, existing: Iterable[Helper], directories: RuntimeDirectories
) -> None:
    """Check helpers against each other, and against those that a machine has.

    Raises:
        InvalidHelper: one of them cannot be; the first field that is wrong.
    """
    names = {helper.name for helper in existing}
    sockets = {name for helper in existing for name in helper.sockets}
    if len(names) + len(specs) > HELPERS_MAX:
        raise InvalidHelper("")
    for number, spec in enumerate(specs):
        where = f"[{number}]"
        if not is_helper_name(spec.name, machine) or spec.name in names:
            raise InvalidHelper(f"{where}.name")
        names.add(spec.name)
        _check_command(spec.exec_start, f"{where}.execStart")
        if spec.type not in TYPES:
            raise InvalidHelper(f"{where}.type")
        # A oneshot service that succeeded has ended (systemd.service(5)).
        if spec.restart is not None and (
            spec.restart not in RESTARTS
            or (spec.type == "oneshot" and spec.restart in {"always", "on-success"})
        ):
            raise InvalidHelper(f"{where}.restart")
        _check_sockets(spec, f"{where}.sockets", sockets, directories.directory(machine))
    _check_order(specs, names)


def bad_argument(command: Sequence[str]) -> str | None:
    """Return what a command cannot have: "[2]" for its third string, "" for all of it; None if it can be."""
    if not 0 < len(command) <= ARGUMENTS_MAX or not is_path(command[0]):
        return ""
    if unit_files.broken_command(command[0], command, expands=False) is not None:
        return "[0]"
    for number, argument in enumerate(command):
        if unit_files.QUOTED.broken_by(argument) is not None:
            return f"[{number}]"
    return None


def _check_command(command: Sequence[str], where: str) -> None:
    if (place := bad_argument(command)) is not None:
        raise InvalidHelper(f"{where}{place}")


def _check_sockets(spec: HelperSpec, where: str, taken: set[str], directory: str) -> None:
    if len(spec.sockets) > HELPER_SOCKETS_MAX:
        raise InvalidHelper(where)
    for number, socket in enumerate(spec.sockets):
        if (
            not is_socket_name(socket.name)
            or socket.name in taken
            or len(f"{directory}/{socket.name}") > SUN_PATH_MAX
        ):
            raise InvalidHelper(f"{where}[{number}].name")
        taken.add(socket.name)
        # They are one unit, and that has one SocketMode=.
        mode = spec.sockets[0].mode
        if socket.mode != mode or (mode is not None and not 0 <= mode <= 0o777):
            raise InvalidHelper(f"{where}[{number}].mode")


def _check_order(specs: Sequence[HelperSpec], names: set[str]) -> None:
    order = graphlib.TopologicalSorter[str]()
    for number, spec in enumerate(specs):
        for place, other in enumerate(spec.after):
            if other not in names:
                raise InvalidHelper(f"[{number}].after[{place}]")
        order.add(spec.name, *spec.after)
    try:
        order.prepare()
    except graphlib.CycleError as error:
        cycle = error.args[1]
        number = next(number for number, spec in enumerate(specs) if spec.name in cycle)
        raise InvalidHelper(f"[{number}].after") from None
