"""Who is told of machines that come, change and go: after the fact, so that nobody can fail a call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from moorage.machines.helpers.status import HelperStates
from moorage.machines.machine import Machine
from moorage.pid1.references import References

_log = logging.getLogger(__name__)


class Follower(Protocol):
    """What follows the machines. Its methods take note, and neither wait nor raise; each may be left out."""

    def added(self, machine: Machine) -> None:
        """Take note of a machine that has been registered, or was found again after a restart."""

    def changed(self, machine: Machine) -> None:
        """Take note of a machine that has another record: its helpers changed, or its verdict is complete."""

    def ended(self, machine: Machine) -> None:
        """Take note of a machine that has ended, or was forgotten: then it has no verdict."""


class Followers:
    """All of them, told one after the other. What goes wrong with one of them is logged, and the others are told."""

    def __init__(self) -> None:
        self._followers: tuple[Follower, ...] = ()

    def join(self, *followers: Follower) -> None:
        """Have followers told from now on."""
        self._followers += followers

    def added(self, machine: Machine) -> None:
        """Tell of a machine that has been registered, or was found again."""
        self._tell(machine, (follower.added for follower in self._followers))

    def changed(self, machine: Machine) -> None:
        """Tell of a machine that has another record."""
        self._tell(machine, (follower.changed for follower in self._followers))

    def ended(self, machine: Machine) -> None:
        """Tell of a machine that has ended, or was forgotten."""
        self._tell(machine, (follower.ended for follower in self._followers))

    def _tell(self, machine: Machine, methods: Iterable[Callable[[Machine], None]]) -> None:
        for method in methods:
            try:
                method(machine)
            except Exception:  # noqa: BLE001 - the machine is there, or gone, whatever its followers make of that
                _log.exception("Failed to tell of machine %s, ignoring.", machine.name)


class HeldUnits(Follower):
    """Has the service manager keep the scopes of machines until somebody has looked at how they ended."""

    def __init__(self, references: References) -> None:
        self._references = references

    def added(self, machine: Machine) -> None:
        """Hold the scope."""
        if machine.record.allocated:
            self._references.hold([machine.unit])

    def ended(self, machine: Machine) -> None:
        """Let it go."""
        self._references.release(machine.unit)


class FollowedHelpers(Follower):
    """Keeps the states of helpers for as long as their machine is there."""

    def __init__(self, states: HelperStates) -> None:
        self._states = states

    def ended(self, machine: Machine) -> None:
        """Forget the states of its helpers."""
        self._states.drop(helper.unit for helper in machine.record.helpers)
