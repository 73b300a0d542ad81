"""Helpers: services that exist for one machine, come before it, and go after it.

How the units hang together. All of it is the service manager's own: none of it needs this service to be alive.

- The *place*, a service whose process ends at once, has the runtime directory of the machine made and removed. Where
  that belongs to anybody but root it is a file system of its own, which bounds what can be put there.
- The *sockets* of a helper are one unit of its name, bound in that directory, passed by socket activation. The manager
  takes them away when nothing needs them any more (``StopWhenUnneeded=``): with the last end of the helper, but not
  while that is on its way to a restart. ``BindsTo=`` would, as "deactivating" is enough for it.
- A *helper* is started before the scope and stopped after it: a VMM that is told to stop needs its disk until it has
  stopped. It is bound to the scope (``BindsTo=``): whatever ends the machine ends the helper.
- The *barrier*, a service without a process, is ordered after all helpers and requires them. If one of them does not
  start, the barrier does not either, and its ``OnFailure=`` is
- the *stopper*, a service that conflicts with the scope: its start takes the start of the scope out of the queue,
  or ends the machine that runs.
- The *bond* of a helper whose policy is ``stopMachine``, a service that is active without a process, is needed by that
  helper alone, so that the manager stops it as it does the sockets, however the helper ended; and passes its own stop
  on to the scope (``PropagatesStopTo=``). It is started after the helper and the scope: a helper that does not start
  has not ended. Stopped by itself, without what depends on it, it lets go: then the helper may end alone.

The scope wants the helpers that come with it for as long as it runs. Whatever pulls the scope in again, such as the
start of another helper, which is bound to it, pulls in all of these helpers, even those that were removed. The manager
then drops every job that nothing asks for: the scope runs already, so its helpers' jobs go, unless two of them ask for
each other. That is why a bond that comes with the scope must not require its helper, which wants the bond.

So that a machine comes with all its helpers or not at all, whoever dies meanwhile.
"""

from __future__ import annotations

import functools
import graphlib
import logging
import os
import shutil
import stat
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager

import msgspec
import trio

from moorage.kernel.system import System
from moorage.machines import model
from moorage.machines.errors import HelperFailed, HelperLate, InvalidHelper
from moorage.machines.helper_states import ENDED, HelperStates
from moorage.machines.model import Helper, HelperFailure, HelperSpec, HelperStatus, SocketType
from moorage.machines.properties import sandbox
from moorage.pid1 import unit_files
from moorage.pid1.hints import Hints, News
from moorage.pid1.journal import Journal, UnitLog
from moorage.pid1.manager import (
    AuxiliaryUnit,
    InvalidProperty,
    Json,
    Manager,
    ManagerTimeout,
    NoSuchProperty,
    PropertyTypes,
    TypedProperty,
    UnitHint,
)

ARGUMENTS_MAX = 1024
"""Strings in one command: a hundred devices of a VMM, and then some. Their bytes are bounded with the properties'."""

LOG_WAIT_USEC = 500_000
"""For how long the journal may take to get what a helper wrote last, µs: it needs a few ms on an idle machine."""

TYPES = frozenset({"simple", "exec", "notify", "notify-reload", "oneshot"})
"""Types of services that helpers may be. With "forking" and "idle" nobody can tell when they are ready, and "dbus"
needs a bus."""

RESTARTS = frozenset({"no", "on-success", "on-failure", "on-abnormal", "on-watchdog", "on-abort", "always"})
"""What systemd.service(5) has for ``Restart=``."""

DIRECTORY_BYTES_MAX = 64 * 1024 * 1024
"""Bytes in the runtime directory of a machine: sockets have none, the state of a TPM and the variables of a firmware
have up to 4 MiB each, and a launcher may leave a kernel and its initrd there."""

DIRECTORY_INODES_MAX = 4096
"""Files in it, sockets and directories counted: its helpers' sockets are 1024 at most, and the rest is the launcher's.
Each takes 1 KiB of the kernel's memory."""

_HIDING = frozenset(
    {"RootDirectory", "RootImage", "RootMStack", "PrivateTmp", "PrivateTmpEx", "ProtectHome", "BindPaths",
     "BindReadOnlyPaths", "MountImages", "ExtensionImages", "ExtensionDirectories"}
)  # fmt: skip
"""With these a helper's root may have programs that are not in ours."""

_log = logging.getLogger(__name__)


