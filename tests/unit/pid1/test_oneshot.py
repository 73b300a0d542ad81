"""Places for the units that look at processes."""

from typing import Any

import pytest
import trio
import trio.testing
from fakes.played import PlayedManager

from moorage.pid1.oneshot import (
    PROBES_MAX,
    PROBES_OF_USERS_MAX,
    PROBES_PER_ACCOUNT_MAX,
    Account,
    ProbeFailed,
    probe,
)


@pytest.fixture
def manager() -> PlayedManager:
    return PlayedManager()


async def look(manager: PlayedManager, account: Account) -> None:
    with pytest.raises(ProbeFailed):  # the units here end without an answer
        await probe(manager, "program", 0, "Look", account=account, capabilities=0)


async def test_users_together_leave_places_to_root(manager: PlayedManager) -> None:
    started: list[str] = []
    over = trio.Event()

    async def stays(spec: Any) -> None:
        started.append(spec.unit)
        await over.wait()
        raise OSError

    manager.starting = stays
    async with trio.open_nursery() as nursery:
        for user in range(5):
            for _ in range(PROBES_PER_ACCOUNT_MAX):
                nursery.start_soon(look, manager, Account(f"user-{user}", of_user=True))
        await trio.testing.wait_all_tasks_blocked()
        assert len(started) == PROBES_OF_USERS_MAX
        for machine in range(2):
            for _ in range(PROBES_PER_ACCOUNT_MAX):
                nursery.start_soon(look, manager, Account(f"machine-{machine}", of_user=False))
        await trio.testing.wait_all_tasks_blocked()
        assert len(started) == PROBES_MAX
        assert sum("machine-" in unit for unit in started) == PROBES_MAX - PROBES_OF_USERS_MAX
        over.set()
    assert len(started) == 5 * PROBES_PER_ACCOUNT_MAX + 2 * PROBES_PER_ACCOUNT_MAX
