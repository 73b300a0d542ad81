"""Leases: a machine that has one ends with what holds it, a connection of its launcher's.

Connections end with this service too, and that is no reason to end machines: an upgrade must not be noticed by
them. So no lease ends after the order to end (:meth:`Leases.close`), whatever closes then; nor does the next instance
end one before the launchers had the time to take theirs again (:meth:`Leases.spare`). A lease that had ended before
that, and was not acted upon yet, nobody takes again: so the next instance finds out.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractContextManager, ExitStack

import trio

from moorage.machines.control import Control
from moorage.machines.detached import Detached
from moorage.machines.errors import NotStoppable, TooMuchUnderWay
from moorage.machines.events import Kind
from moorage.machines.followers import Followers
from moorage.machines.machine import Machine, Work
from moorage.machines.model import Cause
from moorage.pid1.errors import ManagerError

LEASE_GRACE_SECONDS = 5.0
"""Grace period for leases inherited from a previous instance. A live launcher sees its connection drop, and registers
again within it."""

GRACE_STEP_SECONDS = 0.25
"""The grace is counted in steps of so many seconds: as calls are answered in the same loop, time during which that
stood still was no time in which a launcher could have come, and counts as one step at most."""

_log = logging.getLogger(__name__)


class Leases:
    """Ends machines with what holds them.

    Args:
        control: stops them.
        followers: are told.
        detached: waits for the end of what holds them.
        grace: s; see LEASE_GRACE_SECONDS.
    """

    def __init__(
        self, control: Control, followers: Followers, detached: Detached, grace: float = LEASE_GRACE_SECONDS
    ) -> None:
        self._control = control
        self._followers = followers
        self._grace = grace
        self._detached = detached
        self._serving = trio.Event()
        self._closed = False

    def serve(self) -> None:
        """Take note that calls are served from now on."""
        self._serving.set()

    def close(self) -> None:
        """End no machine any more: what holds them may be about to end with this service."""
        self._closed = True

    def hold(self, machine: Machine, ended: Callable[[], Awaitable[None]], *, again: bool = False) -> None:
        """Stop a machine as soon as a function has returned.

        Args:
            machine: one of the registry's.
            ended: returns when nobody holds it any more.
            again: it was held before, by another connection.

        Raises:
            TooMuchUnderWay: too many hold it.
        """
        with ExitStack() as held:
            resumed = again and not machine.has_under_way(Work.lease)
            held.enter_context(machine.under_way(Work.lease))
            if resumed:
                self._followers.happened(machine, Kind.lease_resumed)
            self._detached.start(self._wait, machine, held.pop_all(), ended)

    async def spare(self, machines: Collection[Machine]) -> None:
        """End those machines whose leases another instance held, and that nobody has taken again in time."""
        if not machines:
            return
        await self._serving.wait()
        for _ in range(round(self._grace / GRACE_STEP_SECONDS)):
            await trio.sleep(GRACE_STEP_SECONDS)
        async with trio.open_nursery() as nursery:
            for machine in machines:
                if not machine.has_under_way(Work.lease):
                    why = "nobody has taken it again since this service was restarted"
                    nursery.start_soon(self._end, machine, why)

    async def _wait(
        self, machine: Machine, held: AbstractContextManager[object], ended: Callable[[], Awaitable[None]]
    ) -> None:
        async def wait(until: Callable[[], Awaitable[None]]) -> None:
            await until()
            nursery.cancel_scope.cancel()

        with held:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, ended)
                nursery.start_soon(wait, machine.gone.wait)
        await self._end(machine, "the connection that held it has ended")

    async def _end(self, machine: Machine, why: str) -> None:
        """Stop a machine that nothing holds any more, however long that takes."""
        if self._closed or machine.gone.is_set():
            return
        self._followers.happened(machine, Kind.lease_lost)
        _log.info("The lease of machine %s has ended: %s. Stopping it.", machine.name, why)
        while not self._closed and not machine.gone.is_set():
            try:
                await self._control.stop(machine, cause=Cause.lease_ended)
            except (ManagerError, TooMuchUnderWay, OSError) as error:
                _log.warning("Failed to stop machine %s, trying again: %s", machine.name, error)
                await self._control.pause(machine)
            except NotStoppable:
                return
