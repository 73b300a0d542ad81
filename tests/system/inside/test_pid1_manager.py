"""The manager over D-Bus against a real PID 1, the same battery over its private socket and over the bus."""

import json
import math
import os
import re
import signal
import subprocess
from collections.abc import AsyncGenerator, Generator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from pathlib import Path

import pytest
import trio
from descriptors import open_descriptors
from manager_battery import *  # noqa: F403
from manager_battery import Hints, soon
from moored import freeze, thaw

from moorage.pid1.errors import (
    InvalidProperty,
    ManagerError,
    ManagerRefused,
    ManagerTimeout,
    ManagerUnavailable,
    NoSuchProperty,
    NoSuchUnit,
    UnitExists,
)
from moorage.pid1.manager import AuxiliaryUnit, Json, ScopeSpec, TypedProperty
from moorage.pid1.over_dbus.calls import DBusManager
from moorage.pid1.over_dbus.session import Endpoints, LinkKind
from moorage.pid1.references import BusReferences

pytestmark = [
    pytest.mark.parametrize("kind", ["private", "bus"]),
    pytest.mark.system_instance(
        "it is about PID 1, without a moored; test_pid1_user is about the manager of a user"
    ),
]

SYSTEM = Endpoints("/run/systemd/private", "/run/dbus/system_bus_socket")


@asynccontextmanager
async def connected(kind: LinkKind, hints: Hints | None = None) -> AsyncGenerator[DBusManager]:
    """A manager that is up; afterwards it must have forgotten everything."""
    before = open_descriptors()
    manager = DBusManager(SYSTEM, kind)
    if hints is not None:
        manager.watch(hints, lambda unit: unit.startswith("t-"))
    async with trio.open_nursery() as nursery:
        await nursery.start(manager.run)
        assert manager.version in {257, 262}
        yield manager
        assert manager._session.jobs.idle
        assert manager._session.jobs.remembered == 0
        nursery.cancel_scope.cancel()
    assert open_descriptors() == before


@contextmanager
def process(*, deaf: bool = False) -> Generator[int]:
    """A pidfd of a process that sleeps; gone afterwards, and with it its scope."""
    ignoring = ["/usr/bin/env", "--ignore-signal=TERM"] if deaf else []
    child = subprocess.Popen([*ignoring, "/usr/bin/sleep", "infinity"])
    pidfd = os.pidfd_open(child.pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)
        child.kill()
        child.wait()


def pid_of(pidfd: int) -> int:
    fields = dict(
        line.split(":\t", 1) for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    )
    return int(fields["Pid"])


def control_group(pidfd: int) -> str:
    lines = Path(f"/proc/{pid_of(pidfd)}/cgroup").read_text().splitlines()
    (line,) = (each for each in lines if each.startswith("0::"))
    return line.removeprefix("0::")


class RealBench:
    """See `manager_battery.Bench`."""

    def __init__(self, kind: LinkKind) -> None:
        self._kind: LinkKind = kind

    def connected(self, hints: Hints) -> AbstractAsyncContextManager[DBusManager]:
        return connected(self._kind, hints)

    @asynccontextmanager
    async def references(self) -> AsyncGenerator[BusReferences]:
        references = BusReferences(SYSTEM.bus)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(references.run)
            while not references._up:  # noqa: ASYNC110 - nobody else has to know
                await trio.sleep(0.01)
            yield references
            nursery.cancel_scope.cancel()

    def process(self, *, deaf: bool = False) -> AbstractContextManager[int]:
        return process(deaf=deaf)

    def control_group(self, pidfd: int) -> str:
        return control_group(pidfd)

    def kill(self, pidfd: int) -> None:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    async def freeze(self, unit: str) -> None:
        await trio.to_thread.run_sync(freeze, unit)

    async def thaw(self, unit: str) -> None:
        await trio.to_thread.run_sync(thaw, unit)

    def is_frozen(self, control_group: str) -> bool:
        return "frozen 1" in Path(f"/sys/fs/cgroup{control_group}/cgroup.events").read_text()

    async def reload(self) -> None:
        await trio.run_process(["systemctl", "daemon-reload"])


