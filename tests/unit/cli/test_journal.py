"""What is shown of the journal, whatever is in it, and by which matches it is read."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from moorage.cli.address import Address
from moorage.cli.failures import Failure
from moorage.cli.journal import Journal, show, show_json

NOBODY = Address("/nowhere", None)
AT = "1795720021838001"


def line(**fields: Any) -> str:
    return json.dumps({"__REALTIME_TIMESTAMP": AT, "SYSLOG_IDENTIFIER": "sh", "_PID": "7", **fields})


def shown(capsys: pytest.CaptureFixture[str], **fields: Any) -> str:
    show(line(**fields))
    return capsys.readouterr().out


def test_an_entry_has_a_time_a_source_and_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, MESSAGE="hello").endswith(".838001 sh[7]: hello\n")
    assert "fs[8]: hello" in shown(
        capsys, MESSAGE="hello", SYSLOG_IDENTIFIER=None, _COMM="fs", SYSLOG_PID="8"
    )
    first, second = shown(capsys, MESSAGE="one\ntwo").splitlines()
    assert first.index("one") == second.index("two")


@pytest.mark.parametrize(
    "hostile",
    [
        "\x1b]0;owned\x07",
        "\x9b31m",
        "\r# ok",
        "a\u202eb",
        [27, 93, 48],
        [255, 254],
        [[27], "\x1b[2J"],
        "\x00",
        "\u2028x",
    ],
)
def test_nothing_controls_the_terminal(capsys: pytest.CaptureFixture[str], hostile: Any) -> None:
    for name in ("MESSAGE", "SYSLOG_IDENTIFIER", "_COMM", "SYSLOG_PID"):
        text = shown(capsys, **{"MESSAGE": "m", name: hostile})
        assert all(char.isprintable() or char == "\n" for char in text), text
    show_json(line(MESSAGE=hostile))
    text = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in text), text
    assert json.loads(text)["MESSAGE"] == hostile


@pytest.mark.parametrize(
    "fields",
    [
        {"MESSAGE": None}, {"MESSAGE": []}, {"MESSAGE": ""}, {"PRIORITY": "9" * 5000}, {"PRIORITY": "²"},
        {"__REALTIME_TIMESTAMP": "9" * 5000}, {"__REALTIME_TIMESTAMP": "9" * 19}, {"__REALTIME_TIMESTAMP": "x"},
        {"MESSAGE": [1000, -1]}, {"MESSAGE": {}}, {"MESSAGE": 1},
    ],
)  # fmt: skip
def test_whatever_is_there_is_shown_somehow(
    capsys: pytest.CaptureFixture[str], fields: dict[str, Any]
) -> None:
    assert shown(capsys, **{"MESSAGE": "m", **fields}).count("\n") == 1


@pytest.fixture
def journalctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that notes its arguments, and has an entry with helpers."""
    calls = tmp_path / "calls"
    program = tmp_path / "journalctl"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\n'
        """echo '{"HELPER":["fs","net"]}'\necho '{"HELPER":"../x"}'\necho '-- No entries --'\n"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return calls


def test_the_journal_of_scope_and_helpers_and_what_was_written_about_them(journalctl: Path) -> None:
    assert len(list(Journal(NOBODY, "web", None).read(["--lines=5"]))) == 2
    first, second = journalctl.read_text().splitlines()
    assert first.endswith("--output-fields=HELPER MACHINE=web _SYSTEMD_UNIT=moored.service")
    units = ("machine-web.scope", "machine-web-fs.service", "machine-web-net.service")
    matches = "".join(f" + _SYSTEMD_UNIT={unit} + UNIT={unit} _PID=1" for unit in units)
    assert second == f"--output=json --no-pager --lines=5 MACHINE=web _SYSTEMD_UNIT=moored.service{matches}"


def test_the_journal_of_a_users_machine(journalctl: Path) -> None:
    list(Journal(NOBODY, "web", 1000).read([]))
    last = journalctl.read_text().splitlines()[-1]
    assert "MACHINE=web _SYSTEMD_USER_UNIT=moored.service _UID=1000 + " in last
    assert "_SYSTEMD_USER_UNIT=machine-web.scope _SYSTEMD_OWNER_UID=1000 + " in last
    assert "SYSLOG_IDENTIFIER=machine-web-fs.service _TRANSPORT=stdout _UID=1000 + " in last
    assert "USER_UNIT=machine-web.scope _COMM=systemd _UID=1000" in last


def test_without_journalctl_it_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Failure, match="journalctl is not installed"):
        list(Journal(NOBODY, "web", None).read([]))
