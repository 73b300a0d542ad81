"""A helper that shall be there is there, or its machine is not: restarts, clean ends, freezes, removals."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from moored import (
    DIRECTORIES,
    OURS,
    Process,
    Processes,
    assert_everything_gone,
    connect,
    describe,
    end_moored,
    freeze,
    kill,
    messages,
    register,
    run,
    show,
    start_listening,
    state,
    thaw,
    units,
    until,
    verdict,
)

from moorage.errors import HelperFailed
from moorage.wire.errors import Disconnected

pytestmark = pytest.mark.system_instance(
    "what grows does so in any instance, and takes long to show", runs=True
)

ECHO = """
import os, signal, socket, sys
listener = socket.socket(fileno=3)
peer, _ = listener.accept()
while data := peer.recv(99): peer.send(data)
"""
"""A service for one client: it ends well when that hangs up, as virtiofsd does."""

CLIENT = """
import os, signal, socket, sys
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))
peer = socket.socket(socket.AF_UNIX)
sys.stdin.readline()
peer.connect(sys.argv[1])
peer.send(b"word")
assert peer.recv(9) == b"word"
if sys.argv[2] == "last":
    peer.close()
    while not told:
        signal.sigtimedwait((), 0.01)
os._exit(7)
"""
"""A VMM that connects to its helper when it is told to, and then ends: with the connection, or some time after it."""

TRUE = [["/usr/bin/true", ["true"], False]]
SERVICE, SOCKET_UNIT, SCOPE = "machine-web-fs.service", "machine-web-fs.socket", "machine-web.scope"


@pytest.fixture(autouse=True)
def _clean(everything_gone: None) -> None:
    """Every test here leaves nothing, of helpers neither."""


def helper(command: list[str] | None = None, **fields: Any) -> dict[str, Any]:
    """A helper with a policy; without a command one that does nothing for ever."""
    defaults = {"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"], "onFailure": "stopMachine"}
    return {**defaults, **({"execStart": command} if command else {}), **fields}


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def main_process(reply: dict[str, Any]) -> int:
    (found,) = reply["machine"]["helpers"]
    return int(found["mainProcess"]["pid"])


def echoed() -> bool:
    """Whether the helper's socket is there, and its helper answers a client that then hangs up."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(DIRECTORIES / "web" / "s"))
            client.settimeout(10)
            client.send(b"word")
            return client.recv(9) == b"word"
        except OSError:
            return False


# Restarts

REMAINS: dict[str, dict[str, Any]] = {
    "ExecStopPost": {"properties": {"ExecStopPost": TRUE}},
    "ExecStop": {"properties": {"ExecStop": TRUE}},
    "a child": {},
}
"""What makes a service "deactivating" on its way to its restart."""


@pytest.mark.parametrize("policy", ["ignore", "stopMachine"])
@pytest.mark.parametrize("remains", REMAINS)
async def test_a_socket_outlives_the_restarts_of_its_helper(
    spawn: Processes, mortal: None, remains: str, policy: str
) -> None:
    """The guest reboots: its connections drop, and come again. Nobody but the manager is needed for that."""
    text = (
        f"import os\nos.fork() or os.execv('/usr/bin/sleep', ['sleep', '99'])\n{ECHO}"
        if remains == "a child"
        else ECHO
    )
    leader = spawn()
    wanted = helper(
        ["/usr/bin/python3", "-c", text], sockets=[{"name": "s"}], restart="always", onFailure=policy,
        **REMAINS[remains],
    )  # fmt: skip
    wanted["properties"] = {**wanted.get("properties", {}), "RestartUSec": 1000, "StartLimitBurst": 20}
    async with await connect() as client:
        await register(client, "web", leader, helpers=[wanted])
        await until(lambda: state(SERVICE) == "active")
    await end_moored()
    inode = os.stat(DIRECTORIES / "web" / "s").st_ino
    for number in range(3):
        assert echoed()
        await until(lambda number=number: int(show(SERVICE, "NRestarts")["NRestarts"]) > number)
        await until(lambda: state(SERVICE) == "active")
    assert os.stat(DIRECTORIES / "web" / "s").st_ino == inode
    assert state(SOCKET_UNIT) == "active"
    assert leader.poll() is None


