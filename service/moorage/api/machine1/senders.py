"""Who calls over the bus, and how much of it goes on at once.

A broker tells who a peer is only when it is asked, and a peer may call faster than that. So its first call is kept
until the broker has answered, and those behind it wait; each user then has so many places. Whoever wants more is
told at once.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Final

import trio

from moorage.dbus.bus import BusError
from moorage.dbus.served import UNKNOWN, ServedBus
from moorage.kernel.peer import Peer, pinned_peer
from moorage.kernel.process import NotAProcess, ProcessGone

CALLS_PER_SENDER_MAX: Final = 128
"""Calls of one peer under way: a broker lets no more than this many wait for their replies (max_replies_per_connection
of dbus-daemon(1)), but does not count those that want none."""

CALLS_PER_UID_MAX: Final = 128
"""Calls of one user without rights under way, over all of its connections: what varlink gives it, see wire.md."""

WAITING_MAX: Final = 1024
"""Calls in all that wait until it is known who makes them, beyond one of each peer: each has 0.5 MiB at most, and most
have 0.2 KiB."""

CREDENTIALS_SECONDS: Final = 25.0
"""For the broker to say who a peer is, s; a broker that takes longer has given up on that peer's call (25 s)."""


class TooMany(Exception):
    """As many calls of this peer, or of this user, are under way as may be."""


class Unknown(Exception):
    """It cannot be told who makes a call: it has left the bus, or the broker does not say.

    Attributes:
        gone: it has left, and waits for no answer.
    """

    def __init__(self, *, gone: bool) -> None:
        super().__init__("gone" if gone else "not told")
        self.gone = gone


class _Sender:
    """A peer with calls under way."""

    def __init__(self) -> None:
        self.calls = 0
        self.asking = trio.Lock()
        self.peer: Peer | None = None
        self.pidfd: int | None = None


class Place:
    """The place of a call, from its coming to its answer."""

    def __init__(self, senders: Senders, name: str, sender: _Sender) -> None:
        self._senders = senders
        self._name = name
        self._sender = sender
        self._uid: int | None = None
        self._waits = False

    async def peer(self, bus: ServedBus) -> Peer:
        """Return who makes the call, and count it among that user's.

        Raises:
            Unknown: that cannot be told.
            TooMany: too many of that user's are under way.
        """
        sender = self._sender
        async with sender.asking:
            if sender.peer is None:
                sender.peer = await self._ask(bus)
        self._wait_no_more()
        self._senders.count(sender.peer.uid)
        self._uid = sender.peer.uid
        return sender.peer

    async def _ask(self, bus: ServedBus) -> Peer:
        deadline = trio.current_time() + CREDENTIALS_SECONDS
        try:
            told = await bus.credentials(self._name, deadline=deadline)
        except BusError:
            raise Unknown(gone=True) from None
        if told.pidfd is None:
            raise Unknown(gone=False)
        self._sender.pidfd = told.pidfd
        try:
            return pinned_peer(told.pidfd, told.uid)
        except ProcessGone:
            raise Unknown(gone=True) from None
        except NotAProcess:
            raise Unknown(gone=False) from None

    @property
    def uid(self) -> int:
        """Return the uid of who makes the call, or `UNKNOWN` as long as nobody has asked."""
        return UNKNOWN if self._uid is None else self._uid

    def wait(self) -> None:
        """Count it among those that wait."""
        self._waits = True
        self._senders.waiting += 1

    def _wait_no_more(self) -> None:
        if self._waits:
            self._waits = False
            self._senders.waiting -= 1

    def leave(self) -> None:
        """Give the place back."""
        self._wait_no_more()
        if self._uid is not None:
            self._senders.discount(self._uid)
        self._sender.calls -= 1
        if not self._sender.calls:
            self._senders.forget(self._name)
            if self._sender.pidfd is not None:
                os.close(self._sender.pidfd)
                self._sender.pidfd = None


class Senders:
    """All who have calls under way.

    Args:
        trusted: uids that have the rights of the service anyway.

    Attributes:
        waiting: calls behind the first ones of peers that are not known yet.
    """

    def __init__(self, trusted: frozenset[int]) -> None:
        self._trusted = trusted
        self._senders: dict[str, _Sender] = {}
        self._of_uid: Counter[int] = Counter()
        self.waiting = 0

    def __len__(self) -> int:
        return len(self._senders)

    def enter(self, name: str) -> Place:
        """Take a place for a call that has come.

        Args:
            name: unique name of who makes it.

        Raises:
            TooMany: of that peer's, or of all that are not known yet.
        """
        sender = self._senders.get(name) or _Sender()
        if sender.calls >= CALLS_PER_SENDER_MAX:
            raise TooMany
        waits = sender.calls > 0 and sender.peer is None
        if waits and self.waiting >= WAITING_MAX:
            raise TooMany
        self._senders[name] = sender
        sender.calls += 1
        place = Place(self, name, sender)
        if waits:
            place.wait()
        return place

    def count(self, uid: int) -> None:
        """Count a call of a user.

        Raises:
            TooMany: of that user's.
        """
        if uid not in self._trusted and self._of_uid[uid] >= CALLS_PER_UID_MAX:
            raise TooMany
        self._of_uid[uid] += 1

    def discount(self, uid: int) -> None:
        """Count a call no more."""
        self._of_uid[uid] -= 1
        if not self._of_uid[uid]:
            del self._of_uid[uid]

    def forget(self, name: str) -> None:
        """Forget a peer that has no call under way."""
        self._senders.pop(name, None)
