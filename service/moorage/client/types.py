"""Types of io.moorage.Machine, as a client has them. The names are those of the interface, as Python writes them.

Fields of a newer service are skipped, and words of which there may be more one day (:class:`Phase` and the like) are
strings in what the service replies: compare them with the members of these classes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import Struct, field


class MachineClass(StrEnum):
    """What runs in a machine."""

    CONTAINER = "container"
    VM = "vm"


class Phase(StrEnum):
    """Where a machine is in its life. See the interface."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    LINGERING = "lingering"
    EXITED = "exited"


class Origin(StrEnum):
    """Where a machine comes from. See the interface."""

    REGISTERED = "registered"
    ADOPTED = "adopted"


class FreezerState(StrEnum):
    """Whether the processes of a machine are suspended."""

    RUNNING = "running"
    FREEZING = "freezing"
    FROZEN = "frozen"
    THAWING = "thawing"


class Counters(StrEnum):
    """What Measure can look at apart. See the interface."""

    CPU = "cpu"
    MEMORY = "memory"
    SWAP = "swap"
    TASKS = "tasks"
    IO = "io"
    PEAKS = "peaks"
    OOM = "oom"
    PRESSURE = "pressure"


class SocketType(StrEnum):
    """A type of socket (systemd.socket(5))."""

    STREAM = "stream"
    DATAGRAM = "datagram"
    SEQPACKET = "seqpacket"


class HelperFailure(StrEnum):
    """What the failure of a helper means for the machine."""

    IGNORE = "ignore"
    STOP_MACHINE = "stopMachine"


class Cause(StrEnum):
    """Why a machine ended. See the interface."""

    LEADER_ENDED = "leaderEnded"
    STOPPED = "stopped"
    LEASE_ENDED = "leaseEnded"
    HELPER_ENDED = "helperEnded"
    OOM_KILLED = "oomKilled"
    OOMD_KILLED = "oomdKilled"
    LEADER_LEFT = "leaderLeft"
    UNIT_STOPPED = "unitStopped"
    UNKNOWN = "unknown"


class KillWhom(StrEnum):
    """Which processes of a machine get a signal."""

    LEADER = "leader"
    SUPERVISOR = "supervisor"
    ALL = "all"


class UnitType(StrEnum):
    """A type of unit that machines consist of."""

    SCOPE = "scope"
    SERVICE = "service"
    SLICE = "slice"
    SOCKET = "socket"


class ProcessId(Struct, rename="camel", omit_defaults=True, frozen=True):
    """A process.

    Attributes:
        pid: its PID.
        pidfd_id: inode number of its pidfd, which with the boot ID distinguishes it from a later process of that PID.
        boot_id: 32 hexadecimal digits.
    """

    pid: int
    pidfd_id: int | None = None
    boot_id: str | None = None


class Timestamp(Struct, rename="camel", frozen=True):
    """A moment.

    Attributes:
        realtime: since the epoch, µs.
        monotonic: since boot, µs.
    """

    realtime: int | None = None
    monotonic: int | None = None


class HelperSocket(Struct, rename="camel", omit_defaults=True, frozen=True):
    """A socket that is bound for a helper before it starts.

    Attributes:
        name: of a file in the machine's runtime directory.
        type: stream by default.
        mode: permissions of the file.
    """

    name: str
    type: str | None = None
    mode: int | None = None


class Helper(Struct, rename="camel", omit_defaults=True, frozen=True):
    """A service for one machine. See the interface, and docs/helpers.md.

    Attributes:
        name: within the machine.
        exec_start: absolute path of a program, and its arguments.
        type: exec by default (``Type=`` of systemd.service(5)).
        sockets: to pass by socket activation.
        after: names of helpers that must be ready first.
        on_failure: what its failure means for the machine; ignore by default.
        restart: as in systemd.service(5).
        properties: of the service, with their names and values on D-Bus.
    """

    name: str
    exec_start: list[str]
    type: str | None = None
    sockets: list[HelperSocket] | None = None
    after: list[str] | None = None
    on_failure: str | None = None
    restart: str | None = None
    properties: dict[str, Any] | None = None


