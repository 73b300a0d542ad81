"""Leases: a machine that has one ends with what holds it, a connection of its launcher's.

Connections end with this service too, and that is no reason to end machines: an upgrade must not be noticed by
them. So no lease ends after the order to end (:meth:`Leases.close`), whatever closes then; nor does the next instance
end one before the launchers had the time to take theirs again (:meth:`Leases.spare`). A lease that had ended before
that, and was not acted upon yet, nobody takes again: so the next instance finds out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager

import trio

from moorage.machines.model import Machine

LEASE_GRACE_USEC = 5_000_000
"""For how long a machine is spared whose lease another instance held, µs: a launcher that lives notices at once that
its connection has ended, and registers the machine again."""

GRACE_STEP_USEC = 250_000
"""The grace is counted in steps of so many µs: as calls are answered in the same loop, time during which that stood
still was no time in which a launcher could have come, and counts as one step at most."""


class Leases:
    """Knows which machines end with what holds them.

    Args:
        end: ends a machine, for a reason that the log is told.
        is_held: whether anything holds it.
    """

    def __init__(
        self, end: Callable[[Machine, str], Awaitable[None]], is_held: Callable[[Machine], bool]
    ) -> None:
        self._end = end
        self._is_held = is_held
        self._serving = trio.Event()
        self.closed = False

    def serve(self) -> None:
        """Take note that calls are served from now on."""
        self._serving.set()

    def close(self) -> None:
        """End no machine any more: what holds them may be about to end with this service."""
        self.closed = True

    async def hold(
        self, machine: Machine, held: AbstractContextManager[object], *ends: Callable[[], Awaitable[None]]
    ) -> None:
        """End a machine as soon as one of the functions has returned.

        Args:
            machine: the machine.
            held: to be left when that has happened, but before the end.
            ends: wait for what holds the machine, or for the machine's own end.
        """

        async def wait(until: Callable[[], Awaitable[None]]) -> None:
            await until()
            nursery.cancel_scope.cancel()

        with held:
            async with trio.open_nursery() as nursery:
                for until in ends:
                    nursery.start_soon(wait, until)
        if not self.closed:
            await self._end(machine, "the connection that held it has ended")

    async def spare(self, machines: Iterable[Machine]) -> None:
        """End those machines whose leases another instance held, and that nobody has taken again in time."""
        await self._serving.wait()
        for _ in range(LEASE_GRACE_USEC // GRACE_STEP_USEC):
            await trio.sleep(GRACE_STEP_USEC / 1e6)
        async with trio.open_nursery() as nursery:
            for machine in machines:
                if not self._is_held(machine) and not self.closed:
                    why = "nobody has taken it again since this service was restarted"
                    nursery.start_soon(self._end, machine, why)
