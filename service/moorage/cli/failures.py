"""Errors for people: what went wrong, what to do, and an exit status."""

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
from moorage.errors import AUTHORIZATION
from moorage.quantities import printable
from moorage.wire.errors import ProtocolError, VarlinkError


class Exit(IntEnum):
    """Exit statuses of moorctl. After Ctrl-C the status is 130, as in a shell."""

    OK = 0
    REFUSED = 1
    """The service refused, or the process is gone."""
    USAGE = 2
    """Wrong options or values; the service was not asked to do anything."""
    NO_SUCH_MACHINE = 3
    PERMISSION_DENIED = 4
    NO_SERVICE = 5
    """No connection to the service, or it broke."""
    TIMED_OUT = 6
    NOT_RUN = 125
    """From here on as env(1): moorctl run exits with these, or with the status of its command."""
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127


class Failure(Exception):
    """Ends a command with one message and one exit status."""

    def __init__(self, status: Exit, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Words:
    """How an error is put into words. Names of its parameters stand in braces.

    Attributes:
        status: exit status.
        text: what happened.
        without: the same, for an error that lacks one of those parameters.
        hint: what to do; omitted if a parameter is missing. {manager}, {journalctl} and {moorctl} are commands for the
            same service manager, {machine} is that of the call; all parameters are quoted for a shell.
    """

    status: Exit
    text: str
    without: str = ""
    hint: str = ""


_MACHINE: Final = "io.moorage.Machine."
_THEIRS: Final = "io.systemd.Machine."
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
        hint="Stop it first, or choose another name: {moorctl} stop {name}",
    ),
    _MACHINE + "UnitNameTaken": _Words(
        Exit.REFUSED,
        "The unit name {unit} is taken: {holder}.",
        hint="Inspect it, then stop it or choose another name: {manager} status {unit}",
    ),
    _MACHINE + "ProcessGone": _Words(
        Exit.REFUSED, "Process {pid} has ended.", without="The process has ended."
    ),
    _MACHINE + "ProcessNotOwned": _Words(
        Exit.PERMISSION_DENIED, "Process {pid} belongs to user {uid}, so {barred}."
    ),
    _MACHINE + "UnitNotOwned": _Words(
        Exit.PERMISSION_DENIED,
        "The process is in {unit}, and you may not move it out of there, nor have that unit be a machine.",
        hint="You may move processes of your own sessions, and of services that run as you (User=), "
        "and with --no-allocate have those of your service manager's units be machines.",
    ),
    _MACHINE + "NoSuchProperty": _Words(
        Exit.REFUSED,
        "There is no property {property}{whose} that can be set; did you mean {names}?",
        without="There is no property {property}{whose} that can be set.",
        hint="See systemd.scope(5), systemd.resource-control(5) and systemd.kill(5);"
        " for helpers also systemd.service(5) and systemd.exec(5).",
    ),
    _MACHINE + "InvalidProperty": _Words(
        Exit.REFUSED, "The value of property {property}{whose} is refused: {reason}."
    ),
    _MACHINE + "JobFailed": _Words(
        Exit.REFUSED,
        "The job for {unit} ended with '{jobResult}', the unit with '{unitResult}'.",
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
        hint="List its helpers: {moorctl} status {machine}",
    ),
    _MACHINE + "NoSuchSubgroup": _Words(
        Exit.REFUSED,
        "There is no process in {subgroup} below the machine's control group.",
        hint="Show the path of that group: {moorctl} status {machine}",
    ),
    _MACHINE + "Busy": _Words(
        Exit.REFUSED, "The service is busy: {operation}.", hint="Try again when that is over."
    ),
    _MACHINE + "NotSupported": _Words(Exit.REFUSED, "{what} is not supported: {reason}.", hint="{asking}"),
    _MACHINE + "Timeout": _Words(
        Exit.TIMED_OUT,
        "Helper {helper} was not ready in time. Everything that had been started is stopped again.",
        without="It took too long: {operation}.",
        hint="{instead}",
    ),
    _MACHINE + "CursorExpired": _Words(
        Exit.REFUSED,
        "What happened after that cursor is not kept any more.",
        hint="See what is: {moorctl} events",
    ),
    _MACHINE + "ManagerUnavailable": _Words(
        Exit.REFUSED, "The service manager refused or did not answer: {reason}."
    ),
    _THEIRS + "NoSuchMachine": _Words(
        Exit.NO_SUCH_MACHINE, "There is no machine {of}.", hint="List all machines: {moorctl} list"
    ),
    _THEIRS + "NotSupported": _Words(
        Exit.REFUSED,
        "That is not possible with machine {of}: it is a virtual machine, or has not what it takes.",
    ),
    _THEIRS + "NoIPC": _Words(
        Exit.REFUSED,
        "There is no systemd in machine {of} that could be asked, or it does not know the unit.",
    ),
    _SERVICE + "InvalidParameter": _Words(
        Exit.REFUSED, "The service does not accept {option}.", hint="{right}"
    ),
    _SERVICE + "PermissionDenied": _Words(
        Exit.PERMISSION_DENIED,
        "You are not permitted to do this.",
        hint="Run it as root, or use the service of your own user manager: moorctl --user",
    ),
    "io.systemd.InteractiveAuthenticationRequired": _Words(
        Exit.PERMISSION_DENIED,
        "This needs an administrator to authenticate, or a polkit rule that permits it to you.",
        hint="Run it as root, or use the service of your own user manager: moorctl --user",
    ),
    _SERVICE + "MethodNotFound": _Words(
        Exit.REFUSED,
        "The service has no method {method}.",
        hint="It may be older than this moorctl; a restart keeps all machines: {manager} restart moored.service",
    ),
    _SERVICE + "MethodNotImplemented": _Words(
        Exit.REFUSED, "This version of the service does not implement {method} yet."
    ),
    _SERVICE + "InterfaceNotFound": _Words(
        Exit.REFUSED, "What listens there is not moored: it has no interface {interface}."
    ),
    "io.systemd.System": _Words(
        Exit.REFUSED, "The service failed: {message}.", without="The service failed."
    ),
    "io.systemd.Disconnected": _Words(
        Exit.NO_SERVICE,
        "The service closed the connection before it replied.",
        hint="Its log may say why: {journalctl} --unit moored.service",
    ),
    "io.systemd.TimedOut": _Words(
        Exit.TIMED_OUT,
        "The service did not reply in time.",
        hint="The operation may still complete; see: {moorctl} list",
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
    "cursor": "--since-cursor",
    "names": "--name",
    "events": "--event",
}
"""Parameters whose option is not simply their name with dashes."""


