"""Resources that a machine has used. Pure data."""

from __future__ import annotations

from typing import Final

import msgspec

JOURNAL_NAMES: Final = {
    "CPU_USAGE_NSEC": "cpu_usage_nsec",
    "MEMORY_PEAK": "memory_peak",
    "MEMORY_SWAP_PEAK": "memory_swap_peak",
    "IO_METRIC_READ_BYTES": "io_read_bytes",
    "IO_METRIC_WRITE_BYTES": "io_write_bytes",
    "IO_METRIC_READ_OPERATIONS": "io_read_operations",
    "IO_METRIC_WRITE_OPERATIONS": "io_write_operations",
    "IP_METRIC_INGRESS_BYTES": "ip_ingress_bytes",
    "IP_METRIC_INGRESS_PACKETS": "ip_ingress_packets",
    "IP_METRIC_EGRESS_BYTES": "ip_egress_bytes",
    "IP_METRIC_EGRESS_PACKETS": "ip_egress_packets",
    "OOM_KILLS": "oom_kills",
    "MANAGED_OOM_KILLS": "managed_oom_kills",
}
"""What the journal calls the counters: the first ones by the service manager's word, the others by ours."""


class Accounting(msgspec.Struct, frozen=True, omit_defaults=True):
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


NOTHING_COUNTED: Final = Accounting()
"""Of a machine that was not read yet: one for all of them."""


COUNTERS: Final = (
    "cpu_usage_nsec", "cpu_user_nsec", "cpu_system_nsec", "cpu_throttled_nsec",
    "io_read_bytes", "io_write_bytes", "io_read_operations", "io_write_operations",
    "ip_ingress_bytes", "ip_ingress_packets", "ip_egress_bytes", "ip_egress_packets",
    "oom_kills", "managed_oom_kills",
)  # fmt: skip
"""What only grows, from the beginning of the group. The rest are gauges and their peaks, of which none is reset."""


def base_of(found: Accounting) -> Accounting:
    """Return the counters without the gauges and peaks."""
    return Accounting(**{name: getattr(found, name) for name in COUNTERS})


def since(found: Accounting, base: Accounting) -> Accounting:
    """Return counters as they have grown since a base; gauges and peaks as they are.

    A counter that was not there then has begun since. One that is below its base has begun again, nobody knows when:
    what it was before is lost, and it is left out.
    """
    grown = {name: _since(getattr(found, name), getattr(base, name)) for name in COUNTERS}
    return msgspec.structs.replace(found, **grown)


def traffic_since(
    found: dict[str, dict[str, int]], base: dict[str, dict[str, int]] | None
) -> dict[str, dict[str, int]]:
    """Return the counters of block devices, by their numbers, as they have grown since a base.

    Args:
        found: as :func:`moorage.machines.use.traffic` returns them.
        base: the same; None where they were too many to be kept, so that nothing is known since.
    """
    if base is None:
        return {}
    grown = {
        device: {name: _since(value, base.get(device, {}).get(name)) for name, value in counters.items()}
        for device, counters in found.items()
    }
    return {
        device: {name: value for name, value in counters.items() if value is not None}
        for device, counters in grown.items()
    }


def _since(value: int | None, base: int | None) -> int | None:
    if value is None or base is None:
        return value
    return value - base if value >= base else None
