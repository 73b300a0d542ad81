"""moorctl --host, with a program that stands in for ssh(1), and a service that keeps no units."""

import json
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from cli_battery import RUN_SECONDS, Moorctl, PreloadedMoorctl, a_name, refused
from pty_battery import Person

SSH = """#!/usr/bin/env python3
import os, select, socket, sys
*options, path, end, host = sys.argv[1:]
assert (options, end) == (["-a", "-x", "-T", "-W"], "--"), sys.argv
with open(os.path.dirname(sys.argv[0]) + "/calls", "a") as calls:
    calls.write(f"{host} {path}\\n")
if "down" in host:
    sys.exit("ssh: connect to host down port 22: Connection refused")
service = socket.socket(socket.AF_UNIX)
service.connect(path)
pairs = {0: service.fileno(), service.fileno(): 1}
while pairs:
    for fd in select.select(list(pairs), [], [])[0]:
        text = os.read(fd, 65536)
        if not text:
            sys.exit(0)
        os.write(pairs[fd], text)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """A directory with a fake ssh, and the socket of a fake service."""
    directory = tmp_path_factory.mktemp("hosts")
    (directory / "ssh").write_text(SSH)
    (directory / "ssh").chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
        listener.listen()
        service = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fake_moored.py")], stdin=listener.fileno()
        )
    yield directory
    service.terminate()
    service.wait(RUN_SECONDS)


@pytest.fixture
def moorctl(place: Path) -> Moorctl:
    (place / "calls").write_text("")
    return PreloadedMoorctl(["--address", str(place / "socket")], {"SYSTEMD_SSH": str(place / "ssh")})


def test_commands_of_another_host(moorctl: Moorctl, place: Path) -> None:
    name = a_name()
    with subprocess.Popen(["sleep", "infinity"]) as leader:
        # Its PID is one of that host.
        done = moorctl("-H", "root@a", "register", name, "--leader", str(leader.pid))
        refused(done, 1)  # the fake takes a file descriptor only
        moorctl.output("register", name, "--leader", str(leader.pid))
        assert name in moorctl.output("--host", "root@a", "list")
        assert name in moorctl.output("list", "--host", "root@a")
        assert moorctl.objects("-H", "a", "status", name)[0]["machine"]["name"] == name  # type: ignore[index]
        moorctl.output("-H", "a", "stop", name)
        leader.wait(RUN_SECONDS)
    refused(moorctl("-H", "a", "stop", name), 3, f"moorctl --host a --address {place}/socket list")
    hosts = {line.split()[0] for line in (place / "calls").read_text().splitlines()}
    assert hosts == {"root@a", "a"}


def test_machines_of_several_hosts(moorctl: Moorctl) -> None:
    name = a_name()
    with subprocess.Popen(["sleep", "infinity"]) as leader:
        moorctl.output("register", name, "--leader", str(leader.pid))
        done = moorctl("-H", "b", "-H", "a", "-H", "b", "-H", "down", "list")
        heading, *rows = done.stdout.splitlines()
        assert heading.split()[-1] == "HOST"
        assert [row.split()[-1] for row in rows if row.startswith(name)] == ["a", "b"]
        assert done.returncode == 5
        assert "down: Failed to reach" in done.stderr
        shown = moorctl.output("-H", "b", "-H", "a", "list", "--json")
        found = [json.loads(line) for line in shown.splitlines()]
        assert [each["host"] for each in found if each["name"] == name] == ["a", "b"]
        leader.kill()


def test_what_machines_of_several_hosts_use(moorctl: Moorctl, place: Path) -> None:
    name = a_name()
    with subprocess.Popen(["sleep", "infinity"]) as leader:
        moorctl.output("register", name, "--leader", str(leader.pid))
        hosts = ("-H", "b", "-H", "a", "-H", "down")
        done = moorctl(*hosts, "top", "--delay", "10ms", "--sort", "name")
        heading, *rows = done.stdout.splitlines()
        assert heading.split()[-1] == "HOST"
        found = [row.split() for row in rows if row.startswith(name)]
        assert [(row[3], row[4], row[-1]) for row in found] == [("3.0M", "75%", "a"), ("3.0M", "75%", "b")]
        assert done.returncode == 5
        assert done.stderr.count("down: Failed to reach") == 1
        shown = moorctl.output("-H", "a", "-H", "b", "top", "--json", "--delay", "10ms", "--iterations", "2")
        told = [json.loads(line) for line in shown.splitlines()]
        assert [each["host"] for each in told if each["name"] == name] == ["a", "b"] * 2
        # At a terminal, what is drawn says who is left out, and so does the end.
        environment = {**moorctl.whole_environment, "TERM": "xterm"}
        person = Person([moorctl.program, *moorctl.options, *hosts, "top", "--delay", "50ms"], environment)
        person.read("away: down")
        assert name[:8] in person.read("sort: c m i t p s n")
        person.type("q")
        status, rest = person.end()
        assert status == 5
        assert "down: Failed to reach" in rest
        person.leave()
        leader.kill()
    refused(
        moorctl("-H", "down", "-H", "down2", "top"), 5, "down2: Failed to reach", "There is no host left"
    )


def test_a_host_that_is_down(moorctl: Moorctl) -> None:
    for command in (["list"], ["events"], ["events", "--follow"], ["stop", "web"], ["wait", "web"]):
        refused(moorctl("-H", "down", *command), 5, "Connection refused", "Failed to reach", "on down.")


def test_there_is_no_ssh(moorctl: Moorctl) -> None:
    done = moorctl("-H", "a", "list", environment={"SYSTEMD_SSH": "/nonexistent/ssh"})
    refused(done, 5, "There is no program /nonexistent/ssh, which SYSTEMD_SSH names.")
    done = moorctl("-H", "a", "list", environment={"SYSTEMD_SSH": "", "PATH": "/nonexistent"})
    refused(done, 5, "There is no ssh on this host: install OpenSSH's client (openssh-client on Debian)")


@pytest.mark.parametrize(
    "host",
    ["", "-oProxyCommand=touch x", "-a", "root@", "@a", "root@-oX", "a b", "a;b", "a\nb", "$(id)", "a@b@c",
     "ssh://a", "a/b", "ä", "a" * 400],
)  # fmt: skip
def test_what_is_no_host(moorctl: Moorctl, place: Path, host: str) -> None:
    refused(moorctl(f"--host={host}", "list"), 2, "is not [USER@]HOST")
    assert (place / "calls").read_text() == ""


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-H", "a", "-H", "b", "stop", "web"], "one --host at a time"),
        (["-H", "a", "run", "--name", "web", "true"], "is about this host"),
        (["-H", "a", "doctor"], "is about this host"),
        (["-H", "a", "register", "web", "--pidfd", "0"], "is about this host"),
        (["-H", "a", "add-helpers", "web", "--helper", "fs=sleep 1"], "has to be a whole path"),
        (["-H", "a", "-H", "b", "events", "--since-cursor", "x"], "--since-cursor is of one host"),
        ([*[f"-Hh{number}" for number in range(257)], "list"], "at most 256 hosts"),
    ],
)
def test_what_has_no_meaning(moorctl: Moorctl, words: list[str], why: str) -> None:
    refused(moorctl(*words), 2, why)
