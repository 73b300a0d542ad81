"""What users without rights may have done to scopes."""

from typing import Any

import pytest

from moorage.authz.allowed_properties import SCOPE, Choice, Range, check, is_below_slice_of
from moorage.machines.model import TASKS_MAX, Defaults
from moorage.pid1.errors import InvalidProperty

ALICE = 1000
INFINITY: tuple[Any, ...] = ("infinity", 2**64 - 1)
NEVER: tuple[Any, ...] = (
    None, "", "1", "max", "50%", "1G", 1.0, 0.5, -1, 2**64, 10**30, [], [1], {}, {"x": 1}, "stop\n", "yes",
)  # fmt: skip
"""What no property may be, whatever the manager might make of it."""


def refusal(name: str, value: Any) -> InvalidProperty | None:
    try:
        check({name: value}, None, ALICE)
    except InvalidProperty as error:
        return error
    return None


def allows(name: str, value: Any) -> bool:
    refused = refusal(name, value)
    assert refused is None or (refused.property == name and "the rights of root" in refused.reason)
    return refused is None


@pytest.mark.parametrize(
    "name",
    [
        # the rights of others, or root's
        "User", "Group", "PAMName", "DynamicUser", "ExecStartPre", "ExecStartPreEx", "ExecStopPost",
        "AmbientCapabilities", "LoadCredential", "SetCredential", "OpenFile", "ExtraFileDescriptors", "BindPaths",
        "RootDirectory", "Environment", "ExecReload", "SyslogIdentifier", "WorkingDirectory",
        # what the kernel lets root do only
        "DeviceAllow", "DevicePolicy", "BPFProgram", "IPIngressFilterPath", "IPEgressFilterPath", "IPAddressAllow",
        "NFTSet", "SocketBindAllow", "RestrictNetworkInterfaces", "AllowedCPUs", "AllowedMemoryNodes",
        # at the expense of others
        "Slice", "MemoryMin", "MemoryLow", "DefaultMemoryLow", "StartupCPUWeight", "ManagedOOMPreference",
        "ManagedOOMSwap", "DisableControllers", "IODeviceWeight", "IOReadBandwidthMax", "MemoryZSwapMax",
        "CPUQuotaPeriodUSec",
        # processes that cannot be got rid of, units of others
        "KillMode", "SendSIGKILL", "SurviveFinalKillSignal", "BindsTo", "PropagatesStopTo", "Conflicts", "OnFailure",
        "Requires", "JoinsNamespaceOf", "FailureAction", "RefuseManualStop", "IgnoreOnIsolate", "Conditions",
        "DelegateSubgroup", "DelegateControllers", "FinalKillSignal", "WatchdogSignal", "RestartKillSignal",
        # relative values have no ceiling
        "TasksMaxScale", "MemoryMaxScale", "RuntimeRandomizedExtraUSec",
        # the names of unit files, which the manager does not take either
        "TimeoutStopSec", "CPUQuota", "RuntimeMaxSec", "Documentation", "Description",
        "NoSuchThing", "", "tasksmax", "TasksMax ", "TasksMax\n",
    ],
)  # fmt: skip
def test_only_root_may_set(name: str) -> None:
    for value in (1, 100, True, "continue", "infinity"):
        assert not allows(name, value)


def test_the_first_one_is_named() -> None:
    with pytest.raises(InvalidProperty) as failure:
        check({"MemoryMax": 1, "KillMode": "none", "User": "root"}, "system.slice", ALICE)
    assert failure.value.property == "KillMode"


@pytest.mark.parametrize(("name", "values"), [(n, v) for n, v in SCOPE.items() if isinstance(v, Range)])
def test_ranges(name: str, values: Range) -> None:
    for value in (values.least, values.most):
        assert allows(name, value)
    for value in (
        values.least - 1,
        values.most + 1,
        float(values.least),
        True,
        False,
        str(values.least),
        *NEVER,
    ):
        assert allows(name, value) is (value in INFINITY and values.unlimited)
    for value in INFINITY:
        assert allows(name, value) is values.unlimited


