"""A socket that is watched."""

from __future__ import annotations

import abc
import socket

from moorage.kernel.poller import Readiness


class Watched(abc.ABC):
    """A socket that is watched for what can be done with it next.

    Args:
        connected: the socket.
        poller: watches it.
    """

    __slots__ = ("_interest", "_poller", "_socket")

    def __init__(self, connected: socket.socket, poller: Readiness) -> None:
        self._socket = connected
        self._poller = poller
        self._interest: int | None = None  # what the poller watches the socket for; None if it does not

    @abc.abstractmethod
    def ready(self, events: int) -> None:
        """Take note of what epoll has seen of the socket."""

    def __call__(self, events: int) -> None:
        """Do the same: so the poller keeps no object more of each, of which there may be thousands."""
        self.ready(events)

    def _watch(self, interest: int | None) -> None:
        if interest == self._interest:
            return
        fd = self._socket.fileno()
        if interest is None:
            self._poller.remove(fd)
        elif self._interest is None:
            self._poller.add(fd, interest, self)
        else:
            self._poller.modify(fd, interest)
        self._interest = interest
