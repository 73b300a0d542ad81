"""Whose turn it is."""

import functools
import time
from collections.abc import Callable, Coroutine

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from moorage.wire.fairness import CROWD_PAUSE, REST_SECONDS, Fairness

ALICE, BOB = 1000, 1001


def on_a_clock(main: Callable[[MockClock], Coroutine[None, None, None]]) -> Callable[[], None]:
    """Run a test on a clock that stands still unless it is moved on."""

    @functools.wraps(main)
    def run() -> None:
        clock = MockClock()
        trio.run(main, clock, clock=clock)

    del run.__dict__["__wrapped__"]
    return run


@on_a_clock
async def test_a_user_rests_after_a_long_call(clock: MockClock) -> None:
    fairness = Fairness(frozenset())
    assert fairness.rest(ALICE) <= 0
    fairness.note_long_input(ALICE)
    assert fairness.rest(ALICE) == pytest.approx(REST_SECONDS)
    assert fairness.rest(BOB) <= 0
    clock.jump(REST_SECONDS / 2)
    fairness.note_long_input(ALICE)
    clock.jump(REST_SECONDS * 0.75)
    assert fairness.rest(ALICE) == pytest.approx(REST_SECONDS / 4)
    clock.jump(REST_SECONDS)
    assert fairness.rest(ALICE) <= 0


@on_a_clock
async def test_users_that_never_come_back_are_forgotten(clock: MockClock) -> None:
    fairness = Fairness(frozenset())
    for uid in range(10_000):
        fairness.note_long_input(uid)
        clock.jump(REST_SECONDS / 10)
    assert len(fairness.resting) <= 11


@on_a_clock
async def test_users_pause_while_a_trusted_caller_waits(clock: MockClock) -> None:
    fairness = Fairness(frozenset({0}))
    assert fairness.trusts(0)
    assert not fairness.trusts(ALICE)
    assert fairness.pause(1.0) == 0
    fairness.trusted_waits("one")
    fairness.trusted_waits("other")
    fairness.trusted_answered("one")
    assert fairness.pause(1.0) == CROWD_PAUSE
    clock.jump(CROWD_PAUSE / 2)
    assert fairness.pause(0) == CROWD_PAUSE / 2
    fairness.trusted_answered("other")
    assert fairness.pause(0) == 0
    assert fairness.pause(1.0) == 0


async def test_slots_are_each_users_own() -> None:
    fairness = Fairness(frozenset())
    async with fairness.slot(ALICE, "a"), fairness.slot(BOB, "b"):
        assert fairness._users.keys() == {ALICE, BOB}
        await trio.lowlevel.checkpoint()
    assert not fairness._users


@on_a_clock
async def test_the_time_of_tasks_counts(clock: MockClock) -> None:
    fairness = Fairness(frozenset({0}))
    fairness.trusted_waits("one")
    steps: list[str] = []

    def toil() -> None:
        time.sleep(0.001)

    async def work() -> None:
        toil()
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.sleep_forever()
        steps.append("was cancelled")
        toil()
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fairness.counted(work())
    assert steps == ["was cancelled"]
    assert fairness.pause(0) >= 0.002 * CROWD_PAUSE
    clock.jump(1)
    assert fairness.pause(0) <= 0


async def test_users_take_turns_however_many_tasks_one_has() -> None:
    fairness = Fairness(frozenset())
    order: list[int] = []
    at: list[int] = []
    loops = 0

    async def work(uid: int, number: int) -> None:
        async with fairness.slot(uid, (uid, number)):
            await fairness.turn(uid)
            order.append(uid)
            at.append(loops)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(work, ALICE, number)
        await trio.testing.wait_all_tasks_blocked()  # BOB comes last
        order.clear()
        at.clear()
        for number in range(4, 8):
            nursery.start_soon(work, ALICE, number)
        nursery.start_soon(work, BOB, 0)
        while len(order) < 5:
            loops += 1
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert order.index(BOB) <= 1
    assert len(set(at)) == 5
