"""What each user may take of the service, so that none can take it from the others.

Root, and whose instance this is, have places of their own, that nobody else can fill. All others share the rest: each
has a limit, and where there is no room left, the one that has most gives way. The uids of one person may be many
(subuid(5)), so no limit by uid alone keeps room for somebody else.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

CANDIDATES = 8
"""Users, those with most, that are looked at for a connection to close. There may be thousands, and whoever connects
while there is no room should cost little."""


class Occupant(Hashable, Protocol):
    """What takes a place: a connection."""

    @property
    def uid(self) -> int:
        """Whose it is."""
        ...

    @property
    def idle(self) -> bool:
        """Whether nothing is lost if it is closed."""
        ...


T = TypeVar("T", bound=Occupant)


class Places(Generic[T]):
    """Connections of all but the trusted, by uid.

    Args:
        total: of all users together.
        per_uid: of one user.
    """

    def __init__(self, total: int, per_uid: int) -> None:
        self._total = total
        self._per_uid = per_uid
        self._taken: dict[int, dict[T, None]] = {}  # of each user in the order of their arrival
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def refusal(self, uid: int, own_closing: int = 0, all_closing: int = 0) -> tuple[int, T | None]:
        """Look for a place.

        Args:
            uid: of who wants one.
            own_closing: file descriptors of that user's that are still to be closed: each is a place taken.
            all_closing: those of everybody.

        Returns:
            Zero and nothing where there is one; zero, and who has to leave it before it is taken; or the number of the
            error that says why there is none (EUSERS: the user has enough; EBUSY: so have all users together).
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
        """Leave the place that was taken."""
        crowd = self._taken[occupant.uid]
        del crowd[occupant]
        if not crowd:
            del self._taken[occupant.uid]
        self._count -= 1


class Unread(Generic[T]):
    """Bytes of replies that users have asked for and not read, all of them together.

    Args:
        total: most of these bytes.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._sum = 0
        self._of: dict[T, int] = {}
        self._by_uid: dict[int, int] = {}

    def note(self, occupant: T, size: int) -> T | None:
        """Note how much one has not read.

        Args:
            occupant: the one.
            size: bytes; 0 forgets it.

        Returns:
            Who has to go where it is too much in all: of the user who has left most, the one that has.
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
