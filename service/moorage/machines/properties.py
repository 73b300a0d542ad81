"""The one place that knows which properties the units of a machine have.

For its scope, its slice and its helpers: what no caller may set and why, what they have by default, and what is shown
of them. Their types are the service manager's own (`moorage.pid1.properties`), `moorage.authz.allowed_properties` says
what a user without rights may set, `moorage.machines.compared.table` what is compared with what is in force.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from moorage.machines.errors import NoIdMapping
from moorage.machines.model import MachineClass
from moorage.pid1 import unit_files
from moorage.pid1.errors import InvalidProperty
from moorage.pid1.manager import Json

# The scope

_LEADER: Final = "the leader is the only process moved"
_PEER: Final = "it names a peer on the bus, which this service is not for its callers"
_REFERENCE: Final = "the reference would be ours, not the caller's"

REFUSED_ON_SCOPES: Final[Mapping[str, str]] = {
    "Slice": "the parameter 'slice' sets it",
    "Description": "the parameter 'description' sets it",
    "PIDs": _LEADER,
    "PIDFDs": _LEADER,
    "Controller": _PEER,
    "AddRef": _REFERENCE,
    "CollectMode": "a failed unit is kept until its result has been read",
    "RefuseManualStart": "the scope could not be started",
    "RefuseManualStop": "the machine could not be stopped",
}
"""Properties that no caller may set on a scope, each with the reason."""

SHOWN: Final = (
    "CPUWeight", "CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec", "AllowedCPUs", "AllowedMemoryNodes", "IOWeight",
    "IODeviceWeight", "IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax",
    "IODeviceLatencyTargetUSec", "MemoryMin", "MemoryLow", "MemoryHigh", "MemoryMax", "MemorySwapMax",
    "MemoryZSwapMax", "EffectiveMemoryHigh", "EffectiveMemoryMax", "TasksMax", "EffectiveTasksMax", "DevicePolicy",
    "DeviceAllow", "IPAddressAllow", "IPAddressDeny", "OOMPolicy", "Delegate", "DelegateControllers", "KillMode",
    "TimeoutStopUSec", "RuntimeMaxUSec",
)  # fmt: skip
"""Properties of a scope that are shown of a machine."""

_OF_BLOCK_DEVICES: Final = frozenset({
    "IOWeight", "StartupIOWeight", "IODeviceWeight", "IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax",
    "IOWriteIOPSMax", "IODeviceLatencyTargetUSec",
})  # fmt: skip
"""Properties with which the kernel counts the traffic of block devices anyway."""


def for_scope(
    class_: MachineClass, asked: Mapping[str, Json], tasks_max: int, *, stopped_by_helper: bool
) -> dict[str, Json]:
    """Return the properties of a machine's scope: the defaults of its class, and the caller's over them.

    Args:
        class_: of the machine.
        asked: for by the caller.
        tasks_max: the default limit of tasks.
        stopped_by_helper: the end of a helper stops the machine.

    Raises:
        InvalidProperty: one that no caller may set.
    """
    for name in asked:
        if name in REFUSED_ON_SCOPES:
            raise InvalidProperty(name, REFUSED_ON_SCOPES[name])
    if "User" in asked and stopped_by_helper:
        # It asserts when it stops a scope whose control group it is just handing over to that user.
        raise InvalidProperty(
            "User",
            "a helper that stops the machine could fail at a moment that the manager would not survive",
        )
    defaults: dict[str, Json] = {}
    if "TasksMaxScale" not in asked:
        defaults["TasksMax"] = tasks_max
    # A container manager divides its control group among its payload; a VMM has no use for that (seed 000).
    if class_ is MachineClass.container and "DelegateControllers" not in asked:
        defaults["Delegate"] = True
    # The manager remembers what a group that it removes has read and written only if it was told to count that.
    if asked.keys() & _OF_BLOCK_DEVICES and "IOAccounting" not in asked:
        defaults["IOAccounting"] = True
    return {**defaults, **asked}


# Helpers

_DEPENDENCY: Final = "how the units of a machine depend on each other is not the caller's to change"
_COMMAND: Final = "the parameter 'execStart' sets it"
_ACTION: Final = "what a failure leads to is said by the parameter 'onFailure'"
_DIRECTORY: Final = "the runtime directory is the machine's"

REFUSED_ON_HELPERS: Final[Mapping[str, str]] = {
    "Slice": "helpers are in the slice of their machine",
    "Description": "it says which helper of which machine this is",
    "CollectMode": "a failed helper is kept as long as its machine",
    "AddRef": _REFERENCE,
    "Controller": _PEER,
    "Service": "that is for sockets",
    "Sockets": "the parameter 'sockets' sets it",
    "Type": "the parameter 'type' sets it",
    "Restart": "the parameter 'restart' sets it",
    "RestartMode": "a helper that is restarted has not failed yet",
    "RemainAfterExit": "the parameter 'type' decides it",
    "BusName": "helpers are not of the type 'dbus'",
    "PIDFile": "helpers are not of the type 'forking'",
    "RefuseManualStart": "the helper could not be started",
    "RefuseManualStop": "the helper could not be stopped",
    "StopWhenUnneeded": "it is needed as long as the machine is there",
    "SurviveFinalKillSignal": "a helper does not outlive its machine",
    "IgnoreOnIsolate": "a helper does not outlive its machine",
    **dict.fromkeys(("ExecStart", "ExecStartEx"), _COMMAND),
    **dict.fromkeys(("ExecCondition", "ExecConditionEx"), "a helper that is not needed should not be asked for"),
    **dict.fromkeys(
        ("SuccessAction", "FailureAction", "StartLimitAction", "JobTimeoutAction", "SuccessActionExitStatus",
         "FailureActionExitStatus", "JobTimeoutRebootArgument", "RebootArgument", "OnSuccessJobMode",
         "OnFailureJobMode"),
        _ACTION,
    ),
    **dict.fromkeys(
        ("RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve", "RuntimeDirectorySymlink"), _DIRECTORY
    ),
    **dict.fromkeys(
        ("Requires", "Requisite", "Wants", "BindsTo", "PartOf", "Upholds", "Conflicts", "Before", "After", "OnFailure",
         "OnSuccess", "PropagatesReloadTo", "ReloadPropagatedFrom", "PropagatesStopTo", "StopPropagatedFrom",
         "RequiresMountsFor", "WantsMountsFor", "DefaultDependencies"),
        _DEPENDENCY,
    ),
}  # fmt: skip
"""Properties that no caller may set on a helper, each with the reason."""

COMMANDS: Final = frozenset(
    {"ExecStartPre", "ExecStartPost", "ExecReload", "ExecReloadPost", "ExecStop", "ExecStopPost"}
)
"""Commands that a caller may add, also with flags, as properties whose names end in "Ex"."""

COMMAND_FLAGS: Final = frozenset({"ignore-failure", unit_files.NO_EXPANSION})
"""Flags of such a command: it runs with the helper's own rights, so not those of the prefixes "+" and "!"."""

