"""Names that could be meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.similar import NEAREST_MAX, did_you_mean, nearest

KNOWN = ("machinesMax", "machinesPerUserMax", "idleTimeout", "logLevel")


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("machinesmax", "machinesMax"),
        ("MachineMax", "machinesMax"),
        ("machinesPer", "machinesPerUserMax"),
        ("idle", "idleTimeout"),
        ("LogLevel", "logLevel"),
    ],
)
def test_the_nearest_comes_first(name: str, first: str) -> None:
    assert nearest(name, KNOWN)[0] == first


@pytest.mark.parametrize("name", ["", "zzz", "x" * 100_000])
def test_nothing_is_like_it(name: str) -> None:
    assert nearest(name, KNOWN) == []


@given(st.text(max_size=100), st.integers(1, 5))
def test_only_names_that_exist_are_offered(name: str, most: int) -> None:
    found = nearest(name, KNOWN, most=most)
    assert set(found) <= set(KNOWN)
    assert len(found) == len(set(found)) <= most


def test_the_question() -> None:
    assert did_you_mean([]) == ""
    assert did_you_mean(["a"]) == "; did you mean a?"
    assert did_you_mean(["a", "b", "c"]) == "; did you mean a, b or c?"
    assert NEAREST_MAX == 3
