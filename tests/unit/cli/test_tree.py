"""The tree of machines and their processes, over control groups that are only files."""

import json
import subprocess
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from moorage.cli.tree import show_tree
from moorage.client.types import Machine
from moorage.kernel import cgroup, process

SCOPE, SERVICE = "/machine.slice/machine-web.scope", "/machine.slice/machine-web-fs.service"
MACHINE: dict[str, Any] = {
    "name": "web", "class": "vm", "phase": "running", "freezer": "frozen", "uid": 0, "unit": "machine-web.scope",
    "slice": "machine.slice", "controlGroup": SCOPE, "controlGroupId": 7, "invocationId": "a" * 32, "timestamp": {},
    "ifIndices": [],
    "helpers": [{"name": "fs", "unit": "machine-web-fs.service", "activeState": "active", "subState": "running",
                 "sockets": []}],
}  # fmt: skip
EXEC_SECONDS = 50.0
HARM = "\x1b]0;owned\x07[red]"


@pytest.fixture
def processes() -> Generator[list[int]]:
    """The leader, whose command line means harm, and a process of a helper."""
    commands = ((f"{HARM}\nx", "infinity"), ("second", "infinity"))
    started = [subprocess.Popen(command, executable="/usr/bin/sleep") for command in commands]
    deadline = time.monotonic() + EXEC_SECONDS
    while not all(b"infinity" in Path(f"/proc/{each.pid}/cmdline").read_bytes() for each in started):
        assert time.monotonic() < deadline  # until each has its own command line
        time.sleep(0.005)
    yield [each.pid for each in started]
    for each in started:
        each.kill()
        each.wait()


@pytest.fixture
def groups(tmp_path: Path, processes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    where = dict(zip(processes, (f"{SCOPE}/payload", SERVICE), strict=True))
    for pid, group in where.items():
        (tmp_path / group[1:]).mkdir(parents=True)
        (tmp_path / group[1:] / "cgroup.procs").write_text(f"0\n{pid}\n{2**22}\n")
    monkeypatch.setattr(cgroup, "ROOT", str(tmp_path))
    monkeypatch.setattr(process, "control_group", where.__getitem__)


def show(leader: int, *, as_json: bool) -> None:
    machine = msgspec.convert(MACHINE | {"leader": {"pid": leader}}, Machine)
    show_tree([machine], as_json=as_json)


@pytest.mark.usefixtures("groups")
def test_processes_are_below_their_machine_and_its_helpers(
    processes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    leader, other = processes
    show(leader, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "machine.slice",
        "└── web running (frozen) machine-web.scope",
        rf"    ├── {leader} \x1b]0;owned\x07[red]\nx infinity",
        "    └── helper fs active machine-web-fs.service",
        f"        └── {other} second infinity",
    ]


@pytest.mark.usefixtures("groups")
def test_a_line_of_json_for_each_slice(processes: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    leader, other = processes
    show(leader, as_json=True)
    [line] = capsys.readouterr().out.splitlines()
    assert "\x1b" not in line
    assert json.loads(line) == {
        "slice": "machine.slice",
        "machines": [{
            "name": "web", "unit": "machine-web.scope", "phase": "running", "freezer": "frozen", "leader": leader,
            "processes": [{"pid": leader, "command": f"{HARM}\nx infinity"}],
            "helpers": [{"name": "fs", "unit": "machine-web-fs.service", "activeState": "active",
                         "processes": [{"pid": other, "command": "second infinity"}]}],
        }],
    }  # fmt: skip


def test_a_group_that_cannot_be_read_is_not_empty(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(_group: str, _most: int) -> None:
        return None

    monkeypatch.setattr(cgroup, "processes", unknown)
    show(1, as_json=False)
    assert "    ├── processes unknown" in capsys.readouterr().out.splitlines()
