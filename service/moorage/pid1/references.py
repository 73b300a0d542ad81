"""References to units, so that the service manager keeps those that have ended until somebody has looked at them.

A scope that ends is forgotten at once, with all that the manager knows of it: its result, what it has consumed. It
keeps units that a client on the message bus has a reference to (``RefUnit()``, org.freedesktop.systemd1(5)), for as
long as the client is there: whoever dies leaves nothing behind. So that units are kept as well while this service is
dead, the manager gets a duplicate of the connection's socket into its file descriptor store: the connection stays
open. The next instance never reads from it, as half a message may be in it. It takes references of its own, and then
shuts it down, which closes all duplicates of it, whoever has them.

The connection is for references alone. It asks for no signals, so that nothing but the last replies, 64 at most, waits
in it while nobody reads. Should others send it so much that the broker drops it, units are forgotten as they end.

On the manager's private socket there are no references, nor without a message bus: then units are forgotten, which is
what everybody here is prepared for.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import socket
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

    def succeed(self) -> None:
        """Take note that all that ended before this instance has been looked at, and is to be kept no longer."""
        ...


class DescriptorStore(Protocol):
    """Sockets that stay open when this process ends.

    Attributes:
        found: file descriptors of those that were there at the start; the user's from now on.
    """

    found: list[int]

    def put(self, descriptor: int) -> bool:
        """Store a duplicate until it is shut down; return whether that could be asked for."""
        ...


class BusReferences:
    """`References` over a connection of their own to the manager's bus."""

    def __init__(self, bus: str | None, store: DescriptorStore | None = None) -> None:
        """Hold nothing yet.

        Args:
            bus: path of the bus's socket, where "@" begins the name of an abstract one; None to do without one.
            store: where connections outlive this process; None if there is no such place.
        """
        self._bus = bus
        self._store = store
        self._stored: int | None = None  # a duplicate of what is stored
        self._earlier: list[int] = [] if store is None else store.found
        self._succeeded = trio.Event()
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

    def succeed(self) -> None:
        """See `References`."""
        self._succeeded.set()
        self._changed.set()

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
        """Take and drop references for ever; without a bus, let go of earlier ones in time."""
        try:
            if self._bus is None:
                await self._succeeded.wait()
                self._let_go()
            while self._bus is not None:
                if not await self._session(self._bus) and self._succeeded.is_set():
                    self._let_go()  # nobody can tell for how long names would stay taken
                if self._succeeded.is_set():
                    await trio.sleep(RETRY_SECONDS)
                else:
                    with trio.move_on_after(RETRY_SECONDS):
                        await self._succeeded.wait()
        finally:
            # Not shut down: they are to outlive this process.
            for descriptor in (*self._earlier, *(() if self._stored is None else (self._stored,))):
                os.close(descriptor)

    async def _session(self, bus: str) -> bool:
        """Take and drop references until the connection is lost; return whether there was one."""
        deadline = trio.current_time() + CALL_SECONDS
        try:
            link = await Bus.connect(
                bus, _ignore_signal, self._lost, deadline=deadline, calls_max=BUS_CALLS_MAX
            )
        except BusError:
            return False
        up = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            try:
                hello = BusCall(_BUS, "/org/freedesktop/DBus", _BUS, "Hello", reply="s")
                await link.call(hello, deadline=deadline)
                self._up = up = True
                while not link.closed:
                    self._changed = trio.Event()
                    await self._catch_up(link)
                    again = math.inf if self._hand_over(link) else trio.current_time() + RETRY_SECONDS
                    with trio.move_on_at(min(self._drop_at, again)):
                        await self._changed.wait()
            except BusError as error:
                _log.debug("Failed to hold units, trying again: %s", error)
            link.close("it is not needed any more")
        if self._stored is not None:  # perhaps this end alone was closed, and not the bus
            _shut_down(self._stored)
            self._stored = None
        return up

    def _hand_over(self, link: Bus) -> bool:
        """Store a connection that holds all that is wanted, and only then let go of earlier ones.

        They are let go even if it cannot be stored: names that stay taken are worse than accounts that are not whole.

        Returns:
            Whether that is done, or is not due yet.
        """
        if link.closed or not self._succeeded.is_set():
            return True
        if self._store is not None and self._stored is None:
            self._stored = _duplicate_in(self._store, link)
        self._let_go()
        return self._store is None or self._stored is not None

    def _let_go(self) -> None:
        for descriptor in self._earlier:
            _shut_down(descriptor)
        self._earlier.clear()

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


def _duplicate_in(store: DescriptorStore, link: Bus) -> int | None:
    """Store a connection; return another duplicate of it, or None if there is none."""
    try:
        duplicate = os.dup(link.fileno())
    except OSError as error:  # no file descriptor is left
        _log.warning("Failed to duplicate the connection to the bus, trying again: %s", error)
        return None
    if store.put(duplicate):
        return duplicate
    os.close(duplicate)
    return None


def _shut_down(descriptor: int) -> None:
    """Close a connection, and with it all duplicates."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=descriptor) as connection,
        contextlib.suppress(OSError),  # it was closed at the other end
    ):
        connection.shutdown(socket.SHUT_RDWR)


def _ignore_signal(_: BusSignal) -> None:
    pass


def _is_away(reply: object) -> bool:
    """Whether the manager went before it answered; it keeps references when it executes itself again."""
    return isinstance(reply, CallFailed) and reply.name in _AWAY


def _call(member: str, unit: str) -> BusCall:
    return BusCall(_NAME, "/org/freedesktop/systemd1", f"{_NAME}.Manager", member, "s", (unit,))
