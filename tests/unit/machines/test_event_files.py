"""Events on disk: what comes back, and what may lie there instead."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from moorage.machines.event_files import FILE_MAX, VERSION, EventFiles
from moorage.machines.events import EVENTS_MAX, SEGMENTS_MAX, Entry, EventLog, Extent, Kind

BOOT = "0123456789abcdef" * 2
START = 1000
"""µs since boot."""


SMALL = os.statvfs_result((1024, 1024, 128, *os.statvfs("/")[3:]))
"""A file system of 128 KiB."""


class Full(EventFiles):
    """Files on a disk that may be full."""

    full = False

    def write(self, descriptor: int, content: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "full")
        super().write(descriptor, content)


def entry(position: int, secret: bytes = b"") -> Entry:
    whole = b'{"at":%d}\0' % position
    public = b'{"at":%d,"secret":"%b"}\0' % (position, secret) if secret else whole
    return Entry(position, Kind.exited, "web", "i" * 32, 1000, ("fs",), whole, public)


def write(path: Path, *positions: int, present: int = START) -> EventFiles:
    files = Full(str(path), BOOT)
    log = files.load(present)
    for position in positions:
        put(files, log, entry(position, b"x" if position % 2 else b""))
    return files


def put(files: EventFiles, log: EventLog, new: Entry) -> None:
    begins = log.begins_segment(new.size)
    if files.spoiled:
        files.renew(log, ())
    files.append(log, new, begins=begins)
    if log.append(new, begins=begins):
        files.drop(log.base)


def loaded(path: Path, present: int = 1 << 40) -> EventLog:
    files = EventFiles(str(path), BOOT)
    try:
        return files.load(present)
    finally:
        files.close()


def kept(log: EventLog) -> list[Entry]:
    return log.since(log.first, EVENTS_MAX)


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "below" / "events"
    write(path, 1001, 1002, 5000).close()
    log = loaded(path)
    assert kept(log) == [entry(1001, b"x"), entry(1002), entry(5000)]
    assert [each.public is each.whole for each in kept(log)] == [False, True, True]
    assert log.base == START
    assert path.stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in path.iterdir()} == {0o600}


def test_where_nothing_has_happened_a_cursor_is_good_all_the_same(tmp_path: Path) -> None:
    write(tmp_path).close()
    write(tmp_path).close()
    assert loaded(tmp_path).after(START) == 0


def test_the_next_instance_goes_on_in_the_same_file(tmp_path: Path) -> None:
    write(tmp_path, 1001).close()
    write(tmp_path, 1002).close()
    write(tmp_path, 1003).close()
    assert [each.position for each in kept(loaded(tmp_path))] == [1001, 1002, 1003]
    assert len(list(tmp_path.iterdir())) == 1


def test_files_are_as_many_as_the_log_has_parts(tmp_path: Path) -> None:
    files = EventFiles(str(tmp_path), BOOT)
    log = files.load(0)
    for position in range(1, EVENTS_MAX + EVENTS_MAX // 2):
        put(files, log, entry(position))
    files.close()
    assert len(list(tmp_path.iterdir())) == len(log.segments) <= SEGMENTS_MAX
    again = loaded(tmp_path)
    assert (again.base, again.last, len(kept(again))) == (log.base, log.last, log.end - log.first)
    assert [each.base for each in again.segments] == [each.base for each in log.segments]


def test_an_instance_may_keep_less_than_the_one_before(tmp_path: Path) -> None:
    files = EventFiles(str(tmp_path), BOOT, Extent(events=160))
    log = files.load(0)
    for position in range(1, 141):
        put(files, log, entry(position))
    files.close()
    assert len(list(tmp_path.iterdir())) == 14
    files = EventFiles(str(tmp_path), BOOT, Extent(events=32))
    log = files.load(1000)
    assert len(log.trim()) == 110
    files.drop(log.base)
    assert (log.base, log.last, len(kept(log))) == (110, 140, 30)
    assert len(list(tmp_path.iterdir())) == 3, "what is not kept is not on disk either"
    for position in range(141, 161):
        put(files, log, entry(position))
    files.close()
    again = EventFiles(str(tmp_path), BOOT, Extent(events=160)).load(1000)
    assert [each.position for each in kept(again)] == [each.position for each in kept(log)]


def test_an_event_that_was_being_written_has_not_happened(tmp_path: Path) -> None:
    write(tmp_path, 1001, 1002).close()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert [each.position for each in kept(loaded(tmp_path))] == [1001]
    write(tmp_path, 1003).close()
    assert [each.position for each in kept(loaded(tmp_path))] == [1001, 1003]


def divided(path: Path) -> tuple[Path, Path]:
    """Two files that follow one another."""
    files = EventFiles(str(path), BOOT)
    log = files.load(START)
    put(files, log, entry(1001))
    new = entry(1002)
    files.append(log, new, begins=True)
    log.append(new, begins=True)
    files.close()
    first, second = sorted(path.iterdir())
    return first, second


def cut(path: Path) -> None:
    path.write_bytes(b"")


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"kind"', b'"kin'))


def age(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"version":%d' % VERSION, b'"version":%d' % (VERSION + 1)))


def reboot(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(BOOT.encode(), b"f" * 32))


def rename(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"base":', b'"base":1'))


def link(path: Path) -> None:
    kept = path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(kept)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def swell(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(FILE_MAX + 1)


def disorder(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[-1]]))


def binary(path: Path) -> None:
    path.write_bytes(os.urandom(5000) + b"\n")


def no_message(path: Path) -> None:
    header = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(header + b'{"position":5000,"kind":"empty","name":"a","messages":[]}\n')


HARMS = [cut, damage, age, reboot, rename, link, pipe, swell, disorder, binary, no_message]


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_no_file_of_events_is_dropped_with_all_before_it(
    tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "events"
    _, second = divided(path)
    harm(second)
    log = loaded(path, 9999)
    assert kept(log) == []
    assert log.base == 9999
    assert [each.name for each in path.iterdir()] == [f"{9999:016x}"]
    assert "ignoring them" in caplog.text


@pytest.mark.parametrize("harm", HARMS)
def test_what_came_after_it_is_kept(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    path = tmp_path / "events"
    first, second = divided(path)
    harm(first)
    log = loaded(path)
    assert [each.position for each in kept(log)] == [1002]
    assert log.base == 1001
    assert list(path.iterdir()) == [second]


def test_a_part_that_is_missing_is_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "events"
    first, second = divided(path)
    second.rename(path / f"{1500:016x}")
    text = (
        (path / f"{1500:016x}")
        .read_bytes()
        .replace(b'"base":1001', b'"base":1500')
        .replace(b"1002", b"1502")
    )
    (path / f"{1500:016x}").write_bytes(text)
    log = loaded(path)
    assert [each.position for each in kept(log)] == [1502]
    assert log.base == 1500
    assert not first.exists()


def test_a_full_disk_loses_the_past_and_nothing_else(tmp_path: Path) -> None:
    files = Full(str(tmp_path), BOOT)
    log = files.load(START)
    for position, full in ((1001, False), (1002, True), (1003, True), (1004, False), (1005, False)):
        files.full = full
        put(files, log, entry(position))
    files.close()
    assert len(kept(log)) == 5, "this instance knows all of them"
    again = loaded(tmp_path)
    assert [each.position for each in kept(again)] == [1004, 1005]
    assert again.base == 1003, "whoever knows the one before may go on"


def test_a_disk_that_was_full_at_the_end_has_no_past(tmp_path: Path) -> None:
    files = Full(str(tmp_path), BOOT)
    log = files.load(START)
    put(files, log, entry(1001))
    files.full = True
    put(files, log, entry(1002))
    files.close()
    (kept,) = tmp_path.iterdir()
    assert kept.stat().st_size > 100, "it keeps its space, as nobody else has any"
    assert loaded(tmp_path, 9999).base == 9999
    assert [each.name for each in tmp_path.iterdir()] == [f"{9999:016x}"]


def test_a_disk_that_is_full_when_a_part_begins_has_no_past(tmp_path: Path) -> None:
    files = Full(str(tmp_path), BOOT)
    log = files.load(START)
    put(files, log, entry(1001))
    files.full = True
    new = entry(1002)
    files.append(log, new, begins=True)
    log.append(new, begins=True)
    files.close()
    assert loaded(tmp_path, 9999).base == 9999


def test_a_disk_that_is_full_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = Full(str(tmp_path), BOOT)
    log = files.load(START)
    for position, full in ((1001, True), (1002, True), (1003, False), (1004, True)):
        files.full = full
        put(files, log, entry(position))
    files.close()
    assert caplog.text.count("Failed to keep events on disk") == 2


@pytest.mark.parametrize("kind", ["file", "link", "missing"])
def test_without_a_directory_events_are_in_memory_only(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "events"
    if kind == "file":
        path.write_text("")
    elif kind == "link":
        path.symlink_to(tmp_path)
    else:
        path = Path("/proc/self/none/events")
    files = EventFiles(str(path), BOOT)
    log = files.load(START)
    put(files, log, entry(1001))
    files.drop(1)
    files.close()
    assert len(kept(log)) == 1
    assert "in memory only" in caplog.text


def test_what_else_lies_there_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path, 1001).close()
    (tmp_path / "notes").write_text("mine")
    (tmp_path / f"{5:016x}").mkdir()
    assert [each.position for each in kept(loaded(tmp_path))] == [1001]
    assert (tmp_path / "notes").read_text() == "mine"


def test_records_have_room_beside_the_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(_: int) -> os.statvfs_result:
        return SMALL

    monkeypatch.setattr(os, "fstatvfs", small)
    files = EventFiles(str(tmp_path), BOOT)
    log = files.load(START)
    for position in range(1001, 2001):
        put(files, log, entry(position, b"x" * 300))
    files.close()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 32 << 10
    assert kept(loaded(tmp_path))[-1] == entry(2000, b"x" * 300)
