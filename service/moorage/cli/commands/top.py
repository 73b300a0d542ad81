"""``moorctl top``: what machines use, again and again."""

from __future__ import annotations

import sys
from typing import Final

import click

from moorage.cli.address import Choice
from moorage.cli.commands.options import addressed, chosen, finite_span, parsed

ORDERS: Final = ("cpu", "memory", "io", "tasks", "pressure", "state", "name")


@click.command()
@click.option(
    "-s",
    "--sort",
    "order",
    type=click.Choice(ORDERS),
    default="cpu",
    show_default=True,
    help="Order of machines.",
)
@click.option("-r", "--reverse", is_flag=True, help="The other way round.")
@click.option(
    "-f", "--filter", "pattern", metavar="PATTERN", help="Only machines whose names match, such as 'web*'."
)
@click.option(
    "-d",
    "--delay",
    callback=parsed(finite_span),
    default="1s",
    show_default=True,
    metavar="SPAN",
    help="Time between two looks.",
)
@click.option(
    "-n",
    "--iterations",
    type=click.IntRange(min=1),
    metavar="COUNT",
    help="How often to show them.  [default: until Ctrl-C; 1 where there is no terminal]",
)
@click.option("-b", "--batch", is_flag=True, help="Print one table after the other, also on a terminal.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, one object per line: one for each machine."
)
@addressed
@chosen
def top(
    choice: Choice,
    order: str,
    reverse: bool,
    pattern: str | None,
    delay: int,
    iterations: int | None,
    batch: bool,
    as_json: bool,
) -> int:
    """Show what machines use, again and again.

    With --host for each, those of several hosts. Columns: CPU time in percent of one CPU; memory, and the share of
    the limit that it is; bytes read and written in a second; tasks; and the share of the last ten seconds for
    which tasks waited for the resource that they waited for most. Keys: c m i t p s n choose the order, r reverses
    it, q ends it.
    """
    addresses = choice.each()
    from moorage.cli import top as display

    if iterations is None and not sys.stdout.isatty() and not batch:
        iterations = 1
    options = display.Options(order, reverse, pattern, delay / 1e6, iterations, batch, as_json)
    return display.show(addresses, options)
