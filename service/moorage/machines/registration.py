"""Registering a machine: claim, intent, scope, record, commit.

Nothing is left of a registration that failed, and nothing can fail one after its commit: the reply carries what the
caller wants to know then, so that nothing is asked twice.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import trio

from moorage.authz.allowed_properties import check as check_rights
from moorage.authz.ownership import NotOwned, check_unit, is_in_namespace_of, runs_as
from moorage.kernel.process import ProcessGone
from moorage.kernel.system import System
from moorage.machines import effective
from moorage.machines.asked import differing, digests
from moorage.machines.detached import Detached
from moorage.machines.errors import LeaderTaken, NameTaken
from moorage.machines.final_account import now
from moorage.machines.followers import Followers
from moorage.machines.helpers.changing import helper_units
from moorage.machines.helpers.status import HelperStates
from moorage.machines.helpers.units import RuntimeDirectories, to_records
from moorage.machines.holders import Holders
from moorage.machines.intents import Intents
from moorage.machines.leases import Leases
from moorage.machines.limits import Difference
from moorage.machines.machine import Machine
from moorage.machines.model import (
    HelperStatus,
    Intent,
    Phase,
    Placement,
    Record,
    Registration,
    record_of,
)
from moorage.machines.own_slice import slice_of
from moorage.machines.places import Places
from moorage.machines.planned import PlannedUnit, planned
from moorage.machines.registry import Claim, Registry
from moorage.machines.scopes import Scopes
from moorage.machines.sharing import is_shared
from moorage.machines.starts import Starts
from moorage.names import UnitNames
from moorage.pid1.errors import ManagerTimeout, ManagerUnavailable
from moorage.pid1.manager import Manager
from moorage.pid1.references import References

REGISTER_SECONDS = 30.0
"""Default deadline of a registration: runc's, after 1 s had proved too short on loaded hosts (runc#2614)."""

UNDO_SECONDS = 5.0
"""For how long after its deadline a failed start may still be taken back before its caller is answered; after that it
goes on without the caller. A leader that ignores SIGTERM keeps its scope for TimeoutStopUSec=, 90 s by default."""

_log = logging.getLogger(__name__)


class Registered(msgspec.Struct, frozen=True):
    """The result of a registration.

    Attributes:
        machine: the machine; after a rehearsal it is in no registry.
        phase: that it is in.
        helpers: the states of its helpers at the end of their start.
        differences: what was asked for, and is not in force.
        units: of a rehearsal, what the machine would get.
    """

    machine: Machine
    phase: Phase
    helpers: list[HelperStatus] = []
    differences: list[Difference] = []
    units: list[PlannedUnit] = []


