"""What is said of a machine that has ended: why, and all that is known of it; nothing that is not."""

import functools
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import open_dbus_connection
from jeepney.low_level import MessageType
from moored import (
    ELSEWHERE,
    OURS,
    RUNTIME,
    SERVICES,
    UNIT_FILES,
    USER,
    Process,
    Processes,
    connect,
    cursor,
    describe,
    end_moored,
    for_us,
    kill,
    logged,
    main_pid,
    move,
    register,
    run,
    scopes,
    signal_moored,
    start_listening,
    state,
    stored,
    until,
    verdict,
)

from moorage.errors import HelperFailed, NoSuchMachine, Timeout
from moorage.names import escape
from moorage.wire.client import Client
from moorage.wire.errors import Disconnected

pytestmark = pytest.mark.usefixtures("beside")

KERNEL_TELLS = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) >= (6, 15)
"""Whether the kernel tells others than the parent how a process ended (PIDFD_INFO_EXIT)."""

STUBBORN = ("sh", "-c", "trap '' TERM; echo ready; while :; do sleep infinity; done")


@pytest.fixture(autouse=True)
def _clean(everything_gone: None) -> None:
    """Every test here leaves nothing."""


def ended(process: Process, how: int) -> dict[str, int]:
    """Wait for a process, and return the fields that a verdict has of its end; how: as Popen has it."""
    assert process.wait(20) == how
    if not KERNEL_TELLS:
        return {}
    return {"leaderSignal": -how} if how < 0 else {"leaderStatus": how}


def said(found: dict[str, Any]) -> dict[str, Any]:
    """Return what a verdict says but for times and counters."""
    assert found["exitedAt"].keys() == {"realtime", "monotonic"}
    return {name: value for name, value in found.items() if name not in {"exitedAt", "accounting"}}


