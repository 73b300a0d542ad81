"""moored: how the daemon starts."""
# ruff: noqa: E402 - the imports come after what makes them faster

from __future__ import annotations

import gc

# Nothing of what is imported is ever garbage, and looking for some takes a tenth of the start. See app.run().
gc.disable()

import logging
import os
import resource
import sys
from collections.abc import Sequence
from functools import partial
from typing import Literal, cast

import msgspec
import trio

from moorage import activation
from moorage.addresses import CONTROL, SYSTEM_METRICS, USER_METRICS
from moorage.app import NoRecords, run
from moorage.configuration.current import Configuration
from moorage.configuration.files import locations
from moorage.configuration.loading import Given, load
from moorage.configuration.settings import Settings
from moorage.kernel.cgroup import NotUnified, check_unified
from moorage.kernel.inotify import InotifyLimit
from moorage.pid1.errors import ManagerUnavailable
from moorage.running import Options

_EXPECTED = (NotUnified, ManagerUnavailable, NoRecords, InotifyLimit, activation.NoSockets)
"""What can be wrong with where we were started: a sentence for the log, not a traceback."""

# Python has fewer levels than syslog(3); the more verbose one is used.
_LEVELS = (
    *(logging.CRITICAL, logging.CRITICAL, logging.CRITICAL, logging.ERROR),
    *(logging.WARNING, logging.INFO, logging.INFO, logging.DEBUG),
)

_PREFIXES = {logging.DEBUG: "<7>", logging.INFO: "<6>", logging.WARNING: "<4>", logging.ERROR: "<3>"}


class _Formatter(logging.Formatter):
    """Prefixes each line with its level where the journal reads it (sd-daemon(3))."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not self._journal:
            return text
        prefix = _PREFIXES.get(record.levelno, "<2>")
        return "\n".join(prefix + line for line in text.splitlines())


class Arguments(msgspec.Struct, frozen=True):
    """What the command line says; its options are in :mod:`moorage.command_line`."""

    user: bool = False
    link: Literal["auto", "private", "bus"] = "auto"
    listen: str | None = None
    state_directory: str | None = None
    idle_timeout: float | None = None
    log_level: int | None = None


def _arguments(argv: Sequence[str]) -> Arguments:
    if not argv:
        return Arguments()
    # The system's service manager gives it none, and argparse takes as long as ten modules of ours.
    from moorage.command_line import parser

    return Arguments(**vars(parser().parse_args(argv)))


def _given(arguments: Arguments) -> dict[str, Given]:
    """Return what the command line says of the configuration."""
    given: dict[str, Given] = {}
    if arguments.idle_timeout is not None:
        usec = round(arguments.idle_timeout * 1e6) or None
        given["idle_timeout_usec"] = Given(usec, "--idle-timeout")
    if arguments.log_level is not None:
        given["log_level"] = Given(arguments.log_level, "--log-level")
    return given


def _set_level(settings: Settings) -> None:
    logging.getLogger().setLevel(_LEVELS[settings.log_level])


def _runtime_directory(*, user: bool) -> str:
    if not user:
        return "/run"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not runtime.startswith("/"):
        raise ManagerUnavailable("$XDG_RUNTIME_DIR is not set")
    return runtime.rstrip("/")


def _metrics_address(runtime: str, *, user: bool) -> str:
    return os.path.join(runtime, USER_METRICS) if user else SYSTEM_METRICS


def _fail(error: BaseException) -> int:
    logging.getLogger("moored").error("Failed to start: %s", error)
    return 1


def main() -> int:
    """Run the daemon; return its exit status."""
    arguments = _arguments(sys.argv[1:])
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(journal="JOURNAL_STREAM" in os.environ))
    logging.basicConfig(handlers=[handler])
    logging.raiseExceptions = False  # a line that cannot be written is lost; nobody could be told of it
    files, given = locations(user=arguments.user), _given(arguments)
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    configuration = Configuration(partial(load, files, given, descriptors))
    configuration.follow(_set_level)
    configuration.report()
    try:
        check_unified()
        runtime = _runtime_directory(user=arguments.user)
        records = arguments.state_directory or f"{runtime}/moorage/machines"
        options = Options(
            user=os.getuid() if arguments.user else None,
            link=arguments.link,
            state_directory=records,
            events_directory=f"{records}.events"
            if arguments.state_directory
            else f"{runtime}/moorage/events",
            runtime_directory=runtime,
            control_directory=f"{records}.control" if arguments.state_directory else f"{runtime}/{CONTROL}",
            stored=activation.stored(),
            metrics_address=None if arguments.listen else _metrics_address(runtime, user=arguments.user),
        )
        listeners = [activation.listen(arguments.listen)] if arguments.listen else activation.listeners()
        trio.run(run, options, configuration, listeners)
    except _EXPECTED as error:
        return _fail(error)
    except BaseExceptionGroup as group:
        expected, others = group.split(_EXPECTED)
        if expected is None or others is not None:
            raise
        return _fail(_only(expected))
    return 0


def _only(group: BaseException) -> BaseException:
    """Return the first exception in a group of groups."""
    while isinstance(group, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", group).exceptions[0]
    return group


if __name__ == "__main__":
    sys.exit(main())
