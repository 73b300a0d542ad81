"""What services have beyond scopes, as systemd-run(1) takes it: helpers are services.

The table was made from bus-unit-util.c of systemd 262 (execute_properties, service_properties, and of unit_properties
the conditions), without what no helper may have set. Names of numbers are those of the sources of systemd 262 and of
the kernel's headers.

Pure.
"""

from __future__ import annotations

import base64
import binascii
import errno
import re
from collections.abc import Callable, Mapping
from typing import Final

from moorage.cli.properties.converters import (
    WHITESPACE,
    Converter,
    Json,
    boolean,
    first_word,
    names,
    number,
    number_set,
    parsed,
    span,
    split_words,
    text_as_it_is,
    unescape,
    words,
)
from moorage.cli.properties.quantities import (
    INFINITY,
    UINT32_MAX,
    UINT64_MAX,
    parse_boolean,
    parse_number,
    parse_set,
    parse_signal,
    parse_size,
    parse_span,
    scale_of_percent,
    set_to_bytes,
)

_MS_REC: Final = 16384
_SECCOMP_KILL: Final = 2**31 - 2
"""SECCOMP_ERROR_NUMBER_KILL of seccomp-util.h."""

_LEVELS: Final = {
    "emerg": 0, "alert": 1, "crit": 2, "err": 3, "warning": 4, "notice": 5, "info": 6, "debug": 7
}  # fmt: skip
_FACILITIES: Final = {
    name: number
    for number, name in enumerate(
        (
            "kern",
            "user",
            "mail",
            "daemon",
            "auth",
            "syslog",
            "lpr",
            "news",
            "uucp",
            "cron",
            "authpriv",
            "ftp",
        )
    )
} | {f"local{number}": 16 + number for number in range(8)}
_POLICIES: Final = {"other": 0, "fifo": 1, "rr": 2, "batch": 3, "idle": 5, "ext": 7}
_IO_CLASSES: Final = {"none": 0, "realtime": 1, "best-effort": 2, "idle": 3}
_MEMORY_POLICIES: Final = {
    "default": 0, "preferred": 1, "bind": 2, "interleave": 3, "local": 4, "preferred-many": 5, "weighted-interleave": 6
}  # fmt: skip
_PROPAGATIONS: Final = {"": 0, "shared": 1 << 20, "slave": 1 << 19, "private": 1 << 18}
_SECURE_BITS: Final = {
    name: 1 << bit
    for bit, name in enumerate(
        ("noroot", "noroot-locked", "no-setuid-fixup", "no-setuid-fixup-locked", "keep-caps", "keep-caps-locked",
         "no-cap-ambient-raise", "no-cap-ambient-raise-locked", "exec-restrict-file", "exec-restrict-file-locked",
         "exec-deny-interactive", "exec-deny-interactive-locked")
    )
}  # fmt: skip
_DUMPED: Final = {
    name: 1 << bit
    for bit, name in enumerate(
        ("private-anonymous", "shared-anonymous", "private-file-backed", "shared-file-backed", "elf-headers",
         "private-huge", "shared-huge", "private-dax", "shared-dax")
    )
} | {"default": 0b110011, "all": 0b111111111}  # fmt: skip
_NAMESPACES: Final = {
    "cgroup": 0x02000000, "ipc": 0x08000000, "net": 0x40000000, "mnt": 0x00020000, "pid": 0x20000000,
    "user": 0x10000000, "uts": 0x04000000, "time": 0x80,
}  # fmt: skip
_CAPABILITIES: Final = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
)  # fmt: skip
_CAPABILITIES_MAX: Final = 62
_STATUSES: Final = {
    "SUCCESS": 0, "FAILURE": 1, "INVALIDARGUMENT": 2, "NOTIMPLEMENTED": 3, "NOPERMISSION": 4, "NOTINSTALLED": 5,
    "NOTCONFIGURED": 6, "NOTRUNNING": 7, "USAGE": 64, "DATAERR": 65, "NOINPUT": 66, "NOUSER": 67, "NOHOST": 68,
    "UNAVAILABLE": 69, "SOFTWARE": 70, "OSERR": 71, "OSFILE": 72, "CANTCREAT": 73, "IOERR": 74, "TEMPFAIL": 75,
    "PROTOCOL": 76, "NOPERM": 77, "CONFIG": 78, "CHDIR": 200, "NICE": 201, "FDS": 202, "EXEC": 203, "MEMORY": 204,
    "LIMITS": 205, "OOM_ADJUST": 206, "SIGNAL_MASK": 207, "STDIN": 208, "STDOUT": 209, "CHROOT": 210, "IOPRIO": 211,
    "TIMERSLACK": 212, "SECUREBITS": 213, "SETSCHEDULER": 214, "CPUAFFINITY": 215, "GROUP": 216, "USER": 217,
    "CAPABILITIES": 218, "CGROUP": 219, "SETSID": 220, "CONFIRM": 221, "STDERR": 222, "PAM": 224, "NETWORK": 225,
    "NAMESPACE": 226, "NO_NEW_PRIVILEGES": 227, "SECCOMP": 228, "SELINUX_CONTEXT": 229, "PERSONALITY": 230,
    "APPARMOR": 231, "ADDRESS_FAMILIES": 232, "RUNTIME_DIRECTORY": 233, "CHOWN": 235, "SMACK_PROCESS_LABEL": 236,
    "KEYRING": 237, "STATE_DIRECTORY": 238, "CACHE_DIRECTORY": 239, "LOGS_DIRECTORY": 240,
    "CONFIGURATION_DIRECTORY": 241, "NUMA_POLICY": 242, "CREDENTIALS": 243, "BPF": 244, "KSM": 245, "MEMORY_THP": 246,
    "EXCEPTION": 255,
}  # fmt: skip
_OPEN_FLAGS: Final = {"read-only": 1, "append": 2, "truncate": 4, "graceful": 8}


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if re.fullmatch(r"[+-]?[0-9]{1,10}", text) is None or not low <= int(text) <= high:
            raise ValueError(f"{text!r} is no number from {low} to {high}")
        return int(text)

    return parse


