"""What became of a machine: the table, row by row, and that it has an answer to everything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.machines import ending
from moorage.machines.ending import (
    Absent,
    Ended,
    Judgement,
    Known,
    Lingering,
    LookAgain,
    NotAsked,
    Populated,
    Query,
    Removed,
    Running,
    Seen,
    StopEmpty,
    Stopping,
    StopWithout,
    Unit,
    judge,
)
from moorage.machines.verdicts import FORGOTTEN

ID = "1" * 32
ACTIVE, DEACTIVATING = Known(ID, "active"), Known(ID, "deactivating")


def seen(**values: object) -> Seen:
    return Seen(**{"populated": True, "invocation_id": ID, **values})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("facts", "unit", "judgement"),
    [
        # By the kernel alone.
        (seen(), NotAsked(), Populated()),
        (seen(), Removed(), Populated()),
        (seen(sure=True), NotAsked(), Query()),
        (seen(sure=True), Removed(), Query()),
        (seen(populated=False), NotAsked(), LookAgain()),
        (seen(populated=False, sure=True), NotAsked(), Query()),
        (seen(populated=False), Removed(), Ended(None)),
        (seen(populated=False, result="timeout"), Removed(), Ended("timeout")),
        (seen(populated=False, whole=False), NotAsked(), Ended("success")),
        (seen(renewed=True), NotAsked(), Ended(FORGOTTEN)),
        (seen(renewed=True, populated=False, sure=True), Removed(), Ended(FORGOTTEN)),
        # By the manager's word as well.
        (seen(), Absent(), Ended(None)),
        (seen(populated=False, result="oom-kill"), Absent(), Ended("oom-kill")),
        (seen(), Known("2" * 32, "active"), Ended(FORGOTTEN)),
        (seen(), ACTIVE, Running()),
        (seen(without=True), ACTIVE, StopWithout()),
        (seen(without=True), DEACTIVATING, Stopping()),
        (seen(), Known(ID, "reloading"), Running()),
        (seen(), DEACTIVATING, Stopping()),
        (seen(populated=False), DEACTIVATING, Stopping()),
        (seen(), Known(ID, "inactive", "success"), Lingering("success")),
        (seen(), Known(ID, "failed", "timeout"), Lingering("timeout")),
        (seen(populated=False), Known(ID, "inactive", "success"), Ended("success", kept=True)),
        (
            seen(populated=False),
            Known(ID, "inactive", "success", by_itself=True),
            Ended("success", kept=True, by_itself=True),
        ),
        (seen(populated=False), Known(ID, "failed", "oom-kill"), Ended("oom-kill", kept=True, reset=True)),
        (seen(populated=False, result="timeout"), Known(ID, "failed", FORGOTTEN), Ended("timeout", True, True)),
        (seen(populated=False), ACTIVE, StopEmpty()),
        # In place.
        (seen(populated=False, allocated=False), ACTIVE, Ended("success", stays=True)),
        (seen(populated=False, allocated=False), DEACTIVATING, Ended("success")),
        (seen(populated=False, allocated=False), Known(ID, "failed", "signal"), Ended("signal", kept=True)),
    ],
)  # fmt: skip
def test_the_table(facts: Seen, unit: Unit, judgement: Judgement) -> None:
    assert judge(facts, unit) == judgement


SEEN = st.builds(
    Seen, populated=st.booleans(), renewed=st.booleans(), whole=st.booleans(), allocated=st.booleans(),
    invocation_id=st.sampled_from([ID, ""]), sure=st.booleans(), result=st.none() | st.just("timeout"),
    without=st.booleans(),
)  # fmt: skip
KNOWN = st.builds(
    Known, st.sampled_from([ID, "2" * 32, ""]),
    st.sampled_from(["active", "inactive", "failed", "activating", "deactivating", "maintenance", "reloading", "?"]),
    st.sampled_from(["success", "timeout"]),
)  # fmt: skip
BY_KERNEL = st.sampled_from([NotAsked(), Removed()])
BY_MANAGER = st.just(Absent()) | KNOWN


@given(SEEN, BY_KERNEL)
def test_the_kernel_alone_leads_to_a_query_or_an_end(facts: Seen, unit: Unit) -> None:
    assert isinstance(judge(facts, unit), Populated | Query | LookAgain | Ended)


@given(SEEN, BY_MANAGER)
def test_what_both_say_is_final(facts: Seen, unit: Unit) -> None:
    assert not isinstance(judge(facts, unit), Populated | Query | LookAgain)


@given(SEEN, BY_KERNEL | BY_MANAGER)
def test_a_machine_with_processes_ends_with_its_unit_only(facts: Seen, unit: Unit) -> None:
    found = judge(facts, unit)
    if facts.populated and isinstance(found, Ended):
        gone = isinstance(unit, Absent) or (
            isinstance(unit, Known) and unit.invocation_id != facts.invocation_id
        )
        assert gone or facts.renewed
    if not facts.populated:
        assert not isinstance(found, Populated | Running | Lingering | StopWithout)


@given(SEEN, BY_KERNEL | BY_MANAGER)
def test_nothing_foreign_is_stopped_or_reset(facts: Seen, unit: Unit) -> None:
    found = judge(facts, unit)
    if isinstance(found, StopEmpty) or (isinstance(found, ending.Ended) and found.reset):
        assert facts.allocated
        assert isinstance(unit, Known)
        assert unit.invocation_id == facts.invocation_id
