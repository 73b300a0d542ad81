"""``moorctl top``: what machines use, again and again.

On a terminal the table is drawn in place, and keys choose the order; everywhere else lines follow each other.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import click
import msgspec

from moorage.cli.address import Address
from moorage.cli.failures import Exit
from moorage.cli.measuring import Meter, Meters
from moorage.cli.rates import PRESSURE_WORDS, Row, sort
from moorage.cli.views import PHASE_COLOURS, phase_words, show_json
from moorage.client.subscription import RETRY_SECONDS
from moorage.quantities import format_size, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

COLUMNS: Final = ("NAME", "STATE", "CPU%", "MEMORY", "OF", "IO/S", "TASKS", "PRESSURE")
_ORDER: Final = {"CPU%": "cpu", "IO/S": "io"}
"""The order by a column, where that is not simply its name."""

_LEFT: Final = frozenset({"NAME", "STATE", "HOST"})

_ELASTIC: Final = frozenset({"NAME", "HOST"})
"""What may be cut off: as much of it as there is room for is shown."""

KEYS: Final = {
    "c": "cpu",
    "m": "memory",
    "i": "io",
    "t": "tasks",
    "p": "pressure",
    "s": "state",
    "n": "name",
}
"""Keys that choose the order."""

TERMINATED: Final = 128 + signal.SIGTERM


class Options(NamedTuple):
    """What is shown, and how.

    Attributes:
        order: one of `moorage.cli.rates.ORDERS`.
        reverse: in the other direction.
        pattern: only of machines whose names match it (fnmatch(3)); None for all.
        delay: between two looks, s.
        iterations: looks that are shown; None for as long as nobody ends it.
        batch: print lines, also on a terminal.
        as_json: print a line of JSON for each machine.
    """

    order: str
    reverse: bool
    pattern: str | None
    delay: float
    iterations: int | None
    batch: bool
    as_json: bool


def show(addresses: Sequence[Address], options: Options) -> int:
    """Show what machines use until it is ended, and return the exit status: of several hosts, that of one that failed.

    Args:
        addresses: of the services.
        options: what is shown, and how.

    Raises:
        Failure: the service refuses, or stays away.
    """
    from rich.console import Console

    # highlight would colour numbers in names.
    console = Console(highlight=False)
    pattern = options.pattern
    told: set[str] = set()
    meter = Meters(addresses, pattern) if len(addresses) > 1 else Meter(addresses[0], pattern)
    try:
        if options.batch or options.as_json or not console.is_terminal or console.is_dumb_terminal:
            _print(meter, options, told)
        else:
            with _terminated():
                _draw(meter, options, console)
    finally:
        meter.close()
        _tell_failures(meter, told)
    return next((failure.status for failure in meter.failures.values()), Exit.OK)


def _columns(found: Iterable[Row]) -> tuple[str, ...]:
    """Return the headings of the columns."""
    return (*COLUMNS, "HOST") if any(row.host is not None for row in found) else COLUMNS


def _tell_failures(meter: Meter | Meters, told: set[str]) -> None:
    """Print why hosts are left out, once for each."""
    for host, failure in meter.failures.items():
        if host not in told:
            told.add(host)
            click.echo(f"{host}: {failure}", err=True)


def _print(meter: Meter | Meters, options: Options, told: set[str]) -> None:
    shown = 0
    # Rates take two looks, of which the first is not shown.
    looks = _looks(meter, options.delay)
    next(looks)
    for found in looks:
        _tell_failures(meter, told)
        if found is None:
            continue
        if options.as_json:
            for row in sort(found, options.order, reverse=options.reverse):
                show_json(msgspec.Raw(msgspec.json.encode(row)))
        else:
            if shown:
                print()
            _print_table(sort(found, options.order, reverse=options.reverse))
        sys.stdout.flush()
        shown += 1
        if shown == options.iterations:
            return


def _looks(meter: Meter | Meters, delay: float) -> Generator[list[Row] | None]:
    while True:
        begun = time.monotonic()
        found = meter.look(whole=True)
        yield found
        pause = RETRY_SECONDS if found is None else delay
        time.sleep(max(0.0, begun + pause - time.monotonic()))


def _print_table(found: Sequence[Row]) -> None:
    columns = _columns(found)
    table = [columns, *(_cells(row) for row in found)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        padded = (
            cell.ljust(width) if name in _LEFT else cell.rjust(width)
            for name, cell, width in zip(columns, cells, widths, strict=True)
        )
        print("  ".join(padded).rstrip())


def _cells(row: Row) -> tuple[str, ...]:
    worst, share = row.worst_pressure, row.memory_share
    return (
        printable(row.name),
        printable(phase_words(row.phase, row.freezer)),
        "-" if row.cpu_percent is None else f"{row.cpu_percent:.1f}",
        "-" if row.memory_current is None else format_size(row.memory_current),
        "-" if share is None else f"{share:.0%}",
        "-" if row.io_rate is None else format_size(round(row.io_rate)),
        "-" if row.tasks_current is None else str(row.tasks_current),
        "-" if worst is None else f"{worst[0]:.0f}% {PRESSURE_WORDS[worst[1]]}" if worst[0] >= 0.5 else "0%",
        *([] if row.host is None else [row.host]),
    )


# On a terminal


def _draw(meter: Meter | Meters, options: Options, console: Console) -> None:
    from rich.live import Live

    order, reverse, shown = options.order, options.reverse, 0
    # Before the window is taken, as ssh(1) may ask for a password.
    whole = order == "pressure"
    looked = meter.look(whole=whole)
    found = looked or []
    with _keys() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            begun = time.monotonic()
            if shown:
                whole = order == "pressure"
                looked = meter.look(whole=whole)
                found = found if looked is None else looked
            shown += 1
            end = begun + (RETRY_SECONDS if looked is None else options.delay)
            while True:
                visible = sort(found, order, reverse=reverse)[: _lines(console)]
                if looked is not None and not whole:
                    visible = meter.complete(visible)
                away = ["the service"] if looked is None else sorted(meter.failures)
                summary = _summary(found, order, away)
                live.update(_screen(console, summary, visible, order), refresh=True)
                key = _key(keyboard, end)
                if key is None:
                    break
                if key == "q":
                    return
                if key == "r":
                    reverse = not reverse
                order = KEYS.get(key, order)
            if shown == options.iterations:
                return


def _lines(console: Console) -> int:
    """Return how many machines fit into the window."""
    return min(max(1, console.height - _AROUND), LINES_MAX)


@contextmanager
def _keys() -> Generator[int | None]:
    """Have keys read one by one, if there is a keyboard; afterwards the terminal is as before."""
    keyboard = 0
    try:
        before = termios.tcgetattr(keyboard)
    except termios.error:
        yield None
        return
    tty.setcbreak(keyboard)
    try:
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSAFLUSH, before)


def _key(keyboard: int | None, until: float) -> str | None:
    """Return the next key; None if there is none until then."""
    left = max(0.0, until - time.monotonic())
    if keyboard is None:
        time.sleep(left)
        return None
    if not select.select([keyboard], [], [], left)[0]:
        return None
    # A hung up terminal reads as empty, for ever.
    return os.read(keyboard, 1).decode("ascii", "replace") or "q"


@contextmanager
def _terminated() -> Generator[None]:
    """Have SIGTERM leave the terminal as it was."""

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _screen(console: Console, summary: Text, visible: Sequence[Row], order: str) -> Table:
    """Return what is drawn."""
    from rich.table import Table
    from rich.text import Text

    frame = Table.grid()
    frame.add_row(summary)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), expand=False)
    cells = [_cells(row) for row in visible]
    columns = _columns(visible)
    fitting = _fitting(columns, cells, console.width, order)
    for column, width in fitting.items():
        name = columns[column]
        table.add_column(
            Text(name, "bold reverse" if _column_of(order) == name else "bold"),
            justify="left" if name in _LEFT else "right",
            no_wrap=True,
            overflow="ellipsis",
            max_width=width,
        )
    for row, words in zip(visible, cells, strict=True):
        styles = {
            "NAME": "bold",
            "STATE": PHASE_COLOURS.get(row.phase, "") if row.freezer == "running" else "cyan",
            "MEMORY": "red" if (row.memory_share or 0.0) >= 0.9 else "",
        }
        # As Text, because rich would interpret markup in a str, and names come from outside.
        table.add_row(*(Text(words[column], styles.get(columns[column], "")) for column in fitting))
    frame.add_row(table)
    frame.add_row(Text("sort: c m i t p s n   r: reverse   q: quit", "bright_black", no_wrap=True))
    return frame


_AROUND: Final = 3
"""Lines of the window that are not machines: the summary, the heading, the keys."""

LINES_MAX: Final = 512
"""Machines in one window; the service is asked for so many by their names."""

_NAME_MIN: Final = 12
"""Columns of a name, or of a host, that are left of it where the window is narrow."""

_LEAST_FIRST: Final = ("PRESSURE", "IO/S", "TASKS", "OF", "STATE", "HOST", "MEMORY", "CPU%")
"""What is left out, in this order, where the window is too narrow: half a number would be another one."""


def _column_of(order: str) -> str:
    """Return the heading of the column that an order is by."""
    return next(name for name in COLUMNS if _ORDER.get(name, name.lower()) == order)


def _fitting(
    columns: Sequence[str], cells: Iterable[Sequence[str]], width: int, order: str
) -> dict[int, int]:
    """Return the indices of the columns that fit into a window, with their widths.

    Args:
        columns: their headings.
        cells: of all rows.
        width: columns of the window.
        order: its column is shown whatever is left out.
    """
    from rich.cells import cell_len

    needed = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    least = [
        min(each, _NAME_MIN) if name in _ELASTIC else each
        for name, each in zip(columns, needed, strict=True)
    ]
    shown = list(range(len(columns)))
    for name in _LEAST_FIRST:
        if sum(least[column] + 1 for column in shown) <= width + 1:
            break
        if name in columns and name != _column_of(order):
            shown.remove(columns.index(name))
    left = width + 1 - sum(least[column] + 1 for column in shown)
    widths: dict[int, int] = {}
    for column in shown:
        more = max(0, min(needed[column] - least[column], left))
        left -= more
        widths[column] = least[column] + more
    return widths


def _summary(found: Sequence[Row], order: str, away: Sequence[str]) -> Text:
    from rich.text import Text

    # Of what nobody tells there is no sum either.
    cpu = [row.cpu_percent for row in found if row.cpu_percent is not None]
    memory = [row.memory_current for row in found if row.memory_current is not None]
    words = f"{len(found)} machine{'' if len(found) == 1 else 's'}"
    words += f", CPU {sum(cpu):.1f}%" if cpu else ""
    words += f", memory {format_size(sum(memory))}" if memory else ""
    words += f", by {order}"
    if away:
        gone = f"  away: {', '.join(map(printable, away))}"
        return Text.assemble(words, (gone, "red"), no_wrap=True, overflow="ellipsis")
    return Text(words, no_wrap=True, overflow="ellipsis")