class Home(msgspec.Struct, frozen=True):
    """Where the services of a manager have their runtime directories.

    Attributes:
        user: it is the manager of a user.
        root: ``/run``, or the user's ``$XDG_RUNTIME_DIR``.
    """

    user: bool
    root: str

    @property
    def base(self) -> str:
        """The directory of this service, with all that is below."""
        return f"{self.root}/moorage"

    def directory(self, machine: str) -> str:
        """Path of a machine's runtime directory."""
        return f"{self.root}/{relative_directory(machine)}"


class Host(msgspec.Struct, frozen=True):
    """The machine that helpers are for.

    Attributes:
        name: its name.
        unit: that it lives in.
        slice: of that unit.
        owner: uid of those who use its sockets.
        mark: what tells the units that are started now from others of their names.
    """

    name: str
    unit: str
    slice: str
    owner: int
    mark: str


def relative_directory(machine: str) -> str:
    """Path of a machine's runtime directory as ``RuntimeDirectory=`` has it."""
    return f"moorage/m/{model.directory_name(machine)}"


# Checking what is asked for


def check(specs: Sequence[HelperSpec], machine: str, existing: Iterable[Helper], home: Home) -> None:
    """Check helpers against each other, and against those that a machine has.

    Raises:
        InvalidHelper: one of them cannot be; the first field that is wrong.
    """
    names = {helper.name for helper in existing}
    sockets = {name for helper in existing for name in helper.sockets}
    if len(names) + len(specs) > model.HELPERS_MAX:
        raise InvalidHelper("")
    for number, spec in enumerate(specs):
        where = f"[{number}]"
        if not model.is_helper_name(spec.name, machine) or spec.name in names:
            raise InvalidHelper(f"{where}.name")
        names.add(spec.name)
        _check_command(spec.exec_start, f"{where}.execStart")
        if spec.type not in TYPES:
            raise InvalidHelper(f"{where}.type")
        # A oneshot service that succeeded has ended (systemd.service(5)).
        if spec.restart is not None and (
            spec.restart not in RESTARTS
            or (spec.type == "oneshot" and spec.restart in {"always", "on-success"})
        ):
            raise InvalidHelper(f"{where}.restart")
        _check_sockets(spec, f"{where}.sockets", sockets, home.directory(machine))
    _check_order(specs, names)


def bad_argument(command: Sequence[str]) -> str | None:
    """Return what a command cannot have: "[2]" for its third string, "" for all of it; None if it can be."""
    if not 0 < len(command) <= ARGUMENTS_MAX or not model.is_path(command[0]):
        return ""
    if unit_files.broken_command(command[0], command, expands=False) is not None:
        return "[0]"
    for number, argument in enumerate(command):
        if unit_files.QUOTED.broken_by(argument) is not None:
            return f"[{number}]"
    return None


def _check_command(command: Sequence[str], where: str) -> None:
    if (place := bad_argument(command)) is not None:
        raise InvalidHelper(f"{where}{place}")


def _check_sockets(spec: HelperSpec, where: str, taken: set[str], directory: str) -> None:
    if len(spec.sockets) > model.HELPER_SOCKETS_MAX:
        raise InvalidHelper(where)
    for number, socket in enumerate(spec.sockets):
        if (
            not model.is_socket_name(socket.name)
            or socket.name in taken
            or len(f"{directory}/{socket.name}") > model.SUN_PATH_MAX
        ):
            raise InvalidHelper(f"{where}[{number}].name")
        taken.add(socket.name)
        # They are one unit, and that has one SocketMode=.
        if (socket.mode is not None and not 0 <= socket.mode <= 0o777) or socket.mode != spec.sockets[
            0
        ].mode:
            raise InvalidHelper(f"{where}[{number}].mode")


def _check_order(specs: Sequence[HelperSpec], names: set[str]) -> None:
    order = graphlib.TopologicalSorter[str]()
    for number, spec in enumerate(specs):
        for place, other in enumerate(spec.after):
            if other not in names:
                raise InvalidHelper(f"[{number}].after[{place}]")
        order.add(spec.name, *spec.after)
    try:
        order.prepare()
    except graphlib.CycleError as error:
        cycle = error.args[1]
        number = next(number for number, spec in enumerate(specs) if spec.name in cycle)
        raise InvalidHelper(f"[{number}].after") from None


