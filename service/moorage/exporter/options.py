"""The command line of the exporter."""

from __future__ import annotations

import argparse
import math
from typing import Final

from moorage import __version__

DEADLINE_SECONDS: Final = 5.0
"""How long moored may take: half of what Prometheus gives a scrape by default (scrape_timeout), so that it learns that
moored hangs, and not that the exporter does. A thousand machines take a fifth of a second."""

IDLE_SECONDS: Final = 600.0
"""After how long without a scrape it exits: longer than scrapes are apart, shorter than anybody leaves a Prometheus
switched off to save memory."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, from which the man page is made as well."""
    parser = argparse.ArgumentParser(
        prog="moorage-exporter", description="Serves what moored measures, for Prometheus."
    )
    parser.add_argument("--version", action="version", version=f"moorage-exporter {__version__}")
    parser.add_argument("--user", action="store_true", help="ask the moored of the calling user")
    parser.add_argument(
        "--listen",
        metavar="[ADDRESS:]PORT",
        type=_address,
        help="listen there, by default on 127.0.0.1, instead of on a socket that was passed",
    )
    parser.add_argument("--address", metavar="PATH", help="socket of moored's metrics, instead of the usual")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=DEADLINE_SECONDS,
        help="how long moored may take to answer (default: %(default)s)",
    )
    parser.add_argument(
        "--idle-timeout",
        metavar="SECONDS",
        type=_seconds,
        default=IDLE_SECONDS,
        help="exit after so long without a scrape; 0 for never (default: %(default)s)",
    )
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise ValueError(text)
    return seconds


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and int(port) < 2**16):
        raise ValueError(text)
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)
