"""Commands that look at the host and the service: ``moorctl doctor`` and ``config``."""

from __future__ import annotations

import click

from moorage.cli.address import Choice
from moorage.cli.commands.options import JSON, addressed, chosen
from moorage.cli.failures import Exit

COLOURS = {"ok": "green", "limited": "yellow", "bad": "red", "unknown": "bright_black"}


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