_BINDS: Final = frozenset({"BindPaths", "BindReadOnlyPaths"})
_MS_REC: Final = 16384  # BindPaths=…:rbind
_EPERM: Final = 1

_RIGHTS: Final[Mapping[str, Json]] = {
    "NoNewPrivileges": True,
    "RestrictAddressFamilies": [True, ["AF_UNIX"]],
    "SystemCallFilter": [True, ["@system-service"]],
    "SystemCallErrorNumber": _EPERM,
    "SystemCallArchitectures": ["native"],
}
"""Defaults that any process can give to its children."""

_NAMESPACES: Final[Mapping[str, Json]] = {
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": True,
    # A network namespace of its own has no abstract sockets of the host.
    "PrivateNetwork": True,
}
"""Defaults that need privileges, or a user namespace, which the manager of a user makes for them."""


def check_helper(helper: str, asked: Mapping[str, Json]) -> None:
    """Check which properties a caller sets on a helper; their values are the manager's to judge.

    Args:
        helper: its name.
        asked: for by the caller.

    Raises:
        InvalidProperty: one that is not the caller's to set.
        NoIdMapping: what no version of the manager has.
    """
    for name, value in asked.items():
        if name in REFUSED_ON_HELPERS:
            raise InvalidProperty(name, REFUSED_ON_HELPERS[name], helper)
        # With another type than the flags of the mount have: nobody means anything else by it.
        if name in _BINDS and isinstance(value, list) and any(_options(item) == "idmap" for item in value):
            raise NoIdMapping(name)
        if name.removesuffix("Ex") in COMMANDS and isinstance(value, list):
            for command in value:
                flags = command[-1] if isinstance(command, list) and command else None
                if isinstance(flags, list) and not COMMAND_FLAGS.issuperset(
                    flag for flag in flags if isinstance(flag, str)
                ):
                    allowed = ", ".join(sorted(COMMAND_FLAGS))
                    raise InvalidProperty(name, f"its flags are {allowed}", helper)


