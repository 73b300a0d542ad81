"""What moorctl shows in a pager, and which one."""

import os
import select
import signal
import stat
import subprocess
from collections.abc import Generator, Mapping
from pathlib import Path

import pytest
from cli_battery import RUN_SECONDS, Moorctl, a_name
from fake_service import a_fake
from pty_battery import Person

from moorage.cli.pager import choose, is_elevated

# Marks each line, so that it shows what came through it; waits for a key only if it is told to.
PAGER = """#!/bin/sh
echo "runs $LESS $LESSSECURE"
sed 's/^/| /'
"""


@pytest.fixture
def pagers(tmp_path: Path) -> Path:
    """A directory with programs called pager, less, more and marked."""
    directory = tmp_path / "programs"
    directory.mkdir()
    for name in ("pager", "less", "more", "marked"):
        path = directory / name
        path.write_text(PAGER)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return directory


@pytest.mark.parametrize(
    ("variables", "elevated", "program"),
    [
        ({}, False, "pager"),
        ({}, True, "less"),
        ({"SYSTEMD_PAGER": ""}, False, None),
        ({"SYSTEMD_PAGER": "cat"}, False, None),
        ({"PAGER": " cat "}, True, None),
        ({"SYSTEMD_PAGER": "", "PAGER": "marked"}, False, None),
        # Nobody has said that the pager of the environment may be trusted.
        ({"PAGER": "marked"}, False, "pager"),
        ({"SYSTEMD_PAGER": "marked"}, True, "less"),
        ({"PAGER": "marked -x", "SYSTEMD_PAGERSECURE": "0"}, True, "marked"),
        ({"PAGER": "marked -x", "SYSTEMD_PAGERSECURE": "1"}, False, "marked"),
        ({"PAGER": "more", "SYSTEMD_PAGER": "marked", "SYSTEMD_PAGERSECURE": "no"}, False, "marked"),
        ({"PAGER": "marked", "SYSTEMD_PAGERSECURE": "perhaps"}, False, "less"),
        ({"PAGER": "not-installed", "SYSTEMD_PAGERSECURE": "0"}, False, "pager"),
        ({"SYSTEMD_PAGERSECURE": "1"}, False, "less"),
    ],
)
def test_which_pager(
    pagers: Path, variables: Mapping[str, str], elevated: bool, program: str | None
) -> None:
    found = choose({"PATH": str(pagers), **variables}, elevated=elevated)
    if program is None:
        assert found is None
        return
    assert found is not None
    words = next((text.split() for text in variables.values() if text.split()[:1] == [program]), [program])
    assert found.argv == [str(pagers / program), *words[1:]]
    wished = variables.get("SYSTEMD_PAGERSECURE")
    secure = elevated if wished is None else wished not in {"0", "no"}
    assert found.variables.get("LESSSECURE") == ("1" if secure else None)
    assert found.variables["LESS"] == "FRSXMK"


def test_there_is_no_pager(tmp_path: Path) -> None:
    assert choose({"PATH": str(tmp_path)}, elevated=False) is None


def test_options_of_less(pagers: Path) -> None:
    found = choose(
        {"PATH": str(pagers), "SYSTEMD_LESS": "FR", "SYSTEMD_LESSCHARSET": "latin1"}, elevated=True
    )
    assert found is not None
    assert (found.variables["LESS"], found.variables["LESSCHARSET"]) == ("FR", "latin1")
    assert not found.ends_on_interrupt
    assert found._replace(variables={"LESS": "FK"}).ends_on_interrupt


@pytest.mark.parametrize(
    ("group", "elevated"),
    [
        ("/user.slice/user-{uid}.slice/session-1.scope", False),
        ("/user.slice/user-{uid}.slice/user@{uid}.service/app.slice", False),
        ("/user.slice/user-4711.slice/session-1.scope", True),
        ("/user.slice/user-{uid}.slicer/x", True),
        ("/system.slice/user-{uid}.slice", True),
        ("/", True),
    ],
)
def test_whose_session_it_is(monkeypatch: pytest.MonkeyPatch, group: str, elevated: bool) -> None:
    def control_group(pid: int) -> str:
        return group.format(uid=os.geteuid())

    monkeypatch.setattr("moorage.kernel.process.control_group", control_group)
    assert is_elevated() is elevated


Shown = tuple[int, str]