async def check_programs(specs: Sequence[HelperSpec]) -> None:
    """Check that the programs of helpers are there, as far as we can see.

    Raises:
        InvalidHelper: one is not.
    """
    visible = [
        (number, spec.exec_start[0])
        for number, spec in enumerate(specs)
        if not _HIDING & spec.properties.keys()
    ]
    # In a thread: a program may lie on a file system that does not answer.
    missing = await trio.to_thread.run_sync(_missing, visible, abandon_on_cancel=True)
    if missing is not None:
        raise InvalidHelper(f"[{missing}].execStart[0]")


async def is_program(path: str) -> bool:
    """Whether a program is there, as far as we can see."""
    # In a thread: it may lie on a file system that does not answer.
    return await trio.to_thread.run_sync(_missing, [(0, path)], abandon_on_cancel=True) is None


def _missing(programs: Sequence[tuple[int, str]]) -> int | None:
    for number, path in programs:
        try:
            status = os.stat(path)
        except PermissionError:
            continue  # the manager sees more than we do
        except (OSError, ValueError):
            return number
        if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
            return number
    return None


# Describing the units to the manager


@functools.cache
def _program(name: str) -> str:
    return shutil.which(name) or f"/usr/bin/{name}"


def _without_process() -> dict[str, Json]:
    """Properties of a service that is started for its dependencies only: its condition is never met."""
    return {"Type": "oneshot", "ExecStart": [[_program("true"), ["true"], False]],
            "Conditions": [["ConditionPathExists", False, True, "/"]]}  # fmt: skip


def _common(host: Host, description: str) -> dict[str, Json]:
    return {
        "Description": description,
        "Documentation": [host.mark],
        "Slice": host.slice,
        "CollectMode": "inactive-or-failed",
        # At shutdown all of this is stopped with the scope, and in its order.
        "DefaultDependencies": False,
    }


def _bound(host: Host, description: str) -> dict[str, Json]:
    """What lives for the machine only: comes before its scope, goes after it."""
    return {**_common(host, description), "BindsTo": [host.unit], "Before": [host.unit]}


def _place(host: Host, home: Home) -> dict[str, Json]:
    return {
        **_bound(host, f"Runtime directory of machine {model.in_description(host.name)}"),
        # Before the stopper only to keep it loaded for as long as there may be helpers.
        "Before": [host.unit, model.stopper_name(host.name)],
        "Type": "oneshot",
        "RemainAfterExit": True,
        "RuntimeDirectory": [relative_directory(host.name)],
        "RuntimeDirectoryMode": 0o700,
        **(
            {"ExecStart": [[_program("true"), ["true"], False]]}
            if home.user or host.owner == 0
            else _mounted(home.directory(host.name), host.owner)
        ),
    }


def _mounted(directory: str, owner: int) -> dict[str, Json]:
    """Properties of a service that mounts a file system on its runtime directory.

    What is below stays root's, so that there is no moment in which others can write to the file system of ``/run``. It
    is no unit of the type mount, which would be ordered before the service that makes the directory
    (RequiresMountsFor= of RuntimeDirectory=, systemd.exec(5)). It is taken away whoever is in it: what is open there
    goes when it is closed.

    Every sandboxed service gets a copy of every mount, so that a hundred of these make the next start of helpers take
    twice as long. Where it would bound nobody there is none: root can fill ``/run`` anyway, and what a user's manager
    makes is on that user's own bounded file system.
    """
    bounds = f"size={DIRECTORY_BYTES_MAX},nr_inodes={DIRECTORY_INODES_MAX}"
    options = f"nosuid,nodev,noexec,mode=0700,uid={owner},{bounds}"
    return {
        "ExecStart": [
            [_program("mount"), ["mount", "-t", "tmpfs", "-o", options, "moorage", directory], False]
        ],
        "ExecStopPost": [[_program("umount"), ["umount", "-l", directory], True]],
    }


def _bond(host: Host, spec: HelperSpec, *, with_scope: bool) -> dict[str, Json]:
    helper = model.helper_unit(host.name, spec.name)
    # The bond must not start if its helper did not. A scope that starts after its helpers sees to that; one that runs
    # already does not.
    requires: dict[str, Json] = {} if with_scope else {"Requires": [helper]}
    return {
        **_common(host, f"Bond of machine {model.in_description(host.name)} and its helper {spec.name}"),
        # Of this type it is active at once. While one bond is being started the manager cannot stop another one: that
        # would stop the scope, and with it the first ("transaction is destructive"). It does not try again.
        "Type": "simple",
        "RemainAfterExit": True,
        "ExecStart": [[_program("true"), ["true"], False]],
        "BindsTo": [host.unit],
        **requires,
        "After": [host.unit, helper],
        "StopWhenUnneeded": True,
        "PropagatesStopTo": [host.unit],
    }


