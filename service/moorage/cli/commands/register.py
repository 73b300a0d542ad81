"""``moorctl register``."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Final

import click

from moorage.cli.address import Choice
from moorage.cli.commands.machine import describing, register_seconds, registration
from moorage.cli.commands.options import FD, JSON, PID, addressed, checked_fd, chosen

EXAMPLE: Final = """\b
Example:
  unit=$(moorctl register web --leader $PID --property MemoryMax=2G)"""

_OF_NEW_UNITS: Final = ("slice_", "description", "properties", "slice_properties")
"""Options that say something about units which are created."""


@click.command(epilog=EXAMPLE)
@click.argument("name")
@click.option(
    "--leader", type=PID, metavar="PID", help="First process of the machine. Give this or --pidfd."
)
@click.option("--pidfd", type=FD, metavar="FD", help="The same, as an open pidfd; see pidfd_open(2).")
@click.option("--no-allocate", is_flag=True, help="Create no scope; the machine stays in its present unit.")
@describing
@JSON
@addressed
@chosen
def register(
    choice: Choice,
    name: str,
    leader: int | None,
    pidfd: int | None,
    no_allocate: bool,
    as_json: bool,
    **described: Any,
) -> None:
    """Register a machine and move its leader into a scope.

    Prints the name of the scope once the leader is in it. Warns on stderr of properties whose value in force differs
    from what was requested.
    """
    if (leader is None) == (pidfd is None):
        raise click.UsageError("Give one of --leader and --pidfd.")
    if no_allocate and any(described[option] for option in _OF_NEW_UNITS):
        raise click.UsageError(
            "--no-allocate leaves the unit as it is: it excludes --slice, --description, --property and "
            "--slice-property."
        )
    address = choice.resolve() if pidfd is None else choice.here("a file descriptor")
    fd = None if pidfd is None else checked_fd("--pidfd", pidfd)
    parameters = registration(address, name, **described)
    # This process is gone a moment later.
    parameters["supervised"] = False
    if no_allocate:
        parameters["allocateUnit"] = False
    from moorage.cli import service, views
    from moorage.cli.processes import naming, naming_pid

    by = ("leaderFileDescriptor", "leader")
    with (
        naming_pid(address, leader or 0, *by) if fd is None else nullcontext(naming(fd, *by)) as (named, fds)
    ):
        reply = service.call(
            address,
            "Register",
            parameters | named,
            fds=fds,
            timeout=register_seconds(described["timeout"]),
        )
    if as_json:
        views.show_json(reply)
    elif choice.quiet and not described["dry_run"]:
        views.warn_of_differences(reply)
    else:
        views.show_registered(reply)
