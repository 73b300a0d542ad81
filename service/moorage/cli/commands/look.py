"""Commands that only look: ``moorctl list``, ``status``, ``tree`` and ``find``."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import click

from moorage.cli.address import Address, Choice
from moorage.cli.commands.options import JSON, NAME, PID, addressed, chosen, complete_name
from moorage.cli.failures import Exit, Failure
from moorage.quantities import printable

if TYPE_CHECKING:
    from moorage.cli.service import Reply


@click.command("list")
@click.option("--no-legend", is_flag=True, help="Print neither the heading nor the count.")
@click.option(
    "-w", "--watch", is_flag=True, help="List them again whenever something happens, until Ctrl-C."
)
@JSON
@addressed
@chosen
def list_(choice: Choice, no_legend: bool, watch: bool, as_json: bool) -> int:
    """List all machines.

    With --host for each, those of several hosts.
    """
    if watch and as_json:
        raise click.UsageError("--watch and --json exclude each other; use: moorctl events --follow --json")
    addresses = choice.each()
    legend = not (no_legend or choice.quiet)
    from moorage.cli import service, views
    from moorage.cli.pager import paging

    if watch:
        from moorage.cli import following

        address = choice.resolve()
        for count, _ in enumerate(following.moments(address)):
            views.show_list_again(service.list_machines(address), legend=legend, first=count == 0)
    if len(addresses) > 1:
        status, found, hosts = _list_hosts(addresses)
    else:
        status, found, hosts = Exit.OK, service.list_machines(addresses[0]), None
    with paging(wanted=choice.pager):
        if as_json:
            for host, reply in zip(hosts or [None] * len(found), found, strict=True):
                views.show_machine_json(reply, host)
        else:
            views.show_list(found, legend=legend, hosts=hosts)
    return status


def _list_hosts(addresses: Sequence[Address]) -> tuple[int, list[Reply], list[str]]:
    """Return the exit status, what was replied, and by which hosts."""
    from moorage.cli import service
    from moorage.cli.hosts import Hosts

    hosts = Hosts(addresses, lambda address: [service.list_machines(address)])
    found = [(host, reply) for host, replies in hosts.replies() for reply in replies]
    found.sort(key=itemgetter(0))
    return hosts.status, [reply for _, reply in found], [host for host, _ in found]


@click.command()
@NAME
@JSON
@addressed
@chosen
def status(choice: Choice, name: str, as_json: bool) -> None:
    """Show a machine, its use of resources, and its limits.

    For a while this works after the machine has ended, too.
    """
    address = choice.resolve()
    from moorage.cli import details, service, views
    from moorage.cli.pager import paging

    reply = service.call(address, "Describe", {"name": name})
    with paging(wanted=choice.pager):
        (views.show_json if as_json else details.show_status)(reply)


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_name)
@JSON
@addressed
@chosen
def tree(choice: Choice, names: tuple[str, ...], as_json: bool) -> None:
    """Show machines, their helpers, and all processes.

    They are shown in their slices. The leader of a machine stands out. --json prints a line for each slice.
    """
    address = choice.here("a tree of processes")
    from moorage.cli import service, views
    from moorage.cli.pager import paging
    from moorage.cli.tree import show_tree

    machines = views.machines_of(service.list_machines(address))
    if unknown := set(names) - {machine.name for machine in machines}:
        listed = ", ".join(map(printable, sorted(unknown)))
        raise Failure(
            Exit.NO_SUCH_MACHINE, f"There is no machine {listed}.\nList all machines: {address.moorctl} list"
        )
    shown = [machine for machine in machines if not names or machine.name in names]
    with paging(wanted=choice.pager):
        show_tree(shown, as_json=as_json)


@click.command()
@click.option("--pid", type=PID, metavar="PID", help="A process of the machine.")
@click.option("--unit", metavar="UNIT", help="Unit of the machine.")
@click.option("--control-group", metavar="PATH", help="A control group of the machine.")
@click.option("--invocation", metavar="ID128", help="Invocation ID of the machine's unit.")
@JSON
@addressed
@chosen
def find(
    choice: Choice,
    pid: int | None,
    unit: str | None,
    control_group: str | None,
    invocation: str | None,
    as_json: bool,
) -> None:
    """Print the name of the machine that owns something.

    That is a process, a unit, a control group, or an invocation of a unit.
    """
    if sum(given is not None for given in (pid, unit, control_group, invocation)) != 1:
        raise click.UsageError("Give one of --pid, --unit, --control-group and --invocation.")
    address = choice.resolve()
    from moorage.cli import service, views
    from moorage.cli.processes import naming_pid

    parameters: dict[str, Any] = {"unit": unit, "controlGroup": control_group, "invocationId": invocation}
    if pid is None:
        reply = service.call(address, "Find", parameters)
    else:
        with naming_pid(address, pid, "processFileDescriptor", "process") as (named, fds):
            reply = service.call(address, "Find", named, fds=fds)
    (views.show_machine_json if as_json else views.show_name)(reply)
