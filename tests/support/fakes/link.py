"""A connection to the service manager in memory: calls one way, replies and signals the other, each in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from moorage.pid1.errors import ManagerError
from moorage.pid1.jobs import JobEnd
from moorage.pid1.manager import UnitHint

if TYPE_CHECKING:
    from fakes.pid1 import Pid1


class Lost(Exception):
    """The connection was lost before the reply."""


class Request:
    """A call that was sent.

    Attributes:
        call: what the manager does for it.
        done: set when there is a reply, or will be none.
        lost: there will be none.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.done = trio.Event()
        self.value: Any = None
        self.error: ManagerError | None = None
        self.lost = False

    def work(self) -> None:
        """Do it."""
        try:
            self.value = self.call()
        except ManagerError as error:
            self.error = error


class Connection:
    """One connection.

    Attributes:
        inbox: calls that the manager has not read yet.
        closed: it is lost.
    """

    def __init__(
        self, manager: Pid1, deliver: Callable[[UnitHint | JobEnd], None], delay: Callable[[], float]
    ) -> None:
        self.inbox: deque[Request] = deque()
        self.closed = False
        self._manager = manager
        self._deliver = deliver
        self._delay = delay
        self._outbox: deque[Request | UnitHint | JobEnd] = deque()
        self._unanswered: dict[Request, None] = {}
        self._more = trio.Event()
        manager.connections.append(self)

    def read(self) -> None:
        """Have the manager read one call, and answer it."""
        request = self.inbox.popleft()
        request.work()
        self._outbox.append(request)
        self._more.set()

    def send(self, item: UnitHint | JobEnd) -> None:
        """Send a signal."""
        self._outbox.append(item)
        self._more.set()

    async def call(self, call: Callable[[], Any]) -> Any:
        """Send a call, and return what it is answered with.

        Raises:
            Lost: the connection is.
            ManagerError: the manager's own answer.
        """
        if self.closed:
            raise Lost
        request = Request(call)
        self.inbox.append(request)
        self._unanswered[request] = None
        self._manager.wake()
        await request.done.wait()
        if request.lost:
            raise Lost
        if request.error is not None:
            raise request.error
        return request.value

    def close(self, *, unread: bool) -> None:
        """Lose the connection; unread: the manager reads the calls that were sent all the same."""
        if self.closed:
            return
        self.closed = True
        self._manager.connections.remove(self)
        if unread:
            for request in self.inbox:
                self._manager.post(request.work)
        self.inbox.clear()
        self._outbox.clear()
        for request in self._unanswered:
            request.lost = True
            request.done.set()
        self._unanswered.clear()
        self._more.set()

    async def run(self) -> None:
        """Deliver what was sent, until the connection is lost."""
        while not self.closed:
            while self._outbox:
                await trio.sleep(self._delay())
                if not self._outbox:
                    break
                item = self._outbox.popleft()
                if isinstance(item, Request):
                    self._unanswered.pop(item, None)
                    item.done.set()
                else:
                    self._deliver(item)
            if not self.closed:
                await self._more.wait()
                self._more = trio.Event()
