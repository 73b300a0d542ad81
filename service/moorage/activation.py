"""What the service manager hands over and wants to hear: sd_listen_fds(3), sd_notify(3).

Only user of systemd-python.
"""

from __future__ import annotations

import array
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Generator, Sequence

import trio
from systemd import daemon

SOCKET_NAME = "varlink"
"""``FileDescriptorName=`` of the sockets that are ours, as sd_varlink_server_listen_auto(3) has it."""


HTTP_NAME = "http"
"""The same of the exporter's socket."""

STORED = "references"
"""The name of a stored connection, FDNAME=."""

NOTIFY_SECONDS = 1.0
"""How long the service manager may leave its queue full before a message is dropped. Everybody waits meanwhile."""

NOTIFY_ATTEMPTS = 3
"""How often a message is sent that the kernel refuses for want of memory: without READY=1 a start has failed."""

_PASSING = frozenset({errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS})

_log = logging.getLogger(__name__)


class NoSockets(Exception):
    """No usable socket was passed."""


def listeners() -> list[socket.socket]:
    """Take over the listening sockets that were passed under the name ``varlink``.

    Raises:
        NoSockets: there is none, or what was passed under that name is no listening Unix stream socket.
    """
    found: list[socket.socket] = []
    for descriptor, name in daemon.listen_fds_with_names().items():
        if name == STORED:
            continue  # see stored()
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


def stored() -> list[int]:
    """Take over the connections that an instance before has stored; to be called before `listeners`."""
    passed = daemon.listen_fds_with_names(unset_environment=False)
    return [descriptor for descriptor, name in passed.items() if name == STORED]


def http_listener() -> socket.socket:
    """Take over the listening socket that was passed under the name ``http``.

    Raises:
        NoSockets: there is none, or it is no listening stream socket.
    """
    for descriptor, name in daemon.listen_fds_with_names().items():
        if name == HTTP_NAME and daemon.is_socket(descriptor, socket.AF_UNSPEC, socket.SOCK_STREAM, 1):
            return socket.socket(fileno=descriptor)
    raise NoSockets(
        f"no socket named “{HTTP_NAME}” was passed; start moorage-exporter.socket, or use --listen"
    )


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


@contextlib.contextmanager
def offered(path: str | None, what: str) -> Generator[socket.socket | None]:
    """Listen on a path for everybody, for those who only look on, while the service runs.

    Such a socket starts no service, unlike one of a socket unit: who looks every few seconds would start it every few
    seconds on a host without machines.

    Args:
        path: of the socket; None for none.
        what: is to be had there, for the log.

    Yields:
        The socket; None if there is none, or it cannot be had, which is logged.
    """
    listener = identity = None
    if path is not None:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            listener = listen(path)
            os.chmod(path, 0o666)  # noqa: S103  # each call is authorised
            identity = identity_of(path)
        except (OSError, NoSockets) as error:
            _log.warning("Failed to offer %s at %s, going on without: %s", what, path, error)
    try:
        yield listener
    finally:
        if listener is not None and path is not None:
            listener.close()
            # Whoever has put another one there keeps it.
            if identity is not None and identity_of(path) == identity:
                with contextlib.suppress(OSError):
                    os.unlink(path)


def identity_of(path: str) -> tuple[int, int, int] | None:
    """Return what tells the file at a path from another one that comes to be there, None if there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


class Notifier:
    """The way to the service manager, kept open: to be heard of, nothing must be opened that may not be there.

    Nothing happens where there is no manager. It never fails either: what the manager does not get (its queue is full)
    must not end the service; the next ``WATCHDOG=1`` may arrive.
    """

    def __init__(self) -> None:
        path = os.environ.get("NOTIFY_SOCKET", "")
        # The other kinds of address (vsock) are for the managers of virtual machines.
        self._address = path if path.startswith("/") else f"\0{path[1:]}" if path.startswith("@") else None
        self._socket: socket.socket | None = None
        if self._address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(NOTIFY_SECONDS)

    def notify(self, *assignments: str, descriptors: Sequence[int] = ()) -> bool:
        """Tell the service manager something, such as ``READY=1``; return whether it will hear that."""
        if self._socket is None or self._address is None:
            return False
        rights = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        for attempt in range(1, NOTIFY_ATTEMPTS + 1):
            try:
                # Not connected: after a restart of the manager another socket may be at that address.
                self._socket.sendmsg(["\n".join(assignments).encode()], rights, 0, self._address)
            except OSError as error:
                if error.errno in _PASSING and attempt < NOTIFY_ATTEMPTS:
                    continue
                _log.warning("Failed to notify the service manager, ignoring: %s", error)
                return False
            break
        return True

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()


class DescriptorStore:
    """The sockets that the service manager keeps for this service: ``FileDescriptorStoreMax=``.

    Only the main process can store any (``NotifyAccess=``), and only its successor gets them. The manager drops each
    that is shut down, as it polls them (``FDPOLL=``), and all when the service is stopped and not started again.
    """

    def __init__(self, notifier: Notifier, found: Sequence[int]) -> None:
        """Take over the file descriptors that were passed at the start."""
        self.found = list(found)
        self._notifier = notifier

    def put(self, descriptor: int) -> bool:
        """Store a duplicate of a socket; return whether the manager will hear of it."""
        return self._notifier.notify("FDSTORE=1", f"FDNAME={STORED}", descriptors=[descriptor])


def descriptor_store(notifier: Notifier, found: Sequence[int]) -> DescriptorStore | None:
    """Return the store of this service; None where the manager has none for it (``$FDSTORE``, systemd.exec(5))."""
    most = os.environ.get("FDSTORE", "")
    return DescriptorStore(notifier, found) if found or most not in {"", "0"} else None


def watchdog_usec() -> int | None:
    """Return how often the manager wants to hear ``WATCHDOG=1``, µs; None for never (sd_watchdog_enabled(3))."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec)


async def feed_watchdog(notifier: Notifier) -> None:
    """Have the manager hear ``WATCHDOG=1`` as often as it wants to."""
    usec = watchdog_usec()
    if usec is None:
        return
    while True:
        notifier.notify("WATCHDOG=1")
        await trio.sleep(usec / 2e6)
