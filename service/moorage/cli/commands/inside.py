"""What happens inside a machine: ``moorctl shell``, ``login``, ``copy-to``, ``copy-from``, ``bind``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import click

from moorage.cli.address import Choice
from moorage.cli.commands.options import (
    ANSWER_SECONDS,
    NAME,
    SERVICE_SECONDS,
    addressed,
    chosen,
    complete_name,
)

_PASSED_ON: Final = ("TERM", "COLORTERM", "NO_COLOR")
"""Variables that a shell gets from here, unless it is given others, as by machinectl."""

_HERE: Final = "a terminal"


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name", metavar="[USER@]NAME", shell_complete=complete_name)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--uid", metavar="USER", help="Who runs it, by a name in the machine.  [default: root]")
@click.option(
    "-E",
    "--setenv",
    "variables",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Set a variable; without a value, to the one that it has here.",
)
@addressed
@chosen
def shell(
    choice: Choice, name: str, command: Sequence[str], uid: str | None, variables: Sequence[str]
) -> int:
    """Run a command, or the login shell of a user, at a terminal of a container.

    The machine .host is this host. The command is given by its absolute path, and run by the service manager in the
    machine; its exit status is not told.
    """
    address = choice.here(_HERE)
    user, at, machine = name.rpartition("@")
    if at and uid is not None:
        raise click.UsageError("USER@ and --uid exclude each other.")
    from moorage.cli import opening

    parameters = {
        "name": machine or ".host",
        "mode": "shell",
        "user": uid or user or None,
        "path": command[0] if command else None,
        "args": list(command) or None,
        "environment": _environment(variables) or None,
    }
    return opening.open_at(address, parameters, returns=False, quiet=choice.quiet)


def _environment(variables: Sequence[str]) -> list[str]:
    found: dict[str, str] = {}
    if os.isatty(0):
        found = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    else:
        found["TERM"] = "dumb"
    for text in variables:
        name, separator, value = text.partition("=")
        if not separator:
            if name not in os.environ:
                raise click.BadParameter(f"moorctl itself has no variable {name!r}", param_hint="'--setenv'")
            value = os.environ[name]
        found[name] = value
    return [f"{name}={value}" for name, value in found.items()]


@click.command()
@NAME
@addressed
@chosen
def login(choice: Choice, name: str) -> int:
    """Log in at a terminal of a container.

    The machine .host is this host. The login is a getty of the service manager in the machine; when a session ends,
    the next one may begin, until Ctrl-] is typed three times within a second.
    """
    address = choice.here(_HERE)
    from moorage.cli import opening

    return opening.open_at(address, {"name": name, "mode": "login"}, returns=True, quiet=choice.quiet)


_FORCE: Final = click.option("--force", is_flag=True, help="Replace files that are there already.")


@click.command("copy-to")
@NAME
@click.argument("source", metavar="PATH", type=click.Path())
@click.argument("destination", metavar="[PATH]", required=False)
@_FORCE
@addressed
@chosen
def copy_to(choice: Choice, name: str, source: str, destination: str | None, force: bool) -> None:
    """Copy a file or a directory of this host into a container.

    The second path is that in the container, absolute; without it, it is the same as on the host. What is there
    already stays as it is, unless --force is given, and directories are merged.
    """
    _copy(choice, "CopyTo", name, os.path.abspath(source), destination, force=force)


@click.command("copy-from")
@NAME
@click.argument("source", metavar="PATH")
@click.argument("destination", metavar="[PATH]", required=False, type=click.Path())
@_FORCE
@addressed
@chosen
def copy_from(choice: Choice, name: str, source: str, destination: str | None, force: bool) -> None:
    """Copy a file or a directory of a container to this host.

    The first path is that in the container, absolute; the second one is the same on the host, if it is not given.
    What is there already stays as it is, unless --force is given, and directories are merged.
    """
    _copy(choice, "CopyFrom", name, source, destination and os.path.abspath(destination), force=force)


def _copy(
    choice: Choice, method: str, name: str, source: str, destination: str | None, *, force: bool
) -> None:
    address = choice.here("a path")
    from moorage.cli import service

    parameters = {"name": name, "source": source, "destination": destination, "replace": force or None}
    service.call(
        address, f"io.systemd.Machine.{method}", parameters, timeout=SERVICE_SECONDS + ANSWER_SECONDS
    )


@click.command()
@NAME
@click.argument("source", metavar="PATH", type=click.Path())
@click.argument("destination", metavar="[PATH]", required=False)
@click.option("--read-only", is_flag=True, help="Nothing can be written there.")
@click.option("--mkdir", is_flag=True, help="Make the directory, or the file, to mount it on.")
@addressed
@chosen
def bind(
    choice: Choice, name: str, source: str, destination: str | None, read_only: bool, mkdir: bool
) -> None:
    """Mount a file or a directory of this host in a container.

    The second path is that in the container, absolute; without it, it is the same as on the host. The container must
    have the users of the host.
    """
    address = choice.here("a path")
    from moorage.cli import service

    parameters = {
        "name": name,
        "source": os.path.abspath(source),
        "destination": destination,
        "readOnly": read_only or None,
        "mkdir": mkdir or None,
    }
    service.call(address, "io.systemd.Machine.BindMount", parameters)
