"""Leases, with nobody who holds one."""

from typing import Any

import trio
from trio.testing import MockClock

from moorage.machines.leases import Leases

NOBODY: Any = None


def test_without_inherited_leases_there_is_no_grace() -> None:
    """A service that has just started would wake up all through it, for nothing."""

    async def spared() -> float:
        leases = Leases(NOBODY, NOBODY, NOBODY, grace=5.0)
        leases.serve()
        began = trio.current_time()
        await leases.spare([])
        return trio.current_time() - began

    assert trio.run(spared, clock=MockClock(autojump_threshold=0)) == 0.0