_ID128: Final = "It must have 32 hexadecimal digits."
_RIGHT: Final[Mapping[str, str]] = {
    "name": "A name has 1 to 64 of the characters A-Z a-z 0-9 _ . @ \\ : - and does not begin with . or -",
    "slice": "It must be the name of a slice, such as vms-prod.slice; see systemd.slice(5).",
    "id": _ID128,
    "invocationId": _ID128,
    "leaderFileDescriptor": "It must be a process, but neither a thread, a kernel thread nor the service manager.",
    "controlGroup": "It must be a path below /sys/fs/cgroup that begins with a slash, as in /proc/PID/cgroup.",
    "subgroup": "It must be a path below the machine's control group, such as payload/init.scope, without '..'.",
    "destination": "It must be an absolute path, without '..'.",
    "source": "It must be an absolute path, without '..'.",
    "cursor": "It must be a cursor that `moorctl events --json` has printed.",
    "events": "docs/events.md lists the kinds of events.",
    "timeoutUSec": "The maximum is 10 minutes.",
    "helpers": "A machine has at most 64 helpers.",
    "name of a helper": "Each helper needs a unique name, made of the characters that names of machines may have.",
    "execStart of a helper": "It must begin with the absolute path of an existing program.",
    "after of a helper": "It lists names of other helpers, and the order must not be circular.",
    "sockets of a helper": "Each socket needs a file name of its own; all need the same mode, at most 0777.",
    "type of a helper": "Choose from simple, exec, notify, notify-reload and oneshot.",
    "restart of a helper": "Choose from no, on-success, on-failure, on-abnormal, on-abort, on-watchdog and always.",
}
"""What is accepted, by parameter."""


_UNASKED: Final[Mapping[str, str]] = {
    "PowerOff": "Stop it without asking its guest: {moorctl} stop {machine}\n"
    "Next time, register it with --control-address, or run it with --exec-stop, a command that asks.",
    "Reboot": "Next time, register it with --control-address, at which its guest is asked.",
}
"""What can be done where a guest cannot be asked, by the operation."""


def explain(error: Exception, address: Address, given: Mapping[str, Any] | None = None) -> Failure:
    """Return the failure for an exception that a call raised. An unexpected exception is raised again.

    Args:
        error: the exception.
        address: where the service listens.
        given: the parameters of the call: an error need not repeat them, and of a helper it has the index only.
    """
    match error:
        case VarlinkError():
            return _refusal(error.error, error.parameters(), address, given or {})
        case ProtocolError():
            return Failure(
                Exit.NO_SERVICE, f"What listens at {address.path} does not speak varlink: {error}"
            )
        case OSError():
            return _unreachable(error, address)
        case _:
            raise error


