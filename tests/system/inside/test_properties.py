"""Properties of a scope: each that can be set is set, the others are refused by name, and then nothing was made."""

import os
from pathlib import Path
from typing import Any

import pytest
from moored import OURS, USER, Processes, connect, control_group, kill, listed, register, run, scopes, show

from moorage.errors import InvalidProperty, JobFailed, NoSuchProperty
from moorage.wire.client import Client
from moorage.wire.errors import InvalidParameter, VarlinkError

SYSTEMD = int(run("systemctl", "--version").split()[1])
CONTROLLERS = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()

SETTABLE: list[tuple[str, Any, str]] = [
    # of a scope
    ("TimeoutStopUSec", 5_000_000, "5s"),
    ("TimeoutStopUSec", "infinity", "infinity"),
    ("RuntimeMaxUSec", 3_600_000_000, "1h"),
    ("RuntimeRandomizedExtraUSec", 1_000_000, "1s"),
    ("OOMPolicy", "kill", "kill"),
    # of killing
    ("KillMode", "mixed", "mixed"),
    ("KillSignal", 2, "2"),
    ("RestartKillSignal", 3, "3"),
    ("SendSIGHUP", True, "yes"),
    ("SendSIGKILL", False, "no"),
    ("FinalKillSignal", 6, "6"),
    ("WatchdogSignal", 7, "7"),
    # of control groups
    ("CPUWeight", 200, "200"),
    ("StartupCPUWeight", 300, "300"),
    ("CPUQuotaPerSecUSec", 500_000, "500ms"),
    ("CPUQuotaPeriodUSec", 50_000, "50ms"),
    ("AllowedCPUs", [1], "0"),
    ("AllowedMemoryNodes", [1], "0"),
    ("IOWeight", 200, "200"),
    ("StartupIOWeight", 300, "300"),
    ("IODeviceWeight", [["/dev/null", 50]], "/dev/null 50"),
    ("IOReadBandwidthMax", [["/", 1_000_000]], "/ 1000000"),
    ("IOWriteBandwidthMax", [["/", 1_000_000]], "/ 1000000"),
    ("IOReadIOPSMax", [["/", 100]], "/ 100"),
    ("IOWriteIOPSMax", [["/", 100]], "/ 100"),
    ("IODeviceLatencyTargetUSec", [["/", 1000]], "/ 1ms"),
    ("MemoryMin", 4096, "4096"),
    ("MemoryLow", 8192, "8192"),
    ("MemoryHigh", 2**30, str(2**30)),
    ("MemoryMax", 2**31, str(2**31)),
    ("MemorySwapMax", 0, "0"),
    ("MemoryZSwapMax", 4096, "4096"),
    ("MemoryZSwapWriteback", False, "no"),
    ("StartupMemoryLow", 4096, "4096"),
    ("StartupMemoryHigh", 2**30, str(2**30)),
    ("StartupMemoryMax", 2**30, str(2**30)),
    ("StartupMemorySwapMax", 2**30, str(2**30)),
    ("StartupMemoryZSwapMax", 2**30, str(2**30)),
    ("TasksMax", 99, "99"),
    ("TasksMax", "infinity", "infinity"),
    ("DevicePolicy", "closed", "closed"),
    ("DeviceAllow", [["/dev/kvm", "rw"]], "/dev/kvm rw"),
    ("IPAccounting", True, "yes"),
    ("IPAddressAllow", [[2, [192, 0, 2, 1], 32]], "192.0.2.1/32"),
    ("IPAddressDeny", [[10, [0] * 16, 0]], "::/0"),
    ("BPFProgram", [["device", "/sys/fs/bpf/none"]], "device:/sys/fs/bpf/none"),
    ("SocketBindAllow", [[2, 6, 1, 8080]], "ipv4:tcp8080"),
    ("SocketBindDeny", [[0, 0, 0, 0]], "any"),
    ("RestrictNetworkInterfaces", [False, ["eth0"]], "~eth0"),
    ("NFTSet", [[3, 2, "table", "set"]], "[unprintable]"),
    ("ManagedOOMSwap", "kill", "kill"),
    ("ManagedOOMMemoryPressure", "kill", "kill"),
    ("ManagedOOMMemoryPressureLimit", 2**31, str(2**31)),
    ("ManagedOOMMemoryPressureDurationUSec", 5_000_000, "5s"),
    ("ManagedOOMPreference", "avoid", "avoid"),
    ("MemoryPressureWatch", "on", "yes"),
    ("CoredumpReceive", True, "yes"),
    ("Delegate", True, "yes"),
    ("DelegateControllers", ["pids"], "pids"),
    ("DelegateSubgroup", "payload", "payload"),
    ("DisableControllers", ["io"], "io"),
    # of every unit
    ("Documentation", ["man:init(1)"], '"man:init(1)"'),
    ("Requires", ["machine.slice"], "machine.slice"),
    ("Requisite", ["basic.target"], "basic.target"),
    ("Wants", ["time-set.target"], "time-set.target"),
    ("BindsTo", ["basic.target"], "basic.target"),
    ("PartOf", ["basic.target"], "basic.target"),
    ("Upholds", ["time-set.target"], "time-set.target"),
    ("Before", ["time-set.target"], "time-set.target"),
    ("After", ["time-set.target"], "time-set.target"),
    ("Conflicts", ["rescue.target"], "rescue.target"),
    ("PropagatesStopTo", ["time-set.target"], "time-set.target"),
    ("StopPropagatedFrom", ["basic.target"], "basic.target"),
    ("PropagatesReloadTo", ["time-set.target"], "time-set.target"),
    ("JoinsNamespaceOf", ["basic.target"], "basic.target"),
    ("OnSuccess", ["time-set.target"], "time-set.target"),
    ("OnFailure", ["time-set.target"], "time-set.target"),
    ("DefaultDependencies", False, "no"),
    ("IgnoreOnIsolate", False, "no"),
    ("JobRunningTimeoutUSec", 7_000_000, "7s"),
    ("SurviveFinalKillSignal", True, "yes"),
]
"""Name, value, and what `systemctl show` says then (of several units, one)."""

