"""Connections and unread replies of users, limited so that no user can take them from the others.

Root, and the user that an instance serves, have limits of their own, which nobody else uses up. All other users share
the rest: each has a limit, and when there is no room left, the user with the most loses something. One person may have
many uids (subuid(5)), so a limit per uid alone would not keep room for others.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

CANDIDATES = 8
"""How many users, those with the most connections, are searched for one to close. There may be thousands of users, and
a connection for which there is no room must be cheap."""


class Occupant(Hashable, Protocol):
    """A connection, as far as it takes a place."""

    @property
    def uid(self) -> int:
        """Uid of the peer."""
        ...

    @property
    def idle(self) -> bool:
        """Whether nothing is lost if it is closed."""
        ...


T = TypeVar("T", bound=Occupant)


class Places(Generic[T]):
    """Connections of users, by uid.

    Args:
        total: limit for all users together.
        per_uid: limit for one user.
    """

    def __init__(self, total: int, per_uid: int) -> None:
        self._total = total
        self._per_uid = per_uid
        self._taken: dict[int, dict[T, None]] = {}  # per user, oldest first
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def limit(self, total: int, per_uid: int) -> None:
        """Have other limits from now on."""
        self._total, self._per_uid = total, per_uid

    def refusal(self, uid: int, own_closing: int = 0, all_closing: int = 0) -> tuple[int, T | None]:
        """Look for a place.

        Args:
            uid: the user that needs one.
            own_closing: number of file descriptors of this user that are not yet closed; each takes a place.
            all_closing: the same for all users.

        Returns: Zero and None if there is a place; zero and the connection that must be closed first; or the errno
            that tells the peer why there is no place (EUSERS: the limit of the user; EBUSY: the limit of all users
            together).
        """
        own = len(self._taken.get(uid, ())) + own_closing
        if own >= self._per_uid:
            return errno.EUSERS, None
        if self._count + all_closing < self._total:
            return 0, None
        for crowd in heapq.nlargest(CANDIDATES, self._taken.values(), key=len):
            if len(crowd) <= own:
                break
            for occupant in crowd:
                if occupant.idle:
                    return 0, occupant
        return errno.EBUSY, None

    def take(self, occupant: T) -> None:
        """Take a place."""
        self._taken.setdefault(occupant.uid, {})[occupant] = None
        self._count += 1

    def leave(self, occupant: T) -> None:
        """Give up the place that was taken."""
        crowd = self._taken[occupant.uid]
        del crowd[occupant]
        if not crowd:
            del self._taken[occupant.uid]
        self._count -= 1


class Unread(Generic[T]):
    """Bytes of replies that users have not read.

    Args:
        total: limit for all users together.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._sum = 0
        self._of: dict[T, int] = {}
        self._by_uid: dict[int, int] = {}

    def note(self, occupant: T, size: int) -> T | None:
        """Note how much is unread on a connection.

        Args:
            occupant: the connection.
            size: bytes; 0 removes it from the account.

        Returns:
            None, or if the limit is exceeded, the connection to close: the one with most, of the user with most.
        """
        uid, change = occupant.uid, size - self._of.get(occupant, 0)
        if size:
            self._of[occupant] = size
        else:
            self._of.pop(occupant, None)
        left = self._by_uid.get(uid, 0) + change
        if left:
            self._by_uid[uid] = left
        else:
            self._by_uid.pop(uid, None)
        self._sum += change
        if self._sum <= self._total:
            return None
        worst = max(self._by_uid, key=self._by_uid.__getitem__)
        return max((each for each in self._of if each.uid == worst), key=self._of.__getitem__)