def _mode(text: str) -> int:
    if re.fullmatch(r"[0-7]{1,8}", text) is None or int(text, 8) > 0o7777:
        raise ValueError(f"{text!r} is no file mode such as 0750")
    return int(text, 8)


_NSEC: Final = re.compile(r"\s*([0-9]+)(?:nsec|ns|)\s*")


def _nanoseconds(text: str) -> Json:
    if (match := _NSEC.fullmatch(text)) is not None:  # without a unit they are ns already
        return parse_number(match[1])
    usec = parse_span(text)
    return INFINITY if usec is None else usec * 1000


def _union(parse: Callable[[str], int]) -> Callable[[str], int]:
    """Return a parser for several words of which each stands for bits."""

    def parse_all(text: str) -> int:
        bits = 0
        for word in split_words(text):
            bits |= parse(word)
        return bits

    return parse_all


def _dump_filter(text: str) -> int:
    if re.fullmatch(r"(?:0x)?[0-9a-fA-F]{1,16}", text) is not None:
        return int(text, 16)
    return names(_DUMPED, "kind of memory")(text)


def _capability(text: str) -> int:
    name = text.lower().removeprefix("cap_")
    if name in _CAPABILITIES:
        return 1 << _CAPABILITIES.index(name)
    if re.fullmatch(r"[0-9]{1,2}", text) is not None and int(text) <= _CAPABILITIES_MAX:
        return 1 << int(text)
    raise ValueError(f"there is no capability {text!r}")


def _capabilities(text: str) -> int:
    bits = _union(_capability)(text.removeprefix("~"))
    return bits ^ UINT64_MAX if text.startswith("~") else bits


