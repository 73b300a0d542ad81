"""References to units, over a bus that the test plays."""

import os
import select
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio
import trio.testing

from moorage.dbus.bus import Bus, BusClosed, BusError, CallFailed
from moorage.dbus.message import BusCall
from moorage.pid1 import references
from moorage.pid1.references import BusReferences


class FakeBus:
    """Keeps what clients have references to; may be away, and may refuse.

    Attributes:
        restarting: the manager goes before it has answered: for each call, whether it did what it was told.
    """

    def __init__(self) -> None:
        self.far_ends: list[socket.socket] = []
        self.kept: list[str] = []
        self.calls_made: list[int] = []
        self.missing: set[str] = set()
        self.away = False
        self.restarting: list[bool] = []
        self.closed = False
        self._lost: Callable[[str], None] = lambda _: None
        self._gone = trio.Event()

    async def connect(
        self, _path: str, _signal: object, lost: Callable[[str], None], **_: object
    ) -> "FakeBus":
        if self.away:
            raise BusClosed("no bus", sent=False)
        self.closed, self._lost, self._gone = False, lost, trio.Event()
        self._near, self.far = socket.socketpair()
        self.far_ends.append(self.far)
        self.fileno = self._near.fileno
        return self

    async def run(self) -> None:
        with self._near:
            await self._gone.wait()

    async def call(self, call: BusCall, *, deadline: float) -> tuple[Any, ...]:
        assert (call.member, deadline > trio.current_time()) == ("Hello", True)
        return (":1.1",)

    async def calls(self, calls: Sequence[BusCall], *, deadline: float) -> list[tuple[Any, ...] | BusError]:
        assert deadline > trio.current_time()
        self.calls_made.append(len(calls))
        restarting = bool(self.restarting)
        replies: list[tuple[Any, ...] | BusError] = []
        for call in calls:
            (unit,) = call.body
            if unit in self.missing:
                replies.append(CallFailed("org.freedesktop.systemd1.NoSuchUnit", "no such unit"))
                continue
            told = not self.restarting or self.restarting.pop()
            gone = CallFailed("org.freedesktop.DBus.Error.NoReply", "disconnected")
            replies.append(gone if restarting else ())
            if call.member == "RefUnit" and told:
                self.kept.append(str(unit))  # once more if it has it already
            elif told and unit in self.kept:
                self.kept.remove(str(unit))
            elif told and not restarting:
                replies[-1] = CallFailed("org.freedesktop.systemd1.NotReferenced", "not referenced")
        await trio.lowlevel.checkpoint()
        return replies

    def close(self, reason: str) -> None:
        if not self.closed:
            self.closed = True
            self.kept.clear()
            self._near.close()
            self._lost(reason)
            self._gone.set()


def on_a_clock(
    test: Callable[[pytest.MonkeyPatch], Coroutine[None, None, None]],
) -> Callable[[pytest.MonkeyPatch], None]:
    """Run a test on a clock that jumps when nothing else can happen."""

    def on_clock(monkeypatch: pytest.MonkeyPatch) -> None:
        trio.run(test, monkeypatch, clock=trio.testing.MockClock(autojump_threshold=0))

    return on_clock


