"""Where the service listens, for its clients and the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

SYSTEM_SOCKET: Final = "/run/moorage/io.moorage.Machine"
USER_SOCKET: Final = "moorage/io.moorage.Machine"
"""Below $XDG_RUNTIME_DIR."""

SYSTEM_METRICS: Final = "/run/systemd/report/io.moorage.Machine"
USER_METRICS: Final = "systemd/report/io.moorage.Machine"
"""Where io.systemd.Metrics is served while the service runs, and where systemd-report(1) looks; below
$XDG_RUNTIME_DIR."""

MACHINED: Final = "/run/systemd/machine/io.systemd.Machine"
"""Where the system's machined listens, or this service in its place."""

MACHINED_FILES: Final = "/run/systemd/machines"
"""Where machined keeps a file for each of its machines."""

CONTROL: Final = "moorage/control"
"""Directory of the control sockets of machines, below /run or $XDG_RUNTIME_DIR."""

VARIABLE: Final = "MOORAGE_ADDRESS"
"""Environment variable with a path to use instead of :data:`SYSTEM_SOCKET`."""


def default_address() -> str:
    """Return $MOORAGE_ADDRESS, or the path of the socket of the system's service."""
    return os.environ.get(VARIABLE) or SYSTEM_SOCKET


def user_address(environment: Mapping[str, str] = os.environ) -> str:
    """Return the path of the socket of the user's own service.

    Raises:
        KeyError: $XDG_RUNTIME_DIR is not set, so this is no login session of that user.
    """
    directory = environment.get("XDG_RUNTIME_DIR")
    if not directory:
        raise KeyError("XDG_RUNTIME_DIR")
    return os.path.join(directory, USER_SOCKET)
