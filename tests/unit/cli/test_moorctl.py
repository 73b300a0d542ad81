"""moorctl against the fake, and against what no service should do."""

import json
import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Generator
from pathlib import Path

import pytest
from cli_battery import RUN_SECONDS, Battery, Moorctl, PreloadedMoorctl, a_name, refused
from fake_service import a_fake, listen


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Generator[Moorctl]:
    with a_fake(tmp_path_factory.mktemp("fake")) as moorctl:
        yield moorctl


class TestOverTheFake(Battery):
    @pytest.fixture
    def moorctl(self, fake: Moorctl) -> Moorctl:
        return fake

    def test_a_table_on_a_terminal(self, moorctl: Moorctl) -> None:
        name = a_name()
        with subprocess.Popen(["sleep", "infinity"]) as leader:
            moorctl.output("register", name, "--leader", str(leader.pid), "--service", "[red]x[/red]")
            shown = on_a_terminal(moorctl, "list")
            without = on_a_terminal(moorctl, "list", "--no-legend")
            leader.kill()
        assert f"machine-{name}.scope" in shown
        assert "[red]x[/red]" in shown
        assert "\x1b[" in shown
        assert "NAME" in shown
        assert re.search(r"\n\d+ machines?\.", shown)
        assert f"machine-{name}.scope" in without
        assert "NAME" not in without

    def test_bars_on_a_terminal(self, moorctl: Moorctl) -> None:
        name = a_name()
        with subprocess.Popen(["sleep", "infinity"]) as leader:
            moorctl.output("register", name, "--leader", str(leader.pid), "--service", "[red]x[/red]")
            shown = on_a_terminal(moorctl, "status", name)
            plain = on_a_terminal(moorctl, "status", name, NO_COLOR="1")
            leader.kill()
        assert "3.0M of 4.0M, 75%" in shown
        for text in (shown, plain):
            assert "Service: [red]x[/red]" in re.sub(r"\x1b\[[0-9;]*m", "", text)
            assert "━━━━━━━━━━" in text
            # A bar ends its line.
            assert not [line for line in lines_of(text) if len(re.findall(r"\b[A-Z][\w ]*: ", line)) > 1]
        assert "\x1b[32m" in shown
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]", plain)

    def test_the_address_from_the_environment(self, moorctl: Moorctl) -> None:
        _, path = moorctl.options
        done = PreloadedMoorctl()("list", environment={"MOORAGE_ADDRESS": path})
        assert (done.returncode, done.stderr) == (0, "")
        assert PreloadedMoorctl()("list", "--address", path).returncode == 0
        refused(PreloadedMoorctl()("list", "--address", path, "--user"), 2, "exclude each other")

    def test_a_reader_that_has_seen_enough(self, moorctl: Moorctl) -> None:
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [moorctl.program, *moorctl.options, "list"], stdout=write, stderr=subprocess.PIPE,
            timeout=RUN_SECONDS, check=False,
        )  # fmt: skip
        os.close(write)
        assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")

    def test_no_machines(self, tmp_path: Path) -> None:
        with a_fake(tmp_path) as moorctl:
            assert moorctl.output("list", "--no-legend") == ""
            assert moorctl.output("list", "--json") == ""
            assert moorctl.output("list").split()[0] == "NAME"

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["logs", "web"], "There is no command logs; did you mean log"),
            (["sotp", "web"], "did you mean stop"),
            (["events", "--event", "exit"], "there is no kind of event 'exit'; did you mean exited"),
            (["xyzzy"], "No such command 'xyzzy'"),
        ],
    )
    def test_words_that_do_not_exist(self, moorctl: Moorctl, words: list[str], said: str) -> None:
        refused(moorctl(*words), 2, said)

    def test_a_full_disk(self, moorctl: Moorctl) -> None:
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [moorctl.program, *moorctl.options, "list"], stdout=full, stderr=subprocess.PIPE,
                timeout=RUN_SECONDS, check=False,
            )  # fmt: skip
        assert (done.returncode, done.stderr) == (1, b"Error: Failed to write: No space left on device\n")