async def test_a_reload_and_a_restart_by_hand_change_nothing(spawn: Processes) -> None:
    leader = spawn()
    async with await connect() as client:
        await register(client, "web", leader, helpers=[helper(sockets=[{"name": "s"}])])
        before = sorted(units())
        run("systemctl", "daemon-reload")
        run("systemctl", "restart", SERVICE)
        await until(lambda: sorted(units()) == before)
        assert state(SOCKET_UNIT) == state(SERVICE) == state(SCOPE) == "active"
        assert leader.poll() is None


async def test_a_helper_that_is_given_up_takes_its_socket_along(spawn: Processes) -> None:
    properties = {"RestartUSec": 1000, "StartLimitBurst": 2, "ExecStopPost": TRUE}
    wanted = helper(sockets=[{"name": "s"}], restart="always", onFailure="ignore", properties=properties)
    leader = spawn()
    async with await connect() as client:
        await register(client, "web", leader, helpers=[wanted])

        def given_up() -> bool:
            pid = int(show(SERVICE, "MainPID")["MainPID"])
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return state(SERVICE) in {"failed", "inactive"}

        await until(given_up)
        await until(lambda: state(SOCKET_UNIT) in {"failed", "inactive"})
        assert not (DIRECTORIES / "web" / "s").exists()
        assert leader.poll() is None


# Ends of all kinds

ENDS: dict[str, tuple[list[str], Callable[[int], object], str]] = {
    "TERM": (["/usr/bin/sleep", "infinity"], lambda pid: os.kill(pid, signal.SIGTERM), "success"),
    "HUP": (["/usr/bin/sleep", "infinity"], lambda pid: os.kill(pid, signal.SIGHUP), "success"),
    "KILL": (["/usr/bin/sleep", "infinity"], lambda pid: os.kill(pid, signal.SIGKILL), "signal"),
    "exit 0": (shell("trap 'exit 0' USR1; while :; do sleep 0.01; done"),
               lambda pid: os.kill(pid, signal.SIGUSR1), "success"),
    "exit 7": (shell("trap 'exit 7' USR1; while :; do sleep 0.01; done"),
               lambda pid: os.kill(pid, signal.SIGUSR1), "exit-code"),
    "a status that is success": (["/usr/bin/sleep", "infinity"], lambda pid: os.kill(pid, signal.SIGKILL), "success"),
    "systemctl stop": (["/usr/bin/sleep", "infinity"], lambda _: run("systemctl", "stop", SERVICE), "success"),
}  # fmt: skip
"""How a helper ends that was wanted: its command, what ends it, and the result of its unit."""

SPARED = {"a status that is success": {"SuccessExitStatus": [[], [signal.SIGKILL]]}}


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("case", ENDS)
async def test_a_machine_ends_with_its_helper(spawn: Processes, case: str, added: bool) -> None:
    command, end, result = ENDS[case]
    leader = spawn()
    wanted = helper(shell(f"echo words; exec {command[0]} infinity") if len(command) == 2 else command)
    wanted["properties"] = SPARED.get(case, {})
    async with await connect() as client:
        pid = await made(client, leader, wanted, added=added)
        if len(command) == 2:
            await until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
        else:  # the trap is set once it has started a child
            await until(lambda: Path(f"/proc/{pid}/task/{pid}/children").read_text())
        await trio.to_thread.run_sync(end, pid)
        found = await verdict(client, "web")
        assert (found["cause"], found["helper"], found["helperResult"]) == ("helperEnded", "fs", result)
        if len(command) == 2:
            assert found["log"] == ["words"]
    assert leader.wait() == -signal.SIGTERM
    await assert_everything_gone()


async def made(client: Any, leader: Process, wanted: dict[str, Any], *, added: bool) -> int:
    """Make a machine with a helper; return the helper's main PID."""
    if added:
        await register(client, "web", leader)
        reply = await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [wanted]})
        return int(reply["helpers"][0]["mainProcess"]["pid"])
    return main_process(await register(client, "web", leader, helpers=[wanted]))


