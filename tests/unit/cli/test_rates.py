"""Rows of moorctl top, from two looks."""

from typing import Any

import msgspec
import pytest

from moorage.cli.commands.top import ORDERS as OFFERED
from moorage.cli.rates import ORDERS, Row, rows, sort
from moorage.client.types import Sample

MIB = 1 << 20


def sample(name: str = "web", *, at: int = 1_000_000, **further: Any) -> Sample:
    accounting = further.pop("accounting", {})
    found = {
        "name": name, "invocationId": "a", "timestamp": {"monotonic": at}, "accounting": accounting,
        "phase": "running", "freezer": "running", **further,
    }  # fmt: skip
    return msgspec.convert(found, Sample)


def row(now: Sample, before: Sample | None = None) -> Row:
    [found] = rows([now], {} if before is None else {before.name: before})
    return found


def test_rates_are_those_between_two_looks() -> None:
    before = sample(accounting={"cpuUsageNSec": 5_000, "ioReadBytes": 100, "ioWriteBytes": 7})
    usage = {"cpuUsageNSec": 1_000_005_000, "ioReadBytes": 4196, "ioWriteBytes": 7, "memoryCurrent": MIB,
             "tasksCurrent": 3}  # fmt: skip
    found = row(sample(at=3_000_000, accounting=usage, limits={"MemoryMax": 4 * MIB, "TasksMax": 9}), before)
    assert (found.cpu_percent, found.io_read_rate, found.io_write_rate, found.io_rate) == (
        50.0,
        2048.0,
        0.0,
        2048.0,
    )
    assert (found.memory_share, found.tasks_current, found.tasks_max) == (0.25, 3, 9)


@pytest.mark.parametrize(
    "before",
    [
        None,
        sample(invocationId="b", accounting={"cpuUsageNSec": 1}),
        sample(accountingSince={"monotonic": 5}, accounting={"cpuUsageNSec": 1}),
        sample(accounting={"cpuUsageNSec": 11}),
        sample(at=2_000_000, accounting={"cpuUsageNSec": 1}),
        sample(),
    ],
)
def test_where_there_is_nothing_to_compare_with_there_is_no_rate(before: Sample | None) -> None:
    assert row(sample(at=2_000_000, accounting={"cpuUsageNSec": 10}), before).cpu_percent is None


def test_the_worst_pressure() -> None:
    lines = {"cpu": 1.0, "memory": 30.5, "io": 2.0}
    pressure = {
        name: {"some": {"avg10": share, "avg60": 0.0, "avg300": 0.0, "totalUSec": 1}}
        for name, share in lines.items()
    }
    found = row(sample(pressure=pressure))
    assert found.worst_pressure == (30.5, "memory")
    assert row(sample()).worst_pressure is None


def test_what_is_not_known_comes_last() -> None:
    found = [
        Row("a", "running", "running"),
        Row("c", "running", "running", cpu_percent=1.0),
        Row("b", "running", "running", cpu_percent=1.0),
        Row("d", "stopping", "running", cpu_percent=9.0),
    ]
    assert [each.name for each in sort(found, "cpu")] == ["d", "b", "c", "a"]
    assert [each.name for each in sort(found, "name")] == ["a", "b", "c", "d"]
    assert sort(found, "state", reverse=True)[0].name == "d"


def test_what_can_be_chosen_is_what_there_is() -> None:
    assert tuple(ORDERS) == OFFERED
