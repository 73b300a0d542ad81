"""Which machines there are, found by everything that names one. Decides, and never waits."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import trio

from moorage.kernel.process import ProcessId
from moorage.machines.errors import Full, LeaderTaken, MachineBusy, MachineGone, NameTaken
from moorage.machines.machine import Machine
from moorage.machines.model import Phase

MACHINES_MAX = 16384
"""Machines in all. Three times what one instance is built for (5,000); bounds memory and the cost of a restart."""

VERDICTS_MAX = 1024
"""Machines that are gone but whose verdict is kept: enough for everything that one launcher lost at once."""

MACHINES_PER_UID_MAX = 512
"""Machines of one uid without rights, so that a user who may register machines at all does not take all the names and
the memory: more than the connections that one user may have (128) can keep busy."""

VERDICTS_PER_UID_MAX = 128
"""Verdicts of such a user that are kept, so that they do not push out those of others."""

VERDICT_KEEP_USEC = 10 * 60 * 1_000_000
"""For how long a verdict is kept, µs: a launcher that restarts after a crash comes back within minutes."""


class Bounds(msgspec.Struct, frozen=True):
    """Limits for the number of machines.

    Attributes:
        machines: in all.
        machines_per_uid: of one uid without rights.
        verdicts: that are kept.
        verdicts_per_uid: of such a uid.
        verdict_keep_usec: for how long, µs.
    """

    machines: int = MACHINES_MAX
    machines_per_uid: int = MACHINES_PER_UID_MAX
    verdicts: int = VERDICTS_MAX
    verdicts_per_uid: int = VERDICTS_PER_UID_MAX
    verdict_keep_usec: int = VERDICT_KEEP_USEC


class Claim:
    """A name and a leader, held while a machine is being registered.

    Attributes:
        name: of the machine.
        leader: of the machine.
        registrant: uid of its caller.
        ended: set when the registration has ended, well or not.
    """

    def __init__(self, name: str, leader: ProcessId, registrant: int) -> None:
        self.name = name
        self.leader = leader
        self.registrant = registrant
        self.ended = trio.Event()


class Registry:
    """The machines, and the claims of those that are being registered.

    Args:
        trusted: uids to which only the limits in all apply.
        bounds: how many there may be.

    Attributes:
        bounds: how many there may be from now on; of what there is already, nothing goes because of them but verdicts.
        shared: number of machines that only their leaders tell: others live in their control groups.
    """

    def __init__(self, trusted: frozenset[int] = frozenset({0}), bounds: Bounds = Bounds()) -> None:  # noqa: B008
        self._trusted = trusted
        self.bounds = bounds
        self.shared = 0
        self._by_name: dict[str, Machine] = {}
        self._by_unit: dict[str, Machine] = {}  # those that are the whole of their unit
        self._by_group: dict[str, Machine] = {}
        self._by_leader: dict[ProcessId, Machine] = {}
        self._by_invocation: dict[str, Machine] = {}
        self._claims: dict[str, Claim] = {}
        self._claimed_leaders: dict[ProcessId, str] = {}
        self._verdicts: dict[str, Machine] = {}  # oldest first
        self._snapshot: tuple[Machine, ...] | None = ()
        self._left: dict[str, Machine] = {}  # forgotten, but not their units

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Machine]:
        return iter(self._by_name.values())

    def snapshot(self) -> tuple[Machine, ...]:
        """Return the machines that there are now; the same tuple until that changes, however many ask for it."""
        if self._snapshot is None:
            self._snapshot = tuple(self._by_name.values())
        return self._snapshot

    @property
    def claims(self) -> int:
        """Number of machines being registered."""
        return len(self._claims)

    def claim(self, name: str) -> Claim | None:
        """Return the claim to a name, while a machine of it is being registered."""
        return self._claims.get(name)

    def begin(self, name: str, leader: ProcessId, registrant: int = 0) -> Claim:
        """Claim a name and a leader.

        Args:
            name: of the machine.
            leader: of the machine.
            registrant: uid of its caller.

        Raises:
            NameTaken, LeaderTaken: by another machine or another claim.
            Full: too many machines.
        """
        if name in self._by_name or name in self._claims:
            found = self._by_name.get(name)
            raise NameTaken(name, None if found is None else found.record.placement)
        if (holder := self._by_leader.get(leader)) is not None:
            raise LeaderTaken(holder.name, holder.record.placement)
        if (other := self._claimed_leaders.get(leader)) is not None:
            raise LeaderTaken(other, None)
        if len(self._by_name) + len(self._claims) >= self.bounds.machines:
            raise Full
        if registrant not in self._trusted and self._count(registrant) >= self.bounds.machines_per_uid:
            raise Full
        claim = Claim(name, leader, registrant)
        self._claims[name] = claim
        self._claimed_leaders[leader] = name
        return claim

    def _count(self, registrant: int) -> int:
        held = (machine.record for machine in (*self._by_name.values(), *self._left.values()))
        uids = [record.registrant for record in held] + [claim.registrant for claim in self._claims.values()]
        return uids.count(registrant)

    def leave(self, machine: Machine) -> bool:
        """Go on counting a machine that is forgotten for as long as its unit is there, and holds its name.

        Returns:
            Whether it counts: only users who have a limit have it exceeded, and only units that were made for them.
        """
        counts = machine.record.allocated and machine.record.registrant not in self._trusted
        if counts:
            self._left[machine.unit] = machine
        return counts

    @property
    def left(self) -> list[Machine]:
        """The machines that were forgotten, and whose units are not known to be gone."""
        return list(self._left.values())

    def vacate(self, unit: str) -> Machine | None:
        """Take note that a unit is gone; return the machine that was forgotten with it."""
        return self._left.pop(unit, None)

    def abandon(self, claim: Claim) -> None:
        """Give a claim back; nothing happens if that is done."""
        if self._claims.get(claim.name) is claim:
            del self._claims[claim.name], self._claimed_leaders[claim.leader]
        claim.ended.set()

    def commit(self, claim: Claim, machine: Machine) -> None:
        """Turn a claim into a machine."""
        self.abandon(claim)
        self.add(machine)

    def add(self, machine: Machine) -> None:
        """Enter a machine that needed no claim: one that was found again after a restart."""
        self._verdicts.pop(machine.name, None)
        self._by_name[machine.name] = machine
        self._snapshot = None
        record = machine.record
        if record.placement.shared:
            self.shared += 1
        else:
            self._by_group[record.control_group] = machine
        if record.placement.is_whole:
            self._by_unit[record.unit] = machine
            self._by_invocation[record.invocation_id] = machine
        if record.leader is not None:
            self._by_leader[record.leader] = machine

    def remove(self, machine: Machine) -> None:
        """Take a machine out; nothing happens if it is out already."""
        if self._by_name.get(machine.name) is not machine:
            return
        del self._by_name[machine.name]
        self._snapshot = None
        self.shared -= machine.record.placement.shared
        for index, key in (
            (self._by_group, machine.record.control_group),
            (self._by_unit, machine.record.unit),
            (self._by_invocation, machine.record.invocation_id),
            (self._by_leader, machine.record.leader),
        ):
            if index.get(key) is machine:  # pyright: ignore[reportArgumentType]
                del index[key]  # pyright: ignore[reportArgumentType]

    def retire(self, machine: Machine) -> list[Machine]:
        """Take out a machine that has its verdict, and keep it for a while.

        Returns:
            Those whose verdict is dropped to make room.
        """
        self.remove(machine)
        self._verdicts.pop(machine.name, None)
        self._verdicts[machine.name] = machine
        dropped = [
            self._verdicts.pop(next(iter(self._verdicts)))
            for _ in range(len(self._verdicts) - self.bounds.verdicts)
        ]
        registrant = machine.record.registrant
        if registrant not in self._trusted:
            own = [each for each in self._verdicts.values() if each.record.registrant == registrant]
            excess = max(0, len(own) - self.bounds.verdicts_per_uid)
            dropped += [self._verdicts.pop(each.name) for each in own[:excess]]
        return dropped

    def expire(self, now_monotonic: int) -> list[Machine]:
        """Drop the verdicts that have been kept long enough, and return their machines.

        Args:
            now_monotonic: µs since boot.
        """
        old = [
            machine
            for machine in self._verdicts.values()
            if machine.record.verdict is not None
            and machine.record.verdict.exited_at.monotonic + self.bounds.verdict_keep_usec <= now_monotonic
        ]
        for machine in old:
            del self._verdicts[machine.name]
        return old

    def drop_verdict(self, name: str) -> Machine | None:
        """Drop the verdict of one machine, and return it."""
        return self._verdicts.pop(name, None)

    def get(self, name: str) -> Machine | None:
        """Find a living machine by its name."""
        return self._by_name.get(name)

    def verdict(self, name: str) -> Machine | None:
        """Find a machine that is gone, while its verdict is kept."""
        return self._verdicts.get(name)

    def by_unit(self, unit: str) -> Machine | None:
        """Find the machine that is the whole of a unit."""
        return self._by_unit.get(unit)

    def shares(self, unit: str) -> bool:
        """Whether any machine is in a unit together with others."""
        return self.shared > 0 and any(
            machine.record.placement.shared and machine.unit == unit for machine in self
        )

    def by_invocation(self, invocation_id: str) -> Machine | None:
        """Find the machine by the invocation ID of its unit (32 hexadecimal digits)."""
        return self._by_invocation.get(invocation_id)

    def by_leader(self, leader: ProcessId) -> Machine | None:
        """Find the machine by its leader."""
        return self._by_leader.get(leader)

    def by_control_group(self, path: str) -> Machine | None:
        """Find the machine that a control group belongs to: the innermost one above or at the path."""
        while path and path != "/":
            if (machine := self._by_group.get(path)) is not None:
                return machine
            path = path.rpartition("/")[0]
        return None


def check_there(registry: Registry, machine: Machine) -> None:
    """Check that a machine is the one of its name.

    Raises:
        MachineGone: it has ended, or was forgotten.
    """
    if registry.get(machine.name) is not machine:
        raise MachineGone(machine.name)


def check_runs(registry: Registry, machine: Machine) -> None:
    """Check that a machine is the one of its name, and neither ends nor lingers.

    Raises:
        MachineGone: it has ended, or was forgotten.
        MachineBusy: it is being stopped, or was and has processes left.
    """
    check_there(registry, machine)
    if machine.phase is not Phase.running:
        raise MachineBusy(f"the machine is {machine.phase.value}")
