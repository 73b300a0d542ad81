"""The commands of moorctl that change the helpers of a machine that runs."""

from __future__ import annotations

from typing import Final

import click

from moorage.cli.address import Choice
from moorage.cli.commands import ANSWER_SECONDS, JSON, NAME, addressed, chosen, helper_of, read_helpers
from moorage.cli.quantities import printable

CHANGE_SECONDS: Final = 90.0
"""What the service gives helpers that are added or reloaded."""

REMOVE_SECONDS: Final = 200.0
"""What the service gives a helper that is stopped."""


@click.command("add-helpers")
@NAME
@click.argument("file", type=click.Path(), required=False)
@click.option(
    "--helper",
    "helpers",
    metavar="NAME=COMMAND",
    multiple=True,
    help="One more, with its command as for a shell. May be repeated.",
)
@JSON
@addressed
@chosen
def add_helpers(
    choice: Choice, name: str, file: str | None, helpers: tuple[str, ...], as_json: bool
) -> None:
    """Start helpers for a machine that runs: all of them or none.

    FILE is one of helpers, as moorctl check describes it; its "command" is left out. Prints the names of the units
    once all are active.
    """
    address = choice.resolve()
    from moorage.cli import helper_files, service, views

    directory = helper_files.runtime_directory(name, address)
    given = [] if file is None else read_helpers(file, name, directory).helpers
    sent = helper_files.as_sent([*given, *(helper_of(text) for text in helpers)])
    if not sent:
        raise click.UsageError("There are no helpers to add: give FILE or --helper.")
    parameters = {"name": name, "helpers": sent}
    reply = service.call(
        address, "AddHelpers", parameters, timeout=CHANGE_SECONDS + ANSWER_SECONDS, helpers=sent
    )
    (views.show_json if as_json else views.show_helpers)(reply)


@click.command("remove-helper")
@NAME
@click.argument("helper")
@JSON
@addressed
@chosen
def remove_helper(choice: Choice, name: str, helper: str, as_json: bool) -> None:
    """Stop a helper of a machine, and forget it."""
    address = choice.resolve()
    from moorage.cli import service, views

    parameters = {"name": name, "helper": helper}
    reply = service.call(address, "RemoveHelper", parameters, timeout=REMOVE_SECONDS + ANSWER_SECONDS)
    if as_json:
        views.show_json(reply)


@click.command("reload")
@NAME
@JSON
@addressed
@chosen
def reload(choice: Choice, name: str, as_json: bool) -> None:
    """Reload the helpers of a machine that can be reloaded.

    Prints their names, and on stderr those of the others.
    """
    address = choice.resolve()
    from moorage.cli import service, views

    reply = service.call(address, "Reload", {"name": name}, timeout=CHANGE_SECONDS + ANSWER_SECONDS)
    if as_json:
        views.show_json(reply)
        return
    reloaded, skipped = views.reloaded(reply)
    for each in reloaded:
        click.echo(printable(each))
    for each in skipped:
        click.echo(f"Helper {printable(each)} cannot be reloaded.", err=True)


def add_to(group: click.Group) -> None:
    """Add these commands to the others."""
    for command in (add_helpers, remove_helper, reload):
        group.add_command(command)
