"""State files of machines, in a directory of a test's own; real processes are the leaders."""

import os
import subprocess
from pathlib import Path

import pytest
from made import machine

from moorage.kernel.process import identify
from moorage.machines.machine import Machine
from moorage.machines.model import MachineClass, Origin
from moorage.machines.registry import Registry
from moorage.place.state_files import MARK, StateFiles, content


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "machines"
    made.mkdir(mode=0o755)
    return made


class Place:
    """Whether it is ours."""

    is_ours = True

    def __call__(self) -> bool:
        return self.is_ours


def files_in(directory: Path, *machines: Machine, place: Place | None = None) -> StateFiles:
    registry = Registry()
    for each in machines:
        registry.add(each)
    return StateFiles(str(directory), registry, place or Place())


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_file_comes_and_goes(directory: Path) -> None:
    web = machine("web", class_=MachineClass.container, leader=identify(os.getpid()), if_indices=(3, 4))
    files = files_in(directory, web)
    files.added(web)
    assert (directory / "web").read_text() == content(web.record)
    lines = (directory / "web").read_text().splitlines()
    assert {"NAME=web", "CLASS=container", f"LEADER={os.getpid()}", 'NETIF=" 3 4"', MARK} <= {*lines}
    assert os.readlink(directory / "unit:machine-web.scope") == "web"
    before = (directory / "web").stat().st_ino
    files.added(web)  # found again after a restart: nothing is written
    assert (directory / "web").stat().st_ino == before
    files.ended(web)
    assert names(directory) == set()
    files.ended(web)


def test_the_file_of_an_adopted_machine_stays_machineds(directory: Path) -> None:
    leader = identify(os.getpid())
    box = machine("box", leader=leader, origin=Origin.adopted)
    theirs = f"NAME=box\nLEADER={leader.pid}\n"
    (directory / "box").write_text(theirs)
    files = files_in(directory, box)
    files.added(box)
    assert (directory / "box").read_text() == theirs
    files.ended(box)
    assert names(directory) == set()
    # One that machined has no file of gets one.
    files.added(box)
    assert MARK in (directory / "box").read_text()


def test_the_directory_is_made(tmp_path: Path) -> None:
    web = machine("web")
    files_in(tmp_path / "none", web).added(web)
    assert (tmp_path / "none" / "web").exists()


@pytest.mark.parametrize("name", ["a_b", "a:b", "a..b", "a@b", "unit:web.service"])
def test_names_that_machined_would_not_take_have_none(directory: Path, name: str) -> None:
    odd = machine(name)
    files = files_in(directory, odd)
    files.added(odd)
    files.ended(odd)
    assert names(directory) == set()


def test_a_part_of_a_unit_is_not_linked(directory: Path) -> None:
    web = machine("web", unit="user@1000.service", subgroup="/app.slice/x.scope")
    files_in(directory, web).added(web)
    assert names(directory) == {"web"}
    assert "SUBGROUP=app.slice/x.scope\n" in (directory / "web").read_text()


def test_the_longest_names_of_units_have_no_link(directory: Path) -> None:
    web = machine("web", unit="x" * 249 + ".scope")
    files = files_in(directory, web)
    files.added(web)
    assert names(directory) == {"web"}
    files.ended(web)
    assert names(directory) == set()


@pytest.mark.parametrize(
    "text", ['a "b" $c `d` \\e', "a b", "*", "[x]", "a;b|c&d", "'", "é", "plain", "a=b"]
)
def test_what_a_shell_reads_is_the_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(content(machine("web", service=text).record))
    read = ["sh", "-c", '. "$1"; printf %s "$SERVICE"', "sh", str(tmp_path / "file")]
    assert subprocess.run(read, capture_output=True, check=True).stdout.decode() == text


def test_what_is_left_of_others_goes(directory: Path) -> None:
    web = machine("web", leader=identify(os.getpid()))
    gone = identify(os.getpid())
    for name, text in (
        ("ours", f"{MARK}\nNAME=ours\nLEADER={gone.pid}\n"),
        ("dead", "NAME=dead\nLEADER=4000000\n"),
        ("reused", f"NAME=reused\nLEADER={gone.pid}\nLEADER_PIDFDID=1\n"),
        ("huge", "NAME=huge\nLEADER=99999999999999999999\n"),
        ("theirs", f"NAME=theirs\nLEADER={gone.pid}\nLEADER_PIDFDID={gone.pidfd_id}\n"),
        ("strange", "\0\xff"),
        (".moored", "half"),
        (".#theirs123", "half, of others"),
    ):
        (directory / name).write_text(text)
    for unit, target in (
        ("ours.service", "ours"), ("theirs.service", "theirs"), ("machine-web.scope", "web"),
        ("other.scope", "web"), ("nothing.scope", "nothing"), ("out.scope", "../../etc/passwd"),
    ):  # fmt: skip
        (directory / f"unit:{unit}").symlink_to(target)
    (directory / "directory").mkdir()
    files = files_in(directory, web)
    files.added(web)
    files.sweep()
    assert names(directory) == {
        "web", "unit:machine-web.scope", "theirs", "unit:theirs.service", "strange", ".#theirs123", "directory",
    }  # fmt: skip


def test_links_are_not_followed(directory: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    web = machine("web")
    for name in ("web", ".moored", "unit:machine-web.scope"):
        (directory / name).symlink_to(victim)
    files = files_in(directory, web)
    files.added(web)
    files.sweep()
    assert not (directory / "web").is_symlink()
    assert os.readlink(directory / "unit:machine-web.scope") == "web"
    files.ended(web)
    assert names(directory) == set()
    assert victim.read_text() == "kept"


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_directory_of_others_gets_nothing(
    directory: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    directory.chmod(mode)
    web = machine("web")
    files = files_in(directory, web)
    files.added(web)
    files.added(web)
    files.ended(web)
    files.sweep()
    assert names(directory) == set()
    assert len(caplog.records) == 1


def test_a_link_in_place_of_the_directory_is_not_followed(tmp_path: Path, directory: Path) -> None:
    (tmp_path / "link").symlink_to(directory)
    web = machine("web")
    files_in(tmp_path / "link", web).added(web)
    assert names(directory) == set()


def test_nothing_is_done_once_the_place_is_lost(directory: Path) -> None:
    place, web, db = Place(), machine("web"), machine("db")
    files = files_in(directory, web, db, place=place)
    files.added(web)
    place.is_ours = False
    files.added(db)
    files.ended(web)
    assert names(directory) == {"web", "unit:machine-web.scope"}
