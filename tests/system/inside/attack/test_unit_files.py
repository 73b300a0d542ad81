"""What is written into unit files: nobody's values bring lines, commands or another meaning into one.

The service manager reads its unit files again at each daemon-reload, which any upgrade of a package brings about.
What a value becomes then is what it was, or it is refused by name. That holds for root as well, whose launchers pass
on what others gave them.
"""

import json
import signal
from typing import Any

import pytest
from moored import OURS, Processes, connect, cursor, messages, register, run, show, units, until
from sessions import CREATOR, Session

from moorage.errors import InvalidProperty

HERS = f"/run/user/{CREATOR.uid}/moorage/io.moorage.Machine"

LINES = "x\nDynamicUser=no\nUser=root\nNoNewPrivileges=no"

HELPERS: list[tuple[str, Any]] = [
    # further lines
    ("SyslogIdentifier", LINES),
    ("SyslogIdentifier", LINES.replace("\n", "\r")),
    ("WorkingDirectory", f"/{LINES}"),
    ("UtmpIdentifier", LINES),
    ("StandardOutputFile", f"/{LINES}"),
    ("ReadWritePaths", [f"/{LINES}"]),
    ("Conditions", [["ConditionHost", False, False, LINES]]),
    ("ExecReload", [["/bin/true\nUser=root", ["x"], False]]),
    # the next line becomes a part of this one
    ("SyslogIdentifier", "x\\"),
    ("User", "nobody\\"),
    # further commands
    ("ExecReload", [["/bin/true a ; +/bin/sh", ["x"], False]]),
    ("ExecStop", [["/bin/true ; !/bin/sh", ["/bin/true ; !/bin/sh", "$A"], True]]),
    ("ExecStartPreEx", [["/bin/true a ; +/bin/sh", ["x"], ["no-env-expand"]]]),
    ("ExecReloadEx", [["/bin/true", ["true"], ["privileged"]]]),
    # further paths, and others
    ("BindPaths", [["/srv/a /etc:/mnt", "/b", False, 0]]),
    ("BindReadOnlyPaths", [["/srv", "/a:/etc", False, 0]]),
    ("TemporaryFileSystem", [["/a:mode=0777", "ro"]]),
    ("LoadCredential", [["a\n", "/etc/shadow"]]),
    # specifiers
    ("PIDFile", "/run/%n"),
    ("RequiresMountsFor", ["/srv/%n"]),
    # what is lifted
    ("RestrictNamespaces", 0),
    ("TimeoutStopUSec", 0),
    ("CPUQuotaPerSecUSec", 50),
]

SCOPES: list[tuple[str, Any]] = [
    ("DelegateSubgroup", "x\n[Scope]\nUser=root"),
    ("Documentation", ["man:x\nAfter=x.service"]),
    ("User", "creator\\"),
    ("Conditions", [["ConditionHost", False, False, "|x"]]),
    ("MemoryMaxScale", 1),
    ("IOReadIOPSMax", [["/dev/null", 0]]),
]


def helper(**fields: Any) -> dict[str, Any]:
    return {"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"], **fields}


@pytest.mark.parametrize(("name", "value"), HELPERS)
async def test_a_helper_of_root(spawn: Processes, name: str, value: Any) -> None:
    leader = spawn()
    async with await connect() as client:
        with pytest.raises(InvalidProperty, match=name):
            await register(client, "web", leader, helpers=[helper(properties={name: value})])
        assert units() == []
        await register(client, "web", leader)
        added = {"name": "web", "helpers": [helper(properties={name: value})]}
        with pytest.raises(InvalidProperty, match=name):
            await client.call(f"{OURS}AddHelpers", added)
        assert units() == ["machine-web.scope"]


@pytest.mark.parametrize(("name", "value"), SCOPES)
async def test_a_scope_of_root(spawn: Processes, name: str, value: Any) -> None:
    async with await connect() as client:
        with pytest.raises(InvalidProperty, match=name):
            await register(client, "web", spawn(), properties={name: value})
    assert units() == []


