"""Commands that tell what happens: ``moorctl events`` and ``wait``."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Final

import click

from moorage.cli.address import Address, Choice
from moorage.cli.commands.options import JSON, NAME, addressed, chosen, complete_name, finite_span, parsed
from moorage.cli.failures import Exit

if TYPE_CHECKING:
    from moorage.cli import following

STATES: Final = ("running", "stopping", "empty", "exited")
"""What one can wait for, in the order of a machine's life."""


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on, until Ctrl-C.")
@click.option(
    "--since-cursor", "cursor", metavar="CURSOR", help="Begin after the event that had this cursor."
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_name,
    help="Only of this machine; may be repeated.",
)
@click.option("--event", "kinds", multiple=True, metavar="KIND", help="Only of this kind; may be repeated.")
@JSON
@addressed
@chosen
def events(
    choice: Choice,
    follow: bool,
    cursor: str | None,
    names: tuple[str, ...],
    kinds: tuple[str, ...],
    as_json: bool,
) -> int:
    """Show what has happened to machines.

    With --host for each, of several hosts. The service keeps the latest 65536 events. With --follow, a list of the
    machines comes first, unless a cursor is given. The kinds of events are in io.moorage.Machine(7). --json shows
    the cursor of each event.
    """
    addresses = choice.each()
    if len(addresses) > 1 and cursor is not None:
        raise click.UsageError("--since-cursor is of one host.")
    from moorage.cli import following, happenings
    from moorage.cli.hosts import Hosts
    from moorage.cli.pager import paging
    from moorage.client.events import KINDS
    from moorage.client.methods import Subscribe
    from moorage.similar import did_you_mean, nearest

    for kind in kinds:
        if kind not in KINDS:
            meant = did_you_mean(nearest(kind, KINDS))
            raise click.BadParameter(f"there is no kind of event {kind!r}{meant}", param_hint="'--event'")

    def ask(address: Address) -> Generator[following.Told]:
        if not follow:
            kept = following.kept(address, cursor)
            return following.wanted_by(kept, frozenset(names), frozenset(kinds))
        wanted = Subscribe(names=list(names) or None, events=list(kinds) or None, cursor=cursor)
        return following.Following(address, wanted).events()

    def show(told: following.Told, host: str | None = None) -> None:
        if as_json:
            happenings.show_json(told, host)
        else:
            happenings.show(told.event, host)

    with paging(wanted=choice.pager and not follow):
        if len(addresses) == 1:
            for told in ask(addresses[0]):
                show(told)
            return Exit.OK
        hosts = Hosts(addresses, ask)
        replies = hosts.replies()
        for host, told in (
            replies
            if follow
            else sorted(replies, key=lambda said: (said[1].event.timestamp.realtime or 0, said[0]))
        ):
            show(told, host)
        return hosts.status
    return Exit.OK  # the person has seen enough


@click.command()
@NAME
@click.option(
    "--until",
    "state",
    type=click.Choice(STATES),
    default="exited",
    show_default=True,
    help="What to wait for: it, or what comes after it.",
)
@click.option(
    "--timeout", callback=parsed(finite_span), metavar="SPAN", help="How long to wait.  [default: for ever]"
)
@JSON
@addressed
@chosen
def wait(choice: Choice, name: str, state: str, timeout: int | None, as_json: bool) -> None:
    """Wait for the end of a machine.

    With --until, for another moment in its life. The exit status is that of its leader, as far as it is known, or
    128 and the number of the signal that ended it; 1 if the machine ended with another result than "success". With
    --until running, the machine need not exist yet.
    """
    address = choice.resolve()
    from moorage.cli import happenings, waiting

    until = math.inf if timeout is None else time.monotonic() + timeout / 1e6
    end = waiting.wait(address, name, state, until)
    if end is None:
        return
    if as_json:
        happenings.show_json(end)
    status = happenings.exit_status(end.event)
    if status:
        raise click.exceptions.Exit(status)
