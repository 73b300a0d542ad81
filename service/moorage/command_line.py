"""moored's command line, which the man page is made from as well."""

from __future__ import annotations

import argparse
import math

from moorage import __version__
from moorage.configuration.settings import LEVELS


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="moored", description="Registers machines and gives them scopes, over varlink."
    )
    parser.add_argument("--version", action="version", version=f"moored {__version__}")
    parser.add_argument("--user", action="store_true", help="ask the service manager of the calling user")
    parser.add_argument(
        "--link",
        choices=("auto", "private", "bus"),
        default="auto",
        help="how to talk to the service manager (default: its private socket, else the bus)",
    )
    parser.add_argument(
        "--listen", metavar="PATH", help="listen there instead of on sockets that were passed"
    )
    parser.add_argument(
        "--state-directory", metavar="PATH", help="where records are kept (default: below /run)"
    )
    parser.add_argument(
        "--idle-timeout",
        metavar="SECONDS",
        type=_seconds,
        help="exit after so long with nothing to do; 0 for never (default: idleTimeout of moored.conf(5))",
    )
    parser.add_argument(
        "--log-level",
        metavar="LEVEL",
        type=_level,
        help="of syslog(3), its name or number (default: logLevel of moored.conf(5))",
    )
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise ValueError(text)
    return seconds


def _level(text: str) -> int:
    for number, name in enumerate(LEVELS):
        if text in {name, str(number)}:
            return number
    raise ValueError(text)
