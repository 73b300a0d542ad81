"""Commands about the host and the service: ``moorctl doctor``, ``config`` and ``in-place``."""

from __future__ import annotations

import contextlib

import click

from moorage.cli.address import Choice
from moorage.cli.commands.options import JSON, addressed, chosen
from moorage.cli.failures import Exit

COLOURS = {"ok": "green", "limited": "yellow", "bad": "red", "unknown": "bright_black"}

NO_MACHINED = (
    "There is no systemd-machined here (a user has one since systemd 258): nothing is replaced now. moored listens "
    "where it would, and stays there when it comes."
)


@click.command()
@JSON
@addressed
@chosen
def doctor(choice: Choice, as_json: bool) -> int:
    """Look at this host, and say what of moored works here.

    What is limited or does not work comes with the way to mend it. Exit status: 1 if moored cannot work here.
    """
    address = choice.here("what it looks at")
    import msgspec

    from moorage.cli import views
    from moorage.cli.doctor import Finding, State, examine, failed
    from moorage.cli.pager import paging
    from moorage.quantities import printable

    findings: list[Finding] = []
    with paging(wanted=choice.pager):
        for finding in examine(address):
            findings.append(finding)
            if as_json:
                views.show_json(msgspec.Raw(msgspec.json.encode(finding)))
                continue
            if choice.quiet and finding.state is State.good:
                continue
            state = click.style(f"{finding.state.value:8}", fg=COLOURS[finding.state.value])
            click.echo(f"{state} {finding.subject}: {printable(finding.words)}")
            if finding.remedy is not None:
                click.echo(f"{'':8} -> {printable(finding.remedy)}")
    return Exit.REFUSED if failed(findings) else Exit.OK


@click.command()
@JSON
@addressed
@chosen
def config(choice: Choice, as_json: bool) -> None:
    """Show the configuration of the service.

    It shows what is in force, and where it comes from. Of an option that a restart will change, it also shows the
    value after that. What is wrong with the files follows, on standard error. Users other than root see the values
    only.
    """
    address = choice.resolve()
    from moorage.cli import service, views
    from moorage.cli.pager import paging

    reply = service.call(address, "DescribeConfiguration", {})
    with paging(wanted=choice.pager):
        (views.show_json if as_json else views.show_configuration)(reply)


@click.command("in-place")
@click.argument("state", type=click.Choice(["on", "off"]), metavar="on|off")
@click.option("-n", "--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@click.option(
    "--without-images",
    is_flag=True,
    help="Go into its place although it keeps images, which nobody can manage meanwhile.",
)
@click.option(
    "--without-machines",
    is_flag=True,
    help="Go out of its place although it does not get all machines, which launchers may ask it for.",
)
@addressed
@chosen
def in_place(choice: Choice, state: str, dry_run: bool, without_images: bool, without_machines: bool) -> int:
    """Put moored in the place of systemd-machined, or machined back.

    With --user it is that of your own service manager. Machines go on running, and those of the system's machined are
    moored's then. It is refused where something would break. What is interrupted is completed by the same command, or
    undone by the other one.
    """
    address = choice.here("what it changes")
    if address.manager is None:
        raise click.UsageError("There is no such place but those of the system's service and of a user's.")
    from moorage.cli import placing
    from moorage.cli.whereabouts import Whereabouts

    where = Whereabouts.of(address)
    if state == "on" and placing.is_on(where):
        click.echo("moored is in the place of systemd-machined already.")
        return Exit.OK
    if state == "on":
        steps = placing.going_on(where, images=without_images)
    else:
        steps = placing.going_off(where, machines=without_machines)
    there_was = False
    # Nothing has been looked at yet: the steps do that when the first of them is asked for.
    with contextlib.nullcontext() if dry_run else placing.alone(where):
        for step in steps:
            if not there_was and state == "on" and not choice.quiet and not where.has_machined():
                click.echo(NO_MACHINED, err=True)
            there_was = True
            if dry_run or not choice.quiet:
                click.echo(step.words)
            if not dry_run:
                step.do()
    if not there_was:
        click.echo("moored is not in the place of systemd-machined.")
    return Exit.OK
