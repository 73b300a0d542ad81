"""The time of day and the time since boot.

What waits does so by trio's clock; these are for what is written down and compared later.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks, both in µs, as records have them."""

    def realtime(self) -> int:
        """Return the time since the epoch, µs."""
        ...

    def monotonic(self) -> int:
        """Return the time since boot, µs, which suspended time does not count towards (CLOCK_MONOTONIC)."""
        ...


class SystemClock:
    """The clocks of this host."""

    def realtime(self) -> int:
        """See `Clock`."""
        return time.time_ns() // 1000

    def monotonic(self) -> int:
        """See `Clock`."""
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
