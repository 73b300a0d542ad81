"""Into machined's place and back, for the system and for a user, with a service manager in memory."""

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from moorage.cli import placing, service
from moorage.cli.address import Address
from moorage.cli.failures import Exit, Failure
from moorage.cli.placing import Step
from moorage.cli.service import Information
from moorage.cli.whereabouts import Whereabouts

MACHINED = "systemd-machined.service"
SOCKET = "systemd-machined.socket"
OURS, PLACE = "moored.service", "moored-machined.socket"
BY_NAME = "dbus-org.freedesktop.machine1.service"
ME = os.getpid()


class Host:
    """A service manager, and a moored.

    Attributes:
        where: all of it is.
        root: directory that has all files.
        active: units that run.
        machines: leaders of moored's machines, by name.
        published: machined gets them.
        reads: a directory of unit files that the manager reads.
        has_machined: there is one to be replaced.
        failure: of each call of systemctl.
    """

    def __init__(self, where: Whereabouts, root: Path) -> None:
        self.where = where
        self.root = root
        self.active = {OURS, SOCKET}
        self.machines: dict[str, int] = {}
        self.published = "true"
        self.reads = where.units
        self.has_machined = True
        self.failure: str | None = None

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        if self.failure is not None:
            if check:
                raise Failure(Exit.REFUSED, self.failure)
            return ""
        match arguments:
            case ("show", "--value", "--property=UnitPath"):
                return f"/run/systemd/x '{self.reads}' /usr/lib/systemd/user\n"
            case ("show", "--value", "--property=FragmentPath", unit):
                return f"/usr/lib/{unit}\n"
            case ("show", "--value", "--property=LoadState", unit):
                return "loaded\n" if self.has_machined or unit in {OURS, PLACE} else "not-found\n"
            case ("show", "--value", "--property=ControlGroup", _):
                return "\n"
            case ("is-active", unit):
                return "active\n" if unit in self.active else "inactive\n"
            case ("start", *units):
                self._start(units)
            case ("stop", *units):
                self.active.difference_update(units)
            case ("daemon-reload",):
                pass
            case _:
                raise AssertionError(arguments)
        return ""

    def _start(self, units: Iterable[str]) -> None:
        for unit in units:
            if unit in {MACHINED, SOCKET}:
                assert self.has_machined
                assert not os.path.lexists(self.where.units / unit), f"{unit} is masked"
            if unit == PLACE:
                assert OURS not in self.active, "a socket of a service that runs cannot be started"
                self.active -= {MACHINED, SOCKET}
            self.active.add(unit)

    def list_machines(self, address: Address) -> list[bytes]:
        assert address == self.where.address
        published = self.published == "true" and PLACE not in self.active
        return [
            json.dumps(
                {
                    "machine": {
                        "name": name,
                        "phase": "running",
                        "leader": {"pid": leader},
                        "published": published,
                    }
                }
            ).encode()
            for name, leader in self.machines.items()
        ]

    def call(self, address: Address, method: str, parameters: object) -> bytes:
        assert (address, method, parameters) == (self.where.address, "DescribeConfiguration", {})
        return json.dumps({"options": [{"name": "publish", "value": self.published}]}).encode()

    def information(self, address: Address, *, timeout: float) -> Information:
        assert address == Address(str(self.where.socket), None)
        return Information("moored" if PLACE in self.active else "systemd", "1", [])

    def files(self) -> dict[str, str]:
        """Everything that there is, and where links lead."""
        return {str(path): os.readlink(path) if path.is_symlink() else "" for path in self.root.rglob("*")}

    def has_with_machined(self, name: str, leader: int = ME) -> None:
        self.where.machines.mkdir(parents=True, exist_ok=True)
        (self.where.machines / name).write_text(f"# Kept.\nNAME={name}\nLEADER={leader}\n")

    def on(self, *, images: bool = False) -> None:
        take(placing.going_on(self.where, images=images))

    def off(self, *, machines: bool = False) -> None:
        take(placing.going_off(self.where, machines=machines))


def take(steps: Iterable[Step]) -> None:
    for step in steps:
        step.do()


def of_user(root: Path, **variables: str) -> Whereabouts:
    runtime = root / "run"
    runtime.mkdir(exist_ok=True)
    (root / "home").mkdir(exist_ok=True)
    environment = {"XDG_RUNTIME_DIR": str(runtime), "HOME": str(root / "home"), **variables}
    return Whereabouts.of(
        Address(str(runtime / "moorage/io.moorage.Machine"), "systemctl --user"), environment
    )


