"""What moorctl prints: tables, details, JSON.

``--json`` is for programs: one JSON object per line. Everything else is for people, and may change.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import click
import msgspec

from moorage.cli.endings import LACK_OF_MEMORY, leader_end, reason
from moorage.cli.failures import Exit, Failure
from moorage.cli.properties.display import limit_words, setting_name, setting_words
from moorage.cli.service import Reply
from moorage.client.methods import (
    ConfigurationDescribed,
    Described,
    HelpersAdded,
    HelpersReloaded,
    OneMachine,
    PropertiesSet,
    Registered,
)
from moorage.client.types import Accounting, Difference, Machine, Pressures, ProcessId
from moorage.quantities import format_size, format_span, printable

T = TypeVar("T")

ABSENT: Final = "-"

COLUMNS: Final = ("NAME", "CLASS", "PHASE", "SERVICE", "UNIT", "LEADER", "UID", "ADDRESS")

_PHASE_COLOURS: Final = {
    "starting": "yellow",
    "running": "green",
    "stopping": "yellow",
    "lingering": "red",
    "exited": "bright_black",
}


class _MachineText(msgspec.Struct):
    machine: msgspec.Raw


def _decoded(text: msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Failure(Exit.NO_SERVICE, f"The reply of the service makes no sense: {error}") from None


def show_json(reply: Reply, *, err: bool = False) -> None:
    """Print a reply on one line, to standard output or to stderr.

    The values are those that were received; characters that could control a terminal are escaped, as JSON allows it
    everywhere in a string.
    """
    # The service may have written line breaks.
    text = msgspec.json.format(bytes(reply), indent=-1).decode()
    click.echo("".join(char if char.isprintable() else _escaped(char) for char in text), err=err)


def _escaped(char: str) -> str:
    """Write a character of a JSON string by its number (RFC 8259, section 7)."""
    units = memoryview(char.encode("utf-16")).cast("H")[1:]  # in this machine's order, without the mark
    return "".join(f"\\u{unit:04x}" for unit in units)


def show_machine_json(reply: Reply) -> None:
    """Print the machine of a reply as received, on one line."""
    show_json(_decoded(reply, _MachineText).machine)


def show_helpers(reply: Reply) -> None:
    """Print the names of the helpers' units."""
    for helper in _decoded(reply, HelpersAdded).helpers:
        click.echo(printable(helper.unit))


def reloaded(reply: Reply) -> tuple[list[str], list[str]]:
    """Return the names of the helpers that were reloaded, and of those that cannot be reloaded."""
    decoded = _decoded(reply, HelpersReloaded)
    return decoded.reloaded, decoded.skipped


def show_registered(reply: Reply) -> None:
    """Print the name of the machine's unit, and warn of properties that are not in force as requested.

    After a dry run, also print the properties that it and the other units would get.
    """
    unit = machine_registered(reply).unit
    click.echo(printable(unit))
    show_planned(reply, heading=unit)


def show_units(reply: Reply) -> None:
    """Print the units of a dry run, below a line that says what they are; nothing if there are none."""
    if _decoded(reply, Registered).units:
        click.echo("The units would have:")
        show_planned(reply)


def show_planned(reply: Reply, heading: str = "") -> None:
    """Print the units that a machine would get, with their properties as --property takes them.

    Args:
        reply: to a dry run.
        heading: the unit whose name has been printed.
    """
    for planned in _decoded(reply, Registered).units or ():
        if planned.unit != heading:
            click.echo(printable(planned.unit))
        for values, remark in ((planned.defaults, " (default)"), (planned.properties, "")):
            for name, value in values.items():
                text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
                click.echo(printable(f"  {name}={text}{remark}"))


def machine_registered(reply: Reply) -> Machine:
    """Return the machine that was registered, and warn of properties that are not in force as requested."""
    warn_of_differences(reply)
    return _decoded(reply, Registered).machine