NEW: list[tuple[str, Any, str]] = [
    ("CPUSetPartition", "isolated", "isolated"),
    ("BindNetworkInterface", "vrf0", "vrf0"),
    ("OOMRules", ["rule"], "rule"),
    ("CPUPressureWatch", "on", "yes"),
    ("IOPressureWatch", "on", "yes"),
]
"""The same, of those that systemd 257 does not know."""

UNKNOWN = [
    "NoSuch",
    "cpuweight",
    "CPUWeight ",
    "",
    "CPUWeight=5",
    "MemoryMax\n",
    "Exec",
    "ExecStart",
    "DynamicUser",
    "Restart",
    # can only be read
    "Id",
    "ActiveState",
    "Result",
    "ControlGroup",
    "InvocationID",
    "MemoryCurrent",
    "FreezerState",
    "EffectiveMemoryMax",
    "Transient",
    "Perpetual",
    # systemd itself forgets that it can be set (`bus_unit_set_transient_property()` of 257 to 262)
    "JobTimeoutUSec",
]

FORBIDDEN: list[tuple[str, Any]] = [
    ("PIDs", [1]),
    ("PIDFDs", [0]),
    ("Slice", "system.slice"),
    ("Description", "Another"),
    ("Controller", ":1.1"),
    ("AddRef", True),
    ("CollectMode", "inactive-or-failed"),
    ("RefuseManualStart", True),
    ("RefuseManualStop", True),
]

WRONG: list[tuple[str, Any]] = [
    # types
    ("CPUWeight", "200"),
    ("CPUWeight", 1.5),
    ("CPUWeight", True),
    ("CPUWeight", None),
    ("CPUWeight", [200]),
    ("CPUWeight", {}),
    ("SendSIGHUP", 1),
    ("SendSIGHUP", "yes"),
    ("KillMode", 3),
    ("KillMode", "mixed\0"),
    ("KillSignal", "SIGTERM"),
    ("DeviceAllow", "/dev/kvm rw"),
    ("DeviceAllow", [["/dev/kvm"]]),
    ("DeviceAllow", [["/dev/kvm", "rw", "m"]]),
    ("AllowedCPUs", "0-1"),
    ("Wants", "basic.target"),
    ("RestrictNetworkInterfaces", [["eth0"], False]),
    # what the service manager does not read back (test_unit_files.py)
    ("DelegateSubgroup", "payload\n[Scope]"),
    ("Documentation", ["man:%n"]),
    ("TimeoutStopUSec", 2**64 - 2),
    ("MemoryPressureThresholdUSec", 100_000),
    # ranges of the types
    ("CPUWeight", -1),
    ("CPUWeight", 2**64),
    ("MemoryMax", -1),
    ("KillSignal", 2**31),
    ("TasksMaxScale", 2**32),
    ("AllowedCPUs", [256]),
    ("SocketBindAllow", [[2, 6, 1, 2**16]]),
]
"""What is wrong by the type of the property."""