@pytest.mark.parametrize(("name", "values"), [(n, v) for n, v in SCOPE.items() if isinstance(v, Choice)])
def test_choices(name: str, values: Choice) -> None:
    for value in (False, True, "continue", "stop", "kill"):
        assert allows(name, value) is (value in values.values)
    for value in (0, 1, "true", "no", "Stop", *INFINITY, *NEVER):
        assert not allows(name, value)


def test_nothing_is_more_than_the_default() -> None:
    for name, default in (("CPUWeight", 100), ("IOWeight", 100), ("TasksMax", TASKS_MAX)):
        assert allows(name, default)
        assert not allows(name, default + 1)
    # A stop ends, and does not keep a shutdown longer than any other unit does.
    for value in (0, 90_000_001, *INFINITY):
        assert not allows("TimeoutStopUSec", value)
    # Nobody hides.
    for name in SCOPE:
        assert not (name.endswith("Accounting") and allows(name, False))


def test_a_person_is_told_what_may_be() -> None:
    for name, reason in (
        ("TasksMax", "1 to 16384"), ("CPUWeight", "0 to 100, or infinity"), ("OOMPolicy", "continue, stop, kill"),
        ("IPAccounting", "true"),
    ):  # fmt: skip
        with pytest.raises(InvalidProperty, match=f"it may be {reason}$"):
            check({name: None}, None, ALICE)


def test_slices() -> None:
    for slice_ in (None, "machine.slice", "user-1000.slice"):
        check({}, slice_, ALICE)
    for slice_ in (
        "system.slice",
        "user.slice",
        "user-0.slice",
        "user-1001.slice",
        "user-1000-x.slice",
        "machine-x.slice",
        "-.slice",
        "",
    ):
        with pytest.raises(InvalidProperty) as failure:
            check({}, slice_, ALICE)
        assert failure.value.property == "Slice"


def test_other_defaults() -> None:
    defaults = Defaults("vms.slice", 100)
    for slice_ in (None, "vms.slice", "user-1000.slice"):
        check({"TasksMax": 100}, slice_, ALICE, defaults=defaults)
    for properties, slice_ in (({}, "machine.slice"), ({}, "vms-x.slice"), ({"TasksMax": 101}, None)):
        with pytest.raises(InvalidProperty):
            check(properties, slice_, ALICE, defaults=defaults)
    with pytest.raises(InvalidProperty, match=r"vms\.slice, user-1000\.slice"):
        check({}, "machine.slice", ALICE, defaults=defaults)
    check({"TasksMax": 20_000}, None, ALICE, defaults=Defaults(tasks_max=20_000))


def test_a_slice_of_its_own() -> None:
    hers = "user-1000.slice"
    check({}, hers, ALICE, slice_properties={})
    check({}, hers, ALICE, slice_properties={"MemoryMax": 1, "TasksMax": 5})
    for properties, slice_, blamed in (
        ({"CPUWeight": 101}, hers, "CPUWeight"),
        ({"MemoryMin": 1}, hers, "MemoryMin"),
        ({}, None, "Slice"),
        ({}, "machine.slice", "Slice"),
    ):
        with pytest.raises(InvalidProperty) as failure:
            check({}, slice_, ALICE, slice_properties=properties)
        assert failure.value.property == blamed


@pytest.mark.parametrize(
    ("path", "below"),
    [
        ("/user.slice/user-1000.slice/session-1.scope", True),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", True),
        ("/user.slice/user-1000.slice", False),  # no process is in a slice
        ("/user.slice/user-10000.slice/session-1.scope", False),
        ("/user.slice/user-100.slice/session-1.scope", False),
        ("/user.slice/user-1000.slicex/session-1.scope", False),
        ("/system.slice/user.slice/user-1000.slice/x.service", False),
        ("/machine.slice/machine-x.scope/user.slice/user-1000.slice/x", False),
        ("/system.slice/cron.service", False),
        ("/", False),
    ],
)
def test_below_the_slice_of_a_user(path: str, below: bool) -> None:
    assert is_below_slice_of(path, ALICE) is below
