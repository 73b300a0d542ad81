"""The connection to the manager: its private socket, or the message bus.

The private socket (/run/systemd/private, or systemd/private in a user's runtime directory) needs no broker and is not
touched by its restarts. There are no names there, so `AddRef` and `Controller=` do not exist, and every signal of
every unit comes unasked (`bus_foreach_bus` in systemd's src/core/dbus.c). On the bus signals have to be subscribed
to, and anybody can send us one, so only those of the owner of the manager's name count.
"""

import os
import re
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

import msgspec
import trio

from moorage.dbus.bus import BUS_CALLS_MAX, PEER_CALLS_MAX, Bus, BusClosed, BusError
from moorage.dbus.message import BusCall, BusSignal
from moorage.pid1.errors import ManagerUnavailable
from moorage.pid1.jobs import JobEnd, JobLedger
from moorage.pid1.latency import Latency
from moorage.pid1.manager import UnitHint
from moorage.pid1.over_dbus.translate import (
    MANAGER,
    NAME,
    PROPERTIES,
    ROOT,
    SCOPE,
    SERVICE,
    UNIT,
    UNITS,
    Part,
    hint,
    part,
    unit_of,
)
from moorage.pid1.properties import UnitProperties

VERSION_MIN: Final = 257
"""The oldest systemd that this is tested with (design.md, decision 11); GetUnitByPIDFD came with 253."""

CONNECT_SECONDS: Final = 10.0
"""For connecting, authentication and the first calls. An idle manager needs 5 ms; one that is loading the units of
a large machine after a reload does not answer for seconds."""

FIRST_CONNECT_SECONDS: Final = 20.0
"""How long `run` tries before it fails: longer than the manager takes to execute itself again."""

LINK_WAIT_SECONDS: Final = 15.0
"""How long a call waits for a link that is down before it fails, if its own deadline is later: the same reason."""

BACKOFF_FIRST_SECONDS: Final = 0.05
BACKOFF_MAX_SECONDS: Final = 5.0
"""Pauses between attempts to connect, doubled each time; one attempt costs the manager next to nothing."""

LOYAL_ATTEMPTS: Final = 6
"""Attempts to reconnect in the way that worked before "auto" tries the other one as well. While the manager executes
itself again its socket is gone for a moment, which is no reason to move to the bus for good."""

LinkKind: TypeAlias = Literal["auto", "private", "bus"]

_BUS: Final = "org.freedesktop.DBus"
_BUS_PATH: Final = "/org/freedesktop/DBus"

_MATCHES: Final = (
    f"type='signal',sender='{_BUS}',interface='{_BUS}',member='NameOwnerChanged',arg0='{NAME}'",
    f"type='signal',sender='{NAME}',path='{ROOT}',interface='{MANAGER}',member='JobRemoved'",
    f"type='signal',sender='{NAME}',path='{ROOT}',interface='{MANAGER}',member='UnitRemoved'",
    f"type='signal',sender='{NAME}',path='{ROOT}',interface='{MANAGER}',member='Reloading'",
    # Of the two that come with each change of a unit, the one about what all types of units have, and of services and
    # scopes the other one as well.
    f"type='signal',sender='{NAME}',interface='{PROPERTIES}',member='PropertiesChanged',arg0='{UNIT}'",
    f"type='signal',sender='{NAME}',interface='{PROPERTIES}',member='PropertiesChanged',arg0='{SERVICE}'",
    f"type='signal',sender='{NAME}',interface='{PROPERTIES}',member='PropertiesChanged',arg0='{SCOPE}'",
)


_NO_PART: Final = ("", Part())


class Endpoints(msgspec.Struct, frozen=True):
    """Where one manager listens; "@" begins the name of an abstract socket."""

    private: str
    bus: str

    @classmethod
    def of(cls, scope: Literal["system", "user"]) -> "Endpoints":
        """The places that systemd uses.

        Raises:
            ManagerUnavailable: a user's manager without $XDG_RUNTIME_DIR.
        """
        if scope == "system":
            return cls("/run/systemd/private", "/run/dbus/system_bus_socket")
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        if not runtime.startswith("/"):
            raise ManagerUnavailable("$XDG_RUNTIME_DIR is not set")
        return cls(f"{runtime}/systemd/private", f"{runtime}/bus")