def _namespaces(name: str, text: str) -> Mapping[str, Json]:
    restricted = name == "RestrictNamespaces"  # what is set are those that stay permitted
    every = 0
    for flag in _NAMESPACES.values():
        every |= flag
    if name == "DelegateNamespaces":
        every &= ~_NAMESPACES["user"]
    try:
        return {name: every if parse_boolean(text) != restricted else 0}
    except ValueError:
        flags = _union(names(_NAMESPACES, "namespace"))(text.removeprefix("~"))
        return {name: ~flags & every if text.startswith("~") else flags}


def _system_call_error(text: str) -> int:
    if text == "kill":
        return _SECCOMP_KILL
    numbers = {name: number for number, name in errno.errorcode.items()}
    if text in numbers:
        return numbers[text]
    try:
        return _integer(0, 4095)(text)
    except ValueError:
        raise ValueError(f"{text!r} is no error such as EPERM, and not 'kill'") from None


def _allowed(name: str, text: str) -> Mapping[str, Json]:
    """Convert a list of what is permitted or, with ``~``, of what is not."""
    return {name: [not text.startswith("~"), split_words(text.removeprefix("~"))]}


def _unless_missing(name: str, text: str) -> Mapping[str, Json]:
    return {name: [text.startswith("-"), text.removeprefix("-")]}


def _environment_file(name: str, text: str) -> Mapping[str, Json]:
    del name
    return {"EnvironmentFiles": [[text.removeprefix("-"), text.startswith("-")]] if text else []}


def _stream(name: str, text: str) -> Mapping[str, Json]:
    suffixes = {
        "fd": "FileDescriptorName",
        "file": "File",
        "append": "FileToAppend",
        "truncate": "FileToTruncate",
    }
    kind, separator, what = text.partition(":")
    if separator and kind in suffixes:
        return {f"{name}{suffixes[kind]}": what}
    return {name: text}


def _input_text(name: str, text: str) -> Mapping[str, Json]:
    del name
    return {"StandardInputData": [*unescape(text), ord("\n")]}


def _input_data(name: str, text: str) -> Mapping[str, Json]:
    return {name: list(_decoded(text))}


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{text!r} is no base64") from None


def _content(name: str, text: str) -> Mapping[str, Json]:
    """Convert a credential with its content, ``ID:DATA``."""
    id_, separator, data = text.partition(":")
    if text and not separator:
        raise ValueError(f"{text!r} is not ID:DATA")
    content = _decoded(data) if name.endswith("Encrypted") else unescape(data)
    return {name: [[id_, list(content)]] if text else []}


def _credential(name: str, text: str) -> Mapping[str, Json]:
    """Convert a credential with its source, ``ID[:PATH]``."""
    id_, _, path = text.partition(":")
    return {name: [[id_, path or id_]] if text else []}


def _imported_credential(name: str, text: str) -> Mapping[str, Json]:
    pattern, separator, renamed = text.partition(":")
    if separator:
        return {f"{name}Ex": [[pattern, renamed]]}
    return {name: [text] if text else []}


def _log_field(name: str, text: str) -> Mapping[str, Json]:
    return {name: [list(text.encode())]}


def _log_pattern(name: str, text: str) -> Mapping[str, Json]:
    return {name: [[not text.startswith("~"), text.removeprefix("~")]] if text else []}


def _binds(name: str, text: str) -> Mapping[str, Json]:
    """Convert paths to be mounted, ``SOURCE[:DESTINATION[:OPTIONS]]`` each."""
    binds: list[Json] = []
    ends = f":{WHITESPACE}"
    while text := text.lstrip(WHITESPACE):
        source, end, text = first_word(text, ends)
        missing_is_fine, source = source.startswith("-"), source.removeprefix("-")
        destination, options = source, ""
        if end == ":":
            destination, end, text = first_word(text, ends)
            if end == ":":
                options, _, text = first_word(text, WHITESPACE)
        if not source or not destination:
            raise ValueError("there is an empty path")
        if options not in {"", "rbind", "norbind"}:
            raise ValueError(f"there is no option {options!r}: there are rbind and norbind")
        binds.append([source, destination, missing_is_fine, 0 if options == "norbind" else _MS_REC])
    return {name: binds}