def _stopper(host: Host) -> dict[str, Json]:
    return {
        **_common(host, f"Stop of machine {host.name}, of which a helper did not start"),
        **_without_process(),
        "Conflicts": [host.unit],
    }


def barrier(host: Host, specs: Sequence[HelperSpec]) -> dict[str, Json]:
    """Describe a service whose start succeeds when all helpers are ready."""
    units: list[Json] = [model.helper_unit(host.name, spec.name) for spec in specs]
    return {
        **_common(host, f"Helpers of machine {model.in_description(host.name)}"),
        **_without_process(),
        "Requires": units,
        "After": units,
    }


def _socket(host: Host, spec: HelperSpec, home: Home) -> dict[str, Json]:
    names = {
        SocketType.stream: "Stream",
        SocketType.datagram: "Datagram",
        SocketType.seqpacket: "SequentialPacket",
    }
    directory = home.directory(host.name)
    place = model.place_name(host.name)
    mode = 0o600 if spec.sockets[0].mode is None else spec.sockets[0].mode
    if host.owner != 0 and not home.user:
        # They stay root's. The manager gives them to others by their path, which leads wherever the directory's owner
        # wants (chown(2) in socket_chown()). As that owner is the only other one who gets into the directory, it may
        # do with them what the mode says of an owner.
        mode |= mode >> 6 & 0o7
    return {
        **_bound(host, f"Sockets of helper {spec.name} of machine {model.in_description(host.name)}"),
        # Nobody shall wait on a socket that nobody will ever accept from.
        "StopWhenUnneeded": True,
        "Requires": [place],
        "After": [place],
        "Listen": [[names[socket.type], f"{directory}/{socket.name}"] for socket in spec.sockets],
        "FileDescriptorName": spec.name,
        "SocketMode": mode,
        "RemoveOnStop": True,
    }


def _service(host: Host, spec: HelperSpec, home: Home) -> dict[str, Json]:
    needed: list[Json] = [model.place_name(host.name)]
    if spec.sockets:
        needed.append(model.helper_unit(host.name, spec.name, "socket"))
    properties: dict[str, Json] = {
        **_bound(host, f"Helper {spec.name} of machine {model.in_description(host.name)}"),
        # Without them systemd 262 gives a service with PrivateTmp= a /tmp that only root can use.
        "DefaultDependencies": True,
        "Requires": needed,
        "After": [*needed, *(model.helper_unit(host.name, other) for other in spec.after)],
        "Type": spec.type,
        # The arguments are what they are: no variable of any environment is put into them.
        "ExecStartEx": [[spec.exec_start[0], list(spec.exec_start), ["no-env-expand"]]],
        **sandbox(home.root, home.directory(host.name), user=home.user),
    }
    if spec.type == "oneshot":
        properties["RemainAfterExit"] = True
    if spec.restart is not None:
        # Restarted "directly" a service has not failed for those that watch for it, until it is given up.
        properties |= {"Restart": spec.restart, "RestartMode": "direct"}
    if spec.on_failure is HelperFailure.stop_machine:
        properties["Wants"] = [model.bond_name(host.name, spec.name)]
    return properties


