"""Parameters and replies of io.moorage.Machine."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta, field

from moorage.api.identity import IdentityIn
from moorage.api.wire_types import ProcessId, Signal, Timestamp
from moorage.configuration.settings import HOUR
from moorage.machines import model
from moorage.wire.types import Int, Parameters, Reply

TimeoutUSec = Annotated[int, Meta(ge=1, le=HOUR)]
"""A deadline that a caller sets, in µs. The configuration has the longest one, which is an hour at most."""


class MachineClass(StrEnum):
    """What runs in a machine."""

    container = "container"
    vm = "vm"


class HelperStatus(Reply, kw_only=True):
    """The state of a helper."""

    name: str
    unit: str
    activeState: str  # noqa: N815 - names on the wire, here and below
    subState: str  # noqa: N815
    result: str | None = None
    mainProcess: ProcessId | None = None  # noqa: N815
    invocationId: str | None = None  # noqa: N815
    sockets: list[str]


class Difference(Reply, kw_only=True):
    """A property that is in force with another value than was asked for."""

    property: str
    wanted: str
    effective: str | None = None
    reason: str
    helper: str | None = None
    slice: str | None = None


class Accounting(Reply, kw_only=True):
    """Counters of a machine's control group; those that are not available are left out."""

    cpuUsageNSec: Int | None = None  # noqa: N815
    cpuUserNSec: Int | None = None  # noqa: N815
    cpuSystemNSec: Int | None = None  # noqa: N815
    cpuThrottledNSec: Int | None = None  # noqa: N815
    memoryCurrent: Int | None = None  # noqa: N815
    memoryPeak: Int | None = None  # noqa: N815
    memorySwapCurrent: Int | None = None  # noqa: N815
    memorySwapPeak: Int | None = None  # noqa: N815
    tasksCurrent: Int | None = None  # noqa: N815
    tasksPeak: Int | None = None  # noqa: N815
    ioReadBytes: Int | None = None  # noqa: N815
    ioWriteBytes: Int | None = None  # noqa: N815
    ioReadOperations: Int | None = None  # noqa: N815
    ioWriteOperations: Int | None = None  # noqa: N815
    ipIngressBytes: Int | None = None  # noqa: N815
    ipIngressPackets: Int | None = None  # noqa: N815
    ipEgressBytes: Int | None = None  # noqa: N815
    ipEgressPackets: Int | None = None  # noqa: N815
    oomKills: Int | None = None  # noqa: N815
    managedOomKills: Int | None = None  # noqa: N815


class PressureLine(Reply, kw_only=True, omit_defaults=False):
    """For how long tasks waited for a resource."""

    avg10: float
    avg60: float
    avg300: float
    totalUSec: Int  # noqa: N815


class Pressure(Reply, kw_only=True):
    """Pressure of one resource."""

    some: PressureLine | None = None
    full: PressureLine | None = None


class Pressures(Reply, kw_only=True):
    """Pressure of all resources; what the kernel does not tell is left out."""

    cpu: Pressure | None = None
    memory: Pressure | None = None
    io: Pressure | None = None


class Verdict(Reply, kw_only=True):
    """How a machine ended; anything unknown is left out."""

    result: str
    exitedAt: Timestamp  # noqa: N815
    cause: model.Cause | None = None
    oomKilled: bool | None = None  # noqa: N815
    oomControlGroup: str | None = None  # noqa: N815
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
    phase: model.Phase
    freezer: model.FreezerState
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
    origin: model.Origin | None = None
    published: bool | None = None


class HelperSocket(Parameters, kw_only=True):
    """A socket to bind for a helper."""

    name: str
    type: model.SocketType | None = None
    mode: Int | None = None


class Helper(Parameters, kw_only=True):
    """A helper to start."""

    name: str
    execStart: list[str]  # noqa: N815
    type: str | None = None
    sockets: list[HelperSocket] | None = None
    after: list[str] | None = None
    onFailure: model.HelperFailure | None = None  # noqa: N815
    restart: str | None = None
    properties: dict[str, Any] | None = None


class RegisterIn(IdentityIn, kw_only=True):
    """Parameters of Register."""

    name: str
    class_: MachineClass = field(name="class")
    leader: ProcessId | None = None
    leaderFileDescriptor: Int | None = None  # noqa: N815
    supervised: bool | None = None
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
    """Parameters of the calls that manage a machine."""

    name: str
    allowInteractiveAuthentication: bool | None = None  # noqa: N815


class AddHelpersIn(ManageIn, kw_only=True):
    """Parameters of AddHelpers."""

    helpers: list[Helper]


class HelpersOut(Reply, kw_only=True):
    """The helpers that AddHelpers adds, and what of their properties is not in force."""

    helpers: list[HelperStatus]
    differences: list[Difference] | None = None


class RemoveHelperIn(ManageIn, kw_only=True):
    """Parameters of RemoveHelper."""

    helper: str


class ReloadOut(Reply, kw_only=True, omit_defaults=False):
    """Reply of Reload: names of helpers."""

    reloaded: list[str]
    skipped: list[str]


class PlannedUnit(Reply, kw_only=True):
    """A unit that a machine would get, with its properties."""

    unit: str
    helper: str | None = None
    defaults: dict[str, Any]
    properties: dict[str, Any]