@pytest.fixture
def bench(kind: LinkKind) -> RealBench:
    return RealBench(kind)


def reap(pidfd: int) -> int:
    """Wait for the end of a process, which is near, and until the kernel has forgotten it; returns its status."""
    info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    assert info is not None
    return info.si_status


async def gone(manager: DBusManager, hints: Hints, unit: str) -> None:
    """Wait until a unit is unloaded."""
    with suppress(NoSuchUnit):
        await manager.reset_failed(unit, deadline=soon())
    while await manager.status(unit, deadline=soon()) is not None:
        hints.seen.clear()
        if await manager.status(unit, deadline=soon()) is None:
            break
        await hints.until("removed", unit)


def spec(unit: str, *pidfds: int, properties: tuple[TypedProperty, ...] = ()) -> ScopeSpec:
    return ScopeSpec(unit, pidfds, "machine.slice", "A scope of the tests: ü", properties)


async def test_a_scope_from_its_start_to_its_stop(kind: LinkKind) -> None:
    hints = Hints()
    async with connected(kind, hints) as manager:
        with process() as pidfd:
            job = await manager.start_scope(spec("t-a.scope", pidfd), deadline=soon())
            assert (job.result, job.unit) == ("done", "t-a.scope")
            assert job.id > 0
            assert control_group(pidfd) == "/machine.slice/t-a.scope"

            status = await manager.status("t-a.scope", deadline=soon())
            assert status is not None
            assert status.unit == "t-a.scope"
            assert status.description == "A scope of the tests: ü"
            assert (status.load_state, status.active_state, status.sub_state) == (
                "loaded",
                "active",
                "running",
            )
            assert status.result == "success"
            assert status.slice == "machine.slice"
            assert status.control_group == "/machine.slice/t-a.scope"
            assert re.fullmatch("[0-9a-f]{32}", status.invocation_id)
            assert status.main_pid == 0
            assert status.fragment_path == "/run/systemd/transient/t-a.scope"
            assert status.transient
            assert status.job_id == 0
            assert status.dependants == ()

            found = await manager.unit_of_process(pidfd, deadline=soon())
            assert found == ("t-a.scope", status.invocation_id)

            job = await manager.stop("t-a.scope", deadline=soon())
            assert (job.result, job.unit) == ("done", "t-a.scope")
            await hints.until("changed", "t-a.scope", state="active")
            await hints.until("changed", "t-a.scope", state="inactive")
            await hints.until("removed", "t-a.scope")
            assert {hint.unit for hint in hints.seen} == {"t-a.scope", ""}
            assert await manager.status("t-a.scope", deadline=soon()) is None
            with pytest.raises(NoSuchUnit):
                await manager.stop("t-a.scope", deadline=soon())


async def test_two_hundred_at_once(kind: LinkKind) -> None:
    # More than a bus lets one connection have in flight.
    results: dict[int, str] = {}

    async def one(manager: DBusManager, number: int) -> None:
        with process() as pidfd:
            unit = f"t-many{number}.scope"
            job = await manager.start_scope(spec(unit, pidfd), deadline=soon())
            assert control_group(pidfd) == f"/machine.slice/{unit}"
            assert (await manager.unit_of_process(pidfd, deadline=soon()))[0] == unit
            assert await state(manager, unit) == "active"
            results[number] = job.result
            assert (await manager.stop(unit, deadline=soon())).result == "done"

    async with connected(kind) as manager, trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(one, manager, number)
    assert results == dict.fromkeys(range(200), "done")


