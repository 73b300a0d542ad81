"""How machines end: by themselves, by being told, in the middle of everything; and what is said of it afterwards."""

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import trio
from moored import (
    OURS,
    RECORDS,
    SERVICES,
    SOCKET,
    THEIRS,
    Process,
    Processes,
    connect,
    control_group,
    describe,
    freeze,
    kill,
    listed,
    living_records,
    members,
    move,
    register,
    run,
    scopes,
    show,
    until,
    verdict,
)

from moorage import errors as machine_errors
from moorage.api.systemd_machine import errors as systemd_errors
from moorage.errors import NoSuchMachine, NoSuchSubgroup, NotSupported, ProcessGone, Timeout
from moorage.kernel.cgroup import identity
from moorage.wire.client import Client
from moorage.wire.errors import InvalidParameter

pytestmark = pytest.mark.usefixtures("beside")

STUBBORN = ("sh", "-c", "trap '' TERM; echo ready; while :; do sleep infinity; done")
"""Does not go for SIGTERM; the sleep that it waits for does, and is followed by another."""


async def ended(client: Client, name: str) -> None:
    """Nothing but the verdict is left of a machine."""
    machine = await describe(client, name)
    assert machine["phase"] == "exited"
    assert name not in await listed(client)
    assert name not in living_records()
    with pytest.raises(systemd_errors.NoSuchMachine):
        await client.call(f"{THEIRS}List", {"name": name})
    await until(lambda: machine["unit"] not in scopes(), f"{machine['unit']} is gone")


async def ready(process: Process) -> None:
    """Wait until a process says that it is."""
    assert process.stdout is not None
    assert await trio.to_thread.run_sync(process.stdout.readline) == b"ready\n"


