"""``moorctl run``."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click

from moorage.cli.address import Choice
from moorage.cli.commands.helpers import HELPER, helper_of, program, read_helpers
from moorage.cli.commands.machine import describing, register_seconds, registration
from moorage.cli.commands.options import (
    ANSWER_SECONDS,
    SERVICE_SECONDS,
    F,
    addressed,
    checked_fd,
    chosen,
    finite_span,
    parsed,
)
from moorage.cli.failures import Exit, Failure


def _find_user(text: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
    except (KeyError, OverflowError):
        raise ValueError(f"there is no user {text!r}") from None


def _find_group(text: str) -> int:
    try:
        return (grp.getgrgid(int(text)) if text.isdecimal() else grp.getgrnam(text)).gr_gid
    except (KeyError, OverflowError):
        raise ValueError(f"there is no group {text!r}") from None


_PROCESS_OPTIONS: Final = (
    click.option(
        "--pass-fd",
        "fds",
        metavar="FD[:AS]",
        multiple=True,
        help="File descriptor to pass to the command, renumbered to AS if given. May be repeated.",
    ),
    click.option(
        "-E",
        "--setenv",
        "variables",
        metavar="NAME[=VALUE]",
        multiple=True,
        help="Environment variable to add to those of moorctl, which the command inherits. May be repeated.",
    ),
    click.option("--working-directory", metavar="PATH", help="Working directory of the command."),
    click.option(
        "--uid",
        "run_as",
        callback=parsed(_find_user),
        metavar="USER",
        help="User to run the command as: name or number.",
    ),
    click.option(
        "--gid",
        callback=parsed(_find_group),
        metavar="GROUP",
        help="Group to run the command as: name or number.",
    ),
    click.option(
        "--subgroup",
        metavar="NAME",
        help="Put the command into this control group below the machine's, which must be delegated.",
    ),
)

_PROCESS: Final = ("fds", "variables", "working_directory", "run_as", "gid", "subgroup")
"""Parameters of the command's own process."""


def _in_a_process(command: F) -> F:
    """Add the options of the command's own process."""
    for option in reversed(_PROCESS_OPTIONS):
        command = option(command)
    return command


EXAMPLE: Final = """\b
Example:
  moorctl run --name web -p MemoryMax=2G --helper 'tpm=swtpm socket …' -- qemu-system-x86_64 …"""


@click.command("run", context_settings={"allow_interspersed_args": False}, epilog=EXAMPLE)
@click.option("--name", required=True, metavar="NAME", help="Name of the machine.")
@describing
@HELPER
@click.option(
    "--helpers",
    "helper_file",
    type=click.Path(),
    metavar="FILE",
    help="File with helpers and the beginning of the command line; see moorctl check --help.",
)
@click.option(
    "--exec-stop",
    metavar="COMMAND",
    help="Command line that asks the machine to shut down before it is sent any signal.",
)
@click.option(
    "--exec-stop-timeout",
    callback=parsed(finite_span),
    metavar="SPAN",
    help="How long that may take.  [default: 1min 30s]",
)
@click.option(
    "--on-stop",
    metavar="COMMAND",
    help="Command line that shuts the guest down; moorctl runs it when somebody stops the machine, before it is told.",
)
@click.option(
    "--grace",
    callback=parsed(finite_span),
    metavar="SPAN",
    help="How long a stop waits for that.  [default: 1min 30s]",
)
@click.option(
    "--lease/--no-lease",
    default=True,
    show_default=True,
    help="Stop the machine when moorctl ends, for whatever reason.",
)
@click.option(
    "-t",
    "--pty",
    is_flag=True,
    help="Give the command a terminal of its own, connected to standard input and output.",
)
@_in_a_process
@click.option("--json", "as_json", is_flag=True, help="Print the reply of the service as JSON to stderr.")
@addressed
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@chosen
def run(
    choice: Choice,
    name: str,
    helpers: tuple[str, ...],
    helper_file: str | None,
    exec_stop: str | None,
    exec_stop_timeout: int | None,
    on_stop: str | None,
    grace: int | None,
    lease: bool,
    pty: bool,
    as_json: bool,
    command: tuple[str, ...],
    **options: Any,
) -> int:
    """Run a command as a machine.

    The command is executed once the machine has its scope and all helpers are ready; nothing else is in the scope.
    Ctrl-C and SIGTERM stop the machine; a second one kills it. SIGUSR1, SIGUSR2 and the real-time signals are passed
    on to the command. With --pty, Ctrl-C goes to the command, and pressing Ctrl-] three times within a second stops
    the machine.

    Exit status: that of the command, or 128 + N if signal N ended it; 125 if the machine was not registered, 126 if
    the command cannot be executed, 127 if it does not exist.
    """
    address = choice.here("a process that is started")
    identity, settings = _process(**{option: options.pop(option) for option in _PROCESS})
    from moorage.cli import helper_files
    from moorage.cli import run as running

    directory = helper_files.runtime_directory(name, address)
    given = helper_files.HelperSet()
    with _failing_like_run():
        if helper_file is not None:
            given = read_helpers(helper_file, name, directory, address)
        parameters = registration(address, name, **options)
    asking = given.exec_stop if exec_stop is None else program("--exec-stop", exec_stop)
    argv = [*given.command, *command]
    if not argv:
        raise click.UsageError("There is no command to run.")
    stopping = {"execStop": asking or None, "execStopTimeoutUSec": exec_stop_timeout}
    return running.run(
        address,
        running.Order(
            registration=parameters | stopping | {"lease": lease or None},
            helpers=[*given.helpers, *(helper_of(text) for text in helpers)],
            register_seconds=register_seconds(options["timeout"]),
            stop_seconds=SERVICE_SECONDS + ANSWER_SECONDS,
            directory=directory if given.helpers else None,
            identity=identity,
            argv=argv,
            settings=settings,
            on_stop=_shutting_down(on_stop, grace, lease=lease),
            grace_usec=grace,
            terminal=pty,
            as_json=as_json,
            quiet=choice.quiet,
        ),
    )


