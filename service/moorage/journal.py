"""What units wrote to the journal at their end: systemd.journal-fields(7).

Everything here waits for disks: call it in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

LINES_MAX = 20
"""Lines kept of each unit: what fits on a screen together with the error."""

LINE_MAX = 1024
"""Characters kept of a line; a reply with all of them stays below 32 KiB."""

ENTRIES_MAX = 4096
"""Entries looked at, from the newest backwards: of a unit that wrote more, its last lines are among them."""

_ERR = 3  # LOG_ERR of syslog(3)


class UnitLog(msgspec.Struct):
    """The end of a unit's log.

    Attributes:
        result: why it failed, as the manager says (``UNIT_RESULT=``); None if it says nothing.
        lines: what it wrote itself, and why the manager could not so much as load it, oldest first.
    """

    result: str | None = None
    lines: list[str] = msgspec.field(default_factory=list[str])


def read(
    units: Sequence[str], *, since_usec: int, boot_id: str, user: bool, wait_usec: int
) -> dict[str, UnitLog]:
    """Read the last lines of units, waiting a while for the manager's word that one of them failed.

    What a service writes and what the manager says of it go different ways into the journal: by the time of the
    manager's word what was written before is there too.

    Args:
        units: their names.
        since_usec: nothing older, µs since boot.
        boot_id: of that boot, 32 hexadecimal digits.
        user: they are units of a user's manager.
        wait_usec: µs.

    Raises:
        OSError: the journal cannot be read.
    """
    # The import takes longer than the start of the rest of the daemon, and is for failures only.
    from systemd import journal

    end = time.monotonic() + wait_usec / 1e6
    with journal.Reader() as reader:
        for unit in units:
            for matches in _matches(unit, user=user):
                for match in matches:
                    reader.add_match(match)
                reader.add_disjunction()
        while True:
            reader.seek_tail()
            found = _collect(reader, units, since_usec, boot_id, user=user)
            left = end - time.monotonic()
            if left <= 0 or any(log.result for log in found.values()):
                return found
            reader.wait(left)


def _matches(unit: str, *, user: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what a unit wrote itself, and what its manager wrote about it."""
    if user:
        return (f"_SYSTEMD_USER_UNIT={unit}",), (f"USER_UNIT={unit}", "_COMM=systemd")
    return (f"_SYSTEMD_UNIT={unit}",), (f"UNIT={unit}", "_PID=1")


def _collect(
    reader: Any, units: Sequence[str], since_usec: int, boot_id: str, *, user: bool
) -> dict[str, UnitLog]:
    found = {unit: UnitLog() for unit in units}
    wrote, told = ("_SYSTEMD_USER_UNIT", "USER_UNIT") if user else ("_SYSTEMD_UNIT", "UNIT")
    for _ in range(ENTRIES_MAX):
        entry = reader.get_previous()
        if not entry:
            break
        stamp = entry["__MONOTONIC_TIMESTAMP"]
        if stamp.bootid.hex != boot_id or stamp.timestamp.total_seconds() * 1e6 < since_usec:
            break
        if (log := found.get(entry.get(told, ""))) is not None:
            log.result = log.result or entry.get("UNIT_RESULT")
            # Of other errors, and of a job that failed because of them, the unit's own lines tell more.
            if entry.get("PRIORITY") == _ERR and "JOB_ID" not in entry and len(log.lines) < LINES_MAX:
                log.lines.append(_text(entry.get("MESSAGE", "")))
        elif (log := found.get(entry.get(wrote, ""))) is not None and len(log.lines) < LINES_MAX:
            log.lines.append(_text(entry.get("MESSAGE", "")))
    for log in found.values():
        log.lines.reverse()
    return found


def _text(message: str | bytes) -> str:
    text = message.decode(errors="replace") if isinstance(message, bytes) else message
    return text[:LINE_MAX]
