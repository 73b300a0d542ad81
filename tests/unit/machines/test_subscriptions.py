"""Who is told what, how far each has come, and what is told of events that were not."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from moorage.machines.events import EVENTS_MAX, SEGMENTS_MAX, CursorExpired, Entry, EventLog, Kind, cursor_of
from moorage.machines.subscriptions import (
    FEW,
    GATHER_SECONDS,
    MESSAGES_MAX,
    Filter,
    Subscription,
    Subscriptions,
)

BOOT = "0123456789abcdef" * 2
MUCH = 1 << 30


class Told:
    """A log, and those who are told of it."""

    def __init__(self) -> None:
        self.log = EventLog(0)
        self.subscriptions = Subscriptions(BOOT)

    def happens(self, count: int = 1, kind: Kind = Kind.empty, name: str = "web", uid: int = 0) -> None:
        for _ in range(count):
            position = self.log.last + 1
            whole = b"%d" % position
            public = b"public" if kind is Kind.exited else whole
            entry = Entry(position, kind, name, "", uid, (), whole, public)
            if dropped := self.log.append(entry, begins=self.log.begins_segment(entry.size)):
                self.subscriptions.drop(self.log.first, dropped)
        self.subscriptions.wake()

    def begin(
        self, wanted: Filter | None = None, *, uid: int = 0, cursor: str | None = None
    ) -> Subscription:
        def sees(registrant: int) -> bool:
            return uid in {0, registrant}

        def lost(cursor: str, count: int) -> bytes:
            return f"lost {count} {int(cursor[-16:], 16)}".encode()

        return self.subscriptions.begin(self.log, wanted or Filter(), sees, lost, cursor=cursor)


def test_it_is_told_what_happens_from_now_on() -> None:
    told = Told()
    told.happens(3)
    subscription = told.begin()
    assert subscription.take(MUCH) == []
    told.happens(2)
    assert subscription.take(MUCH) == [b"4", b"5"]
    assert subscription.take(MUCH) == []


def test_or_what_came_after_a_cursor() -> None:
    told = Told()
    told.happens(3)
    assert told.begin(cursor=cursor_of(BOOT, 1)).take(MUCH) == [b"2", b"3"]
    assert told.begin(cursor=cursor_of(BOOT, 0)).take(MUCH) == [b"1", b"2", b"3"]
    with pytest.raises(CursorExpired):
        told.begin(cursor=cursor_of(BOOT, 4))
    assert len(told.subscriptions) == 2


def test_no_more_is_taken_than_there_is_room_for() -> None:
    told = Told()
    subscription = told.begin()
    told.happens(MESSAGES_MAX * 2)
    assert subscription.take(0) == [b"1"]
    assert subscription.take(2) == [b"2", b"3"]
    rest: list[bytes] = []
    while messages := subscription.take(MUCH):
        assert len(messages) <= MESSAGES_MAX
        rest += messages
    assert rest == [b"%d" % number for number in range(4, MESSAGES_MAX * 2 + 1)]


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (Filter(), [1, 2, 3, 4]),
        (Filter(names=frozenset({"a"})), [1, 3]),
        (Filter(kinds=frozenset({"empty"})), [1, 2]),
        (Filter(frozenset({"a"}), frozenset({"stopping"})), [3]),
    ],
)
def test_it_is_told_what_it_wants(wanted: Filter, numbers: list[int]) -> None:
    told = Told()
    subscription = told.begin(wanted)
    for kind in (Kind.empty, Kind.stopping):
        for name in ("a", "b"):
            told.happens(1, kind, name)
    assert subscription.take(MUCH) == [b"%d" % number for number in numbers]


def test_what_it_does_not_want_wakes_it_and_waits_again() -> None:
    told = Told()
    subscription = told.begin(Filter(names=frozenset({"a"})))
    told.happens(3 * MESSAGES_MAX, name="b")
    assert subscription.take(MUCH) == []


def test_secrets_are_for_the_registrant_and_root() -> None:
    told = Told()
    readers = {uid: told.begin(uid=uid) for uid in (0, 1000, 1001)}
    told.happens(1, Kind.exited, uid=1000)
    assert {uid: reader.take(MUCH) for uid, reader in readers.items()} == {
        0: [b"1"], 1000: [b"1"], 1001: [b"public"]
    }  # fmt: skip


def test_all_are_given_the_same_bytes() -> None:
    told = Told()
    one, other = told.begin(), told.begin()
    told.happens()
    (first,), (second,) = one.take(MUCH), other.take(MUCH)
    assert first is second


def test_who_is_too_slow_is_told_how_much_was_lost() -> None:
    told = Told()
    slow, picky, fast = told.begin(), told.begin(Filter(names=frozenset({"a"}))), told.begin()
    told.happens(1, name="a")
    count = 1
    while told.log.first == 0:
        told.happens(100, name="b")
        while fast.take(MUCH):
            pass
        count += 100
    lost = told.log.first
    assert lost == EVENTS_MAX // SEGMENTS_MAX
    assert slow.take(MUCH) == [f"lost {lost} {told.log.base}".encode()]
    assert slow.take(1) == [b"%d" % (lost + 1)]
    assert picky.take(MUCH) == [b"lost 1 %d" % told.log.base]
    assert picky.take(MUCH) == []
    assert fast.take(MUCH) == []
    told.happens(2)
    assert fast.take(MUCH) == [b"%d" % (count + 1), b"%d" % (count + 2)]


def test_nothing_is_lost_that_nobody_wanted() -> None:
    told = Told()
    picky = told.begin(Filter(names=frozenset({"a"})))
    while told.log.first == 0:
        told.happens(100, name="b")
    told.happens(1, name="a")
    assert picky.take(MUCH) == [b"%d" % told.log.last]


@pytest.mark.parametrize(("count", "seconds"), [(FEW, 0.0), (FEW + 1, GATHER_SECONDS)])
def test_few_are_told_at_once_but_once_in_a_while(count: int, seconds: float) -> None:
    told = Told()
    woken: list[float] = []

    def begin() -> None:
        subscription = told.begin()
        subscription.woken = lambda: woken.append(trio.current_time())
        subscription.take(MUCH)

    async def main() -> float:
        begun = trio.current_time()
        for _ in range(count):
            begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(told.subscriptions.run)
            told.happens()
            await trio.sleep(GATHER_SECONDS / 2)
            begin()
            told.happens()
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
        return begun

    begun = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert woken[:count] == [begun + seconds] * count
    assert len(woken) == count + 1
    assert begun + GATHER_SECONDS <= woken[-1] < begun + 10


async def test_those_who_wait_are_woken_once_and_the_others_not() -> None:
    told = Told()
    woken: list[str] = []

    def waits(name: str) -> Callable[[], Any]:
        return lambda: woken.append(name)

    waiting, busy, gone = told.begin(), told.begin(), told.begin()
    for name, each in (("waiting", waiting), ("busy", busy), ("gone", gone)):
        each.woken = waits(name)
    waiting.take(MUCH)
    gone.take(MUCH)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told.subscriptions.run)
        await trio.testing.wait_all_tasks_blocked()
        told.subscriptions.end(gone)
        told.happens(5)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert woken == ["waiting"]
        told.happens(5)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert woken == ["waiting"], "it has not asked since"
        assert len(waiting.take(MUCH)) == 10
        assert waiting.take(MUCH) == []
        told.happens()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert woken == ["waiting", "waiting"]
        nursery.cancel_scope.cancel()
