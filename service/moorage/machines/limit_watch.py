"""Limits that were reached, and who was killed for it: noticed while a machine lives, and told before it is gone.

The kernel counts (:class:`moorage.kernel.cgroup.Limits`), inotify says that a count has changed, and what is told is
how much of it has not been told yet. So nothing is lost however late, or seldom, somebody looks; nothing is told
twice, also by the next instance, which knows from the log what was told; and nothing runs while nothing happens.
"""

from __future__ import annotations

import heapq
import logging
import math
from itertools import count

import trio

from moorage.kernel.cgroup import Limits
from moorage.kernel.system import System
from moorage.machines.events import Kind
from moorage.machines.followers import Follower, Followers
from moorage.machines.machine import Machine
from moorage.machines.model import Verdict
from moorage.machines.reached import KILLERS, NO_COUNTS, NO_OOMS, RESOURCES, Ooms, Reached
from moorage.machines.registry import Registry
from moorage.machines.texts import is_path

BEGIN_SECONDS = 0.05
"""When the limits of a machine that is new are first looked at, s: its caller has the reply by then. What happened
before is counted all the same."""

RETRY_SECONDS = 60.0
"""Pause until it is tried again to watch a machine for which no watch, or no file descriptor, was left, s."""

GROUPS_MAX = 64
"""Control groups read to find the one below a machine's whose limit it was: a millisecond, at most once a second."""

SLICES_MAX = 1024
"""Slices of which it is remembered how often their limits had somebody killed."""

TURN = 16
"""Machines looked at before others get their turn."""

_log = logging.getLogger(__name__)


