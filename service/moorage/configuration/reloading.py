"""Reading the configuration again while the service runs: ``systemctl reload moored``, or SIGHUP.

The service manager is told when it begins and when it is done (``Type=notify-reload`` of systemd.service(5)).
"""

from __future__ import annotations

import logging
import signal
import time

import trio

from moorage.activation import Notifier
from moorage.configuration.current import Configuration
from moorage.kernel.threads import in_thread

READ_SECONDS: float = 10.0
"""How long the files may take. They may be on a file system that does not answer, and calls go on meanwhile."""

_log = logging.getLogger(__name__)


async def reload_at_hangup(
    configuration: Configuration,
    notifier: Notifier,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Read the configuration again at each SIGHUP, for as long as this runs."""
    # One thread at most waits for files that never come.
    readers = trio.CapacityLimiter(1)
    with trio.open_signal_receiver(signal.SIGHUP) as received:
        task_status.started()
        async for _ in received:
            usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            notifier.notify("RELOADING=1", f"MONOTONIC_USEC={usec}")
            await reload(configuration, readers)
            notifier.notify("READY=1")


async def reload(configuration: Configuration, readers: trio.CapacityLimiter) -> None:
    """Read the configuration, and put it in force as far as that needs no restart.

    Args:
        configuration: the service's.
        readers: bounds the threads that read.
    """
    with trio.move_on_after(READ_SECONDS):
        try:
            loaded = await in_thread(configuration.read, abandon_on_cancel=True, limiter=readers)
        except OSError as error:
            _log.error("Failed to read the configuration, what is in force stays so: %s", error)
            return
        waiting = configuration.take(loaded)
        configuration.report()
        if waiting:
            _log.info("Read the configuration again; a restart is needed for %s.", ", ".join(waiting))
        else:
            _log.info("Read the configuration again.")
        return
    _log.error("Failed to read the configuration within %.0f s; what is in force stays so.", READ_SECONDS)
