"""The vocabulary of code that waits without a library to wait with.

A function that has to wait is a generator: it yields a :class:`Wait`, is resumed with whether the file descriptor was
ready in time, and returns its result. ``take()`` of :mod:`moorage.steps.trio`, :mod:`moorage.steps.asyncio` and
:mod:`moorage.steps.blocking` performs the waits. What ends a wait early (a cancellation, Ctrl-C) is raised at the
``yield``, so that ``finally`` works as ever.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wait:
    """Something to wait for.

    Attributes:
        fd: file descriptor; None to let time pass only. Two waits at a time for one file descriptor are refused by
            trio and lost by asyncio: whoever may be called twice duplicates it.
        until: time of :func:`time.monotonic` at which the wait ends, s.
        writable: wait until it can be written, not read.
        shielded: a cancellation does not end the wait. For cleaning up, with a deadline.
    """

    fd: int | None
    until: float = math.inf
    writable: bool = False
    shielded: bool = False

    @property
    def seconds(self) -> float:
        """Time left, s; not negative."""
        return max(0.0, self.until - monotonic())


Steps = Generator[Wait, bool, T]
"""A function in progress. What it is sent: whether the file descriptor was ready before the time was over."""


def pause(seconds: float, *, shielded: bool = False) -> Steps[None]:
    """Let time pass.

    Args:
        seconds: how much.
        shielded: a cancellation does not end the pause.
    """
    yield Wait(None, monotonic() + seconds, shielded=shielded)


def shielded(steps: Steps[T]) -> Steps[T]:
    """Return the same steps, with every wait shielded from cancellation."""
    try:
        wait = next(steps)
        while True:
            try:
                ready = yield Wait(wait.fd, wait.until, wait.writable, shielded=True)
            except BaseException as error:  # noqa: BLE001  # passed on
                wait = steps.throw(error)
            else:
                wait = steps.send(ready)
    except StopIteration as end:
        return end.value
