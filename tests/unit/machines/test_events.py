"""The log of events: cursors, its bounds, and what was told of whom."""

import pytest

from moorage.machines.events import (
    EVENT_BYTES_MAX,
    EVENTS_MAX,
    SEGMENTS_MAX,
    BadCursor,
    CursorExpired,
    Entry,
    EventLog,
    Extent,
    Kind,
    Told,
    counted,
    cursor_of,
    position_of,
)

BOOT = "0123456789abcdef" * 2
UUID = "01234567-89ab-cdef-0123-456789abcdef"


def entry(
    position: int, kind: Kind = Kind.empty, name: str = "web", *, size: int = 10, **fields: object
) -> Entry:
    message = b"x" * size
    values = {"invocation_id": "i", "registrant": 0, "helpers": (), **fields}
    return Entry(position=position, kind=kind, name=name, whole=message, public=message, **values)  # type: ignore[arg-type]


def add(log: EventLog, *entries: Entry) -> list[Entry]:
    dropped: list[Entry] = []
    for each in entries:
        dropped += log.append(each, begins=log.begins_segment(each.size))
    return dropped


def test_a_cursor_is_a_position_of_this_boot() -> None:
    assert position_of(cursor_of(BOOT, 77), BOOT) == 77
    assert cursor_of(UUID, 77) == cursor_of(BOOT, 77)
    assert position_of(cursor_of(BOOT, 77), UUID) == 77


@pytest.mark.parametrize(
    "cursor",
    [
        "", "x", "0", BOOT, cursor_of(BOOT, 1) + "0", cursor_of(BOOT, 1) + "\n", cursor_of(BOOT, 1).upper(),
        cursor_of(BOOT, 1).replace("0", "\N{FULLWIDTH DIGIT ZERO}"), "a" * (1 << 20), f"{BOOT}--000000000000001",
    ],
    ids=lambda cursor: cursor[:60],
)  # fmt: skip
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(BadCursor):
        position_of(cursor, BOOT)


@pytest.mark.parametrize("cursor", [cursor_of("f" * 32, 1), cursor_of(BOOT, 1, partial=True)])
def test_what_is_of_another_boot_or_of_half_a_snapshot_has_expired(cursor: str) -> None:
    with pytest.raises(CursorExpired):
        position_of(cursor, BOOT)


def test_events_are_found_by_the_one_before() -> None:
    log = EventLog(100)
    add(log, entry(110), entry(111), entry(500))
    assert [log.after(position) for position in (100, 110, 111, 500)] == [0, 1, 2, 3]
    assert [each.position for each in log.since(log.after(110), 9)] == [111, 500]
    assert log.since(3, 9) == []
    assert (log.base, log.last, log.end) == (100, 500, 3)


@pytest.mark.parametrize("position", [0, 99, 105, 112, 501, 1 << 60])
def test_what_came_after_a_position_that_is_not_kept_is_not_known(position: int) -> None:
    log = EventLog(100)
    add(log, entry(110), entry(111), entry(500))
    with pytest.raises(CursorExpired):
        log.after(position)