class Types(msgspec.Struct, frozen=True):
    """What services and sockets have."""

    service: PropertyTypes
    socket: PropertyTypes

    def helpers(
        self,
        host: Host,
        specs: Sequence[HelperSpec],
        home: Home,
        *,
        with_place: bool,
        with_scope: bool,
    ) -> tuple[AuxiliaryUnit, ...]:
        """Describe the units of helpers, without what starts them.

        Args:
            host: the machine.
            specs: checked.
            home: of the manager.
            with_place: and of the machine's place, which is not there yet.
            with_scope: they come with the scope.

        Raises:
            NoSuchProperty, InvalidProperty: one that the caller sets.
        """
        units: list[AuxiliaryUnit] = []
        if with_place:
            units.append(self.unit(model.place_name(host.name), _place(host, home)))
            units.append(self.unit(model.stopper_name(host.name), _stopper(host)))
        for spec in specs:
            ours = self.service.convert(_service(host, spec, home))
            # The caller's come after the defaults: they take their place, or are added where a property is a list.
            if "Documentation" in spec.properties:  # an empty one would take the mark away
                ours += self._convert(spec) + self.service.convert({"Documentation": [host.mark]})
            else:
                ours += self._convert(spec)
            unit = model.helper_unit(host.name, spec.name)
            units.append(AuxiliaryUnit(unit, ours, spec.name, tuple(spec.properties)))
            if spec.sockets:
                unit = model.helper_unit(host.name, spec.name, "socket")
                units.append(AuxiliaryUnit(unit, self.socket.convert(_socket(host, spec, home))))
            if spec.on_failure is HelperFailure.stop_machine:
                units.append(
                    self.unit(
                        model.bond_name(host.name, spec.name), _bond(host, spec, with_scope=with_scope)
                    )
                )
        return tuple(units)

    def unit(self, name: str, properties: Mapping[str, Json]) -> AuxiliaryUnit:
        """Describe a service."""
        return AuxiliaryUnit(name, self.service.convert(properties))

    def _convert(self, spec: HelperSpec) -> tuple[TypedProperty, ...]:
        try:
            return self.service.convert(spec.properties)
        except InvalidProperty as error:
            raise InvalidProperty(error.property, error.reason, spec.name) from None
        except NoSuchProperty as error:
            raise NoSuchProperty(error.property, error.nearest, spec.name) from None


def wanted(machine: str, specs: Sequence[HelperSpec]) -> list[str]:
    """Return the names of the units that a scope pulls in: for ever, so not those that go when nothing needs them."""
    if not specs:
        return []
    services = [model.helper_unit(machine, spec.name) for spec in specs]
    return [model.place_name(machine), *services, model.barrier_name(machine)]


def auxiliary_names(machine: str, specs: Sequence[HelperSpec | Helper]) -> list[str]:
    """Return the names of all units that come with a machine that has these helpers."""
    if not specs:
        return []
    return [
        model.place_name(machine),
        model.stopper_name(machine),
        model.barrier_name(machine),
        *helper_names(machine, specs),
        *bond_names(machine, specs),
    ]


def change_names(change: model.Change) -> list[str]:
    """Return the names of all units that are started when helpers are added."""
    place = (
        [model.place_name(change.machine), model.stopper_name(change.machine)] if change.with_place else []
    )
    bonds = bond_names(change.machine, change.helpers)
    return [model.adder_name(change.machine), *helper_names(change.machine, change.helpers), *bonds, *place]


def helper_names(machine: str, specs: Iterable[HelperSpec | Helper]) -> list[str]:
    """Return the names of the units of helpers, but for their bonds."""
    return [
        model.helper_unit(machine, spec.name, suffix)
        for spec in specs
        for suffix in (("service", "socket") if spec.sockets else ("service",))
    ]


def bond_names(machine: str, specs: Iterable[HelperSpec | Helper]) -> list[str]:
    """Return the names of the bonds of those helpers that have one."""
    return [
        model.bond_name(machine, spec.name)
        for spec in specs
        if spec.on_failure is HelperFailure.stop_machine
    ]


def recorded(machine: str, specs: Iterable[HelperSpec]) -> tuple[Helper, ...]:
    """Return what a machine keeps of its helpers."""
    return tuple(
        Helper(
            name=spec.name,
            unit=model.helper_unit(machine, spec.name),
            on_failure=spec.on_failure,
            sockets=tuple(socket.name for socket in spec.sockets),
        )
        for spec in specs
    )


# Watching them


class Start:
    """Units of helpers while they start.

    Attributes:
        units: the helper's name by unit.
        failed: those that have been seen to fail, in that order.
        results: of those, what the manager answered.
        news: of these units.
        since_usec: when it began, µs since boot.
    """

    def __init__(self, units: Mapping[str, str], news: News, *, since_usec: int) -> None:
        self.units = units
        self.news = news
        self.failed: list[str] = []
        self.results: dict[str, str] = {}
        self.since_usec = since_usec

    def hint(self, hint: UnitHint) -> None:
        """Take note of a unit that has failed."""
        if hint.active_state == "failed" and hint.unit not in self.failed:
            self.failed.append(hint.unit)

    def note(self, statuses: Iterable[HelperStatus]) -> None:
        """Take note of helpers that have ended, right after their start."""
        for status in statuses:
            if status.active_state in ENDED:
                self.failed.append(status.helper.unit)
                self.results[status.helper.unit] = status.result or ""


