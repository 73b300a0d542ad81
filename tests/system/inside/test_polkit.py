"""Questions to a real polkit: who is asked about, what is answered, and that nobody has to wait for it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hostile
import polkit_agent
import pytest
import trio
from authority import ALICE, BOB, CHALLENGED, DENIED, acting_as, asks, at_home, registers, rules, wait_for
from hostile import ANSWER_SECONDS, dial, encode
from moored import (
    OURS,
    SOCKET,
    THEIRS,
    UNTIL_SECONDS,
    Processes,
    descriptors,
    main_pid,
    run,
    scopes,
    show,
    until,
)

from moorage.authz.polkit import QUESTIONS_PER_UID_MAX

pytestmark = pytest.mark.system_instance("the instance of a user asks no polkit")

SYSTEMD = int(run("systemctl", "--version").split()[1])
NAMED = {"class": "vm"}


@pytest.fixture(scope="module", autouse=True)
def _rules() -> Generator[None]:
    with rules():
        yield


def tries(user: int, name: str, **fields: Any) -> Any:
    """Try to register what cannot be registered: PID 1. What polkit does not allow is answered before that."""
    reply = registers(user, 1, name, **fields)
    return "allowed" if reply["error"] == "org.varlink.service.InvalidParameter" else reply


def tries_theirs(spawn: Processes, user: int, name: str, *, unit: bool, class_: str = "vm") -> Any:
    """Register a process of the user's, and stop it again: there, PID 1 is refused before polkit is asked."""
    leader = at_home(spawn, user).pid
    reply = asks(
        user, f"{THEIRS}Register", {"name": name, "class": class_, "leader": leader, "allocateUnit": unit}
    )
    if "error" in reply:
        return reply
    assert "error" not in asks(0, f"{OURS}Stop", {"name": name})
    return "allowed"


# What is asked


@pytest.mark.parametrize("user", [ALICE, BOB])
def test_the_answers(nothing_left: None, user: int) -> None:
    assert tries(user, "yes") == "allowed"
    assert tries(user, "no") == DENIED
    assert tries(user, "self") == CHALLENGED
    assert tries(user, "default") == CHALLENGED
    # Where nobody is there who could ask the user, it does not help to allow it.
    for name in ("self", "default"):
        assert tries(user, name, allowInteractiveAuthentication=True) == CHALLENGED
    assert tries(user, "no", allowInteractiveAuthentication=True) == DENIED
    assert registers(0, 1, "no")["error"] == "org.varlink.service.InvalidParameter", (
        "root is not asked about"
    )


def test_each_interface_has_its_actions(spawn: Processes) -> None:
    assert tries(ALICE, "ours") == "allowed"
    assert tries(ALICE, "ours", allocateUnit=False) == "allowed"
    assert tries(ALICE, "theirs") == CHALLENGED
    assert tries(ALICE, "theirs", allocateUnit=False) == CHALLENGED
    assert tries(ALICE, "in-place") == CHALLENGED
    assert tries(ALICE, "in-place", allocateUnit=False) == "allowed"
    # systemd 257 has no action for machines that need no scope: what polkit does not know is denied.
    unknown = SYSTEMD < 258
    for name, unit, answer in (
        ("theirs", True, "allowed"),
        ("theirs", False, DENIED if unknown else "allowed"),
        ("ours", True, CHALLENGED),
        ("ours", False, DENIED if unknown else CHALLENGED),
        ("in-place", True, CHALLENGED),
        ("in-place", False, DENIED if unknown else "allowed"),
    ):
        assert tries_theirs(spawn, ALICE, name, unit=unit) == answer, (name, unit)


def test_what_takes_the_rights_of_root_has_an_action_of_its_own(nothing_left: None) -> None:
    helper = {"name": "a", "execStart": ["/bin/sleep", "infinity"]}
    for more in ({"helpers": [helper]}, {"properties": {"User": "root"}}, {"slice": "system.slice"}):
        assert tries(ALICE, "as-root", **more) == "allowed"
        assert tries(ALICE, "default", **more) == CHALLENGED, "neither may she create any"
    assert tries(ALICE, "yes", helpers=[helper]) == CHALLENGED
    assert tries(ALICE, "yes", properties={"User": "root"})["error"] == f"{OURS}InvalidProperty"
    # It implies the others (pkaction(1)): whoever may do all may do less.
    assert tries(ALICE, "as-root") == tries(ALICE, "as-root", allocateUnit=False) == "allowed"


