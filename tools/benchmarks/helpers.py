"""Machines with helpers: by moored, and the same units by others.

The others are given what moored itself would send: its own description of the units is taken down before it is sent,
so that the figures differ by who asks for the units and not by what is asked for. `systemd-run` cannot be given a
description; it gets the same settings word for word.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import trio
from jeepney.auth import BEGIN, make_auth_external
from jeepney.low_level import Endianness, Header, HeaderFields, Message, MessageType

from benchmarks.machines import GONE_SECONDS, LOOK_SECONDS
from benchmarks.peers import CGROUPS, COMMAND_SECONDS
from benchmarks.wire import CALL_SECONDS, Unmeasurable, connect, encode, exchange
from moorage.dbus.signature import split
from moorage.kernel import process
from moorage.machines.helpers.units import RuntimeDirectories, UnitTypes, relative_directory
from moorage.machines.model import MACHINE_SLICE, TASKS_MAX, HelperSpec, MachineClass, Registration
from moorage.machines.scope_units import Types, describe
from moorage.names import UnitNames
from moorage.pid1.manager import ScopeSpec
from moorage.pid1.over_dbus.calls import DBusManager
from moorage.pid1.over_dbus.session import Endpoints

PROGRAM = ("/usr/bin/sleep", "infinity")
"""Command of each helper, which is ready once it has been executed (``Type=exec``)."""

HOME = RuntimeDirectories(user=False, root="/run")
MARKS = f"file:{HOME.base}/machines/"
PRIVATE = "/run/systemd/private"
RECEIVE_BYTES = 65536

_NAME = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_INTERFACE = f"{_NAME}.Manager"
_SIGNATURE = "ssa(sv)a(sa(sv))"


@dataclass
class Machine:
    """A machine to be started, whose leader sleeps. A context manager, which kills and reaps the leader.

    Attributes:
        name: of the machine, unique in a run.
        count: of its helpers.
        pid: of its leader.
    """

    name: str
    count: int
    pid: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_leader()

    def spawn(self, *before: str) -> None:
        """Start the leader.

        Args:
            before: a command that executes the one that follows.
        """
        command = [*before, *PROGRAM]
        self.pid = os.posix_spawnp(command[0], command, os.environ)

    def _end_leader(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def wait_held(self) -> None:
        """Wait until the scope holds the leader.

        Raises:
            Unmeasurable: it does not.
        """
        deadline = time.perf_counter() + CALL_SECONDS
        mark = f"/{UnitNames(self.name).scope}".encode()
        descriptor = os.open(f"/proc/{self.pid}/cgroup", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while mark not in os.pread(descriptor, 4096, 0):
                if time.perf_counter() > deadline:
                    raise Unmeasurable(f"{self.name}: not in its scope after {CALL_SECONDS:.0f} s")
                time.sleep(LOOK_SECONDS)
        finally:
            os.close(descriptor)

    def kill(self) -> float:
        """Kill the leader. Return the ms until the control group of the last helper, or else of the scope, is gone.

        Raises:
            Unmeasurable: one was not there, or stays.
        """
        units = [UnitNames(self.name).helper(spec.name) for spec in specs(self.count)] or [
            UnitNames(self.name).scope
        ]
        groups = [CGROUPS / MACHINE_SLICE / unit for unit in units]
        for group in groups:
            if not group.exists():
                raise Unmeasurable(f"{group} is not there")
        begin = time.perf_counter()
        self._end_leader()
        for group in groups:
            while group.exists():
                if time.perf_counter() > begin + GONE_SECONDS:
                    raise Unmeasurable(f"{group} is still there after {GONE_SECONDS:.0f} s")
                time.sleep(LOOK_SECONDS)
        return (time.perf_counter() - begin) * 1000


def specs(count: int) -> tuple[HelperSpec, ...]:
    """Return a number of helpers, with the defaults of moored."""
    return tuple(HelperSpec(f"h{number:02}", PROGRAM) for number in range(count))


def by_moored(machine: Machine, path: str) -> float:
    """Register a machine with helpers. Return the ms until the reply."""
    machine.spawn()
    helpers = [{"name": spec.name, "execStart": list(spec.exec_start)} for spec in specs(machine.count)]
    parameters = {"name": machine.name, "class": "vm", "leader": {"pid": machine.pid}, "helpers": helpers}
    request = encode("io.moorage.Machine.Register", parameters)
    with connect(path) as sock:
        begin = time.perf_counter()
        exchange(sock.fileno(), request)
        return (time.perf_counter() - begin) * 1000


# What moored would send


def described(machine: Machine) -> ScopeSpec:
    """Return what moored would ask PID 1 for. The leader need not be alive."""

    async def run() -> ScopeSpec:
        manager = DBusManager(Endpoints.of("system"))
        registration = Registration(
            name=machine.name,
            class_=MachineClass.vm,
            registrant=0,
            leader=process.ProcessId(machine.pid, None, None),
            leader_pidfd=-1,
            leader_uid=0,
            supervisor=None,
            allocate_unit=True,
            helpers=specs(machine.count),
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(manager.run)
            deadline = trio.current_time() + CALL_SECONDS
            service = await manager.property_types("service", deadline=deadline)
            socket = await manager.property_types("socket", deadline=deadline)
            scope = await manager.property_types("scope", deadline=deadline)
            nursery.cancel_scope.cancel()
        services = UnitTypes(service, socket) if machine.count else None
        return describe(registration, -1, f"{MARKS}{machine.name}#0", Types(scope, services, None), HOME)

    return trio.run(run)


def arguments(machine: Machine) -> tuple[Any, ...]:
    """Return the arguments of moored's StartTransientUnit, with a PID, as busctl passes no file descriptors."""
    spec = described(machine)
    properties = [
        ("Description", ("s", spec.description)),
        ("Slice", ("s", spec.slice)),
        ("PIDs", ("au", [machine.pid])),
        *((name, (signature, value)) for name, signature, value in spec.properties),
    ]
    auxiliary = [
        (each.unit, [(name, (signature, value)) for name, signature, value in each.properties])
        for each in spec.auxiliary
    ]
    return spec.unit, "fail", properties, auxiliary


