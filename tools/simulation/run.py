"""One run: a plan on a world, from its beginning to the last trace of it."""

from __future__ import annotations

import logging
import os
import signal
import traceback
from collections.abc import Sequence
from importlib import import_module
from random import Random
from typing import Any, Final, cast

import trio
import trio.testing

from moorage.kernel.process import Exit
from simulation import invariants
from simulation.clients import Clients
from simulation.plan import Step
from simulation.readers import look_at_stories
from simulation.world import Threads, World, temporary

QUIET_SECONDS: Final = 700.0
"""After the last step: longer than any deadline of anything, one after the other."""

OVER_SECONDS: Final = 800.0
"""After the last process: until verdicts are old (VERDICT_KEEP_USEC)."""

PROCESSOR_SECONDS: Final = 8.0
"""Processor time of one run: some hundred times what most take."""


class Endless(BaseException):
    """A run takes too long."""


def _give_up(*_: object) -> None:
    raise Endless


class Noted(logging.Handler):
    """Takes errors that are logged for faults."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.DEBUG)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        text = record.getMessage()
        self._world.note(f"{record.levelname.lower()}: {text}")
        if record.levelno >= logging.ERROR:
            self._world.wrong("log", text)


async def _run(world: World, steps: Sequence[Step]) -> None:
    world.began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.kernel.run)
        nursery.start_soon(world.pid1.run)
        nursery.start_soon(world.supervise)
        await world.up.wait()
        assert world.instance is not None
        idle = _tasks(world)
        clients = Clients(world, nursery)
        world.read(nursery)
        for step in steps:
            await trio.sleep_until(world.began + step.at)
            world.note(str(step))
            await clients.do(step)
        await trio.sleep(QUIET_SECONDS)
        instance = await _instance(world)
        invariants.look_at_the_living(world, instance)
        invariants.look_at_strangers(world)
        invariants.look_at_changes(world)
        for unit in list(world.strangers):
            world.end_stranger(unit)
        for process in list(world.kernel.processes.values()):
            world.kernel.freeze(process.group.path, frozen=False)
            if process in world.leaders.values() or "machine" in process.group.path:
                world.kernel.end(process, Exit(status=0))
        for lease in world.leases.values():
            lease.set()
        await trio.sleep(OVER_SECONDS)
        instance = await _instance(world)
        invariants.look_at_the_end(world, instance, max(0, _tasks(world) - idle))
        look_at_stories(world)
        instance.end()
        await trio.sleep(10)
        nursery.cancel_scope.cancel()


async def _instance(world: World) -> Any:
    await world.up.wait()
    return world.instance


def _tasks(world: World) -> int:
    assert world.instance is not None
    assert world.instance.nursery is not None
    return _below(world.instance.nursery)


def _below(nursery: trio.Nursery) -> int:
    return sum(1 + sum(_below(child) for child in task.child_nurseries) for task in nursery.child_tasks)


def run(seed: int, steps: Sequence[Step], *, verbose: bool = False) -> World:
    """Run a plan; return what was found."""
    # What trio has for hypothesis: tasks of one turn run in an order that is drawn.
    scheduler: Any = import_module("trio._core._run")
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # noqa: SLF001
    scheduler._r.seed(seed)  # noqa: SLF001
    threads = trio.to_thread
    log = logging.getLogger("moorage")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    with temporary() as directory:
        world = World(seed, os.path.join(directory, "moored"))
        world.notes = [] if verbose else None
        handler = Noted(world)
        log.addHandler(handler)
        cast("Any", trio).to_thread = Threads(Random(seed))
        before = signal.signal(signal.SIGVTALRM, _give_up)
        signal.setitimer(signal.ITIMER_VIRTUAL, PROCESSOR_SECONDS)
        try:
            trio.run(_run, world, steps, clock=trio.testing.MockClock(autojump_threshold=0))
        except trio.TrioInternalError as error:
            if not isinstance(error.__cause__, Endless):
                raise
            world.wrong("endless", "the run does not come to an end")
            world.crash = "".join(traceback.format_exception(error.__cause__))
        except BaseExceptionGroup as group:
            for error in _leaves(group):
                if isinstance(error, KeyboardInterrupt):
                    raise error from None
                if isinstance(error, Endless):
                    world.wrong("endless", "the run does not come to an end")
                    world.crash = "".join(traceback.format_exception(error))
                else:
                    world.error(error)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)
            cast("Any", trio).to_thread = threads
            log.removeHandler(handler)
    return world


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    group = cast("BaseExceptionGroup[BaseException]", error)
    return [leaf for each in group.exceptions for leaf in _leaves(each)]