def _temporary(name: str, text: str) -> Mapping[str, Json]:
    return {
        name: [[path, options] for path, _, options in (word.partition(":") for word in split_words(text))]
    }


def _directories(name: str, text: str) -> Mapping[str, Json]:
    """Convert directories, ``NAME[:SYMLINK[:FLAGS]]`` each."""
    plain: list[Json] = []
    linked: list[Json] = []
    for word in split_words(text):
        directory, _, rest = word.partition(":")
        link, _, flags = rest.partition(":")
        if flags not in {"", "ro"}:
            raise ValueError(f"there is no flag {flags!r}: there is ro")
        if link or flags:
            linked.append([directory, link, int(flags == "ro")])
        else:
            plain.append(directory)
    converted: dict[str, Json] = {name: plain} if plain else {}
    return {**converted, f"{name}Symlink": linked} if linked else converted


def _quota(name: str, text: str) -> Mapping[str, Json]:
    if text in {"", "off"}:
        return {name: [UINT64_MAX, UINT32_MAX, "no"]}
    if text.endswith("%"):
        return {name: [UINT64_MAX, scale_of_percent(text), "yes"]}
    return {name: [parse_size(text), UINT32_MAX, "yes"]}


def _extended(name: str, text: str) -> Mapping[str, Json]:
    """Convert what was yes or no once, and is more today."""
    try:
        return {name: parse_boolean(text)}
    except ValueError:
        return {f"{name}Ex": text}


def _host_name(name: str, text: str) -> Mapping[str, Json]:
    try:
        return {name: parse_boolean(text)}
    except ValueError:
        how, separator, host = text.partition(":")
        if separator and not host:
            raise ValueError(f"{text!r} has no name after the colon") from None
        return {f"{name}Ex": [how, host]}


def _cpus(name: str, text: str) -> Mapping[str, Json]:
    return {"CPUAffinityFromNUMA": True} if text == "numa" else number_set(name, text)


def _nodes(text: str) -> Json:
    if text == "all":
        raise ValueError("'all' depends on the machine: give the numbers")
    return set_to_bytes(parse_set(text))


def _timeouts(name: str, text: str) -> Mapping[str, Json]:
    del name
    return {**span("TimeoutStartSec", text), **span("TimeoutStopSec", text)}


def _command(name: str, text: str) -> Mapping[str, Json]:
    """Convert a command with the prefixes "-", "@" and ":" of systemd.service(5); others are refused for helpers."""
    prefix = re.match(r"[-@:+!|]*", text)
    assert prefix is not None
    flags, line = prefix[0], text[prefix.end() :]
    if further := flags.replace("-", "", 1).replace("@", "", 1).replace(":", "", 1):
        raise ValueError(f"commands of helpers have no prefix {further[0]!r}")
    argv = split_words(line, unescape=True)
    path = argv.pop(0) if "@" in flags and argv else argv[0] if argv else ""
    if text and not argv:
        raise ValueError(f"{text!r} is no command")
    if ":" in flags and argv:
        return {
            f"{name}Ex": [[path, argv, ["no-env-expand", *(["ignore-failure"] if "-" in flags else [])]]]
        }
    return {name: [[path, argv, "-" in flags]] if argv else []}


def _statuses(name: str, text: str) -> Mapping[str, Json]:
    exits: list[int] = []
    signals: list[int] = []
    for word in split_words(text):
        try:
            exits.append(names(_STATUSES, "exit status", end=256)(word))
        except ValueError:
            try:
                signals.append(parse_signal(word))
            except ValueError:
                raise ValueError(f"{word!r} is neither an exit status nor a signal") from None
    return {name: [exits, signals]}


