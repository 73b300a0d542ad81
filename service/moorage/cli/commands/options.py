"""Options that several commands have in common, and the types of their values."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from moorage.addresses import VARIABLE
from moorage.cli.address import Choice, host_of
from moorage.cli.failures import Exit, Failure
from moorage.quantities import parse_span

# Msgspec and what prints replies take most of the time that moorctl needs to start. The help, a wrong option and most
# completions need neither, so every command imports `service` and `views` only when it makes its call.

ANSWER_SECONDS: Final = 15.0
"""Added to the time that the service may take for a call: it must still be able to report what went wrong."""

SERVICE_SECONDS: Final = 3600.0
"""How long a call may take at most whose time is left to the service: the largest value of its options for that,
moored.conf(5). A service that is stuck ends the connection earlier, by its watchdog."""

COMPLETION_SECONDS: Final = 2.0
"""Nobody waits longer after pressing Tab; the service may have to be started within that time, too."""

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

PID: Final = click.IntRange(min=1, max=4_194_304)  # PID_MAX_LIMIT, proc(5)
FD: Final = click.IntRange(min=0, max=2**31 - 1)


def parsed(parse: Callable[[str], T]) -> Callable[[click.Context, click.Parameter, str | None], T | None]:
    """Return a callback for an option whose value is parsed by a function that raises ValueError."""

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> T | None:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return callback


def finite_span(text: str) -> int:
    """Parse how long to wait, in µs.

    Raises:
        ValueError: the text is not a span of time, or the wait would be zero or endless.
    """
    usec = parse_span(text)
    if not usec:
        raise ValueError(f"{text!r} is not a time to wait: it must be finite and more than 0, such as 30s")
    return usec


def span_from_now(text: str) -> int:
    """Parse the time until something is done, in µs; 0 is at once.

    Raises:
        ValueError: the text is not a span of time, or it has no end.
    """
    usec = parse_span(text)
    if usec is None:
        raise ValueError(f"{text!r} is not a time to wait: it must be finite, such as 30s")
    return usec


def _choose_user(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    choice = ctx.ensure_object(Choice)
    choice.user = choice.user or value


def _choose_path(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    choice = ctx.ensure_object(Choice)
    choice.path = choice.path if value is None else value


def _choose_hosts(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> None:
    try:
        ctx.ensure_object(Choice).hosts += map(host_of, value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _choose_silence(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    choice = ctx.ensure_object(Choice)
    choice.ask_password = choice.ask_password and not value


def _choose_pager(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    choice = ctx.ensure_object(Choice)
    choice.pager = choice.pager and not value


def _choose_quiet(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    choice = ctx.ensure_object(Choice)
    choice.quiet = choice.quiet or value


def addressed(command: F) -> F:
    """Add the options that all commands have: those that choose the service to call, and how much is printed.

    They may stand before or after the command's name.
    """
    path = click.option(
        "--address",
        metavar="PATH",
        callback=_choose_path,
        expose_value=False,
        help=f"Socket of the service.  [default: ${VARIABLE}, or the system's service]",
        type=click.Path(),
    )
    user = click.option(
        "--user",
        is_flag=True,
        callback=_choose_user,
        expose_value=False,
        help="Call the service of your own user manager.",
    )
    host = click.option(
        "-H",
        "--host",
        metavar="[USER@]HOST",
        multiple=True,
        callback=_choose_hosts,
        expose_value=False,
        help="Call the service of another host, by ssh(1). List, top and events take several.",
    )
    silence = click.option(
        "--no-ask-password",
        is_flag=True,
        callback=_choose_silence,
        expose_value=False,
        help="Ask nobody for authentication.",
    )
    pager = click.option(
        "--no-pager",
        is_flag=True,
        callback=_choose_pager,
        expose_value=False,
        help="Show nothing in a pager.",
    )
    quiet = click.option(
        "-q",
        "--quiet",
        is_flag=True,
        callback=_choose_quiet,
        expose_value=False,
        help="Print only what was asked for, and what went wrong.",
    )
    return user(host(path(silence(pager(quiet(command))))))


def complete_name(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of machines that begin with what is typed."""
    from moorage.cli import service, views

    choice = ctx.ensure_object(Choice)
    if choice.hosts:
        return []  # nobody waits for ssh(1) in the middle of a line, nor types a password there
    try:
        replies = service.list_machines(choice.resolve(), timeout=COMPLETION_SECONDS)
        machines = views.machines_of(replies)
    except (Failure, click.ClickException):
        return []  # a message in the middle of the line being typed helps nobody
    return [
        CompletionItem(machine.name, help=machine.unit)
        for machine in machines
        if machine.name.startswith(incomplete)
    ]


JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")
NAME: Final = click.argument("name", shell_complete=complete_name)
chosen: Final = click.make_pass_decorator(Choice, ensure=True)


@contextmanager
def opened_process(pid: int) -> Generator[int]:
    """Hold a process open by a pidfd, so that it cannot be mistaken for a later one with the same PID.

    Raises:
        Failure: the process does not exist, or cannot be opened.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise Failure(Exit.REFUSED, f"There is no process {pid}.") from None
    except OSError as error:
        # EINVAL: a thread of a process; pidfd_open(2)
        raise Failure(Exit.REFUSED, f"Failed to open process {pid}: {error.strerror}.") from None
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def checked_fd(option: str, fd: int) -> int:
    """Return a file descriptor that was given for an option.

    Raises:
        click.BadParameter: it is not open.
    """
    try:
        os.fstat(fd)
    except OSError:
        raise click.BadParameter(f"file descriptor {fd} is not open", param_hint=f"'{option}'") from None
    return fd
