"""The command that shows what a machine has written: ``moorctl log``."""

from __future__ import annotations

import os

import click

from moorage.cli.address import Choice
from moorage.cli.commands.options import JSON, NAME, addressed, chosen
from moorage.names import is_machine_name
from moorage.quantities import printable


@click.command()
@NAME
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on, until Ctrl-C.")
@click.option("--since", metavar="TIME", help="Nothing older, as in systemd.time(7).")
@click.option("-n", "--lines", type=click.IntRange(min=0), metavar="N", help="Only the last N entries.")
@JSON
@addressed
@chosen
def log(
    choice: Choice, name: str, follow: bool, since: str | None, lines: int | None, as_json: bool
) -> None:
    """Show what a machine and its helpers have written.

    Their journal is shown, with what was written about them, in order. It is what journalctl(1) shows to you;
    root, and members of the group systemd-journal, see everything. A machine that has ended is found for as long
    as the journal has it. --follow begins with the last 10 entries.
    """
    address = choice.here("the journal")
    if not is_machine_name(name):
        raise click.BadParameter(f"{printable(name)} can be no machine's.", param_hint="NAME")
    from moorage.cli.journal import Journal, show, show_json
    from moorage.cli.pager import paging

    options = [f"--since={since}"] if since is not None else []
    options += [f"--lines={lines}"] if lines is not None else []
    options += ["--follow"] if follow else []
    uid = os.getuid() if choice.user else None
    empty = True
    with paging(wanted=choice.pager and not follow):
        for line in Journal(address, name, uid).read(options):
            empty = False
            (show_json if as_json else show)(line)
    if empty and not choice.quiet:
        click.echo("No entries.", err=True)