JUDGED: list[tuple[str, Any]] = [
    ("CPUWeight", 10_001),
    ("CPUQuotaPerSecUSec", 0),
    ("IOWeight", 10_001),
    ("TasksMax", 0),
    ("KillMode", "sometimes"),
    ("KillSignal", 1000),
    ("OOMPolicy", "maybe"),
    ("DevicePolicy", "open"),
    ("DeviceAllow", [["/dev/kvm", "x"]]),
    ("DeviceAllow", [["kvm", "rw"]]),
    ("IPAddressAllow", [[3, [192, 0, 2, 1], 32]]),
    ("IPAddressAllow", [[2, [192, 0, 2], 32]]),
    ("IPAddressAllow", [[2, [192, 0, 2, 1], 33]]),
    ("IPIngressFilterPath", ["relative"]),
    ("SocketBindAllow", [[3, 6, 1, 8080]]),
    ("NFTSet", [[0, 2, "table", "set"]]),
    ("ManagedOOMSwap", "sometimes"),
    ("DelegateControllers", ["no-such-controller"]),
    ("DelegateSubgroup", "../above"),
    ("Documentation", ["no address"]),
    ("Wants", ["no name of a unit"]),
    ("User", "alice\n"),
]
"""What only the service manager knows to be wrong."""


async def refusal(client: Client, spawn: Processes, name: str, value: Any, **fields: Any) -> VarlinkError:
    """Return the error that a registration with one property is answered with; nothing was made."""
    leader = spawn()
    before = control_group(leader)
    with pytest.raises(VarlinkError) as caught:
        await register(client, "refused", leader, properties={name: value}, **fields)
    assert control_group(leader) == before
    assert await listed(client) == {}
    kill(leader)
    return caught.value


async def test_every_property_of_a_scope_can_be_set(spawn: Processes) -> None:
    table = SETTABLE + (NEW if SYSTEMD >= 258 else [])
    found: list[tuple[str, Any, str]] = []
    async with await connect() as client:
        for number, (name, value, wanted) in enumerate(table):
            reply = await register(client, f"p{number}", spawn(), properties={name: value})
            shown = show(reply["machine"]["unit"], name)[name]
            found.append((name, value, wanted if wanted in shown.split() else shown))
    assert found == table


async def test_the_properties_of_each_type_of_unit_are_described(spawn: Processes) -> None:
    async with await connect() as client:
        found = {
            kind: (await client.call(f"{OURS}DescribeProperties", {"type": kind}))["properties"]
            for kind in ("scope", "service", "socket")
        }
        with pytest.raises(InvalidParameter):
            await client.call(f"{OURS}DescribeProperties", {"type": "timer"})
    table = SETTABLE + (NEW if SYSTEMD >= 258 else [])
    assert {name for name, _, _ in table} <= found["scope"].keys()
    assert found["scope"]["CPUWeight"] == found["service"]["CPUWeight"] == "t"
    assert found["scope"]["Conditions"] == "a(sbbs)"
    assert found["service"]["ExecStart"] == "a(sasb)"
    assert found["socket"]["Backlog"] == "u"
    assert "ExecStart" not in found["scope"]
    assert "StandardInputFileDescriptor" not in found["service"]
    if SYSTEMD < 258:
        assert not found["scope"].keys() & {name for name, _, _ in NEW}


async def test_properties_that_this_systemd_does_not_know_are_refused_by_name(spawn: Processes) -> None:
    table = [name for name, _, _ in NEW] if SYSTEMD < 258 else ["CPUAccounting"]
    async with await connect() as client:
        for name in table:
            error = await refusal(client, spawn, name, True)
            assert isinstance(error, NoSuchProperty)
            assert error.property == name


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("MemoryMx", "MemoryMax"),
        ("memorymax", "MemoryMax"),
        ("CPUQuota", "CPUQuotaPerSecUSec"),
        ("TimeoutStopSec", "TimeoutStopUSec"),
        ("IPAddressDenied", "IPAddressDeny"),
    ],
)
async def test_the_nearest_names_are_told(spawn: Processes, name: str, nearest: str) -> None:
    async with await connect() as client:
        error = await refusal(client, spawn, name, 1)
        assert isinstance(error, NoSuchProperty)
        assert nearest in (error.nearest or ())


