"""Closing what belongs to others where nobody waits for it.

Who closes the last reference to a file may have to wait for whoever made the file: a TCP socket lingers (SO_LINGER,
socket(7)) for as long as its owner has said, a file of a FUSE server is flushed by close(2) when that server pleases,
a file of many GiB that has been deleted is freed page by page. A peer can send any of these with SCM_RIGHTS. What it
sent is closed with the file descriptor here, or, if it was never received, with the socket in whose queue it lies.

So every such close(2) happens in a thread: one at a time for each user, so that nobody waits for another user's. What
comes of it (EIO of a file that could not be flushed) is nobody's business here. A thread that waits is interrupted
again and again: that ends the wait of a socket. What no signal ends (a server of FUSE that has promised to write what
it was given) holds up the connections of its user only, and the process when it exits: see "What remains" below.

**What remains.** File descriptors of users are never received (:mod:`moorage.wire.sockets`), and so never flushed.
What lies in a socket that is closed is only released, which FUSE does not wait for, except for dirty pages of a server
that has FUSE_WRITEBACK_CACHE: who closes such a file last cannot be killed until that server answers. From the moment
that a connection is accepted, Linux 6.16 refuses to send it any file (SO_PASSRIGHTS). What was sent before that, or on
an older kernel, can still be used to delay the *exit* of this service, for as long as the server of the file lives.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Iterable

import trio

from moorage.wire.output import close_all

THREADS_MAX = 64
"""Users whose files may be closed at the same time. One more waits until another one's are through; what waits counts
as connections of its user, which has only so many."""

PATIENCE_SECONDS = 1.0
"""How long a close(2) may wait for something before it is interrupted, and again until it is through. Any file that is
what it seems is closed in much less."""

INTERRUPT = signal.SIGUSR2
"""Sent to a thread that waits; means nothing to this service, and nothing happens if it comes from outside."""


def _ignore(number: int, frame: object) -> None:
    # A signal that is ignored (SIG_IGN) interrupts nothing.
    del number, frame


class Disposal:
    """Threads that close files.

    Args:
        tasks: where they are waited for. When it is cancelled they are left to the end of the process, which waits
            for no socket to linger (PF_EXITING in inet_release() of the kernel).
    """

    def __init__(self, tasks: trio.Nursery) -> None:
        self._tasks = tasks
        self._threads = trio.CapacityLimiter(THREADS_MAX)
        self._turns: dict[int, deque[int]] = {}  # of each user, what waits for the one that is being closed
        self._ended = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(INTERRUPT, _ignore)

    def pending(self, uid: int) -> tuple[int, int]:
        """Return how many file descriptors are not closed yet, or one more: of a user, and of everybody."""
        if not self._turns:
            return 0, 0
        own = self._turns.get(uid)
        return 0 if own is None else 1 + len(own), sum(1 + len(each) for each in self._turns.values())

    def close(self, uid: int, fds: Iterable[int]) -> None:
        """Close file descriptors that came from a user. Never waits, never fails.

        Args:
            uid: the user.
            fds: not to be used any more.
        """
        fds = deque(fds)
        if not fds:
            return
        turns = self._turns.get(uid)
        if turns is not None:
            turns += fds
            return
        self._turns[uid] = fds
        if not self._ended:
            self._tasks.start_soon(self._run, uid, fds)

    async def _run(self, uid: int, turns: deque[int]) -> None:
        while turns:
            async with trio.open_nursery() as nursery:
                thread: list[int] = []
                nursery.start_soon(_interrupt, thread)
                await trio.to_thread.run_sync(
                    _close_next, turns, thread, limiter=self._threads, abandon_on_cancel=True
                )
                nursery.cancel_scope.cancel()
        del self._turns[uid]

    def end(self) -> None:
        """Start no threads any more: the rest waits for :meth:`finish`."""
        self._ended = True

    def finish(self) -> None:
        """Close the rest, as far as that takes no time; what is left is closed by the end of the process."""
        if self._turns:
            thread = threading.Thread(target=_close_rest, args=(list(self._turns.values()),), daemon=True)
            thread.start()
            thread.join(PATIENCE_SECONDS)


def _close_next(turns: deque[int], thread: list[int]) -> None:
    # Taken in the thread: one that was never started has taken nothing.
    fd = turns.popleft()
    thread.append(threading.get_ident())
    close_all((fd,))


def _close_rest(rest: list[deque[int]]) -> None:
    for turns in rest:
        while turns:
            close_all((turns.popleft(),))


async def _interrupt(thread: list[int]) -> None:
    while True:
        await trio.sleep(PATIENCE_SECONDS)
        if thread:
            # trio keeps a thread for a while after its work: it exists.
            signal.pthread_kill(thread[0], INTERRUPT)