def _shutting_down(on_stop: str | None, grace: int | None, *, lease: bool) -> Sequence[str]:
    """Return the words of --on-stop, none without it."""
    if on_stop is None:
        if grace is not None:
            raise click.UsageError("--grace needs --on-stop.")
        return ()
    if not lease:
        raise click.UsageError("--on-stop needs a lease.")
    try:
        words = shlex.split(on_stop)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--on-stop'") from None
    if not words:
        raise click.BadParameter("there is no program", param_hint="'--on-stop'")
    return words


@contextmanager
def _failing_like_run() -> Generator[None]:
    """Turn the exit status of a call that failed into one that cannot be the command's."""
    try:
        yield
    except Failure as failure:
        status = failure.status if failure.status == Exit.USAGE else Exit.NOT_RUN
        raise Failure(status, str(failure)) from None


def _process(
    fds: Sequence[str],
    variables: Sequence[str],
    working_directory: str | None,
    run_as: pwd.struct_passwd | None,
    gid: int | None,
    subgroup: str | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an :class:`~moorage.launch.Identity` and :class:`~moorage.launch.Settings` of a payload."""
    settings = {
        "env": _environment(variables, run_as),
        "cwd": working_directory,
        "fds": dict(_passed(fd) for fd in fds),
        "subgroup": subgroup,
    }
    return _identity(run_as, gid), settings


def _environment(variables: Sequence[str], user: pwd.struct_passwd | None) -> dict[str, str]:
    environment = dict(os.environ)
    if user is not None:  # what systemd.exec(5) sets for User=
        environment |= {
            "HOME": user.pw_dir,
            "LOGNAME": user.pw_name,
            "USER": user.pw_name,
            "SHELL": user.pw_shell,
        }
    for text in variables:
        name, separator, value = text.partition("=")
        if not name:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="'--setenv'")
        if separator:
            environment[name] = value
        elif name not in environment:
            raise click.BadParameter(f"moorctl itself has no variable {name!r}", param_hint="'--setenv'")
    return environment


def _passed(text: str) -> tuple[int, int]:
    """Return the number that a file descriptor gets in the payload, and its number here."""
    fd, separator, number = text.partition(":")
    if not fd.isdecimal() or (separator and not number.isdecimal()):
        raise click.BadParameter(f"{text!r} is not FD or FD:AS", param_hint="'--pass-fd'")
    return int(number or fd), checked_fd("--pass-fd", int(fd))


def _identity(user: pwd.struct_passwd | None, gid: int | None) -> dict[str, Any]:
    if user is None:
        if gid is not None:
            raise click.UsageError("--gid needs --uid.")
        return {}
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    return {"uid": user.pw_uid, "gid": user.pw_gid if gid is None else gid, "groups": groups}
