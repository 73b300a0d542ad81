"""moorctl run against the real moored: what a person or a script starts a machine with."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import trio
from cli_battery import RUN_SECONDS, Moorctl, a_name, refused
from moored import (
    DIRECTORIES,
    ELSEWHERE,
    LOST,
    MANAGER,
    MOORCTL,
    RECORDS,
    TURN_SECONDS_MAX,
    cursor,
    logged,
    lost_lease,
    run,
    scopes,
    show,
    until,
)
from unit_file_settings import (
    SCOPE,
    SERVICE,
    SERVICE_257,
    SERVICE_262,
    SERVICE_DEFAULTS,
    in_force,
)

moorctl = Moorctl(MOORCTL)
GROUP = f"/sys/fs/cgroup{ELSEWHERE}"
Starter = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def _clean(nothing_left: None) -> None:
    """Every test here leaves nothing."""


@pytest.fixture
def start() -> Generator[Starter]:
    """Start moorctl run, and leave it running until the test ends."""
    started: list[subprocess.Popen[str]] = []

    def one(*arguments: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [moorctl.program, *moorctl.options, "run", *arguments], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        return started[-1]

    yield one
    for process in started:
        process.kill()
        process.communicate(timeout=RUN_SECONDS)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def units(name: str) -> list[str]:
    text = run("systemctl", "list-units", "--all", "--plain", "--no-legend", f"machine-{name}*")
    return [line.split()[0] for line in text.splitlines()]


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -SEGV $$", 139)])
def test_the_status_is_that_of_the_command(script: str, status: int) -> None:
    done = moorctl("run", "--name", a_name(), "--", "sh", "-c", f"echo out; echo err >&2; {script}")
    assert (done.returncode, done.stdout, done.stderr) == (status, "out\n", "err\n")


def test_only_the_command_is_in_the_scope() -> None:
    name = a_name()
    script = "g=$(sed -n s/^0:://p /proc/self/cgroup); echo $g; echo $$; cat /sys/fs/cgroup/$g/cgroup.procs"
    done = moorctl("run", "--name", name, "--slice", "machine-run.slice", "--", "bash", "-c", script)
    group, pid, *members = done.stdout.splitlines()
    assert group == f"{MANAGER}/machine.slice/machine-run.slice/machine-{name}.scope"
    assert members == [pid]  # bash becomes cat


def test_what_is_left_ends_with_the_command_and_the_name_is_free() -> None:
    name = a_name()
    for _ in range(5):
        done = moorctl("run", "--name", name, "--", "sh", "-c", "sleep infinity & echo left")
        assert (done.returncode, done.stdout) == (0, "left\n")
        assert done.stderr.startswith("The command ended but left processes behind")
        trio.run(until, lambda: f"machine-{name}.scope" not in scopes())


def test_what_ends_a_moment_after_the_command_is_not_left() -> None:
    done = moorctl("run", "--name", a_name(), "--", "sh", "-c", "sleep 0.1 & exit 7")
    assert (done.returncode, done.stderr) == (7, "")


def test_without_a_lease_what_is_left_stays() -> None:
    name = a_name()
    script = "sleep infinity >/dev/null 2>&1 & echo left"
    done = moorctl("run", "--name", name, "--no-lease", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, "left\n")
    assert show(f"machine-{name}.scope", "ActiveState") == {"ActiveState": "active"}
    moorctl.output("stop", name)


def test_a_qemu_in_the_background_is_told_what_it_takes() -> None:
    name = a_name()
    qemu = ("qemu-system-x86_64", "-M", "microvm", "-accel", "tcg", "-m", "32", "-nodefaults", "-display", "none",
            "-S", "-daemonize")  # fmt: skip
    done = moorctl("run", "--name", name, "--", *qemu)
    assert done.returncode == 0
    assert "as qemu -daemonize does, needs --no-lease" in done.stderr
    done = moorctl("run", "--name", name, "--no-lease", "--", *qemu)
    assert (done.returncode, done.stderr) == (0, "")
    assert show(f"machine-{name}.scope", "ActiveState") == {"ActiveState": "active"}
    moorctl.output("stop", name)


def test_a_helper_that_ends_the_machine_is_named_with_its_last_words(tmp_path: Path) -> None:
    file = tmp_path / "set.toml"
    file.write_text(
        "[helpers.disk]\nonFailure = 'stopMachine'\n"
        "execStart = ['/bin/sh', '-c', 'sleep 0.05; echo cannot open the disk >&2; exit 3']\n"
    )
    name = a_name()
    done = moorctl("run", "--name", name, "--helpers", str(file), "--", "sleep", "infinity")
    words = "its helper disk ended with result exit-code: cannot open the disk"
    assert done.returncode == 143
    # A user's manager is warned about before: it gives a helper less of a sandbox.
    assert done.stderr.splitlines()[-1] == f"Machine {name} ended: {words}."
    text = moorctl.output("status", name)
    assert words in text
    assert "leader ended by SIGTERM, result success" in text
    assert "Log: cannot open the disk" in text


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (("moorctl", "stop", "{}"), "it was stopped on request"),
        (("systemctl", "stop", "machine-{}.scope"), "its unit was stopped through the service manager"),
    ],
)
def test_a_machine_that_is_stopped_by_others(start: Starter, stop: tuple[str, ...], words: str) -> None:
    name = a_name()
    process = start("--name", name, "--", "sh", "-c", "echo ready; exec sleep infinity")
    assert line_of(process) == "ready"
    run(*(word.format(name) for word in stop))
    _, errors = process.communicate(timeout=RUN_SECONDS)
    assert (process.returncode, errors) == (143, f"Machine {name} ended: {words}.\n")


def test_a_lease_that_is_lost_is_told(start: Starter) -> None:
    name = a_name()
    process = start("--name", name, "--", "sh", "-c", "echo ready; exec sleep infinity")
    assert line_of(process) == "ready"
    process.send_signal(signal.SIGSTOP)
    since = cursor()
    run("systemctl", "restart", "moored.service")
    trio.run(until, lambda: f"machine-{name}.scope" not in scopes())
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=RUN_SECONDS)
    assert process.returncode == 143
    assert f"Machine {name} ended: its lease ended: the connection that held it was closed.\n" in errors
    why = "nobody has taken it again since this service was restarted"
    assert f"The lease of machine {name} has ended: {why}. Stopping it." in logged(since)


def test_a_leader_that_leaves_is_told(start: Starter) -> None:
    name = a_name()
    script = f"mkdir {GROUP}; echo $$ > {GROUP}/cgroup.procs; exec sleep infinity"
    process = start("--name", name, "--", "sh", "-c", script)
    trio.run(until, lambda: "exited" in moorctl("status", name).stdout)
    assert "its leader moved to another control group, and lives on there" in moorctl.output("status", name)
    run("pkill", "--cgroup", ELSEWHERE, "sleep")
    _, errors = process.communicate(timeout=RUN_SECONDS)
    words = "its leader moved to another control group, and lives on there"
    assert errors == f"Machine {name} ended: {words}.\n"
    os.rmdir(GROUP)


STOPPED = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("ready", flush=True)
signal.sigwait({signal.SIGTERM})
print("stopped", flush=True)
raise SystemExit(3)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_has_the_machine_stopped(start: Starter, number: int) -> None:
    name = a_name()
    # Not a shell: one that is told to stop between the fork of a child and the wait for it may miss it.
    process = start("--name", name, "--", "python3", "-c", STOPPED)
    assert line_of(process) == "ready"
    process.send_signal(number)
    output, errors = process.communicate(timeout=RUN_SECONDS)
    assert (process.returncode, output) == (3, "stopped\n")
    assert errors == f"Stopping {name}. Interrupt again to kill it.\n"
    assert units(name) == []


GUEST = "trap 'exit 9' TERM; echo ready; while [ ! -e $0 ]; do sleep 0.01; done; exit 4"


@pytest.mark.parametrize("by", ["stop", "signal"])
def test_a_command_shuts_the_guest_down_first(start: Starter, tmp_path: Path, by: str) -> None:
    name, button = a_name(), str(tmp_path / "button")
    running = start("--name", name, "--on-stop", f"touch {button}", "--", "sh", "-c", GUEST, button)
    assert line_of(running) == "ready"
    if by == "stop":
        moorctl.output("stop", name)
    else:
        running.terminate()
    _, said = running.communicate(timeout=RUN_SECONDS)
    assert running.returncode == 4
    assert f"{name} is to stop: shutting it down." in said


def test_a_command_that_fails_has_the_machine_stopped_at_once(start: Starter) -> None:
    name = a_name()
    running = start("--name", name, "--on-stop", "false", "--", "sh", "-c", GUEST, "/none")
    assert line_of(running) == "ready"
    moorctl.output("stop", name)
    _, said = running.communicate(timeout=RUN_SECONDS)
    assert running.returncode == 9
    assert "false ended with status 1" in said
    for options in (["--grace", "5s"], ["--on-stop", "false", "--no-lease"], ["--on-stop", "'"]):
        refused(moorctl("run", "--name", name, *options, "--", "true"), 2)


def test_a_stop_may_insist_before_a_command_has_shut_the_guest_down(start: Starter) -> None:
    name = a_name()
    running = start("--name", name, "--on-stop", "sleep 1000", "--", "sh", "-c", GUEST, "/none")
    assert line_of(running) == "ready"
    moorctl.output("stop", name, "--insist-after", "0")
    running.communicate(timeout=RUN_SECONDS)
    assert running.returncode == 9


def test_a_second_signal_kills(start: Starter) -> None:
    name = a_name()
    process = start(
        "--name", name, "--", "bash", "-c", "trap 'echo no' TERM; echo ready; while :; do sleep 1; done"
    )
    assert line_of(process) == "ready"
    process.send_signal(signal.SIGINT)
    assert line_of(process) == "no"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=RUN_SECONDS)
    assert process.returncode == 128 + signal.SIGKILL
    assert f"Killing {name}.\n" in errors
    assert units(name) == []


def test_moorctl_that_is_killed_takes_the_machine_with_it(start: Starter) -> None:
    name = a_name()
    process = start(
        "--name", name, "--helper", "beside=sleep infinity", "--", "sh", "-c", "echo ready; sleep infinity"
    )
    assert line_of(process) == "ready"
    assert f"machine-{name}-beside.service" in units(name)
    process.kill()
    wait_for(lambda: units(name) == [])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + RUN_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(TURN_SECONDS_MAX)


def test_a_command_that_is_stopped_by_others(start: Starter) -> None:
    name = a_name()
    process = start("--name", name, "--", "sh", "-c", "echo ready; exec sleep infinity")
    assert line_of(process) == "ready"
    moorctl.output("stop", name)
    assert process.wait(RUN_SECONDS) == 128 + signal.SIGTERM


def test_the_service_may_be_gone_in_between(start: Starter) -> None:
    name = a_name()
    process = start("--name", name, "--no-lease", "--", "sh", "-c", "echo ready; exec sleep infinity")
    assert line_of(process) == "ready"
    run("systemctl", "kill", "--signal=KILL", "moored.service")
    process.send_signal(signal.SIGTERM)
    assert process.wait(RUN_SECONDS) == 128 + signal.SIGTERM
    assert units(name) == []


@pytest.mark.usefixtures("grace")
@pytest.mark.parametrize("how", [["restart"], ["kill", "--signal=KILL"]], ids=["restarted", "killed"])
def test_the_lease_is_taken_again(start: Starter, how: list[str]) -> None:
    name = a_name()
    process = start("--name", name, "--", "sh", "-c", "echo ready; exec sleep infinity")
    assert line_of(process) == "ready"
    with lost_lease() as leases_lost:
        run("systemctl", *how, "moored.service")
        wait_for(lambda: LOST in leases_lost())
        assert leases_lost() == {LOST}
    assert show(f"machine-{name}.scope", "ActiveState") == {"ActiveState": "active"}
    process.kill()
    wait_for(lambda: units(name) == [])


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--property=Foo=1", "--", "true"], 2, "there is no property Foo"),
        (["--property=KillMode=odd", "--", "true"], 125, "The value of property KillMode is refused"),
        (["--slice=../x", "--", "true"], 125, "the value of --slice"),
        (["--helper=a=/etc/passwd", "--", "true"], 2, "there is no program '/etc/passwd'"),
        (["--helper=a=sleep 1", "--helper=a=sleep 2", "--", "true"], 125, "a as the name of a helper"),
        (["--subgroup=payload", "--", "true"], 125, "--class container"),
        (["--working-directory=/nowhere", "--", "true"], 125, "--working-directory: /nowhere: No such file"),
        (["--", "no-such-program"], 127, "Failed to execute no-such-program: No such file or directory."),
        (["--", "/etc/passwd"], 126, "Failed to execute /etc/passwd: Permission denied."),
    ],
)
def test_what_is_refused_leaves_nothing(options: list[str], status: int, words: str) -> None:
    name = a_name()
    done = moorctl("run", "--name", name, *options)
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    wait_for(lambda: units(name) == [])


def test_a_helper_that_fails_is_told_of_with_what_it_wrote(tmp_path: Path) -> None:
    # Of type notify: it is not ready before it says so, where one of type exec may have been ready before it fails.
    file = tmp_path / "bad.toml"
    file.write_text(
        """[helpers.bad]
