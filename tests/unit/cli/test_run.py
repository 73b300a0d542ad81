"""moorctl run and check without a service manager: what is asked for, and what is refused before."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from cli_battery import RUN_SECONDS, Moorctl, PreloadedMoorctl, a_name, refused


@pytest.fixture
def listener(tmp_path: Path) -> Generator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(RUN_SECONDS)
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        yield listening


@pytest.fixture
def moorctl(tmp_path: Path, listener: socket.socket) -> Moorctl:
    return PreloadedMoorctl(["--address", str(tmp_path / "socket")])


@pytest.fixture
def fake(moorctl: Moorctl, listener: socket.socket) -> Generator[Moorctl]:
    """A moorctl that calls the fake service."""
    fake = [sys.executable, str(Path(__file__).with_name("fake_moored.py"))]
    service = subprocess.Popen(fake, stdin=listener.fileno())
    yield moorctl
    service.terminate()
    service.wait(RUN_SECONDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--", "true"], "--name"),
        (["--name", "web"], "no command to run"),
        (["--name", "web", "--helper", "fs", "true"], "'fs' is not NAME=COMMAND"),
        (["--name", "web", "--helper", "fs=", "true"], "fs: the command is empty"),
        (["--name", "web", "--helper", "fs='x", "true"], "No closing quotation"),
        (
            ["--name", "web", "--helper", "fs=no-such-program", "true"],
            "fs: there is no program 'no-such-program'",
        ),
        (["--name", "web", "--helpers", "/nowhere", "true"], "Failed to read /nowhere: No such file"),
        (["--name", "web", "--helpers", "/dev/zero", "true"], "/dev/zero: the file is larger than"),
        (["--name", "web", "--pass-fd", "x", "true"], "'x' is not FD or FD:AS"),
        (["--name", "web", "--pass-fd", "1:", "true"], "'1:' is not FD or FD:AS"),
        (["--name", "web", "--pass-fd", "987654", "true"], "file descriptor 987654 is not open"),
        (["--name", "web", "--setenv", "=x", "true"], "'=x' is not NAME=VALUE"),
        (["--name", "web", "--setenv", "NO_SUCH_VARIABLE", "true"], "no variable 'NO_SUCH_VARIABLE'"),
        (["--name", "web", "--uid", "no-such-user", "true"], "there is no user 'no-such-user'"),
        (["--name", "web", "--gid", "no-such-group", "true"], "there is no group 'no-such-group'"),
        (["--name", "web", "--gid", "0", "true"], "--gid needs --uid"),
    ],
)
def test_wrong_usage_asks_for_nothing(moorctl: Moorctl, arguments: list[str], words: str) -> None:
    refused(moorctl("run", *arguments), 2, words)


def test_no_service(tmp_path: Path) -> None:
    done = PreloadedMoorctl(["--address", str(tmp_path / "none")])("run", "--name", "web", "true")
    refused(done, 125, "there is no such socket")
    done = PreloadedMoorctl(["--address", str(tmp_path / "none")])(
        "run", "--name", "web", "-p", "TasksMax=5", "true"
    )
    refused(done, 125, "there is no such socket")


def answer(connected: socket.socket, reply: object) -> bytes:
    """Receive a call, and answer it."""
    call, fds, _, _ = socket.recv_fds(connected, 65536, 5)
    for fd in fds:
        os.close(fd)
    connected.sendall(json.dumps(reply).encode() + b"\0")
    return call


def test_what_is_asked_for(moorctl: Moorctl, listener: socket.socket, tmp_path: Path) -> None:
    file = tmp_path / "set.toml"
    file.write_text(
        "[helpers.fs]\nexecStart = ['/fs', '%n', '%t']\nsockets = [{name = 's', mode = 0o600}]\n"
    )
    arguments = [
        "run", "--name", "web", "--slice", "a", "--class", "container", "-p", "TasksMax=5", "--timeout", "5s",
        "--helpers", str(file), "--helper", "b=sh -c 'a b'", "--", "true", "--name", "x",
    ]  # fmt: skip
    with subprocess.Popen(
        [moorctl.program, *moorctl.options, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        connected, _ = listener.accept()
        with connected:
            asked = answer(connected, {"parameters": {"properties": {"TasksMax": "t"}}})
        connected, _ = listener.accept()
        with connected:
            call = answer(
                connected, {"error": "io.moorage.Machine.MachineExists", "parameters": {"name": "web"}}
            )
            output, errors = process.communicate(timeout=RUN_SECONDS)
    command = f"moorctl --address {tmp_path}/socket stop web"
    words = f"Error: Machine web exists already.\nStop it first, or choose another name: {command}\n"
    assert (process.returncode, output, errors) == (125, "", words)
    assert json.loads(asked[:-1]) == {
        "method": "io.moorage.Machine.DescribeProperties",
        "parameters": {"type": "scope"},
    }
    assert json.loads(call[:-1]) == {
        "method": "io.moorage.Machine.Register",
        "parameters": {
            "name": "web", "class": "container", "leaderFileDescriptor": 0, "slice": "a.slice", "lease": True,
            "properties": {"TasksMax": 5}, "timeoutUSec": 5_000_000,
            "helpers": [
                {
                    "name": "fs", "execStart": ["/fs", "web", "/run/moorage/m/web"],
                    "sockets": [{"name": "s", "mode": 0o600}],
                },
                {"name": "b", "execStart": [shutil.which("sh"), "-c", "a b"]},
            ],
        },
    }  # fmt: skip


def test_over_the_fake(fake: Moorctl) -> None:
    done = fake("run", "--name", a_name(), "--", "sh", "-c", "echo out; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "")
    done = fake("run", "--name", a_name(), "--", "sh", "-c", "kill $$")
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "")
    refused(fake("run", "--name", a_name(), "-p", "TaskMax=1", "--", "true"), 2, "did you mean TasksMax?")
    refused(fake("run", "--name", a_name(), "no-such-program"), 127, "Failed to execute no-such-program")


def test_helpers_that_were_told_of_another_directory(fake: Moorctl, tmp_path: Path) -> None:
    """The fake has none at all."""
    file = tmp_path / "set.toml"
    file.write_text("[helpers.fs]\nexecStart = ['/fs', '%t']\n")
    name = a_name()
    done = fake("run", "--name", name, "--helpers", str(file), "--", "echo", "never")
    refused(done, 125, f"%t of the helpers was /run/moorage/m/{name}")


class TestCheck:
    def test_a_good_file(self, fake: Moorctl, tmp_path: Path) -> None:
        file = tmp_path / "set.toml"
        file.write_text('[helpers.fs]\nexecStart = ["/fs", "%n", "\\u001b"]\n')
        assert fake.output("check", str(file), "--name", "web").splitlines() == [
            "Runtime directory: /run/moorage/m/web",
            "Helper fs",
            "  Unit: machine-web-fs.service",
            "  Executes: /fs web '\\x1b'",
            "  When it fails: the machine goes on",
        ]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("x = 1", "unknown field"),
            ("command = ['%x']", "no specifier"),
            ("=", "Invalid statement"),
            (
                "[helpers.a]\nexecStart = ['sleep']",
                "helpers.a: execStart: must begin with the absolute path",
            ),
            ("[helpers.a]\nexecStrat = ['/sleep']", "did you mean execStart?"),
            ("[helpers.a]\nexecStart = ['/x']\nonFailure = 'stop'", "choose from ignore, stopMachine"),
            (
                f"[helpers.a]\nexecStart = ['/x']\nsockets = [{{ name = '{'s' * 90}' }}]",
                "110 bytes, but a socket's path may have 107: shorten the name of the machine or of the socket by 3",
            ),
        ],
    )
    def test_a_bad_one(self, moorctl: Moorctl, tmp_path: Path, text: str, words: str) -> None:
        file = tmp_path / "set.toml"
        file.write_text(text)
        refused(moorctl("check", str(file)), 2, f"{file}: ", words)

    def test_the_same_words_from_run(self, moorctl: Moorctl, tmp_path: Path) -> None:
        file = tmp_path / "set.toml"
        file.write_text(f"[helpers.a]\nexecStart = ['/x']\nsockets = [{{ name = '{'s' * 90}' }}]")
        refused(moorctl("run", "--name", "NAME", "--helpers", str(file), "--", "true"), 2, "may have 107")

    def test_it_is_a_dry_run(self, moorctl: Moorctl, tmp_path: Path) -> None:
        file = tmp_path / "set.toml"
        file.write_text("[helpers.a]\nexecStart = ['/x']\n")
        away = ("--address", str(tmp_path / "none"))
        done = moorctl("check", str(file), *away)
        assert done.returncode == 5, done
        assert "there is no such socket" in done.stderr
        assert moorctl.output("check", "--offline", str(file), *away).endswith("the machine goes on\n")
        [told] = moorctl.objects("check", "--offline", str(file), *away)
        assert told["helpers"] == [{"name": "a", "execStart": ["/x"]}]

    def test_properties_are_checked_as_far_as_a_service_answers(self, fake: Moorctl, tmp_path: Path) -> None:
        file = tmp_path / "set.toml"
        file.write_text(
            "[helpers.a]\nexecStart = ['/x']\nproperties = { TaskMax = '5', TimeoutStopSec = '5s' }"
        )
        refused(
            fake("check", str(file)), 2, "helpers.a.properties: there is no property TaskMax", "TasksMax?"
        )
        done = fake("check", str(file), "--offline")
        assert done.returncode == 0, done
        assert done.stdout.endswith("  Property: TaskMax=5\n  Property: TimeoutStopSec=5s\n")
        assert "were not checked" in done.stderr
        done = fake("check", str(file), "--address", str(tmp_path / "none"))
        assert done.returncode == 5, done
        assert "  Property: TaskMax=5\n" in done.stdout
        assert "there is no such socket" in done.stderr
        assert "were not checked" in done.stderr
