"""Into the place of a user's machined and back: a real manager, and from systemd 258 on a real machined."""

import json
import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import her_manager
import pytest
from authority import ALICE, asks, wait_for
from her_manager import HOME, RUNTIME, as_her, units
from moored import OURS, THEIRS, UNTIL_SECONDS, Processes, control_group, run

pytestmark = pytest.mark.system_instance("it becomes that user by itself")

HERS = f"{RUNTIME}/moorage/io.moorage.Machine"
PLACE = str(RUNTIME / "systemd/machine/io.systemd.Machine")
FILES = RUNTIME / "systemd/machines"
CONFIG = HOME / ".config"
NOTE = CONFIG / "moorage/in-place.json"
UNITS = CONFIG / "systemd/user"
MACHINED = ("systemd-machined.service", "systemd-machined.socket")
NAME = "org.freedesktop.machine1"
SYSTEMD = int(run("systemctl", "--version").split()[1])
HAS_MACHINED = SYSTEMD >= 258
NEWEST = 262
"""The one whose machinectl has ``--user``."""


@pytest.fixture(scope="module")
def manager() -> Generator[None]:
    her_manager.start()
    yield
    her_manager.stop()


@pytest.fixture
def hers(spawn: Processes, manager: None) -> Generator[Processes]:
    """Start processes; afterwards everything is as it was."""
    before = facts()
    yield spawn
    spawn.bury()
    wait_for(lambda: not units("machine-*"), "no unit of a machine in her manager")
    if NOTE.exists():
        in_place("off")
    assert facts() == before


@pytest.fixture
def place(hers: Processes) -> Processes:
    """Put hers in the place of her machined."""
    in_place("on")
    return hers


def in_place(*arguments: str) -> str:
    done = as_her("moorctl", "--user", "in-place", *arguments)
    assert done.returncode == 0, done
    return done.stdout


def refused(*arguments: str, status: int = 1) -> str:
    before = facts()
    done = as_her("moorctl", "--user", "in-place", *arguments)
    assert done.returncode == status, done
    assert facts() == before
    return done.stderr


def facts() -> dict[str, str]:
    """What her configuration has, with what links lead to, and which unit listens in machined's place."""
    found = {str(path): os.readlink(path) if path.is_symlink() else "" for path in CONFIG.rglob("*")}
    for unit in (MACHINED[1], "moored-machined.socket", "moored.socket"):
        argv = (*her_manager.SYSTEMCTL, "is-active", unit)
        found[unit] = subprocess.run(argv, check=False, capture_output=True, text=True).stdout.strip()
    return found


def listens() -> str:
    """Who answers there."""
    done = as_her("varlinkctl", "info", "--json=short", PLACE)
    return json.loads(done.stdout)["product"] if done.returncode == 0 else ""