async def test_what_is_refused_leaves_nothing(kind: LinkKind) -> None:
    hints = Hints()
    async with connected(kind, hints) as manager:
        types = await manager.property_types("scope", deadline=soon())

        async def refused(
            properties: dict[str, Json], error: type[ManagerError], name: str, *pidfds: int
        ) -> None:
            with pytest.raises(error) as caught:
                await manager.start_scope(
                    spec("t-refused.scope", *pidfds, properties=types.convert(properties)), deadline=soon()
                )
            assert getattr(caught.value, "property", "") == name, caught.value
            await gone(manager, hints, "t-refused.scope")

        with process() as pidfd:
            before = control_group(pidfd)
            cases: list[tuple[dict[str, Json], type[ManagerError], str]] = [
                ({"ActiveState": "active"}, NoSuchProperty, "ActiveState"),
                ({"TasksMax": 5, "MemoryCurrent": 5}, NoSuchProperty, "MemoryCurrent"),
                ({"CPUWeight": 10_001}, InvalidProperty, "CPUWeight"),
                ({"Delegate": True, "CPUWeight": 20_000}, InvalidProperty, "CPUWeight"),
                ({"Delegate": True, "TasksMax": 0}, InvalidProperty, "TasksMax"),
                ({"KillSignal": 1000, "TasksMax": 5}, InvalidProperty, "KillSignal"),
                ({"DeviceAllow": [["kvm", "rw"]], "TasksMax": 5}, InvalidProperty, "DeviceAllow"),
                (
                    {"TasksMax": 5, "DelegateControllers": ["nonsense"]},
                    InvalidProperty,
                    "DelegateControllers",
                ),
                ({"After": ["not a unit"]}, InvalidProperty, "After"),
                ({"OOMPolicy": "nonsense", "TasksMax": 5}, InvalidProperty, "OOMPolicy"),
                ({"CollectMode": "nonsense", "TasksMax": 5}, InvalidProperty, "CollectMode"),
                ({"User": "no/such", "TasksMax": 5}, InvalidProperty, "User"),
            ]
            for properties, error, name in cases:
                await refused(properties, error, name, pidfd)
            for bad in ("machine.scope", "no such slice", "../x.slice", ""):
                with pytest.raises(InvalidProperty) as caught:
                    await manager.start_scope(
                        ScopeSpec("t-refused.scope", (pidfd,), bad, "x"), deadline=soon()
                    )
                assert caught.value.property == "Slice"
            for bad in ("t-no-suffix", "t-x.nonsense", "", "t-" + "x" * 300 + ".scope", "t-x/y.scope"):
                with pytest.raises(ManagerRefused):
                    await manager.start_scope(spec(bad, pidfd), deadline=soon())
            assert control_group(pidfd) == before
        # The process that the kernel has forgotten.
        with process() as pidfd:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            reap(pidfd)
            await refused({}, InvalidProperty, "PIDFDs", pidfd)
            with pytest.raises(NoSuchUnit):
                await manager.unit_of_process(pidfd, deadline=soon())
        # No process at all, and PID 1 itself.
        with pytest.raises(ManagerError):
            await manager.start_scope(spec("t-refused.scope"), deadline=soon())
        init = os.pidfd_open(1)
        null = os.open("/dev/null", os.O_RDONLY)
        await refused({"TasksMax": 5, "Delegate": True}, InvalidProperty, "PIDFDs", init)
        # What is no pidfd.
        await refused({}, InvalidProperty, "PIDFDs", null)
        os.close(init)
        os.close(null)
        with pytest.raises(ManagerRefused, match="descriptors"):
            await manager.start_scope(spec("t-refused.scope", 1_000_000), deadline=soon())
        assert await manager.status("t-refused.scope", deadline=soon()) is None
        assert "t-refused.scope" not in os.listdir("/run/systemd/transient")


async def test_a_name_that_is_taken(kind: LinkKind) -> None:
    async with connected(kind) as manager:
        with process() as one, process() as other:
            await manager.start_scope(spec("t-taken.scope", one), deadline=soon())
            with pytest.raises(UnitExists) as caught:
                await manager.start_scope(spec("t-taken.scope", other), deadline=soon())
            assert caught.value.unit == "t-taken.scope"
            assert not control_group(other).endswith("t-taken.scope")
            await manager.stop("t-taken.scope", deadline=soon())
        # A unit that another one pulls in, and has a file.
        with process() as pidfd, pytest.raises(ManagerError):
            await manager.start_scope(
                ScopeSpec("dbus.service", (pidfd,), None, "not a scope at all"), deadline=soon()
            )
        status = await manager.status("dbus.service", deadline=soon())
        assert status is not None
        assert (status.unit, status.transient, status.result) == ("dbus.service", False, "success")
        assert status.fragment_path.endswith("/dbus.service")
        assert "multi-user.target" in status.dependants


