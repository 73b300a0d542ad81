"""The call at a machine's control socket: whoever is there, it ends in time and calls nobody it should not."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import made
import pytest

from moorage.machines.errors import GuestUnreachable
from moorage.machines.model import MachineClass
from moorage.machines.powering import Power, control_path
from moorage.probes import control

METHOD = "io.systemd.MachineInstance.PowerOff"
CALL = {"method": METHOD, "parameters": {}}
WAIT_SECONDS = 30.0


def asked(path: Path | str, *, uid: int | None = None, seconds: float = WAIT_SECONDS) -> dict[str, Any]:
    """Ask the program, as its unit does."""
    question = os.memfd_create("question")
    try:
        wanted = {
            "path": str(path), "method": METHOD, "uid": os.getuid() if uid is None else uid, "seconds": seconds
        }  # fmt: skip
        os.pwrite(question, json.dumps(wanted).encode(), 0)

        def arrange() -> None:
            os.dup2(question, control.QUESTION_FD)

        done = subprocess.run(
            [sys.executable, "-I", "-S", "-B", control.__file__],
            pass_fds=(control.QUESTION_FD,),
            preexec_fn=arrange,
            capture_output=True,
            timeout=WAIT_SECONDS,
            check=True,
        )
    finally:
        os.close(question)
    return json.loads(done.stdout)


@contextmanager
def listening(path: Path, backlog: int = 8) -> Generator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(backlog)
        listener.settimeout(WAIT_SECONDS)
        yield listener


@contextmanager
def replying(path: Path, reply: Callable[[socket.socket], None]) -> Generator[list[bytes]]:
    """A peer that takes one call, and then does something."""
    calls: list[bytes] = []
    with listening(path) as listener:

        def serve() -> None:
            connected, _ = listener.accept()
            with connected:
                calls.append(connected.recv(4096))
                reply(connected)

        thread = threading.Thread(target=serve)
        thread.start()
        yield calls
        thread.join()


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (b'{"parameters":{}}\0', {"done": True}),
        (b"{}\0", {"done": True}),
        (b'{"error":"io.systemd.No"}\0', {"error": "io.systemd.No"}),
        (b'{"error":"' + b"x" * 999 + b'"}\0', {"error": "x" * control.TEXT_MAX}),
        (b'{"error":5}\0', {"error": "5"}),
        (b"[1]\0", {"refused": "what it replies is no varlink"}),
        (b"\xff\0", {"refused": "what it replies is no varlink"}),
        (b"[" * 60000 + b"\0", {"refused": "what it replies is no varlink"}),
        (b"{}", {"refused": "it hung up without a reply"}),
        (b"", {"refused": "it hung up without a reply"}),
        (b"x" * (3 * control.REPLY_MAX), {"refused": "what it replies is too long"}),
    ],
    ids=range(11),  # pytest has the name of a test in the environment, in which the longest has no room
)  # fmt: skip
def test_a_reply(tmp_path: Path, reply: bytes, answer: dict[str, Any]) -> None:
    def send(connected: socket.socket) -> None:
        try:
            connected.sendall(reply)
        except (BrokenPipeError, ConnectionResetError):
            assert "too long" in str(answer)

    with replying(tmp_path / "s", send) as calls:
        assert asked(tmp_path / "s") == answer
    assert [json.loads(call.removesuffix(b"\0")) for call in calls] == [CALL]


def test_a_peer_that_never_replies(tmp_path: Path) -> None:
    def wait(connected: socket.socket) -> None:
        connected.recv(1)

    with replying(tmp_path / "s", wait):
        assert asked(tmp_path / "s", seconds=0.3) == {"slow": True}


def test_a_peer_that_replies_byte_by_byte(tmp_path: Path) -> None:
    def trickle(connected: socket.socket) -> None:
        try:
            while True:
                connected.sendall(b" ")
                connected.settimeout(0.02)
                try:
                    if not connected.recv(1):
                        return
                except TimeoutError:
                    pass
        except (BrokenPipeError, ConnectionResetError):
            pass

    with replying(tmp_path / "s", trickle):
        assert asked(tmp_path / "s", seconds=0.3) == {"slow": True}


def test_a_peer_that_accepts_nobody(tmp_path: Path) -> None:
    with listening(tmp_path / "s", backlog=0), socket.socket(socket.AF_UNIX) as first:
        first.connect(str(tmp_path / "s"))
        assert asked(tmp_path / "s", seconds=0.3) == {"slow": True}


def test_a_socket_of_another_user(tmp_path: Path) -> None:
    with listening(tmp_path / "s"):
        found = os.stat(tmp_path / "s")
        with pytest.raises(control.Refused, match="it belongs to uid 5"):
            control._check(os.stat_result((found.st_mode, 0, 0, 1, 5, 5, 0, 0, 0, 0)), 1000)
        for owner, uid in ((0, 1000), (1000, 1000), (0, 0)):
            control._check(os.stat_result((found.st_mode, 0, 0, 1, owner, 5, 0, 0, 0, 0)), uid)


def test_paths_that_lead_to_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    with listening(tmp_path / "closed"):
        pass
    with listening(tmp_path / "s"):
        (tmp_path / "link").symlink_to("s")
        (tmp_path / "up").symlink_to(tmp_path)
        fd = os.open(tmp_path, os.O_PATH)
        for path, words in (
            (tmp_path / "none", "No such file"),
            (tmp_path / "file", "it is no socket"),
            (tmp_path / "fifo", "it is no socket"),
            (tmp_path, "it is no socket"),
            (tmp_path / "closed", "refused"),
            (tmp_path / "link", "symbolic link"),
            (tmp_path / "up" / "s", "symbolic link"),
            (f"/proc/{os.getpid()}/fd/{fd}/s", "symbolic link"),
            (f"/proc/{os.getpid()}/root/{tmp_path}/s", "symbolic link"),
        ):
            assert words in asked(path)["refused"], path
        os.close(fd)


def test_what_there_is_to_ask_by() -> None:
    def path(class_: MachineClass, address: str | None) -> str | None:
        return control_path(made.record(class_=class_, control_address=address), Power.off)

    assert path(MachineClass.container, None) is None
    assert path(MachineClass.vm, "/run/s") == path(MachineClass.container, "unix:/run/s") == "/run/s"
    for address in (
        None,
        "unix:@s",
        "@s",
        "ssh:host",
        "exec:/bin/sh",
        "unix:run/s",
        "/run/../s",
        "vsock:1:2",
    ):
        with pytest.raises(GuestUnreachable):
            path(MachineClass.vm, address)