class Registrar:
    """Registers machines."""

    def __init__(
        self,
        registry: Registry,
        intents: Intents,
        holders: Holders,
        scopes: Scopes,
        states: HelperStates,
        directories: RuntimeDirectories,
        starts: Starts,
        leases: Leases,
        places: Places,
        references: References,
        followers: Followers,
        manager: Manager,
        system: System,
        detached: Detached,
    ) -> None:
        self._registry = registry
        self._intents = intents
        self._holders = holders
        self._scopes = scopes
        self._states = states
        self._directories = directories
        self._starts = starts
        self._leases = leases
        self._places = places
        self._references = references
        self._followers = followers
        self._manager = manager
        self._system = system
        self._processes = system.processes
        self._detached = detached

    async def find_or_register(
        self,
        registration: Registration,
        *,
        timeout: float = REGISTER_SECONDS,
        lease: Callable[[], Awaitable[None]] | None = None,
    ) -> Registered:
        """Register a machine, or find that the same caller has registered the same leader before.

        A launcher that lost its connection cannot know whether its call was carried out: it may simply repeat it.
        Where it asks for something else, the machine is not what it would be taken for.

        Args:
            registration: as for :meth:`register`.
            timeout: the same.
            lease: the same.

        Raises:
            NameTaken: also if the repeated call differs.
            ManagerTimeout: the same call was made before, and it is not known yet what became of it.
            Exception: what :meth:`register` raises.
        """
        await self.wait(registration.name, timeout=timeout)
        claim = self._registry.claim(registration.name)
        if claim is not None and (claim.leader, claim.registrant) == (
            registration.leader,
            registration.registrant,
        ):
            raise ManagerTimeout(f"an earlier registration of machine {registration.name}")
        holder = self._registry.get(registration.name)
        if (
            holder is None
            or (holder.record.leader, holder.record.registrant)
            != (registration.leader, registration.registrant)
            or not holder.is_there
            or holder.phase is Phase.stopping  # as after the end of an earlier lease: it will be gone
        ):
            return await self.register(registration, timeout=timeout, lease=lease)
        if differs := differing(holder.record.request, digests(registration)):
            raise NameTaken(holder.name, holder.record.placement, differs)
        if lease is not None:
            self._leases.hold(holder, lease, again=holder.record.lease)
        return await self._registered(registration, holder, self._states.statuses(holder.record.helpers))

    async def register(
        self,
        registration: Registration,
        *,
        timeout: float = REGISTER_SECONDS,
        lease: Callable[[], Awaitable[None]] | None = None,
    ) -> Registered:
        """Register a machine: in a scope of its own, or where its leader is.

        A caller that is cancelled before this crossed into the service manager leaves nothing; after that the
        registration is completed without it.

        Args:
            registration: what is wanted; its names and texts have been checked.
            timeout: in seconds.
            lease: returns when the machine is to end.

        Raises:
            NameTaken, LeaderTaken, Full: as the registry says.
            NoPlace: too many starts were under way until the deadline.
            UnitNameTaken, JobFailed, HelperFailed: as the start says.
            ProcessGone: the leader died meanwhile.
            NotOwned: it became somebody else's meanwhile.
            OutsideUnits: in place, it is in no unit of this manager's.
            UnitNotOwned: it is in a unit that is not the caller's.
            InvalidProperty: one that takes the rights of the manager, which the caller has not.
            ManagerError: as the manager says. Nothing is left of a registration that failed.
            OSError: no file descriptor is left, or the record could not be written.
        """
        deadline = trio.current_time() + timeout
        await self._holders.wait(registration, deadline)
        if not registration.privileged:
            check_rights(
                registration.properties,
                registration.slice,
                registration.registrant,
                slice_properties=registration.slice_properties,
                defaults=registration.defaults,
            )
        intent = self._intent(registration, deadline)
        claim = self._registry.begin(registration.name, registration.leader, registration.registrant)
        if registration.dry_run:
            self._registry.abandon(claim)
            machine = Machine(await self._rehearse(registration, intent, deadline))
            return await self._registered(registration, machine, [])
        # From here on the pidfd is ours: the caller's goes with the caller.
        with contextlib.ExitStack() as undo:
            undo.callback(self._registry.abandon, claim)
            undo.callback(self._states.drop, [helper.unit for helper in intent.helpers])
            pidfd = self._processes.duplicate(registration.leader_pidfd)
            undo.callback(self._processes.close, pidfd)
            steps = undo.pop_all()

        async def complete() -> tuple[Machine, list[HelperStatus]]:
            return await self._complete(registration, intent, claim, pidfd, steps, deadline, lease)

        with self._followers.failures(registration), steps:
            async with self._places.one(registration.registrant, deadline=deadline):
                machine, helpers = await self._detached.shielded(complete)
        return await self._registered(registration, machine, helpers)

    async def _complete(
        self,
        registration: Registration,
        intent: Intent,
        claim: Claim,
        pidfd: int,
        steps: contextlib.ExitStack,
        deadline: float,
        lease: Callable[[], Awaitable[None]] | None,
    ) -> tuple[Machine, list[HelperStatus]]:
        """Start and enter a machine, shielded from its caller's end; what is in *steps* is for a failure only."""
        if intent.allocated:
            self._intents.intend(intent)
            steps.push(self._intents.withdrawal(intent.name))
            steps.callback(self._references.release, intent.scope)
        try:
            placement, helpers = await self._place_in_time(registration, pidfd, intent, deadline)
        except (ManagerTimeout, ManagerUnavailable):
            # It may have been done all the same, or be done yet: the name stays claimed until then.
            if intent.allocated:
                self._detached.start(self._take_back, intent, steps.pop_all())
            raise
        machine = await self._starts.enter(intent, placement, claim, pidfd)
        steps.pop_all()
        if intent.allocated:
            self._intents.withdraw(intent.name)  # beside the record it means nothing any more
        if lease is not None:
            self._leases.hold(machine, lease)
        await self._references.settled(machine.unit)
        return machine, helpers

    async def _take_back(self, intent: Intent, steps: contextlib.ExitStack) -> None:
        with steps:
            self._intents.revoke(intent)  # whoever comes after us must not keep it
            await self._starts.resume(msgspec.structs.replace(intent, revoked=True))

    async def wait(self, name: str, *, timeout: float = REGISTER_SECONDS) -> None:
        """Wait while a machine of that name is being registered: a stop is queued behind the start job."""
        if (claim := self._registry.claim(name)) is not None:
            with trio.move_on_after(timeout):
                await claim.ended.wait()

    async def check_owner(self, pid: int, pidfd: int, uid: int) -> int:
        """Check whether a process is a caller's to register.

        Returns:
            Uid that it runs as.

        Raises:
            NotOwned: it is not.
            ProcessGone: it has ended.
        """
        if runs_as(pid, pidfd, uid, self._processes):
            return uid
        owner = self._processes.owner(pid)
        if not await is_in_namespace_of(pid, pidfd, uid, self._manager, self._processes):
            raise NotOwned(pid, owner)
        return owner

    def _intent(self, registration: Registration, deadline: float) -> Intent:
        present, helpers = (
            now(self._system.clock),
            to_records(UnitNames(registration.name), registration.helpers),
        )
        name = registration.name
        return Intent(
            name=name,
            class_=registration.class_,
            registrant=registration.registrant,
            allocated=registration.allocate_unit,
            leader=registration.leader,
            supervisor=registration.supervisor,
            identity=registration.identity,
            timestamp=present,
            leader_uid=registration.leader_uid,
            runtime_directory=self._directories.directory(name) if helpers else None,
            helpers=helpers,
            lease=registration.lease,
            privileged=registration.privileged,
            request=digests(registration),
            slice=slice_of(registration),
            start_by=present.monotonic + round((deadline - trio.current_time()) * 1e6),
        )

    async def _place_in_time(
        self, registration: Registration, pidfd: int, intent: Intent, deadline: float
    ) -> tuple[Placement, list[HelperStatus]]:
        with trio.move_on_at(deadline + UNDO_SECONDS):
            return await self._place(registration, pidfd, self._intents.mark(intent), deadline)
        raise ManagerTimeout(f"start of {intent.scope}")

    async def _place(
        self, registration: Registration, pidfd: int, mark: str, deadline: float
    ) -> tuple[Placement, list[HelperStatus]]:
        await self._check_unit(registration, pidfd, deadline)
        if registration.allocate_unit:
            started = await self._scopes.start(registration, pidfd, mark, deadline=deadline)
            return started.placement, started.helpers
        found = await self._scopes.find(registration, pidfd, deadline=deadline)
        holder = self._registry.by_unit(found.unit) or self._registry.by_control_group(found.control_group)
        if holder is not None and (
            holder.record.placement.is_whole or holder.record.control_group == found.control_group
        ):
            raise LeaderTaken(holder.name, holder.record.placement)
        shared = self._registry.shares(found.unit) or await is_shared(
            found,
            registration.leader,
            registration.supervisor,
            self._manager,
            self._system,
            deadline=deadline,
        )
        if self._processes.has_exited(pidfd):
            raise ProcessGone(registration.leader.pid)
        return msgspec.structs.replace(found, shared=shared), []

    async def _check_unit(self, registration: Registration, pidfd: int, deadline: float) -> None:
        if not registration.privileged:
            group = self._processes.control_group(registration.leader.pid)
            await check_unit(group, pidfd, registration.registrant, self._manager, deadline=deadline)

    async def _rehearse(self, registration: Registration, intent: Intent, deadline: float) -> Record:
        if registration.allocate_unit:
            await self._check_unit(registration, registration.leader_pidfd, deadline)
            mark = self._intents.mark(intent)
            placement = await self._scopes.rehearse(registration, mark, deadline=deadline)
        else:
            placement, _ = await self._place(registration, registration.leader_pidfd, "", deadline)
        return record_of(intent, placement, intent.timestamp)

    async def _registered(
        self, registration: Registration, machine: Machine, helpers: Sequence[HelperStatus]
    ) -> Registered:
        """Return the result of a registration. The machine is there: nothing here fails."""
        phase = Phase.starting if registration.dry_run else machine.phase
        try:
            found = await self._differences(registration, machine.record, helpers)
        except Exception:  # noqa: BLE001 - the machine is there: its caller has to be told so
            _log.exception("Failed to tell what is in force of machine %s, ignoring.", machine.name)
            found = []
        units: list[PlannedUnit] = []
        if registration.dry_run:
            home = self._directories
            units = planned(registration, home.root, home.directory(registration.name), user=home.user)
        return Registered(machine, phase, list(helpers), found, units)

    async def _differences(
        self, registration: Registration, record: Record, helpers: Sequence[HelperStatus]
    ) -> list[Difference]:
        """Compare what was asked for with what is in force; of a rehearsal, with what would be."""
        rehearsed, group, slice_ = registration.dry_run, record.control_group, record.placement.slice
        units = [effective.Unit(registration.properties, None if rehearsed else group)]
        if registration.slice_properties is not None:
            above = None if rehearsed else group.rpartition("/")[0]
            units.append(effective.Unit(registration.slice_properties, above, slice=slice_))
        units += helper_units(record, registration.helpers, helpers, rehearsed=rehearsed)
        user = self._directories.user
        return await effective.compare(self._manager, units, registration.parent_slice, user=user)
