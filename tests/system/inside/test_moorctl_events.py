"""What happens, as moorctl tells it: in lines, by an exit status, and in a list that is kept up to date."""

import json
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from typing import IO, Any

import pytest
from cli_battery import RUN_SECONDS, Moorctl, a_name, refused
from moored import MOORCTL, SOCKET, Processes, run, sync_journal


@pytest.fixture
def moorctl() -> Moorctl:
    run("systemctl", "start", "moored.socket")
    return Moorctl(MOORCTL)


def test_events_that_are_kept(moorctl: Moorctl, spawn: Processes) -> None:
    name, leader = a_name(), spawn()
    moorctl.output("register", name, "--leader", str(leader.pid))
    (new,) = moorctl.objects("events", "--name", name)
    assert (new["event"], new["name"]) == ("machineNew", name)
    moorctl.output("stop", name)
    assert moorctl("wait", name).returncode == 0, (
        "this test has not reaped it, so that nobody knows its status"
    )
    since = moorctl.objects("events", "--since-cursor", str(new["cursor"]), "--name", name)
    assert since[0]["event"] == "stopping"
    assert since[-1]["event"] == "exited"
    lines = moorctl.output("events", "--name", name, "--event", "exited").splitlines()
    assert len(lines) == 1
    assert "exited" in lines[0]
    assert "it was stopped on request" in lines[0]
    assert moorctl.output("events", "--since-cursor", str(since[-1]["cursor"])) == ""
    refused(moorctl("events", "--since-cursor", "x"), 1, "--since-cursor")
    refused(moorctl("events", "--since-cursor", f"{'f' * 32}-{1:016x}", "--follow"), 1, "not kept any more")
    refused(moorctl("events", "--follow", "--event", "oomKilled"), 2, "oomKill")


def test_following_over_a_restart(moorctl: Moorctl, spawn: Processes) -> None:
    name, leader = a_name(), spawn()
    moorctl.output("register", name, "--leader", str(leader.pid))
    with follow(moorctl, "events", "--follow", "--json", "--name", name) as output:
        assert '"event":"machine"' in output.readline()
        assert '"event":"snapshotDone"' in output.readline()
        run("systemctl", "restart", "moored.service")
        leader.kill()
        leader.wait()
        kinds: list[str] = []
        while "exited" not in kinds:
            kinds.append(json.loads(output.readline())["event"])
    assert sorted(kinds) == ["empty", "exited", "leaderExited"]


def test_waiting(moorctl: Moorctl, spawn: Processes) -> None:
    name, leader = a_name(), spawn()
    refused(moorctl("wait", name), 3, name)
    refused(moorctl("wait", name, "--until", "running", "--timeout", "200ms"), 6, "is not running yet")
    with waiting(moorctl, name, "--until", "running") as started:
        moorctl.output("register", name, "--leader", str(leader.pid))
        assert started.wait(RUN_SECONDS) == 0
    assert moorctl("wait", name, "--until", "running").returncode == 0
    refused(moorctl("wait", name, "--timeout", "200ms"), 6, "is not exited yet")
    with waiting(moorctl, name) as ended:
        run("systemctl", "restart", "moored.service")
        leader.kill()
        leader.wait()
        assert ended.wait(RUN_SECONDS) == 128 + 9
    (end,) = moorctl_objects(moorctl, 128 + 9, "wait", name)
    assert end["data"]["leaderSignal"] == 9


def test_the_exit_status_is_the_leaders(moorctl: Moorctl) -> None:
    for script, status in (("exit 0", 0), ("exit 7", 7)):
        name = a_name()
        with subprocess.Popen(["sh", "-c", f"read _; {script}"], stdin=subprocess.PIPE) as leader:
            moorctl.output("register", name, "--leader", str(leader.pid))
            with waiting(moorctl, name) as ended:
                leader.communicate(b"\n")
                assert ended.wait(RUN_SECONDS) == status


def test_a_machine_that_is_forgotten_is_waited_for_no_more(moorctl: Moorctl, spawn: Processes) -> None:
    name = a_name()
    moorctl.output("register", name, "--leader", str(spawn().pid))
    with waiting(moorctl, name) as ended:
        while not moorctl.output("list", "--no-legend").strip():
            pass
        moorctl.output("forget", name)
        assert ended.wait(RUN_SECONDS) in {1, 3}


def test_a_list_that_is_kept_up_to_date(moorctl: Moorctl, spawn: Processes) -> None:
    name, leader = a_name(), spawn()
    with follow(moorctl, "list", "--watch") as output:
        assert output.readline().startswith("NAME")
        moorctl.output("register", name, "--leader", str(leader.pid))
        while name not in output.readline():
            pass
    refused(moorctl("list", "--watch", "--json"), 2, "exclude each other")


@contextmanager
def follow(moorctl: Moorctl, *arguments: str) -> Generator[IO[str]]:
    """Run a command that does not end, and end it."""
    with subprocess.Popen(
        [moorctl.program, *moorctl.options, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.terminate()
        assert process.wait(RUN_SECONDS) == -signal.SIGTERM


@contextmanager
def waiting(moorctl: Moorctl, *arguments: str) -> Generator[subprocess.Popen[bytes]]:
    """Run ``moorctl wait`` beside the test."""
    with subprocess.Popen([moorctl.program, *moorctl.options, "wait", *arguments]) as process:
        try:
            yield process
        finally:
            process.kill()


def moorctl_objects(moorctl: Moorctl, status: int, *arguments: str) -> list[Any]:
    """Return what a command prints with --json that exits with a status."""
    done = moorctl(*arguments, "--json")
    assert done.returncode == status, done
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_log_of_a_machine_and_its_helpers(moorctl: Moorctl, spawn: Processes) -> None:
    name, hostile = a_name(), "\\033]0;owned\\007"
    script = f"logger -t helper 'from the helper'; printf '{hostile}\\n'; sleep infinity"
    helper = {"name": "fs", "execStart": ["/bin/sh", "-c", script], "type": "exec"}
    leader = spawn()
    parameters = {"name": name, "class": "vm", "leader": {"pid": leader.pid}, "helpers": [helper]}
    run("varlinkctl", "call", SOCKET, "io.moorage.Machine.Register", json.dumps(parameters))
    with follow(moorctl, "log", "--follow", "--json", name) as output:
        while json.loads(output.readline()).get("MACHINE") != name:
            pass
    moorctl.output("stop", name)
    assert moorctl("wait", name).returncode == 0
    moorctl.output("forget", name)
    sync_journal()
    lines = moorctl.output("log", name).splitlines()
    started, ended = (
        next(number for number, line in enumerate(lines) if text in line)
        for text in ("moored[", f"Machine {name} exited: success, cause stopped")
    )
    assert started < ended
    assert f"New machine {name} in machine-{name}.scope." in lines[started]
    own = [line for line in lines if "owned" in line]
    assert len(own) == 1
    assert "\\x1b]0;owned\\x07" in own[0]
    assert any("systemd[" in line and "]: Started machine-" in line for line in lines)
    assert moorctl.output("log", "-n", "1", name).count("\n") == 1
    assert moorctl.output("log", "--since", "+1h", name) == ""
    refused(moorctl("log", "a/b"), 2, "a/b")
    refused(moorctl("log", "--since", "nonsense", name), 1, "nonsense")
    assert moorctl.output("log", a_name()) == ""
