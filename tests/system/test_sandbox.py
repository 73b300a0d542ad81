"""What every other system test stands on."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from sandboxes import CHECKOUT, RUN_SECONDS, TOOL, Sandbox, start, stop

SYSTEMS = {"trixie": ("trixie", "nspawn"), "forky": ("forky", "nspawn"), "forky-uml": ("forky", "uml")}
"""Suite and kind of the sandboxes that the tests of this module run on."""


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Suite and kind; a test that uses it, or one of the fixtures below, runs once for each."""
    return SYSTEMS[request.param]


@pytest.fixture(scope="module")
def sandbox(system: tuple[str, str]) -> Generator[Sandbox]:
    """A sandbox shared by the tests of this module."""
    suite, kind = system
    one = start(suite, ["--kind", kind])
    yield one
    stop(one)


@pytest.fixture
def another(system: tuple[str, str]) -> Generator[Sandbox]:
    """A sandbox of one's own, which the test may take down."""
    suite, kind = system
    one = start(suite, ["--kind", kind])
    yield one
    if Path(f"/run/moorage-sandbox/{one.name}").exists():
        stop(one)


def traces(name: str) -> list[str]:
    """What a host can still see of a sandbox: directories, mounts, control groups, processes."""
    found = [str(path) for path in Path("/run/moorage-sandbox").glob(f"{name}*")]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
    # Not Path.rglob(), which fails where a group of another sandbox goes at that moment.
    for directory, below, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{directory}/{each}" for each in below if name in each]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            status, groups = (process / "status").read_text(), (process / "cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # A dead process waits for the host's PID 1 to take note of it, at that one's leisure.
        if name in groups and "State:\tZ" not in status:
            found.append(f"{status}{groups}")
    return found


def test_pid_1_is_the_systemd_of_the_suite(sandbox: Sandbox) -> None:
    assert sandbox.run(["readlink", "/proc/1/exe"]).stdout.strip() == "/usr/lib/systemd/systemd"
    assert sandbox.run(["systemctl", "--version"]).stdout.startswith(f"systemd {sandbox.systemd} ")
    version = json.loads(sandbox.run(["busctl", "--json=short", "get-property", *PID1, "Version"]).stdout)[
        "data"
    ]
    assert version.startswith(str(sandbox.systemd))


PID1 = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")


def test_the_boot_is_complete_and_clean(sandbox: Sandbox) -> None:
    assert sandbox.run(["systemctl", "is-system-running"]).stdout.strip() == "running"
    assert sandbox.run(["systemctl", "--failed", "--no-legend", "--plain"]).stdout == ""


def test_control_groups_are_unified(sandbox: Sandbox) -> None:
    assert sandbox.run(["stat", "-f", "-c", "%T", "/sys/fs/cgroup"]).stdout.strip() == "cgroup2fs"


def test_a_kernel_of_its_own_has_what_a_container_has_not(sandbox: Sandbox, system: tuple[str, str]) -> None:
    own = sandbox.run(["uname", "-r"]).stdout.strip() != os.uname().release
    assert own == (system[1] == "uml")
    if own:
        controllers = sandbox.run(["cat", "/sys/fs/cgroup/cgroup.controllers"]).stdout.split()
        assert {"cpu", "io", "memory", "pids"} <= set(controllers)
        script = (
            "import os; print(os.getxattr('/sys/fs/cgroup/system.slice/dbus.service', 'user.invocation_id'))"
        )
        kept = sandbox.run(["python3", "-c", script]).stdout
        told = sandbox.run(["systemctl", "show", "--value", "-p", "InvocationID", "dbus.service"]).stdout
        assert told.strip() in kept


def test_a_command_runs_in_a_unit_of_the_sandbox(sandbox: Sandbox) -> None:
    group = sandbox.run(["sed", "-n", "s/^0:://p", "/proc/self/cgroup"]).stdout.strip()
    assert group.startswith("/system.slice/run-")
    assert group.endswith(".scope")


def test_a_command_has_the_streams_and_the_status_of_its_caller(sandbox: Sandbox) -> None:
    done = sandbox.run(["sh", "-c", "cat; echo aside >&2; exit 7"], input="words\n", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "words\n", "aside\n")
    with pytest.raises(AssertionError, match=r"status 7\n.*aside"):
        sandbox.run(["sh", "-c", "echo aside >&2; exit 7"])


def test_a_command_that_was_killed_says_by_what(sandbox: Sandbox) -> None:
    done = sandbox.run(["python3", "-c", "import os; os.kill(os.getpid(), 15)"], check=False)
    assert done.returncode == -signal.SIGTERM


