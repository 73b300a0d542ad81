"""References to units, over a bus that the test plays."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from moorage.dbus.bus import Bus, BusClosed, BusError, CallFailed
from moorage.dbus.message import BusCall
from moorage.pid1 import references
from moorage.pid1.references import BusReferences


class FakeBus:
    """Keeps what clients have references to; may be away, and may refuse."""

    def __init__(self) -> None:
        self.kept: list[str] = []
        self.calls_made: list[int] = []
        self.missing: set[str] = set()
        self.away = False
        self.closed = False
        self._lost: Callable[[str], None] = lambda _: None
        self._gone = trio.Event()

    async def connect(
        self, _path: str, _signal: object, lost: Callable[[str], None], **_: object
    ) -> "FakeBus":
        if self.away:
            raise BusClosed("no bus", sent=False)
        self.closed, self._lost, self._gone = False, lost, trio.Event()
        return self

    async def run(self) -> None:
        await self._gone.wait()

    async def call(self, call: BusCall, *, deadline: float) -> tuple[Any, ...]:
        assert (call.member, deadline > trio.current_time()) == ("Hello", True)
        return (":1.1",)

    async def calls(self, calls: Sequence[BusCall], *, deadline: float) -> list[tuple[Any, ...] | BusError]:
        assert deadline > trio.current_time()
        self.calls_made.append(len(calls))
        replies: list[tuple[Any, ...] | BusError] = []
        for call in calls:
            (unit,) = call.body
            if unit in self.missing:
                replies.append(CallFailed("org.freedesktop.systemd1.NoSuchUnit", "no such unit"))
                continue
            (self.kept.append if call.member == "RefUnit" else self.kept.remove)(str(unit))
            replies.append(())
        await trio.lowlevel.checkpoint()
        return replies

    def close(self, reason: str) -> None:
        if not self.closed:
            self.closed = True
            self.kept.clear()
            self._lost(reason)
            self._gone.set()


@asynccontextmanager
async def holding(bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[BusReferences]:
    monkeypatch.setattr(Bus, "connect", bus.connect)
    held = BusReferences("/bus")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(held.run)
        yield held
        nursery.cancel_scope.cancel()


async def test_units_are_kept_until_they_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = FakeBus()
    async with holding(bus, monkeypatch) as held:
        await trio.testing.wait_all_tasks_blocked()
        held.hold(["a", "b"])
        await held.settled("b")
        assert bus.kept == ["a", "b"]
        await held.settled("c")
        assert held.holds("a")
        assert not held.holds("c")
        held.release("a")
        held.release("c")
        await trio.testing.wait_all_tasks_blocked()
        assert bus.kept == ["b"]
        assert not held.holds("a")
        held.hold(["a"])  # another one of that name
        await trio.testing.wait_all_tasks_blocked()
        assert bus.kept == ["b", "a"]


async def test_a_unit_that_cannot_be_had_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = FakeBus()
    bus.missing = {"gone"}
    async with holding(bus, monkeypatch) as held:
        await trio.testing.wait_all_tasks_blocked()
        held.hold(["gone", "there"])
        await held.settled("gone")
        assert not held.holds("gone")
        assert (bus.kept, bus.calls_made) == (["there"], [2])


async def test_many_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = FakeBus()
    async with holding(bus, monkeypatch) as held:
        held.hold([str(number) for number in range(1000)])
        await trio.testing.wait_all_tasks_blocked()
        assert len(bus.kept) == 1000
        assert max(bus.calls_made) <= references.CHANGES_MAX


async def test_what_was_held_is_held_again_after_the_bus_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "RETRY_SECONDS", 0.001)
    bus = FakeBus()
    bus.away = True

    async def until(condition: Callable[[], bool]) -> None:
        with trio.fail_after(10):
            while not condition():  # noqa: ASYNC110
                await trio.sleep(0.001)

    async with holding(bus, monkeypatch) as held:
        held.hold(["a", "b"])
        await trio.sleep(0.01)
        assert not held.holds("a")
        bus.away = False
        await until(lambda: bus.kept == ["a", "b"] and held.holds("a"))
        bus.away = True
        bus.close("restarted")
        assert not held.holds("a")
        held.release("b")
        bus.away = False
        await until(lambda: bus.kept == ["a"])


async def test_without_a_bus_nothing_is_held() -> None:
    held = BusReferences(None)
    held.hold(["a"])
    await held.run()
    assert not held.holds("a")
