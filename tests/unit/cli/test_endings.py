"""What whoever waits for a command is told about the end of its machine."""

from typing import Any

import msgspec
import pytest

from moorage.cli.endings import surprise
from moorage.client.types import Machine

MACHINE: dict[str, Any] = {
    "name": "web", "class": "vm", "phase": "exited", "freezer": "running", "uid": 0, "unit": "u", "slice": "s",
    "controlGroup": "/g", "controlGroupId": 1, "invocationId": "a" * 32, "timestamp": {},
}  # fmt: skip


def told(*, asked: bool = False, left: bool = False, **verdict: Any) -> str | None:
    whole = {"result": "success", "exitedAt": {}, "accounting": {}, **verdict}
    return surprise(msgspec.convert({**MACHINE, "verdict": whole}, Machine), asked=asked, left=left)


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ({}, None),
        ({"cause": "leaderEnded"}, None),
        ({"cause": "aCauseOfALaterVersion"}, None),
        ({"cause": "leaderEnded", "oomKilled": True}, "Processes of web were killed for lack of memory."),
        ({"cause": "oomKilled"}, "Machine web ended: it was killed for lack of memory."),
        ({"cause": "leaseEnded"}, "Machine web ended: its lease ended: the connection that held it was closed."),
        ({"cause": "helperEnded", "helper": "fs"}, "Machine web ended: its helper fs ended."),
        ({"cause": "stopped"}, "Machine web ended: it was stopped on request."),
        ({"cause": "stopped", "asked": True}, None),
        ({"cause": "stopped", "asked": True, "left": True}, None),
        ({"cause": "unitStopped", "asked": True},
         "Machine web ended: its unit was stopped through the service manager."),
    ],
)  # fmt: skip
def test_what_is_told(verdict: dict[str, Any], words: str | None) -> None:
    assert told(**verdict) == words


def test_what_was_left_is_told() -> None:
    text = told(cause="stopped", left=True)
    assert text is not None
    assert "--no-lease" in text


def test_a_machine_that_lives_on() -> None:
    assert surprise(msgspec.convert(MACHINE, Machine), asked=False, left=False) is None
