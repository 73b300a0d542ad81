"""Properties of scopes as systemd-run(1) takes them, ``NAME=VALUE``, to the JSON that moored takes.

The names are those of unit files where these differ from the service manager's (TimeoutStopSec= and
TimeoutStopUSec=); the table was made from bus-unit-util.c of systemd 262 (cgroup_properties, kill_properties,
scope_properties, unit_properties). For everything else the value is JSON: the service knows all the types, this
module only those for which people have a way of writing values that JSON has not.

Pure.
"""

from __future__ import annotations

import ipaddress
import json
import shlex
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from moorage.cli.quantities import (
    INFINITY,
    UINT32_MAX,
    parse_boolean,
    parse_number,
    parse_percent,
    parse_set,
    parse_signal,
    parse_size,
    parse_span,
    set_to_bytes,
)

Json = Any
Converter = Callable[[str, str], tuple[str, Json]]
"""From name and value as written to name and value as the service takes them; raises ValueError."""


def convert(assignments: Iterable[str]) -> dict[str, Json]:
    """Convert properties, ``NAME=VALUE`` each.

    Of several values for one property the last counts; those that are lists are joined, and an empty value drops
    what came before.

    Raises:
        ValueError: one cannot be converted; the message names it.
    """
    properties: dict[str, Json] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or not name.isascii() or not name.isalnum():
            raise ValueError(f"{assignment!r} is not NAME=VALUE")
        try:
            name, value = _convert(name, text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        # Set anew, so that the later of two that mean the same (MemoryMax, MemoryMaxScale) comes later for the service
        # manager too.
        properties[name] = _joined(properties.pop(name, None), value)
    return properties


def convert_values(values: Mapping[str, Json]) -> dict[str, Json]:
    """Convert properties whose values are JSON, but for texts, which are as people write them where that is different.

    Raises:
        ValueError: one cannot be converted; the message names it.
    """
    properties: dict[str, Json] = {}
    for name, value in values.items():
        if isinstance(value, str) and name in _TABLE:
            try:
                name, value = _convert(name, value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        properties[name] = value
    return properties


def _joined(before: Json, value: Json) -> Json:
    match before, value:
        case list(), [first, *_] if not isinstance(
            first, int
        ):  # a list of numbers is bytes, which are one value
            return [*before, *value]
        case _:
            return value


def _convert(name: str, text: str) -> tuple[str, Json]:
    converter = _TABLE.get(name)
    if converter is not None and not text.startswith(("[", "{")):
        return converter(name, text)
    try:
        return name, json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        if converter is not None:
            raise ValueError(f"{text!r} is not JSON, though it begins so") from None
        raise ValueError(
            f'{text!r} is not JSON. It must be for this property: true, 5, \'"text"\', \'["a", "b"]\''
        ) from None


def _refuse_constant(name: str) -> Json:
    raise ValueError(f"{name} is no JSON")  # Python's own idea


def _text(name: str, text: str) -> tuple[str, Json]:
    return name, text


def _boolean(name: str, text: str) -> tuple[str, Json]:
    return name, parse_boolean(text)


def _number(name: str, text: str) -> tuple[str, Json]:
    return name, parse_number(text)


def _words(name: str, text: str) -> tuple[str, Json]:
    return name, shlex.split(text)


def _one(name: str, text: str) -> tuple[str, Json]:
    return name, [text] if text else []


def _span(name: str, text: str) -> tuple[str, Json]:
    usec = parse_span(text)
    return name.removesuffix("Sec") + "USec", INFINITY if usec is None else usec


def _span_or_default(name: str, text: str) -> tuple[str, Json]:
    return _span(name, text or INFINITY)


def _share(name: str, text: str) -> tuple[str, Json]:
    return name, _scale(text)


def _scale(text: str) -> int:
    """Return a share as the service manager takes it: 2³²-1 is all (``UINT32_SCALE_FROM_PERMYRIAD()``)."""
    return (min(parse_percent(text), 10_000) * UINT32_MAX + 5_000) // 10_000


def _limit(name: str, text: str) -> tuple[str, Json]:
    if text == INFINITY:
        return name, INFINITY
    if not text:
        return name, 0 if name in {"MemoryMin", "MemoryLow"} else INFINITY
    if text.endswith("%"):
        return f"{name}Scale", _scale(text)  # of what the machine has, which the service manager knows
    return name, parse_number(text) if name == "TasksMax" else parse_size(text)


def _quota(name: str, text: str) -> tuple[str, Json]:
    del name
    if not text:
        return "CPUQuotaPerSecUSec", INFINITY
    permyriad = parse_percent(text)
    if permyriad == 0:
        raise ValueError("a quota is more than 0%")
    return "CPUQuotaPerSecUSec", permyriad * 100


def _weight(name: str, text: str) -> tuple[str, Json]:
    if text == "idle" and name.endswith("CPUWeight"):
        return name, 0
    return name, parse_number(text) if text else INFINITY


def _set(name: str, text: str) -> tuple[str, Json]:
    return name, set_to_bytes(parse_set(text))


def _signal(name: str, text: str) -> tuple[str, Json]:
    return name, parse_signal(text)


def _delegate(name: str, text: str) -> tuple[str, Json]:
    try:
        return name, parse_boolean(text)
    except ValueError:
        return "DelegateControllers", shlex.split(text)


def _device(name: str, text: str) -> tuple[str, Json]:
    path, _, access = text.partition(" ")
    return name, [[path, access.strip()]] if text else []


def _device_value(parse: Callable[[str], Json], example: str) -> Converter:
    def converter(name: str, text: str) -> tuple[str, Json]:
        path, _, value = text.partition(" ")
        value = value.strip()
        if text and not value:
            raise ValueError(f"{text!r} is not a device and a value, such as {example!r}")
        return name, [[path, parse(value)]] if text else []

    return converter


def _rate(text: str) -> Json:
    return INFINITY if text == INFINITY else parse_size(text, base=1000)


def _latency(name: str, text: str) -> tuple[str, Json]:
    _, value = _device_value(lambda span: _span("", span)[1], "/dev/vda 25ms")(name, text)
    return "IODeviceLatencyTargetUSec", value


def _program(name: str, text: str) -> tuple[str, Json]:
    kind, separator, path = text.partition(":")
    if text and not separator:
        raise ValueError(f"{text!r} is not TYPE:PATH")
    return name, [[kind, path]] if text else []


_NETWORKS: Final[Mapping[str, tuple[str, ...]]] = {
    "any": ("0.0.0.0/0", "::/0"),
    "localhost": ("127.0.0.0/8", "::1/128"),
    "link-local": ("169.254.0.0/16", "fe80::/64"),
    "multicast": ("224.0.0.0/4", "ff00::/8"),
}
"""Words for addresses, of systemd.resource-control(5)."""


def _networks(name: str, text: str) -> tuple[str, Json]:
    networks = [network for word in text.split() for network in _NETWORKS.get(word, (word,))]
    return name, [_network(network) for network in networks]


def _network(text: str) -> Json:
    try:
        # The bits behind the prefix do not matter: the service manager masks them.
        network = ipaddress.ip_interface(text)
    except ValueError:
        raise ValueError(f"{text!r} is no IP address or network, such as 192.0.2.0/24") from None
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    return [int(family), list(network.ip.packed), network.network.prefixlen]


_TABLE: Final[Mapping[str, Converter]] = {
    # cgroup_properties
    **dict.fromkeys(
        ("DevicePolicy", "Slice", "ManagedOOMSwap", "ManagedOOMMemoryPressure", "ManagedOOMPreference",
         "MemoryPressureWatch", "CPUPressureWatch", "IOPressureWatch", "DelegateSubgroup", "CPUSetPartition",
         "BindNetworkInterface"),
        _text,
    ),
    **dict.fromkeys(
        ("CPUAccounting", "MemoryAccounting", "MemoryZSwapWriteback", "IOAccounting", "TasksAccounting",
         "IPAccounting", "CoredumpReceive"),
        _boolean,
    ),
    **dict.fromkeys(("CPUWeight", "StartupCPUWeight", "IOWeight", "StartupIOWeight"), _weight),
    **dict.fromkeys(
        ("AllowedCPUs", "StartupAllowedCPUs", "AllowedMemoryNodes", "StartupAllowedMemoryNodes"), _set
    ),
    **dict.fromkeys(("DisableControllers", "OOMRules"), _words),
    **dict.fromkeys(
        ("MemoryMin", "MemoryLow", "MemoryHigh", "MemoryMax", "MemorySwapMax", "MemoryZSwapMax", "TasksMax"),
        _limit,
    ),
    "ManagedOOMMemoryPressureLimit": _share,
    "Delegate": _delegate,
    "CPUQuota": _quota,
    "DeviceAllow": _device,
    "IODeviceWeight": _device_value(parse_number, "/dev/vda 200"),
    "IODeviceLatencyTargetSec": _latency,
    **dict.fromkeys(("IOReadBandwidthMax", "IOWriteBandwidthMax"), _device_value(_rate, "/dev/vda 10M")),
    **dict.fromkeys(("IOReadIOPSMax", "IOWriteIOPSMax"), _device_value(_rate, "/dev/vda 1K")),
    **dict.fromkeys(("IPAddressAllow", "IPAddressDeny"), _networks),
    **dict.fromkeys(("IPIngressFilterPath", "IPEgressFilterPath"), _one),
    "BPFProgram": _program,
    **dict.fromkeys(("CPUQuotaPeriodSec", "ManagedOOMMemoryPressureDurationSec"), _span_or_default),
    **dict.fromkeys(
        ("MemoryPressureThresholdSec", "CPUPressureThresholdSec", "IOPressureThresholdSec"), _span
    ),
    # kill_properties
    "KillMode": _text,
    **dict.fromkeys(("SendSIGHUP", "SendSIGKILL"), _boolean),
    **dict.fromkeys(("KillSignal", "RestartKillSignal", "FinalKillSignal", "WatchdogSignal"), _signal),
    # scope_properties
    **dict.fromkeys(("OOMPolicy", "User", "Group"), _text),
    **dict.fromkeys(("RuntimeMaxSec", "RuntimeRandomizedExtraSec", "TimeoutStopSec"), _span),
    # unit_properties
    **dict.fromkeys(
        ("Description", "SourcePath", "OnFailureJobMode", "JobTimeoutAction", "JobTimeoutRebootArgument",
         "StartLimitAction", "FailureAction", "SuccessAction", "RebootArgument", "CollectMode"),
        _text,
    ),
    **dict.fromkeys(
        ("StopWhenUnneeded", "RefuseManualStart", "RefuseManualStop", "AllowIsolate", "IgnoreOnIsolate",
         "SurviveFinalKillSignal", "DefaultDependencies"),
        _boolean,
    ),
    **dict.fromkeys(("JobTimeoutSec", "JobRunningTimeoutSec", "StartLimitIntervalSec"), _span),
    "StartLimitBurst": _number,
    **dict.fromkeys(("Documentation", "RequiresMountsFor", "WantsMountsFor", "Markers"), _words),
    # unit_dependency_table of unit-def.c: those that can be set
    **dict.fromkeys(
        ("Requires", "Requisite", "Wants", "BindsTo", "PartOf", "Upholds", "Conflicts", "Before", "After",
         "OnSuccess", "OnFailure", "PropagatesReloadTo", "ReloadPropagatedFrom", "PropagatesStopTo",
         "StopPropagatedFrom", "JoinsNamespaceOf"),
        _words,
    ),
}  # fmt: skip
