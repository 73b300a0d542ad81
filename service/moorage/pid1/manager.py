"""What the daemon wants from the service manager, without a word of how it is asked.

`Manager` is the whole of it. The one implementation is `moorage.pid1.over_dbus.calls`; nothing here names an object
path, a variant or a bus, so that an implementation over varlink can take its place.

Deadlines are absolute, on trio's clock (`trio.current_time() + seconds`). Every method that takes one raises
`ManagerTimeout` when it passes and `ManagerUnavailable` when the manager cannot be reached until then. A call
that was given up may still have taken effect: ask for the state of the unit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

import msgspec

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""A value as it came from, or goes to, JSON."""

UnitType: TypeAlias = Literal["scope", "service", "slice", "socket"]
"""The types of units whose properties can be converted."""

ASK_SECONDS = 10.0
"""Deadline of a single question, and pause before it is asked again, s: longer than the manager takes to reload."""


class Job(msgspec.Struct, frozen=True):
    """A finished job.

    Attributes:
        result: `JobResult` of io.systemd.Job: "done", "canceled", "timeout", "failed", "dependency", "skipped",
            "invalid", "assert", "unsupported", "collected", "once", "frozen" or "concurrency".
        unit: the unit that the job was about.
        id: the manager's number of it.
    """

    result: str
    unit: str
    id: int


class TypedProperty(NamedTuple):
    """A property ready to be sent. Made by `PropertyTypes.convert` only; opaque to everybody else."""

    name: str
    signature: str
    value: object


class AuxiliaryUnit(msgspec.Struct, frozen=True):
    """A transient unit created together with another one, in the same transaction or not at all.

    Attributes:
        unit: its name.
        properties: all of them.
        owner: what a caller knows the unit by, for refusals of its properties: a helper.
        chosen: names of the properties that the caller chose.
    """

    unit: str
    properties: tuple[TypedProperty, ...]
    owner: str | None = None
    chosen: tuple[str, ...] = ()


class ScopeSpec(msgspec.Struct, frozen=True):
    """A scope to start.

    Attributes:
        unit: its name, ending in ".scope".
        pidfds: of the processes to move into it. Borrowed: they stay the caller's, and must stay open until the
            call returns.
        slice: name of the slice, or None for the manager's own choice.
        description: human readable name of the unit.
        properties: everything else.
        auxiliary: units created with it. They are started only if something pulls them in.
        chosen: names of the properties that a caller chose, for refusals.
    """

    unit: str
    pidfds: tuple[int, ...]
    slice: str | None
    description: str
    properties: tuple[TypedProperty, ...] = ()
    auxiliary: tuple[AuxiliaryUnit, ...] = ()
    chosen: tuple[str, ...] = ()


class ServiceSpec(msgspec.Struct, frozen=True):
    """A service to start. All file descriptors are borrowed: they must stay open until the call returns.

    Attributes:
        unit: its name, ending in ".service".
        description: human readable name of the unit.
        properties: everything else, the command included.
        standard_output: file descriptor for it; None for the manager's own choice.
        file_descriptors: what the command gets from 3 on, each with a name (sd_listen_fds_with_names(3)).
        auxiliary: units created with it. They are started only if something pulls them in.
        chosen: names of the properties that a caller chose, for refusals.
    """

    unit: str
    description: str
    properties: tuple[TypedProperty, ...]
    standard_output: int | None = None
    file_descriptors: tuple[tuple[int, str], ...] = ()
    auxiliary: tuple[AuxiliaryUnit, ...] = ()
    chosen: tuple[str, ...] = ()


class UnitStatus(msgspec.Struct, frozen=True):
    """A unit as the manager has it at this moment.

    Attributes:
        unit: its primary name, which differs from the name asked for if that is an alias.
        description: human readable name.
        load_state: "loaded", "not-found", "error", "bad-setting", "masked", …
        active_state: "active", "reloading", "inactive", "failed", "activating", "deactivating", …
        sub_state: the finer state of its type.
        result: why it ended: "success", "resources", "timeout", "oom-kill", …; None for types without one.
        slice: name of the slice it is in; empty if in none.
        control_group: path below the root of the hierarchy, empty while it has none.
        invocation_id: 32 hexadecimal digits; empty if it never ran.
        fragment_path: its file; that of a transient unit lies below /run/systemd/transient.
        transient: was made by a call, not by a file.
        job_id: number of the job queued for it, 0 for none.
        dependants: units that pull it in or are bound to it (Requires=, Requisite=, Wants=, BindsTo=, Upholds=).
        documentation: addresses of what is written about it.
        main_pid, restarts: of a service, as in a hint.
    """

    unit: str
    description: str
    load_state: str
    active_state: str
    sub_state: str
    result: str | None
    slice: str
    control_group: str
    invocation_id: str
    fragment_path: str
    transient: bool
    job_id: int
    dependants: tuple[str, ...] = ()
    documentation: tuple[str, ...] = ()
    main_pid: int = 0
    restarts: int = 0


