"""Reading the configuration again: what the service manager hears, and what happens to files that never come."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence

import pytest
import trio
import trio.testing

from moorage.activation import Notifier
from moorage.configuration.current import Configuration
from moorage.configuration.reloading import READ_SECONDS, reload, reload_at_hangup
from moorage.configuration.settings import Loaded, Problem, Settings


class Heard(Notifier):
    """Keeps what the service manager would be told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, ...]] = []

    def notify(self, *assignments: str, descriptors: Sequence[int] = ()) -> bool:
        assert not descriptors
        self.told.append(assignments)
        return True


def reading(*settings: Settings) -> Callable[[], Loaded]:
    """A function that returns one after the other, and then the last one again."""
    left = list(settings)
    return lambda: Loaded(left.pop(0) if len(left) > 1 else left[0], {}, ())


async def test_the_manager_is_told_when_it_begins_and_when_it_is_done() -> None:
    configuration = Configuration(reading(Settings(), Settings(machines_max=5)))
    heard, in_force = Heard(), list[int]()
    configuration.follow(lambda settings: in_force.append(len(heard.told) * 100_000 + settings.machines_max))
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    async with trio.open_nursery() as nursery:
        await nursery.start(reload_at_hangup, configuration, heard)
        os.kill(os.getpid(), signal.SIGHUP)
        while len(heard.told) < 2:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    (reloading, when), ready = heard.told
    assert (reloading, ready) == ("RELOADING=1", ("READY=1",))
    name, _, usec = when.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(usec) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert in_force == [16_384, 100_005], "in between"


async def test_many_signals_leave_the_last_word() -> None:
    configuration = Configuration(
        reading(Settings(), *(Settings(machines_max=number) for number in range(1, 9)))
    )
    heard = Heard()
    async with trio.open_nursery() as nursery:
        await nursery.start(reload_at_hangup, configuration, heard)
        for _ in range(8):
            os.kill(os.getpid(), signal.SIGHUP)
            count = len(heard.told)
            while len(heard.told) < count + 2:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert configuration.settings.machines_max == 8
    assert len(heard.told) == 16


def test_files_that_never_come_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    come, read = threading.Event(), 0

    def load() -> Loaded:
        nonlocal read
        read += 1
        if 1 < read < 3:
            come.wait()
        return Loaded(Settings(machines_max=read), {}, ())

    configuration = Configuration(load)

    clock = trio.testing.MockClock(rate=READ_SECONDS * 20)

    async def main() -> None:
        readers = trio.CapacityLimiter(1)
        await reload(configuration, readers)
        assert configuration.settings.machines_max == 1
        # The next one waits for the reader that hangs, and not for ever either.
        await reload(configuration, readers)
        assert read == 2
        come.set()
        clock.rate = 0.0  # from here on it is in time, however long it takes
        while readers.borrowed_tokens:
            await trio.lowlevel.checkpoint()
        await reload(configuration, readers)
        assert configuration.settings.machines_max == 3

    trio.run(main, clock=clock)
    assert sum("what is in force stays so" in record.message for record in caplog.records) == 2


async def test_problems_are_logged_by_how_bad_they_are(caplog: pytest.LogCaptureFixture) -> None:
    problems = (Problem("a:1", "bad", severe=True), Problem("a:2", "odd", severe=False))
    configuration = Configuration(lambda: Loaded(Settings(), {}, problems))
    caplog.set_level(logging.INFO)
    await reload(configuration, trio.CapacityLimiter(1))
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.ERROR, "a:1: bad"),
        (logging.WARNING, "a:2: odd"),
        (logging.INFO, "Read the configuration again."),
    ]


async def test_without_a_thread_nothing_changes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(*_: object, **options: object) -> None:
        raise RuntimeError("can't start new thread")

    configuration = Configuration(lambda: Loaded(Settings(machines_max=7), {}, ()))
    monkeypatch.setattr(trio.to_thread, "run_sync", refuse)
    await reload(configuration, trio.CapacityLimiter(1))
    assert ["what is in force stays so" in record.message for record in caplog.records] == [True]