def of_system(root: Path) -> Whereabouts:
    where = Whereabouts.of(Address("/run/moorage/io.moorage.Machine", "systemctl"))

    def below(path: Path) -> Path:
        return root / path.relative_to("/")

    return dataclasses.replace(
        where,
        note=below(where.note), lock=below(where.lock), units=below(where.units),
        runtime_units=below(where.runtime_units), machines=below(where.machines),
        images=tuple(map(below, where.images)),
    )  # fmt: skip


Attach = Callable[[Whereabouts], Host]


@pytest.fixture
def attach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attach:
    """Return what makes a host for some whereabouts."""

    def attached(where: Whereabouts) -> Host:
        host = Host(where, tmp_path)
        monkeypatch.setattr(Whereabouts, "systemctl", host.systemctl)
        for name in ("list_machines", "call", "information"):
            monkeypatch.setattr(service, name, getattr(host, name))
        return host

    return attached


@pytest.fixture(params=[of_system, of_user])
def host(request: pytest.FixtureRequest, tmp_path: Path, attach: Attach) -> Host:
    """One of the system, and one of a user."""
    return attach(request.param(tmp_path))


@pytest.fixture
def hers(tmp_path: Path, attach: Attach) -> Host:
    return attach(of_user(tmp_path))


def refused(action: Callable[[], None], *words: str, status: Exit = Exit.REFUSED) -> None:
    with pytest.raises(Failure) as caught:
        action()
    for each in words:
        assert each in str(caught.value)
    assert caught.value.status is status


def assert_on(host: Host) -> None:
    assert placing.is_on(host.where)
    assert host.active == {OURS, PLACE}
    links = {
        str(path.relative_to(host.where.units)): os.readlink(path)
        for path in host.where.units.rglob("*")
        if path.is_symlink()
    }
    assert links == {
        MACHINED: "/dev/null",
        SOCKET: "/dev/null",
        BY_NAME: f"/usr/lib/{OURS}",
        f"sockets.target.wants/{PLACE}": f"/usr/lib/{PLACE}",
    }


# Where things are


def test_the_whereabouts_of_a_user(tmp_path: Path) -> None:
    where = of_user(tmp_path)
    home, runtime = tmp_path / "home", tmp_path / "run"
    assert where.note == home / ".config/moorage/in-place.json"
    assert where.units == home / ".config/systemd/user"
    assert where.socket == runtime / "systemd/machine/io.systemd.Machine"
    assert where.machines == runtime / "systemd/machines"
    assert where.images == (
        runtime / "machines",
        home / ".local/state/machines",
        home / ".local/lib/machines",
    )


def test_the_users_directories_are_those_of_the_environment(tmp_path: Path) -> None:
    where = of_user(tmp_path, XDG_CONFIG_HOME="/srv/config", XDG_STATE_HOME="/srv/state")
    assert where.note == Path("/srv/config/moorage/in-place.json")
    assert where.units == Path("/srv/config/systemd/user")
    assert Path("/srv/state/machines") in where.images
    assert (
        tmp_path / "home/.local/state/machines" in where.images
    )  # for a manager that does not know of the other


def test_relative_directories_are_ignored(tmp_path: Path) -> None:
    assert of_user(tmp_path, XDG_CONFIG_HOME="config", XDG_STATE_HOME="") == of_user(tmp_path)


def test_a_relative_runtime_directory_is_refused(tmp_path: Path) -> None:
    refused(lambda: void(of_user(tmp_path, XDG_RUNTIME_DIR="run")), "$XDG_RUNTIME_DIR", status=Exit.USAGE)


def void(_: object) -> None:
    """Ignore a value."""


def test_an_unset_home_is_that_of_the_password_file(tmp_path: Path) -> None:
    assert of_user(tmp_path, HOME="").note == Path("~/.config/moorage/in-place.json").expanduser()


# One at a time


def test_one_at_a_time(hers: Host) -> None:
    with placing.alone(hers.where):
        refused(lambda: entered(hers.where), "Another", "under way")
    entered(hers.where)


def test_whoever_has_ended_hinders_nobody(hers: Host) -> None:
    with pytest.raises(KeyboardInterrupt), placing.alone(hers.where):
        raise KeyboardInterrupt
    entered(hers.where)


