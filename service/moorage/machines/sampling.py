"""Samples of the use of many machines, taken one after the other, as cheaply as possible."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Mapping
from typing import Final, NamedTuple

from moorage.kernel.cgroup import Hierarchy
from moorage.kernel.clock import Clock
from moorage.machines.accounting import Accounting, since
from moorage.machines.ceilings import Known, ceiling
from moorage.machines.final_account import FinalAccounts, now
from moorage.machines.machine import Machine
from moorage.machines.model import Helper, Timestamp
from moorage.machines.thawing import helper_group
from moorage.machines.use import RESOURCES, Pressure, pressure, waited

COUNTERS: Final[Mapping[str, frozenset[str]]] = {
    "cpu": frozenset({"cpu.stat"}),
    "memory": frozenset({"memory.current"}),
    "swap": frozenset({"memory.swap.current"}),
    "tasks": frozenset({"pids.current"}),
    "io": frozenset({"io.stat"}),
    "peaks": frozenset({"memory.peak", "memory.swap.peak", "pids.peak"}),
    "oom": frozenset({"memory.events", "user.oomd_kill"}),
    "pressure": frozenset(f"{each}.pressure" for each in RESOURCES),
}
"""What can be looked at apart, and the attributes of a control group that it takes."""

_EVERYWHERE: Final = frozenset({"cpu.stat", "user.oomd_kill"})
"""What a control group has without any controller."""

_LIMITS: Final = {"MemoryMax": "memory.max", "TasksMax": "pids.max"}


class Sample(NamedTuple):
    """The use of a machine at a moment.

    Attributes:
        timestamp: the moment.
        accounting: its counters.
        pressure: of each resource that the kernel tells of, by its name.
        helpers: counters of each helper that runs, by its name.
        limits: of memory in bytes and of tasks, by the names of their properties, the slices above included; without
            those that are no limit, and empty where nobody asked.
    """

    timestamp: Timestamp
    accounting: Accounting
    pressure: dict[str, Pressure]
    helpers: dict[str, Accounting]
    limits: dict[str, int]


def pressure_texts(control_group: str, hierarchy: Hierarchy) -> Iterator[tuple[str, str]]:
    """Read the file of each resource that the kernel tells the pressure of; with the name of the resource.

    Raises:
        OSError: no file descriptor is left, or no memory.
    """
    for each in RESOURCES:
        try:
            text = hierarchy.attribute(control_group, f"{each}.pressure")
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # the kernel was told not to keep account of it
                raise
            continue
        if text:
            yield each, text


def pressures(control_group: str, hierarchy: Hierarchy) -> dict[str, Pressure]:
    """Read the pressure of each resource that the kernel tells of, by its name.

    Raises:
        OSError: no file descriptor is left, or no memory.
    """
    found = {each: pressure(text) for each, text in pressure_texts(control_group, hierarchy)}
    return {each: read for each, read in found.items() if read is not None}


class Round:
    """A look at many machines, one after the other: what those in a slice have in common is read once.

    Args:
        accounts: have the counters.
        hierarchy: of control groups.
        clock: tells when.
        counters: names of those to look at.
        limits: look also at what machines may use.
    """

    def __init__(
        self,
        accounts: FinalAccounts,
        hierarchy: Hierarchy,
        clock: Clock,
        counters: Collection[str],
        *,
        limits: bool,
    ) -> None:
        self._accounts = accounts
        self._hierarchy = hierarchy
        self._clock = clock
        self._wanted = frozenset(name for each in counters for name in COUNTERS[each]) | frozenset(
            _LIMITS.values() if limits else ()
        )
        self._pressure = "pressure" in counters
        self._limits = limits
        self._there: dict[str, frozenset[str]] = {}
        self._known: Known = {}

    def sample(self, machine: Machine) -> Sample:
        """Read what a machine that lives uses now, and what each of its helpers does that runs.

        Only the kernel is asked: what the service manager alone counts, the IP traffic, is left out.

        Raises:
            OSError: no file descriptor is left, or no memory.
        """
        record = machine.record
        attributes = self._attributes(record.control_group)
        helpers = {
            helper.name: self._of_helper(machine, helper, each, attributes)
            for helper in record.helpers
            if (state := self._hierarchy.events(each := helper_group(record, helper))) and state.populated
        }
        at = now(self._clock)
        shows_pressure = self._pressure and not record.placement.shared
        found = pressures(record.control_group, self._hierarchy) if shows_pressure else {}
        return Sample(at, self.counters(machine), found, helpers, self.limits(machine))

    def counters(self, machine: Machine) -> Accounting:
        """Read the counters of a machine that lives, since they were reset; none of one that shares its group.

        Raises:
            OSError: no file descriptor is left, or no memory.
        """
        record = machine.record
        if record.placement.shared:
            return Accounting()
        found = self._accounts.counters(record.control_group, self._attributes(record.control_group))
        return found if record.bases is None else since(found, record.bases.accounting)

    def waited(self, machine: Machine) -> Iterator[tuple[str, dict[str, int]]]:
        """Read for how long tasks of a machine waited for each resource, µs: its pressure in a third of the time.

        Raises:
            OSError: no file descriptor is left, or no memory.
        """
        record = machine.record
        if not record.placement.shared:
            for each, text in pressure_texts(record.control_group, self._hierarchy):
                yield each, waited(text)

    def limits(self, machine: Machine) -> dict[str, int]:
        """Read what a machine may use at most, the slices above included, by the names of the properties.

        Raises:
            OSError: no file descriptor is left, or no memory.
        """
        record = machine.record
        return self._limits_of(record.control_group) if self._limits and not record.placement.shared else {}

    def _of_helper(
        self, machine: Machine, helper: Helper, group: str, attributes: frozenset[str]
    ) -> Accounting:
        bases = machine.record.bases
        base = None if bases is None else bases.helpers.get(helper.name)
        if base is not None and self._hierarchy.identity(group) != base.control_group_id:
            base = None  # it was started again
        found = self._accounts.counters(group, attributes)
        return found if base is None else since(found, base.accounting)

    def _attributes(self, group: str) -> frozenset[str]:
        """Return what is to be read of a group, and of those beside it."""
        slice_ = group.rpartition("/")[0]
        if slice_ not in self._there:
            controllers = self._hierarchy.controllers(group)
            self._there[slice_] = frozenset(
                name for name in self._wanted if name in _EVERYWHERE or name.partition(".")[0] in controllers
            )
        return self._there[slice_]

    def _limits_of(self, group: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for name, attribute in _LIMITS.items():
            there = attribute in self._attributes(group)
            least = ceiling(
                self._hierarchy, group if there else group.rpartition("/")[0], attribute, self._known
            )
            if least is not None:
                found[name] = least
        return found


class Sampling:
    """Looks at many machines.

    Args:
        accounts: have the counters.
        hierarchy: of control groups.
        clock: tells when.
    """

    def __init__(self, accounts: FinalAccounts, hierarchy: Hierarchy, clock: Clock) -> None:
        self._accounts = accounts
        self._hierarchy = hierarchy
        self._clock = clock

    def round(self, counters: Collection[str] = COUNTERS, *, limits: bool = False) -> Round:
        """Begin a look at many machines.

        Args:
            counters: names of those to look at.
            limits: also at what they may use.
        """
        return Round(self._accounts, self._hierarchy, self._clock, counters, limits=limits)
