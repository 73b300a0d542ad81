"""The journal of a machine: of its scope, of its helpers, and what moored and the service manager wrote about them.

journalctl(1) reads it, so that everybody sees what that lets them see. What is shown of it is escaped: everything that
runs in a machine can write to the journal.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Final

import click
import msgspec

from moorage.cli import service, views
from moorage.cli.address import Address
from moorage.cli.failures import Exit, Failure
from moorage.client.methods import Described
from moorage.names import UnitNames, is_helper_name
from moorage.quantities import printable

_DIGITS_MAX: Final = 20
_WARNING, _DEBUG = 4, 7  # LOG_… of syslog(3)


class Entry(msgspec.Struct, rename=str.upper):
    """What is shown of an entry; names as in systemd.journal-fields(7).

    A field is a list of bytes where it is no text, of values where there are several, and null where it is long.
    """

    message: Any = None
    priority: Any = None
    syslog_identifier: Any = None
    syslog_pid: Any = None
    helper: Any = None
    comm: Any = msgspec.field(name="_COMM", default=None)
    pid: Any = msgspec.field(name="_PID", default=None)
    time: Any = msgspec.field(name="__REALTIME_TIMESTAMP", default=None)


class Journal:
    """The journal of one machine.

    Args:
        address: of the service that has, or had, the machine.
        name: of the machine.
        uid: user whose service manager it is of; None for the system's.
    """

    def __init__(self, address: Address, name: str, uid: int | None) -> None:
        self._address = address
        self._name = name
        self._uid = uid

    def read(self, options: Sequence[str]) -> Generator[str]:
        """Read entries, a line of JSON each.

        Args:
            options: of journalctl(1).

        Raises:
            Failure: it cannot be run, or it fails, after it has said why.
        """
        yield from _run([*options, *self._matches(self._units())])

    def _units(self) -> list[str]:
        """Return the units of the machine: of the one that there is, and of those that there were."""
        names = UnitNames(self._name)
        units = {names.scope: None}
        helpers: list[str] = []
        try:
            found = service.call(self._address, "Describe", {"name": self._name})
            machine = msgspec.json.decode(found, type=Described).machine
            if machine.subgroup is None:  # else the log of its unit is that of others as well
                units[machine.unit] = None
            helpers += [helper.name for helper in machine.helpers]
        except (Failure, msgspec.DecodeError):
            pass  # the journal may have it still
        for line in _run(["--output-fields=HELPER", *self._by_moored()], quiet=True):
            helpers += _texts(_decoded(line).helper)
        for helper in helpers:
            if is_helper_name(helper, self._name):
                units[names.helper(helper)] = None
        return list(units)

    def _by_moored(self) -> list[str]:
        """Match what moored wrote about it: others may write entries with that field as well."""
        if self._uid is None:
            return [f"MACHINE={self._name}", "_SYSTEMD_UNIT=moored.service"]
        return [f"MACHINE={self._name}", "_SYSTEMD_USER_UNIT=moored.service", f"_UID={self._uid}"]

    def _matches(self, units: Sequence[str]) -> list[str]:
        matches = self._by_moored()
        for unit in units:
            if self._uid is None:
                matches += ["+", f"_SYSTEMD_UNIT={unit}", "+", f"UNIT={unit}", "_PID=1"]
            else:
                uid = f"_UID={self._uid}"
                matches += ["+", f"_SYSTEMD_USER_UNIT={unit}", f"_SYSTEMD_OWNER_UID={self._uid}"]
                # Lines whose unit journald does not know: who wrote them was gone when it looked.
                matches += ["+", f"SYSLOG_IDENTIFIER={unit}", "_TRANSPORT=stdout", uid]
                matches += ["+", f"USER_UNIT={unit}", "_COMM=systemd", uid]
        return matches


def show_json(line: str) -> None:
    """Print an entry as journalctl has it, with nothing that could control a terminal."""
    views.show_json(msgspec.Raw(line.encode()))


def show(line: str) -> None:
    """Print an entry: when, who, and what, in as many lines as it has."""
    entry = _decoded(line)
    texts = _texts(entry.message)
    who = next(iter(_texts(entry.syslog_identifier) or _texts(entry.comm)), "unknown")
    pid = next(iter(_texts(entry.syslog_pid) or _texts(entry.pid)), "")
    head = f"{_moment(_texts(entry.time))} {printable(who)}{f'[{printable(pid)}]' if pid else ''}: "
    lines = texts[0].splitlines() if texts else ["(a message too long to be shown)"]
    for number, text in enumerate(lines or [""]):
        click.echo((" " * len(head) if number else head) + _styled(printable(text), _texts(entry.priority)))


def _styled(text: str, priority: Sequence[str]) -> str:
    number = int(priority[0]) if priority and priority[0] in set("01234567") else _WARNING + 1
    if number == _DEBUG:
        return click.style(text, dim=True)
    return click.style(text, fg="red" if number < _WARNING else "yellow" if number == _WARNING else None)


def _moment(stamp: Sequence[str]) -> str:
    """Write a point in time, in µs since the epoch, in the caller's time zone."""
    if not stamp or not stamp[0].isdecimal() or len(stamp[0]) > _DIGITS_MAX:
        return "unknown"
    usec = int(stamp[0])
    try:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(usec // 1_000_000))
    except (OverflowError, OSError, ValueError):
        return "unknown"
    return f"{moment}.{usec % 1_000_000:06d}"


def _texts(value: Any) -> list[str]:
    """Return the values of a field as text."""
    match value:
        case str():
            return [value]
        case [*numbers] if numbers and all(isinstance(each, int) for each in numbers):
            return [bytes(each & 0xFF for each in numbers).decode(errors="replace")]
        case [*values]:
            return [text for each in values for text in _texts(each)]
        case _:
            return []


def _decoded(line: str) -> Entry:
    try:
        return msgspec.json.decode(line, type=Entry)
    except msgspec.DecodeError:
        return Entry(message="(an entry that cannot be read)")


def _run(arguments: Sequence[str], *, quiet: bool = False) -> Iterator[str]:
    command = ["journalctl", "--output=json", "--no-pager", *(["--quiet"] if quiet else []), *arguments]
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        raise Failure(Exit.NOT_FOUND, "journalctl is not installed.") from None
    with child:
        try:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith("{"):
                    yield line
        finally:
            if child.poll() is None:
                child.terminate()
    if child.returncode > 0 and not quiet:
        raise Failure(Exit.REFUSED, "journalctl has failed.")
