"""io.moorage.Machine on the wire: what its methods take and give, and its errors."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta, field

from moorage.api.requests import ProcessId, Signal, Timestamp
from moorage.wire.errors import VarlinkError
from moorage.wire.types import Int, Parameters, Reply

TIMEOUT_MAX_USEC = 600_000_000
"""Longest deadline that a caller may ask for, µs: no start or stop of a machine takes longer and ends well."""

TimeoutUSec = Annotated[int, Meta(ge=1, le=TIMEOUT_MAX_USEC)]


class MachineClass(StrEnum):
    """What runs in a machine."""

    container = "container"
    vm = "vm"


class Phase(StrEnum):
    """Where a machine is in its life."""

    starting = "starting"
    running = "running"
    stopping = "stopping"
    lingering = "lingering"
    exited = "exited"


class FreezerState(StrEnum):
    """State of the freezer of a machine's unit."""

    running = "running"
    freezing = "freezing"
    frozen = "frozen"
    thawing = "thawing"


class KillWhom(StrEnum):
    """Which processes a signal is for."""

    leader = "leader"
    supervisor = "supervisor"
    all = "all"


class HelperStatus(Reply, kw_only=True):
    """A service that exists for one machine."""

    name: str
    unit: str
    activeState: str  # noqa: N815 - names on the wire, here and below
    subState: str  # noqa: N815
    result: str | None = None
    mainProcess: ProcessId | None = None  # noqa: N815
    invocationId: str | None = None  # noqa: N815
    sockets: list[str]


class Difference(Reply, kw_only=True):
    """A property whose value in force is not the one asked for."""

    property: str
    wanted: str
    effective: str | None = None
    reason: str
    helper: str | None = None
    slice: str | None = None


class Accounting(Reply, kw_only=True):
    """Counters of a machine's control group; what could not be had is left out."""

    cpuUsageNSec: Int | None = None  # noqa: N815
    memoryCurrent: Int | None = None  # noqa: N815
    memoryPeak: Int | None = None  # noqa: N815
    memorySwapCurrent: Int | None = None  # noqa: N815
    tasksCurrent: Int | None = None  # noqa: N815
    ioReadBytes: Int | None = None  # noqa: N815
    ioWriteBytes: Int | None = None  # noqa: N815
    ioReadOperations: Int | None = None  # noqa: N815
    ioWriteOperations: Int | None = None  # noqa: N815
    ipIngressBytes: Int | None = None  # noqa: N815
    ipEgressBytes: Int | None = None  # noqa: N815
    oomKills: Int | None = None  # noqa: N815
    managedOomKills: Int | None = None  # noqa: N815


class Cause(StrEnum):
    """Why a machine ended."""

    leaderEnded = "leaderEnded"  # noqa: N815 - names on the wire, here and below
    stopped = "stopped"
    leaseEnded = "leaseEnded"  # noqa: N815
    helperEnded = "helperEnded"  # noqa: N815
    oomKilled = "oomKilled"  # noqa: N815
    oomdKilled = "oomdKilled"  # noqa: N815
    leaderLeft = "leaderLeft"  # noqa: N815
    unitStopped = "unitStopped"  # noqa: N815
    unknown = "unknown"


class Verdict(Reply, kw_only=True):
    """How a machine ended; what is not known is left out."""

    result: str
    exitedAt: Timestamp  # noqa: N815
    cause: Cause | None = None
    oomKilled: bool | None = None  # noqa: N815
    leaderStatus: Int | None = None  # noqa: N815
    leaderSignal: Int | None = None  # noqa: N815
    helper: str | None = None
    helperResult: str | None = None  # noqa: N815
    log: list[str] | None = None
    accounting: Accounting


class Machine(Reply, kw_only=True):
    """A machine."""

    name: str
    class_: MachineClass = field(name="class")
    phase: Phase
    freezer: FreezerState
    id: str | None = None
    service: str | None = None
    uid: Int
    unit: str
    subgroup: str | None = None
    slice: str
    controlGroup: str  # noqa: N815
    controlGroupId: Int  # noqa: N815
    invocationId: str  # noqa: N815
    leader: ProcessId | None = None
    supervisor: ProcessId | None = None
    runtimeDirectory: str | None = None  # noqa: N815
    rootDirectory: str | None = None  # noqa: N815
    ifIndices: list[Int]  # noqa: N815
    vSockCid: Int | None = None  # noqa: N815
    sshAddress: str | None = None  # noqa: N815
    sshPrivateKeyPath: str | None = None  # noqa: N815
    controlAddress: str | None = None  # noqa: N815
    timestamp: Timestamp
    helpers: list[HelperStatus]
    verdict: Verdict | None = None


