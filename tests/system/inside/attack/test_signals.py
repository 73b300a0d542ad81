"""A machine's owner sends signals through the service to what is the owner's, and to nothing else."""

import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from authority import CHALLENGED, DENIED, wait_for
from moored import OURS, THEIRS, UNTIL_SECONDS, Processes, control_group, run, scopes
from sessions import Session

ROOTS_SLEEP = Path("/usr/local/bin/roots-sleep")
GATE = Path("/run/gate")
KILL = 9


@pytest.fixture(scope="module", autouse=True)
def _roots_sleep() -> Generator[None]:
    """A program with the set-user-ID bit, as su(1) and mount(8) have it, that stays."""
    shutil.copy("/usr/bin/sleep", ROOTS_SLEEP)
    ROOTS_SLEEP.chmod(0o4755)
    yield
    ROOTS_SLEEP.unlink()


@pytest.fixture(params=["creator", "registrant"])
def attacker(request: pytest.FixtureRequest) -> Session:
    return request.getfixturevalue(request.param)


def becomes_roots(session: Session) -> int:
    """Start a process that turns into root's when a file is there."""
    wait = f"until test -e {GATE}; do sleep 0.01; done; exec {ROOTS_SLEEP} infinity"
    return session.spawn("sh", "-c", wait)


def uid(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def sends_nothing(session: Session, pid: int, whom: str) -> None:
    """Kill it through both interfaces, and see it live."""
    for signal in (KILL, 19, 10):
        reply = session.call("Kill", {"name": "web", "signal": signal, "whom": whom})
        assert reply == {"error": f"{OURS}ProcessGone", "parameters": {"pid": pid}}
        reply = session.call(f"{THEIRS}Kill", {"name": "web", "signal": signal, "whom": whom})
        assert (reply["error"], reply["parameters"]["errnoName"]) == ("io.systemd.System", "ESRCH")
    assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def moved_away(pid: int) -> None:
    """Put a process into a unit of its own, as pam_systemd does with who logs in."""
    run("busctl", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))", "away.scope", "fail", "1",
        "PIDs", "au", "1", str(pid), "0")  # fmt: skip
    wait_for(lambda: control_group(pid).endswith("/away.scope"))


@pytest.fixture(autouse=True)
def _nothing_stays(nothing_left: None, attacker: Session) -> Generator[None]:
    yield
    attacker.call("Forget", {"name": "web"})
    for unit in ("away.scope", "machine-web.scope"):
        subprocess.run(["systemctl", "stop", unit], check=False, capture_output=True)
    GATE.unlink(missing_ok=True)


def test_a_leader_that_became_roots(nothing_left: None, attacker: Session) -> None:
    leader = becomes_roots(attacker)
    assert "error" not in attacker.register("web", leader, allocateUnit=attacker.kind.name == "creator")
    GATE.touch()
    wait_for(lambda: uid(leader) == 0)
    sends_nothing(attacker, leader, "leader")


def test_a_leader_that_became_roots_and_left(nothing_left: None, attacker: Session) -> None:
    leader, other = becomes_roots(attacker), attacker.spawn()
    allocate = attacker.kind.name == "creator"
    assert "error" not in attacker.register("web", leader, allocateUnit=allocate)
    if allocate:  # so that the machine lives on
        Path("/sys/fs/cgroup/machine.slice/machine-web.scope/cgroup.procs").write_text(str(other))
    GATE.touch()
    wait_for(lambda: uid(leader) == 0)
    moved_away(leader)
    sends_nothing(attacker, leader, "leader")


def test_a_leader_that_left_the_machine(nothing_left: None, attacker: Session) -> None:
    # Whose it is alone is not enough: it may be in a machine of root's by now.
    leader, other = attacker.spawn(), attacker.spawn()
    allocate = attacker.kind.name == "creator"
    assert "error" not in attacker.register("web", leader, allocateUnit=allocate)
    if allocate:
        Path("/sys/fs/cgroup/machine.slice/machine-web.scope/cgroup.procs").write_text(str(other))
    moved_away(leader)
    sends_nothing(attacker, leader, "leader")


def test_a_supervisor_that_became_roots(spawn: Processes, attacker: Session) -> None:
    program = f"""
import json, os, socket
connected = socket.socket(socket.AF_UNIX)
connected.connect("/run/moorage/io.moorage.Machine")
parameters = {{"name": "web", "class": "vm", "leader": {{"pid": LEADER}}, "allocateUnit": PLACE}}
connected.sendall(json.dumps({{"method": "{OURS}Register", "parameters": parameters}}).encode() + b"\\0")
assert b"error" not in connected.recv(65536)
os.execv("{ROOTS_SLEEP}", ["roots-sleep", "infinity"])
"""
    leader = attacker.spawn()
    place = attacker.kind.name == "creator"
    program = program.replace("LEADER", str(leader)).replace("PLACE", str(place))
    supervisor = attacker.spawn("python3", "-c", program)
    wait_for(lambda: uid(supervisor) == 0)
    sends_nothing(attacker, supervisor, "supervisor")
    assert "error" not in attacker.call("Kill", {"name": "web", "signal": 18, "whom": "leader"})
    os.kill(supervisor, KILL)


def test_machines_of_others(spawn: Processes, attacker: Session, stranger: Session) -> None:
    leader = spawn()
    run("moorctl", "register", "roots", "--leader", str(leader.pid))
    for session in (attacker, stranger):
        for whom in ("leader", "supervisor", "all"):
            for method in (f"{OURS}Kill", f"{THEIRS}Kill"):
                reply = session.call(method, {"name": "roots", "signal": KILL, "whom": whom})
                assert reply in (CHALLENGED, DENIED)
    assert leader.poll() is None
    assert scopes() == ["machine-roots.scope"]
    run("moorctl", "stop", "roots")
    assert leader.wait(UNTIL_SECONDS) == -15
