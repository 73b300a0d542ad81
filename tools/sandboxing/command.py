"""The command line of tools/sandbox."""

import argparse
import contextlib
import os
import re
import secrets
import signal
import sys
from collections.abc import Generator

from sandboxing.booting import NOFILE, Options, down, up
from sandboxing.host import SandboxError
from sandboxing.images import SUITES, UML_SUITE, USERS, build, image_of
from sandboxing.inside import execute
from sandboxing.state import STATE, Sandbox, read_record

KINDS = ("nspawn", "uml")

BROKER = ("dbus.service", "dbus.socket", "polkit.service", "systemd-logind.service")
"""The system bus, and units that cannot start without it."""


def _name(text: str) -> str:
    """Parse a name that is a host name, part of a unit's name, and a directory."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError("must be up to 40 of a-z, 0-9 and '-'")
    return text


def _limits(text: str) -> str:
    """Parse SOFT:HARD."""
    if not re.fullmatch(r"\d+:\d+", text):
        raise argparse.ArgumentTypeError("must be SOFT:HARD")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/sandbox", description="Throw-away systems with a real systemd."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    for name, text in (("build", "Make the image of a suite unless it exists."), ("up", "Boot a sandbox.")):
        one = add(name, text)
        one.add_argument("suite", choices=sorted(SUITES))
        one.add_argument(
            "--kind",
            choices=KINDS,
            default="nspawn",
            help=f"a container, or a kernel of its own ({UML_SUITE} only, without the options marked *)",
        )
        one.add_argument(
            "--packages", default="", metavar="A,B", help="further packages, which make another image"
        )
    one.add_argument("--name", type=_name, help="default: the suite and four random digits")
    one.add_argument("--read-only", action="store_true", help="* mount the root read-only")
    one.add_argument("--no-broker", action="store_true", help="without the system bus")
    one.add_argument("--mask", action="append", default=[], metavar="UNIT", help="do not start this unit")
    one.add_argument("--bind", action="append", default=[], metavar="PATH[:PATH]", help="*")
    one.add_argument("--bind-ro", action="append", default=[], metavar="PATH[:PATH]", help="*")
    one.add_argument(
        "--tmpfs", action="append", default=[], metavar="PATH:SIZE", help="* e.g. /run/moorage:64k"
    )
    one.add_argument(
        "--nofile",
        default=NOFILE,
        type=_limits,
        metavar="SOFT:HARD",
        help=f"* file descriptors, default {NOFILE}",
    )
    one.add_argument(
        "--size", default="50%", help="limit for what is written to the root (tmpfs(5), default 50%%)"
    )

    one = add(
        "exec", "Run a command, by default a shell, in a scope of a sandbox (uml: without a terminal)."
    )
    one.add_argument(
        "--user", type=int, metavar="UID", help=", ".join(f"{uid}: {name}" for name, uid in USERS.items())
    )
    one.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    one.add_argument("--no-scope", action="store_true", help="do not ask PID 1 for a scope")
    one.add_argument("name", type=_name)
    one.add_argument("argv", nargs=argparse.REMAINDER, metavar="[--] CMD")

    one = add("down", "Remove sandboxes, whatever their state.")
    one.add_argument("names", nargs="+", type=_name, metavar="NAME")
    add("list", "List sandboxes: name, kind, suite, and the PID on the host of PID 1 or of the kernel.")
    return parser


@contextlib.contextmanager
def _terminated_like_interrupted() -> Generator[None]:
    """Have SIGTERM and SIGHUP unwind the stack like Ctrl-C, so that nothing half-made stays."""

    def interrupt(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    yield


def _options(args: argparse.Namespace) -> Options:
    """Return the options of `up`.

    Raises:
        SandboxError: an option does not go with the kind.
    """
    nspawn = [
        f"--{kind}={value}"
        for kind in ("bind", "bind-ro")
        for value in getattr(args, kind.replace("-", "_"))
    ]
    for tmpfs in args.tmpfs:
        path, _, size = tmpfs.rpartition(":")
        nspawn.append(f"--tmpfs={path}:mode=0755,size={size}")
    if args.read_only:
        nspawn.append("--read-only")
    if args.kind == "uml" and (nspawn or args.nofile != NOFILE):
        raise SandboxError(
            "With --kind uml there are none of the options that are marked * in tools/sandbox up --help."
        )
    mask = (*args.mask, *(BROKER if args.no_broker else ()))
    return Options(args.kind, mask, tuple(nspawn), args.nofile, args.size)


def _main() -> None:
    args = _parser().parse_args()
    if os.geteuid() != 0:
        raise SandboxError("Sandboxes need root.")
    match args.command:
        case "build" | "up":
            if args.kind == "uml" and args.suite != UML_SUITE:
                raise SandboxError(f"--kind uml needs the suite {UML_SUITE}.")
            image = image_of(args.suite, [name for name in args.packages.split(",") if name])
            with _terminated_like_interrupted():
                if args.command == "build":
                    build(image)
                    print(image.path)
                else:
                    sandbox = Sandbox(args.name or f"{args.suite}-{secrets.token_hex(2)}")
                    up(image, sandbox, _options(args))
                    print(sandbox.name)
        case "exec":
            extra = dict(item.partition("=")[::2] for item in args.env)
            argv = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
            execute(args.name, argv or ["bash", "-l"], args.user, extra, scope=not args.no_scope)
        case "down":
            for name in args.names:
                down(Sandbox(name))
        case _:
            for directory in sorted(STATE.glob("*/")):
                record = read_record(Sandbox(directory.name))
                print(
                    directory.name,
                    *((record.kind, record.suite, record.leader) if record else ("-", "-", "not up")),
                )


def run() -> int:
    """Run tools/sandbox, and return its exit status."""
    try:
        _main()
    except SandboxError as error:
        print(f"tools/sandbox: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
