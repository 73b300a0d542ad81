"""What the manager says over D-Bus, in the words of `moorage.pid1.manager`: names, paths, signals, states, errors.

Interfaces: org.freedesktop.systemd1(5).
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from moorage.dbus.bus import BadReply, CallFailed
from moorage.dbus.message import BusSignal
from moorage.pid1.blame import Sent, all_chosen, blamed
from moorage.pid1.errors import (
    AccessDenied,
    FreezerCancelled,
    InvalidProperty,
    ManagerError,
    ManagerRefused,
    ManagerUnavailable,
    NoSuchProperty,
    NoSuchUnit,
    UnitBusy,
    UnitExists,
)
from moorage.pid1.manager import UnitHint, UnitStatus

NAME: Final = "org.freedesktop.systemd1"
ROOT: Final = "/org/freedesktop/systemd1"
UNITS: Final = f"{ROOT}/unit/"
_JOBS: Final = f"{ROOT}/job/"
MANAGER: Final = f"{NAME}.Manager"
UNIT: Final = f"{NAME}.Unit"
SERVICE: Final = f"{NAME}.Service"
SCOPE: Final = f"{NAME}.Scope"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"

_ESCAPED: Final = re.compile(rb"_([0-9a-f]{2})")

_GROUPED: Final = ("Slice", "ControlGroup")
STATUS: Final[Mapping[str, tuple[str, ...]]] = {
    "slice": _GROUPED,
    **dict.fromkeys(("scope", "socket", "mount", "swap"), (*_GROUPED, "Result")),
    "service": (*_GROUPED, "Result", "MainPID", "NRestarts"),
}
"""What belongs to the status of units of a type, beside what all units have."""

CHANGING: Final[Mapping[str, tuple[str, ...]]] = {"service": ("MainPID", "Result")}
"""What of that changes together with the state of a unit, which is read by another call."""

_DEPENDANTS: Final = ("RequiredBy", "RequisiteOf", "WantedBy", "BoundBy", "UpheldBy")

NO_SUCH_UNIT: Final = {
    f"{NAME}.NoSuchUnit",
    f"{NAME}.NoSuchProcess",
    f"{NAME}.NoUnitForPID",
    f"{NAME}.NoUnitForInvocationID",
    "org.freedesktop.DBus.Error.UnknownObject",
    "org.freedesktop.DBus.Error.UnixProcessIdUnknown",
    "System.Error.ESRCH",
}
_BUSY: Final = {
    f"{NAME}.UnitBusy",
    f"{NAME}.UnitInactive",
    f"{NAME}.TransactionIsDestructive",
    f"{NAME}.TransactionJobsConflicting",
    f"{NAME}.FrozenByParent",
    "System.Error.EDEADLK",
    "System.Error.EBUSY",
}
_DENIED: Final = {
    "org.freedesktop.DBus.Error.AccessDenied",
    "org.freedesktop.DBus.Error.AuthFailed",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
    "System.Error.EPERM",
    "System.Error.EACCES",
}
_GONE: Final = {
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.Disconnected",
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    f"{NAME}.ShuttingDown",
}
_ABOUT_PROPERTY: Final = {
    "org.freedesktop.DBus.Error.InvalidArgs",
    "org.freedesktop.DBus.Error.NotSupported",
    "org.freedesktop.DBus.Error.InvalidSignature",
    "org.freedesktop.DBus.Error.InconsistentMessage",
    "System.Error.EINVAL",
    "System.Error.ERANGE",
    "System.Error.ENXIO",
    "System.Error.EOPNOTSUPP",
    "org.freedesktop.DBus.Error.UnixProcessIdUnknown",
    "System.Error.ESRCH",
}


class Part(NamedTuple):
    """What a change says of a unit as one of its type, named as in a hint."""

    result: str = ""
    main_pid: int | None = None
    restarts: int = 0


def part(signal: BusSignal) -> Part | None:
    """Return what a signal says of a scope or a service as such; None if it is about anything else."""
    if signal.is_change_of(SCOPE):
        return Part(signal.changed_text("Result"))
    if signal.is_change_of(SERVICE):
        return Part(
            signal.changed_text("Result"),
            signal.changed_number("MainPID"),
            signal.changed_number("NRestarts") or 0,
        )
    return None


def hint(unit: str, signal: BusSignal, of_type: Part) -> UnitHint | None:
    """Return what a signal says of a unit; None if it is about nothing that matters here.

    Args:
        unit: its name.
        signal: about it.
        of_type: what the signal before it has said.
    """
    if not signal.is_change_of(UNIT):
        return None
    return UnitHint(
        "changed",
        unit,
        active_state=signal.changed_text("ActiveState"),
        sub_state=signal.changed_text("SubState"),
        invocation_id=(signal.changed("InvocationID", "ay") or b"").hex(),
        result=of_type.result,
        main_pid=of_type.main_pid,
        restarts=of_type.restarts,
        by_itself=_ended_by_itself(signal),
    )


def _ended_by_itself(signal: BusSignal) -> bool:
    """Whether a unit was active until it had ended: both times are those of one change (`unit_notify()`).

    One that is stopped is deactivating in between, also where no signal says so: many changes may come as one.
    """
    active, ended = (
        signal.changed_number(name, "t")
        for name in ("ActiveExitTimestampMonotonic", "InactiveEnterTimestampMonotonic")
    )
    return bool(active) and active == ended


def translated(error: CallFailed, unit: str, sent: Sequence[Sent] = ()) -> ManagerError:
    """Return what an error of the manager means.

    Args:
        error: as received.
        unit: that the call was about.
        sent: the properties that were sent with it; one that the error is about is named by its text only.
    """
    name, text = error.name, error.text
    if name == f"{NAME}.UnitExists":
        return UnitExists(unit)
    found = blamed(name, text, sent) if sent else None
    if sent and name == "org.freedesktop.DBus.Error.PropertyReadOnly":
        return NoSuchProperty(text) if found is None else NoSuchProperty(found.property, owner=found.owner)
    if found is not None and (name in _ABOUT_PROPERTY or text.startswith("Failed to set unit properties")):
        return InvalidProperty(found.property, text, found.owner)
    if name == "org.freedesktop.DBus.Error.UnknownProperty":
        return NoSuchProperty(text)
    if name == f"{NAME}.FreezeCancelled":
        return FreezerCancelled(unit, "it was thawed before it was frozen")
    if name in _BUSY:
        return UnitBusy(unit, text)
    if name in _DENIED:
        return AccessDenied(text)
    if name in _GONE:
        return ManagerUnavailable(text)
    missing = name in NO_SUCH_UNIT
    # The manager does not always say which property it is; what comes from us is not to blame.
    if (chosen := all_chosen(sent)) is not None:
        reason = "it names a unit that does not exist" if missing else text
        return InvalidProperty(chosen.property, reason, chosen.owner)
    return NoSuchUnit(unit) if missing else ManagerRefused(text, name)


def path_of(unit: str) -> str:
    """Return the object path of a unit: all but ASCII letters and digits as "_" and two hexadecimal digits.

    This is `unit_dbus_path()` of systemd.
    """
    first = re.sub(r"[^A-Za-z]", _escape, unit[:1])
    return f"{UNITS}{first}{re.sub(r'[^A-Za-z0-9]', _escape, unit[1:])}" if unit else f"{UNITS}_"


def _escape(match: re.Match[str]) -> str:
    return "".join(f"_{byte:02x}" for byte in match[0].encode())


@lru_cache(maxsize=4096)
def unit_of(path: str) -> str:
    """Return the unit of an object path. Cached: each start of a unit comes with eight signals from there."""
    name = _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), path[len(UNITS) :].encode())
    return name.decode(errors="replace")


def job_id(path: str) -> int:
    """Return the number of the job of an object path.

    Raises:
        BadReply: it is none.
    """
    number = path.removeprefix(_JOBS)
    if not number.isascii() or not number.isdecimal():
        raise BadReply(f"{path!r} is not the path of a job")
    return int(number)


def hexadecimal(value: bytes) -> str:
    """Format an ID of 128 bits; empty for the null ID, and for nothing."""
    return value.hex() if any(value) else ""


def status(unit: str, values: dict[str, Any]) -> UnitStatus | None:
    """Return the status of a unit by the values of its properties; None if nobody knows such a unit."""

    def text(name: str) -> str:
        value = values.get(name, "")
        return value if isinstance(value, str) else ""

    job, _ = values.get("Job", (0, ""))
    if text("LoadState") == "not-found" and text("ActiveState") == "inactive" and job == 0:
        return None
    dependants = [other for name in _DEPENDANTS for other in values.get(name, ())]
    return UnitStatus(
        unit=text("Id") or unit,
        description=text("Description"),
        load_state=text("LoadState"),
        active_state=text("ActiveState"),
        sub_state=text("SubState"),
        result=text("Result") or None,
        main_pid=values.get("MainPID", 0),
        restarts=values.get("NRestarts", 0),
        slice=text("Slice"),
        control_group=text("ControlGroup"),
        invocation_id=hexadecimal(values.get("InvocationID", b"")),
        fragment_path=text("FragmentPath"),
        transient=values.get("Transient") is True,
        job_id=job,
        dependants=tuple(dict.fromkeys(dependants)),
        documentation=tuple(values.get("Documentation", ())),
    )