def test_a_command_that_is_not_there(sandbox: Sandbox) -> None:
    done = sandbox.run(["/not/there"], check=False)
    assert done.returncode > 0
    assert "/not/there" in done.stderr


def test_many_bytes_both_ways(sandbox: Sandbox) -> None:
    text = "0123456789abcde\n" * 100_000
    done = sandbox.run(["python3", "-c", BOTH_WAYS], input=text)
    assert done.stdout == text
    assert done.stderr == text


BOTH_WAYS = """
import os
while data := os.read(0, 65536):
    for sink in (1, 2):
        rest = data
        while rest:
            rest = rest[os.write(sink, rest):]
"""


def test_a_reader_that_has_enough_ends_the_command(sandbox: Sandbox) -> None:
    with sandbox.spawn(["yes"]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "y\n"
        process.stdout.close()
        assert process.wait(RUN_SECONDS) != 0


def test_commands_at_the_same_time(sandbox: Sandbox) -> None:
    started = [sandbox.spawn(["cat"]) for _ in range(8)]
    for number, process in enumerate(started):
        assert process.communicate(f"{number}\n", timeout=RUN_SECONDS)[0] == f"{number}\n"


def test_a_command_that_takes_too_long_leaves_no_process(sandbox: Sandbox) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        sandbox.run(["sleep", "8765"], timeout=1.0)
    # The scope that held it goes when its last process is gone.
    sandbox.run(["sh", "-c", "timeout 20 sh -c 'while pgrep -f \"^sleep 8765\" >/dev/null; do :; done'"])


def test_users_have_a_service_manager_of_their_own(sandbox: Sandbox) -> None:
    sandbox.run(["systemctl", "start", "user@1000.service"])
    assert sandbox.run(["id", "-un"], user=1000).stdout == "alice\n"
    assert (
        sandbox.run(["systemctl", "--user", "is-system-running", "--wait"], user=1000).stdout == "running\n"
    )
    through = ["systemd-run", "--user", "--machine=alice@.host", "--pipe", "--wait", "--quiet", "id", "-un"]
    assert sandbox.run(through).stdout == "alice\n"


def test_the_checkout_is_installed_for_the_python_of_the_suite(sandbox: Sandbox) -> None:
    where = sandbox.run(["python3", "-c", "import moorage; print(moorage.__file__)"]).stdout.strip()
    assert where == "/usr/lib/python3/dist-packages/moorage/__init__.py"
    sandbox.run(["test", "-x", "/usr/bin/moored", "-a", "-x", "/usr/bin/moorctl"])
    shipped = sandbox.run(["ls", "/usr/lib/python3/dist-packages/moorage/interfaces"]).stdout.split()
    assert shipped == sorted(path.name for path in (CHECKOUT / "interfaces").glob("*.varlink"))
    sandbox.run(["python3", "-c", "import asyncvarlink, jeepney, msgspec, systemd.daemon, trio, varlink"])


def test_the_checkout_is_there_read_only(sandbox: Sandbox) -> None:
    assert (
        sandbox.run(["cat", "/moorage/pyproject.toml"]).stdout == (CHECKOUT / "pyproject.toml").read_text()
    )
    assert sandbox.run(["touch", "/moorage/written"], check=False).returncode == 1


def test_varlinkctl_reaches_machined(sandbox: Sandbox) -> None:
    sandbox.run(["systemctl", "start", "systemd-machined.service"])
    info = sandbox.run(["varlinkctl", "info", "/run/systemd/machine/io.systemd.Machine"]).stdout
    assert "io.systemd.Machine" in info


def test_the_journal_works(sandbox: Sandbox) -> None:
    sandbox.run(["systemd-cat", "--identifier=sandbox-test", "echo", "a line"])
    sandbox.run(["journalctl", "--sync"])
    assert sandbox.run(["journalctl", "-b", "-t", "sandbox-test", "-o", "cat"]).stdout == "a line\n"


def test_two_at_once_know_nothing_of_each_other(
    sandbox: Sandbox, another: Sandbox, system: tuple[str, str]
) -> None:
    another.run(["systemd-run", "--unit=mine", "sleep", "600"])
    another.run(["touch", "/var/mine"])
    assert another.run(["systemctl", "is-active", "mine"]).stdout == "active\n"
    assert sandbox.run(["systemctl", "is-active", "mine"], check=False).stdout == "inactive\n"
    assert sandbox.run(["test", "-e", "/var/mine"], check=False).returncode == 1
    image = subprocess.run(
        [TOOL, "build", system[0]], check=True, capture_output=True, text=True, timeout=60
    )
    assert not (Path(image.stdout.strip()) / "var/mine").exists()
    ids = {box.run(["cat", "/etc/machine-id"]).stdout for box in (sandbox, another)}
    assert len(ids) == 2


def test_down_leaves_nothing(another: Sandbox) -> None:
    another.run(
        ["systemd-run", "--unit=stubborn", "-p", "SendSIGKILL=no", "sh", "-c", "trap '' TERM; sleep 600"]
    )
    with another.spawn(["sh", "-c", "echo here; exec sleep 600"]) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "here\n"
        assert traces(another.name)

        subprocess.run([TOOL, "down", another.name], check=True, timeout=60)

        assert caller.wait(RUN_SECONDS) != 0
    assert traces(another.name) == []


def test_a_boot_that_was_killed_can_be_taken_down(system: tuple[str, str]) -> None:
    suite, kind = system
    name = f"killed-{suite}-{kind}"
    subprocess.run([TOOL, "build", suite], check=True, timeout=1200, stdout=subprocess.DEVNULL)
    up = [TOOL, "up", suite, "--kind", kind, "--name", name]
    with subprocess.Popen(up, stdout=subprocess.DEVNULL) as starting:
        # It is on its way as soon as its console log is there.
        while not Path(f"/run/moorage-sandbox/{name}/console.log").exists():
            assert starting.poll() is None
        starting.kill()
    assert traces(name)

    again = subprocess.run(up, check=False, capture_output=True, text=True, timeout=60)
    assert again.returncode == 1
    assert f"tools/sandbox down {name}" in again.stderr
    subprocess.run([TOOL, "down", name], check=True, timeout=60)

    assert traces(name) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        pytest.param(("--kind=nspawn", "--bind=/nowhere/at/all:/mnt"), "/nowhere/at/all", id="nspawn"),
        pytest.param(("--kind=uml", "--size=4k"), "No space left on device", id="uml"),
    ],
)
def test_a_boot_that_fails_tells_why_and_leaves_nothing(options: tuple[str, str], told: str) -> None:
    name = "broken"
    broken = [TOOL, "up", "forky", "--name", name, *options]
    done = subprocess.run(broken, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert told in done.stderr
    assert traces(name) == []


@pytest.mark.parametrize(
    "options",
    [
        ("trixie", "--kind=uml"),
        ("forky", "--kind=uml", "--read-only"),
        ("forky", "--kind=uml", "--nofile=9:9"),
    ],
)
def test_what_a_kind_has_not_is_refused(options: tuple[str, ...]) -> None:
    refused = [TOOL, "up", "--name", "refused", *options]
    done = subprocess.run(refused, check=False, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "--kind uml" in done.stderr
    assert traces("refused") == []


def test_without_the_broker_only_the_private_socket_is_left(boot: Callable[..., Sandbox]) -> None:
    one = boot("--no-broker")
    assert one.run(["systemctl", "is-system-running"]).stdout == "running\n"
    assert one.run(["test", "-e", "/run/dbus/system_bus_socket"], check=False).returncode == 1


def test_with_a_root_that_is_read_only(boot: Callable[..., Sandbox]) -> None:
    one = boot("--read-only")
    assert one.run(["touch", "/etc/written"], check=False).returncode == 1
    one.run(["touch", "/run/written"])


def test_a_directory_of_limited_size_and_few_file_descriptors(boot: Callable[..., Sandbox]) -> None:
    one = boot("--tmpfs=/run/small:64k", "--nofile=64:128")
    assert one.run(["df", "--output=size", "/run/small"]).stdout.split() == ["1K-blocks", "64"]
    assert one.run(["sh", "-c", "ulimit -Sn; ulimit -Hn"]).stdout.split() == ["64", "128"]
    assert (
        one.run(["systemd-run", "--pipe", "--wait", "-q", "sh", "-c", "ulimit -Hn"]).stdout.strip() == "128"
    )


@pytest.mark.parametrize("name", ["nobody", "../etc", "Upper", "x" * 41, ""])
def test_a_wrong_name_is_refused(name: str) -> None:
    for command in (["down", name], ["exec", name, "true"]):
        done = subprocess.run([TOOL, *command], check=False, capture_output=True, text=True, timeout=20)
        assert done.returncode in (1, 2)
        assert done.stderr.strip()