@pytest.mark.parametrize("case", ["TERM", "exit 0", "a status that is success"])
async def test_the_same_without_the_service(spawn: Processes, mortal: None, case: str) -> None:
    command, end, result = ENDS[case]
    leader = spawn()
    async with await connect() as client:
        reply = await register(
            client, "web", leader, helpers=[helper(command, properties=SPARED.get(case, {}))]
        )
    pid = main_process(reply)
    await end_moored()
    if len(command) > 2:
        await until(lambda: Path(f"/proc/{pid}/task/{pid}/children").read_text())
    end(pid)
    await assert_everything_gone()
    assert leader.wait() == -signal.SIGTERM
    start_listening()
    async with await connect() as client:
        found = await verdict(client, "web")
        assert (found["cause"], found["helper"], found["helperResult"]) == ("helperEnded", "fs", result)


async def test_a_helper_that_has_done_its_work_has_not_ended(spawn: Processes) -> None:
    leader = spawn()
    async with await connect() as client:
        await register(client, "web", leader, helpers=[helper(["/usr/bin/true"], type="oneshot")])
        assert state(SERVICE) == state(SCOPE) == "active"
        kill(leader)
        assert (await verdict(client, "web"))["cause"] == "leaderEnded"


async def ended_with(spawn: Processes, last: str) -> dict[str, Any]:
    """Return the verdict of a machine whose leader ends by itself, after its helper or with it."""
    leader = spawn(
        ["/usr/bin/python3", "-c", CLIENT, str(DIRECTORIES / "web" / "s"), last], stdin=subprocess.PIPE
    )
    wanted = helper(["/usr/bin/python3", "-c", ECHO], sockets=[{"name": "s"}])
    async with await connect() as client:
        await register(client, "web", leader, helpers=[wanted])
        assert leader.stdin is not None
        leader.stdin.close()
        assert await trio.to_thread.run_sync(leader.wait) == 7
        found = await verdict(client, "web")
    await assert_everything_gone()
    assert (found["result"], found["leaderStatus"]) == ("success", 7), found
    return found


@pytest.mark.parametrize("number", range(5))
async def test_a_helper_that_ends_with_its_client_is_not_its_end(spawn: Processes, number: int) -> None:
    """A guest powers off: its VMM ends, and its helpers by themselves."""
    found = await ended_with(spawn, "first")
    assert found.get("cause") in {"leaderEnded", None}, (
        found
    )  # None: it was being stopped in its last moment


async def test_who_was_first_is_not_told_where_nobody_can_know(spawn: Processes) -> None:
    """A helper is quicker than the rest of its client's end, and has that stopped."""
    found = await ended_with(spawn, "last")
    assert (found.get("cause"), found["helper"], found["helperResult"]) == (None, "fs", "success")


@pytest.mark.parametrize("restart", ["no", "always"])
async def test_helpers_that_go_with_the_machine_are_not_its_end(spawn: Processes, restart: str) -> None:
    """The machine is stopped while its helper pauses before a restart, or lives."""
    leader = spawn()
    wanted = helper(restart=restart, properties={"RestartUSec": 60_000_000})
    async with await connect() as client:
        pid = main_process(await register(client, "web", leader, helpers=[wanted]))
        if restart == "always":
            os.kill(pid, signal.SIGTERM)
            await until(lambda: show(SERVICE, "SubState")["SubState"] == "auto-restart")
        run("systemctl", "stop", SCOPE)
        found = await verdict(client, "web")
        assert (found["cause"], found.get("helper")) == ("unitStopped", None)
        await assert_everything_gone()
        assert "--stop" not in "".join(messages("machine-web--stop.service"))


# Frozen machines


def freeze_scope() -> None:
    freeze(SCOPE)


async def test_a_frozen_machine_ends_with_its_helper(spawn: Processes) -> None:
    """The manager stops nothing that is frozen."""
    leader = spawn()
    async with await connect() as client:
        pid = main_process(await register(client, "web", leader, helpers=[helper()]))
        freeze_scope()
        os.kill(pid, signal.SIGKILL)
        found = await verdict(client, "web")
        assert (found["cause"], found["helper"], found["helperResult"]) == ("helperEnded", "fs", "signal")
    assert leader.wait() == -signal.SIGTERM


