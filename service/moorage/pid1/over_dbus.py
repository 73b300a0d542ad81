"""The service manager over D-Bus: its private socket, or the message bus.

The private socket (/run/systemd/private, or systemd/private in a user's runtime directory) needs no broker and is not
touched by its restarts. There are no names there, so `AddRef` and `Controller=` do not exist, and every signal of
every unit comes unasked (`bus_foreach_bus` in systemd's src/core/dbus.c). On the bus signals have to be subscribed
to, and anybody can send us one, so only those of the owner of the manager's name count.

Interfaces: org.freedesktop.systemd1(5).
"""

import os
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias

import msgspec
import trio

from moorage.dbus.bus import (
    BUS_CALLS_MAX,
    PEER_CALLS_MAX,
    BadCall,
    BadReply,
    Bus,
    BusClosed,
    BusError,
    CallFailed,
    CallTimeout,
)
from moorage.dbus.message import BusCall, BusSignal
from moorage.pid1.jobs import JobEnd, JobLedger
from moorage.pid1.manager import (
    AccessDenied,
    AuxiliaryUnit,
    InvalidProperty,
    Job,
    Json,
    Look,
    ManagerError,
    ManagerRefused,
    ManagerTimeout,
    ManagerUnavailable,
    NoSuchProperty,
    NoSuchUnit,
    ScopeSpec,
    ServiceSpec,
    TypedProperty,
    UnitBusy,
    UnitExists,
    UnitHint,
    UnitStatus,
    UnitType,
)
from moorage.pid1.properties import UnitProperties, blamed_property, check_text, to_json

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
"""Attempts to reconnect to the kind of link that worked before "auto" tries the other kind as well. While the manager
executes itself again its socket is gone for a moment, which is no reason to move to the bus for good."""

NAMES_MAX: Final = 64
"""Properties that one call of `properties` may ask for: they have to fit among the calls of a bus."""

LinkKind: TypeAlias = Literal["auto", "private", "bus"]

_NAME: Final = "org.freedesktop.systemd1"
_ROOT: Final = "/org/freedesktop/systemd1"
_UNITS: Final = f"{_ROOT}/unit/"
_JOBS: Final = f"{_ROOT}/job/"
_MANAGER: Final = f"{_NAME}.Manager"
_UNIT: Final = f"{_NAME}.Unit"
_SERVICE: Final = f"{_NAME}.Service"
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_BUS: Final = "org.freedesktop.DBus"
_BUS_PATH: Final = "/org/freedesktop/DBus"

_MATCHES: Final = (
    f"type='signal',sender='{_BUS}',interface='{_BUS}',member='NameOwnerChanged',arg0='{_NAME}'",
    f"type='signal',sender='{_NAME}',path='{_ROOT}',interface='{_MANAGER}',member='JobRemoved'",
    f"type='signal',sender='{_NAME}',path='{_ROOT}',interface='{_MANAGER}',member='UnitRemoved'",
    f"type='signal',sender='{_NAME}',path='{_ROOT}',interface='{_MANAGER}',member='Reloading'",
    # Of the two that come with each change of a unit, the one about what all types of units have, and of services the
    # other one as well.
    f"type='signal',sender='{_NAME}',interface='{_PROPERTIES}',member='PropertiesChanged',arg0='{_UNIT}'",
    f"type='signal',sender='{_NAME}',interface='{_PROPERTIES}',member='PropertiesChanged',arg0='{_SERVICE}'",
)

_ESCAPED: Final = re.compile(rb"_([0-9a-f]{2})")

_GROUPED: Final = {"scope", "service", "slice", "socket", "mount", "swap"}
"""Types of units that have a control group; of these all but slices have a result."""

_DEPENDANTS: Final = ("RequiredBy", "RequisiteOf", "WantedBy", "BoundBy", "UpheldBy")

