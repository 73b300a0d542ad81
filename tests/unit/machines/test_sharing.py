"""Whether a machine in place has its control group for itself."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from moorage.kernel.process import ProcessGone, ProcessId
from moorage.kernel.system import System
from moorage.machines.model import Placement
from moorage.machines.sharing import is_shared
from moorage.pid1.manager import Json, Manager

PARENTS = {100: 1, 101: 100, 102: 101, 200: 100, 300: 1, 400: 300}
"""100 is the launcher, 101 the leader, 102 its child, 200 the caller; the others came from elsewhere."""


class Kernel:
    """Processes, and one control group."""

    def __init__(self, members: Sequence[int] | None) -> None:
        self.members = members

    def processes(self, control_group: str, most: int) -> list[int] | None:
        return None if self.members is None else list(self.members)

    def parent(self, pid: int) -> int:
        if pid not in PARENTS:
            raise ProcessGone(pid)
        return PARENTS[pid]


class Service:
    """A unit with a main process."""

    def __init__(self, main_pid: int) -> None:
        self.main_pid = main_pid

    async def properties(self, unit: str, names: Sequence[str], *, deadline: float) -> Mapping[str, Json]:
        assert unit.endswith(".service")
        return {"MainPID": self.main_pid}


@pytest.mark.parametrize(
    ("unit", "subgroup", "main", "members", "shared"),
    [
        ("a.service", None, 101, [100, 101, 300], False),
        ("a.service", None, 100, [101, 102], False),
        ("a.service", None, 100, [101, 102, 200], False),
        ("a.service", None, 100, [101, 102, 999], False),  # one that is gone
        ("a.service", None, 100, [100, 101], True),
        ("a.service", None, 100, None, True),
        ("session-7.scope", None, 0, [101, 102], False),
        ("session-7.scope", None, 0, [101, 300], True),
        ("session-7.scope", None, 0, [101, 400], True),
        ("a.service", "/payload", 100, [101, 300], False),
        ("user@1000.service", "/app.slice/a.scope", 100, [101, 300], True),
        ("user@1000.service", "/app.slice/a.service", 101, [101, 102], False),
    ],
)  # fmt: skip
async def test_who_else_lives_there(
    unit: str, subgroup: str | None, main: int, members: Sequence[int] | None, shared: bool
) -> None:
    kernel: Any = Kernel(members)
    found = await is_shared(
        Placement(unit, subgroup, control_group=f"/{unit}{subgroup or ''}"),
        ProcessId(101, None, None),
        ProcessId(200, None, None),
        cast("Manager", Service(main)),
        System(kernel, kernel, kernel),
        deadline=0,
    )
    assert found is shared
