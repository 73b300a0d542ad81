"""What the service manager hands over and wants to hear: sd_listen_fds(3), sd_notify(3).

Only user of systemd-python.
"""

from __future__ import annotations

import os
import socket

from systemd import daemon

SOCKET_NAME = "varlink"
"""``FileDescriptorName=`` of the sockets that are ours, as sd_varlink_server_listen_auto(3) has it."""


class NoSockets(Exception):
    """No usable socket was passed."""


def listeners() -> list[socket.socket]:
    """Take over the listening sockets that were passed under the name ``varlink``.

    Raises:
        NoSockets: there is none, or what was passed under that name is no listening Unix stream socket.
    """
    found: list[socket.socket] = []
    for descriptor, name in daemon.listen_fds_with_names().items():
        if name != SOCKET_NAME:
            os.close(descriptor)
            continue
        if not daemon.is_socket_unix(descriptor, socket.SOCK_STREAM, 1):
            raise NoSockets(
                f"file descriptor {descriptor}, passed as “{name}”, is no listening Unix stream socket"
            )
        found.append(socket.socket(fileno=descriptor))
    if not found:
        raise NoSockets(
            f"no socket named “{SOCKET_NAME}” was passed; start moored.socket, or use --listen to run by hand"
        )
    return found


def listen(path: str) -> socket.socket:
    """Listen on a path of our own, replacing a socket that was left there.

    Raises:
        NoSockets: the path cannot be bound.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            os.unlink(path)
        listener.bind(path)
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        listener.close()
        raise NoSockets(f"cannot listen on {path}: {error.strerror}") from None
    return listener


def notify(*assignments: str) -> None:
    """Tell the service manager something, such as ``READY=1``; nothing happens if there is none."""
    daemon.notify("\n".join(assignments))


def watchdog_usec() -> int | None:
    """Return how often the manager wants to hear ``WATCHDOG=1``, µs; None for never (sd_watchdog_enabled(3))."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec)
