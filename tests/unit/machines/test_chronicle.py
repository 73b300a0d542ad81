"""Whoever was told that a machine is new is told its end, whatever becomes of its record and of the log."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import made
import pytest
from fakes.played import PlayedManager

from moorage.api.moorage_machine.wording import Wording
from moorage.kernel.poller import Readiness
from moorage.kernel.process import boot_id
from moorage.kernel.system import system
from moorage.machines.chronicle import Chronicle
from moorage.machines.event_files import EventFiles
from moorage.machines.events import CursorExpired, Extent, Kind
from moorage.machines.helpers.status import HelperStates
from moorage.machines.machine import Machine
from moorage.machines.model import Cause, Timestamp, Verdict
from moorage.machines.registry import Registry
from moorage.machines.subscriptions import Filter
from moorage.pid1 import journal
from moorage.pid1.hints import Hints

FEW = Extent(events=32)
"""So many events, in sixteen parts."""

MANY = 3 * FEW.events


class Full(EventFiles):
    """Files on a disk that may be full, of an instance that may be killed before any write."""

    full = False
    left: int | None = None

    def write(self, descriptor: int, content: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "full")
        if self.left is not None:
            if not self.left:
                raise Killed
            self.left -= 1
        super().write(descriptor, content)


class Killed(BaseException):
    """It is no more."""


class Instance:
    """One life of the chronicle."""

    def __init__(self, path: Path, extent: Extent = FEW) -> None:
        self._readiness = Readiness()
        kernel, manager = system(self._readiness), PlayedManager()
        self.files = Full(str(path / "events"), boot_id(), extent)
        self.registry = Registry()
        states = HelperStates(manager, Hints(manager), kernel.processes, journal, user=False)
        self.chronicle = Chronicle(self.files, Wording(), self.registry, states, kernel)

    def open(self, *found: Machine) -> Instance:
        """Begin, and find machines again."""
        self.chronicle.open()
        for machine in found:
            self.add(machine)
        self.chronicle.opened()
        return self

    def add(self, machine: Machine) -> Machine:
        self.registry.add(machine)
        self.chronicle.added(machine)
        return machine

    def happen(self, machine: Machine, times: int = MANY) -> None:
        for _ in range(times):
            self.chronicle.happened(machine, Kind.properties_changed, {})

    def present(self) -> str:
        return self.chronicle.present()[0]

    def after(self, cursor: str) -> list[tuple[str, str]]:
        """Return the events after a cursor, each with the name of its machine."""
        events: list[tuple[str, str]] = []
        subscription = self.chronicle.subscribe(Filter(), lambda _: True, cursor=cursor)
        while messages := subscription.take(1 << 20):
            for message in messages:
                event = json.loads(message[:-1])["parameters"]["event"]
                events.append((event["name"], event["event"]))
        self.chronicle.unsubscribe(subscription)
        return events

    def die(self) -> None:
        """Be killed."""
        self.chronicle.close()
        self._readiness.close()


def machine(name: str, invocation: str = "0" * 32) -> Machine:
    """A machine that was registered now."""
    return made.machine(name, invocation_id=invocation, timestamp=Timestamp(1, 1 << 60))


def told_of_quiet(path: Path) -> str:
    """Have a machine told to be new, and so much of another that the log knows no more of the first; return where."""
    first = Instance(path).open()
    first.add(machine("quiet"))
    loud = first.add(machine("loud"))
    first.happen(loud)
    cursor = first.present()
    first.die()
    return cursor


def test_whose_beginning_has_left_the_log_is_told_to_be_forgotten(tmp_path: Path) -> None:
    cursor = told_of_quiet(tmp_path)
    second = Instance(tmp_path).open(machine("loud"))
    assert second.after(cursor) == [("quiet", "forgotten")]
    second.die()


def test_who_is_found_again_is_told_nothing_twice(tmp_path: Path) -> None:
    first = Instance(tmp_path).open()
    quiet, loud = first.add(machine("quiet")), first.add(machine("loud"))
    first.chronicle.happened(quiet, Kind.leader_exited, {})
    first.happen(loud)
    cursor = first.present()
    first.die()
    second = Instance(tmp_path).open(again := machine("quiet"), machine("loud"))
    second.chronicle.happened(again, Kind.leader_exited, {})
    assert second.after(cursor) == []
    second.die()


def test_it_is_known_over_many_lives(tmp_path: Path) -> None:
    cursor = told_of_quiet(tmp_path)
    for _ in range(3):
        life = Instance(tmp_path).open(machine("quiet"), loud := machine("loud"))
        life.happen(loud)
        assert Counter(life.after(cursor := life.present())) == {}
        life.die()
    last = Instance(tmp_path).open(machine("loud"))
    assert last.after(cursor) == [("quiet", "forgotten")]
    last.die()


def test_it_is_known_by_an_instance_that_keeps_less(tmp_path: Path) -> None:
    first = Instance(tmp_path, Extent(events=160)).open()
    first.add(machine("quiet"))
    first.happen(first.add(machine("loud")), 140)
    first.die()
    second = Instance(tmp_path).open(machine("quiet"), machine("loud"))
    cursor = second.present()
    second.die()
    third = Instance(tmp_path).open(machine("loud"))
    assert third.after(cursor) == [("quiet", "forgotten")]
    third.die()


@pytest.mark.parametrize("dropped", [False, True])
def test_a_disk_that_was_full_leaves_no_machine_without_an_end(tmp_path: Path, *, dropped: bool) -> None:
    first = Instance(tmp_path).open()
    first.add(machine("quiet"))
    loud = first.add(machine("loud"))
    first.files.full = True
    first.happen(loud, MANY if dropped else 1)
    first.files.full = False
    first.happen(loud, 1)
    cursor = first.present()
    first.die()
    second = Instance(tmp_path).open(machine("loud"))
    assert second.after(cursor) == [("quiet", "forgotten")]
    second.die()


def test_who_is_shown_a_machine_of_which_there_are_no_events_is_told_its_end(tmp_path: Path) -> None:
    """The log was lost with the instance before; its machines are in the snapshot of this one."""
    first = Instance(tmp_path).open(made.machine("quiet"))
    cursor = first.present()
    first.die()
    second = Instance(tmp_path).open()
    assert second.after(cursor) == [("quiet", "forgotten")]
    second.die()


@pytest.mark.parametrize("damage", ["cut", "full"])
def test_killed_at_any_write_it_leaves_a_story_with_an_end(tmp_path: Path, damage: str) -> None:
    """A reader that goes on by its cursor is told all of each machine's story, wherever the service was killed."""
    for left in range(60):
        path = tmp_path / f"{damage}{left}"
        path.mkdir()
        told: list[tuple[str, str]] = []
        life = Instance(path).open()
        cursor = life.present()
        life.files.left = left
        try:
            life.add(machine("quiet"))
            loud = life.add(machine("loud"))
            for number in range(20):
                if damage == "full" and number in {3, 9}:
                    life.files.full = True
                life.happen(loud, 3)
                life.files.full = False
                told += life.after(cursor)
                cursor = life.present()
            life.registry.remove(loud)
            life.chronicle.ended(loud)
            told += life.after(cursor)
            cursor = life.present()
        except Killed:
            pass
        life.die()
        last = Instance(path).open()
        if life.files.spoiled:  # there was no space at the very end
            with pytest.raises(CursorExpired):
                last.after(cursor)
            last.die()
            continue
        told += last.after(cursor)
        last.die()
        for name in ("quiet", "loud"):
            kinds = [kind for of, kind in told if of == name and kind != Kind.properties_changed]
            assert kinds in ([], ["machineNew", "forgotten"]), (left, name)


