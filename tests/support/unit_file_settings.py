"""Settings of services and scopes as unit files have them, all of which one unit can have together."""

import json
import re
from collections.abc import Iterable
from typing import Any

from moored import run

SERVICE = {
    # sizes, shares, numbers
    "MemoryMax": "64M", "MemoryHigh": "10%", "MemoryMin": "", "MemorySwapMax": "0", "TasksMax": "12.5%",
    "CPUQuota": "50%", "CPUQuotaPeriodSec": "20ms", "CPUWeight": "idle", "IOWeight": "200", "Nice": "-5",
    "OOMScoreAdjust": "+100", "AllowedCPUs": "0", "CPUAffinity": "0 0-0", "StartLimitBurst": "7",
    "FileDescriptorStoreMax": "3", "TTYRows": "30", "LogRateLimitBurst": "9", "IOSchedulingPriority": "6",
    # times
    "RuntimeMaxSec": "5min", "TimeoutStopSec": "1min 5s", "TimeoutStartSec": "infinity", "TimeoutAbortSec": "7",
    "RestartSec": "100ms", "RestartMaxDelaySec": "2h", "RestartSteps": "3", "LogRateLimitIntervalSec": "0.5s",
    "StartLimitIntervalSec": "3w", "TimerSlackNSec": "50us", "JobRunningTimeoutSec": "1y", "WatchdogSec": "0",
    # yes and no, and what is more than that
    "NoNewPrivileges": "yes", "DynamicUser": "off", "PrivateDevices": "n", "PrivateNetwork": "t", "PrivateMounts": "1",
    "IgnoreSIGPIPE": "false", "LockPersonality": "on", "SendSIGHUP": "true", "RestrictRealtime": "y",
    "PrivateTmp": "yes", "ProtectControlGroups": "yes", "ProtectHostname": "no", "PrivateUsers": "no",
    "ProtectHome": "read-only", "ProtectSystem": "full", "ProtectProc": "invisible", "KeyringMode": "private",
    # words, and what is more than words
    "SupplementaryGroups": "adm  'tty'", "ReadWritePaths": "/tmp -/nowhere", "InaccessiblePaths": "+/media",
    "SystemCallArchitectures": "native x86", "ExecSearchPath": "/usr/bin /bin",
    "Environment": r"""A=1 "B=two words" 'C=it"s' D=\x41\n\u00e4\101 'E=a'\''b'""", "UnsetEnvironment": "F G=1",
    "PassEnvironment": "HOME", "EnvironmentFile": "-/nowhere", "RestrictAddressFamilies": "~AF_PACKET AF_NETLINK",
    "SystemCallFilter": "~@mount @reboot:EPERM", "SystemCallErrorNumber": "EACCES", "SystemCallLog": "@raw-io",
    "RestrictNamespaces": "user net", "RestrictFileSystems": "ext4 tmpfs",
    "CapabilityBoundingSet": "~CAP_SYS_ADMIN cap_net_raw", "AmbientCapabilities": "CAP_NET_BIND_SERVICE 7",
    "SecureBits": "keep-caps noroot", "CoredumpFilter": "default private-dax 0x40", "MountFlags": "slave",
    "BindPaths": "/usr:/mnt:norbind -/nowhere '/opt'", "BindReadOnlyPaths": "/srv:/srv:rbind",
    "TemporaryFileSystem": "/media:ro,mode=0700 /opt", "DeviceAllow": "/dev/null rw", "DevicePolicy": "closed",
    "IPAddressDeny": "any", "IPAddressAllow": "localhost",
    # names of numbers
    "SyslogLevel": "warning", "SyslogFacility": "local3", "LogLevelMax": "6", "CPUSchedulingPolicy": "batch",
    "IOSchedulingClass": "idle", "UMask": "0027", "StateDirectoryMode": "700", "KillSignal": "SIGINT",
    "FinalKillSignal": "9", "ReloadSignal": "RTMIN+3", "NUMAMask": "0",
    # limits
    "LimitNOFILE": "1024:2048", "LimitCORE": "1G", "LimitCPU": "1500ms", "LimitNICE": "+5",
    "LimitRTTIME": "2s", "LimitNPROC": "infinity", "LimitMEMLOCK": "64K:infinity",
    # files and streams
    "StandardOutput": "append:/dev/null", "StandardError": "null",
    "LogExtraFields": "FIELD=a b", "LogFilterPatterns": "~x.*", "SyslogIdentifier": "me %",
    "StateDirectory": "a b/c:d e:f:ro", "CacheDirectory": "cache", "ConfigurationDirectory": "conf",
    "OpenFile": "/etc/hostname:host:read-only", "SetCredential": r"cred:a\x00b",
    "LoadCredential": "host:/etc/hostname", "ImportCredential": "x.*", "WorkingDirectory": "-/nowhere",
    # of services
    "ExecStartPre": r"-/bin/true 'a b' \x41", "ExecStop": "@/bin/sleep me 0", "NotifyAccess": "all",
    "SuccessExitStatus": "7 SIGUSR1 TEMPFAIL 250", "RestartPreventExitStatus": "CONFIG", "OOMPolicy": "continue",
    "TimeoutStopFailureMode": "abort", "ExitType": "main", "Delegate": "memory pids",
    # of units
    "ConditionPathExists": "|!/nowhere", "AssertPathIsDirectory": "/etc", "Documentation": "man:a(1) https://b/",
}  # fmt: skip

