"""moorage-exporter: the program."""

from __future__ import annotations

import logging
import os
import socket
import sys

from moorage import activation
from moorage.addresses import SYSTEM_METRICS, SYSTEM_SOCKET, USER_METRICS, user_address
from moorage.exporter.collector import Machines
from moorage.exporter.options import parser
from moorage.exporter.serving import Exporter


def _listener(address: tuple[str, int] | None) -> socket.socket:
    """Return the socket to serve on.

    Raises:
        NoSockets: none was passed, or the address cannot be bound.
    """
    if address is None:
        return activation.http_listener()
    try:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        return socket.create_server(address, family=family)
    except OSError as error:
        raise activation.NoSockets(f"cannot listen on port {address[1]}: {error.strerror}") from None


def _paths(address: str | None, *, user: bool) -> tuple[str, str]:
    """Return the paths of moored's sockets: for metrics, and for calls.

    Raises:
        KeyError: $XDG_RUNTIME_DIR is not set.
    """
    if not user:
        return address or SYSTEM_METRICS, SYSTEM_SOCKET
    service = user_address()
    return address or os.path.join(os.environ["XDG_RUNTIME_DIR"], USER_METRICS), service


def main() -> int:
    """Run the exporter; return its exit status."""
    arguments = parser().parse_args(sys.argv[1:])
    logging.basicConfig(format="%(message)s")
    try:
        metrics, service = _paths(arguments.address, user=arguments.user)
        listener = _listener(arguments.listen)
    except (KeyError, activation.NoSockets) as error:
        logging.getLogger(__name__).error("Failed to start: %s", error)  # noqa: TRY400 - a sentence, no traceback
        return 1
    Exporter(listener, Machines(metrics, service, arguments.timeout), arguments.idle_timeout or None).serve()
    return 0
