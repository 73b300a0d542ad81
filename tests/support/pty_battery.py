"""What ``moorctl run --pty`` must do with any service: the real moored, or the fake of the unit tests."""

import os
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Generator, Sequence
from typing import IO, Any

import pytest
from cli_battery import RUN_SECONDS, Moorctl, a_name

LFLAG = 3
BURST = 1024 * 1024


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition holds that nothing announces."""
    deadline = time.monotonic() + RUN_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Person:
    """A person at a terminal, with a program in the foreground of a session of its own."""

    def __init__(self, argv: Sequence[str], environment: dict[str, str]) -> None:
        self._ours, self._theirs = os.openpty()
        self.resize(24, 80)
        self.modes_before = self.modes()
        self._seen = b""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *argv],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env=environment,
        )

    def resize(self, lines: int, columns: int) -> None:
        """Change the size of the window."""
        termios.tcsetwinsize(self._ours, (lines, columns))

    def modes(self) -> list[Any]:
        """Return the modes of the terminal."""
        return termios.tcgetattr(self._theirs)

    def sees_keys(self) -> bool:
        """Whether the program gets single keys instead of lines."""
        return not self.modes()[LFLAG] & termios.ICANON

    def type(self, keys: str) -> None:
        """Type text."""
        os.write(self._ours, keys.encode())

    def read(self, until: str) -> str:
        """Read until a text appears, and return what came before it."""
        end = until.encode()
        while (at := self._seen.find(end)) < 0:
            assert self._more(RUN_SECONDS), f"no {until!r} in {self._seen!r}"
        before, self._seen = self._seen[:at], self._seen[at + len(end) :]
        return before.decode()

    def _more(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        self._seen += os.read(self._ours, 65536)
        return True

    def end(self) -> tuple[int, str]:
        """Wait for the end of the program. Return its status, and the rest of its output."""
        pidfd = os.pidfd_open(self.process.pid)
        try:
            while not select.select([pidfd], [], [], 0)[0]:
                assert select.select([self._ours, pidfd], [], [], RUN_SECONDS)[0], self._seen
                self._more(0)
        finally:
            os.close(pidfd)
        while self._more(0):
            pass
        return self.process.wait(RUN_SECONDS), self._seen.decode()

    def leave(self) -> None:
        """Close the terminal."""
        self.process.kill()
        self.process.wait(RUN_SECONDS)
        os.close(self._ours)
        os.close(self._theirs)


Sit = Callable[..., Person]
Stream = int | IO[bytes]
Piped = Callable[..., subprocess.Popen[bytes]]

WAIT = "sh -c 'echo ready; exec sleep 100' & wait"
"""Does nothing, and can be interrupted. The child says when it is ready: an earlier signal would find no child to end,
or might be lost in one that had not executed anything yet."""


class Terminals:
    """Needs a fixture `moorctl`, a `Moorctl`."""

    @pytest.fixture
    def sit(self, moorctl: Moorctl) -> Generator[Sit]:
        """Start moorctl run --pty at a terminal."""
        people: list[Person] = []

        def person(*command: str, name: str | None = None, options: Sequence[str] = ()) -> Person:
            argv = [moorctl.program, *moorctl.options, "run", "--pty", "--name", name or a_name(), *options]
            people.append(Person([*argv, "--", *command], moorctl.whole_environment))
            return people[-1]

        yield person
        for one in people:
            one.leave()

    @pytest.fixture
    def piped(self, moorctl: Moorctl) -> Generator[Piped]:
        """Start moorctl run --pty without a terminal."""
        started: list[subprocess.Popen[bytes]] = []

        def one(
            *command: str,
            name: str | None = None,
            options: Sequence[str] = (),
            stdin: Stream = subprocess.DEVNULL,
            stdout: Stream = subprocess.PIPE,
        ) -> subprocess.Popen[bytes]:
            run = [moorctl.program, *moorctl.options, "run", "--pty", "--name", name or a_name()]
            argv = [*run, *options, "--", *command]
            environment = moorctl.whole_environment
            started.append(
                subprocess.Popen(argv, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env=environment)
            )
            return started[-1]

        yield one
        for process in started:
            process.kill()
            process.communicate()


def told_to_end(sit: Sit, number: int) -> None:
    """Assert that a signal stops the machine, and that the terminal is restored."""
    name = a_name()
    person = sit("sh", "-c", f"trap 'exit 3' TERM; {WAIT}", name=name)
    person.read("ready\r\n")
    assert person.sees_keys()
    person.process.send_signal(number)
    assert person.end() == (3, f"\r\nStopping {name}. Interrupt again to kill it.\r\n")
    assert person.modes() == person.modes_before


def piped_to_its_end(piped: Piped, text: str) -> None:
    """Assert that a command reads a pipe to its end."""
    process = piped("sh", "-c", "cat | tr a-z b-za", stdin=subprocess.PIPE)
    output, errors = process.communicate(text.encode(), RUN_SECONDS)
    assert (process.returncode, errors) == (0, b"")
    shifted = text.translate(str.maketrans("enotw", "fopux"))
    for line in [*text.split("\n"), *shifted.split("\n")]:  # the terminal echoes what is typed
        assert line.encode() in output


class PtyBattery(Terminals):
    """Tests for both."""

    def test_a_terminal_of_its_own(self, sit: Sit) -> None:
        person = sit(
            "bash", "-c", "tty; ps -o sid=,tpgid= $$; echo $$; test -t 0 && test -t 2; echo told >/dev/tty"
        )
        status, text = person.end()
        invitation, tty, ids, pid, told = text.splitlines()
        assert (status, told) == (0, "told")
        assert invitation.startswith("Press Ctrl-] three times within 1 s to stop ")
        assert tty.startswith("/dev/pts/")
        assert tty != os.ttyname(person._theirs)
        assert ids.split() == [pid, pid]  # session leader, in the foreground

    def test_the_size_of_the_window(self, sit: Sit) -> None:
        person = sit("sh", "-c", f"stty size; trap 'stty size; exit 4' WINCH; {WAIT}")
        person.read("24 80\r\n")
        person.read("ready\r\n")
        person.resize(50, 132)
        status, text = person.end()
        assert (status, text) == (4, "50 132\r\n")

    def test_keys_are_the_commands(self, sit: Sit) -> None:
        person = sit("sh", "-c", f"trap 'echo interrupted; exit 5' INT; {WAIT}")
        person.read("ready\r\n")
        person.type("\x03")
        assert person.end() == (5, "^Cinterrupted\r\n")

    def test_a_shell_with_job_control(self, sit: Sit) -> None:
        person = sit(
            "bash", "--norc", "--noprofile", options=["-E", "PS1=> ", "-E", "HISTFILE=", "-E", "TERM=dumb"]
        )
        assert "job control" not in person.read("> ")
        person.type("echo $((6*7))\r")
        person.read("\r\n42\r\n")
        person.type("sh -c 'echo up; exec sleep 100'\r")
        person.read("\r\nup\r\n")
        person.type("\x1a")
        person.read("Stopped")
        person.read("> ")
        person.type("exit 3\r")
        person.read("There are stopped jobs.")
        person.type("exit 3\r")
        assert person.end()[0] == 3

    def test_a_burst_at_a_terminal(self, sit: Sit) -> None:
        status, text = sit("sh", "-c", f"head -c {BURST} /dev/zero | tr '\\0' x").end()
        assert (status, text.count("x")) == (0, BURST + text.splitlines()[0].count("x"))
        assert text.endswith("x" * BURST)

    def test_escape(self, sit: Sit) -> None:
        name = a_name()
        person = sit("sh", "-c", f"trap 'echo no' TERM; stty -echo; while :; do {WAIT}; done", name=name)
        person.read("ready\r\n")
        person.type("\x1d\x1d\x1d")
        person.read(f"Stopping {name}. Interrupt again to kill it.\r\n")
        person.read("no\r\n")
        person.type("\x1d\x1d\x1d")
        person.read(f"Killing {name}.\r\n")
        assert person.end()[0] == 137

    def test_a_terminal_that_is_closed(self, sit: Sit) -> None:
        person = sit("sh", "-c", f"trap 'exit 3' HUP; trap 'exit 4' TERM; {WAIT}")
        person.read("ready\r\n")
        os.close(person._ours)
        person._ours = os.open(os.devnull, os.O_RDWR)
        assert person.process.wait(RUN_SECONDS) == 4  # stopped, as by `moorctl stop`

    def test_a_signal_has_the_machine_stopped(self, sit: Sit) -> None:
        told_to_end(sit, signal.SIGTERM)

    def test_the_end_of_a_pipe(self, piped: Piped) -> None:
        piped_to_its_end(piped, "one\ntwo")
