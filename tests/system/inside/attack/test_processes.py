"""Whose a process is, and which one, is what the kernel says of it, not what it calls itself."""

import os
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest
from authority import wait_for
from moored import OURS, THEIRS, Processes, control_group, process_of
from sessions import Session

ROOTS_SLEEP = Path("/usr/local/bin/roots-sleep")
GATE = Path("/run/gate")


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


@pytest.fixture
def misnamed(nothing_left: None, attacker: Session) -> Generator[Path]:
    """The same program by a name of the user's, which the kernel puts into ``/proc/PID/status`` as it is."""
    path = Path(f"/home/{attacker.kind.name}/\rUid:{attacker.uid}")
    assert attacker.run("ln", "-s", str(ROOTS_SLEEP), str(path)).status == 0
    yield path
    attacker.call("Forget", {"name": "web"})
    path.unlink()
    GATE.unlink(missing_ok=True)


def uid(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def test_a_process_of_roots_that_calls_itself_the_users(attacker: Session, misnamed: Path) -> None:
    leader = attacker.spawn(str(misnamed), "infinity")
    wait_for(lambda: uid(leader) == 0)
    before = control_group(leader)
    for place in (True, False):
        for method, named in ((f"{OURS}Register", {"pid": leader}), (f"{THEIRS}Register", leader)):
            asked = {"name": "web", "class": "vm", "leader": named, "allocateUnit": place}
            assert "error" in attacker.call(method, asked), (method, place)
    assert control_group(leader) == before
    os.kill(leader, 9)


def test_a_leader_that_became_roots_and_calls_itself_the_users(attacker: Session, misnamed: Path) -> None:
    wait = f'until test -e {GATE}; do sleep 0.01; done; exec "$0" infinity'
    leader = attacker.spawn("sh", "-c", wait, str(misnamed))
    assert "error" not in attacker.register("web", leader, allocateUnit=attacker.kind.name == "creator")
    GATE.touch()
    wait_for(lambda: uid(leader) == 0)
    reply = attacker.call("Kill", {"name": "web", "signal": 9, "whom": "leader"})
    assert reply == {"error": f"{OURS}ProcessGone", "parameters": {"pid": leader}}
    # Neither dead nor dying; it may still be on its way into its sleep.
    assert Path(f"/proc/{leader}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    os.kill(leader, 9)


def test_a_control_group_that_seems_to_be_another(nothing_left: None, creator: Session) -> None:
    """A group named after another with an end of a line in it is not that other one."""
    program = (
        "import os, sys\n"
        "own = '/sys/fs/cgroup' + open('/proc/self/cgroup').read().partition('0::')[2].rstrip('\\n')\n"
        "os.mkdir(f'{own}/{sys.argv[1]}')\n"
        "open(f'{own}/{sys.argv[1]}/cgroup.procs', 'w').write('0')\n"
        "os.execvp('sleep', ['sleep', 'infinity'])\n"
    )
    delegated = (
        "systemd-run",
        "--user",
        "--scope",
        "--quiet",
        "--unit=odd",
        "--property=Delegate=yes",
        "--",
    )
    leader = creator.spawn(*delegated, "python3", "-c", program, "a\rb")
    wait_for(lambda: Path(f"/proc/{leader}/cgroup").read_bytes().endswith(b"/odd.scope/a\rb\n"))
    reply = creator.register("web", leader, allocateUnit=False)
    assert "error" not in reply, reply
    assert reply["parameters"]["machine"]["subgroup"].endswith("/odd.scope/a\rb")
    assert "error" not in creator.call("Forget", {"name": "web"})
    creator.kill(leader)


def test_a_number_that_was_handed_out_again(spawn: Processes, creator: Session, stranger: Session) -> None:
    """Root's new process is not what a machine of the user's, or a call, has named by that number."""
    leader, other = creator.spawn(), creator.spawn()
    named = process_of(leader)
    machine = creator.register("web", leader)["parameters"]["machine"]
    Path(f"/sys/fs/cgroup{machine['controlGroup']}/cgroup.procs").write_text(str(other))
    creator.kill(leader)
    again = spawn.at(leader)
    reply = creator.call("Kill", {"name": "web", "signal": 9, "whom": "leader"})
    assert reply == {"error": f"{OURS}ProcessGone", "parameters": {"pid": leader}}
    assert creator.register("more", again)["error"] == f"{OURS}ProcessNotOwned"
    for session in (creator, stranger):
        reply = session.call("Find", {"process": named})
        assert reply["error"] == f"{OURS}ProcessGone"
        reply = session.call("Find", {"process": {"pid": again}})
        assert reply["error"] == f"{OURS}NoSuchMachine"
    assert "error" not in creator.call("Stop", {"name": "web"})
    os.kill(again, 0)
    creator.kill(other)
