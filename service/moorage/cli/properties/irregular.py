"""Properties whose written form does not follow from their D-Bus type.

Taken from bus-unit-util.c of systemd 262. The names of numbers are those of the sources of systemd 262 and of the
kernel's headers.

Pure.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from typing import Final

from moorage.cli.properties.converters import (
    NUMBERS,
    Converter,
    Json,
    decode,
    integer,
    limit,
    list_of,
    names,
    parse_microseconds,
    parse_mode,
    parse_numbers,
    parsed,
    soft_and_hard,
    span,
)
from moorage.cli.properties.words import WHITESPACE, first_word, split_words, unescape
from moorage.quantities import (
    INFINITY,
    UINT64_MAX,
    parse_boolean,
    parse_number,
    parse_percent,
    parse_span,
    scale_of_percent,
)

_SECCOMP_KILL: Final = 2**31 - 2
"""SECCOMP_ERROR_NUMBER_KILL of seccomp-util.h."""

_LEVELS: Final = {
    "emerg": 0, "alert": 1, "crit": 2, "err": 3, "warning": 4, "notice": 5, "info": 6, "debug": 7
}  # fmt: skip
_FACILITIES: Final = {
    **{
        name: number
        for number, name in enumerate(
            ("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp")
        )
    },
    **{f"local{number}": 16 + number for number in range(8)},
}  # fmt: skip
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
_OPEN_FLAGS: Final = {"read-only": 1, "append": 2, "truncate": 4, "graceful": 8}


def _union(parse: Callable[[str], int]) -> Callable[[str], int]:
    """Return a parser for words that each stand for bits."""

    def parse_all(text: str) -> int:
        bits = 0
        for word in split_words(text):
            bits |= parse(word)
        return bits

    return parse_all


# -- of control groups ----------------------------------------------------------------------------------------------


def _weight(name: str, text: str) -> Mapping[str, Json]:
    if text == "idle" and name.endswith("CPUWeight"):
        return {name: 0}
    return {name: parse_number(text) if text else INFINITY}


def _quota(name: str, text: str) -> Mapping[str, Json]:
    del name
    if not text:
        return {"CPUQuotaPerSecUSec": INFINITY}
    permyriad = parse_percent(text)
    if permyriad == 0:
        raise ValueError("a quota must be more than 0%")
    return {"CPUQuotaPerSecUSec": permyriad * 100}


def _span_or_default(name: str, text: str) -> Mapping[str, Json]:
    return span(name, text or INFINITY)


def _delegate(name: str, text: str) -> Mapping[str, Json]:
    try:
        return {name: parse_boolean(text)}
    except ValueError:
        return {"DelegateControllers": split_words(text)}


def _parse_device(text: str) -> Json:
    path, _, access = text.partition(" ")
    return [path, access.strip()]


def _parse_program(text: str) -> Json:
    kind, separator, path = text.partition(":")
    if not separator:
        raise ValueError(f"{text!r} is not TYPE:PATH")
    return [kind, path]


# -- of processes ---------------------------------------------------------------------------------------------------

_NSEC: Final = re.compile(r"\s*([0-9]+)(?:nsec|ns|)\s*")


def _parse_nanoseconds(text: str) -> Json:
    if (match := _NSEC.fullmatch(text)) is not None:  # a number without a unit is in ns
        return parse_number(match[1])
    usec = parse_span(text)
    return INFINITY if usec is None else usec * 1000


def _parse_seconds(text: str) -> Json:
    usec = parse_span(text)
    return INFINITY if usec is None else -(-usec // 1_000_000)


def _parse_nice_limit(text: str) -> int:
    if text[:1] in {"+", "-"}:  # a nice level, not the limit that stands for it (getrlimit(2))
        return 20 - integer(-20, 19)(text)
    return integer(0, 40)(text)


def _parse_dumped(text: str) -> int:
    if re.fullmatch(r"(?:0x)?[0-9a-fA-F]{1,16}", text) is not None:
        return int(text, 16)
    return names(_DUMPED, "kind of memory")(text)


def _parse_capability(text: str) -> int:
    name = text.lower().removeprefix("cap_")
    if name in _CAPABILITIES:
        return 1 << _CAPABILITIES.index(name)
    if re.fullmatch(r"[0-9]{1,2}", text) is not None and int(text) <= _CAPABILITIES_MAX:
        return 1 << int(text)
    raise ValueError(f"there is no capability {text!r}")


def _parse_capabilities(text: str) -> int:
    bits = _union(_parse_capability)(text.removeprefix("~"))
    return bits ^ UINT64_MAX if text.startswith("~") else bits


def _namespaces(name: str, text: str) -> Mapping[str, Json]:
    restricted = name == "RestrictNamespaces"  # its bits are those that stay permitted
    every = sum(_NAMESPACES.values())
    if name == "DelegateNamespaces":
        every &= ~_NAMESPACES["user"]
    try:
        return {name: every if parse_boolean(text) != restricted else 0}
    except ValueError:
        flags = _union(names(_NAMESPACES, "namespace"))(text.removeprefix("~"))
        return {name: ~flags & every if text.startswith("~") else flags}


def _parse_error_number(text: str) -> int:
    if text == "kill":
        return _SECCOMP_KILL
    numbers = {name: number for number, name in errno.errorcode.items()}
    if text in numbers:
        return numbers[text]
    try:
        return integer(0, 4095)(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither an error such as EPERM nor 'kill'") from None


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


def _parse_credential(text: str) -> Json:
    """Parse a credential with its source, ``ID[:PATH]``."""
    id_, _, path = text.partition(":")
    return [id_, path or id_]


def _imported_credential(name: str, text: str) -> Mapping[str, Json]:
    pattern, separator, renamed = text.partition(":")
    if separator:
        return {f"{name}Ex": [[pattern, renamed]]}
    return {name: [text] if text else []}


def _parse_pattern(text: str) -> Json:
    return [not text.startswith("~"), text.removeprefix("~")]


def _parse_temporary(text: str) -> Json:
    return [[path, options] for path, _, options in (word.partition(":") for word in split_words(text))]


def _cpus(name: str, text: str) -> Mapping[str, Json]:
    return {"CPUAffinityFromNUMA": True} if text == "numa" else NUMBERS(name, text)


def _parse_nodes(text: str) -> Json:
    if text == "all":
        raise ValueError("'all' depends on the host: give the numbers")
    return parse_numbers(text)


# -- of services ----------------------------------------------------------------------------------------------------


def _timeouts(name: str, text: str) -> Mapping[str, Json]:
    del name
    return {**span("TimeoutStartSec", text), **span("TimeoutStopSec", text)}


def _parse_opened_file(text: str) -> Json:
    """Parse a file to be opened, ``PATH[:NAME[:OPTIONS]]``."""
    path, end, rest = first_word(text, ":", unescape=True)
    given, _, options = first_word(rest, ":", unescape=True) if end else ("", "", "")
    flags = 0
    for option in filter(None, options.split(",")):
        flags |= names(_OPEN_FLAGS, "option")(option)
    return [path, given or path.rpartition("/")[2], flags]


def _parse_refreshed(text: str) -> Json:
    return [[text.startswith("~"), word] for word in split_words(text.removeprefix("~"))]


def condition(name: str, text: str) -> Mapping[str, Json]:
    """Convert a condition or an assertion: ``|`` precedes one of several, ``!`` negates it."""
    kind = "Conditions" if name.startswith("Condition") else "Asserts"
    triggers, rest = text.startswith("|"), text.removeprefix("|")
    return {kind: [[name, triggers, rest.startswith("!"), rest.removeprefix("!")]] if text else []}


ALIASES: Final[Mapping[str, str]] = {
    "CPUQuota": "CPUQuotaPerSecUSec",
    "EnvironmentFile": "EnvironmentFiles",
    "StandardInputText": "StandardInputData",
    "TimeoutSec": "TimeoutStartUSec",
}
"""Settings that the service manager has under another name, which does not follow from theirs."""

TABLE: Final[Mapping[str, Converter]] = {
    # of control groups
    **dict.fromkeys(("CPUWeight", "StartupCPUWeight", "IOWeight", "StartupIOWeight"), _weight),
    "CPUQuota": _quota,
    **dict.fromkeys(("CPUQuotaPeriodSec", "ManagedOOMMemoryPressureDurationSec"), _span_or_default),
    "ManagedOOMMemoryPressureLimit": parsed(scale_of_percent),
    "TasksMax": limit(parse_number),
    "Delegate": _delegate,
    "DeviceAllow": list_of(_parse_device),
    "BPFProgram": list_of(_parse_program),
    **dict.fromkeys(("IPIngressFilterPath", "IPEgressFilterPath"), list_of(str)),
    # of processes
    "ExecSearchPath": parsed(lambda text: split_words(text, f":{WHITESPACE}")),
    **dict.fromkeys(("SyslogLevel", "LogLevelMax"), parsed(names(_LEVELS, "log level", end=8))),
    "SyslogFacility": parsed(names(_FACILITIES, "facility", end=128)),
    "SecureBits": parsed(_union(names(_SECURE_BITS, "secure bit"))),
    "CPUSchedulingPolicy": parsed(names(_POLICIES, "policy", end=2**31)),
    "CoredumpFilter": parsed(_union(_parse_dumped)),
    "SystemCallErrorNumber": parsed(_parse_error_number),
    "IOSchedulingClass": parsed(names(_IO_CLASSES, "class", end=8)),
    "UMask": parsed(parse_mode),
    "TimerSlackNSec": parsed(_parse_nanoseconds),
    "MountFlags": parsed(names(_PROPAGATIONS, "propagation")),
    **dict.fromkeys(
        ("Environment", "UnsetEnvironment", "PassEnvironment"), parsed(lambda text: split_words(text, unescape=True))
    ),
    "EnvironmentFile": _environment_file,
    **dict.fromkeys(("LoadCredential", "LoadCredentialEncrypted"), list_of(_parse_credential)),
    "ImportCredential": _imported_credential,
    "LogFilterPatterns": list_of(_parse_pattern),
    **dict.fromkeys(("StandardInput", "StandardOutput", "StandardError"), _stream),
    "StandardInputText": _input_text,
    "StandardInputData": parsed(lambda text: list(decode(text))),
    **dict.fromkeys(("CapabilityBoundingSet", "AmbientCapabilities"), parsed(_parse_capabilities)),
    "CPUAffinity": _cpus,
    "NUMAPolicy": parsed(names(_MEMORY_POLICIES, "policy")),
    "NUMAMask": parsed(_parse_nodes),
    **dict.fromkeys(("RestrictNamespaces", "DelegateNamespaces"), _namespaces),
    "TemporaryFileSystem": parsed(_parse_temporary),
    # resource limits that are not sizes (rlimit-util.c)
    **dict.fromkeys(
        ("LimitNOFILE", "LimitNPROC", "LimitLOCKS", "LimitSIGPENDING", "LimitRTPRIO"), soft_and_hard(parse_number)
    ),
    "LimitCPU": soft_and_hard(_parse_seconds),
    "LimitRTTIME": soft_and_hard(parse_microseconds),
    "LimitNICE": soft_and_hard(_parse_nice_limit),
    # of services
    "TimeoutSec": _timeouts,
    "OpenFile": list_of(_parse_opened_file),
    "RefreshOnReload": parsed(_parse_refreshed),
}  # fmt: skip
