"""Functions called in time, or called off."""

import weakref
from collections.abc import Callable

import trio
from trio.testing import MockClock

from moorage.wire.deadlines import Deadlines


def in_mocked_time(test: Callable[[Deadlines, list[str]], object]) -> list[str]:
    seen: list[str] = []

    async def main() -> None:
        deadlines = Deadlines()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deadlines.run)
            await trio.testing.wait_all_tasks_blocked()
            test(deadlines, seen)
            await trio.sleep(100)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return seen


def test_in_order_of_time_whatever_was_set_first() -> None:
    def test(deadlines: Deadlines, seen: list[str]) -> None:
        deadlines.set(1, 10, lambda: seen.append("late"))
        deadlines.set(2, 1, lambda: seen.append("early"))

    assert in_mocked_time(test) == ["early", "late"]


async def test_nothing_is_kept_of_one_that_has_passed() -> None:
    """Else a connection that was closed for it would be, until the next one is due."""
    kept: list[weakref.ref[object]] = []

    class Closed:
        def __call__(self) -> None:
            kept.append(weakref.ref(self))

    deadlines = Deadlines()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        deadlines.set(1, 0, Closed())
        deadlines.set(2, 3600, nursery.cancel_scope.cancel)
        with trio.fail_after(10):
            while not kept:
                await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        assert kept[0]() is None
        nursery.cancel_scope.cancel()


def test_called_off_and_set_again() -> None:
    def test(deadlines: Deadlines, seen: list[str]) -> None:
        deadlines.set(1, 1, lambda: seen.append("called off"))
        deadlines.set(2, 2, lambda: seen.append("replaced"))
        deadlines.clear(1)
        deadlines.clear(3)
        deadlines.set(2, 3, lambda: seen.append("replacement"))

    assert in_mocked_time(test) == ["replacement"]


def test_one_calls_off_another_that_is_due_as_well() -> None:
    def test(deadlines: Deadlines, seen: list[str]) -> None:
        def first_of(key: int, other: int) -> None:
            seen.append(str(key))
            deadlines.clear(other)

        deadlines.set(1, 1, lambda: first_of(1, 2))
        deadlines.set(2, 1, lambda: first_of(2, 1))

    assert len(in_mocked_time(test)) == 1


def test_set_from_within() -> None:
    def test(deadlines: Deadlines, seen: list[str]) -> None:
        def again() -> None:
            seen.append("once")
            deadlines.set(1, 5, lambda: seen.append("more"))

        deadlines.set(1, 1, again)

    assert in_mocked_time(test) == ["once", "more"]


class Waits(trio.abc.Instrument):
    """Counts how often the event loop has something to do."""

    def __init__(self) -> None:
        self.turns = 0

    def after_io_wait(self, timeout: float) -> None:
        self.turns += 1


def test_nobody_is_woken_for_what_was_called_off() -> None:
    waits = Waits()

    def test(deadlines: Deadlines, seen: list[str]) -> None:
        deadlines.set(1, 50, lambda: seen.append("called off"))
        deadlines.set(2, 40, lambda: seen.append("called off"))
        deadlines.clear(2)
        deadlines.clear(1)
        trio.lowlevel.add_instrument(waits)

    assert in_mocked_time(test) == []
    assert waits.turns == quiet_turns()


def quiet_turns() -> int:
    """How many turns there are with no deadline at all."""
    waits = Waits()

    def test(_deadlines: Deadlines, _seen: list[str]) -> None:
        trio.lowlevel.add_instrument(waits)

    in_mocked_time(test)
    return waits.turns
