"""The service is killed at each step of a registration: what was begun is finished or taken back, never forgotten."""

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

import pytest
import trio
from moored import (
    MANAGER,
    NOTE,
    OURS,
    RECORDS,
    UNIT_FILES,
    UNTIL_SECONDS,
    Processes,
    connect,
    control_group,
    cursor,
    kill,
    listed,
    living_records,
    logged,
    main_pid,
    move,
    register,
    run,
    scopes,
    show,
    start_listening,
    stored,
    units,
    until,
    verdict,
)

from moorage.errors import UnitNameTaken
from moorage.wire.client import Client
from moorage.wire.errors import Disconnected

pytestmark = pytest.mark.usefixtures("beside")

SCOPE = "machine-web.scope"
HELPER = {"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"]}

STEPS = "write,sendmsg,recvmsg,renameat,unlinkat,inotify_add_watch"
"""System calls that change something outside of the service, or let it know of something."""

STARTED = "inotify_add_watch"
"""The first that it makes when the scope has been started and it knows."""

DROP_IN = UNIT_FILES / "moored.service.d/crash.conf"

STEPS_MAX = 100
"""A registration makes about twenty of them."""

PASSES_MAX = 3
"""How often all steps are gone through until there was one with either outcome: what the service is told meanwhile is
a step as well, and comes now earlier, now later, so that one of its own may be passed over."""


@contextmanager
def killed_at(steps: str, number: int = 1) -> Generator[subprocess.Popen[str]]:
    """Have the kernel kill the service when it makes one of these system calls for the n-th time from now on."""
    command = ("strace", "-f", "-e", f"trace={steps}", "-e", f"inject={steps}:signal=KILL:when={number}")
    with subprocess.Popen(
        (*command, "-o", "/dev/null", "-p", str(main_pid())), stderr=subprocess.PIPE, text=True
    ) as strace:
        assert strace.stderr is not None
        assert "attached" in strace.stderr.readline()
        try:
            yield strace
        finally:
            strace.terminate()
            strace.communicate(timeout=UNTIL_SECONDS)


async def again(client: Client, name: str, pid: int, **fields: Any) -> dict[str, Any] | None:
    """Register; None if the service died before it answered."""
    try:
        return (await register(client, name, pid, **fields))["machine"]
    except Disconnected:
        return None


def begun() -> list[str]:
    return [name for name in os.listdir(RECORDS) if name.startswith(".") and not name.startswith(NOTE)]


def start_now() -> None:
    """Start the service again: the manager takes its time with one that was killed so often."""
    run("systemctl", "start", "moored.service")


async def started() -> None:
    """Wait until the service has done all that comes with its start: from then on its steps are those of calls."""
    await until(lambda: stored() != "0", "its references are stored, which it does last")


async def settled() -> dict[str, dict[str, Any]]:
    """What is listed once nothing is left to be done of what was begun; all that know of machines must agree."""
    start_now()
    async with await connect() as client:
        await until(lambda: not begun(), "nothing is begun")
        found = await listed(client)
    await started()
    assert sorted(found) == sorted(living_records())
    assert sorted(machine["unit"] for machine in found.values()) == sorted(scopes())
    return found


@pytest.mark.parametrize("helpers", [[], [HELPER]], ids=["alone", "with-helpers"])
async def test_killed_at_each_step_of_a_registration(spawn: Processes, helpers: list[Any]) -> None:
    kept = lost = number = passes = 0
    while True:
        number += 1
        assert number < STEPS_MAX
        leader = spawn()
        async with await connect() as client:
            with killed_at(STEPS, number):
                answered = await again(client, "web", leader.pid, helpers=helpers)
        if answered is None:
            found = await settled()
            # Where the leader is, there is the machine.
            assert (SCOPE in control_group(leader)) == ("web" in found)
            kept, lost = kept + ("web" in found), lost + ("web" not in found)
        async with await connect() as client:
            machine = (await register(client, "web", leader, helpers=helpers))["machine"]
            assert control_group(leader) == machine["controlGroup"]
            assert show(SCOPE, "InvocationID") == {"InvocationID": machine["invocationId"]}
            assert [helper["activeState"] for helper in machine["helpers"]] == ["active"] * len(helpers)
            assert answered is None or answered == machine
            assert (await settled()) == {"web": machine}
            await client.call(f"{OURS}Stop", {"name": "web"})
            await until(lambda: not living_records(), "its verdict is stored, which is a step as well")
        if answered is not None:
            number, passes = 0, passes + 1
            if (kept and lost) or passes == PASSES_MAX:
                break
    assert kept
    assert lost


