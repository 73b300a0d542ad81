"""How a unit ended, and which helper's end had a machine stopped, by what the manager wrote."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from moorage.names import UnitNames, machine_of_helper
from moorage.pid1 import journal

BONDS = {"a-bond": "a", "b-bond": "b"}
SUCCESS, FAILED, STARTED, STOPPED = (
    "7ad2d189f7e94e70a38c781354912448",
    "d9b373ed55a64feb8242e02dbe79a49c",
    "39f53479d3a045ac8e11786248231fbf",
    "9d1aaa27d60140bd96365438aad20286",
)


def job(unit: str, kind: str, number: int) -> dict[str, Any]:
    return {"UNIT": unit, "JOB_TYPE": kind, "JOB_ID": str(number)}


def end(unit: str, result: str | None = None) -> dict[str, Any]:
    message = {"UNIT": unit, "MESSAGE_ID": FAILED if result else SUCCESS}
    return {**message, **({"UNIT_RESULT": result} if result else {})}


def started(unit: str) -> dict[str, Any]:
    return {"UNIT": unit, "MESSAGE_ID": STARTED, "JOB_TYPE": "start", "JOB_ID": "1"}


BEGUN = [started("a"), started("b"), started("m"), started("a-bond"), started("b-bond")]

CASES: dict[str, tuple[list[dict[str, Any]], tuple[str, str] | None]] = {
    "it failed": (
        [end("a", "signal"), job("a-bond", "stop", 9), job("m", "stop", 10), end("m"), job("m", "stop", 10), end("b")],
        ("a", "signal"),
    ),
    "it failed too often": (
        [end("a", "exit-code"), end("a", "start-limit-hit"), job("a-bond", "stop", 9), job("m", "stop", 10), end("m")],
        ("a", "start-limit-hit"),
    ),
    "it failed too often, as 257 tells it": (
        [end("a", "exit-code"), end("a", "exit-code"), job("a-bond", "stop", 9), job("m", "stop", 10), end("m")],
        ("a", "exit-code"),
    ),
    "it ended well": ([end("a"), job("a-bond", "stop", 9), job("m", "stop", 10), end("m")], ("a", "success")),
    "it was stopped, after the machine": (
        [job("a-bond", "stop", 9), job("m", "stop", 10), end("m"), job("a", "stop", 8), end("a")], ("a", "success"),
    ),
    "the machine was stopped": (
        [job("a-bond", "stop", 12), job("b-bond", "stop", 11), job("m", "stop", 10), end("m"), end("a", "exit-code")],
        None,
    ),
    "the machine was stopped while it paused before a restart": (
        [end("a"), job("a-bond", "stop", 12), job("m", "stop", 10), end("m")], None,
    ),
    "the machine ended": ([end("m"), job("a-bond", "stop", 12), end("a")], None),
    "both ended": (
        [end("b"), job("b-bond", "stop", 9), end("a"), job("a-bond", "stop", 12), job("m", "stop", 10), end("m")],
        ("b", "success"),
    ),
    "both ended while it was frozen": (
        [end("b"), job("b-bond", "stop", 9), job("m", "stop", 10), end("a"), job("a-bond", "stop", 12),
         job("m", "stop", 13), end("m")],
        ("b", "success"),
    ),
    "frozen": (
        [end("a"), job("a-bond", "stop", 9), job("m", "stop", 10), job("m", "stop", 14), end("m")], ("a", "success"),
    ),
    "restarted by hand, and stopped": (
        [job("a-bond", "restart", 7), job("a-bond", "stop", 7), end("a"), started("a"), started("a-bond"),
         job("a-bond", "stop", 12), job("m", "stop", 10), end("m"), end("a")],
        None,
    ),
    "this service stopped the machine": (
        [end("a", "signal"), job("b-bond", "stop", 12), job("a-bond", "stop", 13), job("m", "stop", 10), end("m"),
         end("b")],
        None,
    ),
    "an earlier machine": (
        [end("a"), job("a-bond", "stop", 9), job("m", "stop", 10), end("m"), *BEGUN, end("m")], None,
    ),
}  # fmt: skip


def stamped(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give entries the times at which they were written, a second apart."""
    return [
        {
            **entry,
            "__REALTIME_TIMESTAMP": datetime.fromtimestamp(number, UTC),
            "__MONOTONIC_TIMESTAMP": SimpleNamespace(timestamp=timedelta(seconds=number)),
        }
        for number, entry in enumerate(entries)
    ]


def found(
    entries: list[dict[str, Any]], otherwise: str | None, about: str = "UNIT"
) -> tuple[str, str] | None:
    renamed = [
        {about if name == "UNIT" else name: entry[name] for name in entry} for entry in [*BEGUN, *entries]
    ]
    culprit, _ = journal._culprit(reversed(stamped(renamed)), about, BONDS, "m", otherwise)
    if culprit is None:
        return None
    assert culprit.began_usec == {"a": 0, "b": 1_000_000}[culprit.unit]
    return culprit.unit, culprit.result