@asynccontextmanager
async def holding(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch, store: "FakeStore | None" = None
) -> AsyncGenerator[BusReferences]:
    monkeypatch.setattr(Bus, "connect", bus.connect)
    held = BusReferences("/bus", store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(held.run)
        yield held
        nursery.cancel_scope.cancel()
    for each in bus.far_ends:
        if store is None or each not in store.far:
            each.close()


class FakeStore:
    """Keeps connections for the next instance.

    Attributes:
        found: those of instances before.
        far: the broker's ends of all of them, in the order in which they were stored.
        held: what the present connection held when it was stored.
        deaf: the manager cannot be told.
    """

    def __init__(self, bus: FakeBus, found: int = 0) -> None:
        pairs = [socket.socketpair() for _ in range(found)]
        self.found = [near.detach() for near, _ in pairs]
        self.far = [far for _, far in pairs]
        self.held: list[list[str]] = []
        self.deaf = False
        self._bus = bus
        self._duplicates = [os.dup(descriptor) for descriptor in self.found]

    def put(self, descriptor: int) -> bool:
        if self.deaf:
            return False
        self._duplicates.append(os.dup(descriptor))
        self.far.append(self._bus.far)
        self.held.append(sorted(self._bus.kept))
        return True

    @property
    def open(self) -> list[bool]:
        """Of each whether its duplicates are connected."""
        states = [select.poll() for _ in self.far]
        for state, each in zip(states, self.far, strict=True):
            state.register(each, select.POLLHUP)
        return [not state.poll(0) for state in states]

    def close(self) -> None:
        for each in self._duplicates:
            os.close(each)
        for each in self.far:
            each.close()


@contextmanager
def storing(bus: FakeBus, found: int = 0) -> Generator[FakeStore]:
    store = FakeStore(bus, found)
    yield store
    store.close()


async def test_what_an_instance_before_held_is_let_go_only_once_all_is_held_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bus = FakeBus()
    with storing(bus, 1) as store:
        async with holding(bus, monkeypatch, store) as held:
            await trio.testing.wait_all_tasks_blocked()
            units = [f"{number:03}" for number in range(200)]
            held.hold(units)
            await trio.testing.wait_all_tasks_blocked()
            assert (store.held, store.open) == ([], [True])  # what has ended is still to be looked at
            held.release("000")
            held.succeed()
            await held.freed("000")
            await trio.testing.wait_all_tasks_blocked()
            assert (store.held, store.open) == ([units[1:]], [False, True])
        assert store.open == [False, True]  # it outlives this instance


async def test_what_ended_before_need_not_be_held_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = FakeBus()
    bus.missing = {"gone"}
    with storing(bus, 2) as store:
        async with holding(bus, monkeypatch, store) as held:
            held.hold(["a", "b", "gone"])
            held.release("a")
            held.succeed()
            await trio.testing.wait_all_tasks_blocked()
            assert (store.held, store.open) == ([["b"]], [False, False, True])


async def test_an_instance_that_ends_before_it_has_looked_leaves_all_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bus = FakeBus()
    with storing(bus, 1) as store:
        async with holding(bus, monkeypatch, store) as held:
            held.hold(["a"])
            await trio.testing.wait_all_tasks_blocked()
        assert (store.held, store.open) == ([], [True])


@on_a_clock
async def test_a_connection_that_is_lost_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = FakeBus()
    with storing(bus) as store:
        async with holding(bus, monkeypatch, store) as held:
            held.hold(["a", "b"])
            held.succeed()
            await trio.testing.wait_all_tasks_blocked()
            bus.close("protocol violation")
            held.release("b")
            await trio.testing.wait_all_tasks_blocked()
            assert (store.held, store.open) == ([["a", "b"]], [False])
            await trio.sleep(references.RETRY_SECONDS)
            await trio.testing.wait_all_tasks_blocked()
            assert (store.held, store.open) == ([["a", "b"], ["a"]], [False, True])


@on_a_clock
async def test_where_there_is_no_bus_any_more_no_name_stays_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = FakeBus()
    bus.away = True
    with storing(bus, 1) as store:
        async with holding(bus, monkeypatch, store) as held:
            held.hold(["a"])
            await trio.sleep(references.RETRY_SECONDS * 2)
            assert store.open == [True]
            held.succeed()
            await trio.testing.wait_all_tasks_blocked()
            assert store.open == [False]


@on_a_clock
async def test_a_connection_that_failed_is_tried_again_before_earlier_ones_are_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bus = FakeBus()
    bus.away = True
    with storing(bus, 1) as store:
        async with holding(bus, monkeypatch, store) as held:
            held.hold(["a"])
            await trio.testing.wait_all_tasks_blocked()
            bus.away = False
            held.succeed()
            await trio.testing.wait_all_tasks_blocked()
            assert (store.held, store.open) == ([["a"]], [False, True])


async def test_without_a_bus_earlier_connections_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    with storing(FakeBus(), 1) as store:
        held = BusReferences(None, store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(held.run)
            await trio.testing.wait_all_tasks_blocked()
            assert store.open == [True]
            held.succeed()
            await trio.testing.wait_all_tasks_blocked()
            assert store.open == [False]


@on_a_clock
async def test_a_manager_that_cannot_be_told_is_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = FakeBus()
    with storing(bus, 1) as store:
        store.deaf = True
        async with holding(bus, monkeypatch, store) as held:
            held.hold(["a"])
            held.succeed()
            await trio.testing.wait_all_tasks_blocked()
            assert store.open == [False]  # names are not to wait for it
            store.deaf = False
            await trio.sleep(references.RETRY_SECONDS)
            await trio.testing.wait_all_tasks_blocked()
            assert (store.held, store.open) == ([["a"]], [False, True])


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
    held.succeed()
    await held.run()
    assert not held.holds("a")


@on_a_clock
async def test_many_that_end_are_let_go_together_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = FakeBus()
    async with holding(bus, monkeypatch) as held:
        units = [str(number) for number in range(100)]
        held.hold(units)
        await trio.testing.wait_all_tasks_blocked()
        for unit in units:
            held.release(unit)
            await trio.sleep(references.QUIET_SECONDS / 10)
        assert bus.kept == units[1:]  # the first one did not wait
        bus.calls_made.clear()
        await trio.sleep(references.QUIET_SECONDS)
        assert (bus.kept, bus.calls_made) == ([], [64, 35])


@on_a_clock
async def test_none_lingers_for_long_while_others_go_on_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = FakeBus()
    async with holding(bus, monkeypatch) as held:
        units = [str(number) for number in range(100)]
        held.hold(units)
        await trio.testing.wait_all_tasks_blocked()
        step = references.LINGER_SECONDS / 50
        for unit in units:
            held.release(unit)
            await trio.sleep(step)
        assert len(bus.kept) < 60


@on_a_clock
async def test_what_is_released_at_once_does_not_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = FakeBus()
    async with holding(bus, monkeypatch) as held:
        held.hold(["a", "b", "c"])
        await trio.testing.wait_all_tasks_blocked()
        held.release("a")
        held.release("b")
        held.release("c", at_once=True)
        await trio.testing.wait_all_tasks_blocked()
        assert bus.kept == ["a", "b"]


@on_a_clock
async def test_a_name_that_is_needed_again_is_free_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = FakeBus()
    async with holding(bus, monkeypatch) as held:
        held.hold(["a", "b", "c"])
        await trio.testing.wait_all_tasks_blocked()
        for unit in ("a", "b", "c"):
            held.release(unit)
        begin = trio.current_time()
        await held.freed("b")
        await held.freed("other")
        assert (bus.kept, trio.current_time()) == (["a", "c"], begin)
        held.hold(["b"])
        await held.settled("b")
        assert (bus.kept, trio.current_time()) == (["a", "c", "b"], begin)
        await trio.sleep(1)
        assert bus.kept == ["b"]


@on_a_clock
async def test_what_is_released_while_it_is_taken_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = FakeBus()
    async with holding(bus, monkeypatch) as held:
        await trio.testing.wait_all_tasks_blocked()
        held.hold(["a"])
        while not bus.calls_made:
            await trio.lowlevel.checkpoint()
        held.release("a")
        await trio.sleep(1)
        assert bus.kept == []


@pytest.mark.parametrize("told", [False, True])
def test_what_the_manager_has_not_answered_before_a_restart_is_done_again(
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It keeps its references over daemon-reexec, and counts them."""

    async def changes(monkeypatch: pytest.MonkeyPatch) -> None:
        bus = FakeBus()
        async with holding(bus, monkeypatch) as held:
            held.hold(["a", "b"])
            await trio.testing.wait_all_tasks_blocked()
            bus.restarting = [told, told]
            held.release("a")
            held.hold(["c"])
            await trio.sleep(2)
            assert sorted(bus.kept) == ["b", "c"]
            assert held.holds("c")
            for unit in "bc":
                held.release(unit)
            await trio.sleep(2)
            assert bus.kept == []

    on_a_clock(changes)(monkeypatch)
