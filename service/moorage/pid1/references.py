"""References to units, so that the service manager keeps those that have ended until somebody has looked at them.

A scope that ends is forgotten at once, with all that the manager knows of it: its result, what it has consumed. It
keeps units that a client on the message bus has a reference to (``RefUnit()``, org.freedesktop.systemd1(5)), for as
long as the client is there: whoever dies leaves nothing behind. On the manager's private socket there are no
references, nor without a message bus: then units are forgotten, which is what everybody here is prepared for.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable
from typing import Protocol

import trio

from moorage.dbus.bus import BUS_CALLS_MAX, Bus, BusError, CallFailed
from moorage.dbus.message import BusCall, BusSignal

CALL_SECONDS = 10.0
"""For one call: longer than it takes the manager to reload its configuration."""

SETTLE_SECONDS = 1.0
"""For how long anybody waits until a unit is kept: that takes a few ms, and is no reason to fail."""

RETRY_SECONDS = 5.0
"""Between attempts to connect. Where there is no bus, an attempt is one connect(2) that fails."""

AWAY_SECONDS = 0.1
"""Between attempts to reach a manager that executes itself again, which takes it 0.3 s."""

CHANGES_MAX = 64
"""References taken or dropped in one go; a bus has room for the calls of others as well."""

QUIET_SECONDS = 0.05
"""How long ago the last release has to be for a unit to be let go at once, s. Where many end, they are let go together
when no more have ended for so long: the manager and the broker need 0.87 ms for each of 400 in one slice then, and
1.39 ms if each is let go by itself (systemd 262)."""

LINGER_SECONDS = 0.5
"""For how long a unit is kept at most after its release, s, while others go on ending."""

_NAME = "org.freedesktop.systemd1"
_BUS = "org.freedesktop.DBus"
_AWAY = {f"{_BUS}.Error.{name}" for name in ("NoReply", "Disconnected", "ServiceUnknown", "NameHasNoOwner")}

_log = logging.getLogger(__name__)


class References(Protocol):
    """References of this process to units of one manager."""

    def holds(self, unit: str) -> bool:
        """Return whether the manager keeps a unit for us, or is about to."""
        ...

    def hold(self, units: Iterable[str]) -> None:
        """Have units kept that are there, as soon as that can be done."""
        ...

    async def settled(self, unit: str) -> None:
        """Wait until a unit is kept, or cannot be: for SETTLE_SECONDS at most."""
        ...

    def release(self, unit: str, *, at_once: bool = False) -> None:
        """Have a unit kept no more, at once or within LINGER_SECONDS; nothing happens if it was not."""
        ...

    async def freed(self, unit: str) -> None:
        """Let a unit go at once if it was released, and wait until that is done: for SETTLE_SECONDS at most."""
        ...


class BusReferences:
    """`References` over a connection of their own to the manager's bus."""

    def __init__(self, bus: str | None) -> None:
        """Hold nothing yet.

        Args:
            bus: path of the bus's socket, where "@" begins the name of an abstract one; None to do without one.
        """
        self._bus = bus
        self._wanted: dict[str, None] = {}
        self._held: set[str] = set()
        self._missing: dict[str, None] = {}  # wanted, and not held
        self._lingering: dict[str, None] = {}  # held, and not wanted
        self._dropping: dict[str, None] = {}  # the same, to be let go now
        self._released_at = -math.inf  # the last of them
        self._drop_at = math.inf
        self._drop_by = math.inf  # should more be released all the while
        self._changed = trio.Event()
        self._up = False
        self._progress = trio.Event()

    def holds(self, unit: str) -> bool:
        """See `References`."""
        return self._up and unit in self._wanted

    def hold(self, units: Iterable[str]) -> None:
        """See `References`."""
        for unit in units:
            self._wanted[unit] = None
            self._lingering.pop(unit, None)
            if (unit not in self._held or unit in self._dropping) and unit not in self._missing:
                self._missing[unit] = None
                self._changed.set()

    async def settled(self, unit: str) -> None:
        """See `References`."""
        if unit in self._missing:
            with trio.move_on_after(SETTLE_SECONDS):
                while self.holds(unit) and unit in self._missing:
                    await self._progress.wait()

    def release(self, unit: str, *, at_once: bool = False) -> None:
        """See `References`."""
        if unit not in self._wanted:
            return
        del self._wanted[unit]
        self._missing.pop(unit, None)
        if unit in self._held and unit not in self._dropping:
            if at_once:
                self._dropping[unit] = None
            else:
                self._linger(unit)
        self._changed.set()

    async def freed(self, unit: str) -> None:
        """See `References`."""
        if unit in self._lingering:
            del self._lingering[unit]
            self._dropping[unit] = None
            self._changed.set()
        if unit in self._dropping:
            with trio.move_on_after(SETTLE_SECONDS):
                while unit in self._dropping:
                    await self._progress.wait()

    def _linger(self, unit: str) -> None:
        """Let a unit go in a while, or now, if it is the first for long."""
        present = trio.current_time()
        if not self._lingering:
            self._drop_by = present + LINGER_SECONDS
        quiet = present - self._released_at >= QUIET_SECONDS and not self._lingering
        self._lingering[unit] = None
        self._released_at = present
        self._drop_at = present if quiet else min(present + QUIET_SECONDS, self._drop_by)

    async def run(self) -> None:
        """Take and drop references for ever."""
        while self._bus is not None:
            await self._session(self._bus)
            await trio.sleep(RETRY_SECONDS)

    async def _session(self, bus: str) -> None:
        deadline = trio.current_time() + CALL_SECONDS
        try:
            link = await Bus.connect(
                bus, _ignore_signal, self._lost, deadline=deadline, calls_max=BUS_CALLS_MAX
            )
        except BusError:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            try:
                hello = BusCall(_BUS, "/org/freedesktop/DBus", _BUS, "Hello", reply="s")
                await link.call(hello, deadline=deadline)
                self._up = True
                while not link.closed:
                    self._changed = trio.Event()
                    await self._catch_up(link)
                    with trio.move_on_at(self._drop_at):
                        await self._changed.wait()
            except BusError as error:
                _log.debug("Failed to hold units, trying again: %s", error)
            link.close("it is not needed any more")

    def _lost(self, _reason: str) -> None:
        self._up = False
        # The manager drops them with the connection.
        self._held.clear()
        self._lingering.clear()
        self._dropping.clear()
        self._drop_at = math.inf
        self._missing = dict(self._wanted)
        self._tell()
        self._changed.set()

    def _tell(self) -> None:
        self._progress.set()
        self._progress = trio.Event()

    async def _catch_up(self, link: Bus) -> None:
        """Have the manager keep what is wanted, and nothing else but what lingers.

        Raises:
            BusError: the connection is lost, or too slow.
        """
        while not link.closed:
            if trio.current_time() >= self._drop_at:
                self._dropping |= self._lingering
                self._lingering.clear()
                self._drop_at = math.inf
            dropped = list(itertools.islice(self._dropping, CHANGES_MAX))
            wanted = (unit for unit in self._missing if unit not in self._dropping)
            taken = list(itertools.islice(wanted, CHANGES_MAX - len(dropped)))
            if not dropped and not taken:
                return
            calls = [_call("UnrefUnit", unit) for unit in dropped] + [
                _call("RefUnit", unit) for unit in taken
            ]
            replies = await link.calls(calls, deadline=trio.current_time() + CALL_SECONDS)
            if link.closed:  # and with it goes what was just taken
                return
            away = {unit for unit, reply in zip([*dropped, *taken], replies, strict=True) if _is_away(reply)}
            for unit in dropped:
                if unit not in away:
                    self._held.discard(unit)
                    del self._dropping[unit]
            for unit, reply in zip(taken, replies[len(dropped) :], strict=True):
                if unit in away:  # it may have been taken, and is counted if it is taken again
                    self._dropping[unit] = None
                else:
                    self._took(unit, refused=isinstance(reply, BusError))
            self._tell()
            if away:
                await trio.sleep(AWAY_SECONDS)

    def _took(self, unit: str, *, refused: bool) -> None:
        self._missing.pop(unit, None)
        if refused:  # it is gone, or we may not
            self._wanted.pop(unit, None)
        else:
            self._held.add(unit)
            if unit not in self._wanted:
                self._linger(unit)


def _ignore_signal(_: BusSignal) -> None:
    pass


def _is_away(reply: object) -> bool:
    """Whether the manager went before it answered; it keeps references when it executes itself again."""
    return isinstance(reply, CallFailed) and reply.name in _AWAY


def _call(member: str, unit: str) -> BusCall:
    return BusCall(_NAME, "/org/freedesktop/systemd1", f"{_NAME}.Manager", member, "s", (unit,))