class Session:
    """Keeps a connection to one manager, and passes on what it reports. Works while `run` runs.

    Attributes:
        version: of the manager; 0 before the first connection.
        jobs: the ends of jobs that are waited for.
        types: of the properties of each type of unit, as far as the manager was asked on this connection.
        reason: why there is no connection, or was none last.
        latency: how long the manager takes.
    """

    def __init__(self, endpoints: Endpoints, link: LinkKind) -> None:
        self.version = 0
        self.jobs = JobLedger()
        self.types: dict[str, UnitProperties] = {}
        self.reason = "not connected yet"
        self.latency = Latency()
        self._endpoints = endpoints
        self._kinds: tuple[Literal["private", "bus"], ...] = (
            ("private", "bus") if link == "auto" else (link,)
        )
        self._connection: Bus | None = None  # possibly still being greeted, or already down
        self._bus: Bus | None = None  # what calls may use
        self._up = trio.Event()
        self._owner: str | None = None  # of the manager's name; None without a bus
        self._callback: Callable[[UnitHint], None] = _ignore_hint
        self._interest: Callable[[str], bool] = _uninterested
        self._part = _NO_PART

    @property
    def kind(self) -> Literal["private", "bus"]:
        """Which kind of connection is, or was last, in use."""
        return self._kinds[0]

    def watch(self, callback: Callable[[UnitHint], None], interest: Callable[[str], bool]) -> None:
        """Have hints delivered, as `moorage.pid1.manager.Manager.watch` says."""
        self._callback = callback
        self._interest = interest

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, and connect again whenever the connection is lost. Started once connected for the first time.

        Raises:
            ManagerUnavailable: the first connection cannot be made, or the manager is too old.
        """
        give_up = trio.current_time() + FIRST_CONNECT_SECONDS
        failures = 0
        while True:
            try:
                await self._one_session(failures, task_status)
                task_status = trio.TASK_STATUS_IGNORED
                failures = 0
            except ManagerUnavailable as exc:
                self.reason = exc.reason
                failures += 1
                never_up = self.version == 0 and trio.current_time() > give_up
                if never_up or 0 < self.version < VERSION_MIN:
                    raise
            await trio.sleep(min(BACKOFF_FIRST_SECONDS * 2 ** min(failures, 16), BACKOFF_MAX_SECONDS))

    async def _one_session(self, failures: int, task_status: trio.TaskStatus[None]) -> None:
        """One connection from its beginning to its end.

        Raises:
            ManagerUnavailable: it did not come so far that it could be used.
        """
        deadline = trio.current_time() + CONNECT_SECONDS
        bus = self._connection = await self._connect(failures, deadline)
        failure: str | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.run)
            try:
                await self._greet(bus, deadline)
            except (BusError, ManagerUnavailable) as exc:
                failure = exc.reason if isinstance(exc, ManagerUnavailable) else str(exc)
                bus.close(failure)
            else:
                if not bus.closed:
                    self._bus = bus
                    self._up.set()
                    self._callback(UnitHint("connected"))
                    task_status.started()
        if failure is not None:
            raise ManagerUnavailable(failure)

    def _on_closed(self, reason: str) -> None:
        self.reason = reason
        self.types.clear()
        self._part = _NO_PART
        if self._bus is not None:
            self._bus = None
            self._up = trio.Event()
            self.jobs.lose_all()
            self._callback(UnitHint("disconnected"))

    async def _connect(self, failures: int, deadline: float) -> Bus:
        """Open the kind of connection that worked last, or any."""
        loyal = self.version and failures < LOYAL_ATTEMPTS
        reasons: list[str] = []
        for kind in self._kinds[:1] if loyal else self._kinds:
            try:
                bus = await Bus.connect(
                    self._endpoints.private if kind == "private" else self._endpoints.bus,
                    self._on_signal,
                    self._on_closed,
                    deadline=deadline,
                    calls_max=PEER_CALLS_MAX if kind == "private" else BUS_CALLS_MAX,
                )
            except BusClosed as exc:
                reasons.append(exc.reason)
            else:
                # The order of the others is kept.
                self._kinds = (kind, *(each for each in self._kinds if each != kind))
                return bus
        raise ManagerUnavailable("; ".join(reasons))

    async def _greet(self, bus: Bus, deadline: float) -> None:
        self._owner = None
        if self.kind == "bus":
            self._owner = ""  # nobody
            calls = [_bus_call("Hello", reply="s")]
            calls += [_bus_call("AddMatch", "s", (match,)) for match in _MATCHES]
            calls.append(_bus_call("GetNameOwner", "s", (NAME,), "s"))
            replies = [unwrap(reply) for reply in await bus.calls(calls, deadline=deadline)]
            (self._owner,) = replies[-1]
            await bus.call(manager_call("Subscribe"), deadline=deadline)
        (variant,) = await bus.call(get(ROOT, MANAGER, "Version"), deadline=deadline)
        text = variant[1]
        version = re.match(r"v?(\d{1,6})", text) if isinstance(text, str) else None
        self.version = int(version[1]) if version else 0
        if self.version < VERSION_MIN:
            raise ManagerUnavailable(f"systemd {VERSION_MIN} or later is needed, this is {text!r}")

    def _on_signal(self, signal: BusSignal) -> None:
        if self._owner is not None and signal.sender != self._owner:
            if signal.sender == _BUS and signal.member == "NameOwnerChanged" and self._owner:
                # The manager left the bus, or came back under another name: what was to come is lost.
                assert self._connection is not None
                self._connection.close("the manager left the bus")
            return
        if signal.path.startswith(UNITS):
            unit = unit_of(signal.path)
            if self._interest(unit):
                self._pass_on(unit, signal)
        elif signal.path == ROOT and signal.interface == MANAGER:
            if signal.member == "JobRemoved":
                if not self.jobs.idle and (body := signal.body("uoss")) is not None:
                    self.jobs.record(JobEnd(body[0], body[2], body[3]))
            elif signal.member == "UnitRemoved":
                if (body := signal.body("so")) is not None and self._interest(unit := body[0]):
                    self._callback(UnitHint("removed", unit))
            elif signal.member == "Reloading" and signal.body("b") == (False,):
                self._callback(UnitHint("reloaded"))

    def _pass_on(self, unit: str, signal: BusSignal) -> None:
        # A change comes as two signals, one right after the other: what units of its type have, then what all have
        # (bus_unit_send_change_signal() of systemd's src/core/dbus-unit.c). Between them a service that has ended
        # would be active without a main process.
        if (said := part(signal)) is not None:
            self._part = (signal.path, said)
            return
        path, of_type = self._part
        if (change := hint(unit, signal, of_type if path == signal.path else Part())) is not None:
            self._part = _NO_PART
            self._callback(change)

    async def up(self) -> Bus:
        """Return the connection; wait for it a while if it is down.

        Raises:
            ManagerUnavailable: it is still down then.
        """
        if self._bus is None:
            with trio.move_on_after(LINK_WAIT_SECONDS):
                while self._bus is None:
                    await self._up.wait()
        if self._bus is None:
            raise ManagerUnavailable(self.reason)
        return self._bus

    async def make(self, bus: Bus, *calls: BusCall, deadline: float) -> list[tuple[Any, ...] | BusError]:
        """Make calls on a connection, and take note of how long that takes; see `moorage.dbus.bus.Bus.calls`."""
        begun = trio.current_time()
        replies = await bus.calls(calls, deadline=deadline)
        for call in calls:
            self.latency.replies[call.member].add(trio.current_time() - begun)
        return replies

    async def ask(self, *calls: BusCall, deadline: float) -> list[tuple[Any, ...] | BusError]:
        """Make calls that may be made twice: they are repeated when the connection is lost.

        Returns:
            The reply to each of them, or what went wrong with it.
        """
        while True:
            bus = await self.up()
            try:
                return await self.make(bus, *calls, deadline=deadline)
            except BusClosed:
                continue

    async def ask_one(self, call: BusCall, *, deadline: float) -> tuple[Any, ...]:
        """Make one such call.

        Raises:
            BusError: as `moorage.dbus.bus.Bus.call` says.
        """
        (reply,) = await self.ask(call, deadline=deadline)
        return unwrap(reply)


def get(path: str, interface: str, name: str) -> BusCall:
    """Describe the call that reads a property of an object."""
    return BusCall(NAME, path, PROPERTIES, "Get", "ss", (interface, name), "v")


def manager_call(
    member: str, signature: str = "", body: tuple[object, ...] = (), reply: str = ""
) -> BusCall:
    """Describe a call of the manager itself."""
    return BusCall(NAME, ROOT, MANAGER, member, signature, body, reply)


def unwrap(reply: tuple[Any, ...] | BusError) -> tuple[Any, ...]:
    """Return a reply, or raise what came instead of it."""
    if isinstance(reply, BusError):
        raise reply
    return reply


def _bus_call(member: str, signature: str = "", body: tuple[object, ...] = (), reply: str = "") -> BusCall:
    return BusCall(_BUS, _BUS_PATH, _BUS, member, signature, body, reply)


def _ignore_hint(_: UnitHint) -> None:
    pass


def _uninterested(_: str) -> bool:
    return False
