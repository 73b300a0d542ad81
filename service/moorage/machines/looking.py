"""Facts about a machine that are looked up on demand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import trio

from moorage.kernel.block import name_of
from moorage.kernel.cgroup import Hierarchy
from moorage.kernel.clock import Clock
from moorage.machines.accounting import Accounting, base_of, since, traffic_since
from moorage.machines.effective import InForce, in_force_of
from moorage.machines.final_account import FinalAccounts, now
from moorage.machines.machine import Machine, Work
from moorage.machines.metadata import (
    Metadata,
    acquire,
    acquire_os_release,
    acquire_uid_shift,
)
from moorage.machines.model import Bases, FreezerState, HelperBase, Timestamp
from moorage.machines.sampling import pressures
from moorage.machines.thawing import helper_group, is_frozen, is_to_freeze
from moorage.machines.use import Pressure, traffic
from moorage.machines.verdicts import merged
from moorage.pid1.manager import ASK_SECONDS, Json, Manager

NETWORK: Final = {
    "IPIngressBytes": "ip_ingress_bytes",
    "IPIngressPackets": "ip_ingress_packets",
    "IPEgressBytes": "ip_egress_bytes",
    "IPEgressPackets": "ip_egress_packets",
}
"""Properties of units that count the traffic of their network, and what they are called here."""


DEVICES_MAX: Final = 64
"""Block devices whose counters are kept when they are reset: 300 bytes of a record each."""


class Looking:
    """Looks into machines, and at their units and control groups."""

    def __init__(
        self, accounts: FinalAccounts, manager: Manager, hierarchy: Hierarchy, clock: Clock, *, user: bool
    ) -> None:
        self._accounts = accounts
        self._manager = manager
        self._hierarchy = hierarchy
        self._clock = clock
        self._user = user

    def counters(self, machine: Machine, network: Accounting = Accounting()) -> Accounting:  # noqa: B008 - frozen
        """Read the counters of a machine that lives, since they were reset.

        Of one that shares its control group there are none.

        Args:
            machine: the machine.
            network: what :meth:`network` has returned of it.

        Raises:
            OSError: no file descriptor is left, or no memory.
        """
        placement, bases = machine.record.placement, machine.record.bases
        if placement.shared:
            return Accounting()
        found = merged(self._accounts.counters(placement.control_group), network)
        return found if bases is None else since(found, bases.accounting)

    def bases(self, machine: Machine, network: Accounting) -> Bases:
        """Read what is to be subtracted from all counters of a machine from now on.

        Args:
            machine: one that lives, and has its control group for itself.
            network: what :meth:`network` has returned of it.

        Raises:
            OSError: no file descriptor is left, or no memory.
        """
        record, hierarchy = machine.record, self._hierarchy
        helpers: dict[str, HelperBase] = {}
        for helper in record.helpers:
            group = helper_group(record, helper)
            if (identity := hierarchy.identity(group)) is not None:
                helpers[helper.name] = HelperBase(identity, base_of(self._accounts.counters(group)))
        devices = traffic(hierarchy.attribute(record.control_group, "io.stat") or "")
        return Bases(
            now(self._clock),
            base_of(merged(self._accounts.counters(record.control_group), network)),
            devices if len(devices) <= DEVICES_MAX else None,
            helpers,
        )

    def now(self) -> Timestamp:
        """Return the time."""
        return now(self._clock)

    async def network(self, machine: Machine) -> Accounting:
        """Return what the service manager has counted of the traffic of a machine's unit, where it was asked to.

        Raises:
            ManagerError: as the manager says.
        """
        if not machine.record.placement.is_whole:
            return Accounting()
        deadline = trio.current_time() + ASK_SECONDS
        values = await self._manager.properties(machine.unit, tuple(NETWORK), deadline=deadline)
        return Accounting(**{NETWORK[name]: each for name, each in values.items() if isinstance(each, int)})

    def pressure(self, machine: Machine) -> dict[str, Pressure]:
        """Read the pressure of each resource that the kernel tells of, by its name.

        Raises:
            OSError: no file descriptor is left, or no memory.
        """
        placement = machine.record.placement
        return {} if placement.shared else pressures(placement.control_group, self._hierarchy)

    def traffic(self, machine: Machine) -> dict[str, dict[str, int | str]]:
        """Read what a machine has read from and written to each block device, by its name, since that was reset.

        Raises:
            OSError: no file descriptor is left, or no memory.
        """
        if machine.record.placement.shared:
            return {}
        found = traffic(self._hierarchy.attribute(machine.record.control_group, "io.stat") or "")
        if (bases := machine.record.bases) is not None:
            found = traffic_since(found, bases.devices)
        return {
            name_of(numbers) or numbers: {"majMin": numbers, **counters}
            for numbers, counters in found.items()
        }

    def freezer(self, machine: Machine) -> FreezerState:
        """Return the state of the freezer of a machine that lives: frozen also where a slice above is.

        Raises:
            OSError: no file descriptor is left, or no memory.
        """
        group = machine.record.control_group
        machine.was_frozen(frozen=is_frozen(group, self._hierarchy))
        found = self.noted_freezer(machine)
        if found is FreezerState.running and is_to_freeze(group, self._hierarchy):
            return FreezerState.freezing
        return found

    def noted_freezer(self, machine: Machine) -> FreezerState:
        """Return the same without a look: by what was last read, and what is under way."""
        if machine.frozen:
            return FreezerState.thawing if machine.has_under_way(Work.thaw) else FreezerState.frozen
        return FreezerState.freezing if machine.has_under_way(Work.freeze) else FreezerState.running

    async def limits(self, machine: Machine, names: tuple[str, ...]) -> dict[str, Json]:
        """Read properties of a machine's unit; those that are unlimited or not available are left out.

        Raises:
            ManagerError: as the manager says.
        """
        deadline = trio.current_time() + ASK_SECONDS
        values = await self._manager.properties(machine.unit, names, deadline=deadline)
        return {name: value for name, value in values.items() if value is not None}

    async def in_force(self, machine: Machine, configured: Mapping[str, Json]) -> InForce:
        """Look at what is in force of the limits of a machine's unit.

        Args:
            machine: one that lives.
            configured: properties of its unit.

        Raises:
            OSError: no file descriptor is left, or no memory.
        """
        group = machine.record.placement.control_group
        return await in_force_of(self._manager, group, configured, user=self._user)

    async def metadata(self, machine: Machine, *, graceful: bool) -> Metadata:
        """Look into a machine: its addresses, its OS release, its UID shift.

        Raises:
            MetadataError: something could not be had, unless graceful.
            ManagerError: as the manager says.
        """
        return await acquire(machine.record, self._manager, graceful=graceful)

    async def os_release(self, machine: Machine) -> list[str]:
        """Look for the OS release of a machine only: "KEY=VALUE" strings.

        Raises:
            MetadataError: it cannot be had.
            ManagerError: as the manager says.
        """
        return await acquire_os_release(machine.record, self._manager)

    def uid_shift(self, machine: Machine) -> int:
        """Return the UID shift of a machine, which the kernel knows.

        Raises:
            MetadataError: there is none.
        """
        return acquire_uid_shift(machine.record)