def test_rules_know_what_it_is_about(spawn: Processes) -> None:
    assert tries(ALICE, "vm") == "allowed"
    assert tries(ALICE, "vm", **{"class": "container"}) == CHALLENGED
    assert tries_theirs(spawn, ALICE, "vm", unit=True) == "allowed"
    assert tries_theirs(spawn, ALICE, "vm", unit=True, class_="container") == CHALLENGED
    for method in (f"{OURS}Stop", f"{THEIRS}Terminate"):
        assert "error" not in registers(0, spawn(), "stop")
        assert asks(ALICE, f"{OURS}Kill", {"name": "stop", "signal": 9}) == CHALLENGED
        assert asks(ALICE, f"{OURS}Forget", {"name": "stop"}) == CHALLENGED
        assert "error" not in asks(ALICE, method, {"name": "stop"})
    trio.run(until, lambda: not scopes())


# Whom it is about


def handed_over(argv: tuple[str, ...]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Have a process of alice's connect, and hand over the connection; then it executes something else."""
    ours, theirs = socket.socketpair()
    program = f"""
import os, socket, sys
passes, connected = socket.socket(fileno={theirs.fileno()}), socket.socket(socket.AF_UNIX)
connected.connect({SOCKET!r})
socket.send_fds(passes, [b"x"], [connected.fileno()])
os.execv(sys.argv[1], sys.argv[1:])
"""
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *argv], user=ALICE, group=ALICE, extra_groups=(),
            pass_fds=[theirs.fileno()], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
    connected = socket.socket(fileno=fd)
    connected.settimeout(ANSWER_SECONDS)
    return connected, process


def answer_on(connected: socket.socket, method: str, parameters: dict[str, Any]) -> Any:
    hostile.send(connected, encode(method, parameters))
    return json.loads(connected.recv(65536).rstrip(b"\0"))


def test_a_caller_that_became_root_is_still_who_connected(spawn: Processes) -> None:
    connected, process = handed_over(("/usr/bin/su", "-c", "true", "bob"))
    with connected, process:
        wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "su\n")
        assert Path(f"/proc/{process.pid}").stat().st_uid == 0
        for name, answer in (("no", DENIED), ("self", CHALLENGED)):  # the rules let root do anything
            assert (
                answer_on(connected, f"{OURS}Register", {"name": name, "leader": {"pid": 1}, **NAMED})
                == answer
            )
        assert answer_on(connected, "io.systemd.service.GetLogLevel", {}) == DENIED
        # Nor is the process that it is now a leader of hers.
        reply = answer_on(connected, f"{OURS}Register", {"name": "yes", **NAMED})
        assert reply == {"error": f"{OURS}ProcessNotOwned", "parameters": {"pid": process.pid, "uid": 0}}
        process.kill()


def test_a_caller_that_has_exited_is_still_who_connected(spawn: Processes) -> None:
    leader = at_home(spawn, ALICE)
    assert "error" not in registers(ALICE, leader, "yes")
    assert "error" not in registers(0, spawn(), "web")
    connected, process = handed_over(("/bin/true",))
    with connected, process:
        assert process.wait(UNTIL_SECONDS) == 0
        # Its uid is known, so its own machine is. There is nobody to ask polkit about.
        assert answer_on(connected, f"{OURS}Kill", {"name": "web", "signal": 9}) == DENIED
        assert answer_on(connected, f"{OURS}Register", {"name": "yes-2", **NAMED}) == DENIED
        assert "error" not in answer_on(connected, f"{OURS}Stop", {"name": "yes"})
    assert "error" not in asks(0, f"{OURS}Stop", {"name": "web"})


# A person