@pytest.mark.parametrize("case", CASES)
def test_whose_end_it_was(case: str) -> None:
    entries, expected = CASES[case]
    assert found(entries, None) == expected


@pytest.mark.parametrize("case", CASES)
def test_whose_end_it_was_in_the_journal_of_a_user(case: str) -> None:
    """It has no word of an end with success."""
    entries, expected = CASES[case]
    told = [entry for entry in entries if entry.get("MESSAGE_ID") != SUCCESS]
    assert found(told, None, "USER_UNIT") == expected


def test_whose_end_it_was_otherwise() -> None:
    entries, _ = CASES["this service stopped the machine"]
    assert found(entries, "a") == ("a", "signal")
    # The word of the manager comes first.
    entries, expected = CASES["both ended"]
    assert found(entries, "a") == expected
    # What nothing is told of.
    assert found([end("m")], "a") is None
    assert found([], "a", "USER_UNIT") == ("a", "success")


class Reader:
    """Reads entries backwards, whatever is matched."""

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self._left = stamped(entries)

    def flush_matches(self) -> None: ...
    def add_match(self, match: str) -> None: ...
    def seek_tail(self) -> None: ...

    def get_previous(self) -> dict[str, Any] | None:
        return self._left.pop() if self._left else None


JOB_DONE = {**job("m", "stop", 10), "MESSAGE_ID": STOPPED, "JOB_RESULT": "done"}


@pytest.mark.parametrize(
    ("entries", "user", "expected"),
    [
        ([started("m")], False, (None, False, 0)),
        ([started("m"), end("m")], False, ("success", False, 1_000_000)),
        ([started("m"), job("m", "stop", 10), end("m"), JOB_DONE], False, ("success", True, 2_000_000)),
        ([started("m"), job("m", "stop", 10)], True, (None, True, 0)),
        ([started("m"), job("m", "stop", 10), JOB_DONE], True, ("success", True, 2_000_000)),
        ([started("m"), job("m", "stop", 10), end("m", "timeout"), JOB_DONE], True, ("timeout", True, 2_000_000)),
        ([started("m"), end("m", "oom-kill")], True, ("oom-kill", False, 1_000_000)),
    ],
)  # fmt: skip
def test_how_a_unit_ended(
    entries: list[dict[str, Any]], user: bool, expected: tuple[str | None, bool, int]
) -> None:
    told = journal._end(Reader(entries), "1" * 32, user=user)
    assert (told.result, told.stopped, told.monotonic) == expected


@pytest.mark.parametrize("machine", ["web", "a-b", "a.b", "a:b"])
def test_names_of_bonds(machine: str) -> None:
    assert machine_of_helper(UnitNames(machine).helper("f-s")) == machine
    assert machine_of_helper(UnitNames(machine).bond("f-s")) == machine
    assert UnitNames("a").bond("b-c") != UnitNames("a-b").bond("c")


@pytest.mark.parametrize("unit", ["machine-web.service", "moored.service", "machine--x.service", ""])
def test_names_of_others(unit: str) -> None:
    assert machine_of_helper(unit) is None


@pytest.mark.parametrize(
    ("case", "stopped"),
    [("it ended well", False), ("it failed", False), ("it was stopped, after the machine", True)],
)
def test_whether_it_was_stopped(case: str, stopped: bool) -> None:
    entries, _ = CASES[case]
    culprit, _ = journal._culprit(reversed(stamped([*BEGUN, *entries])), "UNIT", BONDS, "m", None)
    assert culprit is not None
    assert culprit.stopped is stopped


def test_a_stop_that_follows_from_the_machines_is_no_reason() -> None:
    entries = [end("a"), job("a", "stop", 11), job("a-bond", "stop", 9), job("m", "stop", 10), end("m")]
    culprit, _ = journal._culprit(reversed(stamped([*BEGUN, *entries])), "UNIT", BONDS, "m", None)
    assert culprit is not None
    assert culprit.stopped is False


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        # The machine ended before a job could stop it: that of the bond, which came first, is told after it.
        ([end("a"), end("m"), job("m", "stop", 10)], (None, False)),
        ([end("a"), end("m"), job("m", "stop", 10), job("b-bond", "stop", 11)], (None, False)),
        ([end("a"), end("m"), job("m", "stop", 10), job("b-bond", "stop", 11), job("a-bond", "stop", 9)], ("a", True)),
    ],
)  # fmt: skip
def test_what_is_still_to_be_told(entries: list[dict[str, Any]], expected: tuple[str | None, bool]) -> None:
    culprit, whole = journal._culprit(reversed(stamped([*BEGUN, *entries])), "UNIT", BONDS, "m", None)
    assert (None if culprit is None else culprit.unit, whole) == expected


def test_where_nothing_is_told_nothing_is_waited_for() -> None:
    assert journal._culprit([], "UNIT", BONDS, "m", None) == (None, True)
