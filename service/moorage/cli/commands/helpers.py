"""Commands about the helpers of a machine: ``moorctl check``, ``add-helpers``, ``remove-helper`` and ``reload``."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from moorage.cli.address import Address, Choice
from moorage.cli.commands.machine import register_seconds
from moorage.cli.commands.options import ANSWER_SECONDS, JSON, NAME, SERVICE_SECONDS, addressed, chosen
from moorage.cli.failures import Exit, Failure
from moorage.quantities import printable

if TYPE_CHECKING:
    from moorage.cli import helper_files
    from moorage.cli.service import Reply

REMOVE_SECONDS: Final = 200.0
"""Default of the service's own deadline for stopping a helper."""

HELPER: Final = click.option(
    "--helper",
    "helpers",
    metavar="NAME=COMMAND",
    multiple=True,
    help="Helper to start: a service that ends with the machine. May be repeated.",
)


def helper_of(text: str, *, elsewhere: bool = False) -> helper_files.Helper:
    """Parse the value of ``--helper``.

    Args:
        text: the value.
        elsewhere: the helper is for another host.

    Raises:
        click.BadParameter: it is not a name and the command line of a program that exists.
    """
    from moorage.cli import helper_files

    name, separator, command = text.partition("=")
    if not separator:
        raise click.BadParameter(f"{text!r} is not NAME=COMMAND", param_hint="'--helper'")
    return helper_files.Helper(name, program("--helper", command, f"{name}: ", elsewhere=elsewhere))


def program(option: str, command: str, where: str = "", *, elsewhere: bool = False) -> list[str]:
    """Split a command line as a shell does, and find its program, as the service does not search any PATH.

    Args:
        option: that it was given with.
        command: the command line.
        where: what precedes the words about a mistake.
        elsewhere: it is run on another host, whose programs are not known.

    Raises:
        click.BadParameter: a quote is not closed, or there is no such program.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise click.BadParameter(f"{where}{error}", param_hint=f"'{option}'") from None
    if not words:
        raise click.BadParameter(f"{where}the command is empty", param_hint=f"'{option}'")
    if elsewhere:
        if not words[0].startswith("/"):
            text = f"{where}{words[0]!r} has to be a whole path, as it is on another host"
            raise click.BadParameter(text, param_hint=f"'{option}'")
        return words
    found = shutil.which(words[0])
    if found is None:
        raise click.BadParameter(f"{where}there is no program {words[0]!r}", param_hint=f"'{option}'")
    return [os.path.abspath(found), *words[1:]]


def read_helpers(path: str, machine: str, directory: str, address: Address | None) -> helper_files.HelperSet:
    """Read a file of helpers for a machine.

    Args:
        path: of the file.
        machine: its name.
        directory: its runtime directory.
        address: of the service that knows the properties of helpers; None to do without, which leaves those
            unconverted whose form follows from their type.

    Raises:
        Failure: the file cannot be read, or is wrong; the service did not describe its properties.
    """
    from moorage.cli import helper_files, service

    specifiers = {"n": machine, "t": directory, "u": str(os.geteuid())}
    try:
        loaded = helper_files.load(path)
        known = None
        if address is not None and any(helper.properties for helper in loaded.helpers):
            known = service.signatures(address, "service")
        expanded = helper_files.expand(loaded, specifiers, known)
        helper_files.check_sockets(expanded.helpers, directory)
        return expanded
    except OSError as error:
        raise Failure(Exit.USAGE, f"Failed to read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise Failure(Exit.USAGE, f"{path}: {error}") from None


@click.command()
@click.argument("file", type=click.Path())
@click.option("--name", default="NAME", show_default=True, metavar="NAME", help="Name of the machine.")
@click.option("--offline", is_flag=True, help="Look at the file only, and call no service.")
@JSON
@addressed
@chosen
def check(choice: Choice, file: str, name: str, offline: bool, as_json: bool) -> None:
    """Check a file of helpers.

    Shows what the file would create, and has the service check it. Such a file is TOML. Its table "helpers" has one
    table for each helper, with the fields of a helper in io.moorage.Machine; "command" is the beginning of the command
    line of moorctl run. In all texts, %n stands for the name of the machine, %t for its runtime directory, %u for the
    user's number, and %% for a percent sign.

    The service checks the file as moorctl run --dry-run does: it creates nothing. Without a service the file is
    checked as far as possible.
    """
    address = choice.here("the process that stands in for the machine")
    from moorage.cli import helper_files

    directory = helper_files.runtime_directory(name, address)
    no_service: Failure | None = None
    try:
        given = read_helpers(file, name, directory, None if offline else address)
    except Failure as failure:
        if failure.status != Exit.NO_SERVICE:
            raise
        no_service = failure
        given = read_helpers(file, name, directory, None)
    try:
        lines = list(helper_files.explain(given, name, directory))
    except ValueError as error:
        raise Failure(Exit.USAGE, f"{file}: {error}") from None
    helpers = helper_files.as_sent(given.helpers)
    if as_json:
        click.echo(json.dumps({"command": given.command, "runtimeDirectory": directory, "helpers": helpers}))
    else:
        for line in lines:
            click.echo(printable(line))
    unchecked = "The names and values of properties were not checked: only a running service knows them."
    if no_service is not None:
        raise Failure(no_service.status, f"{no_service}\n{unchecked}")
    if not offline:
        reply = _rehearse(address, name, helpers)
        if not as_json:
            from moorage.cli import views

            views.show_units(reply)
    elif any(helper.properties for helper in given.helpers):
        click.echo(unchecked, err=True)


def _rehearse(address: Address, name: str, helpers: Sequence[dict[str, Any]]) -> Reply:
    """Have the service check whether it would start helpers; this process stands in for the machine's leader."""
    from moorage.cli import service

    pidfd = os.pidfd_open(os.getpid())
    try:
        return service.call(
            address,
            "Register",
            {
                "name": name,
                "class": "vm",
                "leaderFileDescriptor": 0,
                "helpers": helpers or None,
                "dryRun": True,
            },
            fds=[pidfd],
            timeout=register_seconds(None),
        )
    finally:
        os.close(pidfd)