async def test_a_name_with_a_file_on_disk(kind: LinkKind) -> None:
    async with connected(kind) as manager:
        types = await manager.property_types("service", deadline=soon())
        with unit_file("t-file.service", "[Service]\nExecStart=/bin/true\n") as path:
            await trio.run_process(["systemctl", "daemon-reload"])
            status = await manager.status("t-file.service", deadline=soon())
            assert status is not None
            assert (status.load_state, status.active_state) == ("loaded", "inactive")
            assert (status.fragment_path, status.transient) == (path, False)
            service = types.convert({"ExecStart": [["/bin/true", ["/bin/true"], False]]})
            helper = AuxiliaryUnit("t-file.service", service)
            with process() as pidfd:
                before = control_group(pidfd)
                with pytest.raises(UnitExists):
                    await manager.start_scope(
                        ScopeSpec("t-helped.scope", (pidfd,), None, "x", (), (helper,)), deadline=soon()
                    )
                assert control_group(pidfd) == before
        await trio.run_process(["systemctl", "daemon-reload"])
        # The manager does not read files of scopes: such a name is free.
        with unit_file("t-file.scope", "[Scope]\n"):
            await trio.run_process(["systemctl", "daemon-reload"])
            assert await manager.status("t-file.scope", deadline=soon()) is None
        await trio.run_process(["systemctl", "daemon-reload"])


@contextmanager
def unit_file(name: str, text: str) -> Generator[str]:
    path = Path("/run/systemd/system") / name
    path.write_text(text)
    yield str(path)
    path.unlink()


async def test_stop_at_once_with_user_and_delegation(kind: LinkKind) -> None:
    async with connected(kind) as manager:
        types = await manager.property_types("scope", deadline=soon())
        properties = types.convert({"User": "alice", "Delegate": True})
        for _ in range(20):
            with process() as pidfd:
                job = await manager.start_scope(
                    spec("t-owned.scope", pidfd, properties=properties), deadline=soon()
                )
                assert job.result == "done"
                assert os.stat("/sys/fs/cgroup/machine.slice/t-owned.scope").st_uid == 1000
                assert (await manager.stop("t-owned.scope", deadline=soon())).result == "done"


async def test_kill(kind: LinkKind) -> None:
    hints = Hints()
    async with connected(kind, hints) as manager:
        with process() as pidfd:
            await manager.start_scope(spec("t-kill.scope", pidfd), deadline=soon())
            with pytest.raises((NoSuchUnit, ManagerRefused)):
                await manager.kill("t-kill.scope", "main", signal.SIGTERM, deadline=soon())
            with pytest.raises(ManagerRefused):
                await manager.kill("t-kill.scope", "all", 1000, deadline=soon())
            await manager.kill("t-kill.scope", "all", signal.SIGUSR1, deadline=soon())
            await trio.lowlevel.wait_readable(pidfd)
            assert reap(pidfd) == signal.SIGUSR1
        with pytest.raises(NoSuchUnit):
            await manager.kill("t-nothing.scope", "all", signal.SIGTERM, deadline=soon())
        await gone(manager, hints, "t-kill.scope")


def bytes_of(value: Json) -> list[int]:
    assert isinstance(value, list)
    return [each for each in value if isinstance(each, int)]


async def state(manager: DBusManager, unit: str) -> str:
    status = await manager.status(unit, deadline=soon())
    assert status is not None
    return status.active_state


async def invocation(manager: DBusManager, unit: str) -> str:
    status = await manager.status(unit, deadline=soon())
    assert status is not None
    return status.invocation_id


