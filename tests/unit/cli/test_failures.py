"""Every error of the interface has its words and its exit status."""

import errno
import os
import re
import shlex
from typing import Any

import pytest

from moorage.api.descriptions import load_description
from moorage.cli.address import Address
from moorage.cli.failures import Exit, explain
from moorage.errors import AUTHORIZATION
from moorage.wire.errors import Disconnected, ProtocolError, RemoteError, System, TimedOut

SYSTEM = Address("/run/s", "systemctl")
USER = Address("/run/u", "systemctl --user")


@pytest.mark.parametrize(
    ("error", "parameters", "status", "text"),
    [
        ("NoSuchMachine", {"name": "web"}, 3, "There is no machine web.\nList all machines: moorctl --user list"),
        ("NoSuchMachine", {}, 3, "There is no such machine.\nList all machines: moorctl --user list"),
        ("MachineExists", {"name": "web"}, 1, "Machine web exists already.\n"),
        ("UnitNameTaken", {"unit": "a.scope", "holder": "a job"}, 1, "The unit name a.scope is taken: a job.\n"),
        ("ProcessGone", {"pid": 5}, 1, "Process 5 has ended."),
        ("ProcessGone", {"pid": None}, 1, "The process has ended."),
        ("ProcessNotOwned", {"pid": 5, "uid": 7}, 4, "Process 5 belongs to user 7"),
        ("UnitNotOwned", {"unit": "cron.service"}, 4, "The process is in cron.service, and you may not move it"),
        ("NoSuchProperty", {"property": "X"}, 1, "There is no property X that can be set."),
        (
            "NoSuchProperty", {"property": "MemoryMx", "nearest": ["MemoryMax", "MemoryMin"]}, 1,
            "There is no property MemoryMx that can be set; did you mean MemoryMax or MemoryMin?\n",
        ),
        (
            "InvalidProperty", {"property": "X", "reason": "too big."}, 1,
            "The value of property X is refused: too big.",
        ),
        (
            "InvalidProperty", {"property": "X", "reason": "too big", "helper": "fs"}, 1,
            "The value of property X of helper fs is refused: too big.",
        ),
        (
            "JobFailed", {"unit": "a.scope", "jobResult": "failed", "unitResult": "resources"}, 1,
            "The job for a.scope ended with 'failed', the unit with 'resources'.\nSee: journalctl --user --unit",
        ),
        ("JobFailed", {"unit": "a.scope", "jobResult": "timeout"}, 1, "The job for a.scope ended with 'timeout'.\n"),
        (
            "HelperFailed",
            {"helper": "fs", "unit": "machine-web-fs.service", "result": "exit-code", "log": ["one", "\x1b[2J"]}, 1,
            ("Helper fs did not start: machine-web-fs.service ended with 'exit-code'.\n  one\n  \\x1b[2J\n"
            "See: journalctl --user --unit machine-web-fs.service"),
        ),
        ("HelperFailed", {"helper": "fs", "unit": "a.service", "log": []}, 1, "Helper fs did not start.\nSee: "),
        ("Busy", {"operation": "Register"}, 1, "The service is busy: Register."),
        ("NotSupported", {"what": "lease", "reason": "later"}, 1, "lease is not supported: later."),
        (
            "Timeout", {"operation": "start"}, 6,
            "It took too long: start.\nThe operation may still complete; see: moorctl --user list",
        ),
        (
            "Timeout", {"operation": "start", "helper": "fs", "log": ["one"]}, 6,
            "Helper fs was not ready in time. Everything that had been started is stopped again.\n  one",
        ),
        (
            "Timeout", {"operation": AUTHORIZATION}, 6,
            "It took too long: authorization by polkit.\nNothing was done. If polkit is in trouble, see: systemctl",
        ),
        ("ManagerUnavailable", {"reason": "gone"}, 1, "The service manager refused or did not answer: gone."),
        ("Unheard", {"a": "b"}, 1, 'The service replied io.moorage.Machine.Unheard: {"a": "b"}'),
    ],
)  # fmt: skip
def test_errors_of_the_interface(error: str, parameters: dict[str, Any], status: int, text: str) -> None:
    failure = explain(RemoteError(f"io.moorage.Machine.{error}", parameters), USER)
    assert failure.status == status
    assert str(failure).startswith(text)


def test_a_process_of_ones_own_is_refused_by_the_service_of_another() -> None:
    error = RemoteError("io.moorage.Machine.ProcessNotOwned", {"pid": 5, "uid": os.geteuid()})
    expected = f"Process 5 belongs to user {os.geteuid()}, so the service of another user may not have it."
    assert str(explain(error, USER)) == expected


def test_no_error_of_the_interface_is_without_words() -> None:
    errors = re.findall(r"^error (\w+)\s*\(([^)]*)\)", load_description("io.moorage.Machine"), re.MULTILINE)
    assert len(errors) > 10
    for name, fields in errors:
        parameters = dict.fromkeys(re.findall(r"(\w+):", fields), "given")
        failure = explain(RemoteError(f"io.moorage.Machine.{name}", parameters), SYSTEM)
        assert not str(failure).startswith("The service replied"), name


