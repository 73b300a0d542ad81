"""Why a machine ended, from every combination of what may be known of it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.kernel.process import Exit
from moorage.machines.accounting import Accounting
from moorage.machines.model import Cause, HelperEnd, Timestamp
from moorage.machines.verdicts import (
    Facts,
    Told,
    described,
    is_conclusive,
    merged,
    needs_the_helper,
    verdict_of,
)

AT = Timestamp(1000, 100)
LATER = Timestamp(2000, 200)
COUNTED = Accounting(cpu_usage_nsec=1, memory_peak=2, oom_kills=0, managed_oom_kills=0)
KILLED = msgspec.structs.replace(COUNTED, oom_kills=1)
UNCOUNTED = Accounting(cpu_usage_nsec=1, memory_peak=2)
TOLD = Told(result="success", ended_at=LATER)
KILL, SEGV = Exit(signal=9), Exit(signal=11)
TOGETHER = Facts(found_at=AT, leader_exit=Exit(0), helper=HelperEnd("fs", "success"), helper_stopped=False)
"""A helper was quicker than the rest of its machine's end, or the reason for it."""


@pytest.mark.parametrize(
    ("facts", "cause"),
    [
        (Facts(found_at=AT), None),
        (Facts(found_at=AT, watched=True), None),
        (Facts(found_at=AT, watched=True, leader_ended=True), Cause.leader_ended),
        (Facts(found_at=AT, watched=True, leader_ended=True, leader_exit=SEGV), Cause.leader_ended),
        # Nobody saw it, and nobody told: the leader may have been stopped with the unit.
        (Facts(found_at=AT, leader_ended=True), None),
        (Facts(found_at=AT, leader_ended=True, told=TOLD), Cause.leader_ended),
        (Facts(found_at=AT, leader_ended=True, attested=True), Cause.leader_ended),
        (
            Facts(found_at=AT, leader_ended=True, attested=True, deactivating=True, result="success"),
            Cause.unit_stopped,
        ),
        (Facts(found_at=AT, leader_ended=True, attested=True, deactivating=True, result="timeout"), None),
        (
            Facts(found_at=AT, leader_ended=True, attested=True, final=True, accounting=COUNTED),
            Cause.leader_ended,
        ),
        (Facts(found_at=AT, leader_ended=True, attested=True, final=True, accounting=KILLED), None),
        # Who was killed for lack of memory, nobody counts: it may have been the leader.
        (Facts(found_at=AT, leader_ended=True, attested=True, final=True, accounting=UNCOUNTED), None),
        (
            Facts(found_at=AT, leader_ended=True, attested=True, final=True, accounting=UNCOUNTED, told=TOLD),
            Cause.leader_ended,
        ),
        (Facts(found_at=AT, leader_ended=True, whole=False), Cause.leader_ended),
        (Facts(found_at=AT, leader_ended=True, asked=Cause.stopped), Cause.stopped),
        (Facts(found_at=AT, leader_ended=True, asked=Cause.lease_ended), Cause.lease_ended),
        (Facts(found_at=AT, watched=True, leader_ended=True, deactivating=True), None),
        (
            Facts(found_at=AT, watched=True, leader_ended=True, deactivating=True, result="success"),
            Cause.unit_stopped,
        ),
        (
            Facts(found_at=AT, leader_ended=True, told=Told("success", LATER, stopped=True)),
            Cause.unit_stopped,
        ),
        (Facts(found_at=AT, leader_ended=True, told=Told("timeout", LATER, stopped=True)), Cause.unit_stopped),
        # This service had it stopped when its last process had gone.
        (
            Facts(found_at=AT, leader_ended=True, late=True, told=Told("success", LATER, stopped=True)),
            Cause.leader_ended,
        ),
        # RuntimeMaxSec=: nobody asked for a stop.
        (Facts(found_at=AT, leader_ended=True, deactivating=True, told=Told("timeout", LATER)), None),
        (Facts(found_at=AT, deactivating=True, helper=HelperEnd("fs")), Cause.helper_ended),
        (Facts(found_at=AT, asked=Cause.stopped, deactivating=True, helper=HelperEnd("fs")), Cause.helper_ended),
        # It may have hung up on its helper, which then ended: nobody can know.
        (TOGETHER, None),
        (msgspec.structs.replace(TOGETHER, helper=HelperEnd("fs", "exit-code")), Cause.helper_ended),
        (msgspec.structs.replace(TOGETHER, helper_stopped=True), Cause.helper_ended),
        (msgspec.structs.replace(TOGETHER, helper_stopped=None), Cause.helper_ended),
        (msgspec.structs.replace(TOGETHER, leader_exit=KILL), Cause.helper_ended),
        (msgspec.structs.replace(TOGETHER, leader_exit=None), Cause.helper_ended),
        (msgspec.structs.replace(TOGETHER, asked=Cause.helper_ended), Cause.helper_ended),
        # A job that was to stop it came when it had ended.
        (
            Facts(
                found_at=AT, watched=True, leader_ended=True, by_itself=True, told=Told("success", LATER, stopped=True)
            ),
            Cause.leader_ended,
        ),
        (Facts(found_at=AT, leader_group="/a"), Cause.leader_left),
        (Facts(found_at=AT, leader_group="/a", asked=Cause.stopped), Cause.stopped),
        (Facts(found_at=AT, result="oom-kill"), Cause.oom_killed),
        (Facts(found_at=AT, told=Told("oom-kill", LATER, oom=True)), Cause.oom_killed),
        (Facts(found_at=AT, told=Told("oom-kill", LATER, oomd=True)), Cause.oomd_killed),
        # Delegated: the unit's result knows nothing of it.
        (Facts(found_at=AT, watched=True, leader_exit=KILL, leader_ended=True, accounting=KILLED), Cause.oom_killed),
        (Facts(found_at=AT, leader_exit=KILL, told=Told("success", LATER, oom=True)), Cause.oom_killed),
        # Which of its processes, nobody knows.
        (Facts(found_at=AT, leader_ended=True, told=Told("success", LATER, oom=True)), None),
        # Another process of it was killed; the leader had its own reason.
        (
            Facts(found_at=AT, watched=True, leader_exit=Exit(0), leader_ended=True, accounting=KILLED),
            Cause.leader_ended,
        ),
        (
            Facts(found_at=AT, leader_exit=KILL, leader_ended=True, accounting=KILLED, asked=Cause.stopped),
            Cause.stopped,
        ),
    ],
)  # fmt: skip
def test_the_cause(facts: Facts, cause: Cause | None) -> None:
    assert verdict_of(facts).cause == cause


