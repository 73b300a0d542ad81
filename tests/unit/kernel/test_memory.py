"""When memory is returned to the system."""

from collections.abc import Callable, Coroutine

import pytest
import trio
from trio.testing import MockClock

from moorage.kernel import memory
from moorage.kernel.memory import LOOK_SECONDS, WORK_SECONDS, give_back, keep_small

MIB = 1024 * 1024


class Process:
    """A process that works now and then."""

    def __init__(self) -> None:
        self.worked = 9.0
        self.returned = 0

    def work(self) -> float:
        return self.worked

    def give_back(self) -> None:
        self.worked += WORK_SECONDS  # what that takes does not count
        self.returned += 1


def on_a_clock(main: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    """Run a test on a clock that jumps to the next deadline."""

    def run() -> None:
        trio.run(main, clock=MockClock(autojump_threshold=0))

    return run


@on_a_clock
async def test_memory_is_returned_where_there_was_work() -> None:
    process = Process()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_small, process.work, process.give_back)
        await trio.sleep(2.5 * LOOK_SECONDS)
        assert process.returned == 0
        for number in range(1, 4):
            process.worked += WORK_SECONDS
            await trio.sleep(1.1 * LOOK_SECONDS)
            assert process.returned == number
        await trio.sleep(3 * LOOK_SECONDS)
        assert process.returned == 3
        process.worked += 0.6 * WORK_SECONDS
        await trio.sleep(1.1 * LOOK_SECONDS)
        assert process.returned == 3
        process.worked += 0.6 * WORK_SECONDS  # little by little
        await trio.sleep(1.1 * LOOK_SECONDS)
        assert process.returned == 4
        nursery.cancel_scope.cancel()


class Waits(trio.abc.Instrument):
    """Tells when the event loop waits for something else than a clock."""

    def __init__(self) -> None:
        self.endless = trio.Event()
        self.turns = 0
        self._token = trio.lowlevel.current_trio_token()

    def before_io_wait(self, timeout: float) -> None:
        self.turns += 1
        if timeout > 1.0 and not self.endless.is_set():
            self._token.run_sync_soon(self.endless.set, idempotent=True)


async def test_who_has_nothing_to_do_is_not_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LOOK_SECONDS", 0.01)
    process, returned = Process(), trio.Event()

    def give_back() -> None:
        process.give_back()
        returned.set()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            waits = Waits()
            trio.lowlevel.add_instrument(waits)
            nursery.start_soon(keep_small, process.work, give_back)
            await waits.endless.wait()
            process.worked += WORK_SECONDS  # by what has woken it
            await returned.wait()
            waits.endless = trio.Event()
            await waits.endless.wait()
            assert process.returned == 1
            process.worked += WORK_SECONDS / 2  # as by one who only feeds a watchdog
            waits.turns = 0
            await trio.sleep(0.05)
            assert waits.turns == 1  # that sleep
            trio.lowlevel.remove_instrument(waits)
            nursery.cancel_scope.cancel()


def resident() -> int:
    """Memory of this process, bytes (proc_pid_statm(5))."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def test_what_is_free_below_something_in_use_is_returned() -> None:
    blocks = [bytes(64 * 1024 - 100 + number % 2) + b"x" for number in range(512)]
    filled, pinned = resident(), blocks[-1]
    blocks.clear()
    give_back()
    assert resident() < filled - 16 * MIB
    assert pinned
