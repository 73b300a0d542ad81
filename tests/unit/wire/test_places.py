"""Who gets a place where there are few."""

import errno
from dataclasses import dataclass

from moorage.wire.places import Places, Unread


@dataclass(eq=False)
class Occupant:
    uid: int
    idle: bool = True


def test_each_has_a_limit_and_so_have_all() -> None:
    places = Places[Occupant](total=4, per_uid=2)
    for uid in (1, 1):
        assert places.refusal(uid) == (0, None)
        places.take(Occupant(uid))
    assert places.refusal(1) == (errno.EUSERS, None)
    assert places.refusal(2) == (0, None)
    assert len(places) == 2


def test_other_limits_hold_from_then_on() -> None:
    places = Places[Occupant](total=4, per_uid=2)
    for uid in (1, 1, 2):
        places.take(Occupant(uid, idle=False))
    places.limit(total=3, per_uid=3)
    assert places.refusal(1) == (errno.EBUSY, None)
    places.limit(total=4, per_uid=1)
    assert places.refusal(2) == (errno.EUSERS, None)
    assert places.refusal(3) == (0, None)
    assert len(places) == 3


def test_who_has_most_loses_the_oldest_that_is_idle() -> None:
    places = Places[Occupant](total=4, per_uid=4)
    busy, oldest, younger = Occupant(1, idle=False), Occupant(1), Occupant(1)
    other = Occupant(2)
    for each in (busy, other, oldest, younger):
        places.take(each)
    assert places.refusal(3) == (0, oldest)
    assert places.refusal(2) == (0, oldest)
    assert places.refusal(1) == (errno.EBUSY, None), "nobody has more than that user"
    places.leave(oldest)
    assert places.refusal(3) == (0, None)
    places.take(Occupant(3))
    oldest.idle = younger.idle = False
    assert places.refusal(4) == (0, other), "the next one, where all of the first are busy"


def test_what_is_still_to_be_closed_counts() -> None:
    places = Places[Occupant](total=3, per_uid=2)
    assert places.refusal(1, 2, 2) == (errno.EUSERS, None)
    assert places.refusal(1, 0, 3) == (errno.EBUSY, None)
    assert places.refusal(1, 1, 2) == (0, None)


def test_who_has_left_most_unread_goes() -> None:
    unread = Unread[Occupant](100)
    one, two, three = Occupant(1), Occupant(1), Occupant(2)
    assert unread.note(one, 30) is None
    assert unread.note(two, 40) is None
    assert unread.note(three, 30) is None
    assert unread.note(three, 31) is two, "the user who has most, and of them the one that has"
    assert unread.note(two, 0) is None
    assert unread.note(three, 71) is three
    assert unread.note(three, 0) is None
    assert unread.note(one, 0) is None