# The others


def by_busctl(machine: Machine) -> float:
    """Start a machine by one busctl call. Return the ms from its start until the scope holds the leader."""
    machine.spawn()
    given = words(f"({_SIGNATURE})", arguments(machine))
    command = ["busctl", "--quiet", "call", "--", _NAME, _PATH, _INTERFACE, "StartTransientUnit", _SIGNATURE]
    begin = time.perf_counter()
    with subprocess.Popen([*command, *given]) as client:
        machine.wait_held()
        ms = (time.perf_counter() - begin) * 1000
        if client.wait(COMMAND_SECONDS) != 0:
            raise Unmeasurable(f"busctl: exit status {client.returncode}")
    return ms


def words(signature: str, value: Any) -> list[str]:
    """Return a value of one complete type as busctl(1) takes it."""
    if signature == "v":
        return [value[0], *words(*value)]
    if signature == "b":
        return ["true" if value else "false"]
    if signature.startswith("a"):
        return [str(len(value)), *(word for item in value for word in words(signature[1:], item))]
    if signature.startswith("("):
        members = zip(split(signature[1:-1]), value, strict=True)
        return [word for member, item in members for word in words(member, item)]
    return [str(value)]


def by_plain_client(machine: Machine) -> float:
    """Start a machine by one message over an existing link. Return the ms until the scope holds the leader."""
    machine.spawn()
    fields: dict[HeaderFields, str | int] = {
        HeaderFields.path: _PATH,
        HeaderFields.interface: _INTERFACE,
        HeaderFields.member: "StartTransientUnit",
        HeaderFields.destination: _NAME,
        HeaderFields.signature: _SIGNATURE,
    }
    header = Header(Endianness.little, MessageType.method_call, 0, 1, 0, 1, fields)
    data = Message(header, arguments(machine)).serialise(1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as link:
        link.settimeout(CALL_SECONDS)
        link.connect(PRIVATE)
        # The first message only after the answer: what PID 1 reads together with BEGIN, it looks at later.
        link.sendall(b"\0" + make_auth_external() + BEGIN)
        answer = link.recv(RECEIVE_BYTES)
        if not answer.startswith(b"OK ") or not answer.endswith(b"\r\n"):
            raise RuntimeError(f"no link to the service manager: {answer!r}")
        begin = time.perf_counter()
        link.sendall(data)
        machine.wait_held()
        return (time.perf_counter() - begin) * 1000


def by_systemd_run(machine: Machine) -> float:
    """Start the same units by systemd-run, one by one: the scope, its directory, each helper. Return the ms.

    What makes all of it one transaction has no place there, and the leader is systemd-run's own process: it cannot
    move another one.
    """
    scope, place = UnitNames(machine.name).scope, UnitNames(machine.name).runtime
    bound = {"BindsTo": scope, "CollectMode": "inactive-or-failed"}
    directory = bound | {
        "After": scope,
        "DefaultDependencies": "no",
        "Type": "oneshot",
        "RemainAfterExit": "yes",
        "RuntimeDirectory": relative_directory(machine.name),
        "RuntimeDirectoryMode": "0700",
        "User": "0",
    }
    helper = bound | {
        "After": f"{scope} {place}",
        "Requires": place,
        "Type": "exec",
        "NoNewPrivileges": "yes",
        "RestrictAddressFamilies": "AF_UNIX",
        "SystemCallFilter": "@system-service",
        "SystemCallErrorNumber": "EPERM",
        "SystemCallArchitectures": "native",
        "DynamicUser": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "PrivateDevices": "yes",
        "PrivateNetwork": "yes",
        "TemporaryFileSystem": f"{HOME.base}:ro",
        "BindPaths": HOME.directory(machine.name),
    }
    begin = time.perf_counter()
    machine.spawn(*_systemd_run(scope, {"TasksMax": str(TASKS_MAX)}, "--scope"))
    machine.wait_held()
    if machine.count:
        _check(*_systemd_run(place, directory), "/usr/bin/true")
    for spec in specs(machine.count):
        _check(*_systemd_run(UnitNames(machine.name).helper(spec.name), helper), *spec.exec_start)
    return (time.perf_counter() - begin) * 1000


def _systemd_run(unit: str, settings: Mapping[str, str], *options: str) -> list[str]:
    given = [f"--property={name}={value}" for name, value in settings.items()]
    return ["systemd-run", "--quiet", *options, f"--unit={unit}", f"--slice={MACHINE_SLICE}", *given]


def _check(*command: str) -> None:
    done = subprocess.run(command, check=False, timeout=COMMAND_SECONDS, capture_output=True, text=True)
    if done.returncode != 0:
        raise Unmeasurable(f"{command[0]}: {done.stderr.strip()}")
