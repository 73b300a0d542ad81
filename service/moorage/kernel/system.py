"""What the core asks of the kernel, as one value: each part of it can be replaced in a test."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from moorage.kernel import cgroup
from moorage.kernel.cgroup import Hierarchy, Watch
from moorage.kernel.cgroup_watch import LIMITS, STATE, InotifyWatch
from moorage.kernel.clock import Clock, SystemClock
from moorage.kernel.poller import Readiness
from moorage.kernel.processes import PidfdProcesses, Processes
from moorage.kernel.threads import in_thread


class Cgroupfs:
    """`Hierarchy` where systemd mounts it.

    Args:
        readiness: calls back when there are events.
    """

    events = staticmethod(cgroup.events)
    attribute = staticmethod(cgroup.attribute)
    identity = staticmethod(cgroup.identity)
    controllers = staticmethod(cgroup.controllers)
    usage = staticmethod(cgroup.usage)
    processes = staticmethod(cgroup.processes)
    limits = staticmethod(cgroup.limits)
    ooms = staticmethod(cgroup.ooms)
    ooms_below = staticmethod(cgroup.ooms_below)

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    async def find(self, pattern: str) -> list[str]:
        """See `Hierarchy`."""
        return await in_thread(partial(cgroup.find, pattern))

    def watch(self, changed: Callable[[str], None], overflow: Callable[[], None]) -> Watch:
        """See `Hierarchy`."""
        return InotifyWatch(self._readiness, changed, overflow, STATE)

    def watch_limits(self, reached: Callable[[str], None], overflow: Callable[[], None]) -> Watch:
        """See `Hierarchy`."""
        return InotifyWatch(self._readiness, reached, overflow, LIMITS)


class System(NamedTuple):
    """All that the core asks of the kernel.

    Attributes:
        hierarchy: control groups.
        processes: processes.
        clock: time of day, and since boot.
    """

    hierarchy: Hierarchy
    processes: Processes
    clock: Clock


def system(readiness: Readiness) -> System:
    """Return this host's.

    Args:
        readiness: watches for what the kernel reports; its `run` calls back.
    """
    return System(Cgroupfs(readiness), PidfdProcesses(readiness), SystemClock())