@pytest.mark.parametrize(
    ("facts", "killed"),
    [
        (Facts(found_at=AT), None),
        # Without the controller nobody counts.
        (Facts(found_at=AT, final=True), None),
        (Facts(found_at=AT, told=TOLD), None),
        (Facts(found_at=AT, final=True, accounting=COUNTED), False),
        # An end that nobody has watched, and kills that nobody counts.
        (Facts(found_at=AT, final=True, accounting=UNCOUNTED), None),
        (Facts(found_at=AT, final=True, accounting=UNCOUNTED, told=TOLD), False),
        (Facts(found_at=AT, final=True, accounting=UNCOUNTED, watched=True), False),
        # Read while it lived: what came then is not in it, unless the manager would have told.
        (Facts(found_at=AT, accounting=COUNTED), None),
        (Facts(found_at=AT, accounting=COUNTED, told=TOLD), False),
        (Facts(found_at=AT, accounting=KILLED), True),
        (Facts(found_at=AT, result="oom-kill"), True),
        (Facts(found_at=AT, told=Told("success", LATER, oom=True)), True),
        (Facts(found_at=AT, told=Told("success", LATER, oomd=True)), True),
        (Facts(found_at=AT, final=True, accounting=msgspec.structs.replace(COUNTED, managed_oom_kills=1)), True),
    ],
)  # fmt: skip
def test_lack_of_memory(facts: Facts, killed: bool | None) -> None:
    assert verdict_of(facts).oom_killed is killed


def test_the_moment_is_the_managers_where_nobody_watched() -> None:
    assert verdict_of(Facts(found_at=AT, told=TOLD)).exited_at == LATER
    assert verdict_of(Facts(found_at=AT, watched=True, told=TOLD)).exited_at == AT
    assert verdict_of(Facts(found_at=AT, attested=True, told=TOLD)).exited_at == AT


def test_the_result_is_what_somebody_says_of_it() -> None:
    assert verdict_of(Facts(found_at=AT)).result == "success"
    assert verdict_of(Facts(found_at=AT, told=Told("timeout", LATER))).result == "timeout"
    assert verdict_of(Facts(found_at=AT, result="timeout", told=TOLD)).result == "timeout"
    assert verdict_of(Facts(found_at=AT, result="forgotten")).result == "forgotten"
    assert (
        verdict_of(Facts(found_at=AT, result="forgotten", told=Told("timeout", LATER))).result == "timeout"
    )


