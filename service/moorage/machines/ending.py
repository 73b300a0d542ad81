"""What became of a machine: facts in, one judgement out. Nothing is read, written or awaited here.

Two witnesses are heard. The kernel says whether the machine has processes; it is asked first, since that costs
nothing. The service manager says what its unit is; it is asked only where the kernel's word is not enough. Why a
machine ended is another question, for :mod:`moorage.machines.verdicts`.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from moorage.machines.verdicts import FORGOTTEN


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a machine that are known without the service manager.

    Attributes:
        populated: it has processes; where others live in its control group, its leader lives.
        renewed: another control group has its path by now.
        whole: it is the whole of its unit.
        allocated: this service made its unit.
        invocation_id: of its unit.
        sure: the kernel's word is not enough: its group has been empty for a while, or something may have been missed.
        result: of its unit, if that was seen to end before.
        without: a helper has ended that it does not run without.
    """

    populated: bool
    renewed: bool = False
    whole: bool = True
    allocated: bool = True
    invocation_id: str = ""
    sure: bool = False
    result: str | None = None
    without: bool = False


class NotAsked(msgspec.Struct, frozen=True):
    """The service manager has not been asked."""


class Removed(msgspec.Struct, frozen=True):
    """The service manager has reported that it has forgotten the unit."""


class Absent(msgspec.Struct, frozen=True):
    """The service manager does not know the unit."""


class Known(msgspec.Struct, frozen=True):
    """The state of the unit as the service manager reports it.

    Attributes:
        invocation_id: of it.
        active_state: of it.
        result: of it, if it has ended.
        by_itself: it has ended, and was active until then; None where that was not told.
    """

    invocation_id: str
    active_state: str
    result: str = "success"
    by_itself: bool | None = None


Unit: TypeAlias = NotAsked | Removed | Absent | Known


class Populated(msgspec.Struct, frozen=True):
    """It has processes, and there is no reason to ask for more."""


class Query(msgspec.Struct, frozen=True):
    """The service manager is to be asked about its unit."""


class LookAgain(msgspec.Struct, frozen=True):
    """It has no process, and the service manager is about to notice."""


class Running(msgspec.Struct, frozen=True):
    """Its unit is active, with processes."""


class Stopping(msgspec.Struct, frozen=True):
    """Its unit is being stopped."""


class StopWithout(msgspec.Struct, frozen=True):
    """It runs on without a helper that it does not run without."""


class StopEmpty(msgspec.Struct, frozen=True):
    """Its unit is active without a process, and is to be stopped: the manager lost that event (its own race)."""


class Lingering(msgspec.Struct, frozen=True):
    """Its unit has ended, but not all its processes: they outlived SIGKILL, or were spared it.

    Attributes:
        result: of the unit.
    """

    result: str


class Ended(msgspec.Struct, frozen=True):
    """It has ended.

    Attributes:
        result: of its unit; None where the manager has forgotten it.
        kept: the manager keeps the unit, and what it has last read of its counters.
        reset: the unit has failed, and holds its name until that is reset.
        stays: the unit goes on without it, and so would what is bound to the unit.
        by_itself: the unit was active until it had ended; None where the manager has not told.
    """

    result: str | None
    kept: bool = False
    reset: bool = False
    stays: bool = False
    by_itself: bool | None = None


Judgement: TypeAlias = (
    Populated | Query | LookAgain | Running | Stopping | StopWithout | StopEmpty | Lingering | Ended
)


def judge(seen: Seen, unit: Unit) -> Judgement:
    """Return what became of a machine, by what is known of it and what the service manager says of its unit."""
    match seen, unit:
        case Seen(renewed=True), NotAsked() | Removed():
            return Ended(FORGOTTEN)  # the unit has been started anew
        case Seen(populated=True, sure=False), NotAsked() | Removed():
            return Populated()
        case Seen(populated=False, whole=False), NotAsked() | Removed():
            return Ended("success")  # of a part of somebody else's unit the manager knows nothing
        case Seen(populated=False), Removed():
            return Ended(seen.result)  # a unit that failed would have been kept
        case Seen(sure=False), NotAsked():
            return LookAgain()
        case _, NotAsked() | Removed():
            return Query()
        case _, Absent():
            return Ended(seen.result)
        case _, Known(invocation_id=other) if other != seen.invocation_id:
            return Ended(FORGOTTEN)
        case Seen(populated=True), Known(active_state="inactive" | "failed"):
            return Lingering(unit.result)
        case Seen(populated=False), Known(active_state="inactive" | "failed" as state):
            return Ended(
                seen.result or unit.result,
                kept=True,
                by_itself=unit.by_itself,
                reset=state == "failed" and seen.allocated,
            )
        case Seen(populated=False, allocated=False), Known():
            return Ended(
                "success", stays=unit.active_state != "deactivating"
            )  # with RemainAfterExit=, for one
        case _, Known(active_state="deactivating"):
            return Stopping()
        case Seen(populated=False), Known():
            return StopEmpty()
        case Seen(without=True), Known():
            return StopWithout()
        case _, Known():
            return Running()
