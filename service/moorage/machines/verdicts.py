"""Why a machine ended: facts in, verdict out. Nothing is read, written or awaited here.

The rule of all of it: what is not known is left out. A fact that nobody could look at is None, not "no".
"""

from __future__ import annotations

import signal

import msgspec

from moorage.kernel.process import Exit
from moorage.machines.accounting import Accounting
from moorage.machines.model import Cause, HelperEnd, Timestamp, Verdict

FORGOTTEN = "forgotten"
"""Result of a unit of which the manager knows no more than that it failed, or that it is another one by now."""


class Told(msgspec.Struct, frozen=True):
    """The end of a unit as the service manager reported it, in the journal or otherwise.

    Attributes:
        result: of the unit.
        ended_at: when it was there no more; None where nothing is told.
        stopped: a job had stopped it.
        oom: the kernel killed processes of it for lack of memory.
        oomd: systemd-oomd did.
        accounting: its counters, as far as they are told.
    """

    result: str | None = None
    ended_at: Timestamp | None = None
    stopped: bool = False
    oom: bool = False
    oomd: bool = False
    accounting: Accounting = Accounting()


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about the end of a machine.

    Attributes:
        result: of its unit, by the word of the service manager; None where that has forgotten it.
        found_at: when its last process was seen to be gone.
        watched: this service saw all of the end, and the signals of the service manager that came with it.
        attested: nobody watched, but the service manager has kept the unit, and with it when and how that ended.
        whole: it was the whole of its unit.
        asked: why this service was asked to stop it, if it was.
        deactivating: its unit was seen to be stopped before this service was asked to.
        late: this service had its unit stopped when it was ending already, so that what the service manager tells of
            a stop is no reason.
        by_itself: nobody had its unit stopped: by the word of the service manager it was active until it had ended.
        bonded: it has helpers whose end has it stopped.
        accounted: the service manager has nothing to add to its counters, nor to who was killed.
        accounting: the last counters of its control group.
        final: they were read when the last process had gone.
        leader_ended: None where that is not known.
        leader_exit: how.
        leader_group: the other control group in which its leader lives.
        told: by the service manager.
        helper: whose end had it stopped.
        helper_stopped: a job had stopped that one; None where that is not known.
        oom_group: the control group for whose limit of memory processes of it were killed.
    """

    found_at: Timestamp
    result: str | None = None
    watched: bool = False
    attested: bool = False
    whole: bool = True
    asked: Cause | None = None
    deactivating: bool = False
    late: bool = False
    by_itself: bool = False
    bonded: bool = False
    accounted: bool = False
    accounting: Accounting = Accounting()
    final: bool = False
    leader_ended: bool | None = None
    leader_exit: Exit | None = None
    leader_group: str | None = None
    told: Told = Told()
    helper: HelperEnd | None = None
    helper_stopped: bool | None = None
    oom_group: str | None = None


def verdict_of(facts: Facts) -> Verdict:
    """Return the verdict that the facts allow."""
    counters = merged(_final(facts), facts.told.accounting)
    killed, managed = _lack_of_memory(facts, counters)
    # Where memory is counted, but not who was killed for it, the leader may have been.
    attested = facts.attested and not (killed is None and counters.memory_peak is not None)
    # After a reload the manager does not know it any more, and may say that nothing went wrong.
    result = facts.result if facts.result not in {None, "success", FORGOTTEN} else None
    result = result or facts.told.result or facts.result
    helper = facts.helper or HelperEnd("")
    leader = facts.leader_exit or Exit()
    # Of an end that nobody watched the service manager knows the moment better.
    ended_at = None if facts.watched or facts.attested else facts.told.ended_at
    return Verdict(
        result=result or "success",
        exited_at=ended_at or facts.found_at,
        oom_killed=None if killed is None and managed is None else bool(killed or managed),
        oom_group=facts.oom_group,
        accounting=counters,
        cause=_cause(facts, result, killed=bool(killed), managed=bool(managed), attested=attested),
        leader_status=leader.status,
        leader_signal=leader.signal,
        helper=helper.name or None,
        helper_result=helper.result,
        log=helper.log,
    )


def is_conclusive(facts: Facts) -> bool:
    """Whether the verdict can be given without the journal: what the service manager writes there is known already.

    That is the result, who was killed for lack of memory, the counters, and whether a job has stopped the unit, which
    matters where this service was not asked to, or where a helper may be the reason.
    """
    if not (facts.whole and facts.watched and facts.final and facts.accounted):
        return False
    if facts.result in {None, FORGOTTEN}:
        return False
    return facts.by_itself if facts.asked is None else not facts.bonded


def killers(facts: Facts) -> tuple[bool | None, bool | None]:
    """Whether the kernel, and whether systemd-oomd, killed processes of the machine; None where nobody can know."""
    return _lack_of_memory(facts, merged(_final(facts), facts.told.accounting))


def needs_the_helper(facts: Facts) -> bool:
    """Whether a helper may have had the machine stopped."""
    if facts.asked is Cause.helper_ended:
        return True
    return facts.deactivating or _stopped(facts) or (facts.asked is None and not facts.watched)


def merged(one: Accounting, other: Accounting) -> Accounting:
    """Return of each counter the higher one: none of them counts down, and a gauge has only one source."""
    pairs = {
        name: [value for value in (getattr(one, name), getattr(other, name)) if value is not None]
        for name in Accounting.__struct_fields__
    }
    return Accounting(**{name: max(values) for name, values in pairs.items() if values})


def _final(facts: Facts) -> Accounting:
    """What is true of counters: those that were read while it lived are too low, but who was killed stays killed."""
    if facts.final:
        return facts.accounting
    return Accounting(
        oom_kills=facts.accounting.oom_kills or None,
        managed_oom_kills=facts.accounting.managed_oom_kills or None,
    )


def _lack_of_memory(facts: Facts, counters: Accounting) -> tuple[bool | None, bool | None]:
    # A kernel without the memory controller in this group counts nothing, and the manager then has nothing to tell.
    counted = facts.accounting.oom_kills is not None or counters.memory_peak is not None
    # What nobody has watched was killed without a trace, where the manager does not count that.
    seen = facts.final and (facts.watched or counters.oom_kills is not None)
    sure = seen or (facts.told.ended_at is not None and counted)
    oom_kill = facts.result == "oom-kill" or facts.told.result == "oom-kill"
    managed = bool(counters.managed_oom_kills) or facts.told.oomd
    killed = bool(counters.oom_kills) or facts.told.oom or (oom_kill and not managed)
    no = False if sure and counted else None
    return killed or no, managed or no


def _cause(facts: Facts, result: str | None, *, killed: bool, managed: bool, attested: bool) -> Cause | None:
    """The first that applies: what sets off the end of a unit comes before what it leads to."""
    by_kill = facts.leader_exit == Exit(signal=signal.SIGKILL) and facts.asked is None
    if result == "oom-kill" or ((killed or managed) and by_kill):
        return Cause.oomd_killed if managed else Cause.oom_killed
    if facts.helper is not None:
        return None if _ended_together(facts, facts.helper.result) else Cause.helper_ended
    if facts.asked is not None:
        return facts.asked
    if facts.leader_group is not None:
        return Cause.leader_left
    if _stopped(facts) or (facts.deactivating and result == "success"):
        return Cause.unit_stopped
    if facts.deactivating or result not in {None, "success"}:
        return None  # by the manager itself: RuntimeMaxSec=, or what its result says
    if (killed or managed) and facts.leader_exit is None:
        return None  # it may have been the leader
    sure = facts.watched or attested or not facts.whole or facts.told.ended_at is not None
    return Cause.leader_ended if facts.leader_ended and sure else None


def _ended_together(facts: Facts, result: str | None) -> bool:
    """Whether a machine may have been about to end when its helper did, and nobody can know it.

    A VMM that ends hangs up on its helpers first. They end well then, and have it stopped if they are quicker than its
    own end, of which the signal makes no difference to its status.
    """
    by_itself = facts.leader_exit is not None and facts.leader_exit.status is not None
    return result == "success" and facts.helper_stopped is False and facts.asked is None and by_itself


def _stopped(facts: Facts) -> bool:
    """Whether somebody else had the unit stopped: what had ended by then was stopped by no job that came too late."""
    return facts.told.stopped and not facts.late and not facts.by_itself


def described(verdict: Verdict) -> str:
    """Describe the end of a machine in a few words, for the log."""
    words = [verdict.result]
    if verdict.cause is not None:
        words.append(f"cause {verdict.cause}")
    if verdict.helper is not None:
        words.append(f"helper {verdict.helper} ({verdict.helper_result})")
    if verdict.leader_status is not None:
        words.append(f"leader's status {verdict.leader_status}")
    if verdict.leader_signal is not None:
        words.append(f"leader's signal {verdict.leader_signal}")
    return ", ".join(words)