def helpers_loaded() -> list[str]:
    """Services of helpers that the manager has loaded, in whatever state."""
    return sorted(unit for unit in units() if fnmatch(unit, "machine-web-[!-]*.service"))


@pytest.mark.parametrize("method", ["AddHelpers", "RemoveHelper"])
async def test_killed_at_each_step_of_a_change_of_helpers(spawn: Processes, method: str) -> None:
    """No helper runs that the record does not have, and none is stopped that runs."""
    parameters = (
        {"name": "web", "helpers": [HELPER]} if method == "AddHelpers" else {"name": "web", "helper": "fs"}
    )
    kept = lost = number = passes = 0
    leader = spawn()
    async with await connect() as client:
        await register(client, "web", leader)
    while True:
        number += 1
        assert number < STEPS_MAX
        async with await connect() as client:
            if method == "RemoveHelper":
                await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [HELPER]})
            with killed_at(STEPS, number):
                try:
                    await client.call(f"{OURS}{method}", parameters)
                    answered = True
                except Disconnected:
                    answered = False
        (found,) = (await settled()).values()
        there = [helper["unit"] for helper in found["helpers"]]
        await until(lambda wanted=there: helpers_loaded() == wanted, "each helper has its record")
        assert [helper["activeState"] for helper in found["helpers"]] == ["active"] * len(there)
        if answered:
            assert bool(there) == (method == "AddHelpers")
            number, passes = 0, passes + 1
            if ((kept or method == "RemoveHelper") and lost) or passes == PASSES_MAX:
                break
        else:
            kept, lost = kept + bool(there), lost + (not there)
        async with await connect() as client:
            if there:
                await client.call(f"{OURS}RemoveHelper", {"name": "web", "helper": "fs"})
    assert kept or method == "RemoveHelper"
    assert lost
    async with await connect() as client:
        assert leader.poll() is None
        await client.call(f"{OURS}Stop", {"name": "web"})


async def kill_in_the_middle(leader_pid: int, **fields: Any) -> None:
    async with await connect() as client:
        with killed_at(STARTED):
            assert await again(client, "web", leader_pid, **fields) is None


async def test_everything_that_was_asked_for_is_there_again(spawn: Processes) -> None:
    fields = {
        "class": "container", "id": "0123456789abcdef0123456789abcdef", "service": "a-launcher", "vSockCid": 4711,
        "rootDirectory": "/var/lib/machines/web", "sshAddress": "vsock/4711", "slice": "moorage-test.slice",
        "sshPrivateKeyPath": "/run/keys/web", "controlAddress": "/run/web/control", "ifIndices": [1],
    }  # fmt: skip
    leader = spawn()
    await kill_in_the_middle(leader.pid, **fields)
    machine = (await settled())["web"]
    assert {key: machine[key] for key in fields} == fields
    assert machine["controlGroup"] == control_group(leader)
    assert machine["supervisor"]["pid"] == os.getpid()
    async with await connect() as client:
        assert (await register(client, "web", leader, **fields))["machine"] == machine


async def test_with_a_lease_it_ends_with_the_connection_that_is_gone(spawn: Processes) -> None:
    leader = spawn()
    await kill_in_the_middle(leader.pid, lease=True)
    start_now()
    assert await trio.to_thread.run_sync(leader.wait) == -15
    async with await connect() as client:
        assert (await verdict(client, "web"))["result"] == "success"


