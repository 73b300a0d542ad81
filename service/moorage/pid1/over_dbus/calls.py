"""`moorage.pid1.manager.Manager` over D-Bus.

Interfaces: org.freedesktop.systemd1(5).
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import trio

from moorage.dbus.bus import BadReply, Bus, BusClosed, BusError, CallFailed
from moorage.dbus.message import BusCall
from moorage.pid1.blame import Sent
from moorage.pid1.errors import ManagerUnavailable
from moorage.pid1.latency import Latency
from moorage.pid1.manager import (
    AuxiliaryUnit,
    Job,
    Json,
    ScopeSpec,
    ServiceSpec,
    TypedProperty,
    UnitHint,
    UnitStatus,
    UnitType,
)
from moorage.pid1.over_dbus.deadlines import errors
from moorage.pid1.over_dbus.orders import UnitOrders
from moorage.pid1.over_dbus.session import get, manager_call, unwrap
from moorage.pid1.over_dbus.translate import (
    CHANGING,
    NAME,
    NO_SUCH_UNIT,
    PROPERTIES,
    STATUS,
    UNIT,
    hexadecimal,
    job_id,
    path_of,
    status,
)
from moorage.pid1.properties import UnitProperties, check_text, to_json

NAMES_MAX: Final = 64
"""Properties that one call of `properties` may ask for: they have to fit among the calls of a bus."""

STATUS_TRIES: Final = 5
"""How often a service may change while its status is read: one that is restarted without a pause does."""

_IMPOSSIBLE: Final = "check"
"""What no unit can be called: it has no type."""

_IMPOSSIBLE_REFUSED: Final = "Invalid unit name or type"
"""How ``transient_unit_from_message()`` of src/core/dbus-manager.c refuses that, and nothing else."""


class DBusManager(UnitOrders):
    """The manager. Works while `run` runs."""

    @property
    def version(self) -> int:
        """See `Manager`; 0 before the first connection."""
        return self._session.version

    @property
    def link_kind(self) -> Literal["private", "bus"]:
        """Which kind of connection is, or was last, in use."""
        return self._session.kind

    @property
    def latency(self) -> Latency:
        """How long the manager takes."""
        return self._session.latency

    def watch(self, callback: Callable[[UnitHint], None], interest: Callable[[str], bool]) -> None:
        """See `Manager`."""
        self._session.watch(callback, interest)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, and connect again whenever the connection is lost. Started once connected for the first time.

        Raises:
            ManagerUnavailable: the first connection cannot be made, or the manager is too old.
        """
        await self._session.run(task_status=task_status)

    async def start_scope(
        self, spec: ScopeSpec, *, deadline: float, made: Callable[[], None] | None = None
    ) -> Job:
        """See `Manager`."""
        properties = _scope_properties(spec)
        call = _start_call(spec.unit, properties, spec.auxiliary)._replace(returned=made)
        with errors(f"start of {spec.unit}", deadline, spec.unit, _sent(properties, spec)):
            repeated = False
            while True:
                bus = await self._session.up()
                try:
                    return await self._run_job(bus, call, spec.unit, deadline)
                except BusClosed as exc:
                    if not exc.sent:
                        continue
                    reason = exc.reason
                found = await self._settle(spec.unit, deadline)
                if found is not None and found.active_state == "failed":
                    return Job("failed", spec.unit, 0)
                if (
                    found is not None
                    and found.active_state == "active"
                    and await self._holds(spec, deadline)
                ):
                    return Job("done", spec.unit, 0)
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
        with errors(f"check of {spec.unit}", deadline, spec.unit, _sent(properties, spec)):
            try:
                await self._session.ask_one(call, deadline=deadline)
            except CallFailed as exc:
                if not exc.text.startswith(_IMPOSSIBLE_REFUSED):
                    raise

    async def start_service(
        self, spec: ServiceSpec, *, deadline: float, made: Callable[[], None] | None = None
    ) -> Job:
        """See `Manager`."""
        properties = _service_properties(spec)
        call = _start_call(spec.unit, properties, spec.auxiliary)._replace(returned=made)
        with errors(f"start of {spec.unit}", deadline, spec.unit, _sent(properties, spec)):
            while True:
                bus = await self._session.up()
                try:
                    return await self._run_job(bus, call, spec.unit, deadline)
                except BusClosed as exc:
                    if exc.sent:
                        raise

    async def stop(self, unit: str, *, alone: bool = False, deadline: float) -> Job:
        """See `Manager`."""
        call = manager_call("StopUnit", "ss", (unit, "ignore-dependencies" if alone else "replace"), "o")
        sent = False
        with errors(f"stop of {unit}", deadline, unit):
            while True:
                bus = await self._session.up()
                try:
                    return await self._run_job(bus, call, unit, deadline)
                except BusClosed as exc:
                    sent |= exc.sent
                except CallFailed as exc:
                    if not sent or exc.name not in NO_SUCH_UNIT:
                        raise
                    return Job("done", unit, 0)

    async def reload(self, unit: str, *, deadline: float) -> Job:
        """See `Manager`."""
        call = manager_call("ReloadUnit", "ss", (unit, "replace"), "o")
        with errors(f"reload of {unit}", deadline, unit):
            return await self._run_job(await self._session.up(), call, unit, deadline)

    async def _run_job(self, bus: Bus, call: BusCall, unit: str, deadline: float) -> Job:
        """Make a call that is answered with a job, and wait for its end."""
        ended = trio.Event()
        begun = trio.current_time()
        ticket = self._session.jobs.expect(ended.set)
        try:
            (reply,) = await self._session.make(bus, call, deadline=deadline)
            (path,) = unwrap(reply)
            self._session.jobs.claim(ticket, job_id(path))
            await ended.wait()
            if ticket.end is None:
                raise BusClosed(self._session.reason, sent=True)
            self._session.latency.jobs[call.member].add(trio.current_time() - begun)
            return Job(ticket.end.result, ticket.end.unit or unit, ticket.end.job_id)
        finally:
            self._session.jobs.forget(ticket)

    async def _settle(self, unit: str, deadline: float) -> UnitStatus | None:
        """Return what became of a unit whose job was lost sight of, once it has no job."""
        while True:
            ended = trio.Event()
            ticket = self._session.jobs.expect(ended.set)
            try:
                found = await self._status(unit, deadline)
                if found is None or found.job_id == 0:
                    return found
                self._session.jobs.claim(ticket, found.job_id)
                await ended.wait()
            finally:
                self._session.jobs.forget(ticket)

    async def _holds(self, spec: ScopeSpec, deadline: float) -> bool:
        """Whether a scope has the first process that it was to get, if that was to get any."""
        if not spec.pidfds:
            return False
        try:
            return (await self._unit_of_process(spec.pidfds[0], deadline))[0] == spec.unit
        except CallFailed as exc:
            if exc.name not in NO_SUCH_UNIT:
                raise
            return False

    async def status(self, unit: str, *, deadline: float) -> UnitStatus | None:
        """See `Manager`."""
        with errors(f"status of {unit}", deadline, unit):
            return await self._status(unit, deadline)

    async def _status(self, unit: str, deadline: float) -> UnitStatus | None:
        path = path_of(unit)
        kind = unit.rpartition(".")[2]
        of_all = BusCall(NAME, path, PROPERTIES, "GetAll", "s", (UNIT,), "a{sv}")
        of_type = {name: get(path, f"{NAME}.{kind.capitalize()}", name) for name in STATUS.get(kind, ())}
        before = [of_type[name] for name in CHANGING.get(kind, ())]
        values: dict[str, Any] = {}
        for _ in range(STATUS_TRIES):  # the manager may go on with its own work between any two calls
            replies = await self._session.ask(*before, of_all, *of_type.values(), deadline=deadline)
            all_, others = replies[len(before)], replies[len(before) + 1 :]
            if isinstance(all_, CallFailed) and all_.name in NO_SUCH_UNIT:
                return None
            values = {name: value for name, (_, value) in unwrap(all_)[0].items()}
            values |= {name: _value(reply) for name, reply in zip(of_type, others, strict=True)}
            changing = (values[name] for name in CHANGING.get(kind, ()))
            if [_value(reply) for reply in replies[: len(before)]] == list(changing):
                break
        return status(unit, {name: value for name, value in values.items() if value is not None})

    async def units(self, pattern: str, *, deadline: float) -> list[str]:
        """See `Manager`."""
        with errors(f"list of {pattern}", deadline, ""):
            call = manager_call("ListUnitsByPatterns", "asas", ([], [pattern]), "a(ssssssouso)")
            (found,) = await self._session.ask_one(call, deadline=deadline)
            return [name for name, *_ in found]

    async def unit_of_process(self, pidfd: int, *, deadline: float) -> tuple[str, str]:
        """See `Manager`."""
        with errors("look-up of a process", deadline, ""):
            return await self._unit_of_process(pidfd, deadline)

    async def _unit_of_process(self, pidfd: int, deadline: float) -> tuple[str, str]:
        call = manager_call("GetUnitByPIDFD", "h", (pidfd,), "osay")
        _, unit, invocation_id = await self._session.ask_one(call, deadline=deadline)
        return unit, hexadecimal(invocation_id)

    async def property_types(self, unit_type: UnitType, *, deadline: float) -> UnitProperties:
        """See `Manager`."""
        if (types := self._session.types.get(unit_type)) is not None:
            return types
        with errors(f"introspection of a {unit_type}", deadline, ""):
            return await self._properties_of(unit_type, deadline)

    async def _properties_of(self, unit_type: str, deadline: float) -> UnitProperties:
        types = self._session.types.get(unit_type)
        if types is None:
            # Any name will do: a unit without a file has the interfaces of its type all the same.
            path = path_of("init.scope" if unit_type == "scope" else f"moored.{unit_type}")
            call = BusCall(NAME, path, "org.freedesktop.DBus.Introspectable", "Introspect", reply="s")
            (text,) = await self._session.ask_one(call, deadline=deadline)
            try:
                types = self._session.types[unit_type] = UnitProperties.from_introspection(
                    text, self._session.version
                )
            except ValueError as exc:
                raise BadReply(f"introspection of a {unit_type}: {exc}") from exc
        return types

    async def properties(self, unit: str, names: Sequence[str], *, deadline: float) -> dict[str, Json]:
        """See `Manager`."""
        if len(names) > NAMES_MAX:
            raise ValueError(f"more than {NAMES_MAX} properties at once")
        with errors(f"properties of {unit}", deadline, unit):
            types = await self._properties_of(unit.rpartition(".")[2], deadline)
            calls = [get(path_of(unit), types.interface(name), name) for name in names]
            replies = await self._session.ask(*calls, deadline=deadline) if calls else []
            values: dict[str, Json] = {}
            for name, reply in zip(names, replies, strict=True):
                signature, value = unwrap(reply)[0]
                values[name] = to_json(signature, value)
            return values


def _start_call(
    unit: str, properties: list[tuple[str, tuple[str, object]]], auxiliary: Sequence[AuxiliaryUnit]
) -> BusCall:
    # Mode "fail": what others have queued, such as a stop of the slice, is not ours to replace.
    body = (unit, "fail", properties, [(each.unit, _variants(each.properties)) for each in auxiliary])
    return manager_call("StartTransientUnit", "ssa(sv)a(sa(sv))", body, "o")


def _sent(properties: list[tuple[str, tuple[str, object]]], spec: ScopeSpec | ServiceSpec) -> list[Sent]:
    """Return what a refusal of the start of some units can be about."""
    first = Sent(None, [name for name, _ in properties], spec.chosen)
    return [
        first,
        *(Sent(each.owner, [one.name for one in each.properties], each.chosen) for each in spec.auxiliary),
    ]


def _value(reply: tuple[Any, ...] | BusError) -> Any:
    """Return what a property was read as; None where it could not be read."""
    return reply[0][1] if isinstance(reply, tuple) else None


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
