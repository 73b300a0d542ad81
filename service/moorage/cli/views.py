"""What moorctl prints: tables, details, JSON.

``--json`` is for programs: one JSON object per line. Everything else is for people, and may change.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

import click
import msgspec

from moorage.cli.failures import Exit, Failure
from moorage.cli.properties.display import assignment, setting_words
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
from moorage.client.types import Difference, Machine
from moorage.quantities import printable

T = TypeVar("T")

ABSENT: Final = "-"

COLUMNS: Final = ("NAME", "CLASS", "PHASE", "SERVICE", "UNIT", "LEADER", "UID", "ORIGIN", "ADDRESS")

PHASE_COLOURS: Final = {
    "starting": "yellow",
    "running": "green",
    "stopping": "yellow",
    "lingering": "red",
    "exited": "bright_black",
}
"""Colours of phases on a terminal."""


class _MachineText(msgspec.Struct):
    machine: msgspec.Raw


def decoded(text: msgspec.Raw, kind: type[T]) -> T:
    """Decode a reply.

    Raises:
        Failure: it is not of that kind.
    """
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


def show_machine_json(reply: Reply, host: str | None = None) -> None:
    """Print the machine of a reply as received, on one line."""
    show_json(on_host(decoded(reply, _MachineText).machine, host))


def on_host(text: msgspec.Raw, host: str | None) -> msgspec.Raw:
    """Return a JSON object with the name of the host that it is from, if that has to be told."""
    if host is None:
        return text
    return msgspec.Raw(msgspec.json.encode({"host": host, **decoded(text, dict[str, msgspec.Raw])}))


def show_helpers(reply: Reply) -> None:
    """Print the names of the helpers' units."""
    for helper in decoded(reply, HelpersAdded).helpers:
        click.echo(printable(helper.unit))


def reloaded(reply: Reply) -> tuple[list[str], list[str]]:
    """Return the names of the helpers that were reloaded, and of those that cannot be reloaded."""
    found = decoded(reply, HelpersReloaded)
    return found.reloaded, found.skipped


def show_registered(reply: Reply) -> None:
    """Print the name of the machine's unit, and warn of properties that are not in force as requested.

    After a dry run, also print the properties that it and the other units would get.
    """
    unit = machine_registered(reply).unit
    click.echo(printable(unit))
    show_planned(reply, heading=unit)


def show_units(reply: Reply) -> None:
    """Print the units of a dry run, below a line that says what they are; nothing if there are none."""
    if decoded(reply, Registered).units:
        click.echo("The units would have:")
        show_planned(reply)


def show_planned(reply: Reply, heading: str = "") -> None:
    """Print the units that a machine would get, with their properties as --property takes them.

    Args:
        reply: to a dry run.
        heading: the unit whose name has been printed.
    """
    for planned in decoded(reply, Registered).units or ():
        if planned.unit != heading:
            click.echo(printable(planned.unit))
        for values, remark in ((planned.defaults, " (default)"), (planned.properties, "")):
            for name, value in values.items():
                click.echo(printable(f"  {assignment(name, value)}{remark}"))


def machine_registered(reply: Reply) -> Machine:
    """Return the machine that was registered, and warn of properties that are not in force as requested."""
    warn_of_differences(reply)
    return decoded(reply, Registered).machine


def warn_of_differences(reply: Reply) -> None:
    """Warn of properties that are not in force as requested."""
    for difference in decoded(reply, PropertiesSet).differences:
        click.echo(f"Warning: {_difference(difference)}", err=True)


def _difference(difference: Difference) -> str:
    name, wanted = setting_words(difference.property, difference.wanted)
    what = "has no effect"
    if difference.effective is not None:
        effective = setting_words(difference.property, difference.effective)[1]
        what = "is in force" if effective == wanted else f"is in force as {effective}"
    where = "" if difference.helper is None else f"helper {difference.helper}: "
    return printable(f"{where}{name}={wanted} {what}: {difference.reason}")


def machine_described(reply: Reply) -> Machine:
    """Return the machine of a reply to Describe."""
    return decoded(reply, Described).machine


def show_name(reply: Reply) -> None:
    """Print the name of the machine."""
    click.echo(printable(decoded(reply, OneMachine).machine.name))


def machines_of(replies: Iterable[Reply]) -> list[Machine]:
    """Return the machines of several replies, sorted by name."""
    machines = [decoded(reply, OneMachine).machine for reply in replies]
    return sorted(machines, key=lambda machine: machine.name)


def show_list(replies: Sequence[Reply], *, legend: bool, hosts: Sequence[str] | None = None) -> None:
    """Print a table of machines, with colours and a count on a terminal.

    Args:
        replies: one for each machine.
        legend: print the heading and the count.
        hosts: of the machines, if they are of several.
    """
    machines = machines_of(replies)
    columns, rows = COLUMNS, [_row(machine) for machine in machines]
    if hosts is not None:
        columns, rows = (*COLUMNS, "HOST"), [(*row, host) for row, host in zip(rows, hosts, strict=True)]
    if sys.stdout.isatty():
        _draw(columns, rows, [machine.phase for machine in machines], legend=legend)
    else:
        for line in _aligned([columns, *rows] if legend else rows):
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
        phase_of(machine),
        machine.service,
        machine.unit + (machine.subgroup or ""),
        None if machine.leader is None else str(machine.leader.pid),
        str(machine.uid),
        machine.origin,
        machine.ssh_address,
    )
    return tuple(printable(cell) if cell else ABSENT for cell in cells)


def phase_of(machine: Machine) -> str:
    """Write the phase of a machine, with the state of its freezer, or with its result."""
    if machine.phase == "exited" and machine.verdict is not None:
        return f"exited ({machine.verdict.result})"
    return phase_words(machine.phase, machine.freezer)


def phase_words(phase: str, freezer: str) -> str:
    """Write a phase, with the state of the freezer unless that is none."""
    return phase if freezer == "running" else f"{phase} ({freezer})"


def _draw(
    columns: Sequence[str], rows: Iterable[Sequence[str]], phases: Iterable[str], *, legend: bool
) -> None:
    # This import doubles the start time of moorctl, and only a table on a terminal needs it.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=legend, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        # A name copied from a narrow terminal must be complete.
        table.add_column(column, overflow="fold", justify="right" if column in {"LEADER", "UID"} else "left")
    for row, phase in zip(rows, phases, strict=True):
        styles = ["bold", "", PHASE_COLOURS.get(phase, ""), *[""] * (len(row) - 3)]
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
    found = decoded(reply, ConfigurationDescribed)
    rows = [("OPTION", "VALUE", "SOURCE", "AFTER RESTART")]
    for option in found.options:
        later = option.after_restart or ""
        if later and option.after_restart_source:
            later += f" ({option.after_restart_source})"
        cells = (option.name, option.value, option.source or "", later)
        rows.append(tuple(map(printable, cells)))  # pyright: ignore[reportArgumentType]
    # Sources are not told to everybody, and most of the time no option waits for a restart.
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    for line in _aligned(list(zip(*columns, strict=True))):
        click.echo(line)
    for problem in found.problems or ():
        click.echo(f"Warning: {printable(problem)}", err=True)
