"""A terminal of a machine, connected to the standard streams of moorctl."""

from __future__ import annotations

from typing import Any, Final

import click
import trio

from moorage.cli import service
from moorage.cli.address import Address
from moorage.cli.failures import Exit, Failure
from moorage.cli.terminal import Terminal
from moorage.quantities import printable

OPEN_SECONDS: Final = 45.0
"""For the service's answer, s: beyond the 25 s that it gives a machine."""

HOST: Final = ".host"


def open_at(address: Address, parameters: dict[str, Any], *, returns: bool, quiet: bool) -> int:
    """Have a terminal of a machine opened, and work at it.

    Args:
        address: where the service listens.
        parameters: of Open of io.systemd.Machine.
        returns: whether a session that ends is followed by another one, as at a login.
        quiet: print nothing of our own.

    Raises:
        Failure: there is no terminal to be had.
    """
    received: list[int] = []
    service.call(address, "io.systemd.Machine.Open", parameters, received=received, timeout=OPEN_SECONDS)
    if not received:
        raise Failure(
            Exit.NO_SERVICE, "The reply of the service makes no sense: there is no terminal with it."
        )
    name = parameters["name"]
    where = "the local host" if name == HOST else f"machine {printable(name)}"
    with Terminal(ours=received[0]) as terminal:
        if not quiet:
            escape = " Press Ctrl-] three times within 1 s to leave." if terminal.interactive else ""
            click.echo(f"Connected to {where}.{escape}", err=True)
        with terminal.raw():
            trio.run(_work, terminal, returns)
    if not quiet:
        click.echo(f"\nDisconnected from {where}.", err=True)
    return Exit.OK


async def _work(terminal: Terminal, returns: bool) -> None:
    lost: list[OSError] = []
    await terminal.connect(lost.append, returns=returns)
