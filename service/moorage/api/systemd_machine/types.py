"""Parameters and replies of io.systemd.Machine."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, field

from moorage.api.identity import IdentityIn
from moorage.api.wire_types import ProcessId, Signal, Timestamp
from moorage.machines import model
from moorage.wire.types import Int, Parameters, Reply


class AcquireMetadata(StrEnum):
    """Whether List looks into the machines, and whether it may fail to."""

    no = "no"
    yes = "yes"
    graceful = "graceful"


class Address(Reply, kw_only=True):
    """A network address of a machine; family as in socket(2), address in network byte order."""

    ifindex: Int | None = None
    family: Int
    address: list[Int]


class RegisterIn(IdentityIn, kw_only=True):
    """Parameters of Register. ``supervisor`` is ignored, since the supervisor is derived from the caller."""

    name: str
    class_: model.MachineClass = field(name="class")
    leader: Int | None = None
    leaderProcessId: ProcessId | None = None  # noqa: N815  # names on the wire, here and below
    supervisor: Int | None = None
    supervisorProcessId: ProcessId | None = None  # noqa: N815
    allocateUnit: bool | None = None  # noqa: N815
    allowInteractiveAuthentication: bool | None = None  # noqa: N815


class RegisterOut(Reply, kw_only=True):
    """Reply of Register; that of machined is empty."""

    unit: str | None = None
    subgroup: str | None = None
    slice: str | None = None
    controlGroup: str | None = None  # noqa: N815
    invocationId: str | None = None  # noqa: N815


class LookupIn(Parameters, kw_only=True):
    """A machine by name, by a process in it, or by both."""

    name: str | None = None
    pid: ProcessId | None = None
    allowInteractiveAuthentication: bool | None = None  # noqa: N815


class KillIn(LookupIn, kw_only=True):
    """Parameters of Kill."""

    whom: model.KillWhom | None = None
    signal: Signal


class OpenMode(StrEnum):
    """What is at a terminal that is opened: nothing, a login, or a command."""

    tty = "tty"
    login = "login"
    shell = "shell"


class OpenIn(LookupIn, kw_only=True):
    """Parameters of Open."""

    mode: OpenMode
    user: str | None = None
    path: str | None = None
    args: list[str] | None = None
    environment: list[str] | None = None


class OpenOut(Reply, kw_only=True):
    """Reply of Open. The descriptor is the controlling end."""

    ptyFileDescriptor: Int  # noqa: N815
    ptyPath: str  # noqa: N815


IdIn = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class MapFromIn(LookupIn, kw_only=True):
    """Parameters of MapFrom: numbers inside a machine."""

    uid: IdIn | None = None
    gid: IdIn | None = None


class MapFromOut(Reply, kw_only=True):
    """Reply of MapFrom: numbers on the host."""

    uid: Int | None = None
    gid: Int | None = None


class MapToIn(Parameters, kw_only=True):
    """Parameters of MapTo: numbers on the host."""

    uid: IdIn | None = None
    gid: IdIn | None = None


class MapToOut(Reply, kw_only=True):
    """Reply of MapTo: numbers inside a machine."""

    uid: Int | None = None
    gid: Int | None = None
    machineName: str | None = None  # noqa: N815


class OpenRootOut(Reply, kw_only=True):
    """Reply of OpenRootDirectory."""

    fileDescriptor: Int  # noqa: N815


class CopyIn(LookupIn, kw_only=True):
    """Parameters of CopyFrom and CopyTo."""

    source: str
    destination: str | None = None
    replace: bool | None = None


class BindMountIn(LookupIn, kw_only=True):
    """Parameters of BindMount."""

    source: str
    destination: str | None = None
    readOnly: bool | None = None  # noqa: N815
    mkdir: bool | None = None


class ListIn(LookupIn, kw_only=True):
    """Parameters of List."""

    acquireMetadata: AcquireMetadata | None = None  # noqa: N815


class ListOut(Reply, kw_only=True):
    """Reply of List."""

    name: str
    id: str | None = None
    service: str | None = None
    class_: model.MachineClass = field(name="class")
    leader: ProcessId | None = None
    supervisor: ProcessId | None = None
    rootDirectory: str | None = None  # noqa: N815
    unit: str | None = None
    timestamp: Timestamp | None = None
    vSockCid: Int | None = None  # noqa: N815
    sshAddress: str | None = None  # noqa: N815
    sshPrivateKeyPath: str | None = None  # noqa: N815
    controlAddress: str | None = None  # noqa: N815
    addresses: list[Address] | None = None
    OSRelease: list[str] | None = None
    UIDShift: Int | None = None
    subgroup: str | None = None
    UID: Int | None = None
