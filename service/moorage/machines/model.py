"""Machines as pure data."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from moorage.kernel.process import ProcessId
from moorage.machines.accounting import Accounting
from moorage.names import UnitNames
from moorage.pid1.manager import Json

IF_INDICES_MAX = 256
"""More network interfaces than any machine has; bounds what a record can grow to."""
VSOCK_CID_FIRST, VSOCK_CID_LAST = 3, 0xFFFFFFFE
"""0 to 2 and -1 are reserved (``VSOCK_CID_IS_REGULAR()`` of systemd)."""

MACHINE_SLICE = "machine.slice"
"""Where machines go by default (systemd.special(7))."""
TASKS_MAX = 16384
"""machined's own limit of tasks: the manager's default for a unit is too low for a whole container."""

HELPERS_MAX = 64
"""Helpers of one machine: several times what the richest desktop VM has; each is a service and a log."""
HELPER_SOCKETS_MAX = 16
"""Sockets of one helper, each a file descriptor of PID 1."""


class MachineClass(StrEnum):
    """The kind of a machine. The host is always there, as ``.host``; it cannot be registered."""

    container = "container"
    vm = "vm"
    host = "host"


class Phase(StrEnum):
    """The phase of a machine's life, in the words of io.moorage.Machine."""

    starting = "starting"
    running = "running"
    stopping = "stopping"
    lingering = "lingering"
    exited = "exited"


class Origin(StrEnum):
    """The origin of a machine, in the words of io.moorage.Machine.

    registered: by a call to this service. adopted: it belongs to systemd-machined, and was found there.
    """

    registered = "registered"
    adopted = "adopted"


class FreezerState(StrEnum):
    """State of the unit's freezer (org.freedesktop.systemd1(5), ``FreezerState``)."""

    running = "running"
    freezing = "freezing"
    frozen = "frozen"
    thawing = "thawing"


class Cause(StrEnum):
    """Why a machine ended; the values are those of io.moorage.Machine.

    leader_left: its leader has moved to another control group, alive. unit_stopped: its unit was stopped by somebody
    else, through the service manager. Where none of them is known there is no cause: ``unknown`` is for others to say.
    """

    leader_ended = "leaderEnded"
    stopped = "stopped"
    lease_ended = "leaseEnded"
    helper_ended = "helperEnded"
    oom_killed = "oomKilled"
    oomd_killed = "oomdKilled"
    leader_left = "leaderLeft"
    unit_stopped = "unitStopped"
    unknown = "unknown"


class KillWhom(StrEnum):
    """Which processes of a machine a signal is for."""

    leader = "leader"
    supervisor = "supervisor"
    all = "all"


class SocketType(StrEnum):
    """Type of a helper's socket; the values are those of io.moorage.Machine."""

    stream = "stream"
    datagram = "datagram"
    seqpacket = "seqpacket"


class HelperFailure(StrEnum):
    """The consequence of a helper's failure for its machine."""

    ignore = "ignore"
    stop_machine = "stopMachine"


class HelperSocket(msgspec.Struct, frozen=True):
    """A socket that the service manager binds for a helper.

    Attributes:
        name: of the file in the machine's runtime directory.
        type: what it is.
        mode: permission bits; None for those of the owner only.
    """

    name: str
    type: SocketType = SocketType.stream
    mode: int | None = None


class HelperSpec(msgspec.Struct, frozen=True):
    """A helper that a caller wants.

    Attributes:
        name: unique in its machine.
        exec_start: program and its arguments.
        type: ``Type=`` of its service.
        sockets: bound before it starts.
        after: names of the helpers that are ready before it starts.
        on_failure: what its failure means.
        restart: ``Restart=`` of its service.
        properties: further properties of its service, by name.
    """

    name: str
    exec_start: tuple[str, ...]
    type: str = "exec"
    sockets: tuple[HelperSocket, ...] = ()
    after: tuple[str, ...] = ()
    on_failure: HelperFailure = HelperFailure.ignore
    restart: str | None = None
    properties: dict[str, Json] = msgspec.field(default_factory=dict[str, Json])


class Helper(msgspec.Struct, frozen=True):
    """A helper that a machine has.

    Attributes:
        name: unique in its machine.
        unit: its service.
        on_failure: what its failure means.
        sockets: names of its sockets in the machine's runtime directory.
    """

    name: str
    unit: str
    on_failure: HelperFailure
    sockets: tuple[str, ...]


class HelperStatus(msgspec.Struct, frozen=True):
    """A helper as the manager last reported it.

    Attributes:
        helper: which one.
        active_state: "active", "activating", "failed", …; "inactive" also for one that is not loaded.
        sub_state: the finer state of a service.
        result: why it ended, or would if it did now: "success", "exit-code", "timeout", …; None if not known.
        main_process: its main process.
        invocation_id: of its unit; empty if it never ran.
        restarts: how often the manager has restarted it by itself; None if not known.
    """

    helper: Helper
    active_state: str = "inactive"
    sub_state: str = "dead"
    result: str | None = None
    main_process: ProcessId | None = None
    invocation_id: str = ""
    restarts: int | None = None


