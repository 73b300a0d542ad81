"""What a machine has used. Pure data."""

from __future__ import annotations

import msgspec


class Accounting(msgspec.Struct, frozen=True):
    """Counters of a control group; what could not be had is None, never 0.

    Attributes:
        cpu_usage_nsec: CPU time, ns.
        cpu_user_nsec: of that, in user space.
        cpu_system_nsec: of that, in the kernel.
        cpu_throttled_nsec: for how long a quota kept the group from running, ns.
        memory_current: bytes.
        memory_peak: bytes.
        memory_swap_current: bytes.
        memory_swap_peak: bytes.
        tasks_current: number of tasks.
        tasks_peak: the same.
        io_read_bytes: summed over devices.
        io_write_bytes: summed over devices.
        io_read_operations: summed over devices.
        io_write_operations: summed over devices.
        ip_ingress_bytes: counted by the service manager, where it was asked to.
        ip_ingress_packets: the same.
        ip_egress_bytes: the same.
        ip_egress_packets: the same.
        oom_kills: processes killed by the kernel's OOM killer.
        managed_oom_kills: processes killed by systemd-oomd.
    """

    cpu_usage_nsec: int | None = None
    cpu_user_nsec: int | None = None
    cpu_system_nsec: int | None = None
    cpu_throttled_nsec: int | None = None
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
