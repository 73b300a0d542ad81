"""Orders to a machine: ``moorctl kill``, ``stop``, ``freeze``, ``poweroff``, ``reset-accounting``, ``forget``."""

from __future__ import annotations

from typing import Any, Final

import click

from moorage.cli.address import Choice
from moorage.cli.commands.options import (
    ANSWER_SECONDS,
    JSON,
    NAME,
    SERVICE_SECONDS,
    addressed,
    chosen,
    finite_span,
    parsed,
    span_from_now,
)
from moorage.quantities import parse_signal

FREEZE_SECONDS: Final = 25.0
"""Default of the service's own deadline for Freeze and Thaw."""


@click.command()
@NAME
@click.option(
    "-s",
    "--signal",
    callback=parsed(parse_signal),
    default="SIGTERM",
    show_default=True,
    metavar="SIGNAL",
    help="Name or number.",
)
@click.option(
    "--whom",
    type=click.Choice(["leader", "supervisor", "all"]),
    default="all",
    show_default=True,
    help="Which of its processes to signal.",
)
@click.option(
    "--subgroup",
    metavar="PATH",
    help="Signal only the processes in this control group below the machine's, and below that.",
)
@JSON
@addressed
@chosen
def kill(choice: Choice, name: str, signal: int, whom: str, subgroup: str | None, as_json: bool) -> None:
    """Send a signal to the processes of a machine."""
    if subgroup is not None and whom != "all":
        raise click.UsageError("--subgroup needs --whom all.")
    address = choice.resolve()
    from moorage.cli import service, views

    parameters = {"name": name, "signal": signal, "whom": whom, "subgroup": subgroup}
    reply = service.call(address, "Kill", parameters)
    if as_json:
        views.show_json(reply)


@click.command()
@NAME
@click.option("--power-off", is_flag=True, help="Ask the guest to power off first, as poweroff does.")
@click.option(
    "--insist-after",
    callback=parsed(span_from_now),
    metavar="SPAN",
    help="Stop the machine all the same after so long, where its guest or its launcher is given time to end it."
    "  [default: 90s, or what the launcher has asked for]",
)
@click.option(
    "--timeout",
    callback=parsed(finite_span),
    metavar="SPAN",
    help="How long to wait until it has ended.  [default: stopTimeout of moored.conf(5), 3min 20s]",
)
@JSON
@addressed
@chosen
def stop(
    choice: Choice,
    name: str,
    power_off: bool,
    insist_after: int | None,
    timeout: int | None,
    as_json: bool,
) -> None:
    """Stop a machine, and wait for its end.

    It has ended when all of its processes are gone.
    """
    address = choice.resolve()
    from moorage.cli import service, views

    parameters = {
        "name": name,
        "powerOff": power_off or None,
        "insistAfterUSec": insist_after,
        "timeoutUSec": timeout,
    }
    seconds = (SERVICE_SECONDS if timeout is None else timeout / 1e6) + ANSWER_SECONDS
    reply = service.call(address, "Stop", parameters, timeout=seconds)
    if as_json:
        views.show_machine_json(reply)


_FREEZE_TIMEOUT: Final = click.option(
    "--timeout",
    callback=parsed(finite_span),
    metavar="SPAN",
    help="How long it may take.  [default: 25s]",
)


@click.command()
@NAME
@click.option("--helpers", is_flag=True, help="Freeze its helpers too.")
@_FREEZE_TIMEOUT
@JSON
@addressed
@chosen
def freeze(choice: Choice, name: str, helpers: bool, timeout: int | None, as_json: bool) -> None:
    """Freeze a machine: suspend all of its processes.

    Its helpers go on, unless --helpers is given. A frozen machine can be stopped.
    """
    _order(choice, "Freeze", {"name": name, "helpers": helpers or None}, timeout, as_json=as_json)


@click.command()
@NAME
@_FREEZE_TIMEOUT
@JSON
@addressed
@chosen
def thaw(choice: Choice, name: str, timeout: int | None, as_json: bool) -> None:
    """Thaw a machine: let its processes and its helpers go on."""
    _order(choice, "Thaw", {"name": name}, timeout, as_json=as_json)


def _order(
    choice: Choice, method: str, parameters: dict[str, Any], timeout: int | None, *, as_json: bool
) -> None:
    address = choice.resolve()
    from moorage.cli import service, views

    seconds = (FREEZE_SECONDS if timeout is None else timeout / 1e6) + ANSWER_SECONDS
    reply = service.call(address, method, {**parameters, "timeoutUSec": timeout}, timeout=seconds)
    if as_json:
        views.show_json(reply)


@click.command()
@NAME
@JSON
@addressed
@chosen
def poweroff(choice: Choice, name: str, as_json: bool) -> None:
    """Ask the guest of a machine to power off.

    It is asked at the machine's control address; a container that has none by a signal, as machinectl does. This
    waits until it was asked, not until it is off: see wait, and stop --power-off.
    """
    _plain(choice, "PowerOff", name, as_json=as_json)


@click.command()
@NAME
@JSON
@addressed
@chosen
def reboot(choice: Choice, name: str, as_json: bool) -> None:
    """Ask the guest of a machine to boot again.

    It is asked as by poweroff.
    """
    _plain(choice, "Reboot", name, as_json=as_json)


@click.command("reset-accounting")
@NAME
@JSON
@addressed
@chosen
def reset_accounting(choice: Choice, name: str, as_json: bool) -> None:
    """Have the counters of a machine begin at zero again.

    Those of its helpers too. What the machine uses now, peaks, and what the end of the machine is reported with stay
    as they are.
    """
    _plain(choice, "ResetAccounting", name, as_json=as_json)


@click.command()
@NAME
@JSON
@addressed
@chosen
def forget(choice: Choice, name: str, as_json: bool) -> None:
    """Forget a machine without stopping it.

    Its unit and its processes live on, but it is no longer listed.
    """
    _plain(choice, "Forget", name, as_json=as_json)


def _plain(choice: Choice, method: str, name: str, *, as_json: bool) -> None:
    address = choice.resolve()
    from moorage.cli import service, views

    reply = service.call(address, method, {"name": name})
    if as_json:
        views.show_json(reply)
