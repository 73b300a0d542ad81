"""The instance of a user, under that user's manager: real ones, beside the system's."""

import json
import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import hostile
from hostile import call, dial, encode
from moored import (
    OURS,
    SOCKET,
    THEIRS,
    UNTIL_SECONDS,
    Process,
    Processes,
    control_group,
    process_of,
    run,
    scopes,
    until,
)

ALICE, BOB = 1000, 1001
RUNTIME = Path(f"/run/user/{ALICE}")
HERS = f"{RUNTIME}/moorage/io.moorage.Machine"
HER_MANAGER = f"/user.slice/user-{ALICE}.slice/user@{ALICE}.service/"

DENIED = "org.varlink.service.PermissionDenied"


@contextmanager
def acting_as(user: int) -> Generator[None]:
    """Connect as somebody else: what counts is the effective uid at that moment (unix(7))."""
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def asks(
    user: int, method: str, parameters: Any = None, fds: list[int] | None = None, *, path: str = SOCKET
) -> Any:
    """Return the reply to a call by a user, or None."""
    with acting_as(user):
        return call(method, parameters, fds or (), path=path)


@pytest.fixture(scope="module")
def her_manager() -> Generator[None]:
    run("loginctl", "enable-linger", "alice")  # or it ends some seconds after the last session
    run("systemctl", "start", f"user@{ALICE}.service")
    run("systemctl", "--user", "--machine=alice@.host", "start", "moored.socket")
    yield
    run("loginctl", "disable-linger", "alice")
    run("systemctl", "stop", f"user@{ALICE}.service")


def her_scopes() -> list[str]:
    """Scopes of machines that her manager has loaded."""
    command = (
        "systemctl",
        "--user",
        "--machine=alice@.host",
        "list-units",
        "--all",
        "--plain",
        "--no-legend",
    )
    return [line.split()[0] for line in run(*command, "machine-*.scope").splitlines()]


@pytest.fixture
def hers(spawn: Processes, her_manager: None) -> Generator[Processes]:
    """Start processes; afterwards nothing is left of machines in her manager, nor in the system's."""
    yield spawn
    spawn.bury()

    async def left() -> None:
        await until(lambda: not her_scopes(), "no scope in her manager")
        await until(lambda: not _living(), "no record in her runtime directory")

    trio.run(left)


def _living() -> list[str]:
    paths = (RUNTIME / "moorage/machines").iterdir()
    return [path.name for path in paths if json.loads(path.read_bytes())["phase"] != "exited"]


def registers(user: int, leader: Process, name: str = "web") -> dict[str, Any]:
    reply = asks(
        user, f"{OURS}Register", {"name": name, "class": "vm", "leader": {"pid": leader.pid}}, path=HERS
    )
    assert reply is not None
    return reply


def test_her_machine_is_a_scope_in_her_manager(hers: Processes) -> None:
    leader = hers(user=ALICE)
    machine = registers(ALICE, leader)["parameters"]["machine"]
    assert machine["uid"] == ALICE
    assert machine["leader"] == process_of(leader)
    assert machine["unit"] == "machine-web.scope"
    assert machine["controlGroup"].startswith(HER_MANAGER)
    assert control_group(leader) == machine["controlGroup"]
    assert her_scopes() == ["machine-web.scope"]
    assert scopes() == []

    with acting_as(ALICE):
        replies = hostile.ask(encode(f"{OURS}List", more=True), path=HERS)
    assert [reply["parameters"]["machine"]["name"] for reply in replies] == ["web"]
    with acting_as(ALICE):
        replies = hostile.ask(encode(f"{THEIRS}List", more=True), path=HERS)
    assert [reply["parameters"]["name"] for reply in replies] == ["web"], "no host in there"
    found = asks(ALICE, f"{OURS}Find", {"process": {"pid": leader.pid}}, path=HERS)
    assert found["parameters"]["machine"]["name"] == "web"

    stopped = asks(ALICE, f"{OURS}Stop", {"name": "web"}, path=HERS)
    assert stopped["parameters"]["machine"]["verdict"]["result"] == "success"
    assert leader.wait(UNTIL_SECONDS) == -15
    # And the name at once again.
    assert "error" not in registers(ALICE, hers(user=ALICE))