def owner() -> str:
    """Unit of the process that has machined's name on her bus when it is called; empty if none has."""
    on_her_bus("ListMachines")
    bus = ("busctl", "--user", "--json=short", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus")
    done = as_her(*bus, "GetConnectionUnixProcessID", "s", NAME)
    return Path(control_group(json.loads(done.stdout)["data"][0])).name if done.returncode == 0 else ""


def on_her_bus(member: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    call = ("busctl", "--user", "--json=short", "call", NAME, "/org/freedesktop/machine1")
    return as_her(*call, f"{NAME}.Manager", member, *arguments)


def named_on_her_bus() -> list[str]:
    done = on_her_bus("ListMachines")
    assert done.returncode == 0, done.stderr
    return [each[0] for each in json.loads(done.stdout)["data"][0]]


def said(*arguments: str) -> list[str]:
    """Return the lines that her machinectl says."""
    done = as_her("machinectl", "--user", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def registers(leader: subprocess.Popen[Any], name: str = "web") -> None:
    """Register a machine with whoever listens there."""
    machine = {"name": name, "class": "vm", "leader": leader.pid, "allocateUnit": True}
    reply = asks(ALICE, f"{THEIRS}Register", machine, path=PLACE)
    assert "error" not in reply, reply
    wait_for(
        lambda: control_group(leader.pid).endswith(f"/machine-{name}.scope"),
        "which machined does not wait for",
    )


def assert_on() -> None:
    assert listens() == "moored"
    assert owner() == "moored.service"
    for unit in MACHINED:
        assert os.readlink(UNITS / unit) == "/dev/null"


def assert_off() -> None:
    assert not NOTE.exists()
    assert owner() == (MACHINED[0] if HAS_MACHINED else "")
    assert "moored" not in listens()
    assert bool(listens()) == HAS_MACHINED


def test_a_dry_run_changes_nothing(hers: Processes) -> None:
    before = facts()
    done = as_her("moorctl", "--user", "in-place", "on", "--dry-run")
    assert done.returncode == 0, done
    assert f"ln -sf /dev/null {UNITS}/{MACHINED[0]}" in done.stdout
    assert "systemctl --user daemon-reload" in done.stdout
    assert ("There is no systemd-machined here" in done.stderr) == (not HAS_MACHINED)
    assert facts() == before
    assert_off()


def test_there_and_back(hers: Processes) -> None:
    in_place("on")
    assert_on()
    assert in_place("on") == "moored is in the place of systemd-machined already.\n"
    assert named_on_her_bus() == []  # not even the host: that is the system's
    nothing = on_her_bus("GetMachine", "s", ".host")
    assert (nothing.returncode, "No machine '.host' known" in nothing.stderr) == (1, True), nothing

    leader, other = hers(user=ALICE), hers(user=ALICE)
    registers(leader)
    created = on_her_bus("CreateMachine", "sayssusa(sv)", "box", "0", "", "vm", str(other.pid), "", "0")
    assert created.returncode == 0, created.stderr
    assert units("machine-*.scope") == ["machine-box.scope", "machine-web.scope"]
    assert sorted(named_on_her_bus()) == ["box", "web"]
    shown = as_her("varlinkctl", "call", "--json=short", PLACE, f"{THEIRS}List", '{"name": "web"}')
    assert json.loads(shown.stdout)["leader"]["pid"] == leader.pid
    if SYSTEMD >= NEWEST:
        assert {line.split()[0] for line in said("list", "--no-legend")} == {"box", "web"}
        assert said("show", "web", "--property=Leader", "--value") == [str(leader.pid)]
        said("terminate", "web")
    else:
        assert on_her_bus("TerminateMachine", "s", "web").returncode == 0
    assert leader.wait(UNTIL_SECONDS) == -15
    assert on_her_bus("KillMachine", "ssi", "box", "leader", "9").returncode == 0
    assert other.wait(UNTIL_SECONDS) == -9
    wait_for(lambda: named_on_her_bus() == [])

    in_place("off")
    assert_off()
    assert in_place("off") == "moored is not in the place of systemd-machined.\n"


def test_it_stays_when_her_manager_starts_again(place: Processes) -> None:
    run("systemctl", "restart", f"user@{ALICE}.service")
    assert_on()
    in_place("off")
    run("systemctl", "restart", f"user@{ALICE}.service")
    assert_off()


def test_machines_that_machined_would_not_have(place: Processes) -> None:
    leader = place(user=ALICE)
    registers(leader)
    assert "moored has web, which that of a user does not publish" in refused("off")
    in_place("off", "--without-machines")
    assert_off()
    assert leader.poll() is None
    assert "error" not in asks(ALICE, f"{OURS}Stop", {"name": "web"}, path=HERS)
    assert leader.wait(UNTIL_SECONDS) == -15


def test_machines_of_machined(hers: Processes) -> None:
    if not HAS_MACHINED:
        assert not FILES.exists()
        return
    leader = hers(user=ALICE)
    registers(leader)
    assert (FILES / "web").exists()
    assert "moored does not have what machined has as web" in refused("on")
    leader.kill()
    leader.wait(UNTIL_SECONDS)
    wait_for(lambda: not (FILES / "web").exists(), "machined has none")
    in_place("on")
    assert_on()


def test_machines_that_both_have_stay(hers: Processes) -> None:
    if not HAS_MACHINED:
        assert not FILES.exists()
        return
    leader = hers(user=ALICE)
    registers(leader)
    machine = {"name": "web", "class": "vm", "leader": {"pid": leader.pid}, "allocateUnit": False}
    reply = asks(ALICE, f"{OURS}Register", machine, path=HERS)
    assert "error" not in reply, reply
    in_place("on")
    assert named_on_her_bus() == ["web"]
    in_place("off")
    assert owner() == MACHINED[0]
    assert named_on_her_bus() == ["web"]
    assert on_her_bus("TerminateMachine", "s", "web").returncode == 0
    assert leader.wait(UNTIL_SECONDS) == -15


@pytest.mark.parametrize("directory", [HOME / ".local/state/machines", RUNTIME / "machines"])
def test_images(hers: Processes, directory: Path) -> None:
    (directory / "image").mkdir(parents=True)
    try:
        if HAS_MACHINED:
            assert f"1 images in {directory}" in refused("on")
            in_place("on", "--without-images")
        else:
            in_place("on")
        assert_on()
    finally:
        (directory / "image").rmdir()


def test_work_under_way(hers: Processes) -> None:
    if not HAS_MACHINED:
        assert "LoadState=not-found" in run(*her_manager.SYSTEMCTL, "show", MACHINED[0])
        return
    run(*her_manager.SYSTEMCTL, "start", MACHINED[0])
    group = run(*her_manager.SYSTEMCTL, "show", "--property=ControlGroup", "--value", MACHINED[0]).strip()
    works = hers(user=ALICE)
    Path(f"/sys/fs/cgroup{group}/cgroup.procs").write_text(f"{works.pid}")
    assert "machined is copying, or works on an image (1 processes)" in refused("on")


@pytest.mark.parametrize("runtime", [(), ("--runtime",)])
def test_a_mask_of_her_own(hers: Processes, runtime: tuple[str, ...]) -> None:
    run(*her_manager.SYSTEMCTL, "mask", *runtime, MACHINED[0])
    try:
        assert "systemctl --user unmask" in refused("on")
        assert "not by this command" in refused("off")
    finally:
        run(*her_manager.SYSTEMCTL, "unmask", *runtime, MACHINED[0])


@pytest.mark.parametrize("runs", [False, True])
def test_a_mask_of_the_administrators_stays(hers: Processes, runs: bool) -> None:
    if HAS_MACHINED:
        run(*her_manager.SYSTEMCTL, "start" if runs else "stop", MACHINED[0])
    run("systemctl", "--global", "mask", MACHINED[0])
    try:
        in_place("on")
        assert_on()
        in_place("off")
        assert os.readlink(f"/etc/systemd/user/{MACHINED[0]}") == "/dev/null"
    finally:
        run("systemctl", "--global", "unmask", MACHINED[0])
        run(*her_manager.SYSTEMCTL, "daemon-reload")
        if HAS_MACHINED:
            run(*her_manager.SYSTEMCTL, "start", MACHINED[1])


@contextmanager
def home_is_read_only() -> Generator[None]:
    run("mount", "--bind", "-o", "ro", str(HOME), str(HOME))
    try:
        yield
    finally:
        run("umount", str(HOME))


def test_a_home_that_cannot_be_written_to(hers: Processes) -> None:
    with home_is_read_only():
        assert "Read-only file system" in refused("on")


@contextmanager
def moved(path: Path, to: Path) -> Generator[None]:
    """Have a link at a path, and what was there elsewhere."""
    path.rename(to)
    path.symlink_to(to)
    try:
        yield
    finally:
        path.unlink()
        to.rename(path)


def test_her_configuration_is_elsewhere_by_a_link(hers: Processes) -> None:
    with moved(CONFIG, HOME / "dotfiles"):
        in_place("on")
        assert_on()
        in_place("off")
        assert_off()


def test_a_manager_that_would_not_read_it(hers: Processes) -> None:
    elsewhere = her_manager.environment() | {"XDG_CONFIG_HOME": "/srv/config"}
    argv = ("moorctl", "--user", "in-place", "on")
    for environment in (elsewhere, her_manager.environment() | {"HOME": "/srv"}):
        done = subprocess.run(
            argv, user=ALICE, group=ALICE, extra_groups=(), env=environment, check=False, capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 1, done
        assert "reads no unit files in" in done.stderr


def test_no_session(hers: Processes) -> None:
    environment = her_manager.environment()
    del environment["XDG_RUNTIME_DIR"]
    for variables, status, words in (
        (environment, 2, f"XDG_RUNTIME_DIR=/run/user/{ALICE}"),
        (environment | {"XDG_RUNTIME_DIR": "/run/user/12345"}, 5, "loginctl enable-linger"),
    ):
        done = subprocess.run(
            ["moorctl", "--user", "in-place", "on"], user=ALICE, group=ALICE, extra_groups=(), env=variables,
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == status, done
        assert words in " ".join(done.stderr.split()), done


@pytest.mark.parametrize("after", [MACHINED[0], "daemon-reload"])
def test_what_is_interrupted_is_completed(hers: Processes, after: str) -> None:
    for command, holds in (("on", assert_on), ("off", assert_off)):
        started = subprocess.Popen(
            ["moorctl", "--user", "in-place", command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, user=ALICE, group=ALICE, extra_groups=(), env=her_manager.environment(),
        )  # fmt: skip
        assert started.stdout is not None
        next(line for line in started.stdout if after in line)
        started.kill()
        started.communicate()
        assert NOTE.exists()
        in_place(command)
        holds()


def test_without_a_bus_the_socket_is_served(hers: Processes) -> None:
    bus = [unit for unit in ("dbus.socket", "dbus.service", "dbus-broker.service") if units(unit)]
    run(*her_manager.SYSTEMCTL, "mask", "--runtime", *bus)
    run("systemctl", "restart", f"user@{ALICE}.service")
    try:
        (RUNTIME / "bus").unlink(missing_ok=True)
        in_place("on")
        assert listens() == "moored"
        in_place("off")
    finally:
        her = ("setpriv", f"--reuid={ALICE}", f"--regid={ALICE}", "--clear-groups")
        run(*her, "env", f"XDG_RUNTIME_DIR={RUNTIME}", "systemctl", "--user", "unmask", "--runtime", *bus)
        run("systemctl", "restart", f"user@{ALICE}.service")
