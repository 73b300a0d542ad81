"""Everything about one machine, for people: what it uses beside what it may, pressure, and what differs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import click

from moorage.cli.endings import LACK_OF_MEMORY, leader_end, reason
from moorage.cli.properties.display import limit_words, setting_name
from moorage.cli.service import Reply
from moorage.cli.views import PHASE_COLOURS, decoded, phase_of
from moorage.client.methods import Described
from moorage.client.types import Accounting, Machine, Pressures, ProcessId, Timestamp
from moorage.quantities import format_size, format_span, printable

BAR_WIDTH: Final = 16
"""Columns of a bar; beside the words about memory it fits into 80."""

FULL: Final = 0.9
"""The share of a limit from which on its bar is red: the kernel reclaims, or will soon refuse."""


class _Line(NamedTuple):
    """One line of the details.

    Attributes:
        label: what it is.
        text: its value; may come from anywhere.
        share: of the limit that is used, for a bar; None where there is no limit.
    """

    label: str
    text: str
    share: float | None = None


def show_status(reply: Reply) -> None:
    """Print everything about a machine; on a terminal in colours, with bars."""
    found = decoded(reply, Described)
    machine = found.machine
    lines = [
        *(_Line(*pair) for pair in _details(machine)),
        *_usage(found.accounting, found.effective or {}),
        *_since(found.accounting_since),
        *(_Line(*pair) for pair in _pressure(found.pressure)),
        *(_Line(*pair) for pair in _limits(found.limits, found.effective)),
        *(() if found.devices is None else [_Line("Devices", ", ".join(found.devices) or "none")]),
    ]
    width = max(len(line.label) for line in lines)
    if sys.stdout.isatty():
        _draw(machine, lines, width)
        return
    click.echo(printable(machine.name))
    for line in lines:
        click.echo(f"{line.label:>{width}}: {printable(line.text)}")


def _draw(machine: Machine, lines: Iterable[_Line], width: int) -> None:
    # This import doubles the start time of moorctl, and only a terminal needs it.
    from rich.console import Console
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    console = Console(highlight=False)
    # As Text, because rich would interpret markup in a str, and never wrapped: who copies a path wants it whole.
    console.print(Text(printable(machine.name), "bold"), soft_wrap=True)
    for line in lines:
        style = PHASE_COLOURS.get(machine.phase, "") if line.label == "Phase" else ""
        words = Text.assemble(f"{line.label:>{width}}: ", (printable(line.text), style))
        if line.share is not None:
            colour = "red" if line.share >= FULL else "green"
            bar = ProgressBar(
                1.0, min(line.share, 1.0), BAR_WIDTH, complete_style=colour, finished_style=colour
            )
            # As words of the line: printed by itself, a bar has no end of a line.
            words.append("  ")
            for part in console.render(bar):
                words.append(part.text, part.style)
        console.print(words, soft_wrap=True)


def _details(machine: Machine) -> Iterator[tuple[str, str]]:
    verdict = machine.verdict
    since = machine.timestamp if verdict is None else verdict.exited_at
    yield "Phase", f"{phase_of(machine)} since {_moment(since.realtime)}"
    if verdict is not None:
        yield "Registered", _moment(machine.timestamp.realtime)
        why = reason(verdict) or ""
        killed = LACK_OF_MEMORY if verdict.oom_killed and LACK_OF_MEMORY not in why else None
        limit = f"limit of {verdict.oom_control_group}" if verdict.oom_control_group else None
        words = (why, killed, limit, leader_end(verdict), f"result {verdict.result}")
        yield "Ended", ", ".join(word for word in words if word)
        for line in verdict.log or ():
            yield "Log", line
    yield "Class", machine.class_
    for label, value in (
        ("Service", machine.service),
        ("ID", machine.id),
        ("Unit", machine.unit),
        ("Slice", machine.slice),
        ("Control group", machine.control_group),
        ("Subgroup", machine.subgroup),
        ("Invocation", machine.invocation_id),
        ("Leader", _process(machine.leader)),
        ("Supervisor", _process(machine.supervisor)),
        ("UID", machine.uid),
        ("Runtime directory", machine.runtime_directory),
        ("Root directory", machine.root_directory),
        ("Interfaces", " ".join(map(str, machine.if_indices))),
        ("VSOCK CID", machine.vsock_cid),
        ("SSH address", machine.ssh_address),
        ("SSH private key", machine.ssh_private_key_path),
        ("Control address", machine.control_address),
    ):
        if value not in {None, ""}:
            yield label, str(value)
    for helper in machine.helpers:
        # In the words of systemctl.
        failed = helper.active_state == "failed" and helper.result
        state = f"Result: {helper.result}" if failed else helper.sub_state
        yield "Helper", f"{helper.name}: {helper.unit}, {helper.active_state} ({state})"


def _process(process: ProcessId | None) -> str | None:
    return None if process is None else f"PID {process.pid}"


def _moment(usec: int | None) -> str:
    """Write a point in time, in µs since the epoch, in the caller's time zone."""
    if usec is None:
        return "unknown"
    try:
        moment = time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(usec // 1_000_000))
    except (OverflowError, OSError, ValueError):  # a year that the C library cannot represent
        return "unknown"
    passed = time.time_ns() // 1000 - usec
    if passed < 1_000_000:  # in the future, if the clock was set back
        return moment
    return f"{moment}; {format_span(passed // 1_000_000 * 1_000_000, units=2)} ago"


def _usage(usage: Accounting, limits: Mapping[str, Any]) -> Iterator[_Line]:
    """Yield what is used, beside the limits in force."""
    if usage.cpu_usage_nsec is not None:
        parts = (("user", usage.cpu_user_nsec), ("system", usage.cpu_system_nsec))
        shown = [f"{name} {format_span(each // 1000, units=2)}" for name, each in parts if each is not None]
        if usage.cpu_throttled_nsec:
            shown.append(f"throttled for {format_span(usage.cpu_throttled_nsec // 1000, units=2)}")
        rest = f" ({', '.join(shown)})" if shown else ""
        yield _Line("CPU", format_span(usage.cpu_usage_nsec // 1000, units=2) + rest)
    memory_max = limits.get("MemoryMax") or limits.get("MemoryHigh")
    yield from _gauge("Memory", usage.memory_current, usage.memory_peak, memory_max, format_size)
    yield from _gauge(
        "Swap", usage.memory_swap_current, usage.memory_swap_peak, limits.get("MemorySwapMax"), format_size
    )
    yield from _gauge("Tasks", usage.tasks_current, usage.tasks_peak, limits.get("TasksMax"), str)
    yield from _pair("IO", "read", usage.io_read_bytes, "written", usage.io_write_bytes)
    yield from _pair("IP", "in", usage.ip_ingress_bytes, "out", usage.ip_egress_bytes)
    if usage.oom_kills or usage.managed_oom_kills:
        yield _Line(
            "OOM kills",
            f"{usage.oom_kills or 0} by the kernel, {usage.managed_oom_kills or 0} by systemd-oomd",
        )


def _gauge(
    label: str, current: int | None, peak: int | None, limit: object, words: Callable[[int], str]
) -> Iterator[_Line]:
    """Yield what is used now, of the limit in force if there is one; of what has ended, the peak."""
    if current is None:
        if peak is not None:
            yield _Line(label, f"peak {words(peak)}")
        return
    rest = "" if peak is None else f" (peak {words(peak)})"
    if not isinstance(limit, int) or isinstance(limit, bool) or limit <= 0:
        yield _Line(label, words(current) + rest)
        return
    share = current / limit
    yield _Line(label, f"{words(current)} of {words(limit)}, {share:.0%}{rest}", share)


def _since(reset: Timestamp | None) -> Iterator[_Line]:
    if reset is not None:
        yield _Line("Counted since", _moment(reset.realtime))


def _pressure(found: Pressures | None) -> Iterator[tuple[str, str]]:
    if found is None:
        return
    shown = [
        f"{name} {each.some.avg10:.0f}%"
        for name, each in (("CPU", found.cpu), ("memory", found.memory), ("IO", found.io))
        if each is not None and each.some is not None
    ]
    if shown:
        yield "Pressure", f"{', '.join(shown)} of the last 10s"


def _pair(
    label: str, first: str, first_size: int | None, second: str, second_size: int | None
) -> Iterator[_Line]:
    given = [(first, first_size), (second, second_size)]
    text = ", ".join(f"{format_size(size)} {name}" for name, size in given if size is not None)
    if text:
        yield _Line(label, text)


_ENFORCED: Final = frozenset({
    "CPUWeight", "CPUQuotaPerSecUSec", "AllowedCPUs", "AllowedMemoryNodes", "IOWeight", "IODeviceWeight",
    "IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax", "IODeviceLatencyTargetUSec",
    "MemoryMin", "MemoryLow", "MemoryHigh", "MemoryMax", "MemorySwapMax", "MemoryZSwapMax", "TasksMax",
})  # fmt: skip
"""Limits that the kernel has wherever they are in force."""

_IDLE: Final = ("CPUWeight", 0)
"""The only limit of 0 that is one without a limit elsewhere."""

_CEILINGS: Final = (
    "CPUQuotaPerSecUSec", "IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax", "MemoryHigh",
    "MemoryMax", "MemorySwapMax", "MemoryZSwapMax", "TasksMax",
)  # fmt: skip
"""Limits that a slice above may set alone."""


def _limits(limits: Mapping[str, Any], effective: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Yield what is configured, with what is in force where that differs.

    Args:
        limits: as they are configured.
        effective: as they are in force; None where that is not told.
    """
    for name, value in limits.items():
        if value == []:  # an empty set of CPUs means all of them
            continue
        words = limit_words(name, value)
        if effective is not None and name in effective:
            in_force = limit_words(name, effective[name])
            words += "" if in_force == words else f" (in force: {in_force})"
        elif effective is not None and name in _ENFORCED and (value or (name, value) == _IDLE):
            words += " (not seen in force)"
        yield setting_name(name), words
    for name in _CEILINGS:
        found = (effective or {}).get(name)
        if found is None or limits.get(name) not in (None, []):
            continue
        # A lower limit of all memory is one for this, too.
        if name != "MemoryHigh" or found != (effective or {}).get("MemoryMax"):
            yield setting_name(name), f"not set (in force: {limit_words(name, found)})"