class HelperStatus(Struct, rename="camel", frozen=True, kw_only=True):
    """The state of a helper.

    Attributes:
        name: within the machine.
        unit: its service.
        active_state: of that.
        sub_state: of that.
        result: of that.
        main_process: if it runs.
        invocation_id: identifies this start of it.
        sockets: names of files in the machine's runtime directory.
    """

    name: str
    unit: str
    active_state: str
    sub_state: str
    result: str | None = None
    main_process: ProcessId | None = None
    invocation_id: str | None = None
    sockets: list[str] = []


class Difference(Struct, rename="camel", frozen=True, kw_only=True):
    """A property whose value in force differs from the requested one.

    Attributes:
        property: its name.
        wanted: the requested value, in words.
        effective: the value in force; None if it has no effect.
        reason: why, in words.
        helper: the helper that has the property; by default the machine has.
        slice: the slice that has it.
    """

    property: str
    wanted: str
    effective: str | None = None
    reason: str
    helper: str | None = None
    slice: str | None = None


class Option(Struct, rename="camel", frozen=True, kw_only=True):
    """An option of moored.conf(5). Values are written as in that file.

    Attributes:
        name: its name.
        value: in force.
        default: the value if nobody sets one.
        source: where the value comes from; None if that is not for the caller to know.
        after_restart: the value after a restart of the service, if that is another one.
        after_restart_source: where that comes from.
    """

    name: str
    value: str
    default: str
    source: str | None = None
    after_restart: str | None = None
    after_restart_source: str | None = None


class PlannedUnit(Struct, rename="camel", frozen=True, kw_only=True):
    """A unit that a machine would get.

    Attributes:
        unit: its name.
        helper: set if it is that helper's.
        defaults: properties that nobody requested.
        properties: the requested ones.
    """

    unit: str
    helper: str | None = None
    defaults: dict[str, Any]
    properties: dict[str, Any]


class Accounting(Struct, rename="camel", frozen=True, kw_only=True):
    """Resources that a machine has used: in bytes, the CPU time in ns. None: the kernel keeps no such counter."""

    cpu_usage_nsec: int | None = field(name="cpuUsageNSec", default=None)
    cpu_user_nsec: int | None = field(name="cpuUserNSec", default=None)
    cpu_system_nsec: int | None = field(name="cpuSystemNSec", default=None)
    cpu_throttled_nsec: int | None = field(name="cpuThrottledNSec", default=None)
    memory_current: int | None = None
    memory_peak: int | None = None
    memory_swap_current: int | None = None
    memory_swap_peak: int | None = None
    tasks_current: int | None = None
    tasks_peak: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    io_read_operations: int | None = None
    io_write_operations: int | None = None
    ip_ingress_bytes: int | None = None
    ip_ingress_packets: int | None = None
    ip_egress_bytes: int | None = None
    ip_egress_packets: int | None = None
    oom_kills: int | None = None
    managed_oom_kills: int | None = None


class PressureLine(Struct, rename="camel", frozen=True, kw_only=True):
    """The share of time, in percent, for which tasks waited, over 10, 60 and 300 s; and in all, in µs."""

    avg10: float
    avg60: float
    avg300: float
    total_usec: int = field(name="totalUSec")


class Pressure(Struct, rename="camel", frozen=True, kw_only=True):
    """Pressure of one resource: at least one task waited, or all of them at once."""

    some: PressureLine | None = None
    full: PressureLine | None = None


class Pressures(Struct, rename="camel", frozen=True, kw_only=True):
    """Pressure of all resources. None: the kernel does not tell."""

    cpu: Pressure | None = None
    memory: Pressure | None = None
    io: Pressure | None = None


class HelperSample(Struct, rename="camel", frozen=True, kw_only=True):
    """What a helper uses."""

    helper: str
    accounting: Accounting