class LimitWatch(Follower):
    """Watches the limits of the machines of the registry."""

    def __init__(self, registry: Registry, followers: Followers, system: System) -> None:
        """Watch nothing yet.

        Args:
            registry: of machines.
            followers: are told what was reached.
            system: the kernel's.

        Raises:
            OSError: no inotify instance is left (fs.inotify.max_user_instances).
        """
        self._registry = registry
        self._followers = followers
        self._hierarchy = system.hierarchy
        self._slices: dict[str, int] = {}
        self._zeros: dict[str, int] = {}
        # A heap; an entry is stale if the machine is due otherwise.
        self._due: list[tuple[float, int, Machine]] = []
        self._numbers = count()
        self._wake = trio.Event()
        self._watch = system.hierarchy.watch_limits(self._changed, self._missed)

    def close(self) -> None:
        """Stop watching everything."""
        self._watch.close()

    async def run(self) -> None:
        """Look at machines when they are due, for ever."""
        while True:
            with trio.move_on_at(self._due[0][0] if self._due else math.inf):
                await self._wake.wait()
            self._wake = trio.Event()
            looked = 0
            while self._due and self._due[0][0] <= trio.current_time():
                at, _, machine = heapq.heappop(self._due)
                if machine.reached is not None and machine.reached.due == at:
                    machine.reached.due = math.inf
                    self._look(machine, machine.reached)
                    looked += 1
                    if looked % TURN == 0:
                        await trio.lowlevel.checkpoint()

    def added(self, machine: Machine) -> None:
        """Watch a machine, a moment later."""
        if machine.record.placement.shared:
            return  # the counts are those of others as well
        fresh = machine.told is not None and machine.told.counts == {}
        machine.reached = Reached(before=NO_OOMS, below=NO_COUNTS) if fresh else Reached()
        self._look_later(machine, machine.reached, trio.current_time() + BEGIN_SECONDS)

    def ended(self, machine: Machine) -> None:
        """Watch a machine no more."""
        if machine.reached is not None:
            machine.reached = None
            self._watch.remove(machine.record.control_group)

    def read_last(self, machine: Machine) -> bool:
        """Report the remaining counts of a machine that ends, or has ended.

        Returns:
            Whether its group was there, and systemd-oomd has not set about it: how many it kills it notes later.
        """
        if machine.reached is None:
            return False
        try:
            found = self._read(machine)
        except OSError:  # no file descriptor is left: what others know is told by `conclude`
            return False
        self._tell(machine, machine.reached, found, last=True)
        return found.oomd_ooms == 0

    def conclude(self, machine: Machine, verdict: Verdict, *, kernel: bool, oomd: bool) -> None:
        """Report what only the verdict knows: the service manager may remove a group before it has been read.

        Args:
            machine: that has ended.
            verdict: the last one.
            kernel: the kernel has killed processes of it for lack of memory.
            oomd: systemd-oomd has.
        """
        counts = None if machine.told is None else machine.told.counts
        if counts is None:
            return
        account = verdict.accounting
        for by, is_known, total in (
            ("kernel", kernel, account.oom_kills),
            ("oomd", oomd, account.managed_oom_kills),
        ):
            missing = (total or 0) - counts.get(by, 0)
            if missing > 0:
                self._followers.happened(machine, Kind.oom_kill, {"by": by, "count": missing})
            elif is_known and by not in counts:
                self._followers.happened(machine, Kind.oom_kill, {"by": by})

    def _changed(self, control_group: str) -> None:
        machine = self._registry.by_control_group(control_group)
        if machine is None or (reached := machine.reached) is None or reached.due < math.inf:
            return
        if reached.looks.at <= trio.current_time():
            self._look(machine, reached)
        else:
            self._look_later(machine, reached, reached.looks.at)

    def _missed(self) -> None:
        for machine in self._registry:
            if machine.reached is not None:
                self._look_later(machine, machine.reached, trio.current_time())

    def _look_later(self, machine: Machine, reached: Reached, at: float) -> None:
        if at < reached.due:
            reached.due = at
            heapq.heappush(self._due, (at, next(self._numbers), machine))
            self._wake.set()

    def _look(self, machine: Machine, reached: Reached) -> None:
        """Watch a machine again, and tell what is to be told by now."""
        reached.looks.passes(trio.current_time())
        try:
            self._watch.add(machine.record.control_group)
            found = self._read(machine)
            self._remember_slices(machine.record.control_group)
        except OSError as error:
            _log.warning("Failed to watch the limits of machine %s, trying again: %s", machine.name, error)
            self._look_later(machine, reached, trio.current_time() + RETRY_SECONDS)
            return
        self._tell(machine, reached, found, last=False)

    def _read(self, machine: Machine) -> Limits:
        """Read the counts of a machine; none where its control group is gone, or is another one by now.

        Raises:
            OSError: no file descriptor is left, or no memory.
        """
        placement = machine.record.placement
        found = self._hierarchy.limits(placement.control_group)
        same = self._hierarchy.identity(placement.control_group) == placement.control_group_id
        return found if same else Limits()

    def _tell(self, machine: Machine, reached: Reached, found: Limits, *, last: bool) -> None:
        """Report how much each count has grown, unless that is to wait; last: it cannot."""
        told = machine.told
        if told is None:
            return
        # Of a group that is gone by now what was seen last is still to be told.
        totals = reached.seen = self._shared(_totals(found)) or reached.seen
        reached.before = reached.before or _ooms(found)
        if told.counts is None:
            told.counts = dict(totals) or None
            return
        for what, total in totals.items():
            grown = total - told.counts.get(what, 0)
            if grown <= 0:
                continue
            pace = reached.pace(what)
            if not (last or pace.passes(trio.current_time())):
                self._look_later(machine, reached, pace.at)
            elif what in RESOURCES:
                self._followers.happened(machine, Kind.limit_reached, {"resource": what, "count": grown})
            else:
                group = self._whose_limit(machine, reached, found) if what == "kernel" else None
                self._followers.happened(
                    machine, Kind.oom_kill, {"by": what, "count": grown, "controlGroup": group}
                )
        if last and found.oomd_ooms and "oomd" not in told.counts:
            # The group may go before there is a note of how many it were.
            self._followers.happened(machine, Kind.oom_kill, {"by": "oomd"})

    def _shared(self, totals: dict[str, int]) -> dict[str, int]:
        """Return one object for all machines that have never reached a limit: most of them."""
        if totals and not any(totals.values()):
            if totals != self._zeros:
                self._zeros = totals
            return self._zeros
        return totals

    # Whose limit it was

    def _whose_limit(self, machine: Machine, reached: Reached, found: Limits) -> str | None:
        """Take note of the control group for whose limit processes were killed since that was last told.

        None where it was more than one, where it is not known, and where it was no group's: the host had no memory.
        """
        before, present = reached.before, _ooms(found)
        reached.before = present
        try:
            reached.group = self._find(machine, reached, before, present) if before and present else None
        except OSError:  # no file descriptor is left
            reached.group = None
        return reached.group

    def _find(self, machine: Machine, reached: Reached, before: Ooms, present: Ooms) -> str | None:
        path, own, below = (
            machine.record.control_group,
            present.own > before.own,
            present.below - before.below,
        )
        if below:
            group = self._find_below(path, reached, below)
            return None if own else group
        return path if own else self._find_above(path)

    def _find_below(self, control_group: str, reached: Reached, ooms: int) -> str | None:
        """Find the group whose limit it was each time; of one that is gone by now only the number is left."""
        known = reached.below
        found = reached.below = self._hierarchy.ooms_below(control_group, GROUPS_MAX)
        if known is None or found is None:
            return None
        grown = [path for path, times in found.items() if times - known.get(path, 0) == ooms]
        return grown[0] if len(grown) == 1 and is_path(grown[0]) else None

    def _find_above(self, control_group: str) -> str | None:
        grown: list[str] = []
        for path in _above(control_group):
            times, known = self._hierarchy.ooms(path), self._slices.get(path)
            if times is not None:
                self._slices[path] = times
                if known is not None and times > known:
                    grown.append(path)
        return grown[0] if len(grown) == 1 else None

    def _remember_slices(self, control_group: str) -> None:
        for path in _above(control_group):
            if path not in self._slices and (times := self._hierarchy.ooms(path)) is not None:
                if len(self._slices) >= SLICES_MAX:
                    self._slices.clear()
                self._slices[path] = times


def _totals(found: Limits) -> dict[str, int]:
    values = {what: getattr(found, field) for what, field in (RESOURCES | KILLERS).items()}
    return {what: value for what, value in values.items() if value is not None}


def _ooms(found: Limits) -> Ooms | None:
    return None if found.oom is None or found.oom_below is None else Ooms(found.oom, found.oom_below)


def _above(control_group: str) -> list[str]:
    """Return the groups above one, the nearest first, without the root, which has no limits."""
    parts = control_group.strip("/").split("/")
    return ["/" + "/".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]
