"""Followers of machines that come, change and go. They are called after the fact, so that none can fail a call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeAlias

from moorage.machines.events import Kind
from moorage.machines.helpers.status import HelperStates
from moorage.machines.machine import Machine
from moorage.machines.model import Registration
from moorage.machines.renewal import has_scope
from moorage.pid1.references import References

Fact: TypeAlias = Mapping[str, object]
"""What is known of something that has happened, besides its kind: names and values as io.moorage.Machine has them."""

_log = logging.getLogger(__name__)


class Follower(Protocol):
    """A follower of the machines. Its methods neither wait nor raise; each may be left out."""

    def added(self, machine: Machine) -> None:
        """Take note of a machine that has been registered, or was found again after a restart."""

    def changed(self, machine: Machine) -> None:
        """Take note of a machine that has another record: its helpers changed, or its verdict is complete."""

    def ended(self, machine: Machine) -> None:
        """Take note of a machine that has ended, or was forgotten: then it has no verdict."""

    def unrecorded(self, machine: Machine) -> None:
        """Take note that the record of a machine that has ended is about to be removed, or to be another one's."""

    def happened(self, machine: Machine, kind: Kind, fact: Fact) -> None:
        """Take note of something else that has happened to a machine. It may be told more than once."""

    def failed(self, registration: Registration, error: Exception) -> None:
        """Take note of a registration that has failed, of which nothing is left."""


class Followers:
    """All of them, told one after the other. What goes wrong with one of them is logged, and the others are told."""

    def __init__(self) -> None:
        self._followers: tuple[Follower, ...] = ()

    def join(self, *followers: Follower) -> None:
        """Add followers."""
        self._followers += followers

    def added(self, machine: Machine) -> None:
        """Report a machine that has been registered, or was found again."""
        self._tell(machine.name, (lambda each=each: each.added(machine) for each in self._followers))

    def changed(self, machine: Machine) -> None:
        """Report a machine that has another record."""
        self._tell(machine.name, (lambda each=each: each.changed(machine) for each in self._followers))

    def ended(self, machine: Machine) -> None:
        """Report a machine that has ended, or was forgotten."""
        self._tell(machine.name, (lambda each=each: each.ended(machine) for each in self._followers))

    def unrecorded(self, machine: Machine) -> None:
        """Report that there will be no record any more of a machine that has ended."""
        self._tell(machine.name, (lambda each=each: each.unrecorded(machine) for each in self._followers))

    def happened(self, machine: Machine, kind: Kind, fact: Fact | None = None) -> None:
        """Report any other event of a machine: the one place to call for every service that has a fact.

        Args:
            machine: to which it has happened.
            kind: what.
            fact: what is known of it.
        """
        known = fact or {}
        self._tell(
            machine.name, (lambda each=each: each.happened(machine, kind, known) for each in self._followers)
        )

    @contextmanager
    def failures(self, registration: Registration) -> Generator[None]:
        """Report a registration that fails within.

        Raises:
            Exception: what it fails with.
        """
        try:
            yield
        except Exception as error:
            name, failure = registration.name, error
            self._tell(
                name, (lambda each=each: each.failed(registration, failure) for each in self._followers)
            )
            raise

    def _tell(self, name: str, calls: Iterable[Callable[[], None]]) -> None:
        for call in calls:
            try:
                call()
            except Exception:  # noqa: BLE001 - the machine is there, or gone, whatever its followers make of that
                _log.exception("Failed to tell of machine %s, ignoring.", name)


class HeldUnits(Follower):
    """Has the service manager keep the scopes of machines until somebody has looked at how they ended."""

    def __init__(self, references: References) -> None:
        self._references = references

    def added(self, machine: Machine) -> None:
        """Hold the scope."""
        if has_scope(machine):
            self._references.hold([machine.unit])

    def ended(self, machine: Machine) -> None:
        """Release its unit; that of others at once, as they may want its name again the moment it has ended."""
        self._references.release(machine.unit, at_once=not machine.record.allocated)


class FollowedHelpers(Follower):
    """Keeps the states of helpers for as long as their machine is there."""

    def __init__(self, states: HelperStates) -> None:
        self._states = states

    def ended(self, machine: Machine) -> None:
        """Forget the states of its helpers."""
        self._states.drop(helper.unit for helper in machine.record.helpers)