@click.command("add-helpers")
@NAME
@click.argument("file", type=click.Path(), required=False)
@HELPER
@JSON
@addressed
@chosen
def add_helpers(
    choice: Choice, name: str, file: str | None, helpers: tuple[str, ...], as_json: bool
) -> None:
    """Start helpers for a running machine.

    Either all of them start, or none. FILE is a file of helpers as moorctl check takes it; its "command" is ignored.
    Prints the names of the units once all of them are active.
    """
    address = choice.resolve()
    from moorage.cli import helper_files, service, views

    directory = helper_files.runtime_directory(name, address)
    given = [] if file is None else read_helpers(file, name, directory, address).helpers
    elsewhere = address.host is not None
    sent = helper_files.as_sent([*given, *(helper_of(text, elsewhere=elsewhere) for text in helpers)])
    if not sent:
        raise click.UsageError("There are no helpers to add: give FILE or --helper.")
    parameters = {"name": name, "helpers": sent}
    reply = service.call(address, "AddHelpers", parameters, timeout=SERVICE_SECONDS + ANSWER_SECONDS)
    if as_json:
        views.show_json(reply)
    elif not choice.quiet:
        views.show_helpers(reply)


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
    """Reload the helpers of a machine.

    Not all helpers support that. Prints the names of those that do, and warns of the others on stderr.
    """
    address = choice.resolve()
    from moorage.cli import service, views

    reply = service.call(address, "Reload", {"name": name}, timeout=SERVICE_SECONDS + ANSWER_SECONDS)
    if as_json:
        views.show_json(reply)
        return
    reloaded, skipped = views.reloaded(reply)
    for each in [] if choice.quiet else reloaded:
        click.echo(printable(each))
    for each in skipped:
        click.echo(f"Helper {printable(each)} cannot be reloaded.", err=True)
