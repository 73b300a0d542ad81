"""Closing files that peers have sent, without blocking the service.

The close(2) of the last reference to a file may take as long as the maker of the file likes: a TCP socket lingers
(SO_LINGER, socket(7)) for as long as its owner has set, a file of a FUSE server is flushed when that server pleases, a
deleted file of many GiB is freed page by page. A peer can send any of these with SCM_RIGHTS. The file is closed with
the file descriptor here, or, if it was never received, with the socket in whose queue it lies.

So every such close(2) happens in a thread, one at a time for each user, so that no user waits for another. What comes
within a moment is closed by one thread: each begins and ends with the interpreter's lock changing hands, and on a busy
machine whoever gets it may be preempted with it, while the loop waits. Errors (EIO
of a file that could not be flushed) are ignored. A thread that waits is interrupted again and again, which ends the
wait for a socket. A wait that no signal ends (for a FUSE server that has promised to write its data) delays only the
connections of that user, and the process when it exits: see "What remains".

**What remains.** File descriptors of users are never received (:mod:`moorage.wire.sockets`), and so never flushed.
Files in the queue of a socket that is closed are only released. FUSE does not wait for that, with one exception: if a
server with FUSE_WRITEBACK_CACHE has dirty pages, the process that closes the file last cannot be killed until that
server answers. From the moment that a connection is accepted, Linux 6.16 refuses to send it any file (SO_PASSRIGHTS).
A file that was sent before that, or on an older kernel, can still delay the *exit* of this service, for as long as its
server lives.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Iterable
from functools import partial

import trio

from moorage.kernel.threads import in_thread
from moorage.wire.output import close_all

THREADS_MAX = 64
"""Number of users whose files may be closed at the same time. Files of further users wait; each counts as a connection
of its user, whose number is limited."""

GATHER_SECONDS = 0.25
"""How long a file waits for others of its user. Meanwhile it takes a place of its user; its peer has seen the end."""

PATIENCE_SECONDS = 1.0
"""How long a close(2) may wait before it is interrupted, again and again. An ordinary file takes much less."""

INTERRUPT = signal.SIGUSR2
"""Signal that is sent to a thread that waits. It has no other meaning here; from outside it has no effect."""


def _ignore(number: int, frame: object) -> None:
    # A handler that does nothing: an ignored signal (SIG_IGN) would not interrupt.
    del number, frame


class Disposal:
    """Threads that close files.

    Args:
        tasks: nursery that waits for them. When it is cancelled, they are left to the end of the process, which does
            not wait for lingering sockets (PF_EXITING in inet_release() of the kernel).
    """

    def __init__(self, tasks: trio.Nursery) -> None:
        self._tasks = tasks
        self._threads = trio.CapacityLimiter(THREADS_MAX)
        self._turns: dict[int, deque[int]] = {}  # per user, the files that wait for the one being closed
        self._ended = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(INTERRUPT, _ignore)

    def pending(self, uid: int) -> tuple[int, int]:
        """Return an upper bound for the number of file descriptors not yet closed: of a user, and of all users."""
        if not self._turns:
            return 0, 0
        own = self._turns.get(uid)
        return 0 if own is None else 1 + len(own), sum(1 + len(each) for each in self._turns.values())

    def close(self, uid: int, fds: Iterable[int]) -> None:
        """Close file descriptors that came from a user; does not wait, and does not fail.

        Args:
            uid: the user.
            fds: the file descriptors; the caller must not use them any more.
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
            await trio.sleep(GATHER_SECONDS)
            async with trio.open_nursery() as nursery:
                thread: list[int] = []
                nursery.start_soon(_interrupt, thread)
                closing = partial(_close_those, turns, thread)
                try:
                    await in_thread(closing, limiter=self._threads, abandon_on_cancel=True)
                except OSError:  # no thread can be started: the file stays open until there is one
                    await trio.sleep(PATIENCE_SECONDS)
                nursery.cancel_scope.cancel()
        del self._turns[uid]

    def end(self) -> None:
        """Start no more threads; the rest is left to :meth:`finish`."""
        self._ended = True

    def finish(self) -> None:
        """Close the rest, as far as that takes no time; the end of the process closes what remains."""
        if self._turns:
            thread = threading.Thread(target=_close_rest, args=(list(self._turns.values()),), daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can be started
                thread.start()
                thread.join(PATIENCE_SECONDS)


def _close_those(turns: deque[int], thread: list[int]) -> None:
    # Removed in the thread: if it never starts, nothing is lost.
    thread.append(threading.get_ident())
    while turns:
        close_all((turns.popleft(),))


def _close_rest(rest: list[deque[int]]) -> None:
    for turns in rest:
        while turns:
            close_all((turns.popleft(),))


async def _interrupt(thread: list[int]) -> None:
    while True:
        await trio.sleep(PATIENCE_SECONDS)
        if thread:
            # The thread still exists: trio keeps it for a while after its work.
            signal.pthread_kill(thread[0], INTERRUPT)