def test_a_helper_is_told_with_its_last_words() -> None:
    helper = HelperEnd("fs", "exit-code", ("one", "two"))
    found = verdict_of(Facts(found_at=AT, helper=helper, leader_exit=Exit(signal=15)))
    assert (found.helper, found.helper_result, found.log) == ("fs", "exit-code", ("one", "two"))
    assert (found.leader_status, found.leader_signal) == (None, 15)
    assert described(found) == "success, cause helperEnded, helper fs (exit-code), leader's signal 15"


def test_the_higher_counter_is_the_later_one() -> None:
    one = Accounting(cpu_usage_nsec=5, memory_peak=7)
    other = Accounting(cpu_usage_nsec=6, io_read_bytes=0)
    assert merged(one, other) == Accounting(cpu_usage_nsec=6, memory_peak=7, io_read_bytes=0)


TOLDS = st.builds(
    Told, st.sampled_from(["success", "timeout", "oom-kill", "resources"]), st.just(LATER), st.booleans(),
    st.booleans(), st.booleans(), st.sampled_from([Accounting(), COUNTED]),
)  # fmt: skip
ALL = st.builds(
    Facts, found_at=st.just(AT), result=st.none() | st.sampled_from(["success", "timeout", "oom-kill", "forgotten"]),
    watched=st.booleans(), attested=st.booleans(), whole=st.booleans(),
    asked=st.none() | st.sampled_from([Cause.stopped, Cause.lease_ended]),
    deactivating=st.booleans(), accounting=st.sampled_from([Accounting(), COUNTED, KILLED]), final=st.booleans(),
    leader_ended=st.none() | st.booleans(), leader_exit=st.none() | st.sampled_from([Exit(0), KILL, SEGV]),
    leader_group=st.none() | st.just("/a"), told=st.just(Told()) | TOLDS,
    helper=st.none() | st.just(HelperEnd("fs", "signal")),
)  # fmt: skip

CONCLUSIVE = Facts(
    found_at=AT, result="success", watched=True, final=True, accounted=True, by_itself=True,
    accounting=COUNTED, leader_ended=True, leader_exit=KILL,
)  # fmt: skip


@pytest.mark.parametrize(
    "doubt",
    [
        {"result": None},
        {"result": "forgotten"},
        {"watched": False},
        {"whole": False},
        {"final": False},
        {"accounted": False},
        {"by_itself": False},
        {"asked": Cause.stopped, "bonded": True},
    ],
)
@pytest.mark.parametrize("asked", [None, Cause.stopped])
def test_the_journal_is_needed_where_there_is_a_doubt(doubt: dict[str, object], asked: Cause | None) -> None:
    facts = msgspec.structs.replace(CONCLUSIVE, asked=asked)
    assert is_conclusive(facts)
    doubtful = is_conclusive(msgspec.structs.replace(facts, **doubt))
    assert doubtful is (doubt == {"by_itself": False} and asked is not None)


@given(
    st.sampled_from([Accounting(), COUNTED, KILLED]),
    st.sampled_from(["success", "timeout", "oom-kill"]),
    st.none() | st.sampled_from([Exit(0), KILL, SEGV]),
    st.none() | st.just("/a"),
    st.none() | st.sampled_from([Cause.stopped, Cause.lease_ended]),
)
def test_a_conclusive_verdict_is_the_one_with_the_journal(
    accounting: Accounting, result: str, leader: Exit | None, group: str | None, asked: Cause | None
) -> None:
    facts = msgspec.structs.replace(
        CONCLUSIVE, accounting=accounting, result=result, leader_exit=leader, leader_group=group, asked=asked
    )
    assert is_conclusive(facts)
    oom = bool(accounting.oom_kills)
    told = Told(result, LATER, stopped=asked is not None, oom=oom, accounting=accounting)
    assert verdict_of(msgspec.structs.replace(facts, told=told)) == verdict_of(facts)


@given(ALL)
def test_nothing_is_said_that_no_fact_bears_out(facts: Facts) -> None:
    found = verdict_of(facts)
    if found.oom_killed is False:
        assert not facts.told.oom
        assert not facts.told.oomd
        assert not facts.accounting.oom_kills
        assert "oom-kill" not in {facts.result, facts.told.result}
        assert facts.final or facts.told.ended_at is not None
    if found.cause is Cause.leader_ended:
        assert facts.leader_ended
        assert not facts.told.stopped
        assert facts.asked is None
    assert (found.cause is Cause.helper_ended) <= (facts.helper is not None)
    if found.cause in {Cause.stopped, Cause.lease_ended}:
        assert found.cause is facts.asked
    assert found.cause is not Cause.unknown
    if facts.told.stopped:
        assert needs_the_helper(facts)
