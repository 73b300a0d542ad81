"""Threads for what may wait: the disk, the journal, the close(2) of a file of somebody else's."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def in_thread(
    function: Callable[[], T],
    *,
    limiter: trio.CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
) -> T:
    """Run a function in a thread, as :func:`trio.to_thread.run_sync` does.

    Raises:
        OSError: no thread can be started (EAGAIN): there is no memory, or a limit of tasks is reached (pids.max;
            clone(2)). The function was not called.
    """
    begun = False

    def run() -> T:
        nonlocal begun
        begun = True
        return function()

    try:
        return await trio.to_thread.run_sync(run, limiter=limiter, abandon_on_cancel=abandon_on_cancel)
    except RuntimeError as error:
        if begun:
            raise
        # CPython tells it apart from other errors by its text only.
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
