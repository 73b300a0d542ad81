"""Steps taken by a thread that has nothing else to do."""

from __future__ import annotations

import math
import select
from typing import TypeVar

from moorage.steps.waits import Steps, Wait

T = TypeVar("T")

_POLL_MAX = 24 * 3600.0
"""Longest wait at a time, s: poll(2) takes an int of milliseconds."""


class Stopped(BaseException):
    """Another thread wants the steps to end; raised where they wait."""


def take(steps: Steps[T], stop: int | None = None) -> T:
    """Take steps, and return their result. Ctrl-C is raised where the steps wait.

    Args:
        steps: what to do.
        stop: file descriptor; when it can be read, :exc:`Stopped` is raised where the steps wait.
    """
    try:
        wait = next(steps)
        while True:
            try:
                ready = _perform(wait, stop)
            except BaseException as error:  # noqa: BLE001  # passed on
                if isinstance(error, Stopped):
                    stop = None  # once: cleaning up may wait
                wait = steps.throw(error)
            else:
                wait = steps.send(ready)
    except StopIteration as end:
        return end.value


def _perform(wait: Wait, stop: int | None) -> bool:
    poller = select.poll()
    if wait.fd is not None:
        poller.register(wait.fd, select.POLLOUT if wait.writable else select.POLLIN)
    if stop is not None:
        poller.register(stop, select.POLLIN)
    while True:
        seconds = wait.seconds
        # Rounded up: a wait that ended early would be taken for one that ended in time.
        ready = poller.poll(math.ceil(min(seconds, _POLL_MAX) * 1000))
        fds = {fd for fd, _ in ready}
        if stop in fds:
            raise Stopped
        if ready:
            return True
        if seconds <= _POLL_MAX:
            return False
