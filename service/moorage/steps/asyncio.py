"""Steps taken on asyncio."""

from __future__ import annotations

import asyncio
import math
from typing import TypeVar

from moorage.steps.waits import Steps, Wait

T = TypeVar("T")


async def take(steps: Steps[T]) -> T:
    """Take steps, and return their result. Cancellation is raised where the steps wait.

    Each cancellation is raised once, so that cleaning up after one can wait; another one ends that, too.
    """
    try:
        wait = next(steps)
        while True:
            try:
                ready = await _perform(wait)
            except BaseException as error:  # noqa: BLE001  # passed on
                wait = steps.throw(error)
            else:
                wait = steps.send(ready)
    except StopIteration as end:
        return end.value


async def _perform(wait: Wait) -> bool:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    seconds = None if wait.until == math.inf else wait.seconds
    if wait.fd is None:
        await asyncio.wait((ready,), timeout=seconds)
        return False
    watch, forget = (
        (loop.add_writer, loop.remove_writer) if wait.writable else (loop.add_reader, loop.remove_reader)
    )
    watch(wait.fd, _wake, ready)
    try:
        await asyncio.wait((ready,), timeout=seconds)
    finally:
        forget(wait.fd)
    return ready.done()


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():  # it is called again if it is ready in two turns of the loop
        ready.set_result(None)
