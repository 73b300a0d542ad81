"""What outlives its caller: it has crossed into the service manager, and a client that hangs up changes nothing."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Detached:
    """Runs functions to their end, whoever stops waiting for them. They end with :meth:`run`."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None
        self._shields: set[trio.CancelScope] = set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run what is begun. When this is cancelled nothing waits for the tasks of callers any more either.

        The next instance of this service finds what they have made.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    for scope in self._shields:
                        scope.shield = False
        finally:
            self._nursery = None

    def start(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Begin something that nobody waits for, and that does not fail. Nothing is begun once this has ended."""
        with contextlib.suppress(RuntimeError):  # closed: cancelled, and without a task, but not yet told so
            self._begun_in().start_soon(function, *args)

    async def shielded(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run a function in the caller's task, shielded from cancellation once it has started."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._begun_in()
        with trio.CancelScope(shield=True) as scope:
            self._shields.add(scope)
            try:
                return await function()
            except Exception as error:
                scope.shield = False
                if trio.current_effective_deadline() == -math.inf:  # nobody is there to be told
                    _log.info("Failed to complete what a caller left behind, ignoring: %r", error)
                raise
            finally:
                self._shields.discard(scope)
        raise AssertionError("nobody cancels that scope")

    async def begin(self, function: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
        """Begin something in a task of its own; return a function that waits for its result.

        Callers are cancelled with :meth:`run`, but may notice it later: nothing is begun for one that is cancelled.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        results: list[T] = []
        errors: list[Exception] = []
        done = trio.Event()
        awaited = True

        async def run() -> None:
            try:
                results.append(await function())
            except Exception as error:  # noqa: BLE001 - it is raised again where it is waited for
                errors.append(error)
                if not awaited:
                    _log.info("Failed to complete what a caller left behind, ignoring: %r", error)
            finally:
                done.set()

        async def result() -> T:
            nonlocal awaited
            try:
                await done.wait()
            except trio.Cancelled:
                awaited = False
                raise
            if errors:
                raise errors[0]
            return results[0]

        self._begun_in().start_soon(run)
        return result

    def _begun_in(self) -> trio.Nursery:
        assert self._nursery is not None, "nothing runs here"
        return self._nursery