class Terminal:
    """moorctl at a terminal, with a service that has one machine."""

    def __init__(self, moorctl: Moorctl, pagers: Path) -> None:
        self._moorctl = moorctl
        self._pagers = pagers

    def sit(self, *words: str, **variables: str) -> Person:
        path = f"{self._pagers}:{os.environ['PATH']}"
        environment = {**os.environ, "TERM": "xterm", "PATH": path, **variables}
        environment.pop("COLUMNS", None)
        return Person([self._moorctl.program, *self._moorctl.options, *words], environment)

    def __call__(self, *words: str, **variables: str) -> Shown:
        person = self.sit(*words, **variables)
        try:
            return person.end()
        finally:
            person.leave()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Moorctl, str]]:
    name = a_name()
    with (
        a_fake(tmp_path_factory.mktemp("fake")) as moorctl,
        subprocess.Popen(["sleep", "infinity"]) as leader,
    ):
        moorctl.output("register", name, "--leader", str(leader.pid))
        yield moorctl, name
        leader.kill()


@pytest.fixture
def terminal(service: tuple[Moorctl, str], pagers: Path) -> Terminal:
    return Terminal(service[0], pagers)


def test_what_is_paged_looks_as_on_the_terminal(terminal: Terminal, service: tuple[Moorctl, str]) -> None:
    name = service[1]
    status, shown = terminal("list")
    assert status == 0
    first, *lines = shown.replace("\r", "").splitlines()
    assert first.split()[:2] == ["runs", "FRSXMK"]
    assert all(line.startswith("| ") for line in lines)
    assert "\x1b[1m" in shown
    assert name[:8] in shown  # folded
    assert "1 machine." in shown
    for command in (["status", name], ["config"], ["tree"], ["list", "--json"]):
        status, shown = terminal(*command)
        assert (status, shown.startswith("runs")) == (0, True), command


@pytest.mark.parametrize("words", [["--no-pager", "list"], ["list", "--no-pager"]])
def test_no_pager_is_wanted(terminal: Terminal, words: list[str]) -> None:
    status, shown = terminal(*words)
    assert status == 0
    assert "runs" not in shown
    assert "\x1b[1m" in shown


@pytest.mark.parametrize("variables", [{"SYSTEMD_PAGER": "cat"}, {"PAGER": ""}, {"TERM": "dumb"}])
def test_none_by_the_environment(terminal: Terminal, variables: Mapping[str, str]) -> None:
    assert "runs" not in terminal("list", **variables)[1]


def test_none_without_a_terminal(service: tuple[Moorctl, str], pagers: Path) -> None:
    moorctl, name = service
    done = moorctl("list", environment={"PATH": f"{pagers}:{os.environ['PATH']}"})
    assert "runs" not in done.stdout
    assert name in done.stdout


def test_a_failure_is_shown(terminal: Terminal) -> None:
    status, shown = terminal("status", "nobody")
    assert (status, "There is no machine nobody." in shown) == (3, True)


def test_colours_that_are_not_wanted(terminal: Terminal) -> None:
    status, shown = terminal("list", NO_COLOR="1")
    assert status == 0
    assert "\x1b[32m" not in shown


def test_somebody_who_has_seen_enough(terminal: Terminal, pagers: Path) -> None:
    (pagers / "less").write_text("#!/bin/sh\nexec true\n")
    (pagers / "pager").write_text("#!/bin/sh\nexec true\n")
    assert terminal("list") == (0, "")


def test_interrupted(terminal: Terminal, pagers: Path) -> None:
    for name in ("less", "pager"):
        (pagers / name).write_text("#!/bin/sh\necho waits\nexec sleep infinity\n")
    person = terminal.sit("list")
    try:
        person.read("waits")
        person.type("\x03")
        assert person.end()[0] == 128 + signal.SIGINT
    finally:
        person.leave()


def test_the_pager_ends_with_a_moorctl_that_is_killed(terminal: Terminal, pagers: Path) -> None:
    for name in ("less", "pager"):
        (pagers / name).write_text("#!/bin/sh\necho waits $$.\nexec sleep infinity\n")
    person = terminal.sit("list")
    try:
        person.read("waits ")
        pidfd = os.pidfd_open(int(person.read(".")))
        person.process.kill()
        person.process.wait(RUN_SECONDS)
        with os.fdopen(pidfd):
            assert select.select([pidfd], [], [], RUN_SECONDS)[0]
    finally:
        person.leave()