@pytest.mark.parametrize(
    ("address", "command"),
    [
        (SYSTEM, "moorctl stop web-1"),
        (USER, "moorctl --user stop web-1"),
        (Address("/run/my socket", None), "moorctl --address '/run/my socket' stop web-1"),
    ],
)
def test_hints_speak_to_the_same_service(address: Address, command: str) -> None:
    error = RemoteError("io.moorage.Machine.MachineExists", {"name": "web-1", "unit": "a.scope"})
    assert str(explain(error, address)).endswith(command)


@pytest.mark.parametrize(("name", "quoted"), [("web-1", "web-1"), ("a\\b", r"'a\b'")])
def test_a_hint_names_the_machine_of_the_call(name: str, quoted: str) -> None:
    error = RemoteError("io.moorage.Machine.NoSuchHelper", {"helper": "tpm"})
    failure = explain(error, USER, {"name": name, "helper": "tpm"})
    assert str(failure).splitlines()[-1] == f"List its helpers: moorctl --user status {quoted}"
    assert "NAME" not in str(explain(error, USER))


def test_a_part_of_a_machine_that_is_none() -> None:
    error = RemoteError("io.moorage.Machine.NoSuchSubgroup", {"subgroup": "payload"})
    assert str(explain(error, SYSTEM, {"name": "web", "subgroup": "payload"})) == (
        "There is no process in payload below the machine's control group.\n"
        "Show the path of that group: moorctl status web"
    )
    error = RemoteError("org.varlink.service.InvalidParameter", {"parameter": "subgroup"})
    assert str(explain(error, SYSTEM, {"name": "web", "subgroup": "../x"})).splitlines() == [
        "The service does not accept the value of --subgroup.",
        "It must be a path below the machine's control group, such as payload/init.scope, without '..'.",
    ]


def test_a_hint_can_be_pasted_into_a_shell() -> None:
    unit = r"machine-web\x2d1-fs.service"
    error = RemoteError(
        "io.moorage.Machine.HelperFailed", {"helper": "fs", "unit": unit, "result": "exit-code", "log": []}
    )
    assert shlex.split(str(explain(error, SYSTEM)).splitlines()[-1])[-1] == unit


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        (
            "helpers[1].execStart[0]",
            "/usr/bin/swtmp as execStart[0] of helper tpm.\nIt must begin with the absolute path",
        ),
        ("helpers[0].name", "my fs as the name of a helper.\nEach helper needs a unique name"),
        ("helpers[0].sockets[0].name", "/run/s as sockets[0].name of helper my fs.\n"),
        ("helpers[1].restart", "the value of restart of helper tpm.\n"),
        ("helpers[7].name", "the value of --helper or --helpers (helpers[7].name).\n"),
        ("helpers", "the value of --helper or --helpers.\n"),
    ],
)
def test_a_helper_is_named(parameter: str, words: str) -> None:
    helpers: list[dict[str, Any]] = [
        {"name": "my fs", "execStart": ["/x"], "sockets": [{"name": "/run/s"}]},
        {"name": "tpm", "execStart": ["/usr/bin/swtmp", "socket"]},
    ]
    error = RemoteError("org.varlink.service.InvalidParameter", {"parameter": parameter})
    assert words in str(explain(error, SYSTEM, {"helpers": helpers}))


def test_errors_of_every_service() -> None:
    assert explain(Disconnected(), SYSTEM).status == Exit.NO_SERVICE
    assert explain(TimedOut(), SYSTEM).status == Exit.TIMED_OUT
    assert explain(ProtocolError("bad"), SYSTEM).status == Exit.NO_SERVICE
    assert str(explain(System.of(errno.EMFILE), SYSTEM)) == "The service failed: Too many open files."


@pytest.mark.parametrize(
    ("number", "status", "hint"),
    [
        (errno.ENOENT, 5, True), (errno.ECONNREFUSED, 5, True), (errno.EACCES, 4, False), (errno.EMFILE, 5, False)
    ],
)  # fmt: skip
def test_no_connection(number: int, status: int, *, hint: bool) -> None:
    failure = explain(OSError(number, ""), SYSTEM)
    assert failure.status == status
    assert str(failure).startswith("Failed to connect to /run/s: ")
    assert ("systemctl enable --now moored.socket" in str(failure)) is hint


def test_a_bug_is_not_explained_away() -> None:
    with pytest.raises(ZeroDivisionError):
        explain(ZeroDivisionError(), SYSTEM)


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("name", "1 to 64 of the characters"),
        ("slice", "systemd.slice(5)"),
        ("id", "32 hexadecimal digits"),
        ("helpers", "at most 64 helpers"),
        ("helpers[2].name", "unique name"),
        ("helpers[0].sockets[1].mode", "0777"),
        ("helpers[0].execStart[0]", "absolute path"),
        ("helpers[0].type", "notify"),
    ],
)
def test_what_would_be_accepted_is_told(parameter: str, words: str) -> None:
    failure = explain(RemoteError("org.varlink.service.InvalidParameter", {"parameter": parameter}), SYSTEM)
    assert words in str(failure)
