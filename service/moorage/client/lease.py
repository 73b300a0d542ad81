"""The lease of a machine, kept for as long as its launcher lives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from moorage import errors
from moorage.client.dialogue import Dialogue, connect
from moorage.client.methods import INTERFACE, Register
from moorage.steps.waits import Steps, pause
from moorage.wire.errors import ProtocolError, VarlinkError
from moorage.wire.patience import CALL_SECONDS

LEASE_RETRY_SECONDS: Final = 1.0
"""Interval between attempts to take a lease again: a fifth of the time that a restarted service waits for it."""


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
            follow.
    """

    def __init__(
        self,
        address: str,
        dialogue: Dialogue,
        parameters: Register | Mapping[str, Any],
        fds: Sequence[int],
        complain: Callable[[Exception], None] | None = None,
    ) -> None:
        self._address = address
        self._dialogue = dialogue
        self._parameters = parameters
        self._fds = fds
        self._complain = complain

    def keep(self) -> Steps[None]:
        """Hold the lease, across restarts of the service; return when the leader has ended, and with it the lease."""
        while True:
            yield from self._dialogue.ended()
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
                except errors.ProcessGone:
                    self.close()
                    return
                except (OSError, VarlinkError, ProtocolError) as error:
                    self.close()
                    if self._complain is not None and not complained:
                        self._complain(error)
                    complained = True
                    yield from pause(LEASE_RETRY_SECONDS)

    def close(self) -> None:
        """Give the lease up; the service stops the machine if it has not ended. May be called again."""
        self._dialogue.close()