def go(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def register_in_place(name: str, leader: int) -> None:
    """By somebody who is gone then: Stop asks whoever registered a machine first, and that would be this test."""
    run("moorctl", "register", name, "--leader", str(leader), "--no-allocate")


@pytest.mark.parametrize(
    ("script", "how"), [("exit 0", 0), ("exit 1", 1), ("kill -KILL $$", -9), ("kill -SEGV $$", -11)]
)
async def test_how_the_leader_ended(spawn: Processes, script: str, how: int) -> None:
    leader = spawn(("sh", "-c", f"read x; {script}"), stdin=subprocess.PIPE)
    async with await connect() as client:
        await register(client, "web", leader)
        go(leader)
        fields = ended(leader, how)
        found = await verdict(client, "web")
        assert said(found) == {"result": "success", "cause": "leaderEnded", **fields}
        assert (await describe(client, "web"))["verdict"] == found


async def test_a_call_to_stop(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        await register(client, "web", leader)
        reply = await client.call(f"{OURS}Stop", {"name": "web"})
        assert reply["machine"]["verdict"]["cause"] == "stopped"
        fields = ended(leader, -signal.SIGTERM)
        assert said(await verdict(client, "web")) == {"result": "success", "cause": "stopped", **fields}


async def test_a_unit_that_somebody_else_stops(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        machine = (await register(client, "web", leader))["machine"]
        run("systemctl", "stop", machine["unit"])
        fields = ended(leader, -signal.SIGTERM)
        assert said(await verdict(client, "web")) == {
            "result": "success", "cause": "unitStopped", **fields,
        }  # fmt: skip


async def test_a_lease_that_ends(spawn: Processes) -> None:
    since = cursor()
    async with await connect() as client:
        leader = spawn()
        async with await connect() as holder:
            await register(holder, "web", leader, lease=True)
        fields = ended(leader, -signal.SIGTERM)
        assert said(await verdict(client, "web")) == {"result": "success", "cause": "leaseEnded", **fields}
    why = "The lease of machine web has ended: the connection that held it has ended. Stopping it."
    assert why in logged(since)
    how = "Machine web exited: success, cause leaseEnded"  # an entry that is on its way for some ms
    await until(lambda: any(line.startswith(how) for line in logged(since)))


async def test_a_leader_that_leaves(spawn: Processes) -> None:
    since = cursor()
    async with await connect() as client:
        leader = spawn()
        await register(client, "web", leader)
        move(leader, ELSEWHERE)
        found = await verdict(client, "web")
        assert said(found) == {"result": "success", "cause": "leaderLeft"}
        assert leader.poll() is None
        kill(leader)
    assert f"The leader of machine web has left it, and lives in {ELSEWHERE}." in logged(since)
    os.rmdir(f"/sys/fs/cgroup{ELSEWHERE}")


OWN = f"{SERVICES}/own.service"
READY = RUNTIME / "ready"
PROCS = Path(f"/sys/fs/cgroup{OWN}/a/cgroup.procs")


async def part_of_a_unit(script: str) -> int:
    """Start a service with a process in a group of its own, and return that process."""
    run(
        "systemd-run", "--quiet", "--collect", "--unit=own", "--property=Delegate=yes", "sh", "-c",
        f"mkdir /sys/fs/cgroup{OWN}/a; sh -c '{script}' & echo $! > {PROCS}; wait; exec sleep infinity",
    )  # fmt: skip
    return await until(lambda: int([*PROCS.read_text().split(), "0"][0]) if PROCS.exists() else 0)


@pytest.mark.parametrize(
    ("stop", "cause", "number"), [(True, "stopped", signal.SIGTERM), (False, "leaderEnded", signal.SIGKILL)]
)
async def test_a_machine_in_place(*, stop: bool, cause: str, number: int) -> None:
    """A part of a unit: of its end the manager knows nothing."""
    async with await connect() as client:
        leader = await part_of_a_unit("exec sleep infinity")
        register_in_place("web", leader)
        if stop:
            await client.call(f"{OURS}Stop", {"name": "web"})
        else:
            os.kill(leader, signal.SIGKILL)
        fields = {"leaderSignal": number} if KERNEL_TELLS else {}
        assert said(await verdict(client, "web")) == {"result": "success", "cause": cause, **fields}
    run("systemctl", "stop", "own")


async def test_a_stop_that_is_not_heeded_is_over_when_it_has_timed_out() -> None:
    async with await connect() as client:
        leader = await part_of_a_unit(f'trap "" TERM; echo > {READY}; while :; do sleep infinity; done')
        await until(READY.exists)
        register_in_place("web", leader)
        for _ in range(2):
            with pytest.raises(Timeout):
                await client.call(f"{OURS}Stop", {"name": "web", "timeoutUSec": 100_000})
            assert (await describe(client, "web"))["phase"] == "running"
        run("systemctl", "kill", "--signal=KILL", "own")
        assert said(await verdict(client, "web"))["cause"] == "leaderEnded"
    READY.unlink()


# Helpers


def helper(name: str, script: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name, "execStart": ["/bin/sh", "-c", script], "onFailure": "stopMachine",
        "properties": {"PrivateNetwork": False}, **fields,
    }  # fmt: skip


async def test_a_helper_that_fails(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        await register(
            client, "web", leader,
            helpers=[
                helper("idle", "exec sleep infinity"),
                helper("disk", "sleep 0.2; echo one; echo two >&2; exit 3"),
            ],
        )  # fmt: skip
        fields = ended(leader, -signal.SIGTERM)
        found = said(await verdict(client, "web"))
        if not USER:  # of a user's service that has ended the journal may not know any more what it wrote
            assert found.pop("log") == ["one", "two"]
        found.pop("log", None)
        assert found == {
            "result": "success", "cause": "helperEnded", "helper": "disk", "helperResult": "exit-code", **fields,
        }  # fmt: skip


async def test_a_helper_that_fails_each_time_it_is_restarted(spawn: Processes) -> None:
    """The last start is refused; the last words are those of the run before."""
    properties = {"PrivateNetwork": False, "RestartUSec": 1000, "StartLimitBurst": 2}
    disk = helper("disk", "sleep 0.2; echo one >&2; exit 3", restart="on-failure", properties=properties)
    async with await connect() as client:
        await register(client, "web", spawn(), helpers=[disk])
        found = await verdict(client, "web")
        assert (found["cause"], found["helper"]) == ("helperEnded", "disk")
        assert found["helperResult"] in {"start-limit-hit", "exit-code"}  # 257 keeps that of the run before
        if not USER:  # of a user's service that has ended the journal may not know any more what it wrote
            assert found["log"] == ["one"]


async def test_a_helper_that_is_killed(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        reply = await register(
            client,
            "web",
            leader,
            helpers=[helper("a", "exec sleep infinity"), helper("b", "exec sleep infinity")],
        )
        pids = {each["name"]: each["mainProcess"]["pid"] for each in reply["machine"]["helpers"]}
        os.kill(pids["b"], signal.SIGKILL)
        fields = ended(leader, -signal.SIGTERM)
        found = await verdict(client, "web")
        assert said(found) == {
            "result": "success", "cause": "helperEnded", "helper": "b", "helperResult": "signal", **fields,
        }  # fmt: skip


async def test_a_helper_that_is_killed_while_another_one_is_started(spawn: Processes) -> None:
    """The manager does not stop what it is starting something for: moored does, and knows for which helper."""
    slow = helper("slow", "exec sleep infinity", type="oneshot")
    async with await connect() as client, await connect() as other:
        leader = spawn()
        reply = await register(
            client,
            "web",
            leader,
            helpers=[helper("a", "exec sleep infinity"), helper("b", "echo words; exec sleep infinity")],
        )

        async def add() -> None:
            with pytest.raises((HelperFailed, NoSuchMachine)):
                await other.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [slow]})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(add)
            await until(lambda: state("machine-web-slow.service") == "activating")
            os.kill(reply["machine"]["helpers"][1]["mainProcess"]["pid"], signal.SIGKILL)
        fields = ended(leader, -signal.SIGTERM)
        assert said(await verdict(client, "web")) == {
            "result": "success", "cause": "helperEnded", "helper": "b", "helperResult": "signal", "log": ["words"],
            **fields,
        }  # fmt: skip


async def test_a_helper_that_goes_with_the_machine_is_no_cause(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        machine = (
            await register(
                client, "web", leader, helpers=[helper("a", "trap 'exit 5' TERM; sleep infinity & wait")]
            )
        )["machine"]
        run("systemctl", "stop", machine["unit"])
        leader.wait(20)
        found = said(await verdict(client, "web"))
        assert found["cause"] == "unitStopped"
        assert "helper" not in found


# Nobody watched


@asynccontextmanager
async def dead_moored() -> AsyncGenerator[None]:
    """A moored that is dead for a while."""
    await end_moored()
    yield
    start_listening()


ENDED_BY_ITSELF = {} if USER else {"cause": "leaderEnded"}
"""What is known of a machine that has ended by itself while nobody watched: a user's manager says nothing of it."""


async def test_what_came_while_moored_was_dead(spawn: Processes, mortal: None) -> None:
    leaders = {name: spawn() for name in ("by-itself", "by-unit", "by-helper", "asked")}
    pids: dict[str, int] = {}
    async with await connect() as client:
        for name, leader in leaders.items():
            helpers = [helper("fs", "echo words; exec sleep infinity")]
            if name == "asked":
                leader = leaders[name] = spawn(STUBBORN, stdout=subprocess.PIPE)
                assert leader.stdout is not None
                leader.stdout.readline()
            reply = await register(
                client, name, leader, helpers=helpers, properties={"TimeoutStopUSec": 2_000_000}
            )
            pids[name] = reply["machine"]["helpers"][0]["mainProcess"]["pid"]
        with pytest.raises(Timeout):
            await client.call(f"{OURS}Stop", {"name": "asked", "timeoutUSec": 50_000})
    before = time.time_ns() // 1000
    async with dead_moored():
        kill(leaders["by-itself"])
        run("systemctl", "stop", "machine-by\\x2dunit.scope")
        os.kill(pids["by-helper"], signal.SIGKILL)
        for leader in leaders.values():
            leader.wait(20)
        await until(
            lambda: {state(f"machine-{escape(name)}.scope") for name in leaders} <= {"inactive", "failed"}
        )
        after = time.time_ns() // 1000
        await trio.sleep(0.1)
    async with await connect() as client:
        found = {name: await verdict(client, name) for name in leaders}
    for name, each in found.items():
        assert before <= each["exitedAt"]["realtime"]
        assert each["exitedAt"]["realtime"] <= after or (USER and name == "by-itself")
    assert {name: said(each) for name, each in found.items()} == {
        "by-itself": {"result": "success", **ENDED_BY_ITSELF},
        "by-unit": {"result": "success", "cause": "unitStopped"},
        "by-helper": {
            "result": "success", "cause": "helperEnded", "helper": "fs", "helperResult": "signal", "log": ["words"],
        },
        "asked": {"result": "timeout", "cause": "stopped"},
    }  # fmt: skip


@contextmanager
def slow_to_come_back(**settings: str) -> Generator[None]:
    """A moored that the service manager starts again only after a while, or when it is told to; with more settings."""
    drop_in = UNIT_FILES / "moored.service.d/slow.conf"
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{name}={value}" for name, value in {"RestartSec": "1h", "RestartSteps": "0", **settings}.items()
    ]
    drop_in.write_text("\n".join(["[Service]", *lines, ""]))
    run("systemctl", "daemon-reload")
    yield
    drop_in.unlink()
    run("systemctl", "daemon-reload")


USES = """
import time
input()
kept = bytearray(24 << 20)
end = time.process_time() + 0.2
while time.process_time() < end:
    pass
"""
USES_AND_WAITS = USES + "print('used', flush=True)\ninput()\n"


@pytest.mark.parametrize("command", ["daemon-reload", "daemon-reexec"])
async def test_what_machines_have_consumed_that_ended_while_moored_was_dead(
    spawn: Processes, command: str
) -> None:
    """The service manager keeps their scopes until the next instance has looked at them, and no longer."""
    causes = {"itself": "leaderEnded", "killed": "leaderEnded", "stopped": "unitStopped"}
    leaders = {
        name: spawn((sys.executable, "-c", USES_AND_WAITS), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name in (*causes, "lives")
    }
    async with await connect() as client:
        for name, leader in leaders.items():
            await register(client, name, leader)
            go(leader)
    for leader in leaders.values():
        assert leader.stdout is not None
        await trio.to_thread.run_sync(leader.stdout.readline)
    with slow_to_come_back():
        signal_moored(signal.SIGKILL)
        await until(lambda: main_pid() == 0)
        go(leaders["itself"])
        kill(leaders["killed"])
        run("systemctl", "stop", "machine-stopped.scope")
        for name in causes:
            await trio.to_thread.run_sync(leaders[name].wait)
            await until(lambda name=name: state(f"machine-{name}.scope") == "inactive")
        after = time.time_ns() // 1000
        run("systemctl", command)
        assert sorted(scopes()) == [f"machine-{name}.scope" for name in sorted(leaders)]
        run("systemctl", "start", "moored.service")
    async with await connect() as client:
        for name, cause in causes.items():
            found = await verdict(client, name)
            assert said(found) == {"result": "success", "cause": cause}
            assert found["accounting"].get("cpuUsageNSec", 0) >= 200_000_000, (name, found)
            assert found["exitedAt"]["realtime"] <= after
            await register(client, name, spawn())  # its name is free
        await until(lambda: stored() == "1")
        assert (await describe(client, "lives"))["phase"] == "running"


async def test_no_scope_is_kept_for_a_service_that_does_not_come_back(
    spawn: Processes, mortal: None
) -> None:
    leader = spawn()
    async with await connect() as client:
        await register(client, "web", leader)
        await until(lambda: stored() == "1")
    await end_moored()
    kill(leader)
    await until(lambda: scopes() == [])
    assert stored() == "0"
    start_listening()
    async with await connect() as client:
        assert (await verdict(client, "web"))["result"] == "success"


async def test_no_scope_is_kept_for_a_version_that_takes_over_none(spawn: Processes) -> None:
    """The service manager drops what is stored when it reads the unit of one."""
    leader = spawn()
    async with await connect() as client:
        await register(client, "web", leader)
        await until(lambda: stored() == "1")
    with slow_to_come_back(FileDescriptorStoreMax="0"):
        assert stored() == "0"
        signal_moored(signal.SIGKILL)
        await until(lambda: main_pid() == 0)
        kill(leader)
        await until(lambda: scopes() == [])
        run("systemctl", "start", "moored.service")
    async with await connect() as client:
        assert (await verdict(client, "web"))["result"] == "success"
    run("systemctl", "restart", "moored.service")  # what that one had asked for was refused
    await until(lambda: stored() == "1")


@pytest.mark.system_instance("only root may have journald not listen")
async def test_a_journal_that_says_nothing_delays_no_answer_for_long(spawn: Processes) -> None:
    # One that is stopped, instead, would never hear again of what runs: they keep their ends of what is no more.
    run("systemctl", "kill", "--signal=SIGSTOP", "systemd-journald.service")
    try:
        async with await connect() as client:
            for number in range(3):
                leader = spawn()
                await register(client, f"m{number}", leader)
                kill(leader)
                found = said(await verdict(client, f"m{number}"))
                assert found["cause"] == "leaderEnded"
                assert found.get("oomKilled") is not True
    finally:
        run("systemctl", "kill", "--signal=SIGCONT", "systemd-journald.service")


# Accounting


async def test_what_a_machine_has_consumed_is_known_however_soon_it_is_gone(spawn: Processes) -> None:
    """The manager forgets a scope at once, with its control group; not before it was looked at."""
    async with await connect() as client:
        for number in range(30):
            leader = spawn((sys.executable, "-c", USES), stdin=subprocess.PIPE)
            await register(client, "web", leader)
            go(leader)
            await trio.to_thread.run_sync(leader.wait)
            counters = (await verdict(client, "web"))["accounting"]
            assert counters.get("cpuUsageNSec", 0) >= 200_000_000, (number, counters)


BUS = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")


@pytest.mark.system_instance("the bus of a user's session allows it anyway")
def test_the_bus_lets_the_manager_keep_as_many_scopes_as_there_are_machines() -> None:
    """It needs a match rule for each; without ours dbus-daemon allows 512 (RefUnit succeeds, and keeps nothing)."""
    with open_dbus_connection(bus="SYSTEM") as connection:
        for number in range(2000):
            rule = f"type='signal',path='/none',arg0=':9.{number}'"
            reply = connection.send_and_get_reply(new_method_call(BUS, "AddMatch", "s", (rule,)))
            assert reply.header.message_type is MessageType.method_return, (number, reply.body)


# All at once


ENDS = int(os.environ.get("MOORAGE_TEST_ENDS", "150"))
"""How many machines end at once; a thousand take minutes."""


class Ending(NamedTuple):
    """A way to end.

    Attributes:
        cause: what the verdict has to say.
        script: of the leader; it reads a line before it ends by itself.
        fields: what else the verdict has to say, where moored was there to see it.
        certain: fields that it has to say whoever was there.
    """

    cause: str
    script: str
    fields: dict[str, Any]
    certain: dict[str, Any]


TERMINATED = {"leaderSignal": 15}
ENDINGS = {
    "exit": Ending("leaderEnded", "read x; exit 0", {"leaderStatus": 0}, {}),
    "fail": Ending("leaderEnded", "read x; exit 7", {"leaderStatus": 7}, {}),
    "kill": Ending("leaderEnded", "read x; kill -KILL $$", {"leaderSignal": 9}, {}),
    "crash": Ending("leaderEnded", "read x; kill -SEGV $$", {"leaderSignal": 11}, {}),
    "stop": Ending("stopped", "exec sleep infinity", TERMINATED, {}),
    "unit": Ending("unitStopped", "exec sleep infinity", TERMINATED, {}),
    "lease": Ending("leaseEnded", "exec sleep infinity", TERMINATED, {}),
    "leave": Ending("leaderLeft", "exec sleep infinity", {}, {}),
    "helper": Ending(
        "helperEnded", "exec sleep infinity", TERMINATED,
        {"helper": "fs", "helperResult": "signal", "log": ["last words"]},
    ),
}  # fmt: skip


async def test_hundreds_that_end_in_all_ways_at_once(spawn: Processes) -> None:
    """On a loaded machine, with a moored that is killed in between."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    ways = list(ENDINGS)
    names = {f"{ways[number % len(ways)]}{number}": ways[number % len(ways)] for number in range(ENDS)}
    # Helpers are three units more each.
    names = {
        name: "fail" if way == "helper" and number % 2 else way
        for number, (name, way) in enumerate(names.items())
    }
    leaders = {
        name: spawn(("sh", "-c", ENDINGS[way].script), stdin=subprocess.PIPE) for name, way in names.items()
    }
    load = [spawn(("sh", "-c", "while :; do :; done")) for _ in range(os.cpu_count() or 1)]
    helpers: dict[str, int] = {}
    limit = trio.CapacityLimiter(16)

    async def begin(client: Client, holder: Client, name: str) -> None:
        lease = names[name] == "lease"
        wanted = [helper("fs", "echo last words; exec sleep infinity")] if names[name] == "helper" else []
        async with limit:
            reply = await register(
                holder if lease else client,
                name,
                leaders[name],
                helpers=wanted,
                lease=lease,
                timeoutUSec=120_000_000,
            )
        if wanted:
            helpers[name] = reply["machine"]["helpers"][0]["mainProcess"]["pid"]

    async def insist(name: str) -> None:
        """Have a machine stopped, whatever becomes of moored meanwhile."""
        while True:
            try:
                async with await connect() as client:
                    await client.call(f"{OURS}Stop", {"name": name}, timeout=120)
                return
            except NoSuchMachine:
                return
            except (Disconnected, OSError):
                await trio.sleep(0.05)

    async def units(members: list[str]) -> None:
        argv = for_us("systemctl", "stop", "--no-block", *(f"machine-{name}.scope" for name in members))
        await trio.run_process(argv)

    async def end(name: str, delay: float) -> None:
        await trio.sleep(delay)
        match names[name]:
            case "exit" | "fail" | "kill" | "crash":
                go(leaders[name])
            case "stop":
                await insist(name)
            case "leave":
                move(leaders[name], ELSEWHERE)
            case "helper":
                os.kill(helpers[name], signal.SIGKILL)
            case _:
                pass

    async def die() -> None:
        for _ in range(2):
            await trio.sleep(0.7)
            await until(main_pid)  # it may not be back yet
            signal_moored(signal.SIGKILL)

    async with await connect() as client, await connect() as holder:
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(begin, client, holder, name)
        chance = random.Random(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(die)
            nursery.start_soon(units, [name for name, way in names.items() if way == "unit"])
            holder.close()
            for name in names:
                nursery.start_soon(end, name, chance.uniform(0, 2))
    for name, leader in leaders.items():
        if names[name] != "leave":
            await trio.to_thread.run_sync(leader.wait)

    async def found(name: str) -> dict[str, Any] | None:
        async with await connect() as client:
            return (await describe(client, name)).get("verdict")

    wrong: list[str] = []
    complete = 0
    for name, way in names.items():
        verdict = await until(functools.partial(found, name), f"the verdict of {name}", seconds=120)
        assert verdict is not None
        complete += "cpuUsageNSec" in verdict["accounting"]
        expected = ENDINGS[way]
        rest = said(verdict)
        told = {field: rest.pop(field) for field in expected.fields if field in rest}
        wanted = {"result": "success", "cause": expected.cause, **expected.certain}
        if rest != wanted and expected.cause == "leaderEnded":
            wanted = {"result": "success", **ENDED_BY_ITSELF}
        if rest != wanted or any(told[field] != expected.fields[field] for field in told):
            wrong.append(f"{name}: {said(verdict)}, not {wanted}")
    print(f"{len(names)} verdicts, {complete} with counters")
    kill(*load, *(leaders[name] for name, way in names.items() if way == "leave"))
    os.rmdir(f"/sys/fs/cgroup{ELSEWHERE}")
    assert wrong == []
    assert complete == len(names)