def sandbox(root: str, directory: str, *, user: bool) -> dict[str, Json]:
    """Return what a helper has by default, so that it can do no more than it needs.

    In a user's manager all of it is such that the manager goes on without it where the kernel has no user namespaces
    for users (``insist_on_sandboxing()`` of systemd's src/core/exec-invoke.c): no TemporaryFileSystem=, and no
    PrivateDevices=, which has capabilities dropped.

    Args:
        root: ``/run``, or the user's ``$XDG_RUNTIME_DIR``.
        directory: the runtime directory of its machine.
        user: its service manager is that of a user.
    """
    own: Json = [[directory, directory, False, _MS_REC]]
    if not user:
        base = f"{root}/moorage"
        return {
            **_RIGHTS,
            **_NAMESPACES,
            "DynamicUser": True,
            "PrivateDevices": True,
            "TemporaryFileSystem": [[base, "ro"]],
            "BindPaths": own,
        }
    notify = f"{root}/systemd/notify"
    return {
        **_RIGHTS,
        **_NAMESPACES,
        # It hides the user's runtime directory as well, of which an inaccessible one could show no part.
        "ProtectHome": "tmpfs",
        "BindPaths": own,
        # Where a helper of the type "notify" says that it is ready.
        "BindReadOnlyPaths": [[notify, notify, True, 0]],
    }


def _options(item: Json) -> Json:
    """Return the options of a bind mount, should they be a text as in a unit file."""
    if isinstance(item, str):
        return item.rpartition(":")[2]
    return item[-1] if isinstance(item, list) and item else None


# A slice of its own

REFUSED_ON_SLICES: Final[Mapping[str, str]] = {
    "Slice": "the slice is below that of the parameter 'slice'",
    "Description": "it says which machine the slice is for",
    "CollectMode": "a slice that failed would keep its name",
    "AddRef": _REFERENCE,
    "StopWhenUnneeded": "the slice goes with the last unit in it",
    "RefuseManualStart": "the slice could not be started",
    "RefuseManualStop": "the slice could not be stopped",
    "DefaultDependencies": "the slice goes with the last unit in it, at shutdown as well",
}
"""Properties that no caller may set on a machine's own slice, each with the reason."""


def check_slice(asked: Mapping[str, Json]) -> None:
    """Check which properties a caller sets on a machine's own slice.

    Raises:
        InvalidProperty: one that is not the caller's to set.
    """
    for name in asked:
        if name in REFUSED_ON_SLICES:
            raise InvalidProperty(name, f"slice of the machine: {REFUSED_ON_SLICES[name]}")