async def test_properties_are_read_back(kind: LinkKind) -> None:
    hints = Hints()
    async with connected(kind, hints) as manager:
        types = await manager.property_types("scope", deadline=soon())
        assert await manager.property_types("scope", deadline=soon()) is types
        with process() as pidfd:
            wanted: dict[str, Json] = {
                "TasksMax": "infinity",
                "CPUWeight": 50,
                "MemoryHigh": 1 << 30,
                "IPAddressDeny": [[2, [10, 0, 0, 0], 8]],
                "DeviceAllow": [["/dev/null", "rw"]],
            }
            properties = types.convert(wanted)
            await manager.start_scope(spec("t-read.scope", pidfd, properties=properties), deadline=soon())
            names = [*wanted, "Result", "InvocationID", "Requires"]
            read = await manager.properties("t-read.scope", names, deadline=soon())
            assert read.pop("Result") == "success"
            assert bytes(bytes_of(read.pop("InvocationID"))).hex() == await invocation(
                manager, "t-read.scope"
            )
            requires = read.pop("Requires")
            assert isinstance(requires, list)
            assert "machine.slice" in requires
            assert read == {**wanted, "TasksMax": None}
            assert await manager.properties("t-read.scope", [], deadline=soon()) == {}
            with pytest.raises(NoSuchProperty) as unknown:
                await manager.properties("t-read.scope", ["TasksMax", "Nonsense"], deadline=soon())
            assert unknown.value.property == "Nonsense"
        await gone(manager, hints, "t-read.scope")


ZEROES: list[Json] = [0] * 16

# What can be set on a scope (needs.md, section 6), each with a value that is valid on any machine.
SETTABLE: dict[str, Json] = {
    "TimeoutStopUSec": 5_000_000, "RuntimeMaxUSec": "infinity", "RuntimeRandomizedExtraUSec": 0,
    "OOMPolicy": "kill", "User": "alice", "Group": "alice",
    "KillMode": "mixed", "KillSignal": 15, "RestartKillSignal": 15, "SendSIGHUP": True, "SendSIGKILL": True,
    "FinalKillSignal": 9, "WatchdogSignal": 6,
    "CPUWeight": 100, "StartupCPUWeight": 100, "CPUQuotaPerSecUSec": 500_000, "CPUQuotaPeriodUSec": 100_000,
    "AllowedCPUs": [1], "StartupAllowedCPUs": [1], "AllowedMemoryNodes": [1], "StartupAllowedMemoryNodes": [1],
    "CPUSetPartition": "member",
    "IOWeight": 100, "StartupIOWeight": 100, "IODeviceWeight": [["/dev/null", 100]],
    "IOReadBandwidthMax": [["/dev/null", 1_000_000]], "IOWriteBandwidthMax": [["/dev/null", "infinity"]],
    "IOReadIOPSMax": [["/dev/null", 1000]], "IOWriteIOPSMax": [["/dev/null", 1000]],
    "IODeviceLatencyTargetUSec": [["/dev/null", 1000]],
    "MemoryMin": 4096, "MemoryLow": 4096, "StartupMemoryLow": 4096, "MemoryHigh": 1 << 30,
    "StartupMemoryHigh": 1 << 30, "MemoryMax": 1 << 30, "StartupMemoryMax": "infinity", "MemorySwapMax": 0,
    "StartupMemorySwapMax": 0, "MemoryZSwapMax": 0, "StartupMemoryZSwapMax": 0, "MemoryZSwapWriteback": True,
    "MemoryMinScale": 0, "MemoryLowScale": 0, "MemoryHighScale": 4_294_967_295, "MemoryMaxScale": 2_147_483_647,
    "MemorySwapMaxScale": 2_147_483_647, "MemoryZSwapMaxScale": 2_147_483_647,
    "TasksMax": 100, "TasksMaxScale": 2_147_483_647,
    "DevicePolicy": "closed", "DeviceAllow": [["/dev/null", "rw"], ["char-pts", "rwm"]],
    "IPAccounting": True, "IPAddressAllow": [[2, [127, 0, 0, 1], 32], [10, ZEROES, 0]],
    "IPAddressDeny": [[2, [0, 0, 0, 0], 0]], "IPIngressFilterPath": [],
    "IPEgressFilterPath": [], "BPFProgram": [["egress", "/sys/fs/bpf/x"]],
    "SocketBindAllow": [[2, 6, 1, 1024]], "SocketBindDeny": [[0, 0, 0, 0]],
    "RestrictNetworkInterfaces": [True, ["lo"]], "BindNetworkInterface": "lo",
    "NFTSet": [[3, 1, "filter", "machines"]],
    "ManagedOOMSwap": "kill", "ManagedOOMMemoryPressure": "kill", "ManagedOOMMemoryPressureLimit": 2_147_483_647,
    "ManagedOOMMemoryPressureDurationUSec": 2_000_000, "ManagedOOMPreference": "avoid", "OOMRules": ["rule"],
    "MemoryPressureWatch": "on", "CPUPressureWatch": "on", "IOPressureWatch": "on",
    "CoredumpReceive": False, "Delegate": True, "DelegateControllers": ["cpu", "pids"], "DelegateSubgroup": "x",
    "DisableControllers": ["io"], "MemoryAccounting": True, "IOAccounting": True, "TasksAccounting": True,
    "Documentation": ["man:x(1)"], "CollectMode": "inactive-or-failed",
    "Requires": ["basic.target"], "Requisite": ["basic.target"], "Wants": ["basic.target"],
    "BindsTo": ["basic.target"], "PartOf": ["basic.target"], "Upholds": ["basic.target"],
    "Before": ["t-x.service"], "After": ["basic.target"], "Conflicts": ["t-x.service"],
    "PropagatesStopTo": ["t-x.service"], "StopPropagatedFrom": ["basic.target"],
    "PropagatesReloadTo": ["t-x.service"], "ReloadPropagatedFrom": ["t-x.service"],
    "JoinsNamespaceOf": ["t-x.service"], "OnSuccess": ["t-x.service"], "OnFailure": ["t-x.service"],
    "OnSuccessJobMode": "fail", "OnFailureJobMode": "fail", "DefaultDependencies": False,
    "IgnoreOnIsolate": True, "JobRunningTimeoutUSec": 5_000_000, "SurviveFinalKillSignal": True,
    "StopWhenUnneeded": False, "RefuseManualStart": False, "RefuseManualStop": False,
    "RequiresMountsFor": ["/tmp"], "WantsMountsFor": ["/tmp"],
    "Conditions": [["ConditionPathExists", False, False, "/"]],
    "Asserts": [["AssertPathExists", False, False, "/"]], "StartLimitIntervalUSec": 1, "StartLimitBurst": 100,
    "FailureAction": "none", "SuccessAction": "none", "FailureActionExitStatus": 3, "SuccessActionExitStatus": 3,
    "SourcePath": "/tmp", "AddRef": True,
}  # fmt: skip