_NO_SUCH_UNIT: Final = {
    f"{_NAME}.NoSuchUnit",
    f"{_NAME}.NoSuchProcess",
    f"{_NAME}.NoUnitForPID",
    f"{_NAME}.NoUnitForInvocationID",
    "org.freedesktop.DBus.Error.UnknownObject",
    "org.freedesktop.DBus.Error.UnixProcessIdUnknown",
    "System.Error.ESRCH",
}
_BUSY: Final = {
    f"{_NAME}.UnitBusy",
    f"{_NAME}.TransactionIsDestructive",
    f"{_NAME}.TransactionJobsConflicting",
    f"{_NAME}.FrozenByParent",
    f"{_NAME}.FreezeCancelled",
    "System.Error.EDEADLK",
    "System.Error.EBUSY",
}
_DENIED: Final = {
    "org.freedesktop.DBus.Error.AccessDenied",
    "org.freedesktop.DBus.Error.AuthFailed",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
    "System.Error.EPERM",
    "System.Error.EACCES",
}
_GONE: Final = {
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.Disconnected",
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    f"{_NAME}.ShuttingDown",
}
_ABOUT_PROPERTY: Final = {
    "org.freedesktop.DBus.Error.InvalidArgs",
    "org.freedesktop.DBus.Error.NotSupported",
    "org.freedesktop.DBus.Error.InvalidSignature",
    "org.freedesktop.DBus.Error.InconsistentMessage",
    "System.Error.EINVAL",
    "System.Error.ERANGE",
    "System.Error.ENXIO",
    "System.Error.EOPNOTSUPP",
    "org.freedesktop.DBus.Error.UnixProcessIdUnknown",
    "System.Error.ESRCH",
}


_IMPOSSIBLE: Final = "check"
"""What no unit can be called: it has no type."""

_IMPOSSIBLE_REFUSED: Final = "Invalid unit name or type"
"""How ``transient_unit_from_message()`` of src/core/dbus-manager.c refuses that, and nothing else."""


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