def warn_of_differences(reply: Reply) -> None:
    """Warn of properties that are not in force as requested."""
    for difference in _decoded(reply, PropertiesSet).differences:
        click.echo(f"Warning: {_difference(difference)}", err=True)


def _difference(difference: Difference) -> str:
    name, wanted = setting_words(difference.property, difference.wanted)
    what = "has no effect"
    if difference.effective is not None:
        what = f"is in force as {setting_words(difference.property, difference.effective)[1]}"
    where = "" if difference.helper is None else f"helper {difference.helper}: "
    return printable(f"{where}{name}={wanted} {what}: {difference.reason}")


def machine_described(reply: Reply) -> Machine:
    """Return the machine of a reply to Describe."""
    return _decoded(reply, Described).machine


def show_name(reply: Reply) -> None:
    """Print the name of the machine."""
    click.echo(printable(_decoded(reply, OneMachine).machine.name))


def machines_of(replies: Iterable[Reply]) -> list[Machine]:
    """Return the machines of several replies, sorted by name."""
    machines = [_decoded(reply, OneMachine).machine for reply in replies]
    return sorted(machines, key=lambda machine: machine.name)


def show_list(replies: Sequence[Reply], *, legend: bool) -> None:
    """Print a table of machines, with colours and a count on a terminal."""
    machines = machines_of(replies)
    rows = [_row(machine) for machine in machines]
    if sys.stdout.isatty():
        _draw(rows, [machine.phase for machine in machines], legend=legend)
    else:
        for line in _aligned([COLUMNS, *rows] if legend else rows):
            click.echo(line)


def show_list_again(replies: Sequence[Reply], *, legend: bool, first: bool) -> None:
    """Print a table of machines in place of the last one: on a terminal, where that was; else below it.

    Args:
        replies: one for each machine.
        legend: print the heading and the count.
        first: there is none before.
    """
    if sys.stdout.isatty():
        click.clear()
    elif not first:
        click.echo()
    show_list(replies, legend=legend)
    sys.stdout.flush()


def _row(machine: Machine) -> tuple[str, ...]:
    cells = (
        machine.name,
        machine.class_,
        _phase(machine),
        machine.service,
        machine.unit + (machine.subgroup or ""),
        None if machine.leader is None else str(machine.leader.pid),
        str(machine.uid),
        machine.ssh_address,
    )
    return tuple(printable(cell) if cell else ABSENT for cell in cells)


def _phase(machine: Machine) -> str:
    if machine.phase == "exited" and machine.verdict is not None:
        return f"exited ({machine.verdict.result})"
    return machine.phase if machine.freezer == "running" else f"{machine.phase} ({machine.freezer})"


def _draw(rows: Iterable[Sequence[str]], phases: Iterable[str], *, legend: bool) -> None:
    # This import doubles the start time of moorctl, and only a table on a terminal needs it.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=legend, pad_edge=False, padding=(0, 2, 0, 0))
    for column in COLUMNS:
        # A name copied from a narrow terminal must be complete.
        table.add_column(column, overflow="fold", justify="right" if column in {"LEADER", "UID"} else "left")
    for row, phase in zip(rows, phases, strict=True):
        styles = ["bold", "", _PHASE_COLOURS.get(phase, ""), *[""] * (len(row) - 3)]
        # As Text, because rich would interpret markup in a str, and these words come from outside.
        table.add_row(*(Text(cell, style) for cell, style in zip(row, styles, strict=True)))
    console = Console()
    console.print(table)
    if legend:
        console.print(f"\n{table.row_count} machine{'' if table.row_count == 1 else 's'}.", highlight=False)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def show_configuration(reply: Reply) -> None:
    """Print the options of the service, and to stderr what is wrong with its files."""
    decoded = _decoded(reply, ConfigurationDescribed)
    rows = [("OPTION", "VALUE", "SOURCE", "AFTER RESTART")]
    for option in decoded.options:
        later = option.after_restart or ""
        if later and option.after_restart_source:
            later += f" ({option.after_restart_source})"
        cells = (option.name, option.value, option.source or "", later)
        rows.append(tuple(map(printable, cells)))  # pyright: ignore[reportArgumentType]
    # Sources are not told to everybody, and most of the time no option waits for a restart.
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    for line in _aligned(list(zip(*columns, strict=True))):
        click.echo(line)
    for problem in decoded.problems or ():
        click.echo(f"Warning: {printable(problem)}", err=True)


