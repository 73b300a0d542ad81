"""moorctl run --pty without a service manager."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Generator
from pathlib import Path

import pytest
from cli_battery import RUN_SECONDS, Moorctl, a_name
from pty_battery import BURST, Piped, PtyBattery, Sit, piped_to_its_end, told_to_end, wait_for

from moorage.cli.terminal import Escape


class TestEscape:
    @pytest.mark.parametrize(
        ("typed", "found"),
        [
            ([(0, "\x1d\x1d\x1d")], [True]),
            ([(0, "\x1d"), (0.5, "\x1d"), (1.0, "\x1d")], [False, False, True]),
            ([(0, "\x1d"), (0.5, "\x1d"), (1.1, "\x1d")], [False, False, False]),
            ([(0, "\x1d"), (1.1, "\x1d\x1d"), (1.2, "\x1d")], [False, False, True]),
            ([(0, "\x1d\x1da\x1d")], [False]),
            ([(0, "\x1d\x1da\x1d\x1d\x1db")], [True]),
            ([(0, "\x1d\x1d\x1d"), (0, "\x1d\x1d"), (0, "\x1d")], [True, False, True]),
        ],
    )
    def test_three_within_a_second(self, typed: list[tuple[float, str]], found: list[bool]) -> None:
        escape = Escape()
        assert [escape.found(keys.encode(), now) for now, keys in typed] == found


@pytest.fixture(scope="module")
def moorctl(tmp_path_factory: pytest.TempPathFactory) -> Generator[Moorctl]:
    path = str(tmp_path_factory.mktemp("fake") / "socket")
    fake = [sys.executable, str(Path(__file__).with_name("fake_moored.py"))]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        service = subprocess.Popen(fake, stdin=listener.fileno())
    yield Moorctl(["--address", path])
    service.terminate()
    service.wait(RUN_SECONDS)


class TestOverTheFake(PtyBattery):
    """The battery, and what is no matter of the service."""

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
    def test_other_signals_do_so_too(self, sit: Sit, number: int) -> None:
        told_to_end(sit, number)

    @pytest.mark.parametrize("text", ["", "one\ntwo\n"])
    def test_other_ends_of_a_pipe(self, piped: Piped, text: str) -> None:
        piped_to_its_end(piped, text)

    def test_passwords_are_not_shown(self, sit: Sit) -> None:
        person = sit("sh", "-c", "stty -echo; echo ready; read word; stty echo; echo $word | tr a-z b-za")
        person.read("ready\r\n")
        person.type("secret\r")
        assert person.end() == (0, "tfdsfu\r\n")

    def test_a_burst_into_a_pipe(self, piped: Piped) -> None:
        output, errors = piped(
            "sh", "-c", f"head -c {BURST} /dev/zero | tr '\\0' x; echo err >&2"
        ).communicate()
        assert output == b"x" * BURST + b"err\r\n"
        assert errors == b""

    def test_a_burst_into_a_file(self, piped: Piped, tmp_path: Path) -> None:
        with open(tmp_path / "file", "w+b", buffering=0) as file:
            file.write(b"before")
            process = piped("sh", "-c", f"head -c {BURST} /dev/zero | tr '\\0' x", stdout=file)
            assert process.wait(RUN_SECONDS) == 0
            file.write(b"after")
        assert (tmp_path / "file").read_bytes() == b"before" + b"x" * BURST + b"after"

    @pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -SEGV $$", 139)])
    def test_the_status_is_that_of_the_command(self, piped: Piped, script: str, status: int) -> None:
        assert piped("sh", "-c", script).wait(RUN_SECONDS) == status

    @pytest.mark.parametrize(
        ("command", "status"),
        [(["true"], 0), (["stty", "raw"], 0), (["no-such-program"], 127), (["sh", "-c", "kill -9 $$"], 137)],
    )
    def test_the_terminal_is_as_before_at_any_end(self, sit: Sit, command: list[str], status: int) -> None:
        person = sit(*command)
        assert person.end()[0] == status
        assert person.modes() == person.modes_before

    def test_the_terminal_is_as_before_when_it_is_refused(self, sit: Sit) -> None:
        person = sit("true", options=["--slice", "no.service"])
        status, text = person.end()
        assert status == 125
        assert "does not accept the value of --slice" in text
        assert person.modes() == person.modes_before

    def test_a_shell_that_had_the_terminal_meanwhile(self, sit: Sit) -> None:
        person = sit("sh", "-c", "echo ready; read line; echo $line")
        person.read("ready\r\n")
        person.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, person.process.pid, os.WSTOPPED)
        termios.tcsetattr(person._theirs, termios.TCSANOW, person.modes_before)
        assert not person.sees_keys()
        person.resize(30, 90)
        person.process.send_signal(signal.SIGCONT)
        wait_for(person.sees_keys)
        person.type("on\r")
        assert person.end() == (0, "on\r\non\r\n")
        assert person.modes() == person.modes_before

    def test_no_input(self, piped: Piped) -> None:
        process = piped("sh", "-c", "cat; cat; echo done")  # it is at its end each time
        assert process.communicate(timeout=RUN_SECONDS) == (b"done\r\n", b"")

    def test_a_pipe_into_a_shell(self, piped: Piped) -> None:
        """It reads keys, lines in between, and is told of the end in the manner of the moment."""
        process = piped("bash", "--norc", "--noprofile", stdin=subprocess.PIPE)
        output, _ = process.communicate(b"cat; echo $((6*7))\nof cat\n", RUN_SECONDS)
        assert process.returncode == 0
        assert b"of cat" in output
        assert b"\n42\r\n" in output

    def test_much_into_a_pipe(self, piped: Piped) -> None:
        process = piped("sh", "-c", "stty -echo; wc -c", stdin=subprocess.PIPE)
        output, _ = process.communicate(b"0123456789\n" * 20_000, RUN_SECONDS)
        assert output.endswith(b"220000\r\n")

    def test_three_of_the_keys_in_a_pipe_mean_nothing(self, piped: Piped) -> None:
        process = piped("sh", "-c", "read x; exit 9", stdin=subprocess.PIPE)
        _, errors = process.communicate(b"\x1d\x1d\x1d\n", RUN_SECONDS)
        assert (process.returncode, errors) == (9, b"")

    def test_a_half_closed_socket(self, piped: Piped) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(RUN_SECONDS)
            process = piped(
                "sh", "-c", "cat >/dev/null; echo still", stdin=theirs.fileno(), stdout=theirs.fileno()
            )
            ours.sendall(b"text\n")
            ours.shutdown(socket.SHUT_WR)
            assert process.wait(RUN_SECONDS) == 0
            theirs.shutdown(socket.SHUT_WR)
            with ours.makefile("rb") as stream:
                assert stream.read() == b"text\r\nstill\r\n"
            assert os.get_blocking(theirs.fileno())

    def test_streams_that_are_closed(self, moorctl: Moorctl, tmp_path: Path) -> None:
        script = f'exec "$@" >"{tmp_path}/out" 2>&1 <&-'
        run = [
            moorctl.program,
            *moorctl.options,
            "run",
            "--pty",
            "--name",
            a_name(),
            "--",
            "sh",
            "-c",
            "cat; echo said",
        ]
        assert (
            subprocess.run(["sh", "-c", script, "sh", *run], timeout=RUN_SECONDS, check=False).returncode
            == 0
        )
        assert (tmp_path / "out").read_text() == "said\n"
        script = 'exec "$@" >&- 2>&- <&-'
        assert (
            subprocess.run(["sh", "-c", script, "sh", *run], timeout=RUN_SECONDS, check=False).returncode
            == 0
        )

    def test_a_reader_that_goes_away(self, piped: Piped) -> None:
        name = a_name()
        process = piped("sh", "-c", "while :; do echo more; done", name=name)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(RUN_SECONDS) == 128 + signal.SIGTERM
        assert process.stderr is not None
        assert process.stderr.read().decode() == (
            f"Error: Failed to write: Broken pipe\nStopping {name}. Interrupt again to kill it.\n"
        )

    def test_a_reader_that_is_stuck(self, moorctl: Moorctl, piped: Piped) -> None:
        """What it does not read does not keep moorctl from ending when it is told to."""
        name = a_name()
        read, write = os.pipe()
        os.set_blocking(write, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write, bytes(4096))
        os.set_blocking(write, True)
        process = piped("sh", "-c", "read x; exit 6", name=name, stdin=subprocess.PIPE, stdout=write)
        os.close(write)
        wait_for(lambda: name in moorctl.output("list"))
        assert process.stdin is not None
        process.stdin.write(b"shown\n")
        process.stdin.flush()
        wait_for(lambda: name not in moorctl.output("list"))
        while process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        assert process.returncode in {6, -signal.SIGTERM}  # at the very end, it has no handler any more
        os.close(read)