class SocketType(StrEnum):
    """Type of a socket."""

    stream = "stream"
    datagram = "datagram"
    seqpacket = "seqpacket"


class HelperSocket(Parameters, kw_only=True):
    """A socket that is bound for a helper."""

    name: str
    type: SocketType | None = None
    mode: Int | None = None


class HelperFailure(StrEnum):
    """What the failure of a helper means for its machine."""

    ignore = "ignore"
    stopMachine = "stopMachine"  # noqa: N815


class Helper(Parameters, kw_only=True):
    """A service that is to exist for one machine."""

    name: str
    execStart: list[str]  # noqa: N815
    type: str | None = None
    sockets: list[HelperSocket] | None = None
    after: list[str] | None = None
    onFailure: HelperFailure | None = None  # noqa: N815
    restart: str | None = None
    properties: dict[str, Any] | None = None


class RegisterIn(Parameters, kw_only=True):
    """What Register takes."""

    name: str
    class_: MachineClass = field(name="class")
    leader: ProcessId | None = None
    leaderFileDescriptor: Int | None = None  # noqa: N815
    id: str | None = None
    service: str | None = None
    rootDirectory: str | None = None  # noqa: N815
    ifIndices: list[Int] | None = None  # noqa: N815
    vSockCid: Int | None = None  # noqa: N815
    sshAddress: str | None = None  # noqa: N815
    sshPrivateKeyPath: str | None = None  # noqa: N815
    controlAddress: str | None = None  # noqa: N815
    allocateUnit: bool | None = None  # noqa: N815
    slice: str | None = None
    description: str | None = None
    properties: dict[str, Any] | None = None
    sliceProperties: dict[str, Any] | None = None  # noqa: N815
    helpers: list[Helper] | None = None
    execStop: list[str] | None = None  # noqa: N815
    execStopTimeoutUSec: TimeoutUSec | None = None  # noqa: N815
    lease: bool | None = None
    dryRun: bool | None = None  # noqa: N815
    timeoutUSec: TimeoutUSec | None = None  # noqa: N815
    allowInteractiveAuthentication: bool | None = None  # noqa: N815


class ManageIn(Parameters, kw_only=True):
    """The name of a machine that something is to be done with."""

    name: str
    allowInteractiveAuthentication: bool | None = None  # noqa: N815


class AddHelpersIn(ManageIn, kw_only=True):
    """What AddHelpers takes."""

    helpers: list[Helper]


class HelpersOut(Reply, kw_only=True):
    """The helpers that AddHelpers adds, and what of their properties is not in force."""

    helpers: list[HelperStatus]
    differences: list[Difference] | None = None


class RemoveHelperIn(ManageIn, kw_only=True):
    """What RemoveHelper takes."""

    helper: str


class ReloadOut(Reply, kw_only=True, omit_defaults=False):
    """What Reload gives: names of helpers."""

    reloaded: list[str]
    skipped: list[str]


class PlannedUnit(Reply, kw_only=True):
    """A unit that a machine would get, with its properties."""

    unit: str
    helper: str | None = None
    defaults: dict[str, Any]
    properties: dict[str, Any]


class RegisterOut(Reply, kw_only=True):
    """What Register gives."""

    machine: Machine
    differences: list[Difference]
    units: list[PlannedUnit] | None = None


class MachineOut(Reply, kw_only=True):
    """A machine, as List, Find and Stop give it."""

    machine: Machine


class NameIn(Parameters, kw_only=True):
    """The name of a machine."""

    name: str


class DescribeOut(Reply, kw_only=True):
    """What Describe gives."""

    machine: Machine
    accounting: Accounting
    limits: dict[str, Any]


class UnitType(StrEnum):
    """A type of unit that machines consist of."""

    scope = "scope"
    service = "service"
    slice = "slice"
    socket = "socket"


class DescribePropertiesIn(Parameters, kw_only=True):
    """Parameters of DescribeProperties."""

    type: UnitType