SINCE: dict[str, int] = {
    "CPUSetPartition": 262, "BindNetworkInterface": 260, "OOMRules": 262, "CPUPressureWatch": 262,
    "IOPressureWatch": 262,
}  # fmt: skip
"""The version that a property came with, for those that 257 does not have."""


@pytest.mark.parametrize("name", SETTABLE)
async def test_each_settable_property(kind: LinkKind, name: str) -> None:
    hints = Hints()
    async with connected(kind, hints) as manager:
        types = await manager.property_types("scope", deadline=soon())
        if manager.version < SINCE.get(name, 0):
            with pytest.raises(NoSuchProperty):
                types.convert({name: SETTABLE[name]})
            return
        unit = f"t-p{name}.scope"
        with process() as pidfd:
            properties = types.convert({name: SETTABLE[name]})
            if name == "AddRef" and kind == "private":
                # There are no names of clients there that could be kept track of.
                with pytest.raises(InvalidProperty):
                    await manager.start_scope(spec(unit, pidfd, properties=properties), deadline=soon())
            else:
                job = await manager.start_scope(spec(unit, pidfd, properties=properties), deadline=soon())
                assert job.result == "done"
                assert control_group(pidfd) == f"/machine.slice/{unit}"
                await manager.stop(unit, deadline=soon())
        if name == "AddRef":
            return  # a reference of this connection: gone with it
        await gone(manager, hints, unit)


async def test_a_reload_loses_nothing(kind: LinkKind) -> None:
    hints = Hints()
    results: list[str] = []

    async def one(manager: DBusManager, number: int) -> None:
        with process() as pidfd:
            unit = f"t-reload{number}.scope"
            results.append((await manager.start_scope(spec(unit, pidfd), deadline=soon())).result)
            results.append((await manager.stop(unit, deadline=soon())).result)

    async with connected(kind, hints) as manager:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.run_process, ["systemctl", "daemon-reload"])
            for number in range(40):
                nursery.start_soon(one, manager, number)
        await hints.until("reloaded")
    assert results == ["done"] * 80


