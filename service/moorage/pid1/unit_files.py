"""What the service manager can write into a unit file and read back as what it was given.

PID 1 writes every property of a transient unit into ``/run/systemd/transient`` and reads that file again at each
daemon-reload. It escapes differently from property to property, and some values not at all: a newline in
``SyslogIdentifier=`` starts a further line of the file, in force after the next reload, and a backslash at the end of
``Description=`` makes the next line a part of the description. So that what runs before a reload is what runs after
it, a value that does not survive the file is refused here, whoever asks for it; what is only rounded is rounded here.

The rules are named after the way in which the manager writes a string. The tables have the properties that it writes
in another way than most of their type. They hold what ``tests/system/inside/test_unit_files.py`` finds with systemd
257 and 262: it sets each property to hostile values, and compares it before and after a reload.

Pure: no I/O.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, TypeAlias

from moorage.pid1.errors import InvalidProperty

# Strings

_Part: TypeAlias = "tuple[str, str]"
"""Something that a string must not have: its name and a pattern."""

# C0 controls, DEL and C1 controls. The manager does not take U+0085, U+2028 and U+2029 for the end of a line, but many
# programs that show or edit unit files do.
_CONTROL: Final = ("a control character", r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NUL: Final = ("a NUL", r"\x00")
_ENDS: Final = ("a space at an end, or a backslash at its end", r"\A | \Z|\\\Z")
_ABOVE: Final = (
    'a path with ".."',
    r"\A[-+|!]*/(?:.*/)?\.\.(?:/|\Z)",
)  # it is ignored when the file is read
_PERCENT: Final = ("a percent sign", "%")
_SPACE: Final = ("a space", " ")
_QUOTE: Final = ("a quote", "[\"']")
_DOUBLE_QUOTE: Final = ("a double quote", '"')
_BACKSLASH: Final = ("a backslash", r"\\")
_COLON: Final = ("a colon", ":")
_EQUALS: Final = ("an equals sign", "=")
_TILDE: Final = ("a tilde at its beginning", r"\A~")
_MARK: Final = ('"|" or "!" at its beginning', r"\A[|!]")
_MINUS: Final = ("a minus sign at its beginning", r"\A-")
_NOTHING: Final = ("nothing in it", r"\A\Z")


class Rule:
    """What a string must not have; always a NUL among it, which D-Bus has not either."""

    def __init__(self, *parts: _Part) -> None:
        self._parts = parts

    @cached_property
    def _search(self) -> Callable[[str], object]:
        # Of some twenty rules, a start of the service needs none: compiling all takes as long as ten modules do.
        return re.compile("|".join(pattern for _, pattern in self._parts)).search

    def broken_by(self, text: str) -> str | None:
        """Return a noun phrase for what a string has and must not have, or None."""
        if self._search(text) is None:
            return None
        return next(name for name, pattern in self._parts if re.search(pattern, text) is not None)


Rules: TypeAlias = "Rule | tuple[Rules, ...]"
"""One for all strings in a value, or one for each member of a struct."""

QUOTED: Final = Rule(_NUL)
"""Written in quotes, and escaped as C strings are."""

LINE: Final = Rule(_CONTROL, _ENDS, _ABOVE)
"""Written as the rest of a line; specifiers are escaped."""

PLAIN_LINE: Final = Rule(_CONTROL, _PERCENT, _ENDS, _ABOVE)
"""Written as the rest of a line as it is, though specifiers are expanded when it is read."""

UNIT: Final = Rule(_CONTROL, _SPACE, _QUOTE, _PERCENT)
"""The name of a unit, written between spaces; it may have backslashes."""

PATHS: Final = Rule(_CONTROL, _DOUBLE_QUOTE, _BACKSLASH, _ABOVE)
"""Paths, written in quotes of which nothing is escaped but specifiers."""

PLAIN_WORD: Final = Rule(_CONTROL, _SPACE, _QUOTE, _BACKSLASH, _PERCENT, _ABOVE)
"""Written between spaces as it is."""

_STRINGS: Final[Mapping[str, Rules]] = {
    **dict.fromkeys(
        ("Requires", "Requisite", "Wants", "BindsTo", "PartOf", "Upholds", "Conflicts", "Before", "After", "OnSuccess",
         "OnFailure", "PropagatesReloadTo", "ReloadPropagatedFrom", "PropagatesStopTo", "StopPropagatedFrom",
         "JoinsNamespaceOf"),
        UNIT,
    ),
    "Documentation": Rule(_CONTROL, _ENDS, _SPACE, _QUOTE, _PERCENT),
    **dict.fromkeys(
        ("PIDFile", "TCPCongestion", "RootHashPath", "RootHashSignaturePath", "IPIngressFilterPath",
         "IPEgressFilterPath", "BPFProgram"),
        PLAIN_LINE,
    ),
    **dict.fromkeys(
        ("LoadCredential", "LoadCredentialEncrypted", "ImportCredential", "SetCredential"),
        Rule(_CONTROL, _ENDS, _BACKSLASH, _ABOVE),
    ),
    "ImportCredentialEx": Rule(_CONTROL, _ENDS, _BACKSLASH, _PERCENT, _ABOVE),
    **dict.fromkeys(
        ("ExtensionDirectories", "ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths", "NoExecPaths"),
        PATHS,
    ),
    "ExecSearchPath": Rule(_CONTROL, _ENDS, _COLON, _DOUBLE_QUOTE, _BACKSLASH, _ABOVE),
    **dict.fromkeys(
        ("RuntimeDirectory", "StateDirectory", "CacheDirectory", "LogsDirectory", "ConfigurationDirectory"),
        Rule(_CONTROL, _DOUBLE_QUOTE, _BACKSLASH, _ABOVE, _COLON, _NOTHING),
    ),
    **dict.fromkeys(
        ("RuntimeDirectorySymlink", "StateDirectorySymlink", "CacheDirectorySymlink", "LogsDirectorySymlink"),
        Rule(_CONTROL, _SPACE, _QUOTE, _BACKSLASH, _PERCENT, _ABOVE, _COLON, _NOTHING),
    ),
    **dict.fromkeys(("BindPaths", "BindReadOnlyPaths"), Rule(_CONTROL, _SPACE, _QUOTE, _BACKSLASH, _ABOVE, _COLON)),
    "TemporaryFileSystem": (Rule(_CONTROL, _SPACE, _QUOTE, _BACKSLASH, _ABOVE, _COLON), PLAIN_WORD),
    **dict.fromkeys(
        ("StandardInputFile", "StandardOutputFile", "StandardErrorFile", "StandardOutputFileToAppend",
         "StandardErrorFileToAppend", "StandardOutputFileToTruncate", "StandardErrorFileToTruncate",
         "MemoryPressureWatch", "CPUPressureWatch", "IOPressureWatch"),
        Rule(_CONTROL, _ENDS, _ABOVE, _NOTHING),
    ),
    **dict.fromkeys(("SELinuxContext", "AppArmorProfile", "SmackProcessLabel"), Rule(_CONTROL, _ENDS, _ABOVE, _MINUS)),
    **dict.fromkeys(("Listen", "EnvironmentFiles"), LINE),
    **dict.fromkeys(("Environment", "UnsetEnvironment"), QUOTED),
    **dict.fromkeys(("Conditions", "Asserts"), Rule(_CONTROL, _ENDS, _ABOVE, _MARK)),
    **dict.fromkeys(
        ("XAttrEntryPoint", "XAttrListen", "XAttrAccept"), (Rule(_CONTROL, _ENDS, _ABOVE, _EQUALS), LINE)
    ),
    "OpenFile": Rule(_CONTROL, _SPACE, _QUOTE, _BACKSLASH, _PERCENT, _ABOVE, _COLON, _NOTHING),
    **dict.fromkeys(
        ("ExtensionImages", "MountImages"),
        Rule(_CONTROL, _SPACE, _QUOTE, _BACKSLASH, _PERCENT, _ABOVE, _COLON),
    ),
    "LogFilterPatterns": Rule(_CONTROL, _ENDS, _TILDE),
    **dict.fromkeys(
        ("RestrictNetworkInterfaces", "RestrictAddressFamilies", "RestrictFileSystems", "SystemCallFilter",
         "SystemCallLog"),
        Rule(_CONTROL, _SPACE, _QUOTE, _BACKSLASH, _PERCENT, _TILDE, _NOTHING),
    ),
    "SupplementaryGroups": Rule(_CONTROL, _SPACE, _QUOTE, _BACKSLASH, _PERCENT, _NOTHING),
}  # fmt: skip

_BY_SIGNATURE: Final[Mapping[str, Rules]] = {"s": LINE, "a(sasb)": QUOTED, "a(sasas)": QUOTED}


def rules(name: str, signature: str) -> Rules:
    """Return what the strings in a property must not have."""
    return _STRINGS.get(name) or _BY_SIGNATURE.get(signature, PLAIN_WORD)


# Commands

NO_EXPANSION: Final = "no-env-expand"
"""Flag of a command whose arguments are what they are (the prefix ":" of systemd.service(5))."""

_PROGRAM: Final = Rule(
    _CONTROL,
    ("no slash at its beginning", r"\A(?!/)"),
    ("a slash at its end", r"/\Z"),
    ('a quote, a backslash, or one of "$*?["', r"[\"'\\$*?\[]"),
    _ABOVE,
)
"""What config_parse_exec() does not take as the path of a program, or not back."""


def broken_command(path: str, arguments: Sequence[str], *, expands: bool) -> str | None:
    """Say why the manager could not read a command back.

    Args:
        path: of the program.
        arguments: from the zeroth on.
        expands: variables in the arguments are expanded; not with the flag "no-env-expand".

    Returns:
        A clause; None for a command that it can read back.
    """
    if (what := _PROGRAM.broken_by(path)) is not None:
        return f"the path of the program has {what}"
    if not arguments:
        return "it has no arguments, not even the zeroth"
    # Only the arguments are written in quotes, and for the path if it is the zeroth as soon as it has been simplified.
    if " " in path and (path != arguments[0] or "//" in path or "/./" in path):
        return "the path of the program has a space, and is not the zeroth argument"
    if expands and any("$" in argument for argument in arguments):
        # They are expanded at first, but written as if they were not to be: "$$".
        return (
            f'"$" would change its meaning at the next reload of the manager: use the flag {NO_EXPANSION!r}'
        )
    return None


def _commands(name: str, value: list[tuple[str, list[str], bool | list[str]]]) -> object:
    for number, (path, arguments, flags) in enumerate(value):
        expands = isinstance(flags, bool) or NO_EXPANSION not in flags
        if (reason := broken_command(path, arguments, expands=expands)) is not None:
            raise InvalidProperty(name, f"[{number}]: {reason}")
    return value


# Numbers, and all other values

_MS: Final = 1000
_INFINITY: Final = 2**64 - 1
_TIME_MAX: Final = 2**63
_UINT32_MAX: Final = 2**32 - 1
_HUNDREDTH: Final = 10_000  # of a percent
_NAMESPACES: Final = 0x7E020080  # CLONE_NEW* of all types of namespaces (clone(2))
_USER_NAMESPACE: Final = 0x10000000
_NICE_MAX: Final = 40  # of RLIMIT_NICE (getrlimit(2))
_SIGNALS: Final = range(1, 65)
_HASH_BYTES_MIN: Final = 16
_TOO_LONG: Final = 'longer than a unit file can say, other than by "infinity"'
_RELOAD: Final = "the next reload of the manager"


def _time(name: str, value: int) -> int:
    """Times are written in ms, unless they are shorter than one."""
    if _TIME_MAX <= value < _INFINITY:
        raise InvalidProperty(name, _TOO_LONG)
    return value if value < _MS or value == _INFINITY else value - value % _MS


def _timeout(name: str, value: int) -> int:
    if value == 0:
        raise InvalidProperty(name, f'0 would become "infinity" with {_RELOAD}')
    return _time(name, value)


def _shorter_than(limit: int) -> Callable[[str, int], int]:
    def check(name: str, value: int) -> int:
        if limit <= value < _INFINITY:
            raise InvalidProperty(name, _TOO_LONG)
        return value

    return check


def _devices(name: str, value: list[tuple[str, int]]) -> object:
    """The manager takes a relative path, looks for it in its own directory, and goes on without the limit."""
    for device, _ in value:
        if not device.startswith("/"):
            raise InvalidProperty(name, f"“{device}” is not an absolute path, such as /dev/sda")
    return value


def _latencies(name: str, value: list[tuple[str, int]]) -> object:
    _devices(name, value)
    return [(device, _time(name, latency)) for device, latency in value]


def _mode(name: str, value: int) -> int:
    if value > 0o7777:
        raise InvalidProperty(name, "not the mode of a file")
    return value


QUOTA_STEP_USEC: Final = 100
"""A hundredth of a percent of a second, µs: the finest quota of CPU time that a unit file can hold."""


def _quota(name: str, value: int) -> int:
    """Written in percent with two decimals, which have to fit into an int."""
    if value != _INFINITY and not 100 <= value < 100 * 2**31:
        raise InvalidProperty(name, "not between 0.01 % of one CPU and 214748 CPUs")
    return value if value == _INFINITY else value - value % QUOTA_STEP_USEC


def _scale(name: str, value: int) -> int:
    """Written in percent with two decimals."""
    parts = (value * _HUNDREDTH + _UINT32_MAX // 2) // _UINT32_MAX
    if parts == 0 and value != 0:
        raise InvalidProperty(name, f"less than 0.01 % would become nothing with {_RELOAD}")
    return (parts * _UINT32_MAX + _HUNDREDTH // 2) // _HUNDREDTH


def _namespaces(name: str, value: int) -> int:
    """The types that remain allowed; none at all is written as an empty setting, which lifts the restriction."""
    if not value & _NAMESPACES:
        raise InvalidProperty(name, f"{_RELOAD} would allow all types of namespaces: name at least one")
    return value & _NAMESPACES


def _delegated(name: str, value: int) -> int:
    """With user namespaces among them they are read back as all."""
    value = _namespaces(name, value)
    if value & _USER_NAMESPACE and value != _NAMESPACES:
        raise InvalidProperty(name, f"with user namespaces, {_RELOAD} would delegate all types")
    return value


def _nodes(name: str, value: bytes) -> bytes:
    if value and not any(value):
        raise InvalidProperty(name, "a mask without nodes")
    return value


def _nice(name: str, value: int) -> int:
    if value > _NICE_MAX:
        raise InvalidProperty(name, f"not between 0 and {_NICE_MAX}")
    return value


def _positive(name: str, value: int) -> int:
    if value < 0:
        raise InvalidProperty(name, "negative")
    return value


def _true(name: str, value: object) -> object:
    if value is not True:
        raise InvalidProperty(name, f"false, which it is by default, would become true with {_RELOAD}")
    return value


def _statuses(name: str, value: tuple[list[int], list[int]]) -> object:
    if not all(signal in _SIGNALS for signal in value[1]):
        raise InvalidProperty(name, "[1] has what is not the number of a signal")
    return value


def _rates(name: str, value: list[tuple[str, int]]) -> object:
    _devices(name, value)
    if any(rate == 0 for _, rate in value):
        raise InvalidProperty(name, f"0 would become no limit with {_RELOAD}")
    return value


def _ports(name: str, value: list[tuple[int, int, int, int]]) -> object:
    if any(count == 0 and first != 0 for _, _, count, first in value):
        raise InvalidProperty(name, f"no ports would become all ports with {_RELOAD}")
    return value


def _hash(name: str, value: bytes) -> bytes:
    if 0 < len(value) < _HASH_BYTES_MIN:
        raise InvalidProperty(name, f"less than {_HASH_BYTES_MIN} bytes would be lost with {_RELOAD}")
    return value


def _label(name: str, value: tuple[bool, str]) -> object:
    if value == (True, ""):
        raise InvalidProperty(name, "empty")
    return value


def _credentials(name: str, value: list[tuple[str, bytes]]) -> object:
    if not all(data for _, data in value):
        raise InvalidProperty(name, f"an empty credential would be lost with {_RELOAD}")
    return value


def _lost(name: str, _: object) -> object:
    raise InvalidProperty(name, f"whatever it is, it would be lost with {_RELOAD}")


_LOST_BEFORE: Final[Mapping[str, int]] = dict.fromkeys(
    ("RootImageOptions", "ExtensionImages", "MountImages"), 262
)
"""Properties that older versions write empty, and the first version that is known not to."""

_SECURE_BITS: Final = 0o77  # the older ones do not know SECBIT_NO_CAP_AMBIENT_RAISE by name
_SECURE_BITS_ALL_SINCE: Final = 262


_SETTLED: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    **dict.fromkeys(
        # Written by the name that it has on the bus; not at all; as a string that has to be base64.
        ("MemoryPressureThresholdUSec", "CPUPressureThresholdUSec", "IOPressureThresholdUSec", "NUMAPolicy",
         "SetCredentialEncrypted"),
        _lost,
    ),
    **dict.fromkeys(("TimeoutStartUSec", "TimeoutStopUSec"), _timeout),
    **dict.fromkeys(("LimitCPU", "LimitCPUSoft"), _shorter_than(_INFINITY // 10**6)),
    **dict.fromkeys(("LimitRTTIME", "LimitRTTIMESoft", "TimerSlackNSec"), _shorter_than(_TIME_MAX)),
    "IODeviceLatencyTargetUSec": _latencies,
    "IODeviceWeight": _devices,
    **dict.fromkeys(
        ("SocketMode", "DirectoryMode", "UMask", "RuntimeDirectoryMode", "StateDirectoryMode", "CacheDirectoryMode",
         "LogsDirectoryMode", "ConfigurationDirectoryMode"),
        _mode,
    ),
    "CPUQuotaPerSecUSec": _quota,
    **dict.fromkeys(
        ("ManagedOOMMemoryPressureLimit", "MemoryMinScale", "MemoryLowScale", "MemoryHighScale", "MemoryMaxScale",
         "MemorySwapMaxScale", "MemoryZSwapMaxScale", "TasksMaxScale"),
        _scale,
    ),
    "RestrictNamespaces": _namespaces,
    "DelegateNamespaces": _delegated,
    "NUMAMask": _nodes,
    **dict.fromkeys(("LimitNICE", "LimitNICESoft"), _nice),
    **dict.fromkeys(("MessageQueueMaxMessages", "MessageQueueMessageSize"), _positive),
    "CPUAffinityFromNUMA": _true,
    **dict.fromkeys(("RestartPreventExitStatus", "RestartForceExitStatus", "SuccessExitStatus"), _statuses),
    **dict.fromkeys(
        ("IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax", "BlockIOReadBandwidth",
         "BlockIOWriteBandwidth"),
        _rates,
    ),
    **dict.fromkeys(("SocketBindAllow", "SocketBindDeny"), _ports),
    "RootHash": _hash,
    **dict.fromkeys(("AppArmorProfile", "SmackProcessLabel"), _label),
    "SetCredential": _credentials,
}  # fmt: skip


_APART: Final = (("BlockIOReadBandwidth", "BlockIOWriteBandwidth"),)
"""Pairs of which only the second is read back: it is written with a line before it that empties both."""


def check_together(names: Collection[str]) -> None:
    """Check whether properties that are set at once are all read back.

    Raises:
        InvalidProperty: one of them would not be.
    """
    for lost, other in _APART:
        if lost in names and other in names:
            raise InvalidProperty(lost, f"together with {other}, it would be lost with {_RELOAD}")


def settle(name: str, signature: str, value: Any, version: int) -> Any:
    """Return the value to send for a property, which is the one that is read back.

    Args:
        name: of the property.
        signature: of the value.
        value: as asked for; its strings are checked already.
        version: of the manager.

    Raises:
        InvalidProperty: there is none for what was asked.
    """
    if version < _LOST_BEFORE.get(name, 0):
        return _lost(name, value)
    if name == "SecureBits" and version < _SECURE_BITS_ALL_SINCE and value & ~_SECURE_BITS:
        raise InvalidProperty(name, f"a bit beyond {_SECURE_BITS:#o} would be lost with {_RELOAD}")
    if (function := _SETTLED.get(name)) is not None:
        return function(name, value)
    if signature == "t" and name.endswith("USec"):
        return _time(name, value)
    if signature in ("a(sasb)", "a(sasas)"):
        return _commands(name, value)
    return value
