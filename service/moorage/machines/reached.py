"""Counts of the limits that one machine has reached, and how often they are reported. Pure.

What a guest can make happen without end is looked at, and told, less and less often.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

LOOK_SECONDS = 0.02
"""Pause after a look, s. It is doubled for as long as something is reported within it: a limit is often reached a
moment before somebody is killed for it."""

LOOK_SECONDS_MAX = 1.0
"""The longest such pause, s. With page cache a limit of memory is reached all the time, and that is no harm."""

KILL_SECONDS = 1.0
"""Pause after a kill was told, s: those in between are told together."""

LIMIT_SECONDS = 1.0
"""Pause after it was told that a limit was reached, s. It is doubled for as long as that goes on."""

LIMIT_SECONDS_MAX = 64.0
"""The longest such pause, s: a thousand machines that are always at a limit leave the log of events to the others."""

RESOURCES: Final = {"memoryHigh": "memory_high", "memoryMax": "memory_max", "tasksMax": "tasks_max"}
"""Limits, as events call them, and who counts how often they were reached (`moorage.kernel.cgroup.Limits`)."""

KILLERS: Final = {"kernel": "oom_kills", "oomd": "oomd_kills"}
"""The same of those who kill for lack of memory."""


class Pace(msgspec.Struct):
    """Lets through at once what is rare, and what goes on less and less often.

    Attributes:
        first: pause after something was let through, s.
        most: the longest pause, which is reached by doubling, s.
        at: when the next may pass.
        pause: the last one.
    """

    first: float
    most: float
    at: float = -math.inf
    pause: float = 0.0

    def passes(self, present: float) -> bool:
        """Whether something may pass now; then it has."""
        if present < self.at:
            return False
        goes_on = present < self.at + self.pause
        self.pause = min(2 * self.pause, self.most) if goes_on else self.first
        self.at = present + self.pause
        return True


NO_COUNTS: Final[Mapping[str, int]] = MappingProxyType({})
"""What all machines share of which nothing was counted: most have never reached a limit."""

NO_PACES: Final[Mapping[str, Pace]] = MappingProxyType({})
"""The same of what nothing was told."""


class Ooms(msgspec.Struct, frozen=True):
    """Number of times that a memory limit left nothing but to kill.

    Attributes:
        own: the group's own limit.
        below: limits of groups below it.
    """

    own: int
    below: int


NO_OOMS: Final = Ooms(0, 0)
"""Of all machines that are new."""


class Reached(msgspec.Struct, eq=False):
    """A machine whose limits are watched.

    Attributes:
        before: counts when a kill was last told; None where nothing is known of that time.
        below: those of each group below at that time, by path; None where they are not known.
        group: the control group for whose limit processes were last killed; None where that is not known.
        seen: counts when they were last read.
        due: when it is to be looked at; infinity if it is not.
        looks: how often it is looked at.
        tells: how often each count is told.
    """

    before: Ooms | None = None
    below: Mapping[str, int] | None = None
    group: str | None = None
    seen: Mapping[str, int] = NO_COUNTS
    due: float = math.inf
    looks: Pace = msgspec.field(default_factory=lambda: Pace(LOOK_SECONDS, LOOK_SECONDS_MAX))
    tells: Mapping[str, Pace] = NO_PACES

    def pace(self, what: str) -> Pace:
        """Return how often a count is told."""
        if what not in self.tells:
            most = KILL_SECONDS if what in KILLERS else LIMIT_SECONDS_MAX
            pace = Pace(KILL_SECONDS if what in KILLERS else LIMIT_SECONDS, most)
            self.tells = {**self.tells, what: pace}
        return self.tells[what]
