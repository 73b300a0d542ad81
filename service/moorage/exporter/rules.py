"""What each family of io.systemd.Metrics is called for Prometheus: names, units and labels by its conventions.

https://prometheus.io/docs/practices/naming/ asks for base units (seconds, bytes), ``_total`` at the end of counters,
and labels with few values. ``machine`` and ``helper`` have as many as there are machines and helpers; those of all
others are words of moored's own.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

PREFIX: Final = "io.moorage.Machine."
"""What the names of all families begin with."""


class Rule(NamedTuple):
    """A metric, and where its values come from.

    Attributes:
        metric: its name, a counter's without ``_total``.
        kind: its type. A summary has two rules: one for the count, one for the sum.
        help: what it is.
        labels: their names and, for each, the field that has its value; an empty one for the object.
        where: values of fields that a value must have to be meant.
        divisor: what a value is divided by to get base units.
        word: of a text, the value that stands for 1; None to have the text itself as the value of the last label.
    """

    metric: str
    kind: Literal["counter", "gauge", "count", "sum", "word"]
    help: str
    labels: Mapping[str, str] = {}
    where: Mapping[str, str] = {}
    divisor: int = 1
    word: str | None = None


_MACHINE: Final = {"machine": ""}
_HELPER: Final = {"machine": "", "helper": "helper"}
_NSEC, _USEC = 1_000_000_000, 1_000_000


def _of_machine(
    kind: Literal["counter", "gauge"], metric: str, about: str, divisor: int = 1, **where: str
) -> Rule:
    return Rule(f"moorage_machine_{metric}", kind, about, _MACHINE, where, divisor)


def _summary(metric: str, about: str) -> tuple[Rule, Rule]:
    labels = {"call": "call"}
    return Rule(metric, "count", about, labels), Rule(metric, "sum", about, labels, divisor=_USEC)


_REPLIES, _REPLY_TIME = _summary(
    "moorage_manager_reply_seconds", "Time that the service manager took to answer."
)
_JOBS, _JOB_TIME = _summary(
    "moorage_manager_job_seconds", "Time from the call of the service manager to the end of the job."
)
_WAITING, _STALLED = "pressure_waiting_seconds", "pressure_stalled_seconds"
_PRESSURE: Final = {"machine": "", "resource": "resource"}

RULES: Final[Mapping[str, tuple[Rule, ...]]] = {
    "Calls": (
        Rule("moorage_calls", "counter", "Calls of methods that were received.", {"method": "method"}),
    ),
    "Connections": (Rule("moorage_connections", "gauge", "Connections, those for metrics not included."),),
    "CpuThrottled": (
        _of_machine("counter", "cpu_throttled_seconds", "Time for which a quota kept it from running.", _NSEC),
    ),
    "CpuUsage": tuple(
        Rule("moorage_machine_cpu_seconds", "counter", "CPU time, by where it was spent.",
             {"machine": "", "mode": "type"}, {"type": mode}, _NSEC)
        for mode in ("user", "system")
    ),
    "Errors": (
        Rule("moorage_call_errors", "counter", "Calls that were answered with an error.", {"error": "error"}),
    ),
    "Events": (
        Rule("moorage_events", "counter", "Events that have happened to machines.", {"event": "event"}),
    ),
    "FreezerState": (
        Rule("moorage_machine_frozen", "word", "Whether its processes are frozen.", _MACHINE, word="frozen"),
    ),
    "HelperRestarts": (
        Rule("moorage_helper_restarts", "counter", "Automatic restarts of a helper.", _HELPER),
    ),
    "HelperState": (
        Rule("moorage_helper_active", "word", "Whether a helper is active.", _HELPER, word="active"),
    ),
    "IOReadBytes": (_of_machine("counter", "io_read_bytes", "Bytes read from block devices."),),
    "IOReadOperations": (_of_machine("counter", "io_reads", "Reads from block devices."),),
    "IOWriteBytes": (_of_machine("counter", "io_written_bytes", "Bytes written to block devices."),),
    "IOWriteOperations": (_of_machine("counter", "io_writes", "Writes to block devices."),),
    "MachinesEnded": (
        Rule("moorage_machines_ended", "counter", "Machines that have ended, by cause.", {"cause": "cause"}),
    ),
    "MachinesTotal": (
        Rule("moorage_machines", "gauge", "Machines that there are.", {"class": "class", "phase": "phase"}),
    ),
    "ManagerJobTime": (_JOB_TIME,),
    "ManagerJobs": (_JOBS,),
    "ManagerReplies": (_REPLIES,),
    "ManagerReplyTime": (_REPLY_TIME,),
    "MemoryLimit": (
        _of_machine("gauge", "memory_limit_bytes", "Lowest memory limit of it and of the slices it is in."),
    ),
    "MemoryUsage": (
        _of_machine("gauge", "memory_bytes", "Memory in use.", type="current"),
        _of_machine("gauge", "memory_peak_bytes", "Most memory that was in use.", type="peak"),
    ),
    "OOMKills": (
        Rule("moorage_machine_oom_kills", "counter", "Processes killed for lack of memory.",
             {"machine": "", "by": "by"}),
    ),
    "Phase": (
        Rule("moorage_machine_phase", "word", "1 for the phase that a machine is in.",
             {"machine": "", "phase": ""}),
    ),
    "PressureTime": (
        Rule(f"moorage_machine_{_WAITING}", "counter", "Time for which at least one task waited for a resource.",
             _PRESSURE, {"type": "some"}, _USEC),
        Rule(f"moorage_machine_{_STALLED}", "counter", "Time for which all tasks waited for a resource at once.",
             _PRESSURE, {"type": "full"}, _USEC),
    ),
    "StartTimestamp": (
        _of_machine("gauge", "start_time_seconds", "When it was registered, since the epoch.", _USEC),
    ),
    "Subscribers": (Rule("moorage_subscribers", "gauge", "Callers that are told of events."),),
    "SwapUsage": (
        _of_machine("gauge", "swap_bytes", "Swap space in use.", type="current"),
        _of_machine("gauge", "swap_peak_bytes", "Most swap space that was in use.", type="peak"),
    ),
    "TasksCurrent": (_of_machine("gauge", "tasks", "Number of tasks."),),
    "TasksLimit": (_of_machine("gauge", "tasks_limit", "Lowest limit of tasks of it and of the slices it is in."),),
    "Version": (
        Rule("moorage_build_info", "word", "1, with the version of moored.", {"version": ""}),
    ),
}  # fmt: skip
"""By the family's name without the prefix. Families of a later moored are left out, and so is ``Uptime``: the moment
of the start says the same, and does not change."""
