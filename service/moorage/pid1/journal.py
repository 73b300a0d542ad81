"""What units wrote to the journal, and what their manager wrote about their end: systemd.journal-fields(7).

The manager of a user does not write that a unit has ended well (unit_log_success() of systemd): only that a job has
stopped it, or with what result it failed.

journald takes nobody's word but root's for the unit whose output it gets. For those of a user it looks for the
control group of who writes, and finds none of a process that is gone by then (systemd issue 31800): such lines are
found by what they are called, which is the name of the unit (``SyslogIdentifier=``).

Everything here waits for disks: call it in a thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

LINES_MAX = 20
"""Lines kept of each unit: what fits on a screen together with the error."""

LINE_MAX = 1024
"""Characters kept of a line; a reply with all of them stays below 32 KiB."""

ENTRIES_MAX = 4096
"""Entries looked at, from the newest backwards: of a unit that wrote more, its last lines are among them."""

END_ENTRIES_MAX = 256
"""Entries of its manager looked at for the end of one unit: it writes about five; a unit that is reloaded all the time
has more of them."""

_ERR = 3  # LOG_ERR of syslog(3)

# sd-messages.h of systemd; SD_MESSAGE_…
_UNIT_SUCCESS: Final = "7ad2d189f7e94e70a38c781354912448"
_UNIT_FAILURE_RESULT: Final = "d9b373ed55a64feb8242e02dbe79a49c"
_UNIT_OUT_OF_MEMORY: Final = "fe6faa94e7774663a0da52717891d8ef"
_UNIT_OOMD_KILL: Final = "d989611b15e44c9dbf31e3c81256e4ed"
_UNIT_RESOURCES: Final = "ae8f7b866b0347b9af31fe1c80b127c0"

_UNIT_STARTING: Final = "7d4958e842da4a758f6c1cdc7b36dcc5"
_UNIT_STARTED: Final = "39f53479d3a045ac8e11786248231fbf"
_UNIT_STOPPED: Final = "9d1aaa27d60140bd96365438aad20286"
_ENDS: Final = (_UNIT_SUCCESS, _UNIT_FAILURE_RESULT)


class UnitLog(msgspec.Struct):
    """The end of a unit's log.

    Attributes:
        result: why it failed, as the manager says (``UNIT_RESULT=``); None if it says nothing.
        succeeded: it has ended well, after whatever the result is of.
        lines: what it wrote itself, and why the manager could not so much as load it, oldest first.
    """

    result: str | None = None
    succeeded: bool = False
    lines: list[str] = msgspec.field(default_factory=list[str])


class UnitEnd(msgspec.Struct):
    """What a manager wrote about the end of a unit.

    Attributes:
        result: "success", or the result with which it failed; None while it has not ended.
        realtime: when it had ended, µs since the epoch.
        monotonic: the same, µs since boot.
        stopped: a job had stopped it.
        oom: the kernel killed processes of it for lack of memory.
        oomd: systemd-oomd did.
        counters: what it consumed, by the names of the fields (``CPU_USAGE_NSEC``, ``MEMORY_PEAK``, …). The manager
            writes that of units that consumed much only: others would fill the journal.
    """

    result: str | None = None
    realtime: int = 0
    monotonic: int = 0
    stopped: bool = False
    oom: bool = False
    oomd: bool = False
    counters: dict[str, int] = msgspec.field(default_factory=dict[str, int])


def ends(invocations: Sequence[str], *, user: bool, wait: float) -> dict[str, UnitEnd]:
    """Read what the manager wrote about the end of units, waiting a while for the first that has ended.

    Args:
        invocations: of the units, 32 hexadecimal digits each.
        user: they are units of a user's manager.
        wait: s.

    Returns:
        The units that have ended, by their invocation.

    Raises:
        OSError: the journal cannot be read.
    """
    from systemd import journal

    until = time.monotonic() + wait
    with journal.Reader() as reader:
        while True:
            found = {each: end for each in invocations if (end := _end(reader, each, user=user)).result}
            left = until - time.monotonic()
            if found or left <= 0:
                return found
            reader.wait(left)


def _end(reader: Any, invocation: str, *, user: bool) -> UnitEnd:
    reader.flush_matches()
    for match in _by_manager(user=user):
        reader.add_match(match)
    reader.add_match(f"{'USER_' if user else ''}INVOCATION_ID={invocation}")
    reader.seek_tail()
    found = UnitEnd()
    stopped_at: tuple[int, int] | None = None
    for _ in range(END_ENTRIES_MAX):
        entry = reader.get_previous()
        if not entry:
            break
        match _kind(entry):
            case kind if kind in _ENDS and found.result is None:
                found.result = entry.get("UNIT_RESULT", "success")
                found.realtime, found.monotonic = _moment(entry)
            case kind if kind == _UNIT_OUT_OF_MEMORY:
                found.oom = True
            case kind if kind == _UNIT_OOMD_KILL:
                found.oomd = True
            case kind if kind == _UNIT_RESOURCES:
                found.counters = _counters(entry)
            case kind:
                found.stopped |= entry.get("JOB_TYPE") == "stop"
                if kind == _UNIT_STOPPED and stopped_at is None:
                    stopped_at = _moment(entry)
    if user and found.result is None and stopped_at is not None:
        found.result = "success"
        found.realtime, found.monotonic = stopped_at
    return found


class Culprit(msgspec.Struct):
    """A unit whose end had another one stopped.

    Attributes:
        unit: its name.
        result: how it ended.
        began_usec: when it had been started, µs since boot.
        stopped: a job had stopped it.
    """

    unit: str
    result: str
    began_usec: int
    stopped: bool = False


class Journal(Protocol):
    """What the core reads of the journal: this module, or what a test has in its place."""

    def read(
        self, units: Sequence[str], *, since_usec: int, boot_id: str, user: bool, wait: float
    ) -> dict[str, UnitLog]:
        """See :func:`read`."""
        ...

    def ends(self, invocations: Sequence[str], *, user: bool, wait: float) -> dict[str, UnitEnd]:
        """See :func:`ends`."""
        ...

    def culprit(
        self,
        bonds: Mapping[str, str],
        stopped: str,
        *,
        otherwise: str | None = None,
        boot_id: str,
        user: bool,
    ) -> tuple[Culprit | None, bool]:
        """See :func:`culprit`."""
        ...


def culprit(
    bonds: Mapping[str, str], stopped: str, *, otherwise: str | None = None, boot_id: str, user: bool
) -> tuple[Culprit | None, bool]:
    """Find the unit whose end had another one stopped, by a bond of the two.

    The manager stops the bond first (``StopWhenUnneeded=``, systemd.unit(5)), and passes that on to the other unit, so
    that the job of the bond has the lower number. Where the other unit is stopped by somebody else, or goes by itself,
    it is the other way round, or there is no such job.

    Args:
        bonds: the units that may be it, by the names of their bonds.
        stopped: the other one.
        otherwise: the unit to blame where no bond had the other one stopped.
        boot_id: of this boot, 32 hexadecimal digits.
        user: they are units of a user's manager.

    Returns:
        That unit, if any is found, and whether that is all there will be. A bond is stopped in any case when the other
        unit is, and may be after that, whichever job came first: as long as nothing is told of it, it may be the one.

    Raises:
        OSError: the journal cannot be read.
    """
    from systemd import journal

    about = "USER_UNIT" if user else "UNIT"
    units = (*bonds, *bonds.values(), stopped)
    with journal.Reader() as reader:
        for match in (*_by_manager(user=user), *(f"{about}={unit}" for unit in units)):
            reader.add_match(match)
        reader.seek_tail()
        return _culprit(_entries(reader, boot_id), about, bonds, stopped, otherwise)


def _entries(reader: Any, boot_id: str) -> Iterator[Mapping[str, Any]]:
    for _ in range(ENTRIES_MAX):
        entry = reader.get_previous()
        if not entry or not _is_since(entry, 0, boot_id):
            break
        yield entry


def _culprit(
    entries: Iterable[Mapping[str, Any]],
    about: str,
    bonds: Mapping[str, str],
    stopped: str,
    otherwise: str | None,
) -> tuple[Culprit | None, bool]:
    """Go backwards from the end of the unit that was stopped to the beginning of the one that is to blame."""
    found: Culprit | None = None
    job = 0  # the first one that was to stop the unit
    blamed = otherwise  # or the one whose bond was stopped by an earlier job
    settled = set[str]()  # those of which the last job of the bond was seen
    bound = set[str]()  # those of which that was no stop: one is about to come
    late: dict[int, str] = {}  # those of which it was one that is told after the unit's, by its number
    ends: dict[str, Culprit] = {}  # the last ones
    begun = set[str]()  # units of which the beginning of the last run was seen
    stops: dict[str, int] = {}  # the first jobs that were to stop those that may be it
    silent = about == "USER_UNIT"  # of ends with success
    for entry in entries:
        unit, kind = entry.get(about, ""), _kind(entry)
        if unit == stopped:
            if entry.get("JOB_TYPE") == "stop":
                job = _job(entry)
                if 0 < (first := min(late, default=0)) < job:
                    blamed, job = late[first], first
            elif kind == _UNIT_STARTED and blamed is None:
                break
        elif unit in bonds and "JOB_TYPE" in entry:
            if bonds[unit] in settled:
                pass
            elif entry["JOB_TYPE"] != "stop":
                bound.add(bonds[unit])
            elif job == 0:
                late[_job(entry)] = bonds[unit]
            elif 0 < _job(entry) < job:
                # Where others have ended as well: this is the first of them.
                blamed, job = bonds[unit], _job(entry)
            settled.add(bonds[unit])
        elif entry.get("JOB_TYPE") == "stop" and unit not in begun:
            stops[unit] = _job(entry)
        elif kind in _ENDS and unit not in ends:
            ends[unit] = Culprit(unit, str(entry.get("UNIT_RESULT", "success")), _moment(entry)[1])
        elif silent and kind == _UNIT_STARTED and unit not in ends:
            ends[unit] = Culprit(unit, "success", _moment(entry)[1])
        elif found is not None and unit == found.unit:
            # A start that is refused (StartLimitBurst=) ends what did not begin: the last run is what ended before.
            if unit in begun and (kind in _ENDS or (silent and kind != _UNIT_STARTING)):
                break
            found.began_usec = _moment(entry)[1]
        if kind in {_UNIT_STARTED, _UNIT_STARTING}:
            begun.add(unit)
        found = found if found is not None and found.unit == blamed else ends.get(blamed or "")
    if found is not None:
        found.stopped = 0 < stops.get(found.unit, 0) < job
    return found, not bound


def _job(entry: Mapping[str, Any]) -> int:
    text = str(entry.get("JOB_ID", ""))
    return int(text) if text.isdecimal() else 0


def _kind(entry: Mapping[str, Any]) -> str:
    return str(entry.get("MESSAGE_ID", "")).replace("-", "")


def _by_manager(*, user: bool) -> tuple[str, ...]:
    """Return what only entries of the manager have; fields with an underscore are journald's own word."""
    return ("_COMM=systemd", f"_UID={os.geteuid()}") if user else ("_PID=1",)