class Timestamp(msgspec.Struct, frozen=True):
    """A moment: µs since the epoch, and µs since boot (CLOCK_MONOTONIC)."""

    realtime: int
    monotonic: int


class HelperBase(msgspec.Struct, frozen=True, omit_defaults=True):
    """Counters of a helper when those of its machine were reset.

    Attributes:
        control_group_id: inode number of its control group: another one has counters of its own.
        accounting: its counters then.
    """

    control_group_id: int
    accounting: Accounting = Accounting()


class Bases(msgspec.Struct, frozen=True, omit_defaults=True):
    """Counters of a machine when they were reset; what is told of them since is what they have grown.

    Attributes:
        at: when that was.
        accounting: its counters then.
        devices: the same of each block device, by its numbers; None if there were too many.
        helpers: the same of each helper that ran, by its name.
    """

    at: Timestamp
    accounting: Accounting = Accounting()
    devices: dict[str, dict[str, int]] | None = None
    helpers: dict[str, HelperBase] = {}


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """The end of a machine; what is not known is None.

    Attributes:
        result: the unit's own ``Result=`` ("success", "oom-kill", "timeout", …); "forgotten" where nobody saw.
        exited_at: when moored found it gone.
        oom_killed: the kernel's OOM killer or systemd-oomd took a process of it, whatever the unit's result says: with
            ``Delegate=yes`` the unit's policy is to go on.
        oom_group: the control group for whose limit the kernel did: the machine's own, one below, or a slice above.
        accounting: the last counters that could be had.
        cause: why it ended.
        leader_status: what its leader gave to exit(3).
        leader_signal: number of the signal that ended its leader.
        helper: name of the helper whose end was the machine's.
        helper_result: of that helper's unit.
        log: what that helper wrote last, oldest line first.
    """

    result: str
    exited_at: Timestamp
    oom_killed: bool | None = None
    accounting: Accounting = Accounting()
    cause: Cause | None = None
    leader_status: int | None = None
    leader_signal: int | None = None
    helper: str | None = None
    helper_result: str | None = None
    log: tuple[str, ...] = ()
    oom_group: str | None = None


class End(msgspec.Struct, frozen=True, omit_defaults=True):
    """The end of a machine as it was seen, until its verdict is complete.

    The fields are those of :class:`moorage.machines.verdicts.Facts`.
    """

    found_at: Timestamp
    result: str | None = None
    watched: bool = False
    attested: bool = False
    deactivating: bool = False
    accounting: Accounting = Accounting()
    final: bool = False


class HelperEnd(msgspec.Struct, frozen=True):
    """A helper whose end had the machine stopped.

    Attributes:
        name: of the helper.
        result: of its unit.
        log: its last lines, oldest first.
    """

    name: str
    result: str | None = None
    log: tuple[str, ...] = ()


class Identity(msgspec.Struct, frozen=True):
    """A caller's description of a machine, for information only: nothing of it is acted upon.

    Attributes:
        id: 32 hexadecimal digits.
        service: free text, the implementation that runs it.
        root_directory: its files, as the host sees them.
        if_indices: interfaces of the host that belong to it.
        vsock_cid: AF_VSOCK address.
        ssh_address: for ssh(1).
        ssh_private_key_path: for ssh(1).
        control_address: where its VMM can be talked to.
    """

    id: str | None = None
    service: str | None = None
    root_directory: str | None = None
    if_indices: tuple[int, ...] = ()
    vsock_cid: int | None = None
    ssh_address: str | None = None
    ssh_private_key_path: str | None = None
    control_address: str | None = None


class Placement(msgspec.Struct, frozen=True):
    """The unit and the control group of a machine.

    Attributes:
        unit: name of its unit.
        subgroup: path below the unit's control group, starting with "/"; None for the whole unit.
        slice: the slice that the unit is in.
        control_group: path below the root of the unified hierarchy, of the unit or of the subgroup.
        control_group_id: inode number of that directory: another one under the same path is another machine.
        invocation_id: of the unit, 32 hexadecimal digits.
        shared: others live in that control group too, so that only the leader is the machine's.
    """

    unit: str
    subgroup: str | None = None
    slice: str = ""
    control_group: str = ""
    control_group_id: int = 0
    invocation_id: str = ""
    shared: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the machine is the whole of its unit, so that stopping one is stopping the other."""
        return self.subgroup is None and not self.shared

    @property
    def relative_subgroup(self) -> str | None:
        """The subgroup as systemd writes it, without a slash before it."""
        return None if self.subgroup is None else self.subgroup.removeprefix("/")


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a machine that are known before it has its place, and remain true.

    Attributes:
        name: unique among the living.
        class_: what runs in it.
        registrant: uid of its caller.
        allocated: this service makes the unit for it.
        leader: the process that is registered.
        supervisor: the process that registers it, where that is another one.
        identity: what its caller says about it.
        timestamp: when it was registered; of an intent, when its start began.
        leader_uid: uid that its leader runs as: whose the runtime directory and the sockets are.
        runtime_directory: its own directory, where the sockets of its helpers are; None while it has none.
        helpers: the services that exist for it.
        lease: it ends with the connection that registers it.
        privileged: its registrant has the rights of the manager: it may have helpers.
        request: digests of what was asked for, by parameter (:mod:`moorage.machines.asked`).
        origin: where it comes from.
    """

    name: str
    class_: MachineClass
    registrant: int
    allocated: bool
    leader: ProcessId | None
    supervisor: ProcessId | None
    identity: Identity = Identity()
    timestamp: Timestamp
    leader_uid: int = 0
    runtime_directory: str | None = None
    helpers: tuple[Helper, ...] = ()
    lease: bool = False
    privileged: bool = False
    request: dict[str, str] = {}
    origin: Origin = Origin.registered

    @property
    def scope(self) -> str:
        """Name of the scope that this service makes for the machine."""
        return UnitNames(self.name).scope