class Sample(Struct, rename="camel", frozen=True, kw_only=True):
    """What a machine, and each of its helpers that runs, uses at a moment.

    Attributes:
        accounting_since: when the counters were reset; None if they never were.
        phase: see :class:`Phase`.
        freezer: see :class:`FreezerState`.
        limits: of memory in bytes and of tasks, by the names of their properties, if they were asked for.
    """

    name: str
    invocation_id: str
    timestamp: Timestamp
    accounting: Accounting
    accounting_since: Timestamp | None = None
    pressure: Pressures | None = None
    helpers: list[HelperSample] | None = None
    phase: str
    freezer: str
    limits: dict[str, int] | None = None


class Verdict(Struct, rename="camel", frozen=True, kw_only=True):
    """How a machine ended. None: it is not known.

    Attributes:
        result: of its unit.
        exited_at: when.
        cause: see :class:`Cause`.
        oom_killed: whether processes of it were killed for lack of memory.
        oom_control_group: the control group for whose limit the kernel did.
        leader_status: what the leader gave to exit(3).
        leader_signal: number of the signal that ended the leader.
        helper: the helper whose end stopped the machine.
        helper_result: result of that helper's unit.
        log: the last lines that the helper wrote.
        accounting: the last counters.
    """

    result: str
    exited_at: Timestamp
    cause: str | None = None
    oom_killed: bool | None = None
    oom_control_group: str | None = None
    leader_status: int | None = None
    leader_signal: int | None = None
    helper: str | None = None
    helper_result: str | None = None
    log: list[str] | None = None
    accounting: Accounting


class Machine(Struct, rename="camel", frozen=True, kw_only=True):
    """A machine.

    Attributes:
        name: its name.
        class_: see :class:`MachineClass`.
        phase: see :class:`Phase`.
        freezer: see :class:`FreezerState`.
        id: 128 bits, in hexadecimal.
        service: name that the launcher gave itself.
        uid: user who registered it.
        unit: its scope, or the unit that it is part of.
        subgroup: its control group below that of the unit, if they differ.
        slice: the unit's.
        control_group: path below the root of the hierarchy.
        control_group_id: inode number of the directory.
        invocation_id: identifies this start of the unit.
        leader: its first process.
        supervisor: the process that registered it.
        runtime_directory: where the sockets of its helpers are.
        root_directory: as registered; so are those below.
        if_indices: network interfaces.
        vsock_cid: address of AF_VSOCK.
        ssh_address: for ssh.
        ssh_private_key_path: shown to root and the user who registered it.
        control_address: likewise.
        timestamp: when it was registered.
        helpers: its services.
        verdict: how it ended, if it has.
        origin: see :class:`Origin`.
        published: systemd-machined lists it too.
    """

    name: str
    class_: str = field(name="class")
    phase: str
    freezer: str
    id: str | None = None
    service: str | None = None
    uid: int
    unit: str
    subgroup: str | None = None
    slice: str
    control_group: str
    control_group_id: int
    invocation_id: str
    leader: ProcessId | None = None
    supervisor: ProcessId | None = None
    runtime_directory: str | None = None
    root_directory: str | None = None
    if_indices: list[int] = []
    vsock_cid: int | None = field(name="vSockCid", default=None)
    ssh_address: str | None = None
    ssh_private_key_path: str | None = None
    control_address: str | None = None
    timestamp: Timestamp
    helpers: list[HelperStatus] = []
    verdict: Verdict | None = None
    origin: str | None = None
    published: bool | None = None


class Event(Struct, rename="camel", frozen=True, kw_only=True):
    """Something that has happened. :mod:`moorage.client.events` has a class for each kind, with its data.

    Attributes:
        cursor: its position, to go on from.
        event: its kind.
        name: of the machine; empty where it is of none.
        invocation_id: of the machine's unit.
        timestamp: when it was noticed.
    """

    cursor: str
    event: str
    name: str
    invocation_id: str | None = None
    timestamp: Timestamp


class PlainEvent(Event, frozen=True, kw_only=True):
    """An event of any kind.

    Attributes:
        data: depends on the kind.
    """

    data: dict[str, Any] | None = None