class Asker:
    """A process of alice's that calls, and an agent of hers that is asked for it."""

    def __init__(self, spawn: Processes, connected: socket.socket, pid: int) -> None:
        self.connected = connected
        command = (sys.executable, polkit_agent.__file__, str(pid), str(ALICE))
        self.agent = spawn(command, user=ALICE, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.heard()["event"] == "registered"

    def heard(self) -> dict[str, Any]:
        """Return what happened next to the agent."""
        assert self.agent.stdout is not None
        return json.loads(self.agent.stdout.readline())

    def says(self, word: str) -> None:
        """Have the agent end the question."""
        assert self.agent.stdin is not None
        self.agent.stdin.write(f"{word}\n".encode())
        self.agent.stdin.flush()

    def registers(self, name: str, *, leader: int, interactive: bool = True) -> None:
        """Begin to register; the reply comes later."""
        parameters = {
            "name": name,
            "leader": {"pid": leader},
            "allowInteractiveAuthentication": interactive,
            **NAMED,
        }
        hostile.send(self.connected, encode(f"{OURS}Register", parameters))

    def reply(self) -> Any:
        """Return the reply."""
        return json.loads(self.connected.recv(65536).rstrip(b"\0"))


@pytest.fixture
def asker(spawn: Processes) -> Iterator[Asker]:
    connected, process = handed_over(("/bin/sleep", "infinity"))
    with connected, process:
        yield Asker(spawn, connected, process.pid)
        process.kill()


def authenticated(cookie: str) -> None:
    """Tell polkitd that alice has given her password, as only root may."""
    run("busctl", "call", "org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority",
        "org.freedesktop.PolicyKit1.Authority", "AuthenticationAgentResponse2", "us(sa{sv})", str(ALICE), cookie,
        "unix-user", "1", "uid", "u", str(ALICE))  # fmt: skip


def test_a_person_is_asked_and_says_yes(spawn: Processes, asker: Asker) -> None:
    leader = at_home(spawn, ALICE)
    asker.registers("self", leader=leader.pid)
    begun = asker.heard()
    assert (begun["event"], begun["action"]) == ("begin", "io.moorage.create-machine")
    assert "machine self (vm)" in begun["message"]
    # While she looks for her password, nobody else waits.
    for number in range(3):
        assert "error" not in registers(0, spawn(), f"web{number}")
        assert tries(BOB, "yes") == "allowed"
        assert "error" not in asks(0, f"{OURS}Stop", {"name": f"web{number}"})
    authenticated(begun["cookie"])
    asker.says("done")
    assert asker.reply()["parameters"]["machine"]["uid"] == ALICE
    # Now that it is hers, nobody asks her.
    asker.registers("self", leader=leader.pid, interactive=False)
    assert asker.reply() == CHALLENGED, "a new call is a new question, and auth_self is not kept"
    assert "error" not in asks(ALICE, f"{OURS}Stop", {"name": "self"})


def test_a_person_is_asked_and_says_no(nothing_left: None, asker: Asker) -> None:
    asker.registers("self", leader=1)
    assert asker.heard()["event"] == "begin"
    asker.says("dismiss")
    assert asker.reply() in (DENIED, CHALLENGED)
    asker.registers("self", leader=1)
    assert asker.heard()["event"] == "begin"
    asker.says("done")  # without anybody having authenticated
    assert asker.reply() in (DENIED, CHALLENGED)


def test_a_person_is_not_asked_unless_that_is_allowed(nothing_left: None, asker: Asker) -> None:
    asker.registers("self", leader=1, interactive=False)
    assert asker.reply() == CHALLENGED
    asker.registers("yes", leader=1)
    assert asker.reply()["error"] == "org.varlink.service.InvalidParameter"
    # Nor for a caller that does not wait for the answer.
    parameters = {"name": "self", "allowInteractiveAuthentication": True, **NAMED}
    hostile.send(asker.connected, encode(f"{OURS}Register", parameters, oneway=True))
    # The first thing that the agent hears is of the next call.
    asker.registers("self-2", leader=1)
    begun = asker.heard()
    assert "machine self-2 (vm)" in begun["message"]
    asker.says("dismiss")
    assert asker.reply() in (DENIED, CHALLENGED)


def test_a_question_is_taken_back_when_the_asker_leaves(spawn: Processes, asker: Asker) -> None:
    leader = at_home(spawn, ALICE)
    asker.registers("self", leader=leader.pid)
    begun = asker.heard()
    asker.connected.close()
    assert asker.heard() == {"event": "cancel", "cookie": begun["cookie"]}
    assert scopes() == []
    assert "error" not in registers(0, leader, "self"), "neither name nor leader is taken"
    assert "error" not in asks(0, f"{OURS}Stop", {"name": "self"})


# Too many, too late, and not at all


@contextlib.contextmanager
def stopped_polkit() -> Generator[int]:
    """Have polkitd answer nothing."""
    pid = int(show("polkit.service", "MainPID")["MainPID"])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_questions_of_one_user_do_not_take_all_places(spawn: Processes) -> None:
    run("systemctl", "start", "polkit.service")
    assert tries(ALICE, "yes") == "allowed"
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopped_polkit())
        before = descriptors()
        with acting_as(ALICE):
            pending = [stack.enter_context(dial()) for _ in range(QUESTIONS_PER_UID_MAX)]
        for connected in pending:
            hostile.send(
                connected, encode(f"{OURS}Register", {"name": "yes", "leader": {"pid": 1}, **NAMED})
            )
        # A connection and a pidfd for each of them, and one connection to the bus.
        wait_for(lambda: descriptors() >= before + 2 * QUESTIONS_PER_UID_MAX + 1)
        busy = {"origin": "linux", "errnoName": "EBUSY", "errno": 16}
        for method in (f"{OURS}Register", f"{THEIRS}Register"):
            assert asks(ALICE, method, {"name": "yes", **NAMED}) == {
                "error": "io.systemd.System",
                "parameters": busy,
            }
        # Others: who need not ask, and who may still ask.
        assert "error" not in registers(0, spawn(), "web")
        assert "error" not in asks(0, f"{OURS}Stop", {"name": "web"})
        with acting_as(BOB):
            bobs = stack.enter_context(dial())
        hostile.send(bobs, encode(f"{OURS}Register", {"name": "yes", "leader": {"pid": 1}, **NAMED}))
        # Half of them leave: their places are free again, once that was said or given up.
        for connected in pending[::2]:
            connected.close()
        stack.close()  # and it goes on, with nobody there any more
    wait_for(lambda: descriptors() <= before)
    assert tries(ALICE, "yes") == "allowed"