def _opened_file(name: str, text: str) -> Mapping[str, Json]:
    """Convert a file to be opened, ``PATH[:NAME[:OPTIONS]]``."""
    if not text:
        return {name: []}
    path, end, rest = first_word(text, ":", unescape=True)
    given, _, options = first_word(rest, ":", unescape=True) if end else ("", "", "")
    flags = 0
    for option in filter(None, options.split(",")):
        flags |= names(_OPEN_FLAGS, "option")(option)
    return {name: [[path, given or path.rpartition("/")[2], flags]]}


def _refreshed(name: str, text: str) -> Mapping[str, Json]:
    return {name: [[text.startswith("~"), word] for word in split_words(text.removeprefix("~"))]}


def _condition(name: str, text: str) -> Mapping[str, Json]:
    """Convert a condition: ``|`` before it for one of several, ``!`` for its opposite."""
    kind = "Conditions" if name.startswith("Condition") else "Asserts"
    triggers, rest = text.startswith("|"), text.removeprefix("|")
    return {kind: [[name, triggers, rest.startswith("!"), rest.removeprefix("!")]] if text else []}


def _limit(parse: Callable[[str], Json]) -> Converter:
    """Return a converter for a limit of processes, ``SOFT:HARD`` or one for both."""

    def parse_one(text: str) -> Json:
        return INFINITY if text == INFINITY else parse(text)

    def converter(name: str, text: str) -> Mapping[str, Json]:
        soft, separator, hard = text.partition(":")
        first = parse_one(soft)
        second = parse_one(hard) if separator else first
        if second != INFINITY and (first == INFINITY or first > second):
            raise ValueError(f"{text!r} begins with the larger one: it is SOFT:HARD")
        return {name: second, f"{name}Soft": first}

    return converter


