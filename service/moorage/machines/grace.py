"""Stops machines that are given time to end by themselves: the guest is asked first, and the stop insists later.

Once begun that goes on without its caller. The record says by when the stop insists, so that the next instance does if
this one is killed meanwhile.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from moorage.kernel.clock import Clock
from moorage.kernel.process import ProcessGone
from moorage.machines.control import Control
from moorage.machines.detached import Detached
from moorage.machines.errors import NotStoppable, Refused, TooMuchUnderWay
from moorage.machines.followers import Follower
from moorage.machines.machine import Machine, Period
from moorage.machines.model import Phase
from moorage.machines.powering import Power, Powering, control_path
from moorage.machines.registry import Registry
from moorage.machines.store import Store
from moorage.pid1.manager import ASK_USEC, ManagerError, ManagerTimeout

INSIST_SECONDS: Final = 90.0
"""For how long a guest that was asked to power off may take, if the caller does not say: the manager's
DefaultTimeoutStopSec=."""

_log = logging.getLogger(__name__)


class Grace(Follower):
    """Gives machines time to end."""

    def __init__(
        self,
        registry: Registry,
        store: Store,
        control: Control,
        powering: Powering,
        clock: Clock,
        detached: Detached,
    ) -> None:
        self._registry = registry
        self._store = store
        self._control = control
        self._powering = powering
        self._clock = clock
        self._detached = detached

    def begin(self, machine: Machine, *, power_off: bool, insist_after: float | None) -> bool:
        """Begin to stop a machine that is given time first; if it has time already, it may get less.

        Args:
            machine: one of the registry's.
            power_off: ask its guest to power off.
            insist_after: how much time it has, in seconds; None for the default. Of several calls the one that gives
                least counts.

        Returns:
            Whether it has time. If not, nothing was done.

        Raises:
            GuestUnreachable: its guest cannot be asked; nothing was done.
        """
        if power_off:
            control_path(machine.record, Power.off)
        if (period := machine.period) is not None:
            if insist_after is not None:
                period.shorten(trio.current_time() + insist_after)
            return insist_after != 0
        seconds = INSIST_SECONDS if insist_after is None else insist_after
        if not power_off or seconds == 0 or not self._runs(machine):
            return False
        self._control.note_asked(machine, insist_by=self._clock.monotonic() + round(seconds * 1e6))
        self._give(machine, seconds, power_off=power_off)
        return True

    def _runs(self, machine: Machine) -> bool:
        return self._registry.get(machine.name) is machine and machine.phase is Phase.running

    async def wait(self, machine: Machine, *, timeout: float) -> None:
        """Wait until a machine is gone that :meth:`begin` has given time.

        Raises:
            ManagerTimeout: it is not gone yet.
        """
        with trio.move_on_after(timeout):
            await machine.gone.wait()
            return
        raise ManagerTimeout(f"stop of {machine.unit}")

    def added(self, machine: Machine) -> None:
        """Go on with a machine that an earlier instance has given time."""
        record = machine.record
        if record.insist_by is not None and record.verdict is None:
            left = max(0.0, (record.insist_by - self._clock.monotonic()) / 1e6)
            self._give(machine, left, power_off=False)

    def _give(self, machine: Machine, seconds: float, *, power_off: bool) -> None:
        period = machine.period = Period(trio.current_time() + seconds)
        self._detached.start(self._see_through, machine, period, power_off)

    async def _see_through(self, machine: Machine, period: Period, power_off: bool) -> None:  # noqa: FBT001
        async with trio.open_nursery() as nursery:
            if power_off:
                nursery.start_soon(self._ask, machine, period)
            await period.over(machine.gone)
            nursery.cancel_scope.cancel()
        machine.period = None
        while not machine.gone.is_set():
            try:
                await self._control.stop(machine)
            except (ManagerError, TooMuchUnderWay, OSError) as error:
                _log.warning("Failed to stop machine %s, trying again: %s", machine.name, error)
                await trio.sleep(ASK_USEC / 1e6)
            except NotStoppable:
                return

    async def _ask(self, machine: Machine, period: Period) -> None:
        """Ask a guest to power off; if that is not possible, its time is over."""
        try:
            await self._powering.ask(machine, Power.off)
        except (Refused, ProcessGone, ManagerError, OSError) as error:
            _log.warning("Failed to ask machine %s to power off, stopping it: %s", machine.name, error)
            period.shorten(trio.current_time())
