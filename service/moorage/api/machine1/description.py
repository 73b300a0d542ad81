"""The objects of org.freedesktop.machine1 as data, and their descriptions as XML.

Names and signatures are those of systemd-machined 262, see org.freedesktop.machine1(5). Images are its own: their
methods are known, so that the answer is better than that there are none, and not described.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

NAME: Final = "org.freedesktop.machine1"
MANAGER: Final = f"{NAME}.Manager"
MACHINE: Final = f"{NAME}.Machine"
IMAGE: Final = f"{NAME}.Image"
PEER: Final = "org.freedesktop.DBus.Peer"
INTROSPECTABLE: Final = "org.freedesktop.DBus.Introspectable"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"


class Argument(NamedTuple):
    """An argument of a method or of a signal."""

    type: str
    name: str


class Member(NamedTuple):
    """A method, or a signal, which only takes.

    Attributes:
        takes: its arguments.
        gives: what it answers with.
    """

    takes: tuple[Argument, ...] = ()
    gives: tuple[Argument, ...] = ()

    @property
    def signature(self) -> str:
        """Types of the arguments."""
        return "".join(argument.type for argument in self.takes)

    @property
    def answer(self) -> str:
        """Types of the answer."""
        return "".join(argument.type for argument in self.gives)


class Property(NamedTuple):
    """A property; none can be written.

    Attributes:
        type: of its value.
        changes: it may change, which nobody is told.
    """

    type: str
    changes: bool = False


class Description(NamedTuple):
    """An interface."""

    methods: Mapping[str, Member]
    properties: Mapping[str, Property] = MappingProxyType({})
    signals: Mapping[str, Member] = MappingProxyType({})


def _arguments(text: str) -> tuple[Argument, ...]:
    return tuple(Argument(*each.split()) for each in text.split(",")) if text else ()


def _member(takes: str = "", gives: str = "") -> Member:
    return Member(_arguments(takes), _arguments(gives))


_IDENTITY: Final = "s name, ay id, s service, s class, u leader, s root_directory"
_SHELL: Final = "s user, s path, as args, as environment"
_PTY: Final = "h pty, s pty_path"
_MOUNT: Final = "s source, s destination, b read_only, b mkdir"
_COPY: Final = "s source, s destination"

_ON_MACHINES: Final[Mapping[str, tuple[str, str]]] = {
    "Terminate": ("", ""),
    "Kill": ("s whom, i signal", ""),
    "GetAddresses": ("", "a(iay) addresses"),
    "GetSSHInfo": ("", "s ssh_address, s ssh_private_key_path"),
    "GetOSRelease": ("", "a{ss} fields"),
    "GetUIDShift": ("", "u shift"),
    "OpenPTY": ("", _PTY),
    "OpenLogin": ("", _PTY),
    "OpenShell": (_SHELL, _PTY),
    "BindMount": (_MOUNT, ""),
    "CopyFrom": (_COPY, ""),
    "CopyTo": (_COPY, ""),
    "CopyFromWithFlags": (f"{_COPY}, t flags", ""),
    "CopyToWithFlags": (f"{_COPY}, t flags", ""),
    "OpenRootDirectory": ("", "h fd"),
}

MANAGER_NAMES: Final[Mapping[str, str]] = {
    "UnregisterMachine": "Unregister",
    "TerminateMachine": "Terminate",
    "KillMachine": "Kill",
    "GetMachineAddresses": "GetAddresses",
    "GetMachineSSHInfo": "GetSSHInfo",
    "GetMachineOSRelease": "GetOSRelease",
    "GetMachineUIDShift": "GetUIDShift",
    "OpenMachinePTY": "OpenPTY",
    "OpenMachineLogin": "OpenLogin",
    "OpenMachineShell": "OpenShell",
    "BindMountMachine": "BindMount",
    "CopyFromMachine": "CopyFrom",
    "CopyToMachine": "CopyTo",
    "CopyFromMachineWithFlags": "CopyFromWithFlags",
    "CopyToMachineWithFlags": "CopyToWithFlags",
    "OpenMachineRootDirectory": "OpenRootDirectory",
}
"""Methods of the manager that take the name of a machine and do what this method of the machine does."""


def _of_machine(name: str, method: str) -> Member:
    takes, gives = _ON_MACHINES.get(method, ("", ""))
    argument = "s id" if name == "TerminateMachine" else "s name"
    return _member(f"{argument}, {takes}" if takes else argument, gives)


IMAGES: Final = frozenset(
    {
        "GetImage", "ListImages", "RemoveImage", "RenameImage", "CloneImage", "MarkImageReadOnly",
        "GetImageHostname", "GetImageMachineID", "GetImageMachineInfo", "GetImageOSRelease",
        "SetPoolLimit", "SetImageLimit", "CleanPool",
    }
)  # fmt: skip
"""Methods of the manager that are about images."""

INTERFACES: Final[Mapping[str, Description]] = {
    PEER: Description({"Ping": _member(), "GetMachineId": _member("", "s machine_uuid")}),
    INTROSPECTABLE: Description({"Introspect": _member("", "s xml_data")}),
    PROPERTIES: Description(
        {
            "Get": _member("s interface_name, s property_name", "v value"),
            "GetAll": _member("s interface_name", "a{sv} props"),
            "Set": _member("s interface_name, s property_name, v value"),
        },
        signals={
            "PropertiesChanged": _member(
                "s interface_name, a{sv} changed_properties, as invalidated_properties"
            )
        },
    ),
    MANAGER: Description(
        {
            "GetMachine": _member("s name", "o machine"),
            "GetMachineByPID": _member("u pid", "o machine"),
            "ListMachines": _member("", "a(ssso) machines"),
            "CreateMachine": _member(f"{_IDENTITY}, a(sv) scope_properties", "o path"),
            "CreateMachineWithNetwork": _member(
                f"{_IDENTITY}, ai ifindices, a(sv) scope_properties", "o path"
            ),
            "CreateMachineEx": _member("s name, a(sv) properties, a(sv) scope_properties", "o path"),
            "RegisterMachine": _member(_IDENTITY, "o path"),
            "RegisterMachineWithNetwork": _member(f"{_IDENTITY}, ai ifindices", "o path"),
            "RegisterMachineEx": _member("s name, a(sv) properties", "o path"),
            **{name: _of_machine(name, method) for name, method in MANAGER_NAMES.items()},
            "MapFromMachineUser": _member("s name, u uid_inner", "u uid_outer"),
            "MapToMachineUser": _member("u uid_outer", "s machine_name, o machine_path, u uid_inner"),
            "MapFromMachineGroup": _member("s name, u gid_inner", "u gid_outer"),
            "MapToMachineGroup": _member("u gid_outer", "s machine_name, o machine_path, u gid_inner"),
        },
        signals={
            "MachineNew": _member("s machine, o path"),
            "MachineRemoved": _member("s machine, o path"),
        },
    ),
    MACHINE: Description(
        {name: _member(*signatures) for name, signatures in _ON_MACHINES.items()},
        {
            "Name": Property("s"),
            "Id": Property("ay"),
            "Timestamp": Property("t"),
            "TimestampMonotonic": Property("t"),
            "Service": Property("s"),
            "Unit": Property("s"),
            "Subgroup": Property("s"),
            "Leader": Property("u"),
            "LeaderPIDFDId": Property("t"),
            "Supervisor": Property("u"),
            "SupervisorPIDFDId": Property("t"),
            "Class": Property("s"),
            "RootDirectory": Property("s"),
            "NetworkInterfaces": Property("ai"),
            "VSockCID": Property("u"),
            "SSHAddress": Property("s"),
            "SSHPrivateKeyPath": Property("s"),
            "State": Property("s", changes=True),
            "UID": Property("u"),
        },
    ),
}
"""Every interface that an object may have."""

EVERYWHERE: Final = (PEER, INTROSPECTABLE, PROPERTIES)
"""Interfaces of every object."""

_DOCTYPE: Final = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    '"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)


def introspection(interfaces: Iterable[str], children: Iterable[str]) -> str:
    """Return the description of an object.

    Args:
        interfaces: names of those that it has.
        children: names of the nodes below it.
    """
    # Not with the others: who is not asked for a description starts without it.
    from xml.sax.saxutils import quoteattr

    lines = ["<node>"]
    for name in interfaces:
        described = INTERFACES[name]
        lines.append(f" <interface name={quoteattr(name)}>")
        for property_name, each in described.properties.items():
            emits = "false" if each.changes else "const"
            lines += [
                f'  <property name="{property_name}" type="{each.type}" access="read">',
                f'   <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="{emits}"/>',
                "  </property>",
            ]
        for kind, members in (("method", described.methods), ("signal", described.signals)):
            for member_name, member in members.items():
                lines.append(f'  <{kind} name="{member_name}">')
                lines += [_argument(each, "in" if kind == "method" else "") for each in member.takes]
                lines += [_argument(each, "out") for each in member.gives]
                lines.append(f"  </{kind}>")
        lines.append(" </interface>")
    lines += [f" <node name={quoteattr(child)}/>" for child in children]
    return _DOCTYPE + "\n".join([*lines, "</node>", ""])


def _argument(argument: Argument, direction: str) -> str:
    where = f' direction="{direction}"' if direction else ""
    return f'   <arg type="{argument.type}" name="{argument.name}"{where}/>'