class UnitHint(msgspec.Struct, frozen=True):
    """Something may have changed: ask for the state. Hints may be repeated, late, or about nothing.

    Attributes:
        kind: "changed" and "removed" are about one unit, "reloaded" (the manager re-read its configuration or
            executed itself again) and "connected" (anything may have been missed since "disconnected") about all.
        unit: its name; empty for the kinds that are about all.
        active_state: what a "changed" says of the unit's state; empty if it says nothing.
        sub_state, invocation_id: what it says of those; empty if it says nothing.
        result: what a "changed" says of a service's or a scope's; empty if it says nothing.
        main_pid, restarts: what it says of a service's main process, 0 for none, and NRestarts; None, 0 if nothing.
        by_itself: a "changed" says that it has ended, and was active until then: nobody had it stopped.
    """

    kind: Literal["changed", "removed", "reloaded", "connected", "disconnected"]
    unit: str = ""
    active_state: str = ""
    sub_state: str = ""
    invocation_id: str = ""
    result: str = ""
    main_pid: int | None = None
    restarts: int = 0
    by_itself: bool = False


class PropertyTypes(Protocol):
    """Knows the properties that one type of unit accepts from this manager."""

    @property
    def settable(self) -> Mapping[str, str]:
        """Signature to set each property with, by name; properties that can only be read are included."""
        ...

    def convert(self, properties: Mapping[str, Json]) -> tuple[TypedProperty, ...]:
        """Turn JSON values into what the manager wants, checking types, ranges and sizes.

        Nothing is sent. What only the manager can judge (a slice that is no slice, a device that does not
        exist) comes back from the call that uses the properties, as the same exceptions.

        Raises:
            NoSuchProperty: no such property, or one that can only be read.
            InvalidProperty: wrong type, out of range, or too large.
        """
        ...