class RegisterOut(Reply, kw_only=True):
    """Reply of Register."""

    machine: Machine
    differences: list[Difference]
    units: list[PlannedUnit] | None = None


class MachineOut(Reply, kw_only=True):
    """Reply of List, Find and Stop."""

    machine: Machine


class NameIn(Parameters, kw_only=True):
    """Parameters of Describe."""

    name: str


class DescribeOut(Reply, kw_only=True):
    """Reply of Describe."""

    machine: Machine
    accounting: Accounting
    accountingSince: Timestamp | None = None  # noqa: N815
    limits: dict[str, Any]
    effective: dict[str, Any] | None = None
    devices: list[str] | None = None
    pressure: Pressures | None = None
    io: dict[str, Any] | None = None


class Event(Reply, kw_only=True):
    """Something that has happened to a machine."""

    cursor: str
    event: str
    name: str
    invocationId: str | None = None  # noqa: N815
    timestamp: Timestamp
    data: dict[str, Any] | None = None


class EventOut(Reply, kw_only=True):
    """Reply of Subscribe."""

    event: Event


class Counters(StrEnum):
    """What can be measured apart."""

    cpu = "cpu"
    memory = "memory"
    swap = "swap"
    tasks = "tasks"
    io = "io"
    peaks = "peaks"
    oom = "oom"
    pressure = "pressure"


class MeasureIn(Parameters, kw_only=True):
    """Parameters of Measure."""

    names: list[str] | None = None
    counters: list[Counters] | None = None
    limits: bool | None = None


class HelperSample(Reply, kw_only=True):
    """What a helper uses."""

    helper: str
    accounting: Accounting


class Sample(Reply, kw_only=True):
    """What a machine uses at a moment."""

    name: str
    invocationId: str  # noqa: N815
    timestamp: Timestamp
    accounting: Accounting
    accountingSince: Timestamp | None = None  # noqa: N815
    pressure: Pressures | None = None
    helpers: list[HelperSample] | None = None
    phase: model.Phase
    freezer: model.FreezerState
    limits: dict[str, Int] | None = None


class SampleOut(Reply, kw_only=True):
    """Reply of Measure."""

    sample: Sample


class SubscribeIn(Parameters, kw_only=True):
    """Parameters of Subscribe."""

    names: list[str] | None = None
    events: list[str] | None = None
    cursor: str | None = None
    oldest: bool | None = None


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


class Option(Reply, kw_only=True):
    """An option of the configuration."""

    name: str
    value: str
    default: str
    source: str | None = None
    afterRestart: str | None = None  # noqa: N815
    afterRestartSource: str | None = None  # noqa: N815


class DescribeConfigurationOut(Reply, kw_only=True):
    """Reply of DescribeConfiguration."""

    options: list[Option]
    problems: list[str] | None = None


class FindIn(Parameters, kw_only=True):
    """Parameters of Find, exactly one of them."""

    process: ProcessId | None = None
    processFileDescriptor: Int | None = None  # noqa: N815
    unit: str | None = None
    controlGroup: str | None = None  # noqa: N815
    invocationId: str | None = None  # noqa: N815


class KillIn(ManageIn, kw_only=True):
    """Parameters of Kill."""

    signal: Signal
    whom: model.KillWhom | None = None
    subgroup: str | None = None
    ifInvocationId: str | None = None  # noqa: N815


class SetPropertiesIn(ManageIn, kw_only=True):
    """Parameters of SetProperties."""

    properties: dict[str, Any]
    helper: str | None = None
    ifInvocationId: str | None = None  # noqa: N815
    dryRun: bool | None = None  # noqa: N815


class DifferencesOut(Reply, kw_only=True, omit_defaults=False):
    """Reply of SetProperties."""

    differences: list[Difference]


class FreezeIn(ManageIn, kw_only=True):
    """Parameters of Freeze."""

    helpers: bool | None = None
    ifInvocationId: str | None = None  # noqa: N815
    timeoutUSec: TimeoutUSec | None = None  # noqa: N815


class ThawIn(ManageIn, kw_only=True):
    """Parameters of Thaw."""

    ifInvocationId: str | None = None  # noqa: N815
    timeoutUSec: TimeoutUSec | None = None  # noqa: N815


class OrderIn(ManageIn, kw_only=True):
    """Parameters of orders that take nothing else."""

    ifInvocationId: str | None = None  # noqa: N815


class AwaitStopIn(Parameters, kw_only=True):
    """Parameters of AwaitStop."""

    name: str
    ifInvocationId: str | None = None  # noqa: N815
    graceUSec: TimeoutUSec | None = None  # noqa: N815


class AwaitStopOut(Reply, kw_only=True):
    """Reply of AwaitStop; the first one is empty."""

    deadline: Timestamp | None = None
    powerOff: bool | None = None  # noqa: N815


class StopIn(ManageIn, kw_only=True):
    """Parameters of Stop."""

    powerOff: bool | None = None  # noqa: N815
    insistAfterUSec: Annotated[int, Meta(ge=0, le=HOUR)] | None = None  # noqa: N815
    ifInvocationId: str | None = None  # noqa: N815
    timeoutUSec: TimeoutUSec | None = None  # noqa: N815
