"""Files of helpers: what one kind of machine needs beside it and, if wanted, the beginning of its command line.

A file is TOML::

    command = ["qemu-system-x86_64", "-chardev", "socket,id=fs,path=%t/fs.sock"]
    execStop = ["/usr/local/bin/power-down", "%n"]

    [helpers.virtiofsd]
    execStart = ["/usr/libexec/virtiofsd", "--fd=3", "--shared-dir=/srv/%n"]
    sockets = [{ name = "fs.sock", mode = 0o600 }]
    onFailure = "stopMachine"
    properties = { MemoryMax = "512M", NoNewPrivileges = "yes", BindPaths = "/srv/%n:/srv" }

The fields of a helper are those of ``Helper`` in io.moorage.Machine. Values of properties are texts as in a unit file,
or JSON. All texts but names may have specifiers, in the manner of systemd.unit(5):

- ``%n``: name of the machine
- ``%t``: its runtime directory, which has the sockets
- ``%u``: number of the user who registers it
- ``%%``: a percent sign
"""

from __future__ import annotations

import graphlib
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, TypeVar, get_args

import msgspec
from msgspec import Struct

from moorage.cli.address import Address
from moorage.cli.properties.assignments import Signatures, convert_values, without_names
from moorage.cli.properties.display import setting_words
from moorage.names import SUN_PATH_MAX, UnitNames, directory_name
from moorage.similar import did_you_mean, nearest

FILE_BYTES_MAX: Final = 1024 * 1024
"""A larger file, such as a disk image, is given by mistake and is not parsed."""

T = TypeVar("T")


class HelperSocket(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A socket of a helper, as Register takes it."""

    name: str
    type: Literal["stream", "datagram", "seqpacket"] | None = None
    mode: int | None = None


class Helper(Struct, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """A helper, as Register takes it."""

    name: str
    exec_start: list[str]
    type: str | None = None
    sockets: list[HelperSocket] = []
    after: list[str] = []
    on_failure: Literal["ignore", "stopMachine"] | None = None
    restart: str | None = None
    properties: dict[str, Any] = {}


class HelperSet(Struct):
    """Content of a file."""

    command: list[str] = []
    helpers: list[Helper] = []
    exec_stop: list[str] = []


class _File(Struct, rename="camel", forbid_unknown_fields=True):
    command: list[str] = []
    helpers: dict[str, dict[str, Any]] = {}
    exec_stop: list[str] = []


def load(path: str) -> HelperSet:
    """Read a file.

    Raises:
        OSError: it cannot be read.
        ValueError: the content is wrong; the message names the field.
    """
    with open(path, "rb") as stream:
        content = stream.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise ValueError(f"the file is larger than {FILE_BYTES_MAX} bytes")
    return parse(content.decode())


def parse(text: str) -> HelperSet:
    """Parse the content of a file.

    Raises:
        ValueError: the content is wrong; the message names the field.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"the file is not TOML: {error}") from None
    except RecursionError:
        raise ValueError("the file is nested too deeply") from None
    file = _converted(document, _File, "")
    helpers = [_helper(name, table) for name, table in file.helpers.items()]
    return HelperSet(file.command, helpers, file.exec_stop)


def _helper(name: str, table: Mapping[str, Any]) -> Helper:
    where = f"helpers.{name}"
    if "name" in table:
        raise ValueError(f"{where}.name: a helper has the name of its table")
    helper = _converted({"name": name, **table}, Helper, where)
    try:
        msgspec.json.encode(helper)  # TOML has dates, JSON does not
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{where}.properties: {error}") from None
    return helper


