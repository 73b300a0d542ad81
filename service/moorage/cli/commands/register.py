"""``moorctl register``."""

from __future__ import annotations

import os
from typing import Any

import click

from moorage.cli.address import Choice
from moorage.cli.commands.machine import describing, register_seconds, registration
from moorage.cli.commands.options import FD, JSON, PID, addressed, checked_fd, chosen, open_process


@click.command()
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

    Example:
        unit=$(moorctl register web --leader $PID --property MemoryMax=2G)
    """
    if (leader is None) == (pidfd is None):
        raise click.UsageError("Give one of --leader and --pidfd.")
    parameters = registration(name, **described)
    if no_allocate:
        if any(parameters[field] is not None for field in ("slice", "description", "properties")):
            raise click.UsageError(
                "--no-allocate leaves the unit as it is: it excludes --slice, --description and --property."
            )
        parameters["allocateUnit"] = False
    address = choice.resolve()
    from moorage.cli import service, views
    from moorage.cli.processes import naming

    # A process that is held open here cannot be mistaken for a later one with the same PID.
    own = None if leader is None else open_process(leader)
    try:
        given = checked_fd("--pidfd", pidfd or 0) if own is None else own
        named, fds = naming(given, "leaderFileDescriptor", "leader")
        reply = service.call(
            address,
            "Register",
            parameters | named,
            fds=fds,
            timeout=register_seconds(described["timeout"]),
        )
    finally:
        if own is not None:
            os.close(own)
    (views.show_json if as_json else views.show_registered)(reply)
