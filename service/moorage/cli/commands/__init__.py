"""The commands of moorctl: each turns its options into a call, and prints the reply."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import click
from click.shell_completion import get_completion_class

from moorage import __version__
from moorage.cli.commands import (
    control,
    events,
    helpers,
    host,
    inside,
    limits,
    log,
    look,
    register,
    run,
    top,
)
from moorage.cli.commands.options import addressed
from moorage.cli.failures import Exit, Failure
from moorage.quantities import printable
from moorage.similar import did_you_mean, nearest

PROGRAM: Final = "moorctl"
COMPLETE_VARIABLE: Final = "_MOORCTL_COMPLETE"


class _Commands(click.Group):
    """Says what could be meant where there is no such command, and where options of commands are written."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See `click.Group`."""
        # A shell that completes a line asks about commands that are not written yet.
        unknown = self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing
        if unknown and (meant := nearest(args[0], self.commands)):
            ctx.fail(f"There is no command {printable(args[0])}{did_you_mean(meant)}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Group`."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            of_commands = {
                opt for each in self.commands.values() for param in each.params for opt in param.opts
            }
            if error.option_name in of_commands:
                ctx.fail(f"{error.option_name} is an option of commands: write it after the command.")
            raise


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", message="%(prog)s %(version)s")
@addressed
def moorctl() -> None:
    """Run, register, inspect and stop machines.

    A machine is a virtual machine or a container. Its processes live in a systemd scope of their own; its helpers are
    services that live and end with it.

    Exit status: 0 success, 1 refused by the service, 2 wrong usage, 3 no such machine, 4 permission denied,
    5 no connection to the service, 6 timed out.
    """


@moorctl.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for a shell.

    It completes commands, options and the names of machines. In ~/.bashrc: eval "$(moorctl completion bash)"
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(moorctl, {}, PROGRAM, COMPLETE_VARIABLE).source())


for _command in (
    run.run,
    register.register,
    look.list_,
    look.status,
    look.find,
    look.tree,
    top.top,
    events.events,
    events.wait,
    log.log,
    control.kill,
    control.stop,
    limits.set_property,
    control.freeze,
    control.thaw,
    control.poweroff,
    control.reboot,
    control.reset_accounting,
    control.forget,
    inside.shell,
    inside.login,
    inside.copy_to,
    inside.copy_from,
    inside.bind,
    host.doctor,
    host.config,
    host.in_place,
    helpers.check,
    helpers.add_helpers,
    helpers.remove_helper,
    helpers.reload,
):
    moorctl.add_command(_command)


def main(arguments: Sequence[str]) -> int:
    """Run moorctl with these arguments and return the exit status.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    try:
        status = moorctl.main(
            arguments,
            prog_name=PROGRAM,
            complete_var=COMPLETE_VARIABLE,
            standalone_mode=False,
            color=False if os.environ.get("NO_COLOR") else None,  # no-color.org
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Failure as failure:
        click.echo(f"Error: {failure}", err=True)
        return failure.status
    except click.Abort:
        raise KeyboardInterrupt from None
    except OSError as error:  # those of the socket have become a Failure
        # What is left in the buffer cannot be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
        click.echo(f"Error: Failed to write: {error.strerror}", err=True)
        return Exit.REFUSED
    return status or Exit.OK