def _converted(value: Any, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        # "… - at `$.execStart[0]`"
        reason, _, path = str(error).partition(" - at `$")
        path = path.rstrip("`")
        raise ValueError(
            f"{where}{path}: {reason}{_instead(reason, path, kind)}".removeprefix(".").removeprefix(": ")
        ) from None


_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`")
_NO_VALUE: Final = re.compile(r"Invalid enum value '(.*)'")


def _instead(reason: str, path: str, kind: Any) -> str:
    """Return suggestions for a field that does not exist, or the values that a field may have."""
    structs = {"": kind, ".sockets": HelperSocket}
    if match := _UNKNOWN.fullmatch(reason):
        struct = structs.get(re.sub(r"\[[0-9.]+\]", "", path))
        names = [] if struct is None else [field.encode_name for field in msgspec.structs.fields(struct)]
        near = nearest(match[1], names, most=1)
        if names and not near:
            return f"; choose from {', '.join(names)}"
        return did_you_mean(near)
    if _NO_VALUE.fullmatch(reason):
        above, _, name = re.sub(r"\[[0-9.]+\]", "", path).rpartition(".")
        for field in msgspec.structs.fields(structs.get(above, kind)):
            words = [str(word) for each in get_args(field.type) for word in get_args(each)]
            if field.encode_name == name and words:
                return f"; choose from {', '.join(words)}"
    return ""


def runtime_directory(machine: str, address: Address) -> str:
    """Return where the service at an address puts the runtime directory of a machine.

    The reply of Register has it, too, but then the helpers are already running.
    """
    user = address.manager == "systemctl --user"
    root = os.environ.get("XDG_RUNTIME_DIR", "") if user else "/run"
    return f"{root}/moorage/m/{directory_name(machine)}"


_SPECIFIER: Final = re.compile(r"%(.?)", re.DOTALL)
_SHARE_OR_SPECIFIER: Final = re.compile(r"(?<=[0-9])%(?=\s|\Z)|%(.?)", re.DOTALL)
"""For values of properties, in which ``50%`` is a share."""


def expand(helpers: HelperSet, specifiers: Mapping[str, str], known: Signatures | None) -> HelperSet:
    """Return helpers and commands as they are sent: with specifiers replaced and properties converted.

    Args:
        helpers: of a file.
        specifiers: the text that each letter stands for.
        known: properties of services; None if they are not known, which leaves most properties as they are.

    Raises:
        ValueError: a specifier does not exist, or a property cannot be converted; the message names the field.
    """

    def replaced(text: str) -> str:
        return _SPECIFIER.sub(lambda match: _value(match, specifiers), text)

    def replaced_in_property(text: str) -> str:
        return _SHARE_OR_SPECIFIER.sub(lambda match: _value(match, specifiers), text)

    expanded: list[Helper] = []
    for helper in helpers.helpers:
        where = f"helpers.{helper.name}"
        try:
            command = _in_texts(helper.exec_start, replaced)
            if not command or not os.path.isabs(command[0]):
                raise ValueError("execStart: must begin with the absolute path of a program")
            where += ".properties"
            values = {
                name: _in_texts(value, replaced_in_property) for name, value in helper.properties.items()
            }
            properties = without_names(values) if known is None else convert_values(values, known)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        expanded.append(msgspec.structs.replace(helper, exec_start=command, properties=properties))
    texts: dict[str, list[str]] = {}
    for name, words in (("command", helpers.command), ("execStop", helpers.exec_stop)):
        try:
            texts[name] = _in_texts(words, replaced)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return HelperSet(texts["command"], expanded, texts["execStop"])


def _value(match: re.Match[str], specifiers: Mapping[str, str]) -> str:
    if match[1] in {None, "%"}:
        return "%"
    try:
        return specifiers[match[1]]
    except KeyError:
        known = ", ".join(f"%{letter}" for letter in specifiers)
        raise ValueError(f"there is no specifier {match[0]!r}; choose from {known} and %%") from None


def _in_texts(value: Any, replaced: Callable[[str], str]) -> Any:
    match value:
        case str():
            return replaced(value)
        case [*items]:
            return [_in_texts(item, replaced) for item in items]
        case _:
            return value


def as_sent(helpers: Iterable[Helper]) -> list[dict[str, Any]]:
    """Return helpers as parameters of a call."""
    return [msgspec.to_builtins(helper) for helper in helpers]


def check_sockets(helpers: Iterable[Helper], directory: str) -> None:
    """Check that the paths of all sockets fit into an address.

    Args:
        helpers: of the machine.
        directory: its runtime directory.

    Raises:
        ValueError: a path is too long; the message says by how much, and what to shorten.
    """
    for helper in helpers:
        for socket in helper.sockets:
            path = f"{directory}/{socket.name}"
            if (length := len(os.fsencode(path))) > SUN_PATH_MAX:
                raise ValueError(
                    f"helpers.{helper.name}.sockets: {path} has {length} bytes, but a socket's path may have "
                    f"{SUN_PATH_MAX}: shorten the name of the machine or of the socket by "
                    f"{length - SUN_PATH_MAX}"
                )


def explain(helpers: HelperSet, machine: str, directory: str) -> Iterator[str]:
    """Describe what would be created for a machine, in lines.

    Args:
        helpers: with the specifiers replaced.
        machine: its name.
        directory: its runtime directory.

    Raises:
        ValueError: the order of the helpers is circular, or a socket's path is too long; the message names the field.
    """
    check_sockets(helpers.helpers, directory)
    by_name = {helper.name: helper for helper in helpers.helpers}
    for helper in helpers.helpers:
        if unknown := set(helper.after) - {*by_name}:
            raise ValueError(f"helpers.{helper.name}.after: there is no helper {min(unknown)!r}")
    order = graphlib.TopologicalSorter({helper.name: helper.after for helper in helpers.helpers})
    try:
        names = list(order.static_order())
    except graphlib.CycleError as error:
        raise ValueError(f"after: the order is circular: {' -> '.join(error.args[1])}") from None
    if helpers.command:
        yield f"Command: {shlex.join(helpers.command)} …"
    if helpers.exec_stop:
        yield f"Stop command: {shlex.join(helpers.exec_stop)}"
    if names:
        yield f"Runtime directory: {directory}"
    for name in names:
        yield from _explained(by_name[name], machine, directory)


def _explained(helper: Helper, machine: str, directory: str) -> Iterator[str]:
    yield f"Helper {helper.name}"
    yield f"  Unit: {UnitNames(machine).helper(helper.name)}"
    yield f"  Executes: {shlex.join(helper.exec_start)}"
    for number, socket in enumerate(helper.sockets, 3):
        yield (
            f"  Socket: {directory}/{socket.name}, {socket.type or 'stream'}, mode "
            f"{0o600 if socket.mode is None else socket.mode:04o}, passed as file descriptor {number}"
        )
    if helper.after:
        yield f"  Starts after: {', '.join(helper.after)}"
    if helper.restart not in {None, "no"}:
        yield f"  Restart: {helper.restart}"
    vital = helper.on_failure == "stopMachine"
    yield "  When it ends: the machine is stopped" if vital else "  When it fails: the machine goes on"
    for name, value in helper.properties.items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        yield f"  Property: {'='.join(setting_words(name, text))}"