async def test_a_leader_that_died_meanwhile_leaves_nothing(spawn: Processes) -> None:
    leader = spawn()
    await kill_in_the_middle(leader.pid, helpers=[HELPER])
    kill(leader)
    start_now()
    async with await connect() as client:
        await until(lambda: not begun(), "nothing is begun")
        await until(lambda: not scopes(), "its scope is gone")
        assert await listed(client) == {}
        await register(client, "web", spawn(), helpers=[HELPER])
        await client.call(f"{OURS}Stop", {"name": "web"})


@pytest.fixture
def stays_dead(moored: None) -> Generator[None]:
    """A service that is not started again by itself."""
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text("[Service]\nRestart=no\n")
    run("systemctl", "daemon-reload")
    yield
    DROP_IN.unlink()
    run("systemctl", "daemon-reload")


async def test_what_another_has_put_there_meanwhile_is_left_alone(
    stays_dead: None, spawn: Processes
) -> None:
    """The scope that was begun is gone, and its name is somebody else's by the time of the restart."""
    leader = spawn()
    await kill_in_the_middle(leader.pid)
    await until(lambda: show("moored.service", "ActiveState") == {"ActiveState": "failed"})
    run("systemctl", "stop", "moored.socket")
    assert begun() == [".start-web"]
    kill(leader)
    await until(lambda: not scopes(), "its scope is gone")
    argv = ("systemd-run", "--scope", "--quiet", f"--unit={SCOPE}", "--description=Not a machine")
    other = spawn((*argv, "--", "sleep", "infinity"))
    await until(lambda: SCOPE in control_group(other))
    since = cursor()
    start_listening()
    async with await connect() as client:
        await until(lambda: not begun(), "nothing is begun")
        assert await listed(client) == {}
        said = "machine-web.scope is no machine of ours: a unit that is active, “Not a machine”, with processes."
        await until(lambda: said in logged(since), "it is reported")
        assert other.poll() is None
        with pytest.raises(UnitNameTaken):
            await register(client, "web", spawn())
    kill(other)
    await until(lambda: not scopes())


async def test_a_scope_whose_record_is_lost_is_told_from_others(spawn: Processes) -> None:
    leader = spawn()
    async with await connect() as client:
        machine = (await register(client, "web", leader))["machine"]
    run("systemctl", "stop", "moored.socket", "moored.service")
    (RECORDS / "web").unlink()
    since = cursor()
    start_listening()
    async with await connect() as client:
        holder = (
            "a unit that is active, “Virtual Machine web”, with processes, "
            "once a machine whose record is lost: it can be registered again without a new unit"
        )
        await until(lambda: f"{SCOPE} is no machine of ours: {holder}." in logged(since), "it is reported")
        with pytest.raises(UnitNameTaken) as caught:
            await register(client, "web", spawn())
        assert caught.value.holder == holder
        # It can be taken in again, as it is.
        found = (await register(client, "web", leader, allocateUnit=False))["machine"]
        assert found["invocationId"] == machine["invocationId"]
        await client.call(f"{OURS}Stop", {"name": "web"})


async def test_a_control_group_without_a_unit_is_reported_and_left_alone(spawn: Processes) -> None:
    stray = spawn()
    async with await connect() as client:
        await register(client, "web", spawn())  # makes machine.slice
        await client.call(f"{OURS}Stop", {"name": "web"})
    run("systemctl", "stop", "moored.socket", "moored.service")
    move(stray, f"{MANAGER}/machine.slice/{SCOPE}")
    since = cursor()
    start_listening()
    async with await connect() as client:
        said = f"{MANAGER}/machine.slice/{SCOPE} has processes, but no unit."
        await until(lambda: said in logged(since), "it is reported")
        for dry in (True, False):
            with pytest.raises(UnitNameTaken, match="a control group of no unit"):
                await register(client, "web", spawn(), dryRun=dry)
        assert control_group(stray) == f"{MANAGER}/machine.slice/{SCOPE}"
        kill(stray)
        await register(client, "web", spawn())