def _is_by_manager(entry: Mapping[str, Any], *, user: bool) -> bool:
    """Whether an entry is the manager's, as :func:`_by_manager` has it for a query."""
    if user:
        return bool(entry.get("_COMM") == "systemd" and entry.get("_UID") == os.geteuid())
    return bool(entry.get("_PID") == 1)


def _moment(entry: Mapping[str, Any]) -> tuple[int, int]:
    stamp = entry["__MONOTONIC_TIMESTAMP"].timestamp
    return round(entry["__REALTIME_TIMESTAMP"].timestamp() * 1e6), round(stamp.total_seconds() * 1e6)


def _is_since(entry: Mapping[str, Any], since_usec: int, boot_id: str) -> bool:
    stamp = entry["__MONOTONIC_TIMESTAMP"]
    return bool(stamp.bootid.hex == boot_id and stamp.timestamp.total_seconds() * 1e6 >= since_usec)


def _counters(entry: Mapping[str, Any]) -> dict[str, int]:
    # What the reader does not know by name it gives as text.
    return {
        name: int(value)
        for name, value in entry.items()
        if name.endswith(("_NSEC", "_PEAK", "_BYTES", "_OPERATIONS")) and str(value).isdecimal()
    }


def read(
    units: Sequence[str], *, since_usec: int, boot_id: str, user: bool, wait: float
) -> dict[str, UnitLog]:
    """Read the last lines of units, waiting a while for the manager's word that one of them failed.

    What a service writes and what the manager says of it go different ways into the journal: by the time of the
    manager's word what was written before is there too.

    Args:
        units: their names.
        since_usec: nothing older, µs since boot.
        boot_id: of that boot, 32 hexadecimal digits.
        user: they are units of a user's manager.
        wait: s.

    Raises:
        OSError: the journal cannot be read.
    """
    # The import takes longer than the start of the rest of the daemon, and is for failures only.
    from systemd import journal

    end = time.monotonic() + wait
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


