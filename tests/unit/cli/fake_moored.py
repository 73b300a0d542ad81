"""io.moorage.Machine without a service manager: it keeps processes by name, and no units.

What it shares with the real thing is the wire and its types; what moorctl relies on beyond that, tests/cli_battery.py
asks of both. A program: serves the listening socket that is its stdin until it is ended.
"""

import os
import select
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import trio

from moorage import errors, names
from moorage.api.descriptions import load_description
from moorage.api.moorage_machine import types as wire
from moorage.api.wire_types import Timestamp, process_id
from moorage.kernel import process
from moorage.machines import model, texts
from moorage.names import UnitNames
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter
from moorage.wire.method import method
from moorage.wire.server import Server
from moorage.wire.service import Interface, Service
from moorage.wire.types import Empty

KNOWN_PROPERTIES = {
    "MemoryMax": int,
    "TimeoutStopUSec": int,
    "RuntimeMaxUSec": int,
    "TasksMax": int,
    "KillMode": str,
}
SIGNATURES = {
    "MemoryMax": "t",
    "TimeoutStopUSec": "t",
    "RuntimeMaxUSec": "t",
    "TasksMax": "t",
    "TasksMaxScale": "u",
    "KillMode": "s",
}


@dataclass
class Kept:
    machine: wire.Machine
    pidfd: int
    limits: dict[str, Any]
    reset: Timestamp | None = None

    @property
    def lives(self) -> bool:
        return not select.select([self.pidfd], [], [], 0)[0]


