"""Events of machines in the journal: ``journalctl MACHINE=web`` shows the whole story of one.

Starts and ends have the message IDs and fields of systemd-machined (sd-messages.h), which catalogs and log shippers
know; what was consumed has the names that the service manager gives it. What an ordinary user or a guest can make
happen without end is left to the events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from moorage.machines.accounting import JOURNAL_NAMES, Accounting
from moorage.machines.chronicle import Happened
from moorage.machines.events import Kind
from moorage.machines.model import Record, Verdict
from moorage.machines.verdicts import described

MACHINE_START: Final = "24d8d4452573402496068381a6312df2"
MACHINE_STOP: Final = "58432bd3bace477cb514b56381b8a758"
"""SD_MESSAGE_MACHINE_START and SD_MESSAGE_MACHINE_STOP."""

_MESSAGE_IDS: Final = {
    Kind.machine_new: MACHINE_START,
    Kind.exited: MACHINE_STOP,
    Kind.forgotten: MACHINE_STOP,
}
_WARNINGS: Final = {Kind.oom_kill, Kind.helper_failed, Kind.lingering}

Fields = dict[str, str | Sequence[str]]


class Entries(Protocol):
    """A writer of entries, see :class:`moorage.pid1.journal_writer.JournalWriter`."""

    def write(self, fields: Mapping[str, str | Sequence[str]]) -> None:
        """Write an entry; neither waits nor raises."""
        ...


class Diary:
    """Writes down what happens to machines.

    Args:
        entries: writes entries.
        user: the machines are those of a user's manager.
    """

    def __init__(self, entries: Entries, *, user: bool) -> None:
        self._entries = entries
        self._prefix = "USER_" if user else ""

    def record(self, happened: Happened) -> None:
        """Write down something that has happened, if it belongs there."""
        words = _words(happened)
        if words is None:
            return
        kind, prefix = happened.kind, self._prefix
        fields: Fields = {
            "MESSAGE": words,
            "PRIORITY": "4" if kind in _WARNINGS else "6",
            "SYSLOG_IDENTIFIER": "moored",
            "MACHINE": happened.name,
            "MOORAGE_EVENT": kind,
        }
        if happened.invocation_id:
            fields[f"{prefix}INVOCATION_ID"] = happened.invocation_id
        if kind in _MESSAGE_IDS:
            fields |= {"MESSAGE_ID": _MESSAGE_IDS[kind], "NAME": happened.name}
        if happened.machine is not None:
            fields[f"{prefix}UNIT"] = happened.machine.unit
            fields |= _about(happened.machine.record)
        fields |= {
            f"MOORAGE_{name.upper()}": str(value)
            for name, value in happened.data.items()
            if isinstance(value, str | int)
        }
        self._entries.write(fields)


def _words(happened: Happened) -> str | None:
    """Describe an event; None if it does not belong in the journal."""
    name, data, machine = happened.name, happened.data, happened.machine
    match happened.kind:
        case Kind.machine_new if machine is not None:
            return f"New machine {name} in {machine.unit}."
        case Kind.exited if machine is not None and machine.record.verdict is not None:
            return f"Machine {name} exited: {described(machine.record.verdict)}."
        case Kind.forgotten:
            return f"Machine {name} forgotten."
        case Kind.stopping:
            return f"Machine {name} is being stopped (by: {data.get('by', 'unknown')})."
        case Kind.lingering:
            return f"Machine {name} was stopped, and has processes left."
        case Kind.oom_kill:
            count, group = data.get("count"), data.get("controlGroup")
            who = "systemd-oomd" if data.get("by") == "oomd" else "the kernel"
            limit = f", for the limit of {group}" if group else ""
            number = "processes" if count is None else f"{count} process{'' if count == 1 else 'es'}"
            return f"{number.capitalize()} of machine {name} killed by {who} for lack of memory{limit}."
        case Kind.helper_started:
            return f"Helper {data.get('helper')} of machine {name} started."
        case Kind.helper_failed:
            return f"Helper {data.get('helper')} of machine {name} failed: {data.get('result')}."
        case Kind.lease_lost:
            return f"Lease of machine {name} lost."
        case _:
            return None


def _about(record: Record) -> Fields:
    fields: Fields = {"CLASS": record.class_, "REGISTRANT_UID": str(record.registrant)}
    if record.leader is not None:
        fields["LEADER"] = str(record.leader.pid)
    if record.helpers:
        fields["HELPER"] = [helper.name for helper in record.helpers]
    return fields | ({} if record.verdict is None else _end(record.verdict))


def _end(verdict: Verdict) -> Fields:
    facts: dict[str, object] = {
        "RESULT": verdict.result,
        "CAUSE": verdict.cause,
        "OOM_KILLED": verdict.oom_killed,
        "OOM_CONTROL_GROUP": verdict.oom_group,
        "LEADER_STATUS": verdict.leader_status,
        "LEADER_SIGNAL": verdict.leader_signal,
        "FAILED_HELPER": verdict.helper,
        **_account(verdict.accounting),
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def _account(accounting: Accounting) -> dict[str, object]:
    return {theirs: getattr(accounting, ours) for theirs, ours in JOURNAL_NAMES.items()}