def test_a_lock_is_no_link(hers: Host, tmp_path: Path) -> None:
    hers.where.lock.symlink_to(tmp_path / "elsewhere")
    refused(lambda: entered(hers.where), "lock", str(hers.where.lock))
    assert not (tmp_path / "elsewhere").exists()


def test_without_a_manager_there_is_nothing_to_lock(hers: Host) -> None:
    hers.where.lock.parent.rmdir()
    hers.failure = "Failed to connect to bus"
    refused(lambda: entered(hers.where), "loginctl enable-linger", status=Exit.NO_SERVICE)


def test_only_its_owner_can_hold_a_lock(hers: Host) -> None:
    entered(hers.where)
    assert hers.where.lock.stat().st_mode & 0o777 == 0o600


def entered(where: Whereabouts) -> None:
    with placing.alone(where):
        pass


# There and back


def test_on_and_off_leave_everything_as_it_was(host: Host) -> None:
    before, active = host.files(), set(host.active)
    host.on()
    assert_on(host)
    host.off()
    assert (host.files(), host.active) == (before, active)


def test_what_was_there_before_is_there_again(host: Host) -> None:
    host.where.units.mkdir(parents=True)
    (host.where.units / BY_NAME).symlink_to("/srv/other.service")
    (host.where.units / "mine.service").touch()
    before = host.files()
    host.on()
    host.off()
    assert host.files() == before


def test_directories_that_others_use_meanwhile_stay(host: Host) -> None:
    host.on()
    (host.where.units / "mine.service").touch()
    host.off()
    assert [path.name for path in host.where.units.iterdir()] == ["mine.service"]
    assert not host.where.note.parent.exists()


def test_machined_that_is_gone_meanwhile_does_not_hinder(host: Host) -> None:
    before = host.files()
    host.on()
    host.has_machined = False
    host.off()
    assert (host.files(), host.active) == (before, {OURS})


def test_off_without_on(host: Host) -> None:
    assert list(placing.going_off(host.where, machines=False)) == []


def test_what_is_interrupted_is_completed_or_undone(host: Host) -> None:
    before, active = host.files(), set(host.active)
    for count in itertools.count():
        for again in (host.on, host.off):
            steps = list(placing.going_on(host.where, images=False))
            take(steps[:count])
            again()
            if again == host.on:
                assert_on(host)
                host.off()
            assert (host.files(), host.active) == (before, active), (count, again)
        if count >= len(steps):
            break


def test_a_way_back_that_is_interrupted_is_completed_or_undone(host: Host) -> None:
    before, active = host.files(), set(host.active)
    for count in itertools.count():
        for again in (host.off, host.on):
            host.on()
            steps = list(placing.going_off(host.where, machines=False))
            take(steps[:count])
            again()
            if again == host.on:
                assert_on(host)
                host.off()
            assert (host.files(), host.active) == (before, active), (count, again)
        if count >= len(steps):
            break


def test_it_is_noted_before_it_is_changed(host: Host) -> None:
    steps = iter(placing.going_on(host.where, images=False))
    next(steps).do()
    links = json.loads(host.where.note.read_bytes())["links"]
    assert not any(map(os.path.lexists, links))
    next(steps).do()
    assert sum(map(os.path.lexists, links)) == 1