async def test_all_at_once(spawn: Processes) -> None:
    properties = {
        name: value for name, value, _ in SETTABLE if name not in {"OOMPolicy", "SurviveFinalKillSignal"}
    }
    async with await connect() as client:
        reply = await register(client, "all", spawn(), properties=properties)
        shown = show(reply["machine"]["unit"])
    differing = {
        name: shown[name]
        for name, value, wanted in SETTABLE
        if properties.get(name) == value and wanted not in shown[name].split() and wanted != shown[name]
    }
    assert differing == {}


async def test_scales_become_absolute(spawn: Processes) -> None:
    async with await connect() as client:
        for name, scale in (("TasksMax", "TasksMaxScale"), ("MemoryMax", "MemoryMaxScale")):
            reply = await register(client, scale, spawn(), properties={scale: 2**31})
            assert 0 < int(show(reply["machine"]["unit"], name)[name]) != 16384


@pytest.mark.system_instance("a user's manager starts everything as that user")
async def test_user_and_group_own_the_control_group(spawn: Processes) -> None:
    async with await connect() as client:
        properties = {"User": "alice", "Group": "bob", "Delegate": True}
        reply = await register(client, "owned", spawn(), properties=properties)
        owner = os.stat("/sys/fs/cgroup" + reply["machine"]["controlGroup"])
        assert (owner.st_uid, owner.st_gid) == (1000, 1001)
        # The manager would abort if such a scope were stopped while it is being started.
        await client.call(f"{OURS}Stop", {"name": "owned"})


@pytest.mark.parametrize(
    ("kind", "properties", "delegated", "tasks"),
    [
        ("container", {}, "yes", "16384"),
        ("vm", {}, "no", "16384"),
        ("container", {"Delegate": False, "TasksMax": 5}, "no", "5"),
        ("vm", {"Delegate": True, "TasksMax": "infinity"}, "yes", "infinity"),
    ],
)
async def test_defaults_are_those_of_the_class_and_the_caller_s_word_goes_over_them(
    spawn: Processes, kind: str, properties: dict[str, Any], delegated: str, tasks: str
) -> None:
    async with await connect() as client:
        reply = await register(client, "web", spawn(), **{"class": kind}, properties=properties)
        shown = show(reply["machine"]["unit"], "Delegate", "TasksMax", "Description", "CollectMode")
    assert shown["Delegate"] == delegated
    assert shown["TasksMax"] == tasks
    assert shown["Description"] == ("Container web" if kind == "container" else "Virtual Machine web")
    assert shown["CollectMode"] == "inactive"


async def test_the_description_is_the_caller_s(spawn: Processes) -> None:
    text = "Bücher & 100 % “Ware” %n $HOME"
    async with await connect() as client:
        reply = await register(client, "web", spawn(), description=text)
        assert show(reply["machine"]["unit"], "Description")["Description"] == text


@pytest.mark.parametrize("dry", [False, True])
async def test_unknown_properties_are_refused_by_name(spawn: Processes, dry: bool) -> None:
    # Of those that can only be read the manager tells, and that one is not asked by a rehearsal.
    unknown = [name for name in UNKNOWN if not dry or UNKNOWN.index(name) < UNKNOWN.index("Id")]
    async with await connect() as client:
        for name in unknown:
            error = await refusal(client, spawn, name, value_for(name), dryRun=dry)
            assert isinstance(error, NoSuchProperty), name
            assert error.property == name


def value_for(name: str) -> Any:
    """A value of the right type, so that the name is what is wrong."""
    return {
        "ControlGroup": "/x", "Id": "x.scope", "ActiveState": "active", "Result": "success", "FreezerState": "frozen",
        "InvocationID": [0] * 16, "MemoryCurrent": 1, "EffectiveMemoryMax": 1, "JobTimeoutUSec": 7_000_000,
    }.get(name, True)  # fmt: skip


@pytest.mark.parametrize("dry", [False, True])
async def test_what_is_not_the_caller_s_to_set_is_refused_by_name(spawn: Processes, dry: bool) -> None:
    async with await connect() as client:
        for name, value in FORBIDDEN:
            error = await refusal(client, spawn, name, value, dryRun=dry)
            assert isinstance(error, InvalidProperty), name
            assert error.property == name