def lines_of(shown: str) -> list[str]:
    """What a terminal has shown, without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()


def on_a_terminal(moorctl: Moorctl, *arguments: str, **variables: str) -> str:
    ours, theirs = pty.openpty()
    environment = {**moorctl.whole_environment, "TERM": "xterm", "COLUMNS": "160", **variables}
    with subprocess.Popen(
        [moorctl.program, *moorctl.options, *arguments], stdin=theirs, stdout=theirs, env=environment
    ) as process:
        os.close(theirs)
        output = b""
        try:
            while data := os.read(ours, 65536):
                output += data
        except OSError:  # EIO: the other end is closed, pty(7)
            os.close(ours)
        assert process.wait(RUN_SECONDS) == 0
    return output.decode()


class TestWithoutAService:
    def test_no_socket(self, tmp_path: Path) -> None:
        done = PreloadedMoorctl()("list", "--address", str(tmp_path / "none"))
        refused(done, 5, f"{tmp_path}/none: there is no such socket.")
        assert "systemctl" not in done.stderr

    def test_no_socket_of_the_user_manager(self, tmp_path: Path) -> None:
        environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
        done = PreloadedMoorctl()("list", "--user", environment=environment)
        refused(
            done, 5, f"{tmp_path}/moorage/io.moorage.Machine", "systemctl --user enable --now moored.socket"
        )
        refused(PreloadedMoorctl()("--user", "list", environment=environment), 5, str(tmp_path))

    def test_no_user_manager(self) -> None:
        refused(
            PreloadedMoorctl(environment={"XDG_RUNTIME_DIR": ""})("--user", "list"), 2, "XDG_RUNTIME_DIR"
        )

    def test_nobody_listens(self, tmp_path: Path) -> None:
        listener, moorctl = listen(tmp_path)
        listener.close()
        refused(moorctl("status", "web"), 5, "nothing listens there")

    def test_a_path_that_is_too_long(self, tmp_path: Path) -> None:
        refused(
            PreloadedMoorctl()("list", "--address", f"{tmp_path}/{'x' * 200}"), 5, "Failed to connect to"
        )

    @pytest.mark.parametrize(
        ("answer", "status", "words"),
        [
            (b"", 5, "closed the connection"),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n\0", 5, "does not speak varlink"),
            (b'{"parameters": {"machine": 1}}\0', 5, "makes no sense"),
            (b'{"error": "io.example.Strange", "parameters": {"a": "\\u001b[31m"}}\0', 1, "Strange: {"),
            (b'{"error": "io.moorage.Machine.UnitNameTaken"}\0', 1, "UnitNameTaken"),
            (b'{"error": "org.varlink.service.PermissionDenied"}\0', 4, "moorctl --user"),
            (b'{"error": "org.varlink.service.MethodNotFound", "parameters": {"method": "M"}}\0', 1, "no method M"),
        ],
    )  # fmt: skip
    def test_strange_answers(self, tmp_path: Path, answer: bytes, status: int, words: str) -> None:
        listener, moorctl = listen(tmp_path)

        def serve() -> None:
            connected, _ = listener.accept()
            with connected:
                while not connected.recv(65536).endswith(b"\0"):
                    pass
                connected.sendall(answer)

        with listener:
            server = threading.Thread(target=serve)
            server.start()
            done = moorctl("status", "web")
            server.join()
        refused(done, status, words)
        assert "\x1b" not in done.stderr

    def test_interrupted(self, tmp_path: Path) -> None:
        listener, moorctl = listen(tmp_path)
        with (
            listener,
            subprocess.Popen(
                [moorctl.program, *moorctl.options, "stop", "web"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            ) as process,
        ):
            connected, _ = listener.accept()
            with connected:
                call = connected.recv(65536)
                process.send_signal(signal.SIGINT)
                output, errors = process.communicate(timeout=RUN_SECONDS)
        assert json.loads(call[:-1])["method"] == "io.moorage.Machine.Stop"
        assert (process.returncode, output, errors.strip()) == (130, b"", b"")

    def test_completion_is_silent(self, tmp_path: Path) -> None:
        done = PreloadedMoorctl()(
            environment={
                "_MOORCTL_COMPLETE": "bash_complete",
                "COMP_WORDS": f"moorctl --address {tmp_path}/none status w",
                "COMP_CWORD": "4",
            }
        )
        assert (done.stdout.strip(), done.stderr) == ("", "")


class TestUsage:
    """Nothing is asked of any service: there is none."""

    @pytest.fixture
    def moorctl(self, tmp_path: Path) -> Moorctl:
        return PreloadedMoorctl(["--address", str(tmp_path / "none")])

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["register", "web"], "one of --leader and --pidfd"),
            (["register", "web", "--leader", "1", "--pidfd", "3"], "one of --leader and --pidfd"),
            (["register", "web", "--leader", "0"], "--leader"),
            (["register", "web", "--leader", "99999999999999999999"], "--leader"),
            (["register", "web", "--pidfd", "987654"], "file descriptor 987654 is not open"),
            (["register", "web", "--leader", "1", "--class", "pod"], "--class"),
            (["register", "web", "--leader", "1", "--timeout", "soon"], "is not a span of time"),
            (["register", "web", "--leader", "1", "--timeout", "infinity"], "not a time to wait"),
            (["register", "web", "--leader", "1", "--no-allocate", "--slice", "a.slice"], "--no-allocate"),
            (["find"], "one of --pid"),
            (["find", "--pid", "1", "--unit", "a.scope"], "one of --pid"),
            (["kill", "web", "--signal", "SIGNONE"], "no signal 'SIGNONE'"),
            (["kill", "web", "--whom", "me"], "--whom"),
            (["status"], "NAME"),
            (["frobnicate"], "frobnicate"),
        ],
    )  # fmt: skip
    def test_wrong(self, moorctl: Moorctl, arguments: list[str], words: str) -> None:
        refused(moorctl(*arguments), 2, words)

    def test_a_thread_is_no_process(self, moorctl: Moorctl) -> None:
        started, over = threading.Event(), threading.Event()
        thread = threading.Thread(target=lambda: (started.set(), over.wait()))
        thread.start()
        started.wait()
        try:
            done = moorctl("register", "web", "--leader", str(thread.native_id))
        finally:
            over.set()
            thread.join()
        refused(done, 1, f"Failed to open process {thread.native_id}")

    def test_version_and_help(self, moorctl: Moorctl) -> None:
        assert moorctl.output("--version").startswith("moorctl ")
        for command in ([], ["register"], ["list"], ["status"], ["find"], ["kill"], ["stop"], ["forget"]):
            assert moorctl.output(*command, "--help").startswith("Usage: moorctl ")

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_completion(self, shell: str) -> None:
        done = PreloadedMoorctl()("completion", shell)
        assert done.returncode == 0
        assert f"_MOORCTL_COMPLETE={shell}_complete" in done.stdout
