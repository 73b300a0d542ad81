"""The lease of a machine, kept for as long as its launcher lives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from moorage import errors
from moorage.client.dialogue import Dialogue, Replies, connect, requested
from moorage.client.methods import INTERFACE, AwaitStop, Register, StopRequested
from moorage.steps.waits import Steps, pause
from moorage.wire.errors import Disconnected, ProtocolError, TimedOut, VarlinkError
from moorage.wire.patience import CALL_SECONDS

LEASE_RETRY_SECONDS: Final = 1.0
"""Interval between attempts to take a lease again: a fifth of the time that a restarted service waits for it."""


class Notice(NamedTuple):
    """How a launcher is told before its machine is stopped.

    Attributes:
        request: names the machine, and says how much time it needs.
        requested: called once, where the lease is kept.
    """

    request: AwaitStop
    requested: Callable[[StopRequested], None]


class Lease:
    """The connection that registered a machine, and all that it takes to register it again.

    A lease lasts as long as the connection that registered the machine, and a restart or an upgrade of the service
    ends all connections. The new instance gives a launcher some seconds to connect and send the same call again.

    Args:
        address: of the service's socket.
        dialogue: the connection that registered the machine; the lease owns it.
        parameters: those of Register.
        fds: file descriptors to send along; they stay the caller's.
        complain: called with the error if the lease could not be taken again, once after each loss; further attempts
            follow. Also if the service does not tell of stops.
        notice: how to be told before the machine is stopped; None not to be.
    """

    def __init__(
        self,
        address: str,
        dialogue: Dialogue,
        parameters: Register | Mapping[str, Any],
        fds: Sequence[int],
        complain: Callable[[Exception], None] | None = None,
        notice: Notice | None = None,
    ) -> None:
        self._address = address
        self._dialogue = dialogue
        self._parameters = parameters
        self._fds = fds
        self._complain = complain
        self._notice = notice
        self._replies: Replies[StopRequested] | None = None
        self._told = False

    def keep(self) -> Steps[None]:
        """Hold the lease, across restarts of the service; return when the leader has ended, and with it the lease."""
        while True:
            yield from self._held()
            complained = False
            while self._dialogue.closed:
                try:
                    self._dialogue = yield from connect(self._address)
                    yield from self._dialogue.call(
                        f"{INTERFACE}.Register",
                        self._parameters,
                        msgspec.Raw,
                        fds=self._fds,
                        seconds=CALL_SECONDS,
                    )
                    yield from self.listen()
                except errors.ProcessGone:
                    self.close()
                    return
                except (OSError, VarlinkError, ProtocolError) as error:
                    self.close()
                    if self._complain is not None and not complained:
                        self._complain(error)
                    complained = True
                    yield from pause(LEASE_RETRY_SECONDS)

    def listen(self) -> Steps[None]:
        """Be told before the machine is stopped, from now on, if that is wanted. Does not fail."""
        self._replies = None
        if self._notice is None:
            return
        replies = requested(self._dialogue, self._notice.request, (), CALL_SECONDS, more=True)
        try:
            yield from replies.next()
        except errors.NoSuchMachine:
            pass  # it has ended
        except (Disconnected, TimedOut, ProtocolError):
            self._dialogue.close()
        except VarlinkError as error:  # an older service, for one
            if self._complain is not None:
                self._complain(error)
        else:
            self._replies = replies

    def _held(self) -> Steps[None]:
        """Wait until the connection ends, and tell if the machine is to be stopped meanwhile."""
        dialogue, replies, notice = self._dialogue, self._replies, self._notice
        try:
            while replies is not None and notice is not None:
                yield from dialogue.readable()
                found = yield from replies.next()
                if found is not None and not self._told:
                    self._told = True
                    notice.requested(found)
        except errors.NoSuchMachine:
            pass  # it has ended
        except (Disconnected, TimedOut, ProtocolError):
            dialogue.close()
        if not dialogue.closed:
            yield from dialogue.ended()

    def close(self) -> None:
        """Give the lease up; the service stops the machine if it has not ended. May be called again."""
        self._dialogue.close()
