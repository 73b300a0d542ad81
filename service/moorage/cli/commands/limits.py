"""What changes the limits of a machine that runs: ``moorctl set-property``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from moorage.cli.address import Choice
from moorage.cli.commands.machine import converted
from moorage.cli.commands.options import JSON, NAME, addressed, chosen


@click.command("set-property")
@NAME
@click.argument("properties", metavar="PROPERTY=VALUE...", nargs=-1, required=True)
@click.option("--helper", metavar="HELPER", help="Set properties of this helper instead of the scope.")
@click.option("--dry-run", is_flag=True, help="Check everything, change nothing.")
@JSON
@addressed
@chosen
def set_property(
    choice: Choice, name: str, properties: Sequence[str], helper: str | None, dry_run: bool, as_json: bool
) -> None:
    """Change properties of a machine that runs.

    All of them are changed, or none. Properties are written as for systemctl set-property, such as MemoryMax=2G or
    CPUQuota=50%. They are in force at once, for as long as the machine runs. Warns on stderr of those whose value
    in force differs.
    """
    address = choice.resolve()
    kind = "scope" if helper is None else "service"
    parameters = {
        "name": name,
        "properties": converted(address, "PROPERTY=VALUE...", kind, properties),
        "helper": helper,
        "dryRun": dry_run or None,
    }
    from moorage.cli import service, views

    reply = service.call(address, "SetProperties", parameters)
    (views.show_json if as_json else views.warn_of_differences)(reply)
