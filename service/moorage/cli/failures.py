"""What went wrong, in words that say what to do, and as an exit status."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from moorage.cli.address import Address
from moorage.cli.properties.quantities import printable
from moorage.wire.errors import ProtocolError, VarlinkError


class Exit(IntEnum):
    """Exit statuses of moorctl. After Ctrl-C it is 130, as from a shell."""

    OK = 0
    REFUSED = 1
    """The service did not do it, or the process is gone."""
    USAGE = 2
    """Wrong options or values; nothing was asked of the service."""
    NO_SUCH_MACHINE = 3
    PERMISSION_DENIED = 4
    NO_SERVICE = 5
    """There is no connection to the service, or it broke."""
    TIMED_OUT = 6
    NOT_RUN = 125
    """From moorctl run, whose other statuses are those of the command; the same numbers as from env(1)."""
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127


class Failure(Exception):
    """The end of a command: one message, one exit status."""

    def __init__(self, status: Exit, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Words:
    """How an error is told; names of its parameters stand in braces.

    Attributes:
        status: exit status.
        text: what happened.
        without: the same where the error came without one of the parameters.
        hint: what to do; left out where a parameter is missing. {manager}, {journalctl} and {moorctl} are commands
            that speak to the same service manager; parameters are quoted for a shell.
    """

    status: Exit
    text: str
    without: str = ""
    hint: str = ""


_MACHINE: Final = "io.moorage.Machine."
_SERVICE: Final = "org.varlink.service."

_WORDS: Final[Mapping[str, _Words]] = {
    _MACHINE + "NoSuchMachine": _Words(
        Exit.NO_SUCH_MACHINE,
        "There is no machine {name}.",
        without="There is no such machine.",
        hint="List all machines: {moorctl} list",
    ),
    _MACHINE + "MachineExists": _Words(
        Exit.REFUSED,
        "Machine {name} exists already, in {unit}.",
        without="Machine {name} exists already.",
        hint="Stop it first, or take another name: {moorctl} stop {name}",
    ),
    _MACHINE + "UnitNameTaken": _Words(
        Exit.REFUSED,
        "The unit name {unit} is taken: {holder}.",
        hint="Look at it, and stop it or take another name: {manager} status {unit}",
    ),
    _MACHINE + "ProcessGone": _Words(
        Exit.REFUSED, "Process {pid} has ended.", without="The process has ended."
    ),
    _MACHINE + "ProcessNotOwned": _Words(
        Exit.PERMISSION_DENIED, "Process {pid} belongs to user {uid}: it is not yours to register."
    ),
    _MACHINE + "UnitNotOwned": _Words(
        Exit.PERMISSION_DENIED,
        "The process is in {unit}, which is not yours to take it out of.",
        hint="Yours is what runs in a session of yours, or in a service with User= of yours",
    ),
    _MACHINE + "NoSuchProperty": _Words(
        Exit.REFUSED,
        "There is no property {property}{whose} that can be set; the nearest: {names}.",
        without="There is no property {property}{whose} that can be set.",
        hint="Those there are: systemd.scope(5), systemd.resource-control(5), systemd.kill(5);"
        " for helpers also systemd.service(5), systemd.exec(5)",
    ),
    _MACHINE + "InvalidProperty": _Words(Exit.REFUSED, "Property {property}{whose} is refused: {reason}."),
    _MACHINE + "JobFailed": _Words(
        Exit.REFUSED,
        "The job for {unit} ended with '{jobResult}', and the unit with '{unitResult}'.",
        without="The job for {unit} ended with '{jobResult}'.",
        hint="See: {journalctl} --unit {unit}",
    ),
    _MACHINE + "HelperFailed": _Words(
        Exit.REFUSED,
        "Helper {helper} did not start: {unit} ended with '{result}'.",
        without="Helper {helper} did not start.",
        hint="See: {journalctl} --unit {unit}",
    ),
    _MACHINE + "NoSuchHelper": _Words(
        Exit.REFUSED,
        "The machine has no helper {helper}.",
        hint="Its helpers are among what is shown by: {moorctl} status NAME",
    ),
    _MACHINE + "Busy": _Words(Exit.REFUSED, "The service is busy: {operation}.", hint="Try again."),
    _MACHINE + "NotSupported": _Words(Exit.REFUSED, "{what} is not supported: {reason}."),
    _MACHINE + "Timeout": _Words(
        Exit.TIMED_OUT,
        "Helper {helper} was not ready in time. All that was started is taken back.",
        without="It took too long: {operation}.",
        hint="{instead}",
    ),
    _MACHINE + "ManagerUnavailable": _Words(Exit.REFUSED, "The service manager does not do it: {reason}."),
    _SERVICE + "InvalidParameter": _Words(
        Exit.REFUSED, "The service does not accept {option}.", hint="{right}"
    ),
    _SERVICE + "PermissionDenied": _Words(
        Exit.PERMISSION_DENIED,
        "The service does not let you do this.",
        hint="Run it as root, or use the service of your own user manager: moorctl --user",
    ),
    "io.systemd.InteractiveAuthenticationRequired": _Words(
        Exit.PERMISSION_DENIED,
        "The service lets you do this only if an administrator authenticates, or polkit has a rule for you.",
        hint="Run it as root, or use the service of your own user manager: moorctl --user",
    ),
    _SERVICE + "MethodNotFound": _Words(Exit.REFUSED, "The service has no method {method}."),
    _SERVICE + "MethodNotImplemented": _Words(
        Exit.REFUSED, "This version of the service does not have {method} yet."
    ),
    _SERVICE + "InterfaceNotFound": _Words(
        Exit.REFUSED, "The service has no interface {interface}: it is another one."
    ),
    "io.systemd.System": _Words(
        Exit.REFUSED, "The service failed: {message}.", without="The service failed."
    ),
    "io.systemd.Disconnected": _Words(
        Exit.NO_SERVICE,
        "The service hung up before it answered.",
        hint="Its log may tell why: {journalctl} --unit moored.service",
    ),
    "io.systemd.TimedOut": _Words(
        Exit.TIMED_OUT,
        "The service did not answer in time.",
        hint="It may still have been done: {moorctl} list",
    ),
}

_OPTIONS: Final[Mapping[str, str]] = {
    "name": "NAME",
    "vSockCid": "--vsock-cid",
    "ifIndices": "--if-index",
    "leaderFileDescriptor": "--leader or --pidfd",
    "processFileDescriptor": "--pid",
    "controlGroup": "--control-group",
    "invocationId": "--invocation",
    "properties": "--property",
    "helpers": "--helper or --helpers",
    "timeoutUSec": "--timeout",
}
"""Where a parameter has another name on the command line than its own with dashes."""


_ID128: Final = "It has 32 hexadecimal digits."
_RIGHT: Final[Mapping[str, str]] = {
    "name": "A name has 1 to 64 characters of A-Z a-z 0-9 _ . @ \\ : -, and begins with neither . nor -",
    "slice": "It is the name of a slice, such as vms-prod.slice: systemd.slice(5)",
    "id": _ID128,
    "invocationId": _ID128,
    "leaderFileDescriptor": "It must be a process, not a thread, and neither the service manager nor a kernel thread.",
    "controlGroup": "It begins with a slash, and is below /sys/fs/cgroup: see /proc/PID/cgroup",
    "timeoutUSec": "It is 10 minutes at most.",
    "helpers": "There are 64 at most.",
    "name of a helper": "Each has a name of its own, of the characters that names of machines have.",
    "execStart of a helper": "It begins with the absolute path of a program that is there.",
    "after of a helper": "They are names of other helpers, and none waits for itself.",
    "sockets of a helper": "Each has a name of its own that is a file name, and all have the same mode, without rights"
    " beyond 0777.",
    "type of a helper": "There are simple, exec, notify, notify-reload and oneshot.",
    "restart of a helper": "There are those of systemd.service(5), such as on-failure.",
}
"""What would be accepted, by parameter."""


def explain(error: Exception, address: Address, helpers: Sequence[Mapping[str, Any]] = ()) -> Failure:
    """Return the end of a command for what a call raised; an exception that is not expected is raised again.

    Args:
        error: what was raised.
        address: where the service listens.
        helpers: those of the call, as they were sent; an error names them by their place only.
    """
    match error:
        case VarlinkError():
            return _refusal(error.error, error.parameters(), address, helpers)
        case ProtocolError():
            return Failure(
                Exit.NO_SERVICE, f"What answers at {address.path} does not keep to the protocol: {error}"
            )
        case OSError():
            return _unreachable(error, address)
        case _:
            raise error


def _refusal(
    name: str, parameters: Mapping[str, Any], address: Address, helpers: Sequence[Mapping[str, Any]]
) -> Failure:
    values = {key: _shown(value) for key, value in parameters.items() if value is not None}
    quoted = {key: shlex.quote(value) for key, value in values.items()}
    words = _WORDS.get(name, _Words(Exit.REFUSED, ""))
    if "parameter" in values:
        field = re.sub(r"^helpers\[[0-9]+\]\.(\w+).*", r"\1 of a helper", values["parameter"])
        concerned = _helper_field(values["parameter"], helpers)
        values["option"] = concerned or _option(values["parameter"])
        if right := _RIGHT.get(field):
            quoted["right"] = right
    match parameters.get("nearest"):
        case [_, *_] as names:
            values["names"] = ", ".join(map(_shown, names))
        case _:
            pass
    values["whose"] = f" of helper {values['helper']}" if "helper" in values else ""
    if isinstance(number := parameters.get("errno"), int):
        values["message"] = os.strerror(number)
    manager = address.manager or "systemctl"
    quoted |= {
        "manager": manager,
        "journalctl": manager.replace("systemctl", "journalctl"),
        "moorctl": address.moorctl,
    }
    if "helper" not in values:
        quoted["instead"] = f"It may still happen: {address.moorctl} list"
    text = _filled(words.text, values) or _filled(words.without, values)
    if not text:
        text = f"The service answered {printable(name)}: {printable(json.dumps(parameters, default=str))}"
    match parameters.get("log"):
        case [*log]:
            lines = [f"  {_shown(line)}" for line in log]
        case _:
            lines = []
    match parameters.get("differs"):
        case [*names]:
            options = ", ".join(_option(_shown(each)) for each in names)
            lines.append(f"You have registered it before, with another value of {options}.")
        case _:
            pass
    return Failure(words.status, "\n".join(filter(None, [text, *lines, _filled(words.hint, quoted)])))


def _helper_field(parameter: str, helpers: Sequence[Mapping[str, Any]]) -> str:
    """Return a field of a helper in words that name the helper and what was given; empty if it is not one of those."""
    match = re.fullmatch(r"helpers\[([0-9]+)\]\.(.+)", parameter)
    if match is None or int(match[1]) >= len(helpers):
        return ""
    helper = helpers[int(match[1])]
    found: Any = helper
    for key, index in re.findall(r"(\w+)|\[([0-9]+)\]", match[2]):
        try:
            found = found[key or int(index)]
        except (LookupError, TypeError):
            found = None
            break
    given = "" if found is None else f": {_shown(found)}"
    return f"{printable(match[2])} of helper {_shown(helper.get('name'))}{given}"


def _filled(template: str, values: Mapping[str, str]) -> str:
    """Return the text; empty if a value for it is missing."""
    try:
        return template.format_map(values)
    except KeyError:
        return ""


def _shown(value: Any) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value, default=str)).removesuffix(".")


def _option(parameter: str) -> str:
    """Return what a person has typed for a parameter, ``--slice`` for ``slice``."""
    field = re.split(r"[.\[]", parameter, maxsplit=1)[0]
    where = _OPTIONS.get(field) or "--" + re.sub(r"[A-Z]", lambda match: "-" + match[0].lower(), field)
    return f"the value of {where}" + (f" ({printable(parameter)})" if field != parameter else "")


_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_NOT_LISTENING: Final = frozenset({errno.ECONNREFUSED, errno.ENOTSOCK, errno.EPROTOTYPE})


def _unreachable(error: OSError, address: Address) -> Failure:
    reason = os.strerror(error.errno) if error.errno is not None else str(error)
    if error.errno in _NOT_THERE:
        reason = "there is no such socket"
    elif error.errno in _NOT_LISTENING:
        reason = "nobody listens there"
    text = f"Failed to connect to {printable(address.path)}: {reason}."
    if error.errno in {errno.EACCES, errno.EPERM}:
        return Failure(Exit.PERMISSION_DENIED, text)
    if address.manager is not None and error.errno in _NOT_THERE | _NOT_LISTENING:
        text += (
            f"\nTo have the service started by the first call: {address.manager} enable --now moored.socket"
        )
    return Failure(Exit.NO_SERVICE, text)