def test_she_may_be_a_machine_herself(hers: Processes) -> None:
    parameters = json.dumps({"name": "me", "class": "container"})
    command = ("varlinkctl", "call", "--json=short", HERS, f"{OURS}Register", parameters)
    with subprocess.Popen(command, stdout=subprocess.PIPE, user=ALICE, group=ALICE) as caller:
        output, _ = caller.communicate(timeout=UNTIL_SECONDS)
    assert caller.returncode == 0
    machine = json.loads(output)["machine"]
    assert machine["leader"]["pid"] == caller.pid
    assert "supervisor" not in machine
    assert machine["controlGroup"].startswith(HER_MANAGER)


@pytest.mark.parametrize("owner", [0, BOB])
def test_she_cannot_register_what_is_not_hers(hers: Processes, owner: int) -> None:
    leader = hers(user=owner)
    before = control_group(leader)
    not_owned = {"error": f"{OURS}ProcessNotOwned", "parameters": {"pid": leader.pid, "uid": owner}}
    assert registers(ALICE, leader) == not_owned
    pidfd = os.pidfd_open(leader.pid)
    by_fd = {"name": "web", "class": "vm", "leaderFileDescriptor": 0}
    assert asks(ALICE, f"{OURS}Register", by_fd, [pidfd], path=HERS) == not_owned
    os.close(pidfd)
    for unit in (True, False):
        named = {"name": "web", "class": "vm", "leader": leader.pid, "allocateUnit": unit}
        assert asks(ALICE, f"{THEIRS}Register", named, path=HERS) == {"error": DENIED, "parameters": {}}
    assert control_group(leader) == before


async def test_she_cannot_register_what_she_runs_with_the_rights_of_another(hers: Processes) -> None:
    # Set-user-ID: hers as to who started it, root's as to what it may do.
    leader = hers(
        ("/usr/bin/su", "-c", "true", "bob"), user=ALICE, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    await until(lambda: Path(f"/proc/{leader.pid}/comm").read_text() == "su\n")
    not_owned = {"error": f"{OURS}ProcessNotOwned", "parameters": {"pid": leader.pid, "uid": 0}}
    assert registers(ALICE, leader) == not_owned


def test_she_cannot_reach_beyond_her_manager(hers: Processes) -> None:
    leader = hers(user=ALICE)  # in a unit of the system's manager, as this test is
    reply = asks(
        ALICE,
        f"{OURS}Register",
        {"name": "web", "class": "vm", "leader": {"pid": leader.pid}, "allocateUnit": False},
        path=HERS,
    )
    assert reply["error"].startswith((OURS, "io.systemd.System")), reply
    assert her_scopes() == []


def test_others_do_not_even_reach_her_socket(hers: Processes) -> None:
    with acting_as(BOB), pytest.raises(PermissionError):
        dial(HERS)
    # Nor would they be listened to if they did.
    RUNTIME.chmod(0o711)
    (RUNTIME / "moorage").chmod(0o711)
    Path(HERS).chmod(0o666)
    try:
        assert asks(BOB, "io.systemd.service.Ping", path=HERS) == {"parameters": {}}
        assert registers(BOB, hers(user=BOB)) == {"error": DENIED, "parameters": {}}
        assert registers(BOB, hers(user=ALICE)) == {"error": DENIED, "parameters": {}}
        with acting_as(BOB):
            replies = hostile.ask(encode(f"{OURS}List", more=True), path=HERS)
        assert replies == [{"error": DENIED, "parameters": {}}]
    finally:
        Path(HERS).chmod(0o600)
        (RUNTIME / "moorage").chmod(0o700)
        RUNTIME.chmod(0o700)


def test_root_may_look_after_her_machines(hers: Processes) -> None:
    leader = hers(user=ALICE)
    assert "error" not in registers(ALICE, leader)
    replies = hostile.ask(encode(f"{OURS}List", more=True), path=HERS)
    assert [reply["parameters"]["machine"]["uid"] for reply in replies] == [ALICE]
    assert "error" not in asks(0, f"{OURS}Stop", {"name": "web"}, path=HERS)
    assert leader.wait(UNTIL_SECONDS) == -15


def test_root_cannot_put_its_own_into_her_manager_without_an_answer(hers: Processes) -> None:
    # Her manager has no rights to root's processes, whoever asks.
    leader = hers()
    before = control_group(leader)
    reply = registers(0, leader)
    assert "error" in reply
    assert reply["error"].startswith((OURS, "io.systemd.")), reply
    assert (leader.poll(), control_group(leader)) == (None, before)