class DBusManager:
    """`moorage.pid1.manager.Manager` over D-Bus. Works while `run` runs."""

    def __init__(self, endpoints: Endpoints, link: LinkKind = "auto") -> None:
        self._endpoints = endpoints
        self._kinds: tuple[Literal["private", "bus"], ...] = (
            ("private", "bus") if link == "auto" else (link,)
        )
        self._connection: Bus | None = None  # possibly still being greeted, or already down
        self._link: Bus | None = None  # what calls may use
        self._link_up = trio.Event()
        self._reason = "not connected yet"
        self._owner: str | None = None  # of the manager's name; None without a bus
        self._version = 0
        self._jobs = JobLedger()
        self._types: dict[str, UnitProperties] = {}
        self._callback: Callable[[UnitHint], None] = _ignore_hint
        self._interest: Callable[[str], bool] = _uninterested

    @property
    def version(self) -> int:
        """See `Manager`; 0 before the first connection."""
        return self._version

    @property
    def link_kind(self) -> Literal["private", "bus"]:
        """Which link is, or was last, in use: "private" or "bus"."""
        return self._kinds[0]

    def watch(self, callback: Callable[[UnitHint], None], interest: Callable[[str], bool]) -> None:
        """See `Manager`."""
        self._callback = callback
        self._interest = interest

    # The link

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, and connect again whenever the link is lost. Started once connected for the first time.

        Raises:
            ManagerUnavailable: the first connection cannot be made, or the manager is too old.
        """
        give_up = trio.current_time() + FIRST_CONNECT_SECONDS
        failures = 0
        while True:
            try:
                await self._session(failures, task_status)
                task_status = trio.TASK_STATUS_IGNORED
                failures = 0
            except ManagerUnavailable as exc:
                self._reason = exc.reason
                failures += 1
                never_up = self._version == 0 and trio.current_time() > give_up
                if never_up or 0 < self._version < VERSION_MIN:
                    raise
            await trio.sleep(min(BACKOFF_FIRST_SECONDS * 2 ** min(failures, 16), BACKOFF_MAX_SECONDS))

    async def _session(self, failures: int, task_status: trio.TaskStatus[None]) -> None:
        """One connection from its beginning to its end.

        Raises:
            ManagerUnavailable: it did not come so far that it could be used.
        """
        deadline = trio.current_time() + CONNECT_SECONDS
        link = self._connection = await self._connect(failures, deadline)
        failure: str | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            try:
                await self._greet(link, deadline)
            except (BusError, ManagerUnavailable) as exc:
                failure = exc.reason if isinstance(exc, ManagerUnavailable) else str(exc)
                link.close(failure)
            else:
                if not link.closed:
                    self._link = link
                    self._link_up.set()
                    self._callback(UnitHint("connected"))
                    task_status.started()
        if failure is not None:
            raise ManagerUnavailable(failure)

    def _on_closed(self, reason: str) -> None:
        self._reason = reason
        self._types.clear()
        if self._link is not None:
            self._link = None
            self._link_up = trio.Event()
            self._jobs.lose_all()
            self._callback(UnitHint("disconnected"))

    async def _connect(self, failures: int, deadline: float) -> Bus:
        """Open the kind of link that worked last, or any."""
        loyal = self._version and failures < LOYAL_ATTEMPTS
        reasons: list[str] = []
        for kind in self._kinds[:1] if loyal else self._kinds:
            try:
                link = await Bus.connect(
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
                return link
        raise ManagerUnavailable("; ".join(reasons))

    async def _greet(self, link: Bus, deadline: float) -> None:
        self._owner = None
        if self.link_kind == "bus":
            self._owner = ""  # nobody
            calls = [_bus_call("Hello", reply="s")]
            calls += [_bus_call("AddMatch", "s", (match,)) for match in _MATCHES]
            calls.append(_bus_call("GetNameOwner", "s", (_NAME,), "s"))
            replies = [_unwrap(reply) for reply in await link.calls(calls, deadline=deadline)]
            (self._owner,) = replies[-1]
            await link.call(_manager_call("Subscribe"), deadline=deadline)
        (variant,) = await link.call(_get(_ROOT, _MANAGER, "Version"), deadline=deadline)
        text = variant[1]
        version = re.match(r"v?(\d{1,6})", text) if isinstance(text, str) else None
        self._version = int(version[1]) if version else 0
        if self._version < VERSION_MIN:
            raise ManagerUnavailable(f"systemd {VERSION_MIN} or later is needed, this is {text!r}")

    def _on_signal(self, signal: BusSignal) -> None:
        if self._owner is not None and signal.sender != self._owner:
            if signal.sender == _BUS and signal.member == "NameOwnerChanged" and self._owner:
                # The manager left the bus, or came back under another name: what was to come is lost.
                assert self._connection is not None
                self._connection.close("the manager left the bus")
            return
        if signal.path.startswith(_UNITS):
            unit = _unit_of(signal.path)
            if self._interest(unit) and (hint := _hint(unit, signal)) is not None:
                self._callback(hint)
        elif signal.path == _ROOT and signal.interface == _MANAGER:
            if signal.member == "JobRemoved":
                if not self._jobs.idle and (body := signal.body("uoss")) is not None:
                    self._jobs.record(JobEnd(body[0], body[2], body[3]))
            elif signal.member == "UnitRemoved":
                if (body := signal.body("so")) is not None and self._interest(unit := body[0]):
                    self._callback(UnitHint("removed", unit))
            elif signal.member == "Reloading" and signal.body("b") == (False,):
                self._callback(UnitHint("reloaded"))

    async def _up(self) -> Bus:
        """The link; waits for it if it is down."""
        if self._link is None:
            with trio.move_on_after(LINK_WAIT_SECONDS):
                while self._link is None:
                    await self._link_up.wait()
        if self._link is None:
            raise ManagerUnavailable(self._reason)
        return self._link

    # Calls

    async def _ask(self, *calls: BusCall, deadline: float) -> list[tuple[Any, ...] | BusError]:
        """Make calls that may be made twice: repeated when the link is lost."""
        while True:
            link = await self._up()
            try:
                return await link.calls(calls, deadline=deadline)
            except BusClosed:
                continue

    async def _ask_one(self, call: BusCall, *, deadline: float) -> tuple[Any, ...]:
        (reply,) = await self._ask(call, deadline=deadline)
        return _unwrap(reply)

    async def start_scope(self, spec: ScopeSpec, *, deadline: float) -> Job:
        """See `Manager`."""
        properties = _scope_properties(spec)
        call = _start_call(spec.unit, properties, spec.auxiliary)
        with _errors(f"start of {spec.unit}", deadline, spec.unit, _names(properties, spec.auxiliary)):
            repeated = False
            while True:
                link = await self._up()
                try:
                    return await self._run_job(link, call, spec.unit, deadline)
                except BusClosed as exc:
                    if not exc.sent:
                        continue
                    reason = exc.reason
                look = await self._settle(spec.unit, spec.pidfds[0] if spec.pidfds else None, deadline)
                if look.active_state == "active" and look.holder == spec.unit:
                    return Job("done", spec.unit, 0)
                if look.active_state == "failed":
                    return Job("failed", spec.unit, 0)
                if repeated:
                    raise ManagerUnavailable(
                        f"link lost during the start of {spec.unit}, which did not happen: {reason}"
                    )
                repeated = True

    async def check_scope(self, spec: ScopeSpec, *, deadline: float) -> None:
        """See `Manager`.

        The manager takes the units of a transaction one by one, and starts them when it has all. The last one here is
        none that it could take: by then it has judged the others, which it forgets again.
        """
        properties = _scope_properties(spec)
        call = _start_call(spec.unit, properties, (*spec.auxiliary, AuxiliaryUnit(_IMPOSSIBLE, ())))
        with _errors(f"check of {spec.unit}", deadline, spec.unit, _names(properties, spec.auxiliary)):
            try:
                await self._ask_one(call, deadline=deadline)
            except CallFailed as exc:
                if not exc.text.startswith(_IMPOSSIBLE_REFUSED):
                    raise

    async def start_service(self, spec: ServiceSpec, *, deadline: float) -> Job:
        """See `Manager`."""
        properties = _service_properties(spec)
        call = _start_call(spec.unit, properties, spec.auxiliary)
        with _errors(f"start of {spec.unit}", deadline, spec.unit, _names(properties, spec.auxiliary)):
            while True:
                link = await self._up()
                try:
                    return await self._run_job(link, call, spec.unit, deadline)
                except BusClosed as exc:
                    if exc.sent:
                        raise

    async def stop(self, unit: str, *, alone: bool = False, deadline: float) -> Job:
        """See `Manager`."""
        call = _manager_call("StopUnit", "ss", (unit, "ignore-dependencies" if alone else "replace"), "o")
        sent = False
        with _errors(f"stop of {unit}", deadline, unit):
            while True:
                link = await self._up()
                try:
                    return await self._run_job(link, call, unit, deadline)
                except BusClosed as exc:
                    sent |= exc.sent
                except CallFailed as exc:
                    if not sent or exc.name not in _NO_SUCH_UNIT:
                        raise
                    return Job("done", unit, 0)

    async def reload(self, unit: str, *, deadline: float) -> Job:
        """See `Manager`."""
        call = _manager_call("ReloadUnit", "ss", (unit, "replace"), "o")
        with _errors(f"reload of {unit}", deadline, unit):
            return await self._run_job(await self._up(), call, unit, deadline)

    async def _run_job(self, link: Bus, call: BusCall, unit: str, deadline: float) -> Job:
        """Make a call that is answered with a job, and wait for its end."""
        ended = trio.Event()
        ticket = self._jobs.expect(ended.set)
        try:
            (path,) = await link.call(call, deadline=deadline)
            self._jobs.claim(ticket, _job_id(path))
            await ended.wait()
            if ticket.end is None:
                raise BusClosed(self._reason, sent=True)
            return Job(ticket.end.result, ticket.end.unit or unit, ticket.end.job_id)
        finally:
            self._jobs.forget(ticket)

    async def _settle(self, unit: str, pidfd: int | None, deadline: float) -> Look:
        """What became of a unit whose job was lost sight of: look until it has none."""
        while True:
            ended = trio.Event()
            ticket = self._jobs.expect(ended.set)
            try:
                look = await self._look(unit, pidfd, deadline)
                if look.job_id == 0:
                    return look
                self._jobs.claim(ticket, look.job_id)
                await ended.wait()
            finally:
                self._jobs.forget(ticket)

    async def look(self, unit: str, pidfd: int | None, *, deadline: float) -> Look:
        """See `Manager`."""
        with _errors(f"look at {unit}", deadline, unit):
            return await self._look(unit, pidfd, deadline)

    async def _look(self, unit: str, pidfd: int | None, deadline: float) -> Look:
        calls = [_manager_call("ListUnitsByNames", "as", ([unit],), "a(ssssssouso)")]
        if pidfd is not None:
            calls.append(_manager_call("GetUnitByPIDFD", "h", (pidfd,), "osay"))
        replies = await self._ask(*calls, deadline=deadline)
        (units,) = _unwrap(replies[0])
        if len(units) != 1:
            # Names that are not valid are left out.
            raise NoSuchUnit(unit)
        _, _, _, active_state, sub_state, _, _, job_id, _, _ = units[0]
        holder, invocation_id = None, b""
        if pidfd is not None:
            try:
                _, holder, invocation_id = _unwrap(replies[1])
            except CallFailed as exc:
                if exc.name not in _NO_SUCH_UNIT:
                    raise
        return Look(active_state, sub_state, job_id, holder, _hexadecimal(invocation_id))

    async def status(self, unit: str, *, deadline: float) -> UnitStatus | None:
        """See `Manager`."""
        path = _path_of(unit)
        kind = unit.rpartition(".")[2]
        calls = [BusCall(_NAME, path, _PROPERTIES, "GetAll", "s", (_UNIT,), "a{sv}")]
        grouped = ("Slice", "ControlGroup", "ControlGroupId", "Result") if kind in _GROUPED else ()
        calls += [_get(path, f"{_NAME}.{kind.capitalize()}", name) for name in grouped]
        with _errors(f"status of {unit}", deadline, unit):
            first, *others = await self._ask(*calls, deadline=deadline)
            if isinstance(first, CallFailed) and first.name in _NO_SUCH_UNIT:
                return None
            values: dict[str, Any] = {name: value for name, (_, value) in _unwrap(first)[0].items()}
            for name, reply in zip(grouped, others, strict=True):
                if isinstance(reply, tuple):
                    values[name] = reply[0][1]
        return _status(unit, values)

    async def units(self, pattern: str, *, deadline: float) -> list[str]:
        """See `Manager`."""
        with _errors(f"list of {pattern}", deadline, ""):
            call = _manager_call("ListUnitsByPatterns", "asas", ([], [pattern]), "a(ssssssouso)")
            (found,) = await self._ask_one(call, deadline=deadline)
            return [name for name, *_ in found]

    async def unit_of_process(self, pidfd: int, *, deadline: float) -> tuple[str, str]:
        """See `Manager`."""
        with _errors("look-up of a process", deadline, ""):
            call = _manager_call("GetUnitByPIDFD", "h", (pidfd,), "osay")
            _, unit, invocation_id = await self._ask_one(call, deadline=deadline)
            return unit, _hexadecimal(invocation_id)

    async def unit_by_control_group(self, path: str, *, deadline: float) -> str:
        """See `Manager`."""
        with _errors(f"look-up of {path}", deadline, ""):
            call = _manager_call("GetUnitByControlGroup", "s", (path,), "o")
            return _unit_of((await self._ask_one(call, deadline=deadline))[0])

    async def unit_by_invocation(self, invocation_id: str, *, deadline: float) -> str:
        """See `Manager`."""
        if re.fullmatch(r"[0-9a-f]{32}", invocation_id) is None:
            raise NoSuchUnit
        with _errors(f"look-up of invocation {invocation_id}", deadline, ""):
            # In a path it stands for the unit that has it (`manager_load_unit_from_dbus_path()`).
            call = _get(_path_of(invocation_id), _UNIT, "Id")
            (_, unit) = (await self._ask_one(call, deadline=deadline))[0]
            return unit

    async def kill(
        self, unit: str, whom: Literal["all", "main", "control"], signal: int, *, deadline: float
    ) -> None:
        """See `Manager`."""
        with _errors(f"kill of {unit}", deadline, unit):
            link = await self._up()
            await link.call(_manager_call("KillUnit", "ssi", (unit, whom, signal)), deadline=deadline)

    async def kill_subgroup(self, unit: str, subgroup: str, signal: int, *, deadline: float) -> None:
        """See `Manager`."""
        with _errors(f"kill of {unit}", deadline, unit):
            link = await self._up()
            call = _manager_call("KillUnitSubgroup", "sssi", (unit, "cgroup", subgroup, signal))
            await link.call(call, deadline=deadline)

    async def freeze(self, unit: str, *, deadline: float) -> None:
        """See `Manager`."""
        with _errors(f"freeze of {unit}", deadline, unit):
            await self._ask_one(_manager_call("FreezeUnit", "s", (unit,)), deadline=deadline)

    async def thaw(self, unit: str, *, deadline: float) -> None:
        """See `Manager`."""
        with _errors(f"thaw of {unit}", deadline, unit):
            await self._ask_one(_manager_call("ThawUnit", "s", (unit,)), deadline=deadline)

    async def reset_failed(self, unit: str, *, deadline: float) -> None:
        """See `Manager`."""
        with _errors(f"reset of {unit}", deadline, unit):
            await self._ask_one(_manager_call("ResetFailedUnit", "s", (unit,)), deadline=deadline)

    async def property_types(self, unit_type: UnitType, *, deadline: float) -> UnitProperties:
        """See `Manager`."""
        with _errors(f"introspection of a {unit_type}", deadline, ""):
            return await self._properties_of(unit_type, deadline)

    async def _properties_of(self, unit_type: str, deadline: float) -> UnitProperties:
        types = self._types.get(unit_type)
        if types is None:
            # Any name will do: a unit without a file has the interfaces of its type all the same.
            path = _path_of("init.scope" if unit_type == "scope" else f"moored.{unit_type}")
            call = BusCall(_NAME, path, "org.freedesktop.DBus.Introspectable", "Introspect", reply="s")
            (text,) = await self._ask_one(call, deadline=deadline)
            try:
                types = self._types[unit_type] = UnitProperties.from_introspection(text, self._version)
            except ValueError as exc:
                raise BadReply(f"introspection of a {unit_type}: {exc}") from exc
        return types

    async def properties(self, unit: str, names: Sequence[str], *, deadline: float) -> dict[str, Json]:
        """See `Manager`."""
        if len(names) > NAMES_MAX:
            raise ValueError(f"more than {NAMES_MAX} properties at once")
        with _errors(f"properties of {unit}", deadline, unit):
            types = await self._properties_of(unit.rpartition(".")[2], deadline)
            calls = [_get(_path_of(unit), types.interface(name), name) for name in names]
            replies = await self._ask(*calls, deadline=deadline) if calls else []
            values: dict[str, Json] = {}
            for name, reply in zip(names, replies, strict=True):
                signature, value = _unwrap(reply)[0]
                values[name] = to_json(signature, value)
            return values

    async def set_properties(
        self, unit: str, properties: tuple[TypedProperty, ...], *, deadline: float
    ) -> None:
        """See `Manager`."""
        with _errors(f"change of {unit}", deadline, unit, [each.name for each in properties]):
            call = _manager_call("SetUnitProperties", "sba(sv)", (unit, True, _variants(properties)))
            await self._ask_one(call, deadline=deadline)


def _hint(unit: str, signal: BusSignal) -> UnitHint | None:
    """What a signal of a unit says; None if it is about nothing that matters here."""
    if signal.is_change_of(_UNIT):
        return UnitHint(
            "changed",
            unit,
            active_state=signal.changed_text("ActiveState"),
            sub_state=signal.changed_text("SubState"),
            invocation_id=(signal.changed("InvocationID", "ay") or b"").hex(),
        )
    if signal.is_change_of(_SERVICE):
        main_pid = signal.changed_number("MainPID")
        if main_pid is not None:
            return UnitHint("main", unit, result=signal.changed_text("Result"), main_pid=main_pid)
    return None


def _ignore_hint(_: UnitHint) -> None:
    pass


def _uninterested(_: str) -> bool:
    return False


@contextmanager
def _errors(operation: str, deadline: float, unit: str, properties: Sequence[str] = ()) -> Generator[None]:
    """Hold the deadline, and turn the errors of a link into those of a manager."""
    try:
        with trio.fail_at(deadline):
            yield
    except trio.TooSlowError:
        raise ManagerTimeout(operation) from None
    except CallTimeout:
        raise ManagerTimeout(operation) from None
    except CallFailed as exc:
        raise translated(exc, unit, properties) from exc
    except BusClosed as exc:
        raise ManagerUnavailable(exc.reason) from exc
    except (BadCall, BadReply) as exc:
        raise ManagerRefused(str(exc), type(exc).__name__) from exc


def translated(error: CallFailed, unit: str, properties: Sequence[str] = ()) -> ManagerError:
    """What an error of the manager means.

    Args:
        error: as received.
        unit: that the call was about.
        properties: names of those that were sent with it; one that the error is about is named by its text only.
    """
    name, text = error.name, error.text
    if name == f"{_NAME}.UnitExists":
        return UnitExists(unit)
    if properties:
        blamed = blamed_property(name, text, properties)
        if name == "org.freedesktop.DBus.Error.PropertyReadOnly":
            return NoSuchProperty(blamed or text)
        if blamed is not None and (
            name in _ABOUT_PROPERTY or text.startswith("Failed to set unit properties")
        ):
            return InvalidProperty(blamed, text)
    if name == "org.freedesktop.DBus.Error.UnknownProperty":
        return NoSuchProperty(text)
    if name in _NO_SUCH_UNIT:
        return NoSuchUnit(unit)
    if name in _BUSY:
        return UnitBusy(unit, text)
    if name in _DENIED:
        return AccessDenied(text)
    if name in _GONE:
        return ManagerUnavailable(text)
    return ManagerRefused(text, name)


def _unwrap(reply: tuple[Any, ...] | BusError) -> tuple[Any, ...]:
    if isinstance(reply, BusError):
        raise reply
    return reply


def _manager_call(
    member: str, signature: str = "", body: tuple[object, ...] = (), reply: str = ""
) -> BusCall:
    return BusCall(_NAME, _ROOT, _MANAGER, member, signature, body, reply)


def _bus_call(member: str, signature: str = "", body: tuple[object, ...] = (), reply: str = "") -> BusCall:
    return BusCall(_BUS, _BUS_PATH, _BUS, member, signature, body, reply)


def _get(path: str, interface: str, name: str) -> BusCall:
    return BusCall(_NAME, path, _PROPERTIES, "Get", "ss", (interface, name), "v")


def _start_call(
    unit: str, properties: list[tuple[str, tuple[str, object]]], auxiliary: Sequence[AuxiliaryUnit]
) -> BusCall:
    # Mode "fail": what others have queued, such as a stop of the slice, is not ours to replace.
    body = (unit, "fail", properties, [(each.unit, _variants(each.properties)) for each in auxiliary])
    return _manager_call("StartTransientUnit", "ssa(sv)a(sa(sv))", body, "o")


def _names(
    properties: list[tuple[str, tuple[str, object]]], auxiliary: Sequence[AuxiliaryUnit]
) -> list[str]:
    return [name for name, _ in properties] + [each.name for one in auxiliary for each in one.properties]


def _variants(properties: Sequence[TypedProperty]) -> list[tuple[str, tuple[str, object]]]:
    return [(name, (signature, value)) for name, signature, value in properties]


def _scope_properties(spec: ScopeSpec) -> list[tuple[str, tuple[str, object]]]:
    check_text("Description", spec.description)
    properties: list[tuple[str, tuple[str, object]]] = [("Description", ("s", spec.description))]
    if spec.slice is not None:
        check_text("Slice", spec.slice)
        properties.append(("Slice", ("s", spec.slice)))
    if spec.pidfds:
        properties.append(("PIDFDs", ("ah", list(spec.pidfds))))
    return properties + _variants(spec.properties)


def _service_properties(spec: ServiceSpec) -> list[tuple[str, tuple[str, object]]]:
    check_text("Description", spec.description)
    properties: list[tuple[str, tuple[str, object]]] = [("Description", ("s", spec.description))]
    if spec.standard_output is not None:
        properties.append(("StandardOutputFileDescriptor", ("h", spec.standard_output)))
    if spec.file_descriptors:
        properties.append(("ExtraFileDescriptors", ("a(hs)", list(spec.file_descriptors))))
    return properties + _variants(spec.properties)


def _path_of(unit: str) -> str:
    """Object path of a unit, `unit_dbus_path()`: all but ASCII letters and digits as "_" and two hex digits."""
    first = re.sub(r"[^A-Za-z]", _escape, unit[:1])
    return f"{_UNITS}{first}{re.sub(r'[^A-Za-z0-9]', _escape, unit[1:])}" if unit else f"{_UNITS}_"


def _escape(match: re.Match[str]) -> str:
    return "".join(f"_{byte:02x}" for byte in match[0].encode())


@lru_cache(maxsize=4096)
def _unit_of(path: str) -> str:
    """Name of the unit of an object path. Cached: each start of a unit comes with eight signals from there."""
    name = _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), path[len(_UNITS) :].encode())
    return name.decode(errors="replace")


def _job_id(path: str) -> int:
    number = path.removeprefix(_JOBS)
    if not number.isascii() or not number.isdecimal():
        raise BadReply(f"{path!r} is not the path of a job")
    return int(number)


def _hexadecimal(value: bytes) -> str:
    """An ID of 128 bits; all zeroes, or nothing, is none."""
    return value.hex() if any(value) else ""


def _status(unit: str, values: dict[str, Any]) -> UnitStatus | None:
    def text(name: str) -> str:
        value = values.get(name, "")
        return value if isinstance(value, str) else ""

    job_id, _ = values.get("Job", (0, ""))
    if text("LoadState") == "not-found" and text("ActiveState") == "inactive" and job_id == 0:
        return None
    dependants = [other for name in _DEPENDANTS for other in values.get(name, ())]
    return UnitStatus(
        unit=text("Id") or unit,
        description=text("Description"),
        load_state=text("LoadState"),
        active_state=text("ActiveState"),
        sub_state=text("SubState"),
        result=text("Result") or None,
        slice=text("Slice"),
        control_group=text("ControlGroup"),
        # The manager keeps the number of a group that is gone.
        control_group_id=(values.get("ControlGroupId") or None) if text("ControlGroup") else None,
        invocation_id=_hexadecimal(values.get("InvocationID", b"")),
        fragment_path=text("FragmentPath"),
        transient=values.get("Transient") is True,
        job_id=job_id,
        freezer_state=text("FreezerState"),
        dependants=tuple(dict.fromkeys(dependants)),
        collect_mode=text("CollectMode"),
        documentation=tuple(values.get("Documentation", ())),
    )
