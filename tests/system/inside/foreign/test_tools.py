"""A container with a systemd of its own, booted and registered by a launcher that machined does not know: all that
systemd has for machines finds it."""

import json
import os
import re
import select
import signal
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from hostile import dial, encode
from moored import (
    OURS,
    SOCKET,
    THEIRS,
    UNTIL_SECONDS,
    connect,
    members,
    run,
    show,
    until,
)

BOOT = Path(__file__).with_name("boot.sh")
EXPORTED = "/run/systemd/nspawn/{}/unix-export"
"""Where systemd-ssh-proxy looks for the sockets of a container."""
ADDRESS = "192.0.2.7"
SYSTEMD = int(run("systemctl", "--version").split()[1])
BOOT_SECONDS = 45.0
NAMESPACES = ("--pid", "--mount", "--uts", "--ipc", "--net", "--propagation=private")


def child(pid: int) -> int | None:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else None


def quiet(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command that may fail."""
    return subprocess.run(
        argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=UNTIL_SECONDS
    )


@contextmanager
def booted(root: Path, name: str = "web") -> Generator[int]:
    """Launch a container, register it, and boot it; the PID of its leader."""
    exported = Path(EXPORTED.format(name))
    root.mkdir(exist_ok=True)
    exported.mkdir(parents=True, exist_ok=True)
    argv = ["unshare", "--fork", *NAMESPACES, "sh", "-eu", str(BOOT), str(root), str(exported)]
    launcher = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)
    assert launcher.stdin is not None
    try:
        leader = trio.run(lambda: until(lambda: child(launcher.pid), "the first process"))
        assert leader is not None
        run(
            "moorctl",
            "register",
            name,
            "--class=container",
            "--service=systemd-nspawn",
            "--property=KillSignal=SIGRTMIN+3",  # which stops a systemd; at SIGTERM it only executes itself again
            "--property=TimeoutStopSec=5s",
            f"--leader={leader}",
        )
        run("ip", "link", "add", f"ve-{name}", "type", "veth", "peer", "name", "host0", "netns", str(leader))
        for command in (f"addr add {ADDRESS}/24 dev host0", "link set host0 up"):
            run("nsenter", f"--target={leader}", "--net", "ip", *command.split())
        launcher.stdin.write(b"\n")
        launcher.stdin.close()
        trio.run(lambda: until(lambda: is_up(name), "it has booted", seconds=BOOT_SECONDS))
        yield leader
    finally:
        quiet("moorctl", "kill", "--signal=SIGKILL", name)
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
        trio.run(lambda: until(lambda: name not in run("machinectl", "list")))


def is_up(name: str) -> bool:
    """Whether its own systemd answers: until the leader has changed its root directory, that of the host does."""
    asked = ("show", "--property=Virtualization", "--property=SystemState")
    done = quiet("systemctl", "-M", name, *asked)
    return set(done.stdout.split()) == {"Virtualization=container-other", "SystemState=running"}


@pytest.fixture(scope="module")
def web(beside: None, tmp_path_factory: pytest.TempPathFactory) -> Generator[int]:
    run("systemctl", "start", "systemd-machined.service")
    with booted(tmp_path_factory.mktemp("web")) as leader:
        yield leader


def test_machinectl_lists_it(web: int) -> None:
    (found,) = json.loads(run("machinectl", "list", "--output=json"))
    assert (found["machine"], found["class"], found["service"]) == ("web", "container", "systemd-nspawn")
    status = run("machinectl", "status", "web")
    for words in (
        f"Leader: {web} (systemd)",
        f"Address: {ADDRESS}",
        "OS: Debian",
        "Unit: machine-web.scope",
        "dbus.service",
    ):
        assert words in re.sub(" +", " ", status), words


def test_systemctl_and_loginctl_reach_the_systemd_in_it(web: int) -> None:
    assert (
        run("systemctl", "-M", "web", "show", "--property=Virtualization", "--value") == "container-other\n"
    )
    run("systemctl", "-M", "web", "start", "systemd-hostnamed.service")
    assert run("systemctl", "-M", "web", "is-active", "systemd-hostnamed.service") == "active\n"
    assert "No sessions" in run("loginctl", "-M", "web", "list-sessions")
    assert run(
        "systemd-run", "-M", "web", "--quiet", "--wait", "--pipe", "sh", "-c", "readlink /proc/self/ns/pid"
    ) == (f"{os.readlink(f'/proc/{web}/ns/pid')}\n")


def test_journalctl_reads_its_journal(web: int) -> None:
    run("systemd-run", "-M", "web", "--quiet", "--wait", "--unit=speaks", "echo", "from the inside")
    trio.run(
        lambda: until(lambda: "from the inside" in quiet("journalctl", "-M", "web", "--unit=speaks").stdout)
    )


def test_its_name_is_resolved(web: int) -> None:
    assert run("getent", "hosts", "web").split() == [ADDRESS, "web"]
    assert quiet("getent", "hosts", "no-such-machine").returncode == 2


@pytest.mark.parametrize("user", ["root", "alice"])
def test_ssh_reaches_an_sshd_in_it(web: int, tmp_path: Path, user: str) -> None:
    key = tmp_path / "key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    run(
        "systemd-run", "-M", "web", "--quiet", "--wait", "--pipe", "sh", "-euc",
        f'd=$(getent passwd {user} | cut -d: -f6)/.ssh; mkdir -p "$d"; echo "$0" >"$d/authorized_keys"',
        key.with_suffix(".pub").read_text().strip(),
    )  # fmt: skip
    argv = (
        "env",
        "XDG_RUNTIME_DIR=/run",  # it asks the user's service first
        "ssh",
        "-i",
        str(key),
        "-l",
        user,
        "-o",
        "BatchMode=yes",
        "machine/web",
        "id -un; readlink /proc/self/ns/pid",
    )
    if SYSTEMD >= 262:
        assert run(*argv).split() == [user, os.readlink(f"/proc/{web}/ns/pid")]
    else:  # before that it knows machines with vsock only
        assert "no AF_VSOCK CID assigned" in quiet(*argv).stderr


# What a guest may do to those who look at it


def reaching_in() -> list[int]:
    """The processes that reach into machines: children of one that waits, which has one more ready."""
    group = show("moored-inside-0.service", "ControlGroup")["ControlGroup"]
    return members(group)[2:] if group else []


def open_shell(*argv: str) -> int:
    """Have moored open a shell in the container; return the terminal."""
    with dial(SOCKET) as connected:
        connected.settimeout(UNTIL_SECONDS)
        call = encode(f"{THEIRS}Open", {"name": "web", "mode": "shell", "path": argv[0], "args": list(argv)})
        connected.sendall(call)
        data, fds, _, _ = socket.recv_fds(connected, 65536, 1)
    assert fds, data
    return fds[0]


async def test_a_flood_from_a_terminal_is_its_readers_alone(web: int) -> None:
    terminal = open_shell("/usr/bin/yes", "flood")
    async with await connect() as client:
        for _ in range(20):  # nobody reads
            await client.call(f"{OURS}Describe", {"name": "web"})
        read = 0
        while read < 4 << 20 and select.select([terminal], [], [], UNTIL_SECONDS)[0]:
            read += len(os.read(terminal, 65536))
        assert read >= 4 << 20
        await client.call(f"{OURS}Describe", {"name": "web"})
    os.close(terminal)
    await until(
        lambda: "yes" not in run("systemctl", "-M", "web", "list-units", "container-shell@*"), "it has gone"
    )
    said = run("moorctl", "shell", "--quiet", "web", "/bin/sh", "-c", "yes | head -c 2000000")
    assert said.count("y") == 1_000_000


@pytest.mark.parametrize("how", ["terminate", "SIGKILL"])
def test_a_guest_goes_away_while_somebody_is_in_it(beside: None, tmp_path: Path, how: str) -> None:
    with booted(tmp_path / "root", "box") as leader:
        inside = Path(f"/proc/{leader}/root/root/many")
        inside.mkdir()
        for number in range(3000):
            (inside / str(number)).write_text("x")
        argv = ["moorctl", "shell", "--quiet", "box", "/bin/sh", "-c", "echo here; exec sleep 1000"]
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=pipe, text=True) as shell:
            assert shell.stdout is not None
            assert shell.stdout.readline() == "here\n"
            argv = ["moorctl", "copy-from", "box", "/root/many", str(tmp_path / "many")]
            with subprocess.Popen(argv, stderr=pipe, text=True) as copy:
                trio.run(lambda: until((tmp_path / "many").is_dir, "the copy has begun"))
                if how == "SIGKILL":
                    os.kill(leader, signal.SIGKILL)
                else:
                    run("machinectl", how, "box")
                _, complaint = copy.communicate(timeout=UNTIL_SECONDS)
            # What it has open may be there to the end of the copy.
            assert copy.returncode == 0 or complaint.startswith("Error: "), complaint
            shell.wait(UNTIL_SECONDS)
        trio.run(lambda: until(lambda: not reaching_in(), "nothing of ours is in it any more"))
        trio.run(lambda: until(lambda: "box" not in run("machinectl", "list"), "machined has it no more"))
    ended = json.loads(run("moorctl", "status", "--json", "box"))["machine"]["verdict"]
    if how == "terminate":
        assert ended["cause"] == ("stopped" if SYSTEMD >= 262 else "unitStopped")
    else:
        # On a busy machine its parent may take longer to wait for it than anybody waits for that.
        assert (ended["cause"], ended.get("leaderSignal", 9)) == ("leaderEnded", 9)


def test_machinectl_powers_it_off(web: int) -> None:
    run("machinectl", "poweroff", "web")
    trio.run(lambda: until(lambda: "web" not in run("machinectl", "list"), "it has powered off"))
    ended = json.loads(run("moorctl", "status", "--json", "web"))["machine"]["verdict"]
    assert (ended["cause"], ended["leaderStatus"]) == ("leaderEnded", 0)
