"""One call, as its handler sees it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from moorage.kernel.peer import Peer
from moorage.wire.errors import InvalidParameter
from moorage.wire.message import CallMessage


class Caller(Protocol):
    """The connection that a call arrived on, as far as a handler may know it."""

    @property
    def peer(self) -> Peer:
        """The process that made the connection."""
        ...

    @property
    def about(self) -> object:
        """What the calls on the socket that the connection was made to are about; see `Server.listen`."""
        ...

    async def wait_gone(self) -> None:
        """Return when the peer has hung up, or the connection has ended for another reason."""
        ...

    def dispose(self, fds: Iterable[int]) -> None:
        """Close file descriptors that the peer has sent, without waiting for the files behind them."""
        ...


class Call:
    """One call.

    Attributes:
        method: full name, with the interface.
        more: the caller accepts several replies.
        oneway: the caller wants no reply.
    """

    __slots__ = ("_caller", "_fds", "method", "more", "oneway")

    def __init__(self, message: CallMessage, caller: Caller, fds: Sequence[int]) -> None:
        self.method = message.method
        self.more = message.more
        self.oneway = message.oneway
        self._caller = caller
        self._fds: Sequence[int | None] = fds

    @property
    def peer(self) -> Peer:
        """The process that made the connection."""
        return self._caller.peer

    @property
    def about(self) -> object:
        """What the calls on the socket that the connection was made to are about; see `Server.listen`."""
        return self._caller.about

    def take_fd(self, index: int, field: str) -> int:
        """Return a file descriptor that came with the call; the handler owns it from now on.

        Args:
            index: its position, as the parameters give it.
            field: name of the parameter that gives it.

        Raises:
            InvalidParameter: there is no file descriptor at that position, or it was taken before.
        """
        fd = self._fds[index] if 0 <= index < len(self._fds) else None
        if fd is None:
            raise InvalidParameter(field)
        rest: list[int | None] = list(self._fds)
        rest[index] = None
        self._fds = rest
        return fd

    def give_back(self, fd: int) -> None:
        """Return a file descriptor that was taken and may take time to close: it is disposed of."""
        self._caller.dispose((fd,))

    async def wait_gone(self) -> None:
        """Return when the caller has hung up.

        The handler's task is cancelled then as well (except that of a ``oneway`` call): this is for tasks that outlive
        the handler.
        """
        await self._caller.wait_gone()

    def close(self) -> None:
        """Close the file descriptors that were not taken."""
        if self._fds:
            self._caller.dispose(fd for fd in self._fds if fd is not None)
            self._fds = ()
