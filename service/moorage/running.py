"""The process of the service: how it is to run, and what it does until it ends."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec
import trio

from moorage.configuration.current import Configuration
from moorage.wire.server import Server

if TYPE_CHECKING:
    from moorage.api.machine1.door import Door

IDLE_CHECK_SECONDS = 1.0
"""How often it is asked whether there is anything left to do, s."""

_log = logging.getLogger(__name__)


class Options(msgspec.Struct, frozen=True):
    """How to run.

    Attributes:
        user: uid whose service manager is asked; None for the system's.
        link: which way to the service manager.
        state_directory: where the records are kept.
        events_directory: where the latest events are kept.
        runtime_directory: where the service manager makes the runtime directories of its services.
        control_directory: where the control sockets of machines are.
        stored: file descriptors that the service manager has kept from the instance before.
        metrics_address: path of the socket for metrics; None for none.
    """

    user: int | None
    link: Literal["auto", "private", "bus"]
    state_directory: str
    events_directory: str
    runtime_directory: str
    control_directory: str
    stored: Sequence[int]
    metrics_address: str | None = None


async def wait_for_signal(end: trio.CancelScope) -> None:
    """End a scope at SIGTERM or SIGINT."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async for number in received:
            _log.debug("Received %s, stopping.", signal.Signals(number).name)
            end.cancel()
            return


async def wait_until_idle(
    configuration: Configuration,
    server: Server,
    door: Door | None,
    idle: Callable[[], bool],
    end: trio.CancelScope,
) -> None:
    """End a scope when there is nothing left to do, and has not been for a while.

    Args:
        configuration: says for how long.
        server: knows who is connected.
        door: knows who calls on the message bus; None where nobody can.
        idle: whether there is nothing else to do.
        end: of all.
    """
    while True:
        await server.unconnected()  # who only waits to be told something costs nothing
        usec = configuration.settings.idle_timeout_usec
        timeout = math.inf if usec is None else usec / 1e6
        await trio.sleep(min(timeout, IDLE_CHECK_SECONDS))
        busy, latest = (False, -1.0) if door is None else (door.busy, door.last_activity)
        quiet = trio.current_time() - max(server.last_activity, latest)
        if not server.connections and not busy and idle() and quiet >= timeout:
            _log.debug("Nothing to do, exiting.")
            end.cancel()
            return
