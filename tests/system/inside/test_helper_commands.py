"""moorctl add-helpers, remove-helper and reload, against the real service."""

import json
from pathlib import Path

import pytest
from cli_battery import Moorctl, refused
from moored import MOORCTL, Processes, show

moorctl = Moorctl(MOORCTL)

FILE = """
[helpers.two]
execStart = ["/bin/sh", "-c", "trap 'echo' HUP; echo %n; exec sleep infinity"]
properties = { ExecReload = "/bin/true" }
[helpers.three]
execStart = ["/usr/bin/sleep", "infinity"]
"""


@pytest.fixture
def machine(spawn: Processes) -> str:
    moorctl.output("register", "web", "--leader", str(spawn().pid))
    return "web"


def state(helper: str) -> str:
    return show(f"machine-web-{helper}.service", "ActiveState")["ActiveState"]


def test_one_that_does_not_start(machine: str, tmp_path: Path) -> None:
    file = tmp_path / "set.toml"
    file.write_text(
        '[helpers.bad]\nexecStart = ["/bin/sh", "-c", "echo no disk >&2; exit 3"]\ntype = "oneshot"\n'
    )
    refused(moorctl("add-helpers", machine, str(file)), 1, "Helper bad did not start", "no disk")


def test_helpers_come_and_go(machine: str, tmp_path: Path) -> None:
    file = tmp_path / "set.toml"
    file.write_text(FILE)
    told = moorctl.output("add-helpers", machine, str(file), "--helper", "four=sleep infinity").splitlines()
    assert told == [f"machine-web-{name}.service" for name in ("two", "three", "four")]
    assert [state(name) for name in ("two", "three", "four")] == ["active"] * 3
    done = moorctl("reload", machine)
    assert (done.returncode, done.stdout.split()) == (0, ["two"]), done
    assert "Helper three cannot be reloaded." in done.stderr
    assert json.loads(moorctl.output("reload", "--json", machine))["skipped"] == ["three", "four"]
    assert moorctl.output("remove-helper", machine, "three") == ""
    assert [state(name) for name in ("two", "three")] == ["active", "inactive"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["add-helpers", "web"], 2, "give FILE or --helper"),
        (
            ["add-helpers", "web", "--helper", "a=sleep 1", "--helper", "a=sleep 1", "--json"],
            1,
            "a as the name of a helper",
        ),
        (["add-helpers", "other", "--helper", "a=sleep 1"], 3, "no machine other"),
        (["remove-helper", "web", "none"], 1, "no helper none"),
        (["reload", "other"], 3, "no machine other"),
    ],
)
def test_what_is_refused(machine: str, arguments: list[str], status: int, words: str) -> None:
    refused(moorctl(*arguments), status, words)


NEVER = """
[helpers.never]
type = "notify"
execStart = ["/bin/sh", "-c", "echo waiting for the disk >&2; exec sleep infinity"]
"""


def test_one_that_never_gets_ready_is_named(nothing_left: None, tmp_path: Path) -> None:
    file = tmp_path / "set.toml"
    file.write_text(NEVER)
    done = moorctl("run", "--name", "late", "--timeout", "1s", "--helpers", str(file), "--", "true")
    refused(done, 125, "Helper never was not ready in time", "waiting for the disk", "is stopped again")