execStart = ["/bin/sh", "-c", "echo went wrong >&2; exit 3"]
type = "notify"
"""
    )
    name = a_name()
    done = moorctl("run", "--name", name, "--helpers", str(file), "--", "echo", "never")
    assert (done.returncode, done.stdout) == (125, "")
    assert f"Helper bad did not start: machine-{name}-bad.service ended with 'exit-code'.\n" in done.stderr
    assert "  went wrong\n" in done.stderr
    wait_for(lambda: units(name) == [])


def test_the_helper_of_a_property_that_is_refused_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    text = '[helpers.{}]\nexecStart = ["/usr/bin/sleep", "9"]\nproperties = {{ {} }}\n'
    for setting, status, words in (
        ("MemoryMx = 5", 2, "helpers.bad.properties: there is no property MemoryMx; did you mean MemoryMax"),
        (
            'KeyringMode = "odd"',
            125,
            "The value of property KeyringMode of helper bad is refused: Invalid KeyringMode setting: odd.",
        ),
    ):
        file.write_text(text.format("good", "Nice = 5") + text.format("bad", setting))
        done = moorctl("run", "--name", a_name(), "--helpers", str(file), "--", "echo", "never")
        refused(done, status, words)


@pytest.mark.system_instance("only root may become another user")
def test_file_descriptors_environment_and_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content\n")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    script = "cat <&3; id -un; id -Gn; pwd; echo $HOME $USER $GIVEN $MOORAGE_SANDBOX"
    done = moorctl(
        "run", "--name", a_name(), "--pass-fd", f"{fd}:3", "--uid", "bob", "--working-directory=/home/bob",
        "-E", "GIVEN=x=y", "--", "sh", "-c", script, pass_fds=[fd],
    )  # fmt: skip
    os.close(fd)
    assert done.returncode == 0, done
    suite = os.environ["MOORAGE_SANDBOX"]
    assert done.stdout.splitlines() == ["content", "bob", "bob", "/home/bob", f"/home/bob bob x=y {suite}"]


def test_a_subgroup() -> None:
    name = a_name()
    done = moorctl(
        "run", "--name", name, "--class", "container", "--subgroup", "payload", "cat", "/proc/self/cgroup"
    )
    assert f"0::{MANAGER}/machine.slice/machine-{name}.scope/payload\n" in done.stdout


def test_a_dry_run() -> None:
    name = a_name()
    done = moorctl("run", "--name", name, "--dry-run", "--", "echo", "never")
    expected = f"machine-{name}.scope\n  TasksMax=16384 (default)\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


FILE = """
command = ["sh", "-c", 'printf "%%s\\n" "$@"; echo said | socat -t 20 - UNIX-CONNECT:%t/echo.sock', "sh", "%n"]

