"""A person is asked where the service wants one, once, and at the terminal if there is one."""

import json
import os
import pty
import socket
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from moorage.cli import authentication
from moorage.cli.address import Address
from moorage.client import dialogue
from moorage.steps.blocking import take
from moorage.wire.errors import InteractiveAuthenticationRequired

SECONDS = 20.0
WANTED = {"error": "io.systemd.InteractiveAuthenticationRequired", "parameters": {}}
DONE: dict[str, Any] = {"parameters": {}}

AGENT = """#!/bin/sh
echo "$@" >>"$0.calls"
fd=${1#--notify-fd=}
eval "exec $fd>&-"
exec sleep 60
"""


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of polkit's agent; a file beside it has its command lines."""
    program = tmp_path / authentication.AGENT
    program.write_text(AGENT)
    program.chmod(0o755)
    calls = program.with_suffix(".calls")
    calls.write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return calls


@pytest.fixture
def terminal() -> Generator[None]:
    """Standard input is a terminal."""
    before, (leader, follower) = os.dup(0), pty.openpty()
    os.dup2(follower, 0)
    yield
    os.dup2(before, 0)
    for fd in (before, leader, follower):
        os.close(fd)


def called(
    tmp_path: Path,
    method: str,
    replies: Sequence[dict[str, Any]],
    *,
    asks: bool = True,
    host: str | None = None,
) -> list[dict[str, Any]]:
    """Return the parameters of the calls that are made for one call."""
    asked: list[dict[str, Any]] = []
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as connected:
                connected.settimeout(SECONDS)
                for reply in replies:
                    asked.append(json.loads(connected.recv(65536)[:-1])["parameters"])
                    connected.sendall(json.dumps(reply).encode() + b"\0")

        service = threading.Thread(target=serve)
        service.start()
        opened = take(dialogue.connect(path))
        try:
            take(
                authentication.call(
                    opened,
                    Address(path, None, host, asks),
                    method,
                    {"name": "web"},
                    msgspec.Raw,
                    seconds=SECONDS,
                )
            )
        finally:
            opened.close()
            service.join(SECONDS)
    return asked


def test_somebody_is_asked_at_the_terminal(tmp_path: Path, agent: Path, terminal: None) -> None:
    assert called(tmp_path, "Stop", [WANTED, DONE]) == [
        {"name": "web"},
        {"name": "web", "allowInteractiveAuthentication": True},
    ]
    (call,) = agent.read_text().splitlines()
    assert call.startswith("--notify-fd=")
    assert call.endswith(" --fallback")


def test_nobody_is_asked_who_need_not_be(tmp_path: Path, agent: Path, terminal: None) -> None:
    assert called(tmp_path, "Stop", [DONE]) == [{"name": "web"}]
    assert agent.read_text() == ""


@pytest.mark.parametrize("host", [None, "a"])
def test_without_a_terminal_there_is_no_agent_of_ours(tmp_path: Path, agent: Path, host: str | None) -> None:
    assert len(called(tmp_path, "Kill", [WANTED, DONE], host=host)) == 2
    assert agent.read_text() == ""


@pytest.mark.parametrize(("method", "asks"), [("Stop", False), ("Describe", True)])
def test_what_nobody_is_to_be_asked_for(
    tmp_path: Path, agent: Path, terminal: None, method: str, *, asks: bool
) -> None:
    with pytest.raises(InteractiveAuthenticationRequired):
        called(tmp_path, method, [WANTED], asks=asks)
    assert agent.read_text() == ""


def test_the_answer_may_be_no(tmp_path: Path, agent: Path, terminal: None) -> None:
    with pytest.raises(InteractiveAuthenticationRequired):
        called(tmp_path, "Stop", [WANTED, WANTED])
    assert len(agent.read_text().splitlines()) == 1