@pytest.mark.parametrize("thawed", [False, True])
async def test_the_next_instance_ends_what_was_frozen(spawn: Processes, mortal: None, thawed: bool) -> None:
    leader = spawn()
    async with await connect() as client:
        pid = main_process(await register(client, "web", leader, helpers=[helper()]))
    await end_moored()
    freeze_scope()
    os.kill(pid, signal.SIGTERM)
    await until(lambda: state(SERVICE) == "inactive")
    await until(lambda: not DIRECTORIES.joinpath("web").exists())
    if thawed:
        thaw(SCOPE)
    assert leader.poll() is None
    start_listening()
    async with await connect() as client:
        found = await verdict(client, "web")
        assert (found["cause"], found["helper"], found["helperResult"]) == ("helperEnded", "fs", "success")
    assert leader.wait() == -signal.SIGTERM


async def test_the_next_instance_ends_what_a_start_held_up(spawn: Processes, mortal: None) -> None:
    """The manager does not stop what it is starting something for, and does not come back to it."""
    leader = spawn()
    slow = helper(name="slow", type="oneshot", onFailure="ignore")
    async with await connect() as client, await connect() as other, trio.open_nursery() as nursery:
        pid = main_process(await register(client, "web", leader, helpers=[helper()]))

        async def add() -> None:
            with pytest.raises(Disconnected):
                await other.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [slow]})

        nursery.start_soon(add)
        await until(lambda: state("machine-web-slow.service") == "activating")
        await end_moored()
    os.kill(pid, signal.SIGTERM)
    await until(lambda: state(SERVICE) == "inactive")
    assert state(SCOPE) == "active"
    assert leader.poll() is None
    start_listening()
    async with await connect() as client:
        found = await verdict(client, "web")
        assert (found["cause"], found["helper"], found["helperResult"]) == ("helperEnded", "fs", "success")
    assert leader.wait() == -signal.SIGTERM


# What is not wanted any more, or not yet


@pytest.mark.parametrize("added", [False, True])
async def test_a_helper_that_is_removed_has_not_ended(spawn: Processes, added: bool) -> None:
    """Whatever it says when it is told to stop."""
    leader = spawn()
    wanted = helper(
        shell("trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done"), sockets=[{"name": "s"}]
    )
    async with await connect() as client:
        pid = await made(client, leader, wanted, added=added)
        await until(lambda: Path(f"/proc/{pid}/task/{pid}/children").read_text())
        await client.call(f"{OURS}RemoveHelper", {"name": "web", "helper": "fs"})
        assert os.listdir(DIRECTORIES / "web") == []
        assert (await describe(client, "web"))["helpers"] == []
        assert state(SCOPE) == "active"
        assert leader.poll() is None
        kill(leader)
        assert (await verdict(client, "web"))["cause"] == "leaderEnded"


async def test_what_cannot_be_added_harms_no_machine(spawn: Processes) -> None:
    leader = spawn()
    bad = helper(["/bin/false"], name="bad", type="oneshot", after=["fs"])
    async with await connect() as client:
        await register(client, "web", leader)
        for wanted in ([helper(), bad], [{**bad, "after": []}]):
            with pytest.raises(HelperFailed):
                await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": wanted})
            await until(lambda: units() == [SCOPE])
            assert leader.poll() is None
        reply = await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [helper()]})
        os.kill(reply["helpers"][0]["mainProcess"]["pid"], signal.SIGTERM)
        assert (await verdict(client, "web"))["cause"] == "helperEnded"


async def test_the_name_is_free_for_the_next_machine(spawn: Processes) -> None:
    """No word about the end of one machine's helper reaches the next of its name."""
    async with await connect() as client:
        for _ in range(10):
            pid = main_process(await register(client, "web", spawn(), helpers=[helper()]))
            os.kill(pid, signal.SIGTERM)
            await verdict(client, "web")
            leader = spawn()
            reply = await register(client, "web", leader, helpers=[helper()])
            assert reply["machine"]["helpers"][0]["activeState"] == "active"
            run("systemctl", "kill", "--signal=KILL", SCOPE)
            leader.wait()
            assert (await verdict(client, "web"))["cause"] == "leaderEnded"
