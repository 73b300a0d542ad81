"""The door on the message bus: the name, the calls that come in under it, and the signals that go out.

It is open where moored is in machined's place. Without a bus it stays closed, and nothing else is different.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import trio

from moorage.api.machine1.description import MANAGER, NAME
from moorage.api.machine1.errors import (
    FAILED,
    INVALID_ARGS,
    LIMITS_EXCEEDED,
    NOT_SUPPORTED,
    Refusal,
    refusal_of,
)
from moorage.api.machine1.objects import Objects
from moorage.api.machine1.paths import ROOT, name_of, path_of
from moorage.api.machine1.request import Request
from moorage.api.machine1.senders import Place, Senders, TooMany, Unknown
from moorage.api.systemd_machine.handlers import SystemdMachine
from moorage.dbus.bus import BusError
from moorage.dbus.marshal import Unmarshallable
from moorage.dbus.message import BusSignal, Violation
from moorage.dbus.served import BUS, UNKNOWN, Incoming, ServedBus, disown, greet, own
from moorage.machines.followers import Follower
from moorage.machines.machine import Machine
from moorage.wire.disposal import Disposal
from moorage.wire.errors import VarlinkError

CONNECT_SECONDS: Final = 10.0
"""For connecting and for the name, s. A broker that is not loaded needs a ms."""

END_SECONDS: Final = 5.0
"""For calls under way at the end of the service, s: what has reached the service manager is found again."""

BACKOFF_FIRST_SECONDS: Final = 0.05
BACKOFF_MAX_SECONDS: Final = 5.0
"""Pauses between attempts to connect, doubled each time: as those to the service manager."""

CLOSING_MAX: Final = 256
"""Descriptors of strangers that wait to be closed: an ordinary close takes some µs, so more are an attack. The broker
cannot be told to let none through, so the connection is given up, and made anew after a pause."""

_MATCHES: Final = (
    f"type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg0='{NAME}'",
)

_log = logging.getLogger(__name__)


class Door(Follower):
    """Serves org.freedesktop.machine1. Works while `run` runs.

    Args:
        address: of the message bus; None for a door that stays closed.
        theirs: makes the calls.

    Attributes:
        last_activity: when a call came last, on trio's clock.
    """

    _disposal: Disposal

    def __init__(self, address: str | None, theirs: SystemdMachine) -> None:
        self._address = address
        self._objects = Objects(theirs)
        self._senders = Senders(frozenset({0, os.geteuid()}))
        self._bus: ServedBus | None = None
        self._nursery: trio.Nursery | None = None
        self._lost = trio.Event()
        self._owned = False
        self._quiet = trio.Event()
        self._quiet.set()
        self._ending = False
        self._complained = ""
        self.last_activity = -1.0

    @property
    def busy(self) -> bool:
        """Whether calls are under way."""
        return len(self._senders) > 0

    # Followers

    def added(self, machine: Machine) -> None:
        """Send MachineNew."""
        self._emit("MachineNew", machine)

    def ended(self, machine: Machine) -> None:
        """Send MachineRemoved."""
        self._emit("MachineRemoved", machine)

    def _emit(self, member: str, machine: Machine) -> None:
        if self._bus is not None and self._owned and not self._bus.closed:
            self._bus.emit(ROOT, MANAGER, member, "so", (machine.name, path_of(machine.name)))

    # The connection

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, and again whenever the connection is lost. Started once the name is there, or cannot be had."""
        if self._address is None:
            task_status.started()
            return
        failures = 0
        async with trio.open_nursery() as self._nursery:
            self._disposal = Disposal(self._nursery)
            while not self._ending:
                try:
                    await self._one_connection(self._address, task_status)
                    failures = 0
                except BusError as error:
                    failures += 1
                    self._complain(str(error))
                    task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                await trio.sleep(min(BACKOFF_FIRST_SECONDS * 2 ** min(failures, 16), BACKOFF_MAX_SECONDS))

    async def _one_connection(self, address: str, task_status: trio.TaskStatus[None]) -> None:
        deadline = trio.current_time() + CONNECT_SECONDS
        bus = await ServedBus.connect(address, self._signalled, self._closed, deadline=deadline)
        bus.serve(self._called, self._dispose)
        self._bus = bus
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.run)
            try:
                await greet(bus, _MATCHES, deadline=deadline)
                await self._claim(bus, deadline)
            except BusError:
                bus.close("the name cannot be had")
                raise
            task_status.started()
            while not bus.closed:
                await self._lost.wait()
                self._lost = trio.Event()
                if not bus.closed and not self._ending:
                    await self._claim(bus, trio.current_time() + CONNECT_SECONDS)

    async def _claim(self, bus: ServedBus, deadline: float) -> None:
        self._owned = await own(bus, NAME, deadline=deadline)
        if self._owned:
            self._complained = ""
        else:
            self._complain("another process has it")

    def _complain(self, reason: str) -> None:
        level = logging.DEBUG if reason == self._complained else logging.WARNING
        self._complained = reason
        _log.log(level, "Failed to serve %s on the message bus, going on without: %s", NAME, reason)

    def _signalled(self, signal: BusSignal) -> None:
        if signal.sender != BUS or signal.member != "NameOwnerChanged":
            return
        body = signal.body("sss")
        if body is not None and body[0] == NAME and not body[2]:
            self._owned = False
            self._lost.set()

    def _closed(self, reason: str) -> None:
        _log.debug("The connection to the message bus has ended: %s", reason)
        self._bus = None
        self._owned = False
        self._lost.set()

    def _dispose(self, uid: int, fds: Iterable[int]) -> None:
        """Close descriptors of strangers, unless so many of theirs wait for it that others would have none."""
        self._disposal.close(uid, fds)
        if self._bus is not None and self._disposal.pending(uid)[1] > CLOSING_MAX:
            self._bus.close("peers send file descriptors faster than they can be closed")

    async def end(self) -> None:
        """Give the name back, and finish what has come under it."""
        self._ending = True
        bus = self._bus
        if bus is None:
            return
        with trio.move_on_after(END_SECONDS):
            with suppress(BusError):
                await disown(bus, NAME, deadline=trio.current_time() + END_SECONDS)
            while self.busy and not bus.closed:
                self._quiet = trio.Event()
                await self._quiet.wait()
        bus.close("the service ends")
        self._disposal.end()

    # Calls

    def _called(self, incoming: Incoming) -> None:
        self.last_activity = trio.current_time()
        try:
            place = self._senders.enter(incoming.sender)
        except TooMany:
            incoming.close(UNKNOWN)
            incoming.fail(LIMITS_EXCEEDED, "Too many calls are under way.")
            return
        assert self._nursery is not None, "nobody runs this"
        assert self._bus is not None, "it is connected"
        self._nursery.start_soon(self._handle, self._bus, incoming, place)

    async def _handle(self, bus: ServedBus, incoming: Incoming, place: Place) -> None:
        try:
            signature, body = await self._answer(bus, incoming, place)
        except Unknown as error:
            if not error.gone:
                incoming.fail(NOT_SUPPORTED, "This message bus does not say which process calls.")
        except TooMany:
            incoming.fail(LIMITS_EXCEEDED, "Too many calls are under way.")
        except Refusal as error:
            incoming.fail(error.name, error.text)
        except Violation:
            incoming.fail(INVALID_ARGS, "The arguments cannot be decoded.")
        except Exception:  # noqa: BLE001 - a bug of ours, which must not end the calls of others
            _log.exception("Failed to handle %s on the message bus.", incoming.member)
            incoming.fail(FAILED, "Internal error.")
        else:
            self._send(incoming, signature, body)
        finally:
            incoming.close(place.uid)
            place.leave()
            if not self.busy:
                self._quiet.set()

    async def _answer(
        self, bus: ServedBus, incoming: Incoming, place: Place
    ) -> tuple[str, tuple[object, ...]]:
        peer = await place.peer(bus)
        arguments = incoming.arguments()
        try:
            return await self._objects.call(
                Request(incoming, peer, self._dispose),
                incoming.path,
                incoming.interface,
                incoming.member,
                incoming.signature,
                arguments,
            )
        except VarlinkError as error:
            raise refusal_of(error, _machine_of(incoming.path, arguments)) from None

    def _send(self, incoming: Incoming, signature: str, body: tuple[object, ...]) -> None:
        try:
            incoming.answer(signature, body)
        except Unmarshallable:
            fds = [value for kind, value in zip(signature, body, strict=False) if kind == "h"]
            for fd in fds:
                if isinstance(fd, int):
                    os.close(fd)
            raise


def _machine_of(path: str, arguments: tuple[object, ...]) -> str:
    """Return the name of the machine that a call is about, for the words of an error."""
    if (name := name_of(path)) is not None:
        return name
    return str(arguments[0]) if arguments else ""