SERVICE_257 = {"StandardInputData": "YWJjCg=="}
SERVICE_262 = {
    "PrivateTmp": "disconnected", "ProtectControlGroups": "strict", "PrivateUsers": "self",
    "ProtectHostname": "private:other", "RestrictNamespaces": "~user net", "ExecSearchPath": "/usr/bin:/bin /sbin",
    "StandardInputText": r"a\tb 'c'",
}  # fmt: skip
"""What systemd-run of 257 does not know, or does wrongly; and what there is in its place."""

SERVICE_DEFAULTS = (
    "--property=RestrictAddressFamilies=AF_UNIX", "--property=SystemCallFilter=@system-service",
    "--property=TemporaryFileSystem=/run/moorage:ro",
)  # fmt: skip
"""What every helper has, and settings are added to."""

SCOPE = {
    "MemoryMax": "64M", "MemoryHigh": "10%", "MemoryLow": "1.5M", "TasksMax": "77", "CPUQuota": "150%",
    "CPUWeight": "200", "IOWeight": "50", "AllowedCPUs": "0-0", "TimeoutStopSec": "1min 5s", "RuntimeMaxSec": "1h",
    "KillMode": "mixed", "KillSignal": "SIGINT", "SendSIGHUP": "yes", "OOMPolicy": "kill", "Delegate": "memory pids",
    "DevicePolicy": "closed", "DeviceAllow": "/dev/null rw", "IPAddressDeny": "any", "IPAddressAllow": "127.0.0.1/8",
    "ManagedOOMMemoryPressure": "kill", "ManagedOOMMemoryPressureLimit": "60%",
}  # fmt: skip

PROPERTIES = {
    "CPUQuota": ["CPUQuotaPerSecUSec"], "EnvironmentFile": ["EnvironmentFiles"],
    "PrivateTmp": ["PrivateTmp", "PrivateTmpEx"], "PrivateUsers": ["PrivateUsers", "PrivateUsersEx"],
    "ProtectControlGroups": ["ProtectControlGroups", "ProtectControlGroupsEx"],
    "ProtectHostname": ["ProtectHostname", "ProtectHostnameEx"], "StandardInputText": ["StandardInputData"],
    "StateDirectory": ["StateDirectory", "StateDirectorySymlink"],
    "ConditionPathExists": ["Conditions"], "AssertPathIsDirectory": ["Asserts"],
    "Delegate": ["Delegate", "DelegateControllers"], "ImportCredential": ["ImportCredential", "ImportCredentialEx"],
    "TimerSlackNSec": ["TimerSlackNSec"],
}  # fmt: skip
"""What the manager has for a setting, where the name is another one or there is more than one."""

WITH_LAST_RUN = {"ExecStartPre": 3, "ExecStop": 3, "Conditions": 4, "Asserts": 4}
"""Properties of which each element ends with how it went; and how many members come before that."""


def properties_of(setting: str) -> list[str]:
    """What the manager has for a setting."""
    if setting.startswith("Limit"):
        return [setting, f"{setting}Soft"]
    if setting.endswith("Sec") and setting not in PROPERTIES:
        return [setting.removesuffix("Sec") + "USec"]
    return PROPERTIES.get(setting, [setting])


def in_force(unit: str, settings: Iterable[str]) -> dict[str, Any]:
    """What the manager has for settings, with all that ``systemctl show`` would call unprintable."""
    path = "/org/freedesktop/systemd1/unit/" + re.sub(
        "[^A-Za-z0-9]", lambda match: f"_{ord(match[0]):02x}", unit
    )
    text = run("busctl", "--json=short", "call", "org.freedesktop.systemd1", path, "org.freedesktop.DBus.Properties",
               "GetAll", "s", "")  # fmt: skip
    values = {name: variant["data"] for name, variant in json.loads(text)["data"][0].items()}
    found = {name: values.get(name) for setting in settings for name in properties_of(setting)}
    if "ProtectHostnameEx" not in values:  # in 257
        found.pop("ProtectHostnameEx", None)
    for name, members in WITH_LAST_RUN.items():
        found[name] = [element[:members] for element in found.get(name) or []]
    return found