class Intent(Wanted, frozen=True, kw_only=True):
    """A start under way, as the next instance finds it should this one be killed.

    Attributes:
        slice: that its units are to be in.
        start_by: µs since boot by when the start has ended, well or not.
        revoked: it is not wanted any more, and to be taken back.
    """

    slice: str = ""
    start_by: int
    revoked: bool = False


class Record(Wanted, frozen=True, kw_only=True):
    """The stored state of a machine. It is replaced as a whole, by its :class:`Machine`'s methods only.

    Attributes:
        placement: where it is.
        asked: why this service was asked to stop it, if it was.
        insist_by: when it is stopped that has been given time to end by itself, µs since boot; None if it has not.
        lost: the helper for whose end this service stopped it, without its log.
        late: this service had its unit stopped when it was ending already.
        bases: from which its counters are told, if they were reset; the verdict tells of all of its life.
        end: of one that has ended, and whose verdict is still to be completed.
        verdict: after the end.
    """

    placement: Placement
    asked: Cause | None = None
    insist_by: int | None = None
    lost: HelperEnd | None = None
    late: bool = False
    bases: Bases | None = None
    end: End | None = None
    verdict: Verdict | None = None

    @property
    def unit(self) -> str:
        """Name of the unit that the machine lives in."""
        return self.placement.unit

    @property
    def control_group(self) -> str:
        """Path of the machine's control group."""
        return self.placement.control_group

    @property
    def invocation_id(self) -> str:
        """Invocation ID of its unit, 32 hexadecimal digits."""
        return self.placement.invocation_id


def record_of(wanted: Wanted, placement: Placement, timestamp: Timestamp) -> Record:
    """Return the record of a machine that has got its place.

    Args:
        wanted: what was asked for.
        placement: where it is.
        timestamp: when that was so.
    """
    fields: dict[str, Any] = {name: getattr(wanted, name) for name in Wanted.__struct_fields__}
    fields["timestamp"] = timestamp
    return Record(**fields, placement=placement)


class Defaults(msgspec.Struct, frozen=True):
    """Defaults for the scope of a machine.

    Attributes:
        slice: that it is in.
        tasks_max: its limit of tasks; of a caller without rights the highest one as well.
    """

    slice: str = MACHINE_SLICE
    tasks_max: int = TASKS_MAX


class Registration(msgspec.Struct, frozen=True):
    """A request for a registration. Field names as in :class:`Wanted`.

    Attributes:
        leader_pidfd: borrowed: it must stay open until the call returns.
        allocate_unit: make a scope; otherwise the machine lives where its leader is.
        slice: where the scope goes; None for the default.
        description: of the scope; None for one made from class and name.
        properties: further properties of the scope, by name.
        slice_properties: of a slice of its own, below ``slice``, for scope and helpers; None for no such slice.
        helpers: services to start with it, checked.
        exec_stop: command that runs before the scope is told to stop, checked; empty for none.
        exec_stop_timeout_usec: how long it may take, µs; None for the default.
        lease: it is to end with the caller's connection.
        dry_run: check everything, create nothing.
        privileged: the caller has the rights of the manager: whatever it wants may be done.
        defaults: those at the time of the call.
    """

    name: str
    class_: MachineClass
    registrant: int
    leader: ProcessId
    leader_pidfd: int
    leader_uid: int
    supervisor: ProcessId | None
    allocate_unit: bool
    identity: Identity = Identity()
    slice: str | None = None
    description: str | None = None
    properties: dict[str, Json] = msgspec.field(default_factory=dict[str, Json])
    slice_properties: dict[str, Json] | None = None
    helpers: tuple[HelperSpec, ...] = ()
    exec_stop: tuple[str, ...] = ()
    exec_stop_timeout_usec: int | None = None
    lease: bool = False
    dry_run: bool = False
    privileged: bool = False
    defaults: Defaults = Defaults()

    @property
    def parent_slice(self) -> str:
        """The slice that the scope goes into, or a slice of its own is below."""
        return self.slice or self.defaults.slice