[helpers.echo]
execStart = ["/usr/bin/socat", "ACCEPT-FD:3,fork", "EXEC:cat"]
sockets = [{ name = "echo.sock", mode = 0o600 }]
onFailure = "stopMachine"

[helpers.late]
execStart = ["/usr/bin/sleep", "infinity"]
after = ["echo"]
properties = { OOMScoreAdjust = 100, Environment = ["OF=%n"] }
"""


@pytest.mark.system_instance("only root may become another user")
@pytest.mark.parametrize("user", [[], ["--uid", "bob"]], ids=["root", "bob"])
def test_a_file_of_helpers(tmp_path: Path, user: list[str]) -> None:
    file = tmp_path / "set.toml"
    file.write_text(FILE)
    name = a_name()
    done = moorctl("run", "--name", name, *user, "--helpers", str(file), "--", "further", "words")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{name}\nfurther\nwords\nsaid\n", "")
    assert units(name) == []
    assert not (DIRECTORIES / name).exists()


def test_check_tells_the_names_that_it_will_have(tmp_path: Path, start: Starter) -> None:
    file = tmp_path / "set.toml"
    file.write_text(
        FILE.replace('command = ["sh"', 'command = ["sh", "-c", "echo ready; sleep infinity", "sh"')
    )
    name = f"{a_name()}-a:b"
    told = moorctl.output("check", str(file), "--name", name)
    process = start("--name", name, "--helpers", str(file))
    assert line_of(process) == "ready"
    [directory] = [line.split(": ")[1] for line in told.splitlines() if line.startswith("Runtime directory")]
    assert Path(directory).is_dir()
    for line in told.splitlines():
        if line.startswith("  Unit: "):
            assert show(line.removeprefix("  Unit: "), "ActiveState") == {"ActiveState": "active"}
    assert sum(line.startswith("  Unit: ") for line in told.splitlines()) == 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(RUN_SECONDS) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("helper", "words"),
    [
        (
            "[helpers.a]\nexecStart = ['/usr/bin/no-such-program']",
            "/usr/bin/no-such-program as execStart[0] of helper a",
        ),
        ("[helpers.'my fs']\nexecStart = ['/usr/bin/sleep']", "my fs as the name of a helper"),
        (
            "[helpers.a]\nexecStart = ['/usr/bin/sleep']\nsockets = [{ name = '/run/fs.sock' }]",
            "/run/fs.sock",
        ),
        (
            "[helpers.a]\nexecStart = ['/usr/bin/sleep']\nrestart = 'allways'",
            "allways as restart of helper a",
        ),
        ("[helpers.a]\nexecStart = ['/usr/bin/sleep']\nproperties = { KillMode = 'odd' }", "KillMode"),
    ],
)
def test_check_finds_what_run_would(tmp_path: Path, helper: str, words: str) -> None:
    file = tmp_path / "set.toml"
    file.write_text(helper)
    done = moorctl("check", str(file))
    assert done.returncode != 0
    assert words in done.stderr
    refused(moorctl("run", "--name", a_name(), "--helpers", str(file), "--", "true"), 125, words)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN + 4])
def test_signals_that_mean_something_to_the_command_only_are_passed_on(start: Starter, number: int) -> None:
    process = start(
        "--name",
        a_name(),
        "--",
        "sh",
        "-c",
        f"trap 'echo got it; exit 5' {number}; echo ready; sleep infinity & wait",
    )
    assert line_of(process) == "ready"
    process.send_signal(number)
    assert line_of(process) == "got it"
    assert process.wait(RUN_SECONDS) == 5


def test_the_answer_as_json() -> None:
    name = a_name()
    done = moorctl("run", "--json", "--name", name, "--", "echo", "said")
    assert (done.returncode, done.stdout) == (0, "said\n")
    assert json.loads(done.stderr.splitlines()[0])["machine"]["name"] == name


@pytest.mark.system_instance("many of them take privileges")
class TestSettingsAsInAUnitFile:
    """What moorctl sets is what systemd-run sets."""

    def test_of_a_helper(self, tmp_path: Path, start: Starter) -> None:
        version = int(run("systemctl", "--version").split()[1])
        settings = SERVICE | (SERVICE_257 if version < 262 else SERVICE_262)
        lines = [f"{name} = {json.dumps(in_a_file(value))}" for name, value in settings.items()]
        file = tmp_path / "set.toml"
        file.write_text(
            "\n".join(
                [
                    "[helpers.h]",
                    'execStart = ["/usr/bin/sleep", "infinity"]',
                    "[helpers.h.properties]",
                    *lines,
                ]
            )
        )
        name = a_name()
        process = start(
            "--name", name, "--helpers", str(file), "--", "sh", "-c", "echo ready; exec sleep infinity"
        )
        assert line_of(process) == "ready"
        found = in_force(f"machine-{name}-h.service", settings)
        own = f"/run/moorage/m/{name}"  # in the sandbox of every helper
        assert found["BindPaths"].pop(0)[:2] == [own, own]
        # The mark of the start that made the unit is there as well.
        found["Documentation"] = [
            text for text in found["Documentation"] if not text.startswith(f"file:{RECORDS}/")
        ]

        given = [f"--property={name}={value}" for name, value in settings.items()]
        run("systemd-run", "--unit=like", *SERVICE_DEFAULTS, *given, "sleep", "infinity")
        expected = in_force("like.service", settings)
        run("systemctl", "stop", "like.service")
        assert found == expected
        assert [name for name, value in found.items() if value is None] == []

    def test_of_a_scope(self, start: Starter) -> None:
        given = [f"--property={name}={value}" for name, value in SCOPE.items()]
        name = a_name()
        process = start("--name", name, *given, "--", "sh", "-c", "echo ready; exec sleep infinity")
        assert line_of(process) == "ready"
        found = in_force(f"machine-{name}.scope", SCOPE)

        like = [
            "systemd-run",
            "--scope",
            "--unit=like",
            *given,
            "sh",
            "-c",
            "echo ready; exec sleep infinity",
        ]
        with subprocess.Popen(like, stdout=subprocess.PIPE, text=True) as process:
            assert line_of(process) == "ready"
            expected = in_force("like.scope", SCOPE)
            run("systemctl", "stop", "like.scope")
        assert found == expected
        assert [name for name, value in found.items() if value is None] == []


def in_a_file(value: str) -> str:
    """With percent signs as a file of helpers has them, but where a share is meant."""
    return value if value.removesuffix("%").replace(".", "").isdecimal() else value.replace("%", "%%")
