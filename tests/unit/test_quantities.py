"""Sizes, times and sets: what is written can be read."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage import quantities as q


@given(st.integers(0, 2**63))
def test_spans_are_read_as_they_are_written(usec: int) -> None:
    assert q.parse_span(q.format_span(usec)) == usec


@given(st.frozensets(st.integers(0, q.CPUS_MAX - 1), max_size=40))
def test_sets_are_read_as_they_are_written(numbers: frozenset[int]) -> None:
    assert q.parse_set(q.format_set(q.set_to_bytes(numbers))) == numbers


@given(st.text())
def test_nothing_controls_the_terminal(text: str) -> None:
    assert q.printable(text).isprintable()


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("1K", 1024), ("1.5G", 3 << 29), ("1 M", 1 << 20), ("1G512M", 3 << 29), ("2.B", 2),
     ("1G 1", (1 << 30) + 1), ("1K1", 1025)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert q.parse_size(text) == size


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0B"), (1023, "1023B"), (1024, "1.0K"), (3 << 29, "1.5G"), (2**64 - 1, "16.0E")]
)
def test_sizes_as_they_are_written(size: int, text: str) -> None:
    assert q.format_size(size) == text


@pytest.mark.parametrize(
    ("usec", "units", "text"),
    [
        (0, 9, "0"),
        (1, 9, "1us"),
        (90_000_000, 9, "1min 30s"),
        (90_061_000_001, 2, "1d 1h"),
        (1_500_000, 1, "1s"),
    ],
)
def test_spans_as_they_are_written(usec: int, units: int, text: str) -> None:
    assert q.format_span(usec, units=units) == text


@pytest.mark.parametrize(
    ("text", "number"),
    [("SIGTERM", 15), ("term", 15), ("9", 9), ("RTMIN+3", signal.SIGRTMIN + 3), ("SIGRTMAX-1", signal.SIGRTMAX - 1),
     ("RTMIN", signal.SIGRTMIN), ("RTMIN+0", signal.SIGRTMIN)],
)  # fmt: skip
def test_signals(text: str, number: int) -> None:
    assert q.parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "-9", "SIG", "RTMIN+31", "RTMAX-99", "DFL", "BLOCK", "1.5"])
def test_no_signals(text: str) -> None:
    with pytest.raises(ValueError, match="signal"):
        q.parse_signal(text)