def show_status(reply: Reply) -> None:
    """Print everything about a machine."""
    decoded = _decoded(reply, Described)
    machine = decoded.machine
    click.echo(click.style(printable(machine.name), bold=True))
    lines = [
        *_details(machine),
        *_usage(decoded.accounting),
        *_pressure(decoded.pressure),
        *_limits(decoded.limits),
    ]
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        text = printable(value)
        if label == "Phase":
            text = click.style(text, fg=_PHASE_COLOURS.get(machine.phase))
        click.echo(f"{label:>{width}}: {text}")


def _details(machine: Machine) -> Iterator[tuple[str, str]]:
    verdict = machine.verdict
    since = machine.timestamp if verdict is None else verdict.exited_at
    yield "Phase", f"{_phase(machine)} since {_moment(since.realtime)}"
    if verdict is not None:
        yield "Registered", _moment(machine.timestamp.realtime)
        why = reason(verdict) or ""
        killed = LACK_OF_MEMORY if verdict.oom_killed and LACK_OF_MEMORY not in why else None
        words = (why, killed, leader_end(verdict), f"result {verdict.result}")
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
        yield "Helper", f"{helper.name}: {helper.unit}, {helper.active_state} ({helper.sub_state})"


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


def _usage(usage: Accounting) -> Iterator[tuple[str, str]]:
    if usage.cpu_usage_nsec is not None:
        parts = (("user", usage.cpu_user_nsec), ("system", usage.cpu_system_nsec))
        shown = [f"{name} {format_span(each // 1000, units=2)}" for name, each in parts if each is not None]
        if usage.cpu_throttled_nsec:
            shown.append(f"throttled for {format_span(usage.cpu_throttled_nsec // 1000, units=2)}")
        rest = f" ({', '.join(shown)})" if shown else ""
        yield "CPU", format_span(usage.cpu_usage_nsec // 1000, units=2) + rest
    yield from _joined(
        "Memory", usage.memory_current, (("peak", usage.memory_peak), ("swap", usage.memory_swap_current))
    )
    if usage.tasks_current is not None:
        peak = "" if usage.tasks_peak is None else f" (peak {usage.tasks_peak})"
        yield "Tasks", f"{usage.tasks_current}{peak}"
    yield from _pair("IO", "read", usage.io_read_bytes, "written", usage.io_write_bytes)
    yield from _pair("IP", "in", usage.ip_ingress_bytes, "out", usage.ip_egress_bytes)
    if usage.oom_kills or usage.managed_oom_kills:
        yield (
            "OOM kills",
            f"{usage.oom_kills or 0} by the kernel, {usage.managed_oom_kills or 0} by systemd-oomd",
        )


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


def _joined(
    label: str, size: int | None, further: Iterable[tuple[str, int | None]]
) -> Iterator[tuple[str, str]]:
    if size is not None:
        rest = ", ".join(f"{name} {format_size(each)}" for name, each in further if each is not None)
        yield label, format_size(size) + (f" ({rest})" if rest else "")


def _pair(
    label: str, first: str, first_size: int | None, second: str, second_size: int | None
) -> Iterator[tuple[str, str]]:
    given = [(first, first_size), (second, second_size)]
    text = ", ".join(f"{format_size(size)} {name}" for name, size in given if size is not None)
    if text:
        yield label, text


def _limits(limits: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in limits.items():
        if value != []:  # an empty set of CPUs means all of them
            yield setting_name(name), limit_words(name, value)
