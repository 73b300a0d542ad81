"""The lease of a machine, held for as long as its launcher lives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import trio

from moorage.launch.payload import Payload
from moorage.wire.client import Client
from moorage.wire.errors import VarlinkError

LEASE_RETRY_SECONDS: Final = 1.0
"""Interval between attempts to take a lease again: a fifth of the time that a restarted service waits for it."""


async def keep_lease(
    address: str,
    client: Client,
    parameters: Mapping[str, object],
    payload: Payload,
    complain: Callable[[Exception], None] = lambda _: None,
) -> None:
    """Hold the lease of a machine, across restarts of the service. Runs until cancelled.

    A lease lasts as long as the connection that registered the machine, and a restart or an upgrade of the service
    ends all connections. The new instance gives a launcher some seconds to connect and send the same call again.

    Args:
        address: of the service's socket.
        client: the connection that registered the machine; it is closed at the end.
        parameters: those of Register, with ``lease``, and ``leaderFileDescriptor`` or ``leader``.
        payload: the machine's leader.
        complain: called with the error if the lease could not be taken again, once after each loss; further attempts
            follow.
    """
    fds = [payload.pidfd] if "leaderFileDescriptor" in parameters else []
    try:
        while True:
            await client.wait_closed()
            complained = False
            while client.closed:
                try:
                    client = await Client.connect(address)
                    await client.call("io.moorage.Machine.Register", parameters, fds=fds)
                except (OSError, VarlinkError) as error:
                    client.close()
                    if not complained:
                        complain(error)
                    complained = True
                    await trio.sleep(LEASE_RETRY_SECONDS)
    finally:
        client.close()
