"""Conversion by D-Bus signature: from a value as people write it to the JSON that the service takes.

A property that the service manager learns tomorrow is converted by these rules. Only properties whose values mean
something that their type does not tell are in :mod:`moorage.cli.properties.irregular`.

Pure.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from moorage.cli.properties.words import WHITESPACE, first_word, split_words, unescape
from moorage.quantities import (
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

Json = Any
Parser = Callable[[str], Json]
"""From a value as written to the JSON of one property; raises ValueError."""
Converter = Callable[[str, str], Mapping[str, Json]]
"""From a name and a value as written to the properties that the service takes; raises ValueError."""

_MS_REC: Final = 16384
"""Of mount(2)."""

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
"""Names of exit statuses, systemd.exec(5)."""

_NETWORKS: Final[Mapping[str, tuple[str, ...]]] = {
    "any": ("0.0.0.0/0", "::/0"),
    "localhost": ("127.0.0.0/8", "::1/128"),
    "link-local": ("169.254.0.0/16", "fe80::/64"),
    "multicast": ("224.0.0.0/4", "ff00::/8"),
}
"""Words for addresses, systemd.resource-control(5)."""


def parsed(parse: Parser) -> Converter:
    """Return a converter for a property that keeps its name."""
    return lambda name, text: {name: parse(text)}


def list_of(parse: Parser) -> Converter:
    """Return a converter for a list of which one element is written at a time; an empty value resets the list."""
    return lambda name, text: {name: [parse(text)] if text else []}


def integer(low: int, high: int) -> Callable[[str], int]:
    """Return a parser for integers within a range."""

    def parse(text: str) -> int:
        if re.fullmatch(r"[+-]?[0-9]{1,20}", text) is None or not low <= int(text) <= high:
            raise ValueError(f"{text!r} is not a number from {low} to {high}")
        return int(text)

    return parse


def or_infinity(parse: Parser) -> Parser:
    """Return a parser that also takes "infinity"."""
    return lambda text: INFINITY if text == INFINITY else parse(text)


def names(table: Mapping[str, int], what: str, *, end: int | None = None) -> Callable[[str], int]:
    """Return a parser for names that stand for numbers; numbers below `end` are taken as well."""

    def parse(text: str) -> int:
        if text in table:
            return table[text]
        if end is not None and text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < end:
            return int(text)
        raise ValueError(f"{text!r} is not a {what}: choose from {', '.join(table)}")

    return parse


def parse_mode(text: str) -> int:
    """Parse a file mode, which is octal.

    Raises:
        ValueError: the text is not one.
    """
    if re.fullmatch(r"[0-7]{1,8}", text) is None or int(text, 8) > 0o7777:
        raise ValueError(f"{text!r} is not a file mode such as 0750")
    return int(text, 8)


def parse_microseconds(text: str) -> Json:
    """Parse a span of time; a number without a unit is in µs.

    Raises:
        ValueError: the text is not one.
    """
    if text.isascii() and text.isdecimal():
        return parse_number(text)
    return _usec(text)


def _usec(text: str) -> Json:
    usec = parse_span(text)
    return INFINITY if usec is None else usec


def parse_numbers(text: str) -> list[int]:
    """Parse a set of CPUs or memory nodes to the bitmap that the service manager takes.

    Raises:
        ValueError: the text is not one.
    """
    return set_to_bytes(parse_set(text))


def decode(text: str) -> bytes:
    """Decode base64, in which white space is skipped.

    Raises:
        ValueError: the text is not base64.
    """
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{text!r} is not base64") from None


def span(name: str, text: str) -> Mapping[str, Json]:
    """Convert a span of time that is called ``…Sec`` in unit files and ``…USec`` on D-Bus."""
    return {f"{name.removesuffix('Sec')}USec": _usec(text)}


def device_span(name: str, text: str) -> Mapping[str, Json]:
    """Convert a span of time for a device, such as ``/dev/vda 25ms``."""
    return _of_device(_usec)(f"{name.removesuffix('Sec')}USec", text)


def limit(parse: Callable[[str], int]) -> Converter:
    """Return a converter for a limit that may be a share of what the host has, which the service manager knows."""

    def converter(name: str, text: str) -> Mapping[str, Json]:
        if not text:
            return {name: 0 if name.endswith(("Min", "Low")) else INFINITY}
        if text.endswith("%"):
            return {f"{name}Scale": scale_of_percent(text)}
        return {name: or_infinity(parse)(text)}

    return converter


def soft_and_hard(parse: Parser) -> Converter:
    """Return a converter for a resource limit, ``SOFT:HARD`` or one value for both (setrlimit(2))."""

    def converter(name: str, text: str) -> Mapping[str, Json]:
        soft, separator, hard = text.partition(":")
        first = or_infinity(parse)(soft)
        second = or_infinity(parse)(hard) if separator else first
        if second != INFINITY and (first == INFINITY or first > second):
            raise ValueError(f"{text!r} has the larger limit first: write SOFT:HARD")
        return {name: second, f"{name}Soft": first}

    return converter


def extended(signature: str) -> Converter:
    """Return a converter for a property that takes yes or no, and more under another name.

    Args:
        signature: of the property with that name, ``…Ex``.
    """

    def converter(name: str, text: str) -> Mapping[str, Json]:
        try:
            return {name: parse_boolean(text)}
        except ValueError:
            if signature != "(ss)":
                return {f"{name}Ex": text}
        how, separator, what = text.partition(":")
        if separator and not what:
            raise ValueError(f"nothing follows the colon in {text!r}")
        return {f"{name}Ex": [how, what]}

    return converter


def directories(name: str, text: str) -> Mapping[str, Json]:
    """Convert directories, ``NAME[:SYMLINK[:FLAGS]]`` each."""
    plain: list[Json] = []
    linked: list[Json] = []
    for word in split_words(text):
        directory, _, rest = word.partition(":")
        link, _, flags = rest.partition(":")
        if flags not in {"", "ro"}:
            raise ValueError(f"there is no flag {flags!r}; there is only ro")
        if link or flags:
            linked.append([directory, link, int(flags == "ro")])
        else:
            plain.append(directory)
    converted: dict[str, Json] = {name: plain} if plain else {}
    return {**converted, f"{name}Symlink": linked} if linked else converted


def _of_device(parse: Parser) -> Converter:
    def parse_pair(text: str) -> Json:
        path, _, value = text.partition(" ")
        if not value.strip():
            raise ValueError(f"{text!r} is not a device and a value, such as '/dev/vda 10M'")
        return [path, parse(value.strip())]

    return list_of(parse_pair)


def _parse_rate(text: str) -> Json:
    return or_infinity(lambda size: parse_size(size, base=1000))(text)


def _network(text: str) -> Json:
    try:
        # The bits behind the prefix do not matter: the service manager masks them.
        network = ipaddress.ip_interface(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address or network, such as 192.0.2.0/24") from None
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    return [int(family), list(network.ip.packed), network.network.prefixlen]


def _parse_networks(text: str) -> Json:
    networks = [network for word in text.split() for network in _NETWORKS.get(word, (word,))]
    return [_network(network) for network in networks]


def _parse_permitted(text: str) -> Json:
    """Parse a list of what is permitted or, behind ``~``, of what is forbidden."""
    return [not text.startswith("~"), split_words(text.removeprefix("~"))]


def _parse_unless_missing(text: str) -> Json:
    """Parse something that may be missing if ``-`` precedes it."""
    return [text.startswith("-"), text.removeprefix("-")]


def _parse_quota(text: str) -> Json:
    """Parse a quota of a directory: bytes, a share of the file system, or "off"."""
    if text in {"", "off"}:
        return [UINT64_MAX, UINT32_MAX, "no"]
    if text.endswith("%"):
        return [UINT64_MAX, scale_of_percent(text), "yes"]
    return [parse_size(text), UINT32_MAX, "yes"]


def _binds(text: str) -> Json:
    """Parse paths to be mounted, ``SOURCE[:DESTINATION[:OPTIONS]]`` each."""
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
            raise ValueError(f"there is no option {options!r}; there are rbind and norbind")
        binds.append([source, destination, missing_is_fine, 0 if options == "norbind" else _MS_REC])
    return binds


def _content(name: str, text: str) -> Mapping[str, Json]:
    """Convert a credential with its content, ``ID:DATA``."""
    id_, separator, data = text.partition(":")
    if text and not separator:
        raise ValueError(f"{text!r} is not ID:DATA")
    content = decode(data) if name.endswith("Encrypted") else unescape(data)
    return {name: [[id_, list(content)]] if text else []}


def _command(name: str, text: str) -> Mapping[str, Json]:
    """Convert a command with the prefixes "-", "@" and ":" of systemd.service(5); helpers may not have others."""
    prefix = re.match(r"[-@:+!|]*", text)
    assert prefix is not None
    flags, line = prefix[0], text[prefix.end() :]
    if further := flags.replace("-", "", 1).replace("@", "", 1).replace(":", "", 1):
        raise ValueError(f"the command of a helper cannot have the prefix {further[0]!r}")
    argv = split_words(line, unescape=True)
    path = argv.pop(0) if "@" in flags and argv else argv[0] if argv else ""
    if text and not argv:
        raise ValueError(f"{text!r} is not a command")
    if ":" in flags and argv:
        return {
            f"{name}Ex": [[path, argv, ["no-env-expand", *(["ignore-failure"] if "-" in flags else [])]]]
        }
    return {name: [[path, argv, "-" in flags]] if argv else []}


def _parse_statuses(text: str) -> Json:
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
    return [exits, signals]


def _parse_float(text: str) -> float:
    if re.fullmatch(r"[+-]?[0-9]{1,300}(\.[0-9]{1,300})?", text) is None:
        raise ValueError(f"{text!r} is not a number")
    return float(text)


BY_SIGNATURE: Final[Mapping[str, Converter]] = {
    "b": parsed(parse_boolean),
    **{
        code: parsed(integer(-(1 << bits - 1) if signed else 0, (1 << bits - signed) - 1))
        for code, bits, signed in (("y", 8, False), ("n", 16, True), ("q", 16, False), ("i", 32, True),
                                   ("u", 32, False), ("x", 64, True))
    },
    "t": parsed(or_infinity(parse_size)),
    "d": parsed(_parse_float),
    **dict.fromkeys(("s", "o", "g"), parsed(str)),
    "as": parsed(split_words),
    "(bas)": parsed(_parse_permitted),
    "(bs)": parsed(_parse_unless_missing),
    "(tus)": parsed(_parse_quota),
    "(aiai)": parsed(_parse_statuses),
    "aay": list_of(lambda text: list(text.encode())),
    "a(st)": _of_device(_parse_rate),
    "a(say)": _content,
    "a(iayu)": parsed(_parse_networks),
    "a(ssbt)": parsed(_binds),
    "a(sasb)": _command,
}  # fmt: skip
"""How a value of each type is written. What is missing has no form of its own, and is written as JSON."""

SIGNAL: Final = parsed(parse_signal)
MODE: Final = parsed(parse_mode)
MICROSECONDS: Final = parsed(parse_microseconds)
NUMBERS: Final = parsed(parse_numbers)
