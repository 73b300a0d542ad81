"""Steps taken on trio."""

from __future__ import annotations

from typing import TypeVar

import trio

from moorage.steps.waits import Steps, Wait

T = TypeVar("T")


async def take(steps: Steps[T]) -> T:
    """Take steps, and return their result. Cancellation is raised where the steps wait."""
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
        # Where nothing had to be waited for, others get their turn all the same.
        await trio.lowlevel.cancel_shielded_checkpoint()
        return end.value


async def _perform(wait: Wait) -> bool:
    with trio.CancelScope(deadline=trio.current_time() + wait.seconds, shield=wait.shielded):
        if wait.fd is None:
            await trio.sleep_forever()
        elif wait.writable:
            await trio.lowlevel.wait_writable(wait.fd)
        else:
            await trio.lowlevel.wait_readable(wait.fd)
        return True
    return False