@pytest.mark.parametrize("text", ["x\nUser=root", "x\\", " x", "x\u2028y"])
def test_a_description(nothing_left: None, creator: Session, text: str) -> None:
    reply = creator.register("web", creator.spawn(), description=text)
    assert reply["error"] == "org.varlink.service.InvalidParameter"
    assert reply["parameters"] == {"parameter": "description"}
    assert units() == []


@pytest.mark.parametrize("name", ["a\\", "a\\\\"])
async def test_a_name_that_ends_in_a_backslash(spawn: Processes, name: str) -> None:
    async with await connect() as client:
        machine = (await register(client, name, spawn(), helpers=[helper()], properties={"TasksMax": 77}))[
            "machine"
        ]
        services = [unit for unit in units() if unit.endswith((".service", ".scope"))]
        wanted = ("Description", "Slice", "TasksMax", "User", "Requires", "DynamicUser", "BindsTo")
        before = {unit: show(unit, *wanted) for unit in services}
        run("systemctl", "daemon-reload")
        for unit, shown in before.items():
            found = show(unit, *wanted)
            assert {key: sorted(value.split()) for key, value in found.items()} == {
                key: sorted(value.split()) for key, value in shown.items()
            }, unit
        assert before[machine["unit"]]["TasksMax"] == "77"


@pytest.mark.parametrize(("name", "value"), HELPERS)
def test_a_helper_in_the_manager_of_a_user(creator: Session, name: str, value: Any) -> None:
    assert creator.run("systemctl", "--user", "start", "moored.socket").status == 0
    leader = creator.spawn()
    wanted = {
        "name": "web",
        "class": "vm",
        "leader": {"pid": leader},
        "helpers": [helper(properties={name: value})],
    }
    reply = creator.call("Register", wanted, path=HERS)
    creator.kill(leader)
    assert reply["error"] == "io.moorage.Machine.InvalidProperty", reply
    assert (reply["parameters"]["property"], reply["parameters"]["helper"]) == (name, "fs")
    listed = creator.run("systemctl", "--user", "list-units", "--all", "--plain", "--no-legend", "machine-*")
    assert listed.stdout == ""


async def test_what_may_have_lines_remains_what_it_is(spawn: Processes) -> None:
    """Arguments and variables are data: before a reload, after it, and when the manager starts the helper again."""
    odd = [
        "x\nUser=root", "\r\t\x01\x1b\x7f", "%n", "%%", "$HOME", "${HOME}", "$$", ";", "a b", "", " ", '"', "'", "\\",
        "\\n", "\\x41", "#", "-", "+", "\x85\u2028", "ü\U0001f600", "x\\",
    ]  # fmt: skip
    variables = {f"V{number}": text for number, text in enumerate(odd) if text != "\r\t\x01\x1b\x7f"}
    text = (
        "import json, os, signal, sys\n"
        "kept = {k: v for k, v in os.environ.items() if k[0] == 'V'}\n"
        "print(json.dumps([os.getuid(), sys.argv[1:], kept]), flush=True)\n"
        "signal.pause()\n"
    )
    wanted = helper(
        execStart=["/usr/bin/python3", "-c", text, *odd],
        restart="always",
        properties={
            "RestartUSec": 1000,
            "Environment": [f"{name}={value}" for name, value in variables.items()],
        },
    )
    unit = "machine-web-fs.service"

    begun = cursor()

    async def said(count: int) -> list[Any]:
        await until(lambda: len(messages(unit, begun)) >= count, f"{count} lines of the helper")
        return [json.loads(line) for line in messages(unit, begun)[:count]]

    async with await connect() as client:
        await register(client, "web", spawn(), helpers=[wanted])
        ((uid, arguments, environment),) = await said(1)
        assert uid != 0
        assert arguments == odd
        assert environment == variables
        run("systemctl", "daemon-reload")
        run("systemctl", "kill", f"--signal={signal.SIGKILL}", unit)
        assert await said(2) == [[uid, odd, variables]] * 2
        assert "User=root" not in run("systemctl", "cat", unit).splitlines()
