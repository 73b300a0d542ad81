"""A moorctl, and the fake of the service that it calls."""

import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from cli_battery import RUN_SECONDS, Moorctl, PreloadedMoorctl

FAKE = Path(__file__).parents[1] / "unit" / "cli" / "fake_moored.py"


def listen(directory: Path) -> tuple[socket.socket, Moorctl]:
    """Return a listening socket, and a moorctl that calls whoever accepts on it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(RUN_SECONDS)
    listener.bind(str(directory / "socket"))
    listener.listen()
    return listener, PreloadedMoorctl(["--address", str(directory / "socket")])


@contextmanager
def a_fake(directory: Path) -> Generator[Moorctl]:
    """Run the fake, and return a moorctl that calls it."""
    listener, moorctl = listen(directory)
    with listener:
        # As with socket activation: connections wait in the backlog until the service is there.
        service = subprocess.Popen([sys.executable, FAKE], stdin=listener.fileno())
    try:
        yield moorctl
    finally:
        service.terminate()
        service.wait(RUN_SECONDS)