def test_a_large_event_takes_no_notes_with_it(tmp_path: Path) -> None:
    """It begins a part of its own, which must not be the one in which nothing but notes is."""
    first = Instance(tmp_path, Extent(size=16 * 64)).open(made.machine("quiet"))
    first.add(machine("loud"))
    cursor = first.present()
    first.die()
    second = Instance(tmp_path, Extent(size=16 * 64)).open(machine("loud"))
    assert second.after(cursor) == [("quiet", "forgotten")]
    second.die()


def harmless(_: Path) -> None:
    """Nothing."""


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 20)


@pytest.mark.parametrize("harm", [harmless, cut])
def test_notes_that_were_being_written_are_written_again(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    first = Instance(tmp_path).open(*(made.machine(f"m{number}") for number in range(10)))
    first.die()
    (file,) = (tmp_path / "events").iterdir()
    harm(file)
    second = Instance(tmp_path).open(*(made.machine(f"m{number}") for number in range(10)))
    cursor = second.present()
    second.die()
    third = Instance(tmp_path).open()
    assert Counter(third.after(cursor)) == Counter((f"m{number}", "forgotten") for number in range(10))
    third.die()


def test_whose_record_is_anothers_before_its_end_was_told_has_ended_all_the_same(tmp_path: Path) -> None:
    """Its name was given to the next one, and the service killed before the journal had told how it ended."""
    first = Instance(tmp_path).open()
    gone = first.add(machine("web"))
    cursor = first.present()
    first.registry.remove(gone)
    gone.retire(Verdict("success", Timestamp(2, 1 << 60), cause=Cause.stopped))
    first.chronicle.ended(gone)
    first.chronicle.unrecorded(gone)
    first.add(machine("web", "1" * 32))
    first.die()
    second = Instance(tmp_path).open(machine("web", "1" * 32))
    assert second.after(cursor) == [("web", "machineNew"), ("web", "exited")]
    assert second.chronicle.ends == {Cause.stopped: 1}
    second.die()
    third = Instance(tmp_path).open(machine("web", "1" * 32))
    assert third.after(cursor) == [("web", "machineNew"), ("web", "exited")]
    third.die()