@pytest.mark.parametrize(
    ("size", "most"), [(10, EVENTS_MAX), (EVENT_BYTES_MAX // 1000, 1000), (EVENT_BYTES_MAX // 40, 40)]
)
def test_the_log_is_bounded(size: int, most: int) -> None:
    log, dropped = EventLog(0), 0
    count = most + most // 2 + 7
    for position in range(1, count + 1):
        left = add(log, entry(position, size=size))
        dropped += len(left)
        if left:
            assert left[-1].position == log.base
    kept = log.since(log.first, 2 * count)
    assert log.first == dropped
    assert [each.position for each in kept] == list(range(dropped + 1, count + 1))
    assert most - most // SEGMENTS_MAX - 60 <= len(kept) <= most
    assert log.after(log.base) == log.first
    with pytest.raises(CursorExpired):
        log.after(log.base - 1)


def test_as_much_is_kept_as_is_wanted() -> None:
    log = EventLog(0, Extent(events=32))
    for position in range(1, 100):
        add(log, entry(position))
    assert 30 <= log.end - log.first <= 32
    log = EventLog(0, Extent(size=1600))
    for position in range(1, 100):
        add(log, entry(position, size=50))
    assert 28 <= log.end - log.first <= 32


def test_a_log_of_who_kept_more_is_trimmed() -> None:
    log = EventLog(0, Extent(events=32))
    for part in range(10):
        for number in range(10):
            log.append(entry(1 + 10 * part + number), begins=number == 0)
    assert len(log.trim()) < 20
    assert (log.base, log.last, log.end - log.first) == (70, 100, 30)
    assert log.after(70) == log.first


def test_of_what_is_older_than_the_log_the_end_is_still_to_come() -> None:
    log = EventLog(0)
    add(log, entry(1, Kind.helper_removed, "old", helpers=("fs",)), entry(2, Kind.exited, "gone"))
    assert log.take_stories() == {("old", "i"): Told(whole=False, since=0)}


def test_stories_are_those_of_machines_that_have_not_ended() -> None:
    log = EventLog(0)
    add(
        log,
        entry(1, Kind.machine_new, "gone"), entry(2, Kind.exited, "gone"),
        entry(3, Kind.machine_new, "forgotten"), entry(4, Kind.forgotten, "forgotten"),
        entry(5, Kind.registration_failed, "failed"),
        entry(6, Kind.machine_new, "web", registrant=1000, helpers=("fs", "net")),
        entry(7, Kind.helper_failed, "web", helpers=("fs",)),
        entry(8, Kind.helper_removed, "web", helpers=("net",)),
        entry(9, Kind.helper_started, "web", helpers=("tpm",)),
        entry(10, Kind.leader_exited, "web"), entry(11, Kind.empty, "web"), entry(12, Kind.stopping, "web"),
        entry(13, Kind.lingering, "web"),
    )  # fmt: skip
    assert log.take_stories() == {
        ("web", "i"): Told(
            registrant=1000, leader_exited=True, empty=True, stopping=True, lingering=True,
            helpers=frozenset({"fs", "tpm"}),
            failed=frozenset({"fs"}), since=0,
        )
    }  # fmt: skip


def test_a_machine_of_the_same_unit_has_a_story_of_its_own() -> None:
    log = EventLog(0)
    add(log, entry(1, Kind.machine_new), entry(2, Kind.empty), entry(3, Kind.machine_new))
    assert log.take_stories() == {("web", "i"): Told(since=0)}


def test_nothing_is_news_twice_or_after_the_end() -> None:
    told = Told()
    for kind in (Kind.leader_exited, Kind.lingering, Kind.stopping, Kind.empty):
        assert told.admits(kind)
        told.note(kind)
        assert not told.admits(kind)
    assert told.admits(Kind.helper_failed, "fs")
    told.note(Kind.helper_failed, ["fs"])
    assert not told.admits(Kind.helper_failed, "fs")
    assert told.admits(Kind.helper_failed, "net")
    told.note(Kind.helper_restarted, ["fs"])
    assert told.admits(Kind.helper_failed, "fs")
    told.note(Kind.exited)
    assert not any(told.admits(kind) for kind in Kind)


def test_freezing_and_thawing_alternate() -> None:
    told = Told()
    assert not told.admits(Kind.thawed)
    for kind, other in ((Kind.frozen, Kind.thawed), (Kind.thawed, Kind.frozen)):
        assert told.admits(kind)
        told.note(kind)
        assert not told.admits(kind)
        assert told.admits(other)
    unknown = Told(frozen=None)
    assert not unknown.admits(Kind.frozen)
    assert not unknown.admits(Kind.thawed)


def test_what_is_empty_is_not_being_stopped() -> None:
    told = Told()
    told.note(Kind.empty)
    assert not told.admits(Kind.stopping)


def test_what_is_counted_adds_up_over_restarts() -> None:
    log = EventLog(0)
    facts: tuple[tuple[Kind, dict[str, object]], ...] = (
        (Kind.oom_kill, {"by": "kernel", "count": 2, "controlGroup": "/a"}),
        (Kind.oom_kill, {"by": "kernel", "count": 3}),
        (Kind.oom_kill, {"by": "oomd"}),  # nobody knows how many it were
        (Kind.limit_reached, {"resource": "memoryMax", "count": 7}),
    )
    add(log, entry(1, Kind.machine_new))
    for position, (kind, fact) in enumerate(facts, start=2):
        add(log, entry(position, kind, counted=counted(kind, fact)))
    add(log, entry(9, Kind.leader_exited, counted=counted(Kind.leader_exited, {"status": 0})))
    assert log.take_stories()["web", "i"].counts == {"kernel": 5, "oomd": 0, "memoryMax": 7}
    unknown = Told(counts=None)
    unknown.note(Kind.oom_kill, counted=("kernel", 1))
    assert unknown.counts is None