class Helpers:
    """Watches helpers while they start.

    Attributes:
        home: where the runtime directories of machines are.
        states: of all helpers.
    """

    def __init__(self, manager: Manager, home: Home, hints: Hints, system: System, journal: Journal) -> None:
        self.home = home
        self.states = HelperStates(manager, hints, system.processes, journal, user=home.user)
        self._system = system
        self._journal = journal
        self._manager = manager
        self._hints = hints

    async def types(self, *, deadline: float) -> Types:
        """Return what services and sockets have.

        Raises:
            ManagerError: as the manager says.
        """
        return Types(
            await self._manager.property_types("service", deadline=deadline),
            await self._manager.property_types("socket", deadline=deadline),
        )

    @contextmanager
    def starting(self, machine: str, specs: Iterable[HelperSpec]) -> Generator[Start]:
        """Watch the units of helpers while they start. Their states are kept from here on, until they are dropped."""
        units: dict[str, str] = {}
        for spec in specs:
            units[model.helper_unit(machine, spec.name)] = spec.name
            if spec.sockets:
                units[model.helper_unit(machine, spec.name, "socket")] = spec.name
        with self._hints.of(units) as news:
            start = Start(units, news, since_usec=self._system.clock.monotonic())
            self.states.follow(
                (model.helper_unit(machine, spec.name) for spec in specs), since_usec=start.since_usec
            )
            for unit in units:
                self._hints.follow(unit, start.hint)
            try:
                yield start
            finally:
                for unit in units:
                    self._hints.unfollow(unit, start.hint)

    async def settled(
        self, start: Start, helpers: Sequence[Helper], *, deadline: float
    ) -> list[HelperStatus]:
        """Return the states of helpers after the job that started them, and take note of those that have ended.

        A program may end right after its start, which is when the manager's job is done: until the manager reports
        that, it calls the helper active. So wherever the main process is gone, its next report is waited for.

        Raises:
            ManagerError: as the manager says, or it reports nothing.
        """
        while True:
            await self.states.catch_up([helper.unit for helper in helpers], deadline=deadline)
            statuses = self.states.statuses(helpers)
            unsettled = [
                status.helper.unit
                for status in statuses
                if status.main_process is None and self.states.unsettled(status.helper)
            ]
            if not unsettled:
                start.note(statuses)
                return statuses
            with trio.move_on_at(deadline) as waiting:
                await start.news.next()
            if waiting.cancelled_caught:
                raise ManagerTimeout(f"end of the main process of {unsettled[0]}")

    async def failure(self, start: Start) -> HelperFailed | None:
        """Say which of the helpers failed, and how; None where none seems to be to blame.

        A failed unit is gone at once together with what it was to start with: what is left of it is in the journal.
        """
        logs = await self._logs(start, tuple(start.failed or start.units), LOG_WAIT_USEC)
        failed = start.failed or [unit for unit, log in logs.items() if log.result is not None]
        if not failed:
            return None
        log = logs.get(failed[0], UnitLog())
        result = log.result or start.results.get(failed[0]) or None
        return HelperFailed(start.units[failed[0]], failed[0], result, log.lines)

    async def lateness(self, start: Start, records: Iterable[Helper]) -> HelperLate | None:
        """Say which of the helpers is not ready; None where all are, or nothing is known of them."""
        for status in self.states.statuses(records):
            if status.active_state == "activating":
                unit = status.helper.unit
                logs = await self._logs(start, (unit,), 0)
                return HelperLate(status.helper.name, unit, logs.get(unit, UnitLog()).lines)
        return None

    async def _logs(self, start: Start, units: Sequence[str], wait_usec: int) -> Mapping[str, UnitLog]:
        """Return what units have written since a start began, none where the journal cannot be read."""
        read = functools.partial(
            self._journal.read,
            units,
            since_usec=start.since_usec,
            boot_id=self._system.processes.boot_id(),
            user=self.home.user,
            wait_usec=wait_usec,
        )
        try:
            return await trio.to_thread.run_sync(read)
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
            _log.warning("Failed to read the journal, ignoring: %s", error)
            return {}
