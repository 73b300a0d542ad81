"""A call on the bus, as a call of io.systemd.Machine: who makes it, and what came with it."""

from __future__ import annotations

from collections.abc import Iterable

import trio

from moorage.dbus.served import Dispose, Incoming
from moorage.kernel.peer import Peer
from moorage.wire.call import Call
from moorage.wire.message import CallMessage


class Sender:
    """A peer on the bus, as handlers of calls know it."""

    about = None

    def __init__(self, peer: Peer, dispose: Dispose) -> None:
        self.peer = peer
        self._dispose = dispose

    async def wait_gone(self) -> None:
        """Never return: no call of this door holds anything for as long as its caller is there."""
        await trio.sleep_forever()

    def dispose(self, fds: Iterable[int]) -> None:
        """Close file descriptors, without waiting for whoever has sent them."""
        self._dispose(self.peer.uid, fds)


class Request:
    """A call on the bus whose caller is known.

    Attributes:
        peer: who makes it.
        interactive: the user may be asked to authenticate.
    """

    def __init__(self, incoming: Incoming, peer: Peer, dispose: Dispose) -> None:
        self.peer = peer
        self._dispose = dispose
        self.interactive = incoming.interactive
        self._incoming = incoming

    def call(self, method: str) -> Call:
        """Return the call of io.systemd.Machine that is authorised, and made, in place of this one.

        It has the file descriptors that came with this one, and closes those that nobody has taken.
        """
        fds = tuple(self._incoming.fds)
        self._incoming.fds.clear()
        message = CallMessage(f"io.systemd.Machine.{method}", oneway=not self._incoming.wants_reply)
        return Call(message, Sender(self.peer, self._dispose), fds)
