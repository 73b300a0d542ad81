"""Replies of the service, as far as moorctl reads them. The names are those of io.moorage.Machine.varlink.

Fields of a newer service are skipped, and words of which there may be more one day (phase, class) are plain strings.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field


class ProcessId(Struct, rename="camel"):
    """A process."""

    pid: int


class Timestamp(Struct, rename="camel"):
    """A point in time, in µs since the epoch and since boot."""

    realtime: int | None = None
    monotonic: int | None = None


class Accounting(Struct, rename="camel"):
    """Counters: in bytes, the CPU time in ns."""

    cpu_usage_nsec: int | None = field(name="cpuUsageNSec", default=None)
    memory_current: int | None = None
    memory_peak: int | None = None
    memory_swap_current: int | None = None
    tasks_current: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    io_read_operations: int | None = None
    io_write_operations: int | None = None
    ip_ingress_bytes: int | None = None
    ip_egress_bytes: int | None = None
    oom_kills: int | None = None
    managed_oom_kills: int | None = None


class Verdict(Struct, rename="camel"):
    """How a machine ended."""

    result: str
    exited_at: Timestamp
    accounting: Accounting
    cause: str | None = None
    oom_killed: bool | None = None
    leader_status: int | None = None
    leader_signal: int | None = None
    helper: str | None = None
    helper_result: str | None = None
    log: list[str] = []


class HelperStatus(Struct, rename="camel"):
    """A service of the machine."""

    name: str
    unit: str
    active_state: str
    sub_state: str
    result: str | None = None


class Machine(Struct, rename="camel"):
    """A machine."""

    name: str
    class_: str = field(name="class")
    phase: str
    freezer: str
    uid: int
    unit: str
    slice: str
    control_group: str
    invocation_id: str
    timestamp: Timestamp
    id: str | None = None
    service: str | None = None
    subgroup: str | None = None
    leader: ProcessId | None = None
    supervisor: ProcessId | None = None
    runtime_directory: str | None = None
    root_directory: str | None = None
    if_indices: list[int] = []
    vsock_cid: int | None = field(name="vSockCid", default=None)
    ssh_address: str | None = None
    ssh_private_key_path: str | None = None
    control_address: str | None = None
    helpers: list[HelperStatus] = []
    verdict: Verdict | None = None


class Difference(Struct, rename="camel"):
    """A property whose value in force differs from the requested one."""

    property: str
    wanted: str
    reason: str
    effective: str | None = None
    helper: str | None = None


class MachineReply(Struct):
    """Of List, Find and Stop."""

    machine: Machine


class PlannedUnit(Struct):
    """A unit that a machine would get."""

    unit: str
    defaults: dict[str, Any]
    properties: dict[str, Any]


class RegisterReply(Struct):
    """Of Register."""

    machine: Machine
    differences: list[Difference]
    units: list[PlannedUnit] = []


class HelpersReply(Struct):
    """Of AddHelpers."""

    helpers: list[HelperStatus]


class ReloadReply(Struct):
    """Of Reload."""

    reloaded: list[str]
    skipped: list[str]


class DescribeReply(Struct):
    """Of Describe."""

    machine: Machine
    accounting: Accounting
    limits: dict[str, Any]


class PropertiesReply(Struct):
    """Of DescribeProperties."""

    properties: dict[str, str]
