"""What moorctl must do with any service: run with the real moored, and with the fake of the unit tests."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from preloaded import preloaded

RUN_SECONDS = 45.0
"""Deadline for a command: less than pytest's faulthandler_timeout."""

Done = subprocess.CompletedProcess[str]
Leaders = Callable[[], subprocess.Popen[bytes]]


@dataclass(frozen=True)
class Moorctl:
    """The installed moorctl, and the service that it calls."""

    options: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def program(self) -> str:
        return str(Path(sys.executable).with_name("moorctl"))

    @property
    def whole_environment(self) -> dict[str, str]:
        return {**os.environ, "COLUMNS": "100", **self.environment}

    def __call__(
        self, *arguments: str, pass_fds: Sequence[int] = (), environment: Mapping[str, str] | None = None
    ) -> Done:
        """Run moorctl to its end."""
        return subprocess.run(
            [self.program, *self.options, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
            pass_fds=pass_fds,
            env={**self.whole_environment, **(environment or {})},
        )

    def output(self, *arguments: str) -> str:
        """Run moorctl, assert that it succeeded, and return its output."""
        done = self(*arguments)
        assert done.returncode == 0, done
        return done.stdout

    def objects(self, *arguments: str) -> list[dict[str, object]]:
        """Run moorctl with --json, and return its output."""
        return [json.loads(line) for line in self.output(*arguments, "--json").splitlines()]


class PreloadedMoorctl(Moorctl):
    """The same from this checkout, without the start of a program for each command."""

    def __call__(
        self, *arguments: str, pass_fds: Sequence[int] = (), environment: Mapping[str, str] | None = None
    ) -> Done:
        """Run moorctl to its end."""
        whole = {**self.whole_environment, **(environment or {})}
        return preloaded().run([*self.options, *arguments], whole, pass_fds, RUN_SECONDS)


def a_name() -> str:
    """Return a name that no other test uses."""
    return f"m{uuid.uuid4().hex[:12]}"


def refused(done: Done, status: int, *words: str) -> None:
    """Assert that a command failed with this status, and reported why on stderr only."""
    assert done.returncode == status, done
    assert done.stdout == "", done
    assert "Traceback" not in done.stderr, done
    for word in words:
        assert word in done.stderr, done


class Battery:
    """Needs a fixture `moorctl`, a `Moorctl`."""

    @pytest.fixture
    def leaders(self) -> Generator[Leaders]:
        """Start processes that wait until the test, or its end, ends them."""
        started: list[subprocess.Popen[bytes]] = []

        def leader() -> subprocess.Popen[bytes]:
            started.append(subprocess.Popen(["sleep", "infinity"], stdin=subprocess.DEVNULL))
            return started[-1]

        yield leader
        for process in started:
            process.kill()
            process.wait(RUN_SECONDS)

    def test_what_is_no_command_or_not_written_after_it(self, moorctl: Moorctl) -> None:
        refused(moorctl("add-helper", "web"), 2, "no command add-helper; did you mean add-helpers")
        refused(moorctl("nothing"), 2, "nothing")
        refused(moorctl("--json", "list"), 2, "--json is an option of commands: write it after the command")
        refused(moorctl("--jsn", "list"), 2, "--jsn")

    def test_register_prints_the_unit_alone(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name = a_name()
        assert moorctl.output("register", name, "--leader", str(leaders().pid)) == f"machine-{name}.scope\n"

    def test_a_leader_by_its_pidfd(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name, leader = a_name(), leaders()
        pidfd = os.pidfd_open(leader.pid)
        try:
            done = moorctl("register", name, "--pidfd", str(pidfd), pass_fds=[pidfd])
        finally:
            os.close(pidfd)
        assert done.stdout == f"machine-{name}.scope\n", done
        assert moorctl.output("find", "--pid", str(leader.pid)) == f"{name}\n"

    def test_everything_about_a_machine_is_shown(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name, leader, id128 = a_name(), leaders(), uuid.uuid4().hex
        [reply] = moorctl.objects(
            *("register", name, "--leader", str(leader.pid), "--class", "container", "--id", id128),
            *("--service", "a VMM", "--root-directory", "/var", "--vsock-cid", "4711", "--if-index", "1"),
            *("--ssh-address", "vsock/4711", "--ssh-private-key-path", "/key", "--control-address", "/ctl"),
        )
        machine = reply["machine"]
        assert isinstance(machine, dict)
        assert machine.items() >= {
            "name": name, "class": "container", "phase": "running", "id": id128, "service": "a VMM",
            "rootDirectory": "/var", "vSockCid": 4711, "ifIndices": [1], "sshAddress": "vsock/4711",
            "sshPrivateKeyPath": "/key", "controlAddress": "/ctl", "unit": f"machine-{name}.scope",
        }.items()  # fmt: skip
        assert machine["leader"]["pid"] == leader.pid
        assert reply["differences"] is not None

        [described] = moorctl.objects("status", name)
        assert described["machine"] == machine
        assert [one for one in moorctl.objects("list") if one["name"] == name] == [machine]

        status = moorctl.output("status", name)
        assert status.splitlines()[0] == name
        for line in (f"Leader: PID {leader.pid}", "Service: a VMM", f"ID: {id128}", "Class: container"):
            assert f"{line}\n" in status
        assert f"Unit: machine-{name}.scope\n" in status
        assert "Phase: running since " in status

    def test_list_is_a_table(self, moorctl: Moorctl, leaders: Leaders) -> None:
        names = sorted(a_name() for _ in range(3))
        for name in names:
            moorctl.output("register", name, "--leader", str(leaders().pid), "--class", "container")
        lines = moorctl.output("list").splitlines()
        columns = "NAME CLASS PHASE SERVICE UNIT LEADER UID ORIGIN ADDRESS"
        assert lines[0].split() == columns.split()
        rows = [line.split() for line in lines[1:]]
        assert [row[0] for row in rows] == sorted(row[0] for row in rows)
        ours = [row for row in rows if row[0] in names]
        assert {row[7] for row in ours} == {"registered"}
        assert [row[:5] for row in ours] == [
            [name, "container", "running", "-", f"machine-{name}.scope"] for name in names
        ]
        assert moorctl.output("list", "--no-legend").splitlines()[0].split()[0] != "NAME"

    def test_the_tree_has_the_machine_in_its_slice(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name = a_name()
        moorctl.output("register", name, "--leader", str(leaders().pid))
        [found] = moorctl.objects("tree", name)
        assert found["slice"] == "machine.slice"
        assert isinstance(found["machines"], list)
        [machine] = found["machines"]
        assert (machine["name"], machine["unit"]) == (name, f"machine-{name}.scope")
        assert f"── {name} running machine-{name}.scope\n" in moorctl.output("tree")
        refused(moorctl("tree", name, "no-such"), 3, "There is no machine no-such.")

    def test_what_machines_use_is_shown(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name = a_name()
        moorctl.output("register", name, "--leader", str(leaders().pid))
        found = moorctl.objects("top", "--delay", "100ms", "--iterations", "2", "--filter", name)
        assert [each["name"] for each in found] == [name, name]
        assert all(isinstance(each["cpuPercent"], float) for each in found)
        rows = [line.split() for line in moorctl.output("top", "--delay", "100ms").splitlines()]
        assert rows[0][:3] == ["NAME", "STATE", "CPU%"]
        assert name in [row[0] for row in rows]

    def test_the_configuration_is_shown(self, moorctl: Moorctl) -> None:
        lines = moorctl.output("config").splitlines()
        assert lines[0].split() == ["OPTION", "VALUE", "SOURCE"]
        assert lines[1].split() == ["machinesMax", "16384", "default"]
        (shown,) = moorctl.output("config", "--json").splitlines()
        assert json.loads(shown)["options"][0] == {
            "name": "machinesMax", "value": "16384", "default": "16384", "source": "default"
        }  # fmt: skip

    def test_find(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name, leader = a_name(), leaders()
        [reply] = moorctl.objects("register", name, "--leader", str(leader.pid))
        machine = reply["machine"]
        assert isinstance(machine, dict)
        for option, value in (
            ("--pid", str(leader.pid)),
            ("--unit", machine["unit"]),
            ("--control-group", machine["controlGroup"]),
            ("--invocation", machine["invocationId"]),
        ):
            assert moorctl.output("find", option, value) == f"{name}\n"
        assert moorctl.objects("find", "--unit", machine["unit"]) == [machine]
        refused(moorctl("find", "--unit", "no-such.scope"), 3, "There is no such machine")
        refused(moorctl("find", "--pid", str(os.getpid())), 3)

    def test_kill(self, moorctl: Moorctl, leaders: Leaders) -> None:
        for options, ends_by in (
            ([], signal.SIGTERM),
            (["--signal", "SIGINT"], signal.SIGINT),
            (["-s", "9", "--whom", "leader"], signal.SIGKILL),
        ):
            name, leader = a_name(), leaders()
            moorctl.output("register", name, "--leader", str(leader.pid))
            assert moorctl.output("kill", name, *options) == ""
            assert leader.wait(RUN_SECONDS) == -ends_by

    def test_kill_of_a_subgroup(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name = a_name()
        moorctl.output("register", name, "--leader", str(leaders().pid))
        refused(moorctl("kill", name, "--subgroup", "none"), 1)
        refused(moorctl("kill", name, "--subgroup", "a", "--whom", "leader"), 2, "--whom")
        moorctl.output("stop", name)

    def test_set_property(self, moorctl: Moorctl, leaders: Leaders) -> None:
        """No controller of tasks is there, neither in a sandbox nor in the fake."""
        name = a_name()
        moorctl.output("register", name, "--leader", str(leaders().pid))
        done = moorctl("set-property", name, "TasksMax=77")
        assert (done.returncode, done.stdout) == (0, ""), done
        assert "Warning: TasksMax=77 has no effect: " in done.stderr
        [found] = moorctl.objects("set-property", name, "TasksMax=5", "--dry-run")
        assert [each["property"] for each in found["differences"]] == ["TasksMax"]  # type: ignore[attr-defined]
        [found] = moorctl.objects("status", name)
        assert found["limits"]["TasksMax"] == 77  # type: ignore[index]
        refused(moorctl("set-property", name), 2, "PROPERTY=VALUE")
        refused(moorctl("set-property", name, "TasksMax=many"), 2, "TasksMax")
        refused(moorctl("set-property", name, "TasksMx=5"), 2, "did you mean TasksMax")
        refused(moorctl("set-property", name, "TasksMax=5", "--helper", "fs"), 1, "no helper fs")
        refused(moorctl("set-property", "nobody", "TasksMax=5"), 3)
        moorctl.output("stop", name)

    def test_freeze_and_thaw(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name = a_name()
        moorctl.output("register", name, "--leader", str(leaders().pid))
        for command, freezer in (("freeze", "frozen"), ("thaw", "running")):
            for options in ((), ("--timeout", "30s")):
                assert moorctl.output(command, name, *options) == ""
                [found] = moorctl.objects("status", name)
                machine = found["machine"]
                assert isinstance(machine, dict)
                assert machine["freezer"] == freezer
        assert moorctl.objects("freeze", name, "--helpers") == [{}]
        assert "running (frozen)" in moorctl.output("status", name)
        moorctl.output("stop", name)

    def test_poweroff_and_reboot(self, moorctl: Moorctl, leaders: Leaders) -> None:
        for command, number in (("poweroff", signal.SIGRTMIN + 4), ("reboot", signal.SIGINT)):
            name, leader = a_name(), leaders()
            moorctl.output("register", name, "--leader", str(leader.pid), "--class", "container")
            assert moorctl.output(command, name) == ""
            assert leader.wait(RUN_SECONDS) == -number
            name = a_name()
            moorctl.output("register", name, "--leader", str(leaders().pid))
            refused(moorctl(command, name), 1, "register it with --control-address")
            moorctl.output("stop", name)

    def test_stop_that_asks_first(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name, leader = a_name(), leaders()
        moorctl.output("register", name, "--leader", str(leader.pid))
        refused(
            moorctl("stop", name, "--power-off"),
            1,
            "Stop it without asking its guest: moorctl",
            f" stop {name}\n",
        )
        moorctl.output("stop", name)
        name, leader = a_name(), leaders()
        moorctl.output("register", name, "--leader", str(leader.pid), "--class", "container")
        assert moorctl.output("stop", name, "--power-off", "--insist-after", "1min") == ""
        assert leader.wait(RUN_SECONDS) == -(signal.SIGRTMIN + 4)

    def test_reset_accounting(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name = a_name()
        moorctl.output("register", name, "--leader", str(leaders().pid))
        assert "Counted since" not in moorctl.output("status", name)
        assert moorctl.output("reset-accounting", name) == ""
        assert moorctl.objects("reset-accounting", name) == [{}]
        assert "Counted since" in moorctl.output("status", name)
        moorctl.output("stop", name)

    def test_stop_and_the_verdict(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name, leader = a_name(), leaders()
        moorctl.output("register", name, "--leader", str(leader.pid))
        assert moorctl.output("stop", name, "--timeout", "30s") == ""
        assert leader.wait(RUN_SECONDS) == -signal.SIGTERM
        assert name not in moorctl.output("list")
        [described] = moorctl.objects("status", name)
        machine = described["machine"]
        assert isinstance(machine, dict)
        assert machine["phase"] == "exited"
        assert machine["verdict"]["result"] == "success"
        assert "Phase: exited (success)" in moorctl.output("status", name)
        refused(moorctl("stop", name), 3)

        # and the name is free
        assert moorctl.output("register", name, "--leader", str(leaders().pid)) == f"machine-{name}.scope\n"
        [stopped] = moorctl.objects("stop", name)
        assert stopped["name"] == name

    def test_forget_leaves_the_processes_alone(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name, leader = a_name(), leaders()
        moorctl.output("register", name, "--leader", str(leader.pid))
        assert moorctl.output("forget", name) == ""
        refused(moorctl("status", name), 3)
        assert leader.poll() is None

    def test_nothing_but_what_was_asked_for(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name, leader = a_name(), str(leaders().pid)
        assert moorctl.output("--quiet", "register", name, "--leader", leader) == ""
        shown = moorctl.output("list", "-q")
        assert name in shown
        assert "NAME" not in shown
        assert moorctl.output("-q", "find", "--pid", leader) == f"{name}\n"
        refused(moorctl("-q", "register", name, "--leader", str(leaders().pid)), 1, "exists already")
        moorctl.output("-q", "stop", name)

    def test_dry_run(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name, leader = a_name(), str(leaders().pid)
        arguments = ("register", name, "--leader", leader, "--dry-run")
        assert moorctl.output(*arguments).splitlines()[0] == f"machine-{name}.scope"
        refused(moorctl("status", name), 3)
        refused(moorctl(*arguments, "-p", "Nonsense=true"), 2, "there is no property Nonsense")

    def test_properties_reach_the_unit(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name = a_name()
        moorctl.output(
            *("register", name, "--leader", str(leaders().pid), "-p", "TimeoutStopSec=1min 5s"),
            *("-p", "TasksMax=77", "-p", "KillMode=mixed", "-p", "RuntimeMaxUSec=3600000000"),
        )
        [described] = moorctl.objects("status", name)
        limits = described["limits"]
        assert isinstance(limits, dict)
        assert limits.items() >= {
            "TimeoutStopUSec": 65_000_000, "TasksMax": 77, "KillMode": "mixed", "RuntimeMaxUSec": 3_600_000_000
        }.items()  # fmt: skip
        status = moorctl.output("status", name)
        assert "TimeoutStopSec: 1min 5s\n" in status
        assert "RuntimeMaxSec: 1h\n" in status

    def test_a_name_twice(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name, first = a_name(), str(leaders().pid)
        moorctl.output("register", name, "--leader", first)
        assert moorctl.output("register", name, "--leader", first) == f"machine-{name}.scope\n"
        done = moorctl("register", name, "--leader", str(leaders().pid))
        refused(done, 1, f"Machine {name} exists already, in machine-{name}.scope.", f" stop {name}")

    def test_refusals(self, moorctl: Moorctl, leaders: Leaders) -> None:
        leader = str(leaders().pid)
        register = ("register", a_name(), "--leader", leader)
        refused(moorctl("register", "no/name", "--leader", leader), 1, "the value of NAME")
        refused(moorctl(*register, "--slice", "no.service"), 1, "the value of --slice")
        refused(moorctl(*register, "--id", "abc"), 1, "the value of --id")
        refused(moorctl(*register, "--timeout", "1d"), 1, "the value of --timeout")
        refused(moorctl(*register, "-p", "TaskMax=1"), 2, "no property TaskMax; did you mean TasksMax")
        refused(moorctl(*register, "-p", "TasksMax=many"), 2, "TasksMax: 'many' is not a number")
        refused(
            moorctl(*register, "-p", "NoNewPrivileges=yes"), 2, "a scope has no property NoNewPrivileges"
        )
        with open("/dev/null") as no_process:
            done = moorctl(
                "register", a_name(), "--pidfd", str(no_process.fileno()), pass_fds=[no_process.fileno()]
            )
        refused(done, 1, "--leader or --pidfd")

    def test_a_leader_that_is_gone(self, moorctl: Moorctl) -> None:
        gone = subprocess.Popen(["true"])
        gone.wait(RUN_SECONDS)
        refused(
            moorctl("register", a_name(), "--leader", str(gone.pid)), 1, f"There is no process {gone.pid}."
        )

    def test_a_leader_that_nobody_has_waited_for(self, moorctl: Moorctl) -> None:
        gone = subprocess.Popen(["true"])
        os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)
        refused(
            moorctl("register", a_name(), "--leader", str(gone.pid)), 1, f"Process {gone.pid} has ended."
        )
        gone.wait(RUN_SECONDS)

    @pytest.mark.parametrize(
        "command",
        ["status", "kill", "stop", "freeze", "thaw", "reset-accounting", "poweroff", "reboot", "forget"],
    )
    def test_no_such_machine(self, moorctl: Moorctl, command: str) -> None:
        name = a_name()
        refused(moorctl(command, name), 3, f"There is no machine {name}.", "List all machines: moorctl ")

    def test_names_are_completed_in_bash(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name = a_name()
        moorctl.output("register", name, "--leader", str(leaders().pid))
        words = " ".join(["moorctl", *moorctl.options, "status", name[:-2]])
        script = f"""
eval "$(moorctl completion bash)"
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
registered=$(complete -p moorctl)
registered=${{registered#*-F }}
${{registered% *}} moorctl
echo "${{COMPREPLY[@]}}"
"""
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, timeout=RUN_SECONDS, check=False,
            env={**moorctl.whole_environment, "PATH": f"{Path(moorctl.program).parent}:{os.environ['PATH']}"},
        )  # fmt: skip
        assert (done.stdout, done.stderr) == (f"{name}\n", "")

    def test_names_are_completed(self, moorctl: Moorctl, leaders: Leaders) -> None:
        name = a_name()
        moorctl.output("register", name, "--leader", str(leaders().pid))
        words = " ".join(["moorctl", *moorctl.options, "status", name[:-2]])
        done = moorctl(
            environment={
                "_MOORCTL_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(len(words.split()) - 1),
            }
        )
        assert done.stdout == f"plain,{name}\n", done
