"""Names and texts that users choose bring nothing to whoever looks at them: no control characters, no other order."""

import json
import subprocess
from pathlib import Path
from typing import Any

from authority import wait_for
from hostile import call
from moored import OURS, THEIRS, UNTIL_SECONDS, Processes, cursor, messages, run, scopes, units
from sessions import Session

INVALID = "org.varlink.service.InvalidParameter"

CHARACTERS = (
    "\0", "\a", "\b", "\n", "\r", "\x1b[2J", "\x7f", "\x85", "\x9b31m", "\u2028", "\u202e", "\u2066", "\u200b",
    "\u061c", "\ufeff", "\u00ad", "\ue000",
)  # fmt: skip
"""Controls of terminals, ends of lines, another order of writing (bidi), and what cannot be seen."""

SEEN = "\x1b[31mred\x1b]0;title\x07\x9b1m\u202e\r"
"""What should do none of that where it is shown."""

TEXTS = ("service", "sshAddress", "controlAddress", "rootDirectory", "sshPrivateKeyPath")
"""Of both interfaces."""


def test_no_name_or_text_has_any(nothing_left: None, creator: Session, registrant: Session) -> None:
    for session in (creator, registrant):
        leader = session.spawn()
        ours: dict[str, Any] = {
            "name": "web",
            "class": "vm",
            "leader": {"pid": leader},
            "allocateUnit": False,
        }
        theirs: dict[str, Any] = {"name": "web", "class": "vm", "leader": leader, "allocateUnit": False}
        for character in CHARACTERS:
            for field in ("name", "description", "slice", "id", *TEXTS):
                value = f"/a{character}b" if field in TEXTS else f"a{character}b"
                reply = session.call("Register", {**ours, field: value})
                assert reply == {"error": INVALID, "parameters": {"parameter": field}}, ascii(value)
            for field in ("name", *TEXTS):
                value = f"/a{character}b" if field in TEXTS else f"a{character}b"
                reply = session.call(f"{THEIRS}Register", {**theirs, field: value})
                assert reply == {"error": INVALID, "parameters": {"parameter": field}}, ascii(value)
        assert scopes() == []
        session.kill(leader)


def test_no_name_of_a_helper_has_any(spawn: Processes) -> None:
    # Nor if root's launcher passes it on.
    command = ["/usr/bin/sleep", "infinity"]
    ours: dict[str, Any] = {"name": "web", "class": "vm", "leader": {"pid": spawn().pid}}
    for character in CHARACTERS:
        name = f"a{character}b"
        for helper, field in (
            ({"name": name, "execStart": command}, "name"),
            ({"name": "fs", "execStart": command, "sockets": [{"name": name}]}, "sockets[0].name"),
            ({"name": "fs", "execStart": [f"/usr/bin/{name}"]}, "execStart"),
        ):
            reply = call(f"{OURS}Register", {**ours, "helpers": [helper]})
            assert reply == {"error": INVALID, "parameters": {"parameter": f"helpers[0].{field}"}}, ascii(
                name
            )
    assert units() == []


def is_harmless(text: str) -> bool:
    """Whether a terminal writes it and does nothing else."""
    return all(character.isprintable() or character == "\n" for character in text)


MOVES = """
import os, sys
own = "/sys/fs/cgroup" + open("/proc/self/cgroup").read().partition("0::")[2].rstrip("\\n")
os.mkdir(own + "/" + sys.argv[1])
open(own + "/" + sys.argv[1] + "/cgroup.procs", "w").write("0")
os.execvp("sleep", ["sleep", "infinity"])
"""


def test_a_control_group_with_an_odd_name(nothing_left: None, creator: Session) -> None:
    leader = creator.spawn(
        "systemd-run", "--user", "--scope", "--quiet", "--unit=odd", "--property=Delegate=yes", "--",
        "python3", "-c", MOVES, SEEN,
    )  # fmt: skip
    wait_for(lambda: f"/odd.scope/{SEEN}" in Path(f"/proc/{leader}/cgroup").read_bytes().decode())
    reply = creator.register("web", leader, allocateUnit=False)
    assert "error" not in reply, reply
    assert reply["parameters"]["machine"]["subgroup"].endswith(SEEN)
    for argv in (("list",), ("status", "web"), ("find", "--pid", str(leader)), ("--version",)):
        assert is_harmless(run("moorctl", *argv)), argv
    assert "\x1b" not in run("moorctl", "list", "--json")
    assert "\\x1b[31mred" in run("moorctl", "status", "web")
    assert "error" not in creator.call("Forget", {"name": "web"})
    creator.kill(leader)


SAYS = f"print({SEEN!a} + chr(10) + {SEEN!a}, flush=True)"


def test_what_a_helper_has_said_before_it_failed(
    everything_gone: None, spawn: Processes, tmp_path: Path
) -> None:
    run("moorctl", "register", "web", "--leader", str(spawn().pid))
    command = ["/usr/bin/python3", "-c", f"{SAYS}; raise SystemExit(1)"]
    file = tmp_path / "helpers.toml"
    file.write_text(f'[helpers.fs]\ntype = "oneshot"\nexecStart = {json.dumps(command)}\n')
    done = subprocess.run(
        ["moorctl", "add-helpers", "web", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done
    assert "\\x1b[31mred" in done.stderr
    assert is_harmless(done.stdout + done.stderr), done.stderr


def test_what_a_helper_has_said_before_it_ended_the_machine(everything_gone: None, spawn: Processes) -> None:
    leader = spawn()
    helper = {
        "name": "fs",
        "execStart": ["/usr/bin/python3", "-c", f"import signal; {SAYS}; signal.pause()"],
        "onFailure": "stopMachine",
    }
    asked = {"name": "web", "class": "vm", "leader": {"pid": leader.pid}, "helpers": [helper]}
    begun = cursor()  # another test has had a helper of that name, which has said the same
    reply = call(f"{OURS}Register", asked)
    assert reply is not None
    assert "error" not in reply, reply
    wait_for(lambda: len(messages("machine-web-fs.service", begun)) >= 2)
    run("systemctl", "kill", "--signal=KILL", "machine-web-fs.service")
    leader.wait(UNTIL_SECONDS)
    told = wait_for(lambda: text if "\\x1b[31mred" in (text := run("moorctl", "status", "web")) else "")
    assert is_harmless(told), told