def _seconds(text: str) -> Json:
    usec = parse_span(text)
    return INFINITY if usec is None else -(-usec // 1_000_000)


def _microseconds(text: str) -> Json:
    if text.isascii() and text.isdecimal():  # without a unit
        return parse_number(text)
    usec = parse_span(text)
    return INFINITY if usec is None else usec


def _nice_limit(text: str) -> int:
    if text[:1] in {"+", "-"}:  # a nice level, not the limit that stands for it (getrlimit(2))
        return 20 - _integer(-20, 19)(text)
    return _integer(0, 40)(text)


def _as_json(name: str, text: str) -> Mapping[str, Json]:
    raise ValueError(f"{text!r}: {name} is not taken as a text, only as it goes over D-Bus, [[…], …]")


LISTS: Final = frozenset(
    {"EnvironmentFile", "SetCredential", "SetCredentialEncrypted", "LoadCredential", "LoadCredentialEncrypted",
     "LogExtraFields", "LogFilterPatterns", "BindPaths", "BindReadOnlyPaths", "TemporaryFileSystem", "OpenFile",
     "RefreshOnReload", "ExecStartPre", "ExecStartPost", "ExecReload", "ExecReloadPost", "ExecStop", "ExecStopPost"}
)  # fmt: skip
"""Properties that are lists of something else than texts."""

_CONDITIONS: Final = (
    "Architecture", "Firmware", "Virtualization", "Host", "Fraction", "KernelCommandLine", "KernelVersion", "Version",
    "Credential", "Security", "Capability", "ACPower", "NeedsUpdate", "FirstBoot", "PathExists", "PathExistsGlob",
    "PathIsDirectory", "PathIsSymbolicLink", "PathIsMountPoint", "PathIsReadWrite", "PathIsEncrypted", "PathIsSocket",
    "DirectoryNotEmpty", "FileNotEmpty", "FileIsExecutable", "User", "Group", "ControlGroupController", "CPUs",
    "Memory", "Environment", "CPUFeature", "OSRelease", "MachineTag", "MemoryPressure", "CPUPressure", "IOPressure",
    "KernelModuleLoaded",
)  # fmt: skip

TABLE: Final[Mapping[str, Converter]] = {
    # execute_properties
    **dict.fromkeys(
        ("User", "Group", "UtmpIdentifier", "UtmpMode", "PAMName", "TTYPath", "WorkingDirectory", "RootDirectory",
         "SyslogIdentifier", "ProtectSystem", "ProtectHome", "SELinuxContext", "RootImage", "RootVerity", "RootMStack",
         "Personality", "KeyringMode", "ProtectProc", "ProcSubset", "NetworkNamespacePath", "UserNamespacePath",
         "IPCNamespacePath", "LogNamespace", "RootImagePolicy", "MountImagePolicy", "ExtensionImagePolicy",
         "PrivatePIDs", "PrivateBPF", "BPFDelegateCommands", "BPFDelegateMaps", "BPFDelegatePrograms",
         "BPFDelegateAttachments", "MemoryTHP"),
        text_as_it_is,
    ),
    **dict.fromkeys(
        ("IgnoreSIGPIPE", "TTYVHangup", "TTYReset", "TTYVTDisallocate", "PrivateDevices", "PrivateNetwork",
         "PrivateMounts", "PrivateIPC", "NoNewPrivileges", "SyslogLevelPrefix", "MemoryDenyWriteExecute",
         "RestrictRealtime", "DynamicUser", "RemoveIPC", "ProtectKernelTunables", "ProtectKernelModules",
         "ProtectKernelLogs", "ProtectClock", "MountAPIVFS", "BindLogSockets", "CPUSchedulingResetOnFork",
         "LockPersonality", "MemoryKSM", "RestrictSUIDSGID", "RootEphemeral", "SetLoginEnvironment",
         "StateDirectoryAccounting", "CacheDirectoryAccounting", "LogsDirectoryAccounting"),
        boolean,
    ),
    **dict.fromkeys(
        ("ReadWriteDirectories", "ReadOnlyDirectories", "InaccessibleDirectories", "ReadWritePaths", "ReadOnlyPaths",
         "InaccessiblePaths", "ExecPaths", "NoExecPaths", "ExtensionDirectories", "ConfigurationDirectory",
         "SupplementaryGroups", "SystemCallArchitectures"),
        words,
    ),
    "ExecSearchPath": parsed(lambda text: split_words(text, f":{WHITESPACE}")),
    **dict.fromkeys(("SyslogLevel", "LogLevelMax"), parsed(names(_LEVELS, "log level", end=8))),
    "SyslogFacility": parsed(names(_FACILITIES, "facility", end=128)),
    "SecureBits": parsed(_union(names(_SECURE_BITS, "secure bit"))),
    "CPUSchedulingPolicy": parsed(names(_POLICIES, "policy", end=2**31)),
    "CPUSchedulingPriority": parsed(_integer(0, 99)),
    "OOMScoreAdjust": parsed(_integer(-1000, 1000)),
    "CoredumpFilter": parsed(_union(_dump_filter)),
    "Nice": parsed(_integer(-20, 19)),
    "SystemCallErrorNumber": parsed(_system_call_error),
    "IOSchedulingClass": parsed(names(_IO_CLASSES, "class", end=8)),
    "IOSchedulingPriority": parsed(_integer(0, 7)),
    **dict.fromkeys(
        ("StateDirectoryMode", "CacheDirectoryMode", "LogsDirectoryMode", "ConfigurationDirectoryMode", "UMask"),
        parsed(_mode),
    ),
    "TimerSlackNSec": parsed(_nanoseconds),
    "LogRateLimitIntervalSec": span,
    **dict.fromkeys(("LogRateLimitBurst", "TTYRows", "TTYColumns"), number),
    "MountFlags": parsed(names(_PROPAGATIONS, "propagation")),
    **dict.fromkeys(
        ("Environment", "UnsetEnvironment", "PassEnvironment"), parsed(lambda text: split_words(text, unescape=True))
    ),
    "EnvironmentFile": _environment_file,
    **dict.fromkeys(("SetCredential", "SetCredentialEncrypted"), _content),
    **dict.fromkeys(("LoadCredential", "LoadCredentialEncrypted"), _credential),
    "ImportCredential": _imported_credential,
    "LogExtraFields": _log_field,
    "LogFilterPatterns": _log_pattern,
    **dict.fromkeys(("StandardInput", "StandardOutput", "StandardError"), _stream),
    "StandardInputText": _input_text,
    "StandardInputData": _input_data,
    **dict.fromkeys(("AppArmorProfile", "SmackProcessLabel"), _unless_missing),
    **dict.fromkeys(("CapabilityBoundingSet", "AmbientCapabilities"), parsed(_capabilities)),
    "CPUAffinity": _cpus,
    "NUMAPolicy": parsed(names(_MEMORY_POLICIES, "policy")),
    "NUMAMask": parsed(_nodes),
    **dict.fromkeys(
        ("RestrictAddressFamilies", "RestrictFileSystems", "SystemCallFilter", "SystemCallLog",
         "RestrictNetworkInterfaces"),
        _allowed,
    ),
    **dict.fromkeys(("RestrictNamespaces", "DelegateNamespaces"), _namespaces),
    **dict.fromkeys(("BindPaths", "BindReadOnlyPaths"), _binds),
    "TemporaryFileSystem": _temporary,
    **dict.fromkeys(("StateDirectory", "CacheDirectory", "LogsDirectory"), _directories),
    "ProtectHostname": _host_name,
    **dict.fromkeys(("PrivateTmp", "ProtectControlGroups", "PrivateUsers"), _extended),
    **dict.fromkeys(("StateDirectoryQuota", "CacheDirectoryQuota", "LogsDirectoryQuota"), _quota),
    **dict.fromkeys(
        ("RootHash", "RootHashSignature", "RootImageOptions", "MountImages", "ExtensionImages", "NFTSet",
         "SocketBindAllow", "SocketBindDeny"),
        _as_json,
    ),
    # the resource limits of rlimit-util.c
    **dict.fromkeys(
        ("LimitFSIZE", "LimitDATA", "LimitSTACK", "LimitCORE", "LimitRSS", "LimitAS", "LimitMEMLOCK", "LimitMSGQUEUE"),
        _limit(parse_size),
    ),
    **dict.fromkeys(
        ("LimitNOFILE", "LimitNPROC", "LimitLOCKS", "LimitSIGPENDING", "LimitRTPRIO"), _limit(parse_number)
    ),
    "LimitCPU": _limit(_seconds),
    "LimitRTTIME": _limit(_microseconds),
    "LimitNICE": _limit(_nice_limit),
    # service_properties
    **dict.fromkeys(
        ("ExitType", "NotifyAccess", "USBFunctionDescriptors", "USBFunctionStrings", "TimeoutStartFailureMode",
         "TimeoutStopFailureMode", "FileDescriptorStorePreserve"),
        text_as_it_is,
    ),
    "LUOSession": words,
    **dict.fromkeys(("PermissionsStartOnly", "RootDirectoryStartOnly", "GuessMainPID"), boolean),
    **dict.fromkeys(
        ("RestartSec", "RestartMaxDelaySec", "RestartRandomizedDelaySec", "TimeoutStartSec", "TimeoutAbortSec",
         "WatchdogSec"),
        span,
    ),
    "TimeoutSec": _timeouts,
    **dict.fromkeys(("FileDescriptorStoreMax", "RestartSteps"), number),
    **dict.fromkeys(
        ("ExecStartPre", "ExecStartPost", "ExecReload", "ExecReloadPost", "ExecStop", "ExecStopPost"), _command
    ),
    **dict.fromkeys(("RestartPreventExitStatus", "RestartForceExitStatus", "SuccessExitStatus"), _statuses),
    "OpenFile": _opened_file,
    "ReloadSignal": parsed(parse_signal),
    "RefreshOnReload": _refreshed,
    # unit_properties
    **{f"{kind}{name}": _condition for kind in ("Condition", "Assert") for name in _CONDITIONS},
}  # fmt: skip
