"""The commands of moorctl: options in, one call, what it says out."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shlex
import shutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem, get_completion_class

from moorage import __version__
from moorage.cli.address import VARIABLE, Address, Choice
from moorage.cli.failures import Exit, Failure
from moorage.cli.properties import convert
from moorage.cli.quantities import parse_signal, parse_span, printable

if TYPE_CHECKING:
    from moorage.cli import helper_files

# Trio and msgspec take most of the time that moorctl needs to start: the help, a wrong option, and the completion of
# what is no name do without. So `service` and `views` are imported where a call is made.

PROGRAM: Final = "moorctl"
COMPLETE_VARIABLE: Final = "_MOORCTL_COMPLETE"

REGISTER_SECONDS: Final = 30.0
"""What the service gives a registration where the caller says nothing."""

STOP_SECONDS: Final = 200.0
"""What the service gives a stop where the caller says nothing: time for SIGTERM, then for SIGKILL."""

ANSWER_SECONDS: Final = 15.0
"""How much longer than the service may take is waited for its answer: it still has to say what went wrong."""

COMPLETION_SECONDS: Final = 2.0
"""A person who has pressed Tab does not wait longer; by then the service must have been started, too."""

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def run(arguments: Sequence[str]) -> int:
    """Run moorctl with these arguments and return the exit status.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    try:
        status = moorctl.main(
            arguments, prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE, standalone_mode=False
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


def _parsed(parse: Callable[[str], T]) -> Callable[[click.Context, click.Parameter, str | None], T | None]:
    """Return a callback for an option whose value is parsed by a function that raises ValueError."""

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> T | None:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return callback


def _finite_span(text: str) -> int:
    usec = parse_span(text)
    if not usec:
        raise ValueError(f"{text!r} is no time to wait")
    return usec


def _name_slice(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Complete the name of a slice, as systemd-run(1) does."""
    return value if value is None or "." in value else f"{value}.slice"


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


_PID = click.IntRange(min=1, max=4_194_304)  # PID_MAX_LIMIT, proc(5)
_FD = click.IntRange(min=0, max=2**31 - 1)


def _choose_user(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    choice = ctx.ensure_object(Choice)
    choice.user = choice.user or value


def _choose_path(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    choice = ctx.ensure_object(Choice)
    choice.path = choice.path if value is None else value


def addressed(command: F) -> F:
    """Add the options that say which service to call: before and after the name of the command they are the same."""
    path = click.option(
        "--address",
        metavar="PATH",
        callback=_choose_path,
        expose_value=False,
        help=f"Socket of the service; otherwise ${VARIABLE}, or that of the system.",
        type=click.Path(),
    )
    user = click.option(
        "--user",
        is_flag=True,
        callback=_choose_user,
        expose_value=False,
        help="Call the service of your own user manager.",
    )
    return user(path(command))


JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
chosen = click.make_pass_decorator(Choice, ensure=True)


def _complete_name(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from moorage.cli import service, views

    try:
        replies = service.list_machines(ctx.ensure_object(Choice).resolve(), timeout=COMPLETION_SECONDS)
        machines = views.machines_of(replies)
    except (Failure, click.ClickException):
        return []  # a message in the middle of the line being typed helps nobody
    return [
        CompletionItem(machine.name, help=machine.unit)
        for machine in machines
        if machine.name.startswith(incomplete)
    ]


NAME = click.argument("name", shell_complete=_complete_name)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", message="%(prog)s %(version)s")
@addressed
def moorctl() -> None:
    """Register machines, find them, and end them.

    A machine is a virtual machine or a container; its processes live in a scope of their own, which the service
    manager (systemd) keeps.

    Exit status: 0 done, 1 refused, 2 wrong usage, 3 no such machine, 4 not permitted, 5 no connection to the service,
    6 took too long.
    """


def _describing(command: F) -> F:
    """Add the options that say what a machine is, for :func:`_registration`."""
    for option in reversed(
        (
            click.option(
                "--class",
                "class_",
                type=click.Choice(["vm", "container"]),
                default="vm",
                show_default=True,
                help="What runs in it.",
            ),
            click.option(
                "--slice",
                "slice_",
                metavar="SLICE",
                callback=_name_slice,
                help="Slice for the scope.  [default: machine.slice]",
            ),
            click.option("--description", metavar="TEXT", help="Description of the scope."),
            click.option(
                "-p",
                "--property",
                "properties",
                metavar="NAME=VALUE",
                multiple=True,
                help="Property of the scope, as for systemd-run(1); or with a value in JSON. May be repeated.",
            ),
            click.option("--service", metavar="TEXT", help="Who registers it, such as the name of the VMM."),
            click.option("--id", "id_", metavar="ID128", help="ID of the machine: 32 hexadecimal digits."),
            click.option("--root-directory", metavar="PATH", help="Its file system on the host."),
            click.option(
                "--vsock-cid", type=click.IntRange(min=0), metavar="CID", help="Its address for AF_VSOCK."
            ),
            click.option("--ssh-address", metavar="ADDRESS", help="How ssh(1) reaches it."),
            click.option("--ssh-private-key-path", metavar="PATH", help="Key for ssh(1)."),
            click.option("--control-address", metavar="ADDRESS", help="Where its VMM is spoken to."),
            click.option(
                "--if-index",
                "if_indices",
                type=click.IntRange(min=1),
                metavar="INDEX",
                multiple=True,
                help="Network interface of the host that belongs to it. May be repeated.",
            ),
            click.option("--dry-run", is_flag=True, help="Check everything, register nothing."),
            click.option(
                "--timeout",
                callback=_parsed(_finite_span),
                metavar="SPAN",
                help="How long registering may take.  [default: 30s]",
            ),
        )
    ):
        command = option(command)
    return command


def _registration(
    name: str,
    *,
    class_: str,
    slice_: str | None,
    description: str | None,
    properties: tuple[str, ...],
    service: str | None,
    id_: str | None,
    root_directory: str | None,
    vsock_cid: int | None,
    ssh_address: str | None,
    ssh_private_key_path: str | None,
    control_address: str | None,
    if_indices: tuple[int, ...],
    dry_run: bool,
    timeout: int | None,
) -> dict[str, Any]:
    """Return the parameters of Register without the leader."""
    try:
        converted = convert(properties)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--property'") from None
    return {
        "name": name,
        "class": class_,
        "id": id_,
        "service": service,
        "rootDirectory": root_directory,
        "ifIndices": list(if_indices) or None,
        "vSockCid": vsock_cid,
        "sshAddress": ssh_address,
        "sshPrivateKeyPath": ssh_private_key_path,
        "controlAddress": control_address,
        "slice": slice_,
        "description": description,
        "properties": converted or None,
        "dryRun": dry_run or None,
        "timeoutUSec": timeout,
    }


def _register_seconds(timeout: int | None) -> float:
    """Return how long the answer of Register may take."""
    return (REGISTER_SECONDS if timeout is None else timeout / 1e6) + ANSWER_SECONDS


@moorctl.command()
@click.argument("name")
@click.option("--leader", type=_PID, metavar="PID", help="Its first process; this or --pidfd is needed.")
@click.option(
    "--pidfd", type=_FD, metavar="FD", help="The same as an open file descriptor: see pidfd_open(2)."
)
@click.option("--no-allocate", is_flag=True, help="Make no scope: it stays in the unit that it is in.")
@_describing
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
    """Register a machine and put its leader into a scope.

    Prints the name of the scope once the leader is in it. Properties that are in force with another value than was
    asked for are warned of on stderr.

    Example:
        unit=$(moorctl register web --leader $PID --property MemoryMax=2G)
    """
    if (leader is None) == (pidfd is None):
        raise click.UsageError("Give one of --leader and --pidfd.")
    parameters = _registration(name, **described)
    if no_allocate:
        if any(parameters[field] is not None for field in ("slice", "description", "properties")):
            raise click.UsageError(
                "--no-allocate leaves the unit as it is: --slice, --description and --property do not go with it."
            )
        parameters["allocateUnit"] = False
    address = choice.resolve()
    from moorage.cli import service as moored
    from moorage.cli import views
    from moorage.cli.processes import naming

    # A process that is held open here cannot be mistaken for a later one with the same PID.
    own = None if leader is None else _open_process(leader)
    try:
        named, fds = naming(
            _checked("--pidfd", pidfd) if own is None else own, "leaderFileDescriptor", "leader"
        )
        reply = moored.call(
            address,
            "Register",
            parameters | named,
            fds=fds,
            timeout=_register_seconds(described["timeout"]),
        )
    finally:
        if own is not None:
            os.close(own)
    (views.show_json if as_json else views.show_registered)(reply)


@moorctl.command("run", context_settings={"allow_interspersed_args": False})
@click.option("--name", required=True, metavar="NAME", help="Name of the machine.")
@_describing
@click.option(
    "--helper",
    "helpers",
    metavar="NAME=COMMAND",
    multiple=True,
    help="Service that lives and ends with the machine; the command as for a shell. May be repeated.",
)
@click.option(
    "--helpers",
    "helper_file",
    type=click.Path(),
    metavar="FILE",
    help="File with helpers and the beginning of the command: see moorctl check.",
)
@click.option(
    "--exec-stop",
    metavar="COMMAND",
    help="Command that asks the machine to end, before it is told to by signals; as for a shell.",
)
@click.option(
    "--exec-stop-timeout",
    callback=_parsed(_finite_span),
    metavar="SPAN",
    help="How long that may take.  [default: 1min 30s]",
)
@click.option(
    "--lease/--no-lease",
    default=True,
    show_default=True,
    help="Stop the machine when moorctl ends, however.",
)
@click.option(
    "-t",
    "--pty",
    is_flag=True,
    help="Give the command a terminal of its own, connected to standard input and output.",
)
@click.option(
    "--pass-fd",
    "fds",
    metavar="FD[:AS]",
    multiple=True,
    help="File descriptor for the command. May be repeated.",
)
@click.option(
    "-E",
    "--setenv",
    "variables",
    metavar="NAME[=VALUE]",
    multiple=True,
    help="Environment variable for the command, which otherwise has those of moorctl. May be repeated.",
)
@click.option("--working-directory", metavar="PATH", help="Working directory of the command.")
@click.option(
    "--uid",
    "run_as",
    callback=_parsed(_find_user),
    metavar="USER",
    help="User to run the command as: name or number.",
)
@click.option(
    "--gid",
    callback=_parsed(_find_group),
    metavar="GROUP",
    help="Group to run the command as: name or number.",
)
@click.option(
    "--subgroup",
    metavar="NAME",
    help="Control group for the command below that of the machine, which must be delegated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the service's answer as JSON, to stderr.")
@addressed
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@chosen
def run_(
    choice: Choice,
    name: str,
    helpers: tuple[str, ...],
    helper_file: str | None,
    exec_stop: str | None,
    exec_stop_timeout: int | None,
    lease: bool,
    pty: bool,
    fds: tuple[str, ...],
    variables: tuple[str, ...],
    working_directory: str | None,
    run_as: pwd.struct_passwd | None,
    gid: int | None,
    subgroup: str | None,
    as_json: bool,
    command: tuple[str, ...],
    **described: Any,
) -> int:
    """Run a command as the payload of a machine.

    The machine has its scope, and its helpers run, before the command is executed; nothing else is in the scope.
    Ctrl-C and SIGTERM have the machine stopped; once more, and it is killed. SIGUSR1, SIGUSR2 and the real-time
    signals are passed on to the command. With --pty, Ctrl-C is the command's, and Ctrl-] three times within a second
    has the machine stopped.

    Exit status: that of the command, or 128 + N where signal N ended it; 125 the machine could not be registered,
    126 the command could not be executed, 127 it does not exist.

    Example:
        moorctl run --name web -p MemoryMax=2G --helper 'tpm=swtpm socket …' -- qemu-system-x86_64 …
    """
    parameters = {**_registration(name, **described), "lease": lease or None}
    settings = {
        "env": _environment(variables, run_as),
        "cwd": working_directory,
        "fds": dict(_passed(fd) for fd in fds),
        "subgroup": subgroup,
    }
    address = choice.resolve()
    from moorage.cli import helper_files, run

    directory = helper_files.runtime_directory(name, address)
    given = helper_files.HelperSet() if helper_file is None else read_helpers(helper_file, name, directory)
    every = [*given.helpers, *(helper_of(text) for text in helpers)]
    asking = given.exec_stop if exec_stop is None else _program("--exec-stop", exec_stop)
    parameters |= {"execStop": asking or None, "execStopTimeoutUSec": exec_stop_timeout}
    argv = [*given.command, *command]
    if not argv:
        raise click.UsageError("There is no command to run.")
    return run.run(
        address,
        run.Order(
            registration=parameters,
            helpers=every,
            register_seconds=_register_seconds(described["timeout"]),
            stop_seconds=STOP_SECONDS + ANSWER_SECONDS,
            directory=directory if given.helpers else None,
            identity=_identity(run_as, gid),
            argv=argv,
            settings=settings,
            terminal=pty,
            as_json=as_json,
        ),
    )


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
            raise click.BadParameter(f"there is no variable {name!r} here", param_hint="'--setenv'")
    return environment


def _passed(text: str) -> tuple[int, int]:
    fd, separator, number = text.partition(":")
    if not fd.isdecimal() or (separator and not number.isdecimal()):
        raise click.BadParameter(f"{text!r} is not FD or FD:AS", param_hint="'--pass-fd'")
    return int(number or fd), _checked("--pass-fd", int(fd))


def _identity(user: pwd.struct_passwd | None, gid: int | None) -> dict[str, Any]:
    """Return what makes a process one of a user and a group."""
    if user is None:
        if gid is not None:
            raise click.UsageError("--gid goes with --uid.")
        return {}
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    return {"uid": user.pw_uid, "gid": user.pw_gid if gid is None else gid, "groups": groups}


def helper_of(text: str) -> helper_files.Helper:
    """Parse the value of ``--helper``.

    Raises:
        click.BadParameter: it is not a name and the command of a program that exists.
    """
    from moorage.cli import helper_files

    name, separator, command = text.partition("=")
    if not separator:
        raise click.BadParameter(f"{text!r} is not NAME=COMMAND", param_hint="'--helper'")
    return helper_files.Helper(name, _program("--helper", command, f"{name}: "))


def _program(option: str, command: str, where: str = "") -> list[str]:
    """Split a command as a shell does, and find its program: the service has no PATH of its own to look in."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise click.BadParameter(f"{where}{error}", param_hint=f"'{option}'") from None
    if not words:
        raise click.BadParameter(f"{where}there is no command", param_hint=f"'{option}'")
    found = shutil.which(words[0])
    if found is None:
        raise click.BadParameter(f"{where}there is no program {words[0]!r}", param_hint=f"'{option}'")
    return [os.path.abspath(found), *words[1:]]


def read_helpers(path: str, machine: str, directory: str) -> helper_files.HelperSet:
    """Read what a file says for a machine with a certain runtime directory."""
    from moorage.cli import helper_files

    specifiers = {"n": machine, "t": directory, "u": str(os.geteuid())}
    try:
        expanded = helper_files.expand(helper_files.load(path), specifiers)
        helper_files.check_sockets(expanded.helpers, directory)
        return expanded
    except OSError as error:
        raise Failure(Exit.USAGE, f"Failed to read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise Failure(Exit.USAGE, f"{path}: {error}") from None


@moorctl.command()
@click.argument("file", type=click.Path())
@click.option("--name", default="NAME", show_default=True, metavar="NAME", help="Name of the machine.")
@click.option("--offline", is_flag=True, help="Look at the file only, and ask no service.")
@JSON
@addressed
@chosen
def check(choice: Choice, file: str, name: str, offline: bool, as_json: bool) -> None:
    """Show what a file of helpers would create, and have the service check it.

    Such a file is TOML. A table "helpers" has one for each helper, with the fields that a helper has in
    io.moorage.Machine; "command" is what moorctl run puts before the arguments that it is given. In texts, %n is the
    machine's name, %t its runtime directory, %u the number of the user, %% a percent sign.

    The service checks it as a dry run of moorctl run does: nothing is created.
    """
    address = choice.resolve()
    from moorage.cli import helper_files

    directory = helper_files.runtime_directory(name, address)
    given = read_helpers(file, name, directory)
    try:
        lines = list(helper_files.explain(given, name, directory))
    except ValueError as error:
        raise Failure(Exit.USAGE, f"{file}: {error}") from None
    helpers = helper_files.as_sent(given.helpers)
    if as_json:
        click.echo(json.dumps({"command": given.command, "runtimeDirectory": directory, "helpers": helpers}))
    else:
        for line in lines:
            click.echo(printable(line))
    if not offline:
        _rehearse(address, name, helpers)


def _rehearse(address: Address, name: str, helpers: Sequence[dict[str, Any]]) -> None:
    """Have the service check whether it would start helpers; this process stands in for the machine's leader."""
    from moorage.cli import service

    pidfd = os.pidfd_open(os.getpid())
    try:
        service.call(
            address,
            "Register",
            {
                "name": name,
                "class": "vm",
                "leaderFileDescriptor": 0,
                "helpers": helpers or None,
                "dryRun": True,
            },
            fds=[pidfd],
            timeout=REGISTER_SECONDS + ANSWER_SECONDS,
            helpers=helpers,
        )
    finally:
        os.close(pidfd)


def _open_process(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise Failure(Exit.REFUSED, f"There is no process {pid}.") from None
    except OSError as error:
        # EINVAL: a thread of a process; pidfd_open(2)
        raise Failure(Exit.REFUSED, f"Failed to open process {pid}: {error.strerror}.") from None


def _checked(option: str, fd: int | None) -> int:
    assert fd is not None
    try:
        os.fstat(fd)
    except OSError:
        raise click.BadParameter(f"file descriptor {fd} is not open", param_hint=f"'{option}'") from None
    return fd


@moorctl.command("list")
@click.option("--no-legend", is_flag=True, help="Print neither heading nor count.")
@JSON
@addressed
@chosen
def list_(choice: Choice, no_legend: bool, as_json: bool) -> None:
    """List the machines there are."""
    address = choice.resolve()
    from moorage.cli import service, views

    replies = service.list_machines(address)
    if as_json:
        for reply in replies:
            views.show_machine_json(reply)
    else:
        views.show_list(replies, legend=not no_legend)


@moorctl.command()
@NAME
@JSON
@addressed
@chosen
def status(choice: Choice, name: str, as_json: bool) -> None:
    """Show a machine, what it uses, and its limits.

    For a while that can be done after its end as well.
    """
    address = choice.resolve()
    from moorage.cli import service, views

    reply = service.call(address, "Describe", {"name": name})
    (views.show_json if as_json else views.show_status)(reply)


@moorctl.command()
@click.option("--pid", type=_PID, metavar="PID", help="A process of it.")
@click.option("--unit", metavar="UNIT", help="Its unit.")
@click.option("--control-group", metavar="PATH", help="A control group of it.")
@click.option("--invocation", metavar="ID128", help="Invocation ID of its unit.")
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
    """Print the name of the machine that something belongs to."""
    if sum(given is not None for given in (pid, unit, control_group, invocation)) != 1:
        raise click.UsageError("Give one of --pid, --unit, --control-group and --invocation.")
    address = choice.resolve()
    from moorage.cli import service, views
    from moorage.cli.processes import naming

    parameters: dict[str, Any] = {"unit": unit, "controlGroup": control_group, "invocationId": invocation}
    if pid is None:
        reply = service.call(address, "Find", parameters)
    else:
        pidfd = _open_process(pid)
        try:
            named, fds = naming(pidfd, "processFileDescriptor", "process")
            reply = service.call(address, "Find", named, fds=fds)
        finally:
            os.close(pidfd)
    (views.show_machine_json if as_json else views.show_name)(reply)


@moorctl.command()
@NAME
@click.option(
    "-s",
    "--signal",
    callback=_parsed(parse_signal),
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
    help="Which of its processes.",
)
@JSON
@addressed
@chosen
def kill(choice: Choice, name: str, signal: int, whom: str, as_json: bool) -> None:
    """Send a signal to processes of a machine."""
    address = choice.resolve()
    from moorage.cli import service, views

    reply = service.call(address, "Kill", {"name": name, "signal": signal, "whom": whom})
    if as_json:
        views.show_json(reply)


@moorctl.command()
@NAME
@click.option(
    "--timeout",
    callback=_parsed(_finite_span),
    metavar="SPAN",
    help="How long to wait for the end.  [default: 3min 20s]",
)
@JSON
@addressed
@chosen
def stop(choice: Choice, name: str, timeout: int | None, as_json: bool) -> None:
    """Stop a machine.

    Waits until all of its processes are gone.
    """
    address = choice.resolve()
    from moorage.cli import service, views

    reply = service.call(
        address,
        "Stop",
        {"name": name, "timeoutUSec": timeout},
        timeout=(STOP_SECONDS if timeout is None else timeout / 1e6) + ANSWER_SECONDS,
    )
    if as_json:
        views.show_machine_json(reply)


@moorctl.command()
@NAME
@JSON
@addressed
@chosen
def forget(choice: Choice, name: str, as_json: bool) -> None:
    """Drop the record of a machine. Its unit and its processes are left alone."""
    address = choice.resolve()
    from moorage.cli import service, views

    reply = service.call(address, "Forget", {"name": name})
    if as_json:
        views.show_json(reply)


@moorctl.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script for completion by the shell.

    It completes commands, options and names of machines.

    In ~/.bashrc: eval "$(moorctl completion bash)"
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(moorctl, {}, PROGRAM, COMPLETE_VARIABLE).source())
