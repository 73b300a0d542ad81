"""Stops machines that are given time to end by themselves: they are asked first, and the stop insists later.

The guest is asked to power off where the caller wants it. And those who wait for a stop, such as the launcher, are
told before any process of the machine is, and may shut the guest down in their own way; the machine gets the time that
they want for that. When the last of them has left, nobody shuts it down any more, and the stop insists.

Once begun that goes on without its caller. The record says by when the stop insists, so that the next instance does if
this one is killed meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from moorage.kernel.clock import Clock
from moorage.kernel.process import ProcessGone
from moorage.machines.control import Control
from moorage.machines.detached import Detached
from moorage.machines.errors import NotStoppable, Refused, TooMuchUnderWay
from moorage.machines.followers import Follower
from moorage.machines.machine import UNDER_WAY_MAX, Machine, Period, either
from moorage.machines.model import Phase
from moorage.machines.powering import Power, Powering, control_path
from moorage.machines.registry import Registry
from moorage.machines.store import Store
from moorage.pid1.errors import ManagerError, ManagerTimeout, UnitBusy
from moorage.pid1.manager import ASK_SECONDS, Manager

INSIST_SECONDS: Final = 90.0
"""For how long a guest that was asked to power off may take, if the caller does not say: the manager's
DefaultTimeoutStopSec=."""

GRACE_SECONDS_MAX: Final = 300.0
"""The longest time that those who wait may want. Root can insist earlier, and so can who registered the machine."""

_log = logging.getLogger(__name__)


class Waiter:
    """Somebody who wants to be told before a machine is stopped.

    Attributes:
        seconds: how much time the machine needs to end then.
        woken: called when there is something to look at.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.woken: Callable[[], None] = lambda: None
        self.told: Period | None = None

    def wake(self) -> None:
        """See `Waiting`."""
        self.woken()

    def take(self, machine: Machine) -> Period | None:
        """Return the time that a machine is given, once; None if there is none, or it was returned before."""
        period = machine.period
        if period is self.told:
            return None
        self.told = period
        return period


