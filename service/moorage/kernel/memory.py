"""Memory of this process, and its return to the system.

The allocator of the C library keeps memory that is freed below the highest block in use. After a long call, or a crowd
of callers, that is most of what they needed, for as long as the service runs.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

import trio

LOOK_SECONDS = 5.0
"""How often free memory may be returned. Whoever needs it again and again is to get it from the allocator. Where there
was nothing to return, the next look is so long after something has woken this process: a look would wake it, too."""

WORK_SECONDS = 0.002
"""CPU time from which on there may be something to return: that of some dozen calls. Who has nothing to do is left
alone. Looking for free memory takes a tenth of that, and returning ten MiB five times as much."""

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Return free memory to the system (malloc_trim(3)). Does nothing without glibc."""
    if _trim is not None:
        _trim(0)


class _Alarm(trio.abc.Instrument):
    """Notes the next time that the event loop goes on: what it goes on with is known to nobody beforehand.

    Attributes:
        rung: it has.
    """

    def __init__(self) -> None:
        self.rung = trio.Event()

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - that of the base
        """See `trio.abc.Instrument`."""
        trio.lowlevel.remove_instrument(self)  # once: it would cost something at each turn of the loop
        self.rung.set()


async def _woken() -> None:
    """Return when the event loop goes on, for whatever reason."""
    alarm = _Alarm()
    trio.lowlevel.add_instrument(alarm)
    try:
        await alarm.rung.wait()
    finally:
        if not alarm.rung.is_set():
            trio.lowlevel.remove_instrument(alarm)


async def keep_small(
    work: Callable[[], float] = time.process_time, give_back: Callable[[], None] = give_back
) -> None:
    """Return free memory to the system from time to time, if there has been anything to do; does not return.

    Args:
        work: returns how much CPU time has been used so far, in seconds.
        give_back: returns what is free.
    """
    done = work()
    while True:
        await trio.sleep(LOOK_SECONDS)
        if work() >= done + WORK_SECONDS:
            give_back()
            done = work()
        else:
            await _woken()