class DescribePropertiesOut(Reply, kw_only=True, omit_defaults=False):
    """Reply of DescribeProperties: D-Bus signatures, by the names of the properties."""

    properties: dict[str, str]


class FindIn(Parameters, kw_only=True):
    """Exactly one of these."""

    process: ProcessId | None = None
    processFileDescriptor: Int | None = None  # noqa: N815
    unit: str | None = None
    controlGroup: str | None = None  # noqa: N815
    invocationId: str | None = None  # noqa: N815


class KillIn(ManageIn, kw_only=True):
    """What Kill takes."""

    signal: Signal
    whom: KillWhom | None = None
    subgroup: str | None = None
    ifInvocationId: str | None = None  # noqa: N815


class StopIn(ManageIn, kw_only=True):
    """What Stop takes."""

    ifInvocationId: str | None = None  # noqa: N815
    timeoutUSec: TimeoutUSec | None = None  # noqa: N815


@dataclass(eq=False)
class NoSuchMachine(VarlinkError):
    """There is no such machine."""

    error = "io.moorage.Machine.NoSuchMachine"
    name: str | None = None


@dataclass(eq=False)
class MachineExists(VarlinkError):
    """The name, the leader or the unit belongs to another machine already, or it was registered otherwise."""

    error = "io.moorage.Machine.MachineExists"
    name: str
    unit: str | None = None
    invocationId: str | None = None  # noqa: N815
    differs: list[str] | None = None


@dataclass(eq=False)
class UnitNameTaken(VarlinkError):
    """The name of the scope is taken by something that is no machine of ours."""

    error = "io.moorage.Machine.UnitNameTaken"
    unit: str
    holder: str


@dataclass(eq=False)
class ProcessGone(VarlinkError):
    """The process does not exist, or is not the one that was meant."""

    error = "io.moorage.Machine.ProcessGone"
    pid: int | None = None


@dataclass(eq=False)
class ProcessNotOwned(VarlinkError):
    """The process is not the caller's to register."""

    error = "io.moorage.Machine.ProcessNotOwned"
    pid: int
    uid: int


@dataclass(eq=False)
class UnitNotOwned(VarlinkError):
    """The process is in a unit that is not the caller's, and would be taken out of it."""

    error = "io.moorage.Machine.UnitNotOwned"
    unit: str


@dataclass(eq=False)
class NoSuchProperty(VarlinkError):
    """Scopes have no such property, or it cannot be set."""

    error = "io.moorage.Machine.NoSuchProperty"
    property: str
    nearest: list[str] | None = None
    helper: str | None = None


@dataclass(eq=False)
class InvalidProperty(VarlinkError):
    """The property cannot have that value, or is not the caller's to set."""

    error = "io.moorage.Machine.InvalidProperty"
    property: str
    reason: str
    helper: str | None = None


@dataclass(eq=False)
class JobFailed(VarlinkError):
    """The service manager could not start the unit."""

    error = "io.moorage.Machine.JobFailed"
    unit: str
    jobResult: str  # noqa: N815
    unitResult: str | None = None  # noqa: N815


@dataclass(eq=False)
class HelperFailed(VarlinkError):
    """A helper did not start."""

    error = "io.moorage.Machine.HelperFailed"
    helper: str
    unit: str
    result: str | None = None
    log: list[str] | None = None


@dataclass(eq=False)
class NoSuchHelper(VarlinkError):
    """The machine has no helper of this name."""

    error = "io.moorage.Machine.NoSuchHelper"
    helper: str


@dataclass(eq=False)
class Busy(VarlinkError):
    """The operation cannot be done now."""

    error = "io.moorage.Machine.Busy"
    operation: str


@dataclass(eq=False)
class NotSupported(VarlinkError):
    """This cannot be done here."""

    error = "io.moorage.Machine.NotSupported"
    what: str
    reason: str


@dataclass(eq=False)
class Timeout(VarlinkError):
    """It was not done in time; it may be going on."""

    error = "io.moorage.Machine.Timeout"
    operation: str
    helper: str | None = None
    log: list[str] | None = None


@dataclass(eq=False)
class ManagerUnavailable(VarlinkError):
    """The service manager cannot be reached, or refuses."""

    error = "io.moorage.Machine.ManagerUnavailable"
    reason: str
