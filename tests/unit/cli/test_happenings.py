"""Events in words, and the exit statuses of ends."""

import json
from typing import Any

import msgspec
import pytest

from moorage.cli import happenings
from moorage.cli.following import Event, Told

VERDICT: dict[str, Any] = {
    "result": "success",
    "exitedAt": {"realtime": 1, "monotonic": 1},
    "accounting": {},
}


def event(kind: str, name: str = "web", data: dict[str, Any] | None = None) -> Event:
    text = {"cursor": "c", "event": kind, "name": name, "timestamp": {"realtime": 1_700_000_000_123_456}}
    return msgspec.json.decode(json.dumps({**text, **({} if data is None else {"data": data})}), type=Event)


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("exited", VERDICT | {"cause": "leaderEnded", "leaderSignal": 9},
         "exited  web  result success, its leader ended, leader ended by SIGKILL"),
        ("exited", {"nonsense": 1}, "exited  web"),
        ("leaderExited", {"signal": 15}, "leaderExited  web  by SIGTERM"),
        ("leaderExited", {"status": 3}, "leaderExited  web  with status 3"),
        ("leaderExited", None, "leaderExited  web"),
        ("stopping", {"by": "caller"}, "stopping  web  by caller"),
        ("helperFailed", {"helper": "fs", "result": "signal"}, "helperFailed  web  helper=fs result=signal"),
        ("lingering", {"pids": [1, 2]}, "lingering  web  pids=[1,2]"),
        ("registrationFailed", {"error": "io.x.Y", "parameters": {"a": 1}}, 'registrationFailed  web  io.x.Y {"a":1}'),
        ("lost", {"count": 7}, "lost  web  7 events were not read in time"),
        ("ofALaterVersion", {"x\x1b": "y\x1b[31m"}, r"ofALaterVersion  web  x\x1b=y\x1b[31m"),
        ("empty", None, "empty  web"),
    ],
)  # fmt: skip
def test_a_line_for_each(
    capsys: pytest.CaptureFixture[str], kind: str, data: dict[str, Any] | None, words: str
) -> None:
    happenings.show(event(kind, data=data))
    moment, _, rest = capsys.readouterr().out.rstrip("\n").partition("  ")
    assert rest == words
    assert moment.endswith(".123456")


def test_an_event_without_a_machine(capsys: pytest.CaptureFixture[str]) -> None:
    happenings.show(event("snapshotDone", name=""))
    assert capsys.readouterr().out.endswith("  snapshotDone\n")


def test_json_as_it_was_received(capsys: pytest.CaptureFixture[str]) -> None:
    text = b'{"cursor": "c",\n"event":"empty","name":"a\x1b"}'
    happenings.show_json(Told(event("empty"), msgspec.Raw(text.replace(b"\x1b", rb"\u001b"))))
    assert capsys.readouterr().out == '{"cursor":"c","event":"empty","name":"a\\u001b"}\n'


@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        ({}, 0),
        ({"leaderStatus": 0}, 0),
        ({"leaderStatus": 3}, 3),
        ({"leaderSignal": 9}, 137),
        ({"result": "oom-kill"}, 1),
        ({"result": "timeout", "leaderStatus": 0}, 0),
    ],
)
def test_the_exit_status_is_the_leaders(verdict: dict[str, Any], status: int) -> None:
    assert happenings.exit_status(event("exited", data=VERDICT | verdict)) == status