def _matches(unit: str, *, user: bool) -> tuple[tuple[str, ...], ...]:
    """Return what a unit wrote itself, and what its manager wrote about it."""
    if user:
        uid = os.geteuid()
        return (
            (f"_SYSTEMD_USER_UNIT={unit}", f"_SYSTEMD_OWNER_UID={uid}"),
            (f"SYSLOG_IDENTIFIER={unit}", "_TRANSPORT=stdout", f"_UID={uid}"),
            (f"USER_UNIT={unit}", *_by_manager(user=True)),
        )
    return (f"_SYSTEMD_UNIT={unit}",), (f"UNIT={unit}", *_by_manager(user=False))


def _writer(entry: Mapping[str, Any], *, user: bool) -> str:
    """Return the unit that wrote an entry that one of :func:`_matches` is met by."""
    if not user:
        return str(entry.get("_SYSTEMD_UNIT", ""))
    return str(entry.get("_SYSTEMD_USER_UNIT") or entry.get("SYSLOG_IDENTIFIER", ""))


def _collect(
    reader: Any, units: Sequence[str], since_usec: int, boot_id: str, *, user: bool
) -> dict[str, UnitLog]:
    found = {unit: UnitLog() for unit in units}
    told = "USER_UNIT" if user else "UNIT"
    for _ in range(ENTRIES_MAX):
        entry = reader.get_previous()
        if not entry:
            break
        if not _is_since(entry, since_usec, boot_id):
            break
        # A unit may write any field that has no underscore, also with the names of the manager's.
        managers = _is_by_manager(entry, user=user)
        if managers and (log := found.get(entry.get(told, ""))) is not None:
            if log.result is None and getattr(entry.get("MESSAGE_ID"), "hex", "") == _UNIT_SUCCESS:
                log.succeeded = True
            log.result = log.result or entry.get("UNIT_RESULT")
            # Of other errors, and of a job that failed because of them, the unit's own lines tell more.
            if entry.get("PRIORITY") == _ERR and "JOB_ID" not in entry and len(log.lines) < LINES_MAX:
                log.lines.append(_text(entry.get("MESSAGE", "")))
        elif (log := found.get(_writer(entry, user=user))) is not None and len(log.lines) < LINES_MAX:
            log.lines.append(_text(entry.get("MESSAGE", "")))
    for log in found.values():
        log.lines.reverse()
    return found


def _text(message: str | bytes) -> str:
    text = message.decode(errors="replace") if isinstance(message, bytes) else message
    return text[:LINE_MAX]