def now() -> Timestamp:
    return Timestamp(realtime=time.time_ns() // 1000, monotonic=time.monotonic_ns() // 1000)


class FakeMachine(Interface):
    def __init__(self) -> None:
        super().__init__(load_description("io.moorage.Machine"))
        self._kept: dict[str, Kept] = {}

    @method("Register")
    def register(self, call: Call, params: wire.RegisterIn) -> wire.RegisterOut:
        if not names.is_machine_name(params.name):
            raise InvalidParameter("name")
        if params.slice is not None and not names.is_slice_name(params.slice):
            raise InvalidParameter("slice")
        if params.id is not None and not texts.is_id128(params.id):
            raise InvalidParameter("id")
        assert params.leaderFileDescriptor is not None
        pidfd = call.take_fd(params.leaderFileDescriptor, "leaderFileDescriptor")
        try:
            kept = self._prepared(call, params, pidfd)
            if params.dryRun or self._kept.get(params.name) is kept:
                os.close(pidfd)
            else:
                self._kept[params.name] = kept
        except BaseException:
            os.close(pidfd)
            raise
        return wire.RegisterOut(machine=kept.machine, differences=[])

    def _prepared(self, call: Call, params: wire.RegisterIn, pidfd: int) -> Kept:
        try:
            leader = process_id(process.process_id(pidfd))
        except process.NotAProcess:
            raise InvalidParameter("leaderFileDescriptor") from None
        except process.ProcessGone as gone:
            raise errors.ProcessGone(gone.pid) from None
        assert leader is not None
        before = self._kept.get(params.name)
        if before is not None and before.lives:
            if before.machine.leader == leader:
                return before
            raise errors.MachineExists(params.name, before.machine.unit, before.machine.invocationId)
        properties = params.properties or {}
        for name, value in properties.items():
            if name not in KNOWN_PROPERTIES:
                raise errors.NoSuchProperty(name)
            if not isinstance(value, KNOWN_PROPERTIES[name]):
                raise errors.InvalidProperty(name, "not what it should be")
        unit = UnitNames(params.name).scope
        machine = wire.Machine(
            name=params.name,
            class_=params.class_,
            phase=model.Phase.running,
            origin=model.Origin.registered,
            freezer=model.FreezerState.running,
            id=params.id,
            service=params.service,
            uid=call.peer.uid,
            unit=unit,
            slice=params.slice or "machine.slice",
            controlGroup=f"/machine.slice/{unit}",
            controlGroupId=1,
            invocationId=uuid.uuid4().hex,
            leader=leader,
            rootDirectory=params.rootDirectory,
            ifIndices=params.ifIndices or [],
            vSockCid=params.vSockCid,
            sshAddress=params.sshAddress,
            sshPrivateKeyPath=params.sshPrivateKeyPath,
            controlAddress=params.controlAddress,
            timestamp=now(),
            helpers=[],
        )
        return Kept(machine, pidfd, properties)

    @method("List", requires_more=True)
    def list(self, call: Call, params: Empty) -> Iterator[wire.MachineOut]:
        del call, params
        living = [kept.machine for kept in self._kept.values() if kept.lives]
        if not living:
            raise errors.NoSuchMachine
        for machine in living:
            yield wire.MachineOut(machine=machine)

    @method("Measure", requires_more=True)
    def measure(self, call: Call, params: wire.MeasureIn) -> Iterator[wire.SampleOut]:
        del call
        living = [kept.machine for kept in self._kept.values() if kept.lives]
        if not living:
            raise errors.NoSuchMachine
        for machine in (
            living if params.names is None else (self._living(name).machine for name in params.names)
        ):
            usec = time.monotonic_ns() // 1000
            sample = wire.Sample(
                name=machine.name,
                invocationId=machine.invocationId,
                timestamp=Timestamp(realtime=0, monotonic=usec),
                # As if half a CPU were busy all the time.
                accounting=wire.Accounting(cpuUsageNSec=usec * 500, memoryCurrent=3 << 20, tasksCurrent=1),
                phase=machine.phase,
                freezer=machine.freezer,
                limits={"MemoryMax": 4 << 20} if params.limits else None,
            )
            yield wire.SampleOut(sample=sample)

    @method("Describe")
    def describe(self, call: Call, params: wire.NameIn) -> wire.DescribeOut:
        del call
        kept = self._kept.get(params.name)
        if kept is None:
            raise errors.NoSuchMachine(params.name)
        if not kept.lives and kept.machine.verdict is None:
            self._end(kept)
        accounting = wire.Accounting(memoryCurrent=3 << 20, tasksCurrent=1)
        effective = {"MemoryMax": 4 << 20, "TasksMax": 10}
        return wire.DescribeOut(
            machine=kept.machine,
            accounting=accounting,
            accountingSince=kept.reset,
            limits=kept.limits,
            effective=effective,
        )

    @method("DescribeProperties")
    def describe_properties(
        self, call: Call, params: wire.DescribePropertiesIn
    ) -> wire.DescribePropertiesOut:
        del call
        further = {"NoNewPrivileges": "b"} if params.type == wire.UnitType.service else {}
        return wire.DescribePropertiesOut(properties=SIGNATURES | further)

    @method("DescribeConfiguration")
    def describe_configuration(self, call: Call, params: Empty) -> wire.DescribeConfigurationOut:
        del call, params
        option = wire.Option(name="machinesMax", value="16384", default="16384", source="default")
        return wire.DescribeConfigurationOut(options=[option])

    @method("Find")
    def find(self, call: Call, params: wire.FindIn) -> wire.MachineOut:
        pid = None
        if params.processFileDescriptor is not None:
            pidfd = call.take_fd(params.processFileDescriptor, "processFileDescriptor")
            pid = process.process_id(pidfd).pid
            os.close(pidfd)
        for kept in self._kept.values():
            machine = kept.machine
            assert machine.leader is not None
            keys = (machine.leader.pid, machine.unit, machine.controlGroup, machine.invocationId)
            if kept.lives and (pid, params.unit, params.controlGroup, params.invocationId) in {
                tuple(key if place == each else None for place in range(4)) for each, key in enumerate(keys)
            }:
                return wire.MachineOut(machine=machine)
        raise errors.NoSuchMachine

    @method("Kill")
    def kill(self, call: Call, params: wire.KillIn) -> None:
        del call
        kept = self._living(params.name)
        if params.subgroup is not None:  # nobody makes any here
            raise errors.ProcessGone
        signal.pidfd_send_signal(kept.pidfd, params.signal)

    @method("Stop")
    async def stop(self, call: Call, params: wire.StopIn) -> wire.MachineOut:
        del call
        kept = self._living(params.name)
        if params.powerOff:
            self._ask(params.name, "PowerOff", signal.SIGRTMIN + 4)
        else:
            signal.pidfd_send_signal(kept.pidfd, signal.SIGTERM)
        await trio.lowlevel.wait_readable(kept.pidfd)
        self._end(kept)
        return wire.MachineOut(machine=kept.machine)

    def _end(self, kept: Kept) -> None:
        kept.machine.phase = model.Phase.exited
        kept.machine.verdict = wire.Verdict(
            result="success", exitedAt=now(), oomKilled=False, accounting=wire.Accounting()
        )

    @method("SetProperties")
    def set_properties(self, call: Call, params: wire.SetPropertiesIn) -> wire.DifferencesOut:
        del call
        kept = self._living(params.name)
        if params.helper is not None:
            raise errors.NoSuchHelper(params.helper)
        for name, value in params.properties.items():
            if name not in KNOWN_PROPERTIES or not isinstance(value, KNOWN_PROPERTIES[name]):
                raise errors.InvalidProperty(name, "not what it should be")
        if not params.dryRun:
            kept.limits.update(params.properties)
        found = [
            wire.Difference(property=name, wanted=str(value), reason="there is no such controller")
            for name, value in params.properties.items()
        ]
        return wire.DifferencesOut(differences=found)

    @method("Freeze")
    def freeze(self, call: Call, params: wire.FreezeIn) -> None:
        del call
        self._living(params.name).machine.freezer = model.FreezerState.frozen

    @method("PowerOff")
    def power_off(self, call: Call, params: wire.OrderIn) -> None:
        del call
        self._ask(params.name, "PowerOff", signal.SIGRTMIN + 4)

    @method("Reboot")
    def reboot(self, call: Call, params: wire.OrderIn) -> None:
        del call
        self._ask(params.name, "Reboot", signal.SIGINT)

    def _ask(self, name: str, operation: str, number: int) -> None:
        kept = self._living(name)
        if kept.machine.class_ != wire.MachineClass.container:
            raise errors.NotSupported(operation, "the machine has no control address")
        signal.pidfd_send_signal(kept.pidfd, number)

    @method("ResetAccounting")
    def reset_accounting(self, call: Call, params: wire.OrderIn) -> None:
        del call
        self._living(params.name).reset = now()

    @method("Thaw")
    def thaw(self, call: Call, params: wire.ThawIn) -> None:
        del call
        self._living(params.name).machine.freezer = model.FreezerState.running

    @method("Forget")
    def forget(self, call: Call, params: wire.NameIn) -> None:
        del call
        os.close(self._living(params.name).pidfd)
        del self._kept[params.name]

    def _living(self, name: str) -> Kept:
        kept = self._kept.get(name)
        if kept is None or not kept.lives:
            raise errors.NoSuchMachine(name)
        return kept


def main() -> None:
    service = Service(vendor="tests", product="fake moored", version="0", url="", interfaces=[FakeMachine()])
    with socket.socket(fileno=0) as listener:
        server = Server()
        server.listen(listener, service)
        trio.run(server.serve)


if __name__ == "__main__":
    main()