def questions() -> int:
    """How many pidfds of this process moored has: one for each question about it that is under way."""
    found = 0
    for path in Path(f"/proc/{main_pid()}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has been closed meanwhile
            found += f"Pid:\t{os.getpid()}\n" in path.read_text()
    return found


def test_polkit_may_be_restarted_meanwhile(nothing_left: None) -> None:
    run("systemctl", "start", "polkit.service")
    wait_for(lambda: questions() == 0)
    with stopped_polkit() as pid:
        with acting_as(ALICE):
            connected = dial()
        hostile.send(connected, encode(f"{OURS}Register", {"name": "yes", "leader": {"pid": 1}, **NAMED}))
        wait_for(lambda: questions() == 1)
        os.kill(pid, signal.SIGKILL)
    run("systemctl", "restart", "polkit.service")
    with connected:
        reply = json.loads(connected.recv(65536).rstrip(b"\0"))
    assert reply["error"] == "org.varlink.service.InvalidParameter", "the one that came after it said yes"


def test_without_polkit_it_is_root_and_ones_own_machines(spawn: Processes) -> None:
    leader = at_home(spawn, ALICE)
    assert "error" not in registers(ALICE, leader, "yes")
    run("systemctl", "mask", "--runtime", "--now", "polkit.service")
    try:
        assert tries(ALICE, "yes-2") == DENIED
        assert tries_theirs(spawn, ALICE, "yes-2", unit=True) == DENIED
        assert asks(BOB, f"{OURS}Stop", {"name": "yes"}) == DENIED
        assert "error" not in registers(0, spawn(), "web")
        assert asks(ALICE, f"{OURS}Kill", {"name": "web", "signal": 9}) == DENIED
        assert "error" not in asks(ALICE, f"{OURS}Describe", {"name": "web"})
        assert "error" not in asks(0, f"{OURS}Stop", {"name": "web"})
        assert "error" not in asks(ALICE, f"{OURS}Stop", {"name": "yes"})
    finally:
        run("systemctl", "unmask", "--runtime", "polkit.service")
    assert tries(ALICE, "yes-2") == "allowed", "it is asked again as soon as it is there"
    assert main_pid() != 0
