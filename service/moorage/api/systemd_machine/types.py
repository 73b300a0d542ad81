"""Parameters and replies of io.systemd.Machine."""

from __future__ import annotations

from enum import StrEnum

from msgspec import field

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