@pytest.mark.parametrize("dry", [False, True])
async def test_values_of_the_wrong_type_or_out_of_range_are_refused_by_name(
    spawn: Processes, dry: bool
) -> None:
    async with await connect() as client:
        for name, value in WRONG:
            error = await refusal(client, spawn, name, value, dryRun=dry)
            assert isinstance(error, InvalidProperty), (name, value)
            assert error.property == name
            assert error.reason


async def test_what_the_manager_does_not_like_is_refused_by_name(spawn: Processes) -> None:
    found: list[tuple[str, Any]] = []
    async with await connect() as client:
        for name, value in JUDGED:
            error = await refusal(client, spawn, name, value)
            assert isinstance(error, InvalidProperty), (name, value, error)
            found.append((error.property, value))
    assert found == JUDGED


async def test_one_bad_property_among_many_good_ones_spoils_the_call(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        for bad in (
            {"KillMode": "sometimes"},
            {"NoSuch": 1},
            {"Slice": "system.slice"},
            {"TasksMax": "many"},
        ):
            properties = {"CPUWeight": 50, "TimeoutStopUSec": 1_000_000, **bad, "SendSIGHUP": True}
            with pytest.raises((InvalidProperty, NoSuchProperty)) as caught:
                await register(client, "web", leader, properties=properties)
            assert caught.value.property in bad
            assert scopes() == []
        # Neither the name nor the leader is lost by that.
        reply = await register(client, "web", leader, properties={"CPUWeight": 50})
        assert control_group(leader) == reply["machine"]["controlGroup"]


async def test_a_unit_that_cannot_be_had_fails_the_start(spawn: Processes) -> None:
    async with await connect() as client:
        for name in ("Requires", "BindsTo"):
            error = await refusal(client, spawn, name, ["no-such.service"])
            assert isinstance(error, InvalidProperty), error
            assert error.property == name
            assert "unit" in error.reason


async def test_a_start_that_fails_tells_the_results_of_job_and_unit(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        before = control_group(leader)
        properties = {"Requisite": ["printer.target"], "After": ["printer.target"]}
        with pytest.raises(JobFailed) as caught:
            await register(client, "web", leader, properties=properties)
        error = caught.value
        assert (error.unit, error.jobResult) == ("machine-web.scope", "dependency")
        assert control_group(leader) == before


async def test_a_user_that_does_not_exist_fails_the_start(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        before = control_group(leader)
        with pytest.raises(JobFailed) as caught:
            await register(client, "web", leader, properties={"User": "nobody-knows", "Delegate": True})
        assert (caught.value.jobResult, caught.value.unitResult) == ("failed", "resources")
        assert control_group(leader) == before


async def test_where_the_manager_names_no_property_all_candidates_are_named(spawn: Processes) -> None:
    async with await connect() as client:
        with pytest.raises(InvalidProperty) as caught:
            await register(client, "web", spawn(), properties={"CPUWeight": 50, "DevicePolicy": "open"})
        assert caught.value.property == "CPUWeight, DevicePolicy"


async def test_properties_without_effect_are_reported(spawn: Processes) -> None:
    wanted = {"MemoryMax": 2**30, "TasksMax": 77, "CPUWeight": 50}
    of = {"MemoryMax": "memory", "TasksMax": "pids", "CPUWeight": "cpu"}
    missing = "delegated to this user's service manager" if USER else "available to this unit"
    async with await connect() as client:
        reply = await register(client, "web", spawn(), properties={**wanted, "KillMode": "mixed"})
    assert reply["differences"] == [
        {
            "property": name,
            "wanted": str(value),
            "reason": f"the controller “{of[name]}” is not {missing}",
        }
        for name, value in wanted.items()
        if of[name] not in CONTROLLERS
    ]


async def test_nothing_differs_that_was_not_asked_for(spawn: Processes) -> None:
    async with await connect() as client:
        assert (await register(client, "web", spawn()))["differences"] == []


async def test_more_properties_than_anybody_needs_are_refused(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        for properties in (
            {f"Property{number}": True for number in range(600)},
            {"Documentation": ["man:x"] * 70_000},
            {"Documentation": ["man:" + "x" * 1_100_000]},
        ):
            with pytest.raises((InvalidProperty, NoSuchProperty)):
                await register(client, "web", leader, properties=properties)
        assert control_group(leader) == control_group(os.getpid())
