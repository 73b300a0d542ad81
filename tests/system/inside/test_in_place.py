"""Into machined's place and back, with a container of systemd-nspawn that runs through it, and machinectl."""

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import trio
from box import booted, shell
from moored import ALONE, UNTIL_SECONDS, main_pid, members, run, show, until

pytestmark = pytest.mark.system_instance("the instance of a user does not take machined's place")

NOTE = Path("/etc/moorage/in-place.json")
LOCK = Path("/run/moorage-in-place.lock")
UNITS = Path("/etc/systemd/system")
IMAGES = Path("/var/lib/machines")
MACHINED = "systemd-machined.service"
NAME = "org.freedesktop.machine1"


def moorctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["moorctl", *arguments], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def owner() -> int:
    """PID of the process that has machined's name; 0 for none."""
    done = subprocess.run(
        ["busctl", "--json=short", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus",
         "GetConnectionUnixProcessID", "s", NAME],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    return 0 if done.returncode else json.loads(done.stdout)["data"][0]


def machines(*of: str) -> set[str]:
    """Names of the machines that a program lists."""
    listed = run(*of, "list", *(["--no-legend"] if of[0] == "machinectl" else ["--quiet"]))
    return {line.split()[0] for line in listed.splitlines() if line and not line.startswith("NAME")}


def called(member: str, *arguments: str) -> None:
    run("busctl", "call", NAME, "/org/freedesktop/machine1", f"{NAME}.Manager", member, *arguments)


def enabled() -> dict[str, str]:
    """What of the unit files of the host is its own."""
    links = [path for path in (*UNITS.iterdir(), *UNITS.glob("*.wants/*")) if path.is_symlink()]
    return {str(path): os.readlink(path) for path in links}


@pytest.fixture(scope="module")
def before(beside: None) -> dict[str, str]:
    return enabled()


@pytest.fixture(scope="module")
def box(before: dict[str, str]) -> Generator[int]:
    """A container that machined has."""
    run("systemctl", "start", MACHINED)
    with booted() as pid:
        yield pid
    assert moorctl("in-place", "off").returncode == 0


INTO_BOX = (
    ("GetMachine", "s", "box"),
    ("GetMachineOSRelease", "s", "box"),
    ("GetMachineUIDShift", "s", "box"),
    ("GetMachineAddresses", "s", "box"),
    ("GetMachineSSHInfo", "s", "box"),
    ("MapFromMachineUser", "su", "box", "7"),
    ("MapFromMachineGroup", "su", "box", "7"),
    ("MapToMachineUser", "u", "70000"),
    ("OpenMachineShell", "sssasas", "box", "", "bin/sh", "0", "0"),
    ("OpenMachineShell", "sssasas", "box", "", "", "0", "1", "A"),
    ("CopyToMachine", "sss", "box", "etc", "/etc"),
    ("CopyFromMachine", "sss", "box", "/etc", "etc"),
    ("CopyFromMachineWithFlags", "ssst", "box", "/etc", "/etc", "2"),
    ("CopyFromMachine", "sss", "box", "/no/such/file", "/tmp/file"),
    ("BindMountMachine", "sssbb", "box", "/etc/../etc", "/mnt", "false", "false"),
    ("BindMountMachine", "sssbb", "box", "/no/such/file", "/mnt", "false", "false"),
    ("KillMachine", "ssi", "box", "leader", "18"),
)


def answers() -> list[tuple[int, str]]:
    """What whoever has the name says of the container."""
    call = ("busctl", "--json=short", "call", NAME, "/org/freedesktop/machine1", f"{NAME}.Manager")
    done = [subprocess.run([*call, *each], check=False, capture_output=True, text=True) for each in INTO_BOX]
    return [(each.returncode, each.stdout) for each in done]


@pytest.fixture(scope="module")
def of_machined(box: int) -> list[tuple[int, str]]:
    return answers()


@pytest.fixture(scope="module")
def place(box: int, of_machined: list[tuple[int, str]]) -> int:
    """The same with moored in machined's place since then."""
    done = moorctl("in-place", "on")
    assert done.returncode == 0, done.stderr
    return box


def test_a_dry_run_changes_nothing(box: int, before: dict[str, str]) -> None:
    done = moorctl("in-place", "on", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"ln -sf /dev/null {UNITS / MACHINED}" in done.stdout
    assert enabled() == before
    assert not NOTE.exists()
    assert owner() != main_pid()


def test_images_are_a_reason_to_refuse(box: int, before: dict[str, str]) -> None:
    image = IMAGES / "image"
    image.mkdir(parents=True)
    try:
        done = moorctl("in-place", "on")
        assert done.returncode == 1
        assert "1 images" in done.stderr
        assert moorctl("in-place", "on", "--without-images", "--dry-run").returncode == 0
    finally:
        image.rmdir()
    assert enabled() == before


COPIED = 20_000
"""Files that take machined a second to copy: it is stopped in the middle."""


def copying() -> list[int]:
    """PIDs of what machined has beside itself."""
    found = show(MACHINED, "ControlGroup", "MainPID")
    return [pid for pid in members(found["ControlGroup"]) if pid != int(found["MainPID"])]


def test_a_copy_under_way_is_a_reason_to_refuse(box: int, before: dict[str, str], tmp_path: Path) -> None:
    source = tmp_path / "many"
    source.mkdir()
    for number in range(COPIED):
        (source / str(number)).touch()
    copy = subprocess.Popen(["machinectl", "copy-to", "box", str(source), "/var/many"])
    children = trio.run(lambda: until(copying, "machined copies"))  # one more before 258, in the container
    for child in children:
        os.kill(child, signal.SIGSTOP)
    try:
        assert copy.poll() is None
        done = moorctl("in-place", "on")
        assert done.returncode == 1
        assert "machined is copying" in done.stderr
        assert not NOTE.exists()
    finally:
        for child in children:
            os.kill(child, signal.SIGCONT)
    assert copy.wait(UNTIL_SECONDS) == 0
    trio.run(lambda: until(lambda: not copying(), "nothing is copied any more"))
    assert moorctl("in-place", "on", "--dry-run").returncode == 0
    assert enabled() == before


def test_a_mask_of_the_administrators_is_a_reason_to_refuse(box: int) -> None:
    run("systemctl", "mask", MACHINED)
    try:
        for command in ("on", "off"):
            done = moorctl("in-place", command)
            assert done.returncode == 1
            assert "unmask" in done.stderr
    finally:
        run("systemctl", "unmask", MACHINED)


def test_machines_that_would_be_lost_are_a_reason_to_refuse(box: int, before: dict[str, str]) -> None:
    ALONE.parent.mkdir(parents=True, exist_ok=True)
    ALONE.write_text("adopt = false\n")
    run("systemctl", "restart", "moored.service")
    sleeper = subprocess.Popen(["sleep", "infinity"])
    try:
        called("CreateMachine", "sayssusa(sv)", "lost", "0", "", "vm", str(sleeper.pid), "", "0")
        done = moorctl("in-place", "on")
        assert done.returncode == 1
        assert "has as lost" in done.stderr
        run("machinectl", "terminate", "lost")
        sleeper.wait()
    finally:
        ALONE.unlink()
        run("systemctl", "restart", "moored.service")
    assert enabled() == before


def test_only_root_may(box: int) -> None:
    done = subprocess.run(
        ["moorctl", "in-place", "on"], user=65534, check=False, capture_output=True, text=True
    )
    assert done.returncode == 4, done.stderr
    assert not NOTE.exists()


@pytest.mark.parametrize("state", ["on", "off"])
def test_one_at_a_time(box: int, before: dict[str, str], state: str) -> None:
    """The other one may be in the middle of something that this one would undo, or take for complete."""
    with LOCK.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = moorctl("in-place", state)
        assert (done.returncode, done.stdout) == (1, "")
        assert "Another `moorctl in-place` is under way." in done.stderr
        assert moorctl("in-place", state, "--dry-run").returncode == 0
    assert enabled() == before
    assert not NOTE.exists()


def test_machines_go_on_and_are_moored_s(place: int) -> None:
    assert run("systemctl", "is-active", "nspawn-box.service").strip() == "active"
    assert subprocess.run(["systemctl", "is-active", "--quiet", MACHINED], check=False).returncode != 0
    assert machines("moorctl") == {"box"}
    assert machines("machinectl") == {"box"}
    assert owner() == main_pid()
    assert moorctl("in-place", "on").stdout == "moored is in the place of systemd-machined already.\n"
    done = run(
        "busctl",
        "call",
        NAME,
        "/org/freedesktop/machine1",
        f"{NAME}.Manager",
        "GetMachineByPID",
        "u",
        str(place),
    )
    assert done == 'o "/org/freedesktop/machine1/machine/box"\n'


def test_calls_get_the_same_answers(place: int, of_machined: list[tuple[int, str]]) -> None:
    different = [
        (call, ours, theirs)
        for call, ours, theirs in zip(INTO_BOX, answers(), of_machined, strict=True)
        if ours != theirs
    ]
    assert different == []


def test_machinectl_looks_at_it(place: int) -> None:
    status = run("machinectl", "status", "box")
    assert f"Leader: {place} (systemd)" in status
    assert "OS: Debian" in status
    shown = dict(line.split("=", 1) for line in run("machinectl", "show", "box").splitlines())
    assert shown["Leader"] == str(place)
    assert shown["Class"] == "container"
    assert shown["Service"] == "systemd-nspawn"


def test_machinectl_opens_a_shell(place: int) -> None:
    done = shell("box", "/bin/sh", "-c", "echo it is $(cat /proc/1/cmdline | tr '\\0' ' ')")
    assert "it is /usr/lib/systemd/systemd" in done.stdout


def test_machinectl_copies_and_mounts(place: int, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("and back\n")
    run("machinectl", "copy-to", "box", str(tmp_path / "there"), "/root/there")
    run("machinectl", "copy-from", "box", "/root/there", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "and back\n"
    shared = Path("/var/shared")
    shared.mkdir(exist_ok=True)
    (shared / "seen").touch()
    run("machinectl", "bind", "--mkdir", "box", str(shared), "/mnt/shared")
    assert "seen" in shell("box", "/bin/ls", "/mnt/shared").stdout


def runs_in(name: str) -> bool:
    said = run(
        "systemd-run", f"--machine={name}", "--wait", "--pipe", "--quiet", "/bin/cat", "/proc/1/cmdline"
    )
    return said.startswith("/usr/lib/systemd/systemd")


def test_systemd_run_runs_in_it(place: int) -> None:
    assert runs_in("box")


def test_machinectl_logs_in(place: int) -> None:
    # No getty is started where these units are masked, as in this image: machined answers the same.
    done = subprocess.run(
        ["machinectl", "login", "box"],
        check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30,
    )  # fmt: skip
    assert "Failed to get login PTY" in done.stderr
    assert "masked" in done.stderr


def test_machinectl_signals_it(place: int) -> None:
    whom = "--kill-whom" if b"--kill-whom" in Path("/usr/bin/machinectl").read_bytes() else "--kill-who"
    run("machinectl", "kill", f"{whom}=leader", "--signal=SIGCONT", "box")
    done = subprocess.run(
        ["machinectl", "kill", f"{whom}=nobody", "box"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1


def ends(name: str) -> None:
    trio.run(lambda: until(lambda: name not in machines("moorctl"), "it has ended"))


def journal(name: str, unit: str) -> str:
    """What the journal in a container has of a unit there; nothing as long as it cannot be read."""
    argv = ["journalctl", "-M", name, f"--unit={unit}", "--output=cat"]
    return subprocess.run(argv, check=False, capture_output=True, text=True).stdout


def unit_is_there(name: str) -> bool:
    return show(name, "ActiveState") == {"ActiveState": "active"}


def test_a_container_that_comes_later(place: int) -> None:
    with booted("second") as first:
        assert machines("machinectl") == {"box", "second"}
        assert runs_in("second")
        assert run("machinectl", "show", "second", "-P", "Service") == "systemd-nspawn\n"
        assert run("systemctl", "-M", "second", "show", "-P", "Virtualization") == "systemd-nspawn\n"
        speaks = ("systemd-run", "-M", "second", "--quiet", "--wait", "--unit=speaks", "echo", "from inside")
        run(*speaks)
        trio.run(lambda: until(lambda: "from inside" in journal("second", "speaks"), "its journal says it"))
        assert "systemd-nspawn" in shell("second", "/usr/bin/systemd-detect-virt").stdout
        run("machinectl", "reboot", "second")

        def again() -> bool:
            command = ["machinectl", "show", "second", "-P", "Leader"]
            leader = subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
            return leader.isdigit() and int(leader) != first

        trio.run(lambda: until(again, "it boots again"))
        trio.run(lambda: until(lambda: shell("second", "/bin/true").returncode == 0, "it has booted again"))
        run("machinectl", "poweroff", "second")
        ends("second")
        trio.run(lambda: until(lambda: not unit_is_there("nspawn-second.service"), "nspawn has ended"))
    assert machines("machinectl") == {"box"}


def test_machined_comes_back_with_all_machines(place: int, before: dict[str, str]) -> None:
    sleeper = subprocess.Popen(["sleep", "infinity"])
    called("CreateMachine", "sayssusa(sv)", "mine", "0", "", "vm", str(sleeper.pid), "", "0")
    assert "# Kept by moored." not in Path("/run/systemd/machines/box").read_text()
    done = moorctl("in-place", "off")
    assert done.returncode == 0, done.stderr
    assert enabled() == before
    assert not NOTE.exists()
    assert owner() != main_pid()
    assert run("systemctl", "is-active", MACHINED).strip() == "active"
    assert machines("machinectl") == {"box", "mine"}
    assert machines("moorctl") == {"box", "mine"}
    assert run("systemctl", "is-active", "nspawn-box.service").strip() == "active"
    run("machinectl", "terminate", "mine")
    assert sleeper.wait() == -signal.SIGTERM
    ends("mine")


@pytest.mark.parametrize("after", ["links", "daemon-reload"])
def test_what_is_interrupted_is_completed(place: int, before: dict[str, str], after: str) -> None:
    for command, complete in (("on", lambda: owner() == main_pid()), ("off", lambda: enabled() == before)):
        started = subprocess.Popen(
            ["moorctl", "in-place", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert started.stdout is not None
        for line in started.stdout:
            if after in line or (after == "links" and MACHINED in line):
                break
        started.kill()
        started.communicate()
        assert NOTE.exists()
        done = moorctl("in-place", command)
        assert done.returncode == 0, done.stderr
        assert_complete(complete)
        assert machines("machinectl") == {"box"}
    assert not NOTE.exists()


def assert_complete(condition: Callable[[], bool]) -> None:
    trio.run(lambda: until(condition, "it is complete"))


def test_machinectl_powers_it_off(box: int) -> None:
    assert moorctl("in-place", "on").returncode == 0
    run("machinectl", "poweroff", "box")
    ends("box")
    assert moorctl("in-place", "off").returncode == 0
