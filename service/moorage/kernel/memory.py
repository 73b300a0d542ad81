"""Memory of this process, and its return to the system.

The allocator of the C library keeps memory that is freed below the highest block in use. After a long call, or a crowd
of callers, that is most of what they needed, for as long as the service runs.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress

import trio

LOOK_SECONDS = 5.0
"""How long after some work free memory is returned. Whoever needs it again and again is to get it from the
allocator."""

WORK_SECONDS = 0.002
"""CPU time from which on there may be something to return: that of some dozen calls. Who has nothing to do is left
alone. Looking for free memory takes a tenth of that, and returning ten MiB five times as much."""

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Return free memory to the system (malloc_trim(3)). Does nothing without glibc."""
    if _trim is not None:
        _trim(0)


class _Alarm(trio.abc.Instrument):
    """Notes when so much work has been done that there may be something to return.

    Nothing wakes this process for that: it looks when it is about to wait for something else.

    Attributes:
        rung: that has been noted.
    """

    def __init__(self, work: Callable[[], float]) -> None:
        self.rung = trio.Event()
        self._work = work
        self._enough = work() + WORK_SECONDS
        self._token = trio.lowlevel.current_trio_token()

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - that of the base
        """See `trio.abc.Instrument`."""
        if self._work() >= self._enough:
            trio.lowlevel.remove_instrument(self)  # once: it costs something at each turn of the loop
            # An event that is set here would be seen after the wait only.
            self._token.run_sync_soon(self.rung.set)


async def _worked(work: Callable[[], float]) -> None:
    """Return when enough work has been done."""
    alarm = _Alarm(work)
    trio.lowlevel.add_instrument(alarm)
    try:
        await alarm.rung.wait()
    finally:
        with suppress(KeyError):  # it is gone already
            trio.lowlevel.remove_instrument(alarm)


async def keep_small(
    work: Callable[[], float] = time.process_time, give_back: Callable[[], None] = give_back
) -> None:
    """Return free memory to the system from time to time, if there has been anything to do; does not return.

    Args:
        work: returns how much CPU time has been used so far, in seconds.
        give_back: returns what is free.
    """
    while True:
        await _worked(work)
        await trio.sleep(LOOK_SECONDS)
        give_back()