class Grace(Follower):
    """Gives machines time to end."""

    def __init__(
        self,
        registry: Registry,
        store: Store,
        control: Control,
        powering: Powering,
        manager: Manager,
        trusted: frozenset[int],
        clock: Clock,
        detached: Detached,
    ) -> None:
        self._registry = registry
        self._store = store
        self._control = control
        self._powering = powering
        self._manager = manager
        self._trusted = trusted
        self._clock = clock
        self._detached = detached
        self._closed = False

    def close(self) -> None:
        """Take note that this service ends: those who wait leave with it, and come back to the next instance."""
        self._closed = True

    def join(self, machine: Machine, seconds: float) -> Waiter:
        """Add a waiter that is called before a machine is stopped; it must :meth:`leave`.

        Args:
            machine: one of the registry's.
            seconds: how much time the machine needs to end then.

        Raises:
            TooMuchUnderWay: too many are.
        """
        if len(machine.waiting) >= UNDER_WAY_MAX:
            raise TooMuchUnderWay
        waiter = Waiter(seconds)
        machine.waiting = (*machine.waiting, waiter)
        return waiter

    def leave(self, machine: Machine, waiter: Waiter) -> None:
        """Remove a waiter. The grace that a machine has because of its waiters is over with the last of them."""
        machine.waiting = tuple(each for each in machine.waiting if each is not waiter)
        period = machine.period
        if period is not None and not (machine.waiting or period.power_off or self._closed):
            period.shorten(trio.current_time())

    def begin(self, machine: Machine, *, power_off: bool, insist_after: float | None) -> Period | None:
        """Begin to stop a machine that is given time first; if it has time already, it may get less.

        Args:
            machine: one of the registry's.
            power_off: ask its guest to power off.
            insist_after: how much time it has, in seconds; None for the default. Of several calls the one that gives
                least counts.

        Returns:
            Its time; None if it has none, and nothing was done: also if it is frozen with a slice above it, so that
            it could do nothing in that time.

        Raises:
            GuestUnreachable: its guest cannot be asked; nothing was done.
        """
        if power_off:
            control_path(machine.record, Power.off)
        if (period := machine.period) is not None:
            if insist_after is not None:
                period.shorten(trio.current_time() + insist_after)
            return period if insist_after != 0 else None
        seconds = self.seconds(machine, power_off=power_off, insist_after=insist_after)
        if seconds == 0 or not self._runs(machine) or self._control.is_held(machine):
            return None
        insist_by = self._clock.monotonic() + round(seconds * 1e6)
        self._control.note_asked(machine, insist_by=insist_by)
        period = self._give(machine, seconds, insist_by, power_off=power_off)
        for waiter in machine.waiting:
            waiter.wake()
        return period

    async def before_shutdown(self) -> None:
        """Give time to machines that the manager is about to stop, and wait until all that have time had it.

        When the host shuts down, the scopes of machines wait for this (`moorage.names.SHUTDOWN`). Whoever waits for
        the stop of one of them is told, as if it was stopped by a call. A user may delay a shutdown for no longer than
        a process of that user's session could.
        """
        periods: list[Period] = []
        for machine in list(self._registry):
            if not (machine.waiting or machine.period) or not await self._is_to_go(machine):
                continue
            most = GRACE_SECONDS_MAX if machine.record.registrant in self._trusted else INSIST_SECONDS
            if machine.period is None:
                most = min(most, self.seconds(machine, power_off=False, insist_after=None))
            self.begin(machine, power_off=False, insist_after=most)
            if machine.period is not None:
                periods.append(machine.period)
        for period in periods:
            await period.ended.wait()

    async def _is_to_go(self, machine: Machine) -> bool:
        """Whether a job for the unit of a machine waits; a unit that outlives a soft reboot has none."""
        deadline = trio.current_time() + ASK_SECONDS
        try:
            job = (await self._manager.properties(machine.unit, ["Job"], deadline=deadline)).get("Job")
        except ManagerError as error:
            _log.warning("Failed to look for a job of %s, ignoring: %s", machine.unit, error)
            return True  # the worst of it is a machine that ends well
        return isinstance(job, list) and job[0] != 0

    def seconds(self, machine: Machine, *, power_off: bool, insist_after: float | None) -> float:
        """Return how much time a machine would be given, in seconds."""
        wanted = [each.seconds for each in machine.waiting] + ([INSIST_SECONDS] if power_off else [])
        return max(wanted) if wanted and insist_after is None else (insist_after or 0.0) if wanted else 0.0

    def _runs(self, machine: Machine) -> bool:
        return self._registry.get(machine.name) is machine and machine.phase is Phase.running

    async def wait(self, machine: Machine, period: Period, *, timeout: float) -> None:
        """Wait until a machine is gone that :meth:`begin` has given time.

        Raises:
            UnitBusy: when its time was over, it could not be stopped. It is as soon as that is possible.
            ManagerTimeout: it is not gone yet.
        """
        with trio.move_on_after(timeout):
            await either(machine.gone, period.refused)
            if period.refusal is not None and not machine.gone.is_set():
                raise period.refusal
            return
        raise ManagerTimeout(f"stop of {machine.unit}")

    def added(self, machine: Machine) -> None:
        """Go on with a machine that an earlier instance has given time."""
        record = machine.record
        if record.insist_by is not None and record.verdict is None:
            left = max(0.0, (record.insist_by - self._clock.monotonic()) / 1e6)
            self._give(machine, left, record.insist_by, power_off=False)

    def ended(self, machine: Machine) -> None:
        """Wake the waiters of a machine that is gone."""
        for waiter in machine.waiting:
            waiter.wake()

    def _give(self, machine: Machine, seconds: float, insist_by: int, *, power_off: bool) -> Period:
        period = Period(trio.current_time() + seconds, insist_by, power_off=power_off)
        machine.period = period
        self._detached.start(self._see_through, machine, period)
        return period

    async def _see_through(self, machine: Machine, period: Period) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask, machine, period)
            await period.over(machine.gone)
            nursery.cancel_scope.cancel()
        machine.period = None
        period.ended.set()
        while not machine.gone.is_set():
            try:
                await self._control.stop(machine)
            except NotStoppable:
                self._control.spare(machine)
                return
            except (ManagerError, TooMuchUnderWay, OSError) as error:
                _log.warning("Failed to stop machine %s: %s", machine.name, error)
                if not machine.record.placement.is_whole:
                    return  # it is asked once, and nothing insists
                if isinstance(error, UnitBusy):
                    period.refuse(error)
                await self._control.pause(machine)

    async def _ask(self, machine: Machine, period: Period) -> None:
        """Ask the guest, or at least thaw the machine, so that it can end; if that fails, its time is over."""
        try:
            if period.power_off:
                await self._powering.ask(machine, Power.off)
            else:
                await self._control.thaw(machine)
        except (Refused, ProcessGone, ManagerError, OSError) as error:
            _log.warning("Failed to ask machine %s to end, stopping it: %s", machine.name, error)
            period.shorten(trio.current_time())
