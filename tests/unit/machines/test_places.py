"""Nobody's starts keep root's waiting, and no user takes all that is left."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from moorage.machines.errors import NoPlace
from moorage.machines.places import STARTS_MAX, STARTS_PER_UID_MAX, USERS_STARTS_MAX, Places

FAR = float("inf")


@asynccontextmanager
async def taken(places: Places, *uids: int) -> AsyncGenerator[Callable[[], int]]:
    """Have each of these uids try to take a place and keep it; yields what counts those that have got one."""
    count = 0

    async def take(uid: int) -> None:
        nonlocal count
        async with places.one(uid, deadline=FAR):
            count += 1
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for uid in uids:
            nursery.start_soon(take, uid)
        await trio.testing.wait_all_tasks_blocked()
        yield lambda: count
        nursery.cancel_scope.cancel()


@pytest.fixture
def places() -> Places:
    return Places(frozenset({0, 7}))


async def test_roots_places_are_roots(places: Places) -> None:
    users = [uid for uid in range(1000, 1010) for _ in range(STARTS_PER_UID_MAX + 1)]
    async with taken(places, *users) as count:
        assert count() == USERS_STARTS_MAX
        async with taken(places, *[0] * STARTS_MAX, 7) as roots:
            assert roots() == STARTS_MAX


async def test_one_user_does_not_take_all_of_the_rest(places: Places) -> None:
    async with taken(places, *[1000] * 200) as count:
        assert count() == STARTS_PER_UID_MAX
        async with places.one(1001, deadline=FAR):
            pass


def test_the_wait_has_an_end(places: Places) -> None:
    trio.run(end_of_wait, places, clock=trio.testing.MockClock(autojump_threshold=0))


async def end_of_wait(places: Places) -> None:
    async with taken(places, *[0] * STARTS_MAX):
        with pytest.raises(NoPlace):
            async with places.one(0, deadline=trio.current_time() + 5):
                raise AssertionError
        assert trio.current_time() == 5
    async with places.one(0, deadline=trio.current_time()):  # and whoever needs not wait does not
        pass


async def test_who_gives_up_waiting_leaves_nothing(places: Places) -> None:
    users = [uid for uid in range(1000, 1004) for _ in range(STARTS_PER_UID_MAX)]
    async with taken(places, *users):
        async with taken(places, 1004) as count:
            assert count() == 0
        async with taken(places, 1000) as count:
            assert count() == 0
    async with taken(places, *users) as count:
        assert count() == USERS_STARTS_MAX
    assert vars(places)["_by_uid"] == {}