class Manager(Protocol):
    """The service manager of the system or of one user. Calls are pipelined: none waits for another."""

    @property
    def version(self) -> int:
        """Major version, such as 257."""
        ...

    async def start_scope(
        self, spec: ScopeSpec, *, deadline: float, made: Callable[[], None] | None = None
    ) -> Job:
        """Start a transient scope and wait for the end of its job; no result can be missed.

        If the link to the manager is lost meanwhile, the state of the unit after the reconnect decides. A start that
        has not happened is repeated, once.

        Args:
            spec: the scope, with the units that come with it.
            deadline: on trio's clock.
            made: called when the manager has made the unit, and has yet to start it; not where the link was lost.

        Raises:
            UnitExists: the name is taken; after a repetition possibly by the first call, which was read late.
            NoSuchProperty, InvalidProperty: the manager's judgement on one of the properties.
            AccessDenied, UnitBusy, ManagerRefused: as the manager says.
        """
        ...

    async def check_scope(self, spec: ScopeSpec, *, deadline: float) -> None:
        """Have all properties of a scope, and of the units that come with it, judged as `start_scope` does.

        Nothing is started, no process is moved, and nothing stays.

        Raises:
            UnitExists: one of the names is taken.
            NoSuchProperty, InvalidProperty: the manager's judgement on one of the properties.
            AccessDenied, UnitBusy, ManagerRefused: as the manager says.
        """
        ...

    async def start_service(
        self, spec: ServiceSpec, *, deadline: float, made: Callable[[], None] | None = None
    ) -> Job:
        """Start a transient service and wait for the end of its job: with `Type=oneshot`, of its process.

        The call is not repeated. If the link to the manager is lost meanwhile, nobody can tell any more how a
        process ended that is collected: that is `ManagerUnavailable`. Arguments are those of `start_scope`.

        Raises:
            UnitExists, NoSuchProperty, InvalidProperty, AccessDenied, UnitBusy, ManagerRefused: as `start_scope` says.
        """
        ...

    async def stop(self, unit: str, *, alone: bool = False, deadline: float) -> Job:
        """Stop a unit and wait for the end of the job, whose result is "frozen" for a frozen unit.

        The caller sees to it that the start job of a scope has ended (needs.md §7, trap 2).

        Args:
            unit: its name.
            alone: leave all units that depend on it as they are (``ignore-dependencies``, systemctl(1)).
            deadline: on trio's clock.

        Raises:
            NoSuchUnit: not loaded.
        """
        ...

    async def reload(self, unit: str, *, deadline: float) -> Job:
        """Have a unit reload its configuration, and wait for the end of the job.

        Raises:
            NoSuchUnit: not loaded.
            ManagerRefused: it cannot be reloaded.
        """
        ...

    async def status(self, unit: str, *, deadline: float) -> UnitStatus | None:
        """Everything about a unit that decides about adopting it or about who holds its name.

        A unit that is not loaded but has a file is loaded by the question, as any reference to it would do.

        Returns:
            None if no such unit is loaded and no file defines it.
        """
        ...

    async def units(self, pattern: str, *, deadline: float) -> list[str]:
        """Names of the units that are loaded, in whatever state, and match a pattern of fnmatch(3)."""
        ...

    async def unit_of_process(self, pidfd: int, *, deadline: float) -> tuple[str, str]:
        """Name and invocation ID (32 hexadecimal digits, or empty) of the unit that a process is in.

        Raises:
            NoSuchUnit: the process is gone or in no unit.
        """
        ...

    async def kill(
        self, unit: str, whom: Literal["all", "main", "control"], signal: int, *, deadline: float
    ) -> None:
        """Send a signal to processes of a unit.

        Raises:
            NoSuchUnit: not loaded, or it has no process of that kind.
        """
        ...

    async def kill_subgroup(self, unit: str, subgroup: str, signal: int, *, deadline: float) -> None:
        """Send a signal to all processes in a control group below that of a unit.

        Raises:
            NoSuchUnit: not loaded, or no process is there.
        """
        ...

    async def set_properties(
        self, unit: str, properties: Sequence[TypedProperty], *, check: bool = False, deadline: float
    ) -> None:
        """Set properties of a unit that is there, all of them or none, for as long as it is.

        When this returns the manager has written what there is to write to the control group. A list is added to,
        unless it is empty.

        Args:
            unit: its name.
            properties: what to set.
            check: have all of them judged, and set nothing.
            deadline: on trio's clock.

        Raises:
            NoSuchUnit: not loaded.
            InvalidProperty: the manager's judgement on one of the properties, or one that is fixed by the start.
            AccessDenied, ManagerRefused: as the manager says.
        """
        ...

    async def freeze(self, unit: str, *, deadline: float) -> None:
        """Freeze a unit that is active, and wait until the kernel says so; nothing happens to one that is frozen.

        One that is frozen with a slice above stays so when the slice is thawed.

        Raises:
            NoSuchUnit: not loaded.
            FreezerCancelled: the manager gave up. If nobody thawed the unit, it will be frozen all the same.
            UnitBusy: it is not active, or has a job.
            ManagerRefused: nothing of its type can be frozen.
        """
        ...

    async def thaw(self, unit: str, *, deadline: float) -> None:
        """Let a frozen unit run again, and wait for it; nothing happens to one that is not frozen.

        One that is frozen with a slice above as well goes on being so. Who waits for it to be frozen gets UnitBusy.

        Raises:
            NoSuchUnit: not loaded.
            UnitBusy: it is frozen with a slice above only, or has a job.
        """
        ...

    async def reset_failed(self, unit: str, *, deadline: float) -> None:
        """Forget that a unit failed, so that it is unloaded and its name free.

        Raises:
            NoSuchUnit: not loaded.
        """
        ...

    async def property_types(self, unit_type: UnitType, *, deadline: float) -> PropertyTypes:
        """The properties that units of this type have; asked for once for each connection."""
        ...

    async def properties(self, unit: str, names: Sequence[str], *, deadline: float) -> dict[str, Json]:
        """Values of properties of a unit, as plain JSON; "no limit" and "not available" are None.

        Raises:
            NoSuchProperty: the unit has no such property.
        """
        ...

    def watch(self, callback: Callable[[UnitHint], None], interest: Callable[[str], bool]) -> None:
        """Have hints delivered; once, before `run`.

        Args:
            callback: called synchronously from the reader: it must only take a note, and not raise.
            interest: whether hints about a unit are wanted. Called for every signal of every unit: a look into a set.
        """
        ...
