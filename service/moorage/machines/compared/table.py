"""ONE table, `COMPARED`, says for each property what is compared with what; `NOT_COMPARED` says of all others why not.

Pure: no I/O.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Final, NamedTuple

from moorage.machines.compared.bpf import device_allow, programs
from moorage.machines.compared.cpu import cpu_weight, cpuset, partition, period, quota
from moorage.machines.compared.io import RATES, device_weight, io_weight, per_device
from moorage.machines.compared.memory import (
    ceiling,
    guarantee,
    guaranteed_share,
    managed_oom,
    no_children,
    oom_policy,
    share,
    zswap_writeback,
)
from moorage.machines.compared.processes import RESOURCES, delegated, nice, oom_score, resource, subgroup
from moorage.machines.compared.sandbox import lacking
from moorage.machines.compared.values import pairs
from moorage.machines.limits import Comparison, Difference, Facts
from moorage.pid1.manager import Json

COMPARED: Final[Mapping[str, Comparison]] = {
    "CPUWeight": cpu_weight,
    "StartupCPUWeight": cpu_weight,
    "CPUQuotaPerSecUSec": quota,
    "CPUQuotaPeriodUSec": period,
    **dict.fromkeys(("AllowedCPUs", "StartupAllowedCPUs"), cpuset("cpuset.cpus")),
    **dict.fromkeys(("AllowedMemoryNodes", "StartupAllowedMemoryNodes"), cpuset("cpuset.mems")),
    "CPUSetPartition": partition,
    **dict.fromkeys(("IOWeight", "StartupIOWeight"), io_weight),
    "IODeviceWeight": device_weight,
    **dict.fromkeys(RATES, per_device("io.max", lambda name: RATES[name])),
    "IODeviceLatencyTargetUSec": per_device("io.latency", lambda _name: "target"),
    "MemoryMin": guarantee("memory.min"),
    **dict.fromkeys(("MemoryLow", "StartupMemoryLow"), guarantee("memory.low")),
    **dict.fromkeys(("MemoryHigh", "StartupMemoryHigh"), ceiling("memory.high", "memory.max")),
    **dict.fromkeys(("MemoryMax", "StartupMemoryMax"), ceiling("memory.max")),
    **dict.fromkeys(("MemorySwapMax", "StartupMemorySwapMax"), ceiling("memory.swap.max")),
    **dict.fromkeys(("MemoryZSwapMax", "StartupMemoryZSwapMax"), ceiling("memory.zswap.max")),
    "MemoryMinScale": guaranteed_share("memory.min"),
    "MemoryLowScale": guaranteed_share("memory.low"),
    "MemoryHighScale": share("memory.high", "memory.max"),
    "MemoryMaxScale": share("memory.max"),
    "MemorySwapMaxScale": share("memory.swap.max"),
    "MemoryZSwapMaxScale": share("memory.zswap.max"),
    **dict.fromkeys(("DefaultMemoryMin", "DefaultMemoryLow", "DefaultStartupMemoryLow"), no_children),
    "MemoryZSwapWriteback": zswap_writeback,
    "TasksMax": ceiling("pids.max", pages=False),
    "TasksMaxScale": share("pids.max"),
    "OOMPolicy": oom_policy,
    **dict.fromkeys(("ManagedOOMSwap", "ManagedOOMMemoryPressure", "ManagedOOMPreference", "OOMRules"), managed_oom),
    "DeviceAllow": device_allow,
    **dict.fromkeys(
        ("DevicePolicy", "IPAccounting", "IPAddressAllow", "IPAddressDeny", "IPIngressFilterPath",
         "IPEgressFilterPath", "BPFProgram", "SocketBindAllow", "SocketBindDeny", "RestrictNetworkInterfaces",
         "BindNetworkInterface"),
        programs,
    ),
    "DelegateControllers": delegated,
    "DelegateSubgroup": subgroup,
    **dict.fromkeys((name for each in RESOURCES for name in (each, f"{each}Soft")), resource),
    "Nice": nice,
    "OOMScoreAdjust": oom_score,
}  # fmt: skip
"""What is compared, by property."""


class Exempt(NamedTuple):
    """Properties that are not compared.

    Attributes:
        reason: why.
        names: their names, as patterns of fnmatch(3).
    """

    reason: str
    names: tuple[str, ...]


NOT_COMPARED: Final = (
    Exempt(
        "the manager reports it, and nobody sets it",
        ("*Timestamp", "*TimestampMonotonic", "*Result", "*State", "UnitFilePreset", "Can[A-Z]*", "Effective*",
         "*Current", "*Peak", "MemoryAvailable", "CPUUsageNSec", "IO*Bytes", "IO*Operations", "IP*Bytes", "IP*Packets",
         "OOMKills", "ManagedOOMKills", "Result", "Status*", "ExecMain*", "MainPID", "ControlPID", "NRestarts",
         "NFileDescriptorStore", "ControlGroup", "ControlGroupId", "InvocationID", "Id", "Names", "Following",
         "FragmentPath", "DropInPaths", "Job", "LoadError", "NeedDaemonReload", "Perpetual", "Transient", "Refs",
         "ActivationDetails", "DebugInvocation", "AccessSELinuxContext", "UID", "GID", "*QuotaUsage",
         "RestartUSecNext", "NCurrentlyActive", "*FileDescriptorName", "*FileDescriptorNames", "Controller"),
    ),
    Exempt(
        "how units depend on each other is the manager's own, and no matter of the kernel",
        ("Requires", "Requisite", "Wants", "BindsTo", "PartOf", "Upholds", "RequiredBy", "RequisiteOf", "WantedBy",
         "BoundBy", "UpheldBy", "ConsistsOf", "Conflicts", "ConflictedBy", "Before", "After", "OnSuccess",
         "OnSuccessOf", "OnFailure", "OnFailureOf", "Triggers", "TriggeredBy", "PropagatesReloadTo",
         "ReloadPropagatedFrom", "PropagatesStopTo", "StopPropagatedFrom", "JoinsNamespaceOf", "SliceOf",
         "RequiresMountsFor", "WantsMountsFor", "Slice", "DefaultDependencies", "PIDs", "PIDFDs"),
    ),
    Exempt(
        "a switch for counters; those that cannot be had are left out where they are told",
        ("CPUAccounting", "IOAccounting", "MemoryAccounting", "TasksAccounting", "*DirectoryAccounting"),
    ),
    Exempt(
        "a name of the legacy hierarchy, which this service does not run on",
        ("BlockIO*", "StartupBlockIO*", "CPUShares", "StartupCPUShares", "MemoryLimit"),
    ),
    Exempt(
        "words that describe the unit",
        ("Description", "Documentation", "SourcePath", "Markers", "SyslogIdentifier", "LogExtraFields"),
    ),
    Exempt(
        "the manager does it by itself when the unit starts, stops, fails or runs for too long",
        ("KillMode", "*KillSignal", "WatchdogSignal", "SendSIGHUP", "SendSIGKILL", "SurviveFinalKillSignal",
         "*TimeoutUSec", "Timeout*USec", "Timeout*Mode", "RuntimeMaxUSec", "RuntimeRandomizedExtraUSec",
         "JobTimeoutAction", "JobTimeoutRebootArgument", "*FailureMode", "FailureAction*", "SuccessAction*",
         "RebootArgument", "OnFailureJobMode", "OnSuccessJobMode", "StartLimit*", "CollectMode", "AddRef",
         "AllowIsolate", "IgnoreOnIsolate", "RefuseManualStart", "RefuseManualStop", "StopWhenUnneeded", "Conditions",
         "Asserts", "Restart*", "RemainAfterExit", "SuccessExitStatus", "WatchdogUSec", "Type", "ExitType",
         "NotifyAccess", "GuessMainPID", "PIDFile", "BusName", "ReloadSignal", "RefreshOnReload", "Sockets",
         "FileDescriptorStoreMax", "FileDescriptorStorePreserve", "LUOSession", "NonBlocking",
         "RootDirectoryStartOnly", "USBFunction*", "*ConcurrencyMax", "Concurrency*Max"),
    ),
    Exempt(
        "a detail of ManagedOOMMemoryPressure=, which is compared",
        ("ManagedOOMMemoryPressureLimit", "ManagedOOMMemoryPressureDurationUSec"),
    ),
    Exempt(
        "it only tells the program of the service where to look",
        ("MemoryPressureWatch", "CPUPressureWatch", "IOPressureWatch", "*PressureThresholdUSec"),
    ),
    Exempt(
        "what is delegated is whatever there is; what was named is compared (DelegateControllers=)",
        ("Delegate", "DisableControllers", "DelegateNamespaces", "CoredumpReceive"),
    ),
    Exempt("the packet filter of the kernel is not read", ("NFTSet",)),
    Exempt(
        "the manager's process for the service sets it up before the program, which it does not run otherwise",
        ("Exec*", "User", "Group", "DynamicUser", "SupplementaryGroups", "PAMName", "SetLoginEnvironment",
         "Environment*", "PassEnvironment", "UnsetEnvironment", "WorkingDirectory", "UMask", "Root*", "*Directory",
         "*DirectoryMode", "*DirectorySymlink", "*DirectoryPreserve", "*DirectoryQuota", "Extension*",
         "MountImages", "MountImagePolicy", "MountFlags", "MountAPIVFS", "Bind*Paths", "BindPaths", "BindLogSockets",
         "*Paths", "TemporaryFileSystem", "Private*", "Protect*", "ProcSubset", "*NamespacePath", "IPCNamespacePath",
         "RestrictAddressFamilies", "RestrictFileSystems", "RestrictNamespaces", "RestrictRealtime",
         "RestrictSUIDSGID", "SystemCall*", "LockPersonality", "Personality", "MemoryDenyWriteExecute", "MemoryKSM",
         "MemoryTHP", "NoNewPrivileges", "SecureBits", "CapabilityBoundingSet", "AmbientCapabilities", "KeyringMode",
         "AppArmorProfile", "SELinuxContext", "SmackProcessLabel", "BPFDelegate*", "RemoveIPC", "CPUAffinity*",
         "CPUScheduling*", "IOScheduling*", "NUMA*", "TimerSlackNSec", "CoredumpFilter", "IgnoreSIGPIPE",
         "SameProcessGroup", "Standard*", "TTY*", "Syslog*", "Log*", "Utmp*", "OpenFile", "ExtraFileDescriptors",
         "*Credential", "*CredentialEncrypted", "ImportCredentialEx"),
    ),
)  # fmt: skip
"""Why the other properties that systemd has are not compared."""


def why_not(name: str) -> str | None:
    """Return the reason why a property is not compared; None if it is, or is not known."""
    if name in COMPARED:
        return None
    for exempt in NOT_COMPARED:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in exempt.names):
            return exempt.reason
    return None


def differences(facts: Facts) -> list[Difference]:
    """Compare properties that were asked for with what is in force.

    What cannot be read is left out: nothing is said that is not known.
    """
    found = list(lacking(facts))
    for name, value in facts.properties.items():
        comparison = COMPARED.get(name)
        if comparison is None:
            continue
        try:
            found += comparison(name, value, facts)
        except (OSError, ValueError, LookupError):
            # The manager took the value, so that it is well formed; what is not is a text of a kernel to come.
            continue
    return found


def paths(properties: Mapping[str, Json]) -> list[str]:
    """Return the paths among properties that decide whether something is in force."""
    found: dict[str, None] = {}
    for name in (*RATES, "IODeviceWeight", "IODeviceLatencyTargetUSec", "DeviceAllow"):
        for path, _ in pairs(properties.get(name)):
            if name != "DeviceAllow" or path.startswith("/dev/"):
                found[path] = None
    return list(found)