def test_a_note_is_on_the_disk_before_it_has_its_name(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a host that loses its power then may come up with an empty one, which neither way goes on from."""
    synced: list[int] = []
    sync, replace = os.fsync, Path.replace

    def noted(descriptor: int) -> None:
        sync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    def renamed(path: Path, target: Path) -> Path:
        if target == host.where.note:
            assert path.stat().st_ino in synced
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", renamed)
    host.on()
    host.off()


def test_a_note_of_an_earlier_version(host: Host) -> None:
    host.on()
    note = json.loads(host.where.note.read_bytes())
    del note["directories"]
    host.where.note.write_text(json.dumps(note))
    host.off()
    assert not any(path.is_symlink() for path in host.root.rglob("*"))


def test_directories_of_the_user_may_be_links(tmp_path: Path, attach: Attach) -> None:
    dotfiles = tmp_path / "dotfiles/config"
    dotfiles.mkdir(parents=True)
    where = of_user(tmp_path)
    (tmp_path / "home/.config").symlink_to(dotfiles)
    host = attach(where)
    host.reads = dotfiles / "systemd/user"
    before = host.files()
    host.on()
    assert (dotfiles / "systemd/user" / MACHINED).is_symlink()
    host.off()
    assert host.files() == before


# What is refused


def assert_unchanged(host: Host, action: Callable[[], None], *words: str) -> None:
    before, active = host.files(), set(host.active)
    refused(action, *words)
    assert (host.files(), host.active) == (before, active)


def test_machines_that_only_machined_has(hers: Host) -> None:
    hers.has_with_machined("lost")
    hers.has_with_machined("known")
    hers.machines["known"] = ME
    hers.machines["lost"] = 1
    assert_unchanged(hers, hers.on, "has as lost,", "have to end first")
    hers.has_with_machined("lost", leader=2**22 + 1)  # there is no such process
    hers.on()


def test_a_mask_of_hers(hers: Host) -> None:
    for directory in (hers.where.units, hers.where.runtime_units):
        directory.mkdir(parents=True)
        (directory / MACHINED).symlink_to("/dev/null")
        assert_unchanged(hers, hers.on, "masked already", "systemctl --user unmask")
        assert_unchanged(hers, hers.off, "not by this command", "systemctl --user unmask")
        (directory / MACHINED).unlink()
    hers.on()


def test_images(host: Host) -> None:
    for directory in host.where.images:
        (directory / "image").mkdir(parents=True)
        assert_unchanged(host, host.on, f"1 images in {directory}", "--without-images")
        (directory / "image").rename(directory / ".hidden")
    host.on()


def test_images_do_not_matter_where_nobody_keeps_them(hers: Host) -> None:
    hers.has_machined = False
    hers.active = {OURS}
    (hers.where.images[0] / "image").mkdir(parents=True)
    before = hers.files()
    hers.on()
    assert_on(hers)
    hers.off()
    assert (hers.files(), hers.active) == (before, {OURS})


def test_images_do_not_matter_if_it_is_said_so(host: Host) -> None:
    (host.where.images[0] / "image").mkdir(parents=True)
    host.on(images=True)
    assert_on(host)


def test_a_unit_file_of_her_own(hers: Host) -> None:
    hers.where.units.mkdir(parents=True)
    (hers.where.units / SOCKET).write_text("[Socket]\n")
    assert_unchanged(hers, hers.on, "is a file of your own, which would be lost")


@pytest.mark.parametrize("path", [".config", ".config/systemd", ".config/systemd/user", ".config/moorage"])
def test_a_directory_that_cannot_be_made(hers: Host, path: str) -> None:
    directory = hers.root / "home" / path
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.symlink_to("gone")
    assert_unchanged(hers, hers.on, f"{directory} is a link to gone, which is not there")
    directory.unlink()
    directory.touch()
    assert_unchanged(hers, hers.on, str(directory))


def test_a_manager_that_reads_other_directories(hers: Host) -> None:
    hers.reads = Path("/home/somebody/.config/systemd/user")
    for action in (hers.on, hers.off):
        assert_unchanged(hers, action, "reads no unit files in", "$XDG_CONFIG_HOME")


def test_no_manager(hers: Host) -> None:
    hers.failure = "Failed to connect to user scope bus via local transport: No such file or directory"
    for action in (hers.on, hers.off):
        refused(action, "Failed to connect", "loginctl enable-linger", status=Exit.NO_SERVICE)


@pytest.mark.parametrize("text", ["", "[]", '{"links": {"a": 1}, "active": []}'])
def test_a_note_that_makes_no_sense(host: Host, text: str) -> None:
    host.where.note.parent.mkdir(parents=True)
    host.where.note.write_text(text)
    for action in (host.on, host.off):
        assert_unchanged(host, action, f"{host.where.note} cannot be read")


def test_machines_that_machined_would_not_have(hers: Host) -> None:
    hers.on()
    hers.machines = {"new": ME, "old": ME}
    hers.has_with_machined("old")
    assert_unchanged(hers, hers.off, "moored has new,", "--without-machines")
    hers.off(machines=True)
    assert not hers.where.note.exists()


def test_machines_that_are_not_published(tmp_path: Path, attach: Attach) -> None:
    host = attach(of_system(tmp_path))
    host.on()
    host.machines = {"new": ME}
    host.published = "false"
    assert_unchanged(host, host.off, "they are not published", "--without-machines")
    host.off(machines=True)
    assert not host.where.note.exists()


def test_a_step_that_fails_says_where(hers: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, *_: object, **__: object) -> None:
        raise OSError(30, os.strerror(30), str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    refused(hers.on, f"write {hers.where.note}", "Read-only file system", f"({hers.where.note.parent})")
