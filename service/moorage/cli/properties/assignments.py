"""Properties of scopes and services as systemd-run(1) takes them, ``NAME=VALUE``, to the JSON that moored takes.

The names are those of unit files where these differ from the service manager's (TimeoutStopSec= and
TimeoutStopUSec=); the table was made from bus-unit-util.c of systemd 262 (cgroup_properties, kill_properties,
scope_properties, unit_properties), and what services have beyond that is in :mod:`moorage.cli.service_properties`. For
everything else the value is JSON: the service knows all the types, this
module only those for which people have a way of writing values that JSON has not.

Pure.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from moorage.cli.properties import irregular
from moorage.cli.properties.converters import (
    Converter,
    Json,
    boolean,
    number,
    number_set,
    one,
    parsed,
    span,
    split_words,
    text_as_it_is,
    words,
)
from moorage.cli.properties.quantities import (
    INFINITY,
    parse_boolean,
    parse_number,
    parse_percent,
    parse_signal,
    parse_size,
    scale_of_percent,
)


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
        _add(properties, name, text)
    return properties


def convert_values(values: Mapping[str, Json]) -> dict[str, Json]:
    """Convert properties whose values are JSON, but for those that have a way of writing that people prefer.

    These may be texts; lists of texts, where a property is a list of something else; and, where a span of time is
    meant, numbers of seconds.

    Raises:
        ValueError: one cannot be converted; the message names it.
    """
    properties: dict[str, Json] = {}
    for name, value in values.items():
        if name not in _TABLE:
            properties[name] = value
            continue
        match value:
            case str():
                _add(properties, name, value)
            case int() | float() if _TABLE[name] in _SPANS and not isinstance(value, bool):
                _add(properties, name, str(value))
            case [str(), *_] if name in _LISTS and all(isinstance(item, str) for item in value):
                for item in value:
                    _add(properties, name, item)
            case _:
                properties[name] = value
    return properties


def _add(properties: dict[str, Json], name: str, text: str) -> None:
    try:
        converted = _convert(name, text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    for name, value in converted.items():
        # Set anew, so that the later of two that mean the same (MemoryMax, MemoryMaxScale) comes later for the service
        # manager too.
        properties[name] = _joined(properties.pop(name, None), value)


def _joined(before: Json, value: Json) -> Json:
    match before, value:
        case list(), [first, *_] if not isinstance(
            first, int
        ):  # a list of numbers is bytes, which are one value
            return [*before, *value]
        case _:
            return value


def _convert(name: str, text: str) -> Mapping[str, Json]:
    converter = _TABLE.get(name)
    if converter is not None and not text.startswith(("[", "{")):
        return converter(name, text)
    try:
        return {name: json.loads(text, parse_constant=_refuse_constant)}
    except (ValueError, RecursionError):
        if converter is not None:
            raise ValueError(f"{text!r} is not JSON, though it begins so") from None
        raise ValueError(
            f'{text!r} is not JSON. It must be for this property: true, 5, \'"text"\', \'["a", "b"]\''
        ) from None


def _refuse_constant(name: str) -> Json:
    raise ValueError(f"{name} is no JSON")  # Python's own idea


def _span_or_default(name: str, text: str) -> Mapping[str, Json]:
    return span(name, text or INFINITY)


def _limit(name: str, text: str) -> Mapping[str, Json]:
    if text == INFINITY:
        return {name: INFINITY}
    if not text:
        return {name: 0 if name in {"MemoryMin", "MemoryLow"} else INFINITY}
    if text.endswith("%"):
        return {
            f"{name}Scale": scale_of_percent(text)
        }  # of what the machine has, which the service manager knows
    return {name: parse_number(text) if name == "TasksMax" else parse_size(text)}


def _quota(name: str, text: str) -> Mapping[str, Json]:
    del name
    if not text:
        return {"CPUQuotaPerSecUSec": INFINITY}
    permyriad = parse_percent(text)
    if permyriad == 0:
        raise ValueError("a quota is more than 0%")
    return {"CPUQuotaPerSecUSec": permyriad * 100}


def _weight(name: str, text: str) -> Mapping[str, Json]:
    if text == "idle" and name.endswith("CPUWeight"):
        return {name: 0}
    return {name: parse_number(text) if text else INFINITY}


def _delegate(name: str, text: str) -> Mapping[str, Json]:
    try:
        return {name: parse_boolean(text)}
    except ValueError:
        return {"DelegateControllers": split_words(text)}


def _device(name: str, text: str) -> Mapping[str, Json]:
    path, _, access = text.partition(" ")
    return {name: [[path, access.strip()]] if text else []}


def _device_value(parse: Callable[[str], Json], example: str) -> Converter:
    def converter(name: str, text: str) -> Mapping[str, Json]:
        path, _, value = text.partition(" ")
        value = value.strip()
        if text and not value:
            raise ValueError(f"{text!r} is not a device and a value, such as {example!r}")
        return {name: [[path, parse(value)]] if text else []}

    return converter


def _rate(text: str) -> Json:
    return INFINITY if text == INFINITY else parse_size(text, base=1000)


_with_span: Final = _device_value(lambda text: span("", text)["USec"], "/dev/vda 25ms")


def _latency(name: str, text: str) -> Mapping[str, Json]:
    del name
    return _with_span("IODeviceLatencyTargetUSec", text)


def _program(name: str, text: str) -> Mapping[str, Json]:
    kind, separator, path = text.partition(":")
    if text and not separator:
        raise ValueError(f"{text!r} is not TYPE:PATH")
    return {name: [[kind, path]] if text else []}


_NETWORKS: Final[Mapping[str, tuple[str, ...]]] = {
    "any": ("0.0.0.0/0", "::/0"),
    "localhost": ("127.0.0.0/8", "::1/128"),
    "link-local": ("169.254.0.0/16", "fe80::/64"),
    "multicast": ("224.0.0.0/4", "ff00::/8"),
}
"""Words for addresses, of systemd.resource-control(5)."""


def _networks(name: str, text: str) -> Mapping[str, Json]:
    networks = [network for word in text.split() for network in _NETWORKS.get(word, (word,))]
    return {name: [_network(network) for network in networks]}


def _network(text: str) -> Json:
    try:
        # The bits behind the prefix do not matter: the service manager masks them.
        network = ipaddress.ip_interface(text)
    except ValueError:
        raise ValueError(f"{text!r} is no IP address or network, such as 192.0.2.0/24") from None
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    return [int(family), list(network.ip.packed), network.network.prefixlen]


_TABLE: Final[Mapping[str, Converter]] = {
    **irregular.TABLE,
    # cgroup_properties
    **dict.fromkeys(
        ("DevicePolicy", "Slice", "ManagedOOMSwap", "ManagedOOMMemoryPressure", "ManagedOOMPreference",
         "MemoryPressureWatch", "CPUPressureWatch", "IOPressureWatch", "DelegateSubgroup", "CPUSetPartition",
         "BindNetworkInterface"),
        text_as_it_is,
    ),
    **dict.fromkeys(
        ("CPUAccounting", "MemoryAccounting", "MemoryZSwapWriteback", "IOAccounting", "TasksAccounting",
         "IPAccounting", "CoredumpReceive"),
        boolean,
    ),
    **dict.fromkeys(("CPUWeight", "StartupCPUWeight", "IOWeight", "StartupIOWeight"), _weight),
    **dict.fromkeys(
        ("AllowedCPUs", "StartupAllowedCPUs", "AllowedMemoryNodes", "StartupAllowedMemoryNodes"), number_set
    ),
    **dict.fromkeys(("DisableControllers", "OOMRules"), words),
    **dict.fromkeys(
        ("MemoryMin", "MemoryLow", "MemoryHigh", "MemoryMax", "MemorySwapMax", "MemoryZSwapMax", "TasksMax"),
        _limit,
    ),
    "ManagedOOMMemoryPressureLimit": parsed(scale_of_percent),
    "Delegate": _delegate,
    "CPUQuota": _quota,
    "DeviceAllow": _device,
    "IODeviceWeight": _device_value(parse_number, "/dev/vda 200"),
    "IODeviceLatencyTargetSec": _latency,
    **dict.fromkeys(("IOReadBandwidthMax", "IOWriteBandwidthMax"), _device_value(_rate, "/dev/vda 10M")),
    **dict.fromkeys(("IOReadIOPSMax", "IOWriteIOPSMax"), _device_value(_rate, "/dev/vda 1K")),
    **dict.fromkeys(("IPAddressAllow", "IPAddressDeny"), _networks),
    **dict.fromkeys(("IPIngressFilterPath", "IPEgressFilterPath"), one),
    "BPFProgram": _program,
    **dict.fromkeys(("CPUQuotaPeriodSec", "ManagedOOMMemoryPressureDurationSec"), _span_or_default),
    **dict.fromkeys(
        ("MemoryPressureThresholdSec", "CPUPressureThresholdSec", "IOPressureThresholdSec"), span
    ),
    # kill_properties
    "KillMode": text_as_it_is,
    **dict.fromkeys(("SendSIGHUP", "SendSIGKILL"), boolean),
    **dict.fromkeys(("KillSignal", "RestartKillSignal", "FinalKillSignal", "WatchdogSignal"), parsed(parse_signal)),
    # scope_properties
    **dict.fromkeys(("OOMPolicy", "User", "Group"), text_as_it_is),
    **dict.fromkeys(("RuntimeMaxSec", "RuntimeRandomizedExtraSec", "TimeoutStopSec"), span),
    # unit_properties
    **dict.fromkeys(
        ("Description", "SourcePath", "OnFailureJobMode", "JobTimeoutAction", "JobTimeoutRebootArgument",
         "StartLimitAction", "FailureAction", "SuccessAction", "RebootArgument", "CollectMode"),
        text_as_it_is,
    ),
    **dict.fromkeys(
        ("StopWhenUnneeded", "RefuseManualStart", "RefuseManualStop", "AllowIsolate", "IgnoreOnIsolate",
         "SurviveFinalKillSignal", "DefaultDependencies"),
        boolean,
    ),
    **dict.fromkeys(("JobTimeoutSec", "JobRunningTimeoutSec", "StartLimitIntervalSec"), span),
    "StartLimitBurst": number,
    **dict.fromkeys(("Documentation", "RequiresMountsFor", "WantsMountsFor", "Markers"), words),
    # unit_dependency_table of unit-def.c: those that can be set
    **dict.fromkeys(
        ("Requires", "Requisite", "Wants", "BindsTo", "PartOf", "Upholds", "Conflicts", "Before", "After",
         "OnSuccess", "OnFailure", "PropagatesReloadTo", "ReloadPropagatedFrom", "PropagatesStopTo",
         "StopPropagatedFrom", "JoinsNamespaceOf"),
        words,
    ),
}  # fmt: skip

_SPANS: Final = frozenset({span, _span_or_default})

_LISTS: Final = irregular.LISTS | {
    "DeviceAllow", "IODeviceWeight", "IODeviceLatencyTargetSec", "IOReadBandwidthMax", "IOWriteBandwidthMax",
    "IOReadIOPSMax", "IOWriteIOPSMax", "IPAddressAllow", "IPAddressDeny", "BPFProgram",
}  # fmt: skip
"""Properties that are lists of something else than texts."""
