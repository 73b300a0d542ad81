"""moorctl top, without a service manager: at a terminal, and without one."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from cli_battery import RUN_SECONDS, PreloadedMoorctl, a_name, refused
from pty_battery import Person

WRITTEN = "sort: c m i t p s n"


class Fake:
    """The fake of the service, and its socket, which outlives it."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self.moorctl = PreloadedMoorctl(["--address", str(path)])
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start it again."""
        program = Path(__file__).with_name("fake_moored.py")
        self.process = subprocess.Popen([sys.executable, program], stdin=self._listener.fileno())
        return self.process

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(RUN_SECONDS)

    def close(self) -> None:
        """End it for good."""
        self.stop()
        self._listener.close()


@pytest.fixture
def fake(tmp_path: Path) -> Generator[Fake]:
    found = Fake(tmp_path / "socket")
    yield found
    found.close()


@pytest.fixture
def name(fake: Fake) -> Generator[str]:
    """The name of a machine."""
    found = a_name()
    with subprocess.Popen(["sleep", "infinity"]) as leader:
        fake.moorctl.output("register", found, "--leader", str(leader.pid))
        yield found
        leader.kill()


Watch = Callable[..., Person]


@pytest.fixture
def watch(fake: Fake) -> Generator[Watch]:
    people: list[Person] = []

    def person(*options: str, **variables: str) -> Person:
        moorctl = fake.moorctl
        environment = {**os.environ, "TERM": "xterm", **variables}
        environment.pop("COLUMNS", None)
        people.append(Person([moorctl.program, *moorctl.options, "top", *options], environment))
        return people[-1]

    yield person
    for each in people:
        each.leave()


def test_a_table_that_is_drawn_again_until_ctrl_c(watch: Watch, name: str) -> None:
    person = watch("--delay", "50ms")
    assert "CPU" not in person.read("memory 3.0M, by cpu")  # that takes two looks
    person.read("CPU 50.0%, memory 3.0M")
    shown = person.read(WRITTEN)
    assert name in shown
    assert "75%" in shown
    assert "\x1b[" in shown
    person.read("CPU 50.0%")
    person.type("m")
    person.read("by memory")
    person.process.send_signal(signal.SIGINT)
    status, rest = person.end()
    assert status == 130
    # The cursor, and what was there before, are back.
    assert "\x1b[?25h" in rest
    assert "\x1b[?1049l" in rest
    assert person.modes() == person.modes_before


@pytest.mark.parametrize(("key", "number", "status"), [("q", None, 0), (None, signal.SIGTERM, 143)])
def test_the_terminal_is_as_before(
    watch: Watch, name: str, key: str | None, number: int | None, status: int
) -> None:
    person = watch("--delay", "50ms")
    person.read(name)
    if key is not None:
        person.type(key)
    if number is not None:
        person.process.send_signal(number)
    found, rest = person.end()
    assert found == status
    assert "\x1b[?1049l" in rest
    assert person.modes() == person.modes_before


def test_it_goes_on_when_the_service_is_restarted(watch: Watch, fake: Fake, name: str) -> None:
    person = watch("--delay", "50ms")
    person.read(name)
    fake.stop()
    fake.start()
    person.read("0 machines")  # the fake forgets
    person.type("q")
    assert person.end()[0] == 0


def test_lines_fit_into_eighty_columns(watch: Watch, fake: Fake) -> None:
    long = "a" * 64
    with subprocess.Popen(["sleep", "infinity"]) as leader:
        fake.moorctl.output("register", long, "--leader", str(leader.pid))
        person = watch("--delay", "50ms", "--iterations", "2", NO_COLOR="1")
        person.read("CPU 50.0%")
        shown = person.read(WRITTEN)
        assert "a" * 20 in shown
        assert long not in shown
        assert "PRESSURE" in shown
        leader.kill()
    assert person.end()[0] == 0


def test_no_number_is_cut_off_where_the_window_is_narrow(watch: Watch, name: str) -> None:
    person = watch("--delay", "50ms", NO_COLOR="1")
    person.read(name[:8])
    person.resize(24, 40)
    person.read("by c…")  # the summary has no room either
    person.read("by c…")
    shown = person.read(WRITTEN)
    for whole in ("NAME", "CPU%", " 50.0 ", "MEMORY", "3.0M"):
        assert whole in shown
    assert "PRESSURE" not in shown
    person.type("p")
    person.read("PRESSURE")  # what they are sorted by stays


def test_one_table_without_a_terminal(fake: Fake, name: str) -> None:
    heading, row = fake.moorctl.output("top", "--delay", "10ms").splitlines()
    assert heading.split() == ["NAME", "STATE", "CPU%", "MEMORY", "OF", "IO/S", "TASKS", "PRESSURE"]
    assert row.split()[:2] == [name, "running"]
    assert row.split()[3:] == ["3.0M", "75%", "-", "1", "-"]


def test_json_for_each_machine_and_each_look(fake: Fake, name: str) -> None:
    lines = fake.moorctl.output("top", "--json", "--delay", "10ms", "--iterations", "2").splitlines()
    assert len(lines) == 2
    found = json.loads(lines[0])
    assert (
        found.items()
        >= {"name": name, "phase": "running", "memoryCurrent": 3 << 20, "memoryMax": 4 << 20}.items()
    )
    assert found["cpuPercent"] == pytest.approx(50)


def test_only_machines_that_match(fake: Fake, name: str) -> None:
    assert name in fake.moorctl.output("top", "--delay", "10ms", "--filter", f"{name[:3]}*")
    assert name not in fake.moorctl.output("top", "--delay", "10ms", "--filter", "x*")


def test_without_a_service(tmp_path: Path) -> None:
    refused(PreloadedMoorctl(["--address", str(tmp_path / "none")])("top"), 5)
