"""Machines of others: nobody takes over their leases and names, forgets them, or reads what their owners keep."""

import os
from pathlib import Path
from typing import Any

from authority import CHALLENGED, DENIED, wait_for
from hostile import call, dial, encode, receive, send
from moored import OURS, THEIRS, UNTIL_SECONDS, Processes, cursor, messages, run, scopes
from sessions import Session

REFUSED = {"org.varlink.service.PermissionDenied", "io.systemd.InteractiveAuthenticationRequired"}

SECRETS = {"sshPrivateKeyPath": "/root/key", "controlAddress": "unix:/run/control"}


def test_a_lease_is_nobody_elses(spawn: Processes, creator: Session, stranger: Session) -> None:
    leader = spawn()
    asked: dict[str, Any] = {"name": "web", "class": "vm", "leader": {"pid": leader.pid}, "lease": True}
    with dial() as launcher:
        send(launcher, encode(f"{OURS}Register", asked))
        assert b'"error"' not in launcher.recv(1 << 16)
        for session in (creator, stranger):
            with session.dial() as theirs:
                send(theirs, encode(f"{OURS}Register", asked))
                theirs.shutdown(1)
                assert b'"error"' in receive(theirs)
            # The end of that connection is nothing to the machine.
            assert session.call("Describe", {"name": "web"})["parameters"]["machine"]["phase"] == "running"
            for method in ("Forget", "Stop"):
                assert session.call(method, {"name": "web"}) in (CHALLENGED, DENIED)
            for method in ("Unregister", "Terminate"):
                assert session.call(f"{THEIRS}{method}", {"name": "web"}) in (CHALLENGED, DENIED)
        assert leader.poll() is None
    leader.wait(UNTIL_SECONDS)  # now the lease has ended


def test_a_verdict_is_nobody_elses_to_forget(spawn: Processes, creator: Session, stranger: Session) -> None:
    leader = spawn()
    asked = {"name": "web", "class": "vm", "leader": {"pid": leader.pid}, **SECRETS}
    assert "error" not in (call(f"{OURS}Register", asked) or {"error": None})
    leader.terminate()
    leader.wait(UNTIL_SECONDS)
    wait_for(lambda: "verdict" in stranger.call("Describe", {"name": "web"})["parameters"]["machine"])
    for session in (creator, stranger):
        found = session.call("Describe", {"name": "web"})["parameters"]["machine"]
        assert not found.keys() & SECRETS.keys()
        assert session.call("Forget", {"name": "web"})["error"] in {*REFUSED, f"{OURS}NoSuchMachine"}
    assert "verdict" in stranger.call("Describe", {"name": "web"})["parameters"]["machine"]


def test_the_journal_of_a_helper_is_not_read_by_way_of_a_verdict(
    everything_gone: None, spawn: Processes, stranger: Session
) -> None:
    leader = spawn()
    command = ["/bin/sh", "-c", "echo words; exec sleep infinity"]
    helper = {"name": "fs", "execStart": command, "onFailure": "stopMachine"}
    asked = {"name": "web", "class": "vm", "leader": {"pid": leader.pid}, "helpers": [helper]}
    begun = cursor()
    assert "error" not in (call(f"{OURS}Register", asked) or {"error": None})
    wait_for(lambda: "words" in messages("machine-web-fs.service", begun))
    run("systemctl", "kill", "--signal=KILL", "machine-web-fs.service")
    leader.wait(UNTIL_SECONDS)
    wait_for(lambda: "words" in run("moorctl", "status", "web"))
    found = stranger.call("Describe", {"name": "web"})["parameters"]["machine"]["verdict"]
    assert (found["cause"], found["helper"]) == ("helperEnded", "fs")
    assert "log" not in found


def test_a_subgroup_leads_nowhere_else(spawn: Processes, creator: Session) -> None:
    other, leader = spawn(), creator.spawn()
    roots = {"name": "roots", "class": "vm", "leader": {"pid": other.pid}}
    assert "error" not in (call(f"{OURS}Register", roots) or {"error": None})
    assert "error" not in creator.register("web", leader)
    for subgroup in (
        "..", "../machine-roots.scope", "/../machine-roots.scope", "a/../../machine-roots.scope", "a/..",
        "/machine.slice/machine-roots.scope", "machine-roots.scope", "/machine.slice", "//..//machine-roots.scope",
        "./../machine-roots.scope", "a\0/../..", "\x1b",
    ):  # fmt: skip
        for signal in (9, 19):
            asked = {"name": "web", "signal": signal, "whom": "all", "subgroup": subgroup}
            assert "error" in creator.call("Kill", asked), subgroup
    assert other.poll() is None
    assert Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
    assert sorted(scopes()) == ["machine-roots.scope", "machine-web.scope"]
    os.kill(leader, 0)
    assert "error" not in creator.call("Stop", {"name": "web"})
    creator.kill(leader)
    other.terminate()
