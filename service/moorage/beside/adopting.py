"""Adopts machines that belong to machined: from then on they are machines like others here, in a unit of others.

What machined says is not taken on trust. Where a machine is, the service manager says; it is adopted once its leader
is in the unit that machined names, which is some milliseconds after machined had it made. Whose it is, machined says,
and it is looked whether that could be: what a user has registered belongs to that user if its leader does, and if the
unit is the user's. Otherwise it is root's here, so that nobody manages by this service what is somebody else's.
"""

from __future__ import annotations

import logging

import trio

from moorage.authz.ownership import NotOwned, UnitNotOwned, check_unit
from moorage.beside.listed import Listed
from moorage.kernel import cgroup
from moorage.kernel.process import NotAProcess, ProcessGone
from moorage.kernel.system import System
from moorage.machines.errors import LeaderTaken, Refused
from moorage.machines.final_account import now
from moorage.machines.leftovers import Leftovers
from moorage.machines.model import Intent, Origin, Placement
from moorage.machines.registration import Registrar
from moorage.machines.registry import Claim, Registry
from moorage.machines.scopes import split_control_group
from moorage.machines.sharing import is_shared
from moorage.machines.starts import Starts
from moorage.names import UnitNames
from moorage.pid1.errors import ManagerError, NoSuchUnit
from moorage.pid1.manager import Manager

PLACE_SECONDS = 5.0
"""For how long a leader may take to get into the unit that machined names, s: the job of a scope takes some ms."""

PLACE_TURN_SECONDS = 0.02
"""Pause between two looks at that, s: a machine is to be listed within 50 ms of its coming."""

ADOPTIONS_MAX = 16
"""Machines adopted at once: others ask the service manager in between."""

_log = logging.getLogger(__name__)


class NoPlaceYet(Exception):
    """The leader does not get into the unit that machined names."""


class OursOnce(Exception):
    """The unit was made by this service."""


class Adopting:
    """Adopts machines."""

    def __init__(
        self,
        registry: Registry,
        registrar: Registrar,
        starts: Starts,
        leftovers: Leftovers,
        manager: Manager,
        system: System,
    ) -> None:
        self._registry = registry
        self._registrar = registrar
        self._starts = starts
        self._leftovers = leftovers
        self._manager = manager
        self._system = system
        self._limit = trio.CapacityLimiter(ADOPTIONS_MAX)

    async def adopt(self, found: Listed) -> None:
        """Adopt a machine, if that is possible; otherwise nothing is left of it."""
        if self._registry.claim(found.name) is not None:
            return  # it is being adopted, or another one of that name registered
        try:
            async with self._limit:
                await self._adopt(found)
        except (
            Refused,
            ProcessGone,
            NotAProcess,
            NotOwned,
            NoPlaceYet,
            OursOnce,
            ManagerError,
            OSError,
        ) as error:
            _log.info("Failed to adopt machine %s, ignoring: %s", found.name, error or type(error).__name__)

    async def _adopt(self, found: Listed) -> None:
        claim = self._registry.begin(found.name, found.leader, found.uid or 0)
        try:
            leader, processes = found.leader, self._system.processes
            pidfd = processes.open(leader.pid, leader.pidfd_id, leader.boot_id)
            try:
                await self._enter(found, claim, pidfd)
            except BaseException:
                processes.close(pidfd)
                raise
        finally:
            self._registry.abandon(claim)

    async def _enter(self, found: Listed, claim: Claim, pidfd: int) -> None:
        deadline = trio.current_time() + PLACE_SECONDS
        placement = await self._place(found, pidfd, deadline)
        uid = await self._owner(found, placement, pidfd, deadline)
        intent = Intent(
            name=found.name,
            class_=found.class_,
            registrant=uid,
            allocated=False,
            leader=found.leader,
            # Who is asked to end what is not the whole of its unit: who has registered it with machined need not be.
            supervisor=found.supervisor if placement.is_whole else None,
            identity=found.identity,
            timestamp=now(self._system.clock),
            leader_uid=self._system.processes.owner(found.leader.pid),
            privileged=uid == 0,
            origin=Origin.adopted,
            start_by=0,
        )
        await self._starts.enter(intent, placement, claim, pidfd)

    async def _place(self, found: Listed, pidfd: int, deadline: float) -> Placement:
        """Return where a machine is, as soon as its leader is in the unit that machined names.

        Raises:
            NoPlaceYet: it does not get there.
            LeaderTaken: another machine is there.
            OursOnce: its unit is one of ours, whose machine is not here any more.
            ProcessGone, ManagerError, OSError: as for a registration in place.
        """
        while (placement := await self._placed(found, pidfd, deadline)) is None:
            if self._system.processes.has_exited(pidfd):
                raise ProcessGone(found.leader.pid)
            if trio.current_time() >= deadline:
                raise NoPlaceYet(f"its leader is not in {found.unit}")
            await trio.sleep(PLACE_TURN_SECONDS)
        holder = self._registry.by_unit(placement.unit) or self._registry.by_control_group(
            placement.control_group
        )
        if holder is not None and (
            holder.record.placement.is_whole or holder.record.control_group == placement.control_group
        ):
            raise LeaderTaken(holder.name, holder.record.placement)
        return placement

    async def _placed(self, found: Listed, pidfd: int, deadline: float) -> Placement | None:
        pid = found.leader.pid
        try:
            unit, invocation_id = await self._manager.unit_of_process(pidfd, deadline=deadline)
            if unit != found.unit or unit == "init.scope":
                return None
            status = await self._manager.status(unit, deadline=deadline)
            split = split_control_group(self._system.processes.control_group(pid), unit)
        except (NoSuchUnit, NotAProcess):
            return None
        if status is not None and self._leftovers.is_ours(status):
            raise OursOnce(f"{unit} was made for a machine of this service")
        if status is None or status.active_state != "active" or not invocation_id or split is None:
            return None
        # In a unit of a user's manager the machine is what that manager has made for it.
        group, subgroup = split[0], split[1] if unit.startswith("user@") else None
        path = group + (subgroup or "")
        identity = self._system.hierarchy.identity(path)
        if identity is None or not path.isprintable():
            return None
        place = Placement(unit, subgroup, status.slice, path, identity, invocation_id)
        shared = self._registry.shares(unit) or await is_shared(
            place, found.leader, found.supervisor, self._manager, self._system, deadline=deadline
        )
        return Placement(unit, subgroup, status.slice, path, identity, invocation_id, shared)

    async def _owner(self, found: Listed, placement: Placement, pidfd: int, deadline: float) -> int:
        """Return whose a machine is: the user's who has registered it, or root's."""
        uid, pid = found.uid, found.leader.pid
        if not uid:
            return 0
        try:
            await self._registrar.check_owner(pid, pidfd, uid)
            if not _is_scope_for(found, placement, uid):
                group = self._system.processes.control_group(pid)
                await check_unit(group, pidfd, uid, self._manager, deadline=deadline)
        except (NotOwned, UnitNotOwned) as error:
            _log.info("Machine %s is not left to uid %d: %s.", found.name, uid, error)
            return 0
        return uid


def _is_scope_for(found: Listed, placement: Placement, uid: int) -> bool:
    """Whether the unit is the scope that machined has made for a user, who owns it (``machine_start_scope()``)."""
    return found.unit == UnitNames(found.name).scope and cgroup.owner(placement.control_group) == uid
