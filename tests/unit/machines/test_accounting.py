"""Counters since they were reset."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from moorage.machines.accounting import COUNTERS, Accounting, base_of, since, traffic_since

COUNTS = st.builds(Accounting, *[st.none() | st.integers(0, 2**63 - 1)] * len(Accounting.__struct_fields__))


def test_each_field_is_a_counter_or_a_gauge() -> None:
    gauges = {name for name in Accounting.__struct_fields__ if name.endswith(("_current", "_peak"))}
    assert {*COUNTERS} | gauges == set(Accounting.__struct_fields__)
    assert not {*COUNTERS} & gauges


@given(COUNTS)
def test_nothing_has_grown_at_once(found: Accounting) -> None:
    told = since(found, base_of(found))
    for name in Accounting.__struct_fields__:
        value = getattr(found, name)
        assert getattr(told, name) == (0 if name in COUNTERS and value is not None else value)


@given(COUNTS, COUNTS)
def test_no_counter_is_told_that_is_not_known(found: Accounting, before: Accounting) -> None:
    told, base = since(found, base_of(before)), msgspec.structs.asdict(before)
    for name in COUNTERS:
        value, now = getattr(told, name), getattr(found, name)
        if now is None or (base[name] is not None and base[name] > now):
            assert value is None
        else:
            assert value == now - (base[name] or 0)


def test_of_each_device() -> None:
    found = {"8:0": {"readBytes": 5, "writeBytes": 7, "discardBytes": 1}, "8:16": {"readBytes": 3}}
    base = {"8:0": {"readBytes": 2, "discardBytes": 4}, "8:32": {"readBytes": 9}}
    assert traffic_since(found, base) == {"8:0": {"readBytes": 3, "writeBytes": 7}, "8:16": {"readBytes": 3}}
    assert traffic_since(found, None) == {}