def _refusal(
    name: str, parameters: Mapping[str, Any], address: Address, given: Mapping[str, Any]
) -> Failure:
    values = {key: _shown(value) for key, value in parameters.items() if value is not None}
    quoted = {key: shlex.quote(value) for key, value in values.items()}
    words = _WORDS.get(name, _Words(Exit.REFUSED, ""))
    if "parameter" in values:
        field = re.sub(r"^helpers\[[0-9]+\]\.(\w+).*", r"\1 of a helper", values["parameter"])
        concerned = _helper_field(values["parameter"], given.get("helpers") or ())
        values["option"] = concerned or _option(values["parameter"])
        if right := _RIGHT.get(field):
            quoted["right"] = right
    match parameters.get("nearest"):
        case [_, *_] as names:
            values["names"] = " or ".join(map(_shown, names))
        case _:
            pass
    values["whose"] = f" of helper {values['helper']}" if "helper" in values else ""
    if isinstance(number := parameters.get("errno"), int):
        # As the service manager uses that number; what the kernel says of it is about radio.
        values["message"] = "the unit is masked" if number == errno.ERFKILL else os.strerror(number)
    manager = address.manager or "systemctl"
    quoted |= {
        "manager": manager,
        "journalctl": manager.replace("systemctl", "journalctl"),
        "moorctl": address.moorctl,
    }
    if isinstance(machine := given.get("name"), str):
        values["of"] = _shown(machine)
        quoted["machine"] = shlex.quote(values["of"])
    if parameters.get("operation") == AUTHORIZATION:
        quoted["instead"] = (
            f"Nothing was done. If polkit is in trouble, see: {manager} status polkit.service"
        )
    elif "helper" not in values:
        quoted["instead"] = f"The operation may still complete; see: {address.moorctl} list"
    if "machine" in quoted and (hint := _UNASKED.get(values.get("what", ""))):
        quoted["asking"] = hint.format_map(quoted)
    # Root's own process is refused only by the service of a user, which serves nobody else's.
    own = address.host is None and parameters.get("uid") == os.geteuid()
    values["barred"] = "the service of another user may not have it" if own else "you may not register it"
    text = _filled(words.text, values) or _filled(words.without, values)
    if not text:
        text = f"The service replied {printable(name)}: {printable(json.dumps(parameters, default=str))}"
    match parameters.get("log"):
        case [*log]:
            lines = [f"  {_shown(line)}" for line in log]
        case _:
            lines = []
    match parameters.get("differs"):
        case [*names]:
            options = ", ".join(_option(_shown(each)) for each in names)
            lines.append(f"You have registered it before with other values: {options}.")
        case _:
            pass
    return Failure(words.status, "\n".join(filter(None, [text, *lines, _filled(words.hint, quoted)])))


def _helper_field(parameter: str, helpers: Sequence[Mapping[str, Any]]) -> str:
    """Return words that name a helper, its field and the given value; empty if the parameter is not of a helper."""
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
    if match[2] == "name" and found is not None:
        return f"{_shown(found)} as the name of a helper"
    given = "the value of" if found is None else f"{_shown(found)} as"
    return f"{given} {printable(match[2])} of helper {_shown(helper.get('name'))}"


def _filled(template: str, values: Mapping[str, str]) -> str:
    """Fill in a template; return an empty text if a value is missing."""
    try:
        return template.format_map(values)
    except KeyError:
        return ""


def _shown(value: Any) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value, default=str)).removesuffix(".")


def _option(parameter: str) -> str:
    """Return what a person typed for a parameter, ``--slice`` for ``slice``."""
    field = re.split(r"[.\[]", parameter, maxsplit=1)[0]
    where = _OPTIONS.get(field) or "--" + re.sub(r"[A-Z]", lambda match: "-" + match[0].lower(), field)
    return f"the value of {where}" + (f" ({printable(parameter)})" if field != parameter else "")


_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_NOT_LISTENING: Final = frozenset({errno.ECONNREFUSED, errno.ENOTSOCK, errno.EPROTOTYPE})


def _unreachable(error: OSError, address: Address) -> Failure:
    if address.host is not None:
        return Failure(Exit.NO_SERVICE, printable(str(error)))
    reason = os.strerror(error.errno) if error.errno is not None else str(error)
    if error.errno in _NOT_THERE:
        reason = "there is no such socket"
    elif error.errno in _NOT_LISTENING:
        reason = "nothing listens there"
    text = f"Failed to connect to {printable(address.path)}: {reason}."
    if error.errno in {errno.EACCES, errno.EPERM}:
        return Failure(Exit.PERMISSION_DENIED, text)
    if address.manager is not None and error.errno in _NOT_THERE | _NOT_LISTENING:
        text += f"\nEnable the service, which the first call then starts: {address.manager} enable --now moored.socket"
    return Failure(Exit.NO_SERVICE, text)