async def test_a_leader_that_is_killed_takes_its_machine_along(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        machine = (await register(client, "web", leader, service="test"))["machine"]
        kill(leader)
        found = await verdict(client, "web")
        await ended(client, "web")
        assert found["result"] == "success"
        assert "oomKilled" not in found  # nobody counts here: a sandbox has no memory controller
        assert found["exitedAt"]["realtime"] >= machine["timestamp"]["realtime"]
        assert found["exitedAt"]["monotonic"] >= machine["timestamp"]["monotonic"]
        reply = await client.call(f"{OURS}Describe", {"name": "web"})
        assert reply == {
            "machine": {**machine, "phase": "exited", "verdict": found},
            "accounting": found["accounting"],
            "limits": {},
        }
        with pytest.raises(NoSuchMachine):
            await client.call(f"{OURS}Find", {"invocationId": machine["invocationId"]})


async def test_a_machine_goes_when_its_last_process_goes(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn(("sh", "-c", "read line; sleep infinity & echo $!"), stdin=-1, stdout=-1)
        await register(client, "web", leader)
        assert leader.stdin is not None
        assert leader.stdout is not None
        leader.stdin.write(b"\n")
        leader.stdin.flush()
        last = int(leader.stdout.readline())
        leader.wait()
        machine = await describe(client, "web")
        assert machine["phase"] == "running"
        assert (await client.call(f"{OURS}Find", {"process": {"pid": last}}))["machine"]["name"] == "web"
        with pytest.raises(ProcessGone):
            await client.call(f"{OURS}Kill", {"name": "web", "signal": 9, "whom": "leader"})
        os.kill(last, signal.SIGKILL)
        await verdict(client, "web")
        await ended(client, "web")


async def test_leaders_that_die_at_any_moment_leave_nothing(spawn: Processes) -> None:
    """A thousand registrations, each with a leader that is killed 0 to 30 ms after the call was sent."""
    turns, at_once = 1000, 8
    delays = random.Random(1).sample([30e-3 * number / turns for number in range(turns)], turns)
    outcomes: dict[str, int] = {}

    async def one(client: Client, number: int) -> None:
        leader = spawn()

        async def shoot() -> None:
            await trio.sleep(delays[number])
            kill(leader)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(shoot)
            try:
                await register(client, f"m{number}", leader)
                outcome = "registered"
            except ProcessGone:
                outcome = "gone"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    async def some(first: int) -> None:
        async with await connect() as client:
            for number in range(first, turns, at_once):
                await one(client, number)

    async with trio.open_nursery() as nursery:
        for first in range(at_once):
            nursery.start_soon(some, first)
    assert outcomes.keys() == {"registered", "gone"}
    assert sum(outcomes.values()) == turns
    async with await connect() as client:

        async def nothing() -> bool:
            return not scopes() and not living_records() and not await listed(client)

        await until(nothing, "no scope, no record, no machine")


async def stop(client: Client, name: str) -> None:
    reply = await client.call(f"{OURS}Stop", {"name": name})
    assert reply["machine"]["phase"] == "exited"
    assert reply["machine"]["verdict"]["result"] == "success"


async def terminate(client: Client, name: str) -> None:
    assert await client.call(f"{THEIRS}Terminate", {"name": name}) == {}


@pytest.mark.parametrize("end", [stop, terminate])
async def test_a_machine_can_be_stopped_as_soon_as_it_is_there(
    spawn: Processes, end: Callable[[Client, str], Any]
) -> None:
    async with await connect() as client:
        for number in range(100):
            name = f"m{number}"
            machine = (await register(client, name, spawn()))["machine"]
            await end(client, name)
            with pytest.raises(NoSuchMachine):
                await client.call(f"{OURS}Stop", {"name": name})
            assert identity(machine["controlGroup"]) is None
        assert await listed(client) == {}


@pytest.mark.parametrize("end", [stop, terminate])
async def test_a_machine_can_be_stopped_while_it_is_being_made(
    spawn: Processes, end: Callable[[Client, str], Any]
) -> None:
    """With User= and Delegate= the manager aborts if its scope is stopped before it was started."""
    properties = {"User": "alice", "Delegate": True}
    async with await connect() as one, await connect() as two:
        for number in range(30):
            name = f"m{number}"
            async with trio.open_nursery() as nursery:
                leader = spawn()
                nursery.start_soon(lambda n=name, p=leader: register(one, n, p, properties=properties))

                async def claimed(n: str = name) -> bool:
                    try:
                        await end(two, n)
                    except (NoSuchMachine, systemd_errors.NoSuchMachine):
                        return False
                    return True

                await until(claimed)
            assert name not in await listed(one)


async def test_a_frozen_machine_stops(spawn: Processes) -> None:
    async with await connect() as client:
        for end in (stop, terminate):
            machine = (await register(client, "web", spawn()))["machine"]
            freeze(machine["unit"])
            assert (await describe(client, "web"))["freezer"] == "frozen"
            await end(client, "web")
            await ended(client, "web")


async def test_a_stop_tells_of_its_phases(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn(STUBBORN, stdout=subprocess.PIPE)
        await ready(leader)
        await register(client, "web", leader, properties={"TimeoutStopUSec": 300_000})
        phases: list[str] = []
        async with client.call_more(f"{OURS}Stop", {"name": "web"}) as replies:
            async for reply in replies:
                phases.append(reply["machine"]["phase"])
                assert reply["machine"]["name"] == "web"
        assert phases == ["stopping", "exited"]


async def test_who_ignores_sigterm_is_killed_in_the_end(spawn: Processes) -> None:
    async with await connect() as client, await connect() as other:
        leader = spawn(STUBBORN, stdout=subprocess.PIPE)
        await ready(leader)
        await register(client, "web", leader, properties={"TimeoutStopUSec": 1_000_000})
        with pytest.raises(Timeout):
            await client.call(f"{OURS}Stop", {"name": "web", "timeoutUSec": 50_000})
        assert (await describe(other, "web"))["phase"] == "stopping"
        assert leader.poll() is None
        reply = await client.call(f"{OURS}Stop", {"name": "web"})
        assert reply["machine"]["verdict"]["result"] == "timeout"
        assert leader.wait() == -signal.SIGKILL
        await ended(client, "web")


async def test_who_hangs_up_does_not_end_the_stop(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn(STUBBORN, stdout=subprocess.PIPE)
        await ready(leader)
        await register(client, "web", leader, properties={"TimeoutStopUSec": 200_000})
        other = await connect()
        with trio.move_on_after(0.05):
            await other.call(f"{OURS}Stop", {"name": "web"})
        other.close()
        assert (await verdict(client, "web"))["result"] == "timeout"


async def test_a_machine_that_may_not_be_killed_lingers(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn(STUBBORN, stdout=subprocess.PIPE)
        await ready(leader)
        properties = {"TimeoutStopUSec": 100_000, "SendSIGKILL": False}
        machine = (await register(client, "web", leader, properties=properties))["machine"]
        with pytest.raises(Timeout):
            await client.call(f"{OURS}Stop", {"name": "web", "timeoutUSec": 1_000_000})

        async def lingers() -> bool:
            return (await describe(client, "web"))["phase"] == "lingering"

        await until(lingers)
        assert show(machine["unit"], "ActiveState") == {"ActiveState": "failed"}
        assert control_group(leader) == machine["controlGroup"]
        assert (await listed(client))["web"]["phase"] == "lingering"
        with pytest.raises(machine_errors.MachineExists):
            await register(client, "web", spawn())
        for method, parameters in (("SetProperties", {"properties": {"TasksMax": 5}}), ("Freeze", {})):
            with pytest.raises(machine_errors.Busy) as busy:
                await client.call(f"{OURS}{method}", {"name": "web", **parameters})
            assert busy.value.operation == "the machine is lingering"
        assert await client.call(f"{OURS}Kill", {"name": "web", "signal": signal.SIGKILL}) == {}
        assert (await verdict(client, "web"))["result"] == "timeout"
        await ended(client, "web")


SPARES = "(trap '' TERM; while :; do sleep infinity; done) & exec sleep infinity"


@pytest.mark.parametrize("insists", [True, False], ids=["SIGKILL", "no SIGKILL"])
async def test_a_stop_is_also_for_what_its_unit_has_spared(spawn: Processes, insists: bool) -> None:
    properties = ("KillMode=process", "TimeoutStopSec=100ms", f"SendSIGKILL={insists}")
    run("systemd-run", "--quiet", "--collect", "--unit=spare.service", *(f"--property={each}" for each in properties),
        "sh", "-c", SPARES)  # fmt: skip
    async with await connect() as client:
        await until(lambda: len(members(f"{SERVICES}/spare.service")) == 3)
        leader = int(show("spare.service", "MainPID")["MainPID"])
        await register(client, "web", leader, allocateUnit=False)
        run("systemctl", "stop", "spare.service")

        async def lingers() -> bool:
            return (await describe(client, "web"))["phase"] == "lingering"

        await until(lingers)
        if insists:
            await client.call(f"{OURS}Stop", {"name": "web"})
        else:
            with pytest.raises(Timeout):
                await client.call(f"{OURS}Stop", {"name": "web", "timeoutUSec": 500_000})
            assert await lingers()
            await client.call(f"{OURS}Kill", {"name": "web", "signal": signal.SIGKILL})
        await verdict(client, "web")
        await ended(client, "web")


async def test_a_machine_whose_time_is_up(spawn: Processes) -> None:
    async with await connect() as client:
        machine = (await register(client, "web", spawn(), properties={"RuntimeMaxUSec": 200_000}))["machine"]
        assert (await verdict(client, "web"))["result"] == "timeout"
        await ended(client, "web")
        assert show(machine["unit"], "LoadState") == {"LoadState": "not-found"}
        assert run("systemctl", "list-units", "--failed", "--plain", "--no-legend") == ""


async def test_verdicts_have_the_last_counters(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn(("sh", "-c", "read x; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo ready; read x"),
                       stdin=-1, stdout=-1)  # fmt: skip
        await register(client, "web", leader)
        assert leader.stdin is not None
        leader.stdin.write(b"\n")
        leader.stdin.flush()
        await ready(leader)
        before = (await client.call(f"{OURS}Describe", {"name": "web"}))["accounting"]
        assert before["cpuUsageNSec"] > 0
        kill(leader)
        after = (await verdict(client, "web"))["accounting"]
        # The manager may have removed the control group before anybody could look at it a last time.
        assert after.get("cpuUsageNSec", before["cpuUsageNSec"]) >= before["cpuUsageNSec"]


# Signals


def signals_seen(process: Process) -> list[bytes]:
    """What a process of SEES_SIGNALS has got so far, oldest first."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    return (process.stdout.read() or b"").split()


SEES_SIGNALS = (
    "sh",
    "-c",
    "trap 'echo usr1' USR1; trap 'echo usr2' USR2; echo ready; while :; do sleep 0.01; done",
)


async def test_a_signal_reaches_those_it_is_for(spawn: Processes) -> None:
    async with await connect() as client:
        leader, other = (spawn(SEES_SIGNALS, stdout=subprocess.PIPE) for _ in range(2))
        for process in (leader, other):
            await ready(process)
        machine = (await register(client, "web", leader))["machine"]
        move(other, machine["controlGroup"])
        await client.call(f"{OURS}Kill", {"name": "web", "signal": signal.SIGUSR1, "whom": "leader"})
        assert await until(lambda: signals_seen(leader)) == [b"usr1"]
        await client.call(f"{OURS}Kill", {"name": "web", "signal": signal.SIGUSR2})
        assert await until(lambda: signals_seen(leader)) == [b"usr2"]
        assert await until(lambda: signals_seen(other)) == [b"usr2"]
        await client.call(f"{THEIRS}Kill", {"name": "web", "signal": signal.SIGUSR1, "whom": "leader"})
        assert await until(lambda: signals_seen(leader)) == [b"usr1"]
        await client.call(
            f"{THEIRS}Kill", {"pid": {"pid": other.pid}, "signal": signal.SIGUSR2, "whom": "all"}
        )
        assert await until(lambda: signals_seen(leader)) == [b"usr2"]
        assert await until(lambda: signals_seen(other)) == [b"usr2"]


async def test_a_signal_to_the_supervisor(spawn: Processes) -> None:
    received: list[int] = []
    async with await connect() as client:
        await register(client, "web", spawn())
        with trio.open_signal_receiver(signal.SIGUSR1, signal.SIGUSR2) as signals:
            for interface, number in ((OURS, signal.SIGUSR1), (THEIRS, signal.SIGUSR2)):
                parameters = {"name": "web", "signal": number, "whom": "supervisor"}
                await client.call(f"{interface}Kill", parameters)
                async for each in signals:
                    received.append(each)
                    break
    assert received == [signal.SIGUSR1, signal.SIGUSR2]


async def test_a_signal_to_one_subgroup(spawn: Processes) -> None:
    async with await connect() as client:
        leader, lower = (spawn(SEES_SIGNALS, stdout=subprocess.PIPE) for _ in range(2))
        for process in (leader, lower):
            await ready(process)
        # What a container manager does below the control group that is delegated to it.
        machine = (await register(client, "web", leader, **{"class": "container"}))["machine"]
        move(lower, f"{machine['controlGroup']}/a/b")
        for subgroup in ("a/b", "/a/b", "a"):
            parameters = {"name": "web", "signal": signal.SIGUSR1, "subgroup": subgroup}
            await client.call(f"{OURS}Kill", parameters)
            assert await until(lambda: signals_seen(lower)) == [b"usr1"]
        run("moorctl", "kill", "web", "--signal", "USR1", "--subgroup", "a/b")
        assert await until(lambda: signals_seen(lower)) == [b"usr1"]
        assert signals_seen(leader) == signals_seen(lower) == []
        with pytest.raises(NoSuchSubgroup):
            await client.call(f"{OURS}Kill", {"name": "web", "signal": signal.SIGUSR1, "subgroup": "none"})
        for bad in ("..", "a/../..", "a\0", "", "/", "."):
            with pytest.raises(InvalidParameter, match="subgroup"):
                await client.call(f"{OURS}Kill", {"name": "web", "signal": 15, "subgroup": bad})
        assert leader.poll() is None


async def test_signals_that_are_none_are_refused(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
        for number in (0, -1, 65, 2**31, 2**63 - 1):
            for interface in (OURS, THEIRS):
                with pytest.raises(InvalidParameter, match="signal"):
                    await client.call(f"{interface}Kill", {"name": "web", "signal": number})


async def test_what_is_for_one_invocation_does_not_reach_another(spawn: Processes) -> None:
    async with await connect() as client:
        first = spawn()
        old = (await register(client, "web", first))["machine"]["invocationId"]
        await stop(client, "web")
        second = spawn()
        new = (await register(client, "web", second))["machine"]["invocationId"]
        assert new != old
        for method, more in (("Kill", {"signal": 9}), ("Stop", {})):
            for wrong in (old, "0" * 32, ""):
                with pytest.raises(NoSuchMachine):
                    await client.call(OURS + method, {"name": "web", "ifInvocationId": wrong, **more})
        assert second.poll() is None
        await client.call(f"{OURS}Kill", {"name": "web", "signal": 9, "ifInvocationId": new})
        assert second.wait() == -signal.SIGKILL
        await verdict(client, "web")


# Forgotten


@pytest.mark.parametrize("method", [f"{OURS}Forget", f"{THEIRS}Unregister"])
async def test_a_machine_that_is_forgotten_goes_on(spawn: Processes, method: str) -> None:
    async with await connect() as client:
        leader = spawn()
        machine = (await register(client, "web", leader))["machine"]
        assert await client.call(method, {"name": "web"}) == {}
        assert await listed(client) == {}
        with pytest.raises(NoSuchMachine):
            await describe(client, "web")
        assert show(machine["unit"], "ActiveState", "InvocationID") == {
            "ActiveState": "active",
            "InvocationID": machine["invocationId"],
        }
        assert control_group(leader) == machine["controlGroup"]
        # Its unit has the name that the next one of that name would need.
        other = spawn()
        with pytest.raises(machine_errors.UnitNameTaken) as caught:
            await register(client, "web", other)
        assert caught.value.unit == machine["unit"]
        for words in ("active", "Virtual Machine web", "with processes"):
            assert words in caught.value.holder
        assert control_group(leader) == machine["controlGroup"]
        assert control_group(other) == control_group(os.getpid())
        # It can be taken up again where it is.
        again = (await register(client, "web", leader, allocateUnit=False))["machine"]
        assert again["invocationId"] == machine["invocationId"]
        await stop(client, "web")


async def test_a_verdict_can_be_forgotten(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
        await stop(client, "web")
        assert (await describe(client, "web"))["phase"] == "exited"
        await client.call(f"{OURS}Forget", {"name": "web"})
        for method in ("Describe", "Forget"):
            with pytest.raises(NoSuchMachine) as caught:
                await client.call(OURS + method, {"name": "web"})
            assert caught.value.name == "web"
        assert "web" not in os.listdir(RECORDS)


async def test_a_part_of_a_unit_that_nobody_supervises(spawn: Processes) -> None:
    def register_part(process: Process) -> None:
        # By a caller that is gone at once.
        leader = json.dumps(
            {"name": "part", "class": "vm", "allocateUnit": False, "leader": {"pid": process.pid}}
        )
        run("varlinkctl", "call", SOCKET, f"{OURS}Register", leader)

    leader, another = spawn(), spawn()
    run("systemd-run", "--unit=outer.service", "--collect", "--quiet", "--property=Delegate=yes",
        "--property=DelegateSubgroup=main", "--", "sleep", "infinity")  # fmt: skip
    for process in (leader, another):
        move(process, f"{SERVICES}/outer.service/part")
    async with await connect() as client:
        register_part(leader)
        assert (await describe(client, "part"))["subgroup"] == "/part"
        # In the place of the supervisor the leader is asked.
        with pytest.raises(Timeout):
            await client.call(f"{OURS}Stop", {"name": "part", "timeoutUSec": 100_000})
        assert leader.wait() == -signal.SIGTERM
        await client.call(f"{OURS}Forget", {"name": "part"})
        register_part(another)
        kill(another)
        await verdict(client, "part")
        assert show("outer.service", "ActiveState") == {"ActiveState": "active"}
        # With both of them gone there is nobody to ask.
        leader, another = spawn(), spawn()
        for process in (leader, another):
            move(process, f"{SERVICES}/outer.service/part")
        register_part(leader)
        kill(leader)
        with pytest.raises(NotSupported):
            await client.call(f"{OURS}Stop", {"name": "part"})
        assert (await describe(client, "part"))["phase"] == "running"
        kill(another)
        await verdict(client, "part")
        run("systemctl", "stop", "outer.service")
