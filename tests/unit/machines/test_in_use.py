"""What is said of limits that are lower than what is in use."""

from collections.abc import Mapping, Sequence

import pytest

from moorage.machines.in_use import Use, exceeded, use
from moorage.pid1.manager import Json

MIB = 1024 * 1024


class Group:
    """A control group with these attributes."""

    def __init__(self, attributes: Mapping[str, str]) -> None:
        self._attributes = attributes

    def read(self, attribute: str) -> str | None:
        """See `Kernel`."""
        return self._attributes.get(attribute)

    def above(self, attribute: str) -> Sequence[tuple[str, str]]:
        """See `Kernel`."""
        raise AssertionError(attribute)


def said(
    properties: Mapping[str, Json],
    limits: Mapping[str, str],
    used: int,
    left: int | None = None,
    killed: int | None = 0,
) -> list[str]:
    """What is said of the memory or tasks that a group has in use, and of which it keeps some."""
    usage = "pids.current" if "pids.max" in limits else "memory.current"
    before = Use({usage: used}, 3)
    now = None if left is None else Use({usage: left}, None if killed is None else 3 + killed)
    return [each.reason for each in exceeded(properties, before, now, Group(limits))]


@pytest.mark.parametrize(
    ("left", "killed", "words"),
    [
        (None, 0, "64.0M are in use: the kernel reclaims memory, or kills, when more is taken"),
        (48, 0, "48.0M are in use: the kernel reclaims memory, or kills, when more is taken"),
        (32, 0, "64.0M were in use, and the kernel has reclaimed what was too much"),
        (8, 1, "64.0M were in use, and the kernel has killed a process for that"),
        (8, 2, "64.0M were in use, and the kernel has killed 2 processes for that"),
        (8, None, "64.0M were in use, and the kernel has reclaimed what was too much"),
    ],
)
def test_memory(left: int | None, killed: int | None, words: str) -> None:
    kept = None if left is None else left * MIB
    wanted: dict[str, Json] = {"MemoryMax": 32 * MIB}
    assert said(wanted, {"memory.max": str(32 * MIB)}, 64 * MIB, kept, killed) == [words]
    assert said(wanted, {"memory.max": str(64 * MIB)}, 64 * MIB, kept, killed) == []
    assert said(wanted, {"memory.max": "max"}, 64 * MIB, kept, killed) == []
    assert said(wanted, {}, 64 * MIB, kept, killed) == []


def test_tasks() -> None:
    words = "there are 12 tasks: none of them is ended, and no other can be started before they are fewer"
    assert said({"TasksMax": 11}, {"pids.max": "11"}, 12, 12) == [words]
    assert said({"TasksMaxScale": 2**31}, {"pids.max": "11"}, 12, 12) == [words]
    assert said({"TasksMax": 12}, {"pids.max": "12"}, 12, 12) == []


def test_what_is_read() -> None:
    group = Group({"memory.current": "4096", "memory.events": "low 0\noom 4\noom_kill 2\n"})
    assert use({"CPUWeight": 5}, group) is None
    assert use({"MemoryHigh": 5, "TasksMax": 7}, group) == Use({"memory.current": 4096}, 2)
    assert use({"TasksMaxScale": 7}, Group({"pids.current": "9"})) == Use({"pids.current": 9}, None)
    assert list(exceeded({"TasksMax": 1}, Use({}, None), None, Group({"pids.max": "1"}))) == []
