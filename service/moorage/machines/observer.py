"""Observation of machines: every change puts them on the agenda; what it means is decided elsewhere.

Four sources report on a machine: its control group (``cgroup.events``), its leader (a pidfd), the service manager's
signals about its unit, and those about helpers that it does not run without. Each of them can be late, or missed.
"""

from __future__ import annotations

import trio

from moorage.kernel.process import Exit, NotAProcess, ProcessGone
from moorage.kernel.system import System
from moorage.machines.agenda import Agenda
from moorage.machines.events import Kind
from moorage.machines.final_account import FinalAccounts
from moorage.machines.followers import Follower, Followers
from moorage.machines.helpers.status import HelperStates, Known
from moorage.machines.leader import WatchedLeader, end_of
from moorage.machines.machine import Machine
from moorage.machines.model import Phase
from moorage.machines.registry import Registry
from moorage.machines.renewal import has_scope
from moorage.machines.vital import lost
from moorage.names import machine_of_helper
from moorage.pid1.hints import Hints
from moorage.pid1.manager import UnitHint
from moorage.pid1.references import References

SETTLE_SECONDS = 1.0
"""For how long an empty control group may belong to a running unit before the manager is asked why: it needs that long
for hundreds of units that end at once."""


class Observer(Follower):
    """Watches the machines of the registry."""

    def __init__(
        self,
        registry: Registry,
        agenda: Agenda,
        accounts: FinalAccounts,
        states: HelperStates,
        followers: Followers,
        system: System,
        hints: Hints,
        references: References,
    ) -> None:
        """Watch nothing yet.

        Raises:
            OSError: no inotify instance is left (fs.inotify.max_user_instances).
        """
        self._registry = registry
        self._agenda = agenda
        self._accounts = accounts
        self._states = states
        self._followers = followers
        self._processes = system.processes
        self._hints = hints
        self._references = references
        self._watch = system.hierarchy.watch(self._group_changed, self.look_at_all)
        states.watch(self._helper_ended, self._helper_changed)
        hints.follow_all(self._missed)

    def close(self) -> None:
        """Stop watching everything."""
        self._watch.close()
        for machine in self._registry:
            if (leader := machine.take_leader()) is not None:
                leader.close()

    def watch(self, machine: Machine) -> None:
        """Watch the control group of a machine; nothing happens if it is watched already.

        Raises:
            OSError: no watch is left (fs.inotify.max_user_watches).
        """
        if not machine.record.placement.shared:
            self._watch.add(machine.record.control_group)

    def watch_again(self, machine: Machine) -> None:
        """Watch a machine that could not be watched since the start of this service, if that is so.

        Raises:
            OSError: no watch is left (fs.inotify.max_user_watches), or no file descriptor.
        """
        self.watch(machine)
        if machine.leader is None:
            self.open_leader(machine)

    def unwatch(self, machine: Machine) -> None:
        """Watch a control group no more."""
        if not machine.record.placement.shared:
            self._watch.remove(machine.record.control_group)

    def keep_leader(self, machine: Machine, pidfd: int) -> None:
        """Watch the leader of a machine by a pidfd, which belongs to that from now on.

        Raises:
            OSError: it cannot be watched; the pidfd stays the caller's.
        """
        machine.watch_leader(WatchedLeader(pidfd, self._processes, machine, self))

    def leader_ended(self, machine: Machine) -> None:
        """Have a machine looked at whose leader has ended."""
        self._part_ended(machine)

    def leader_reaped(self, machine: Machine, known: Exit | None) -> None:
        """Report that the leader of a machine has ended, and how if that is known."""
        self._followers.happened(machine, Kind.leader_exited, end_of(known))

    def open_leader(self, machine: Machine) -> None:
        """Watch the leader of a machine, if it was named and has not ended.

        Raises:
            OSError: no file descriptor is left.
        """
        leader = machine.record.leader
        if leader is None:
            return
        try:
            pidfd = self._processes.open(leader.pid, leader.pidfd_id, leader.boot_id)
        except (ProcessGone, NotAProcess):
            machine.leader_gone = True
            return  # a machine lives as long as its unit, not as its leader
        try:
            self.keep_leader(machine, pidfd)
        except OSError:
            self._processes.close(pidfd)
            raise

    def added(self, machine: Machine) -> None:
        """Listen to what the manager reports of the unit of a machine."""
        if machine.record.placement.is_whole:
            self._hints.follow(machine.unit, self._hint)

    def ended(self, machine: Machine) -> None:
        """Watch a machine no more."""
        if (leader := machine.take_leader()) is not None:
            leader.close()
        self.unwatch(machine)
        if machine.record.placement.is_whole and self._registry.by_unit(machine.unit) is None:
            self._hints.unfollow(machine.unit, self._hint)

    def look_at_all(self) -> None:
        """Schedule queries of the service manager about all machines: something may have been missed."""
        for machine in self._registry:
            self._agenda.mark(machine, ask=True)

    def _group_changed(self, control_group: str) -> None:
        machine = self._registry.by_control_group(control_group)
        if machine is not None:
            self._part_ended(machine)

    def _part_ended(self, machine: Machine) -> None:
        self._accounts.glance(machine)
        self._agenda.mark(machine)

    def _helper_ended(self, unit: str) -> None:
        machine = self._registry.get(machine_of_helper(unit) or "")
        if machine is not None and lost(machine.record.helpers, self._states):
            self._agenda.mark(machine, ask=True)

    def _helper_changed(self, unit: str, ran: str, present: Known) -> None:
        """Report the state of a helper that its machine has; that of others is reported once it has them."""
        machine = self._registry.get(machine_of_helper(unit) or "")
        helpers = () if machine is None else machine.record.helpers
        helper = next((each for each in helpers if each.unit == unit), None)
        if machine is None or helper is None:
            return
        if present.active_state == "failed":
            self._followers.happened(
                machine, Kind.helper_failed, {"helper": helper.name, "result": present.result}
            )
        elif present.active_state == "active" and ran not in {"", present.invocation_id}:
            self._followers.happened(machine, Kind.helper_restarted, {"helper": helper.name})

    def _missed(self, hint: UnitHint) -> None:
        if hint.kind != "reloaded":
            for machine in self._registry:
                machine.lost_sight()
        self.look_at_all()

    def _hint(self, hint: UnitHint) -> None:
        machine = self._registry.by_unit(hint.unit)
        if machine is None:
            return
        if hint.kind == "removed":
            self._agenda.mark(machine, removed=True)
            return
        if hint.by_itself and hint.invocation_id == machine.record.invocation_id:
            machine.by_itself = has_scope(machine)
        if hint.active_state == "deactivating" and machine.unit_stops(begins=True):
            self._followers.happened(machine, Kind.stopping, {"by": "manager"})
        if hint.active_state == "failed" or (
            hint.active_state == "inactive" and self._references.holds(hint.unit)
        ):
            # It stays so until it has been looked at; a scope does not even begin anew.
            self._agenda.mark(machine, ask=True, ended=hint if has_scope(machine) else None)
        elif hint.active_state != "active" or machine.phase is not Phase.running:
            self._agenda.look_later(machine, trio.current_time() + SETTLE_SECONDS)
