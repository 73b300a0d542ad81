"""What callers without rights may have done to units."""

from typing import Any

import pytest

from moorage.machines import rights
from moorage.machines.rights import CEILINGS, HELPER, SCOPE, check_properties, check_slice, is_below_slice_of
from moorage.pid1.manager import InvalidProperty

ALICE = 1000


@pytest.mark.parametrize(
    "name",
    [
        # the rights of others, or root's
        "User", "Group", "PAMName", "DynamicUser", "ExecStartPre", "ExecStartPreEx", "ExecStopPost",
        "AmbientCapabilities", "LoadCredential", "SetCredential", "OpenFile", "ExtraFileDescriptors", "BindPaths",
        "RootDirectory",
        # what the kernel lets root do only
        "DeviceAllow", "DevicePolicy", "BPFProgram", "IPIngressFilterPath", "IPEgressFilterPath", "IPAddressAllow",
        "NFTSet", "SocketBindAllow", "RestrictNetworkInterfaces", "AllowedCPUs", "AllowedMemoryNodes",
        # at the expense of others
        "Slice", "MemoryMin", "MemoryLow", "DefaultMemoryLow", "StartupCPUWeight", "ManagedOOMPreference",
        "ManagedOOMSwap", "DisableControllers", "IODeviceWeight", "IOReadBandwidthMax", "MemoryZSwapMax",
        # processes that cannot be got rid of, units of others
        "SendSIGKILL", "SurviveFinalKillSignal", "BindsTo", "PropagatesStopTo", "Conflicts", "OnFailure", "Requires",
        "JoinsNamespaceOf", "FailureAction", "RefuseManualStop", "IgnoreOnIsolate", "Conditions", "DelegateSubgroup",
        # relative values have no ceiling
        "TasksMaxScale", "MemoryMaxScale",
        "NoSuchThing", "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("allowed", [SCOPE, HELPER], ids=["scope", "helper"])
def test_only_root_may_set(name: str, allowed: frozenset[str]) -> None:
    with pytest.raises(InvalidProperty, match="only root") as failure:
        check_properties({"MemoryMax": 1, name: 1}, allowed)
    assert failure.value.property == name


@pytest.mark.parametrize("allowed", [SCOPE, HELPER], ids=["scope", "helper"])
def test_anybody_may_set(allowed: frozenset[str]) -> None:
    check_properties(dict.fromkeys(allowed, 1), allowed)
    check_properties({"MemoryMax": "infinity", "CPUQuotaPerSecUSec": 2**64 - 1}, allowed)


@pytest.mark.parametrize(("name", "ceiling"), CEILINGS.items())
def test_no_more_than(name: str, ceiling: int) -> None:
    for allowed in (SCOPE, HELPER):
        check_properties({name: ceiling}, allowed)
        wrong: tuple[Any, ...] = (ceiling + 1, 2**64 - 1, 2**64, "infinity", 10**30)
        for value in wrong:
            with pytest.raises(InvalidProperty, match=f"more than {ceiling}"):
                check_properties({name: value}, allowed)


def test_the_reason_says_where() -> None:
    with pytest.raises(InvalidProperty, match="helper fs: only root"):
        check_properties({"User": "root"}, HELPER, "helper fs: ")


def test_slices() -> None:
    for slice_ in (None, "machine.slice", "user-1000.slice"):
        check_slice(slice_, ALICE)
    for slice_ in (
        "system.slice",
        "user.slice",
        "user-0.slice",
        "user-1001.slice",
        "user-1000-x.slice",
        "machine-x.slice",
    ):
        with pytest.raises(InvalidProperty) as failure:
            check_slice(slice_, ALICE)
        assert failure.value.property == "Slice"


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


def test_what_is_set_without_being_asked_may_be_set() -> None:
    assert CEILINGS["TasksMax"] == rights.TASKS_MAX
    assert CEILINGS.keys() <= SCOPE & HELPER
