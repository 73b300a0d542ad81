"""Whoever follows a unit gets its hints, and nobody gets those of other units."""

import trio
import trio.testing
from fakes.played import PlayedManager

from moorage.pid1.hints import Hints
from moorage.pid1.manager import UnitHint

CHANGED = UnitHint("changed", "a.scope", active_state="active")


def test_each_hint_reaches_those_that_follow_its_unit_only() -> None:
    fake = PlayedManager()
    hints = Hints(fake)
    first: list[UnitHint] = []
    second: list[UnitHint] = []
    all_: list[UnitHint] = []
    hints.follow("a.scope", first.append)
    hints.follow("b.scope", second.append)
    hints.follow_all(all_.append)

    fake.tell(CHANGED)
    fake.tell(UnitHint("changed", "c.scope"))
    fake.tell(UnitHint("reloaded"))

    assert (first, second, all_) == ([CHANGED], [], [UnitHint("reloaded")])


def test_the_manager_is_told_which_units_matter() -> None:
    fake = PlayedManager()
    hints = Hints(fake)
    got: list[UnitHint] = []
    also: list[UnitHint] = []
    hints.follow("a.scope", got.append)
    hints.follow("a.scope", also.append)
    assert fake.is_wanted("a.scope")
    assert not fake.is_wanted("b.scope")

    hints.unfollow("a.scope", got.append)
    hints.unfollow("a.scope", got.append)
    assert fake.is_wanted("a.scope")
    fake.tell(CHANGED)
    assert (got, also) == ([], [CHANGED])

    hints.unfollow("a.scope", also.append)
    assert not fake.is_wanted("a.scope")


def test_following_twice_is_following_once() -> None:
    fake = PlayedManager()
    hints = Hints(fake)
    got: list[UnitHint] = []
    hints.follow("a.scope", got.append)
    hints.follow("a.scope", got.append)

    fake.tell(CHANGED)

    assert got == [CHANGED]


def test_a_listener_may_stop_to_follow_while_a_hint_is_passed_on() -> None:
    fake = PlayedManager()
    hints = Hints(fake)
    got: list[str] = []

    def once(hint: UnitHint) -> None:
        got.append("once")
        hints.unfollow(hint.unit, once)

    hints.follow("a.scope", once)
    hints.follow("a.scope", lambda _hint: got.append("always"))

    fake.tell(CHANGED)
    fake.tell(CHANGED)

    assert got == ["once", "always", "always"]


async def test_news_that_came_before_the_wait_end_it_at_once() -> None:
    fake = PlayedManager()
    hints = Hints(fake)
    with hints.of(["a.scope", "b.scope"]) as news:
        fake.tell(CHANGED)
        with trio.fail_after(1):
            await news.next()
        assert news.last == {"a.scope": CHANGED}

        woken = trio.Event()

        async def wait() -> None:
            await news.next()
            woken.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert not woken.is_set()
            fake.tell(UnitHint("removed", "b.scope"))
    assert woken.is_set()
    assert not fake.is_wanted("a.scope")


async def test_news_are_woken_by_what_is_about_all_units() -> None:
    fake = PlayedManager()
    hints = Hints(fake)
    with hints.of(["a.scope"]) as news:
        fake.tell(UnitHint("connected"))
        with trio.fail_after(1):
            await news.next()
        assert news.last == {}


async def test_a_wait_for_news_ends_without_any() -> None:
    fake = PlayedManager()
    with Hints(fake).of(["a.scope"]) as news:
        await news.next(0.001)
        assert news.last == {}