async def test_an_execution_anew_loses_nothing(kind: LinkKind) -> None:
    hints = Hints()
    verdicts: dict[int, str] = {}

    async def one(manager: DBusManager, number: int) -> None:
        unit = f"t-reexec{number}.scope"
        with process() as pidfd:
            try:
                verdicts[number] = (await manager.start_scope(spec(unit, pidfd), deadline=soon())).result
            except ManagerUnavailable:
                # The one case in which it is not known: then it must not have happened.
                assert not control_group(pidfd).endswith(unit)
                verdicts[number] = (await manager.start_scope(spec(unit, pidfd), deadline=soon())).result
            assert control_group(pidfd) == f"/machine.slice/{unit}"
            assert (await manager.unit_of_process(pidfd, deadline=soon()))[0] == unit
            assert await state(manager, unit) == "active"
            assert (await manager.stop(unit, deadline=soon())).result == "done"

    async with connected(kind, hints) as manager:
        for turn in range(3):
            hints.seen.clear()
            verdicts.clear()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.run_process, ["systemctl", "daemon-reexec"])
                for number in range(40):
                    nursery.start_soon(one, manager, 100 * turn + number)
            assert set(verdicts.values()) == {"done"}
            assert len(verdicts) == 40
            await hints.until("disconnected")
            await hints.until("connected")


async def test_a_restart_of_the_broker(kind: LinkKind) -> None:
    hints = Hints()
    async with connected(kind, hints) as manager:
        hints.seen.clear()
        with process() as pidfd:
            await manager.start_scope(spec("t-broker.scope", pidfd), deadline=soon())
            await trio.run_process(["systemctl", "restart", "dbus.service"])
            if kind == "bus":
                await hints.until("disconnected")
            assert (await manager.unit_of_process(pidfd, deadline=soon()))[0] == "t-broker.scope"
            assert (await manager.stop("t-broker.scope", deadline=soon())).result == "done"
        if kind == "private":
            assert "disconnected" not in {hint.kind for hint in hints.seen}


async def test_a_deadline_that_has_passed(kind: LinkKind) -> None:
    async with connected(kind) as manager:
        with process() as pidfd, pytest.raises(ManagerTimeout):
            await manager.start_scope(spec("t-late.scope", pidfd), deadline=-math.inf)
        with pytest.raises(ManagerTimeout):
            await manager.status("dbus.service", deadline=trio.current_time())
        assert await manager.status("t-late.scope", deadline=soon()) is None


async def test_auto_prefers_the_private_socket_and_falls_back(kind: LinkKind) -> None:
    endpoints = Endpoints("/run/systemd/private" if kind == "private" else "/nonexistent", SYSTEM.bus)
    manager = DBusManager(endpoints)
    async with trio.open_nursery() as nursery:
        await nursery.start(manager.run)
        assert manager.link_kind == kind
        assert await manager.status("init.scope", deadline=soon()) is not None
        nursery.cancel_scope.cancel()


async def test_signals_of_strangers_do_not_count(kind: LinkKind) -> None:
    # Anybody may send a signal to anybody on the system bus, and say that it is about a unit.
    hints = Hints()
    async with connected(kind, hints) as manager:
        known = set(await names_on_the_bus())
        hints.seen.clear()
        for name in known:
            await trio.run_process(
                [
                    "dbus-send", "--system", "--type=signal", f"--dest={name}", "/org/freedesktop/systemd1",
                    "org.freedesktop.systemd1.Manager.UnitRemoved",
                    "string:t-x.scope", "objpath:/org/freedesktop/systemd1/unit/t_2dx_2escope",
                ],
            )  # fmt: skip
        # The reply comes after the signals, for both went through the same broker.
        await manager.status("init.scope", deadline=soon())
        assert [hint for hint in hints.seen if hint.unit == "t-x.scope"] == []


async def names_on_the_bus() -> list[str]:
    listed = await trio.run_process(
        ["busctl", "--system", "--json=short", "--unique", "list"], capture_stdout=True
    )
    return [each["name"] for each in json.loads(listed.stdout)]
