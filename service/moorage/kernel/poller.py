"""Many file descriptors watched by one task.

An epoll instance of our own, itself waited for by trio (epoll(7): an epoll file descriptor can be polled). What is
ready is handed to plain functions, so that something as cheap as answering a small call, or noting that a process has
ended, costs no task and no turn of trio's scheduler.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable

import trio

EVENTS_PER_POLL = 64
"""File descriptors that one epoll_wait(2) may report: the unit of fairness between them."""

IDLE_TURNS = 4
"""How many turns of the scheduler we stay awake for what is expected (about 10 µs each where nothing else runs). A
caller that makes one small call after the other has sent its next one by then. Going to sleep first means that the
processor does too, and waking it costs more than the call: measured with one caller on another processor, 58 µs for
each call without, 20 µs with. Who waits for a task sends nothing until then."""

RETRY_SECONDS = 0.1
"""Pause after a callback that raised. It is called again as long as its file descriptor is ready: what was missing (a
file descriptor, memory) may be there by then, and until then it neither fills the log nor uses up the processor."""

Callback = Callable[[int], None]
"""Called with the events of epoll_ctl(2) that occurred. Must not wait, and should not raise."""

logger = logging.getLogger(__name__)


class Readiness:
    """File descriptors and what to call when they are ready; level-triggered.

    Args:
        batch: file descriptors to call back for before others get their turn.
    """

    def __init__(self, batch: int = EVENTS_PER_POLL) -> None:
        self._batch = batch
        self._failed = False  # a callback of the last batch raised
        self._expects = False  # one of the last batch said that more is about to come
        self._epoll = select.epoll()
        # By number: the kernel gives the lowest that is free, so there are no large gaps, and a dictionary takes eight
        # times as much for each.
        self._callbacks: list[Callback | None] = []
        self._stale: set[int] = set()  # removed since the last poll: events of theirs may still be in hand

    def add(self, fd: int, events: int, callback: Callback) -> None:
        """Watch a file descriptor.

        Args:
            fd: it must be removed before it is closed.
            events: ``select.EPOLL…``; EPOLLHUP and EPOLLERR are always among them.
            callback: called with those that occurred.

        Raises:
            OSError: the kernel refuses (EPERM: it cannot be polled; ENOSPC, ENOMEM).
        """
        self._epoll.register(fd, events)
        callbacks = self._callbacks
        if (missing := fd + 1 - len(callbacks)) > 0:
            callbacks.extend([None] * missing)
        callbacks[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        """Change the events that a file descriptor is watched for."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Stop watching a file descriptor: its callback is not called any more, not even for what has been seen."""
        assert self._callbacks[fd] is not None
        self._callbacks[fd] = None
        self._stale.add(fd)
        self._epoll.unregister(fd)

    def expect(self) -> None:
        """Stay awake for a moment: who was just called back for is about to be ready again."""
        self._expects = True

    def close(self) -> None:
        """Stop watching everything. The file descriptors themselves stay open."""
        self._callbacks.clear()
        self._epoll.close()

    async def run(self, pause: Callable[[float], float] | None = None) -> None:
        """Call back for ever, with a checkpoint after every batch.

        Args:
            pause: given how long a batch took, in seconds, returns for how long nothing more is to be called back.
        """
        fd = self._epoll.fileno()
        while True:
            await trio.lowlevel.wait_readable(fd)
            idle = 0
            while idle < IDLE_TURNS:
                begun = time.perf_counter()
                busy = self.poll() > 0
                idle = 0 if busy else idle + 1
                if self._failed:
                    await trio.sleep(RETRY_SECONDS)
                elif busy and pause is not None and (seconds := pause(time.perf_counter() - begun)):
                    await trio.sleep(seconds)
                else:
                    await trio.lowlevel.checkpoint()
                if not self._expects:
                    break

    def poll(self) -> int:
        """Call back for what is ready now, at most one batch; return how many that was."""
        ready = self._epoll.poll(0, self._batch)
        self._failed = False
        self._expects &= not ready
        stale = self._stale
        stale.clear()
        callbacks = self._callbacks
        for fd, events in ready:
            # A number closed by an earlier callback of this batch may have been given to a new file already: what
            # was seen of the old one is not for the new one.
            if stale and fd in stale:
                continue
            callback = callbacks[fd]
            assert callback is not None
            try:
                callback(events)
            except Exception:
                # Whose it is cannot be told from here; the others go on, and the service with them.
                logger.exception("Failed to handle what a file descriptor is ready for, trying again:")
                self._failed = True
        return len(ready)
