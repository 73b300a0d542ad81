"""Machines that are frozen and thawed, on a real service manager: an answer is true when it is given."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from fuse_file import FuseFile
from moored import (
    OURS,
    Process,
    Processes,
    assert_everything_gone,
    connect,
    control_group,
    describe,
    end_moored,
    freeze,
    kill,
    listed,
    main_pid,
    move,
    register,
    run,
    show,
    state,
    thaw,
    until,
    verdict,
)

from moorage.errors import Busy, NoSuchMachine, NotSupported, Timeout
from moorage.wire.client import Client
from moorage.wire.errors import Disconnected, InvalidParameter

SCOPE, SERVICE = "machine-web.scope", "machine-web-fs.service"
HELPER = {"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"]}
CALLERS = 100

STUCK = """
import os, sys
sys.stdin.readline()
file = os.open(sys.argv[1], os.O_RDWR)
print("going", flush=True)
os.close(file)
os.read(0, 1)
"""
"""Waits in close(2) for a server that does not answer, which nothing interrupts."""


@pytest.fixture(autouse=True)
def _clean(everything_gone: None) -> None:
    """Every test here leaves nothing."""


async def order(client: Client, method: str, name: str = "web", **parameters: Any) -> None:
    assert await client.call(f"{OURS}{method}", {"name": name, **parameters}) == {}


def attribute(group: str, name: str) -> str:
    return Path(f"/sys/fs/cgroup{group}/{name}").read_text().strip()


def frozen(group: str) -> bool:
    """What the kernel says."""
    return "frozen 1" in attribute(group, "cgroup.events")


def freezer(unit: str) -> str:
    return show(unit, "FreezerState")["FreezerState"]


async def shown(client: Client) -> set[str]:
    """What all calls that look say of its freezer."""
    found = await client.call(f"{OURS}Find", {"unit": SCOPE})
    return {
        (await describe(client, "web"))["freezer"],
        (await listed(client))["web"]["freezer"],
        found["machine"]["freezer"],
    }


def ticks(process: Process) -> int:
    """CPU time that a process has used, in ticks."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def test_it_stands_still_and_goes_on(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn(("sh", "-c", "while :; do :; done"))
        machine = (await register(client, "web", leader))["machine"]
        group = machine["controlGroup"]
        for _ in range(3):
            for _ in range(2):  # the second finds it so
                await order(client, "Freeze", ifInvocationId=machine["invocationId"])
                assert frozen(group)
                assert freezer(SCOPE) == "frozen"
            assert await shown(client) == {"frozen"}
            before = ticks(leader)
            await trio.sleep(0.1)
            assert ticks(leader) == before
            for _ in range(2):
                await order(client, "Thaw", ifInvocationId=machine["invocationId"], timeoutUSec=5_000_000)
                assert not frozen(group)
                assert freezer(SCOPE) == "running"
            assert await shown(client) == {"running"}
            await until(lambda before=before: ticks(leader) > before)
        for method in ("Freeze", "Thaw"):
            with pytest.raises(NoSuchMachine):
                await order(client, method, ifInvocationId="0" * 32)
            with pytest.raises(NoSuchMachine):
                await order(client, method, name="nobody")
            for usec in (0, -1, 600_000_001, 1.5, "long"):
                with pytest.raises(InvalidParameter):
                    await order(client, method, timeoutUSec=usec)
        assert await shown(client) == {"running"}


async def test_what_others_freeze_is_seen(spawn: Processes) -> None:
    async with await connect() as client:
        group = (await register(client, "web", spawn()))["machine"]["controlGroup"]
        freeze(SCOPE)
        await until(lambda: frozen(group))
        assert (await describe(client, "web"))["freezer"] == "frozen"
        await order(client, "Thaw")
        assert freezer(SCOPE) == "running"


@pytest.mark.system_instance("the user's manager does not freeze the slice of its machines either")
async def test_a_slice_that_is_frozen_above(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        group = (await register(client, "web", leader, slice="vms-t.slice"))["machine"]["controlGroup"]
        freeze("vms.slice")
        try:
            assert (await describe(client, "web"))["freezer"] == "frozen"
            orders: list[tuple[str, dict[str, Any]]] = [
                ("Thaw", {}),
                ("Stop", {}),
                ("Kill", {"signal": signal.SIGTERM}),
                ("Kill", {"signal": signal.SIGTERM, "whom": "leader"}),
            ]
            for method, parameters in orders:
                with pytest.raises(Busy) as caught:
                    await client.call(f"{OURS}{method}", {"name": "web", **parameters})
                assert caught.value.operation == "vms.slice is frozen, and the machine with it"
            await order(client, "Freeze")
            thaw("vms.slice")
            assert frozen(group)
            assert (await describe(client, "web"))["freezer"] == "frozen"
            freeze("vms.slice")
            with pytest.raises(Busy):
                await order(client, "Thaw")
            assert frozen(group)
            thaw("vms.slice")
            assert not frozen(group)
            assert (await describe(client, "web"))["freezer"] == "running"
            freeze("vms.slice")
            await client.call(f"{OURS}Kill", {"name": "web", "signal": signal.SIGKILL})
            await verdict(client, "web")
            assert leader.wait() == -signal.SIGKILL
        finally:
            thaw("vms.slice")


@pytest.mark.parametrize("helpers", [False, True])
@pytest.mark.parametrize("how", ["Stop", "lease", "SIGTERM", "SIGKILL", "leader", "systemctl kill"])
async def test_a_frozen_machine_ends(spawn: Processes, how: str, helpers: bool) -> None:
    leader = spawn()
    async with await connect() as client:
        async with await connect() as launcher:
            await register(launcher, "web", leader, helpers=[HELPER], lease=how == "lease")
            await order(client, "Freeze", helpers=helpers)
            assert freezer(SERVICE) == ("frozen" if helpers else "running")
            match how:
                case "Stop":
                    await client.call(f"{OURS}Stop", {"name": "web"})
                case "SIGTERM" | "SIGKILL":
                    await client.call(f"{OURS}Kill", {"name": "web", "signal": getattr(signal, how)})
                case "leader":
                    await client.call(f"{OURS}Kill", {"name": "web", "signal": 15, "whom": "leader"})
                case "systemctl kill":
                    run("systemctl", "kill", "--signal=KILL", SCOPE)
                case _:
                    pass
        found = await verdict(client, "web")
        assert found["result"] == "success"
    expected = signal.SIGKILL if "KILL" in how or "kill" in how else signal.SIGTERM
    assert leader.wait() == -expected
    await assert_everything_gone()


async def test_helpers_go_on_unless_they_are_frozen_too(spawn: Processes) -> None:
    async with await connect() as client:
        done = {"name": "done", "type": "oneshot", "execStart": ["/bin/true"]}
        await register(client, "web", spawn(), helpers=[HELPER, done])
        given: list[dict[str, Any]] = [{"helpers": False}, {}, {"helpers": True}, {"helpers": True}]
        for parameters in given:
            await order(client, "Freeze", **parameters)
            assert freezer(SCOPE) == "frozen"
            assert freezer(SERVICE) == ("frozen" if parameters.get("helpers") else "running")
        await order(client, "Thaw")
        assert (freezer(SCOPE), freezer(SERVICE)) == ("running", "running")
        await order(client, "Freeze", helpers=True)
        await client.call(f"{OURS}RemoveHelper", {"name": "web", "helper": "fs"})
        assert state(SERVICE) in {"inactive", "failed"}
        assert freezer(SCOPE) == "frozen"


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_it_is_still_frozen_after_a_restart(spawn: Processes, how: str) -> None:
    async with await connect() as client:
        group = (await register(client, "web", spawn(), helpers=[HELPER]))["machine"]["controlGroup"]
        await order(client, "Freeze", helpers=True)
        pid = main_pid()
    if how == "restart":
        run("systemctl", "restart", "moored.service")
    else:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: main_pid() not in {0, pid})
    async with await connect() as client:
        assert await shown(client) == {"frozen"}
        for reexec in ("daemon-reload", "daemon-reexec"):
            run("systemctl", reexec)
            assert await shown(client) == {"frozen"}
        await order(client, "Thaw")
        assert not frozen(group)
        assert freezer(SERVICE) == "running"


async def test_the_next_instance_ends_helpers_that_were_frozen(spawn: Processes, mortal: None) -> None:
    leader = spawn()
    async with await connect() as client:
        await register(client, "web", leader, helpers=[HELPER])
        await order(client, "Freeze", helpers=True)
    await end_moored()
    kill(leader)
    await until(lambda: state(SCOPE) != "active")
    assert state(SERVICE) == "active"
    run("systemctl", "start", "moored.socket")
    async with await connect() as client:
        await verdict(client, "web")
    await assert_everything_gone()


async def test_what_is_being_stopped_is_not_frozen(spawn: Processes) -> None:
    async with await connect() as client, await connect() as other:
        leader = spawn(("sh", "-c", "trap '' TERM; while :; do sleep 0.01; done"))
        await register(client, "web", leader, properties={"TimeoutStopUSec": 1_000_000})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call, f"{OURS}Stop", {"name": "web"})
            await until(lambda: state(SCOPE) == "deactivating")
            for method in ("Freeze", "Thaw"):
                with pytest.raises(Busy) as caught:
                    await order(other, method)
                assert caught.value.operation == "the machine is stopping"
        with pytest.raises(NoSuchMachine):
            await order(client, "Freeze")


async def test_machines_in_place(spawn: Processes) -> None:
    """One that is the whole of a unit is frozen with it; one that is a part of it is not."""
    run("systemd-run", "--quiet", "--unit=own.service", "--property=Delegate=yes", "sleep", "infinity")
    try:
        async with await connect() as client:
            leader = int(show("own.service", "MainPID")["MainPID"])
            await register(client, "web", leader, allocateUnit=False)
            await order(client, "Freeze")
            assert freezer("own.service") == "frozen"
            await order(client, "Thaw")
            assert freezer("own.service") == "running"
            await client.call(f"{OURS}Forget", {"name": "web"})
            part = spawn()
            group = f"{control_group(leader)}/payload"
            os.mkdir(f"/sys/fs/cgroup{group}")  # it is delegated
            move(part, group)
            await register(client, "web", part, allocateUnit=False)
            for method in ("Freeze", "Thaw"):
                with pytest.raises(NotSupported) as caught:
                    await order(client, method)
                assert caught.value.what == method
            assert freezer("own.service") == "running"
    finally:
        run("systemctl", "stop", "own.service")


async def test_a_hundred_callers_at_once(spawn: Processes) -> None:
    """Each is told what became of its call, and the last one is right."""
    answers: Counter[str] = Counter()
    async with await connect() as last:
        group = (await register(last, "web", spawn(), helpers=[HELPER]))["machine"]["controlGroup"]

        async def call(number: int) -> None:
            async with await connect() as client:
                try:
                    await (order(client, "Thaw") if number % 2 else order(client, "Freeze", helpers=True))
                    answers["done"] += 1
                except Busy as busy:
                    answers[busy.operation] += 1

        async with trio.open_nursery() as nursery:
            for number in range(CALLERS):
                nursery.start_soon(call, number)
        assert answers["done"] > 0
        assert answers.total() == CALLERS
        await order(last, "Freeze", helpers=True)
        assert frozen(group)
        assert freezer(SERVICE) == "frozen"
        await order(last, "Thaw")
        assert not frozen(group)
        assert freezer(SERVICE) == "running"


async def test_a_machine_that_is_just_being_registered(spawn: Processes) -> None:
    """It is there, and can be frozen, or it is not."""
    for turn in range(10):
        leader = spawn()
        answers: Counter[str] = Counter()

        async def freeze(number: int, answers: Counter[str] = answers) -> None:
            async with await connect() as client:
                for _ in range(number):
                    await client.call("org.varlink.service.GetInfo")
                try:
                    await order(client, "Freeze", helpers=True)
                    answers["frozen"] += 1
                except (NoSuchMachine, Busy) as refusal:
                    answers[type(refusal).__name__] += 1

        async with await connect() as client, trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(freeze, number * turn)
            machine = (await register(client, "web", leader, helpers=[HELPER]))["machine"]
        async with await connect() as client:
            assert answers.total() == 10
            assert (
                frozen(machine["controlGroup"]) == (freezer(SERVICE) == "frozen") == (answers["frozen"] > 0)
            )
            assert (await describe(client, "web"))["freezer"] == (
                "frozen" if answers["frozen"] else "running"
            )
            await client.call(f"{OURS}Stop", {"name": "web"})
        await assert_everything_gone()


# What cannot be frozen, since a process of it waits for something that nothing interrupts


@contextmanager
def stuck(spawn: Processes, path: Path) -> Generator[tuple[Process, FuseFile]]:
    """A process that waits so, once it is told to, and the file that it waits for."""
    leader = spawn((sys.executable, "-c", STUCK, str(path)), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    file = FuseFile(path, leader.pid, 0)
    try:
        yield leader, file
    finally:
        file.end()


async def get_stuck(leader: Process, file: FuseFile) -> None:
    assert leader.stdin is not None
    leader.stdin.write(b"\n")
    leader.stdin.flush()
    await until(lambda: leader.pid in file.flushed)


MOUNTS = pytest.mark.system_instance("only root mounts a file system of its own")


@MOUNTS
async def test_a_freeze_that_takes_too_long_is_taken_back(spawn: Processes, tmp_path: Path) -> None:
    async with await connect() as client:
        with stuck(spawn, tmp_path / "file") as (leader, file):
            group = (await register(client, "web", leader, helpers=[HELPER]))["machine"]["controlGroup"]
            await get_stuck(leader, file)
            with pytest.raises(Timeout):
                await order(client, "Freeze", timeoutUSec=200_000, helpers=True)
            assert (freezer(SCOPE), freezer(SERVICE)) == ("running", "running")
            assert attribute(group, "cgroup.freeze") == "0"
            assert await shown(client) == {"running"}
        # It can be frozen now.
        await order(client, "Freeze")
        assert frozen(group)
        await client.call(f"{OURS}Stop", {"name": "web"})


@MOUNTS
@pytest.mark.parametrize("how", ["Thaw", "Stop", "hang up", "kill"])
async def test_what_comes_in_between(spawn: Processes, tmp_path: Path, how: str) -> None:
    answers: list[str] = []

    async def freeze(scope: trio.CancelScope) -> None:
        with scope:
            async with await connect() as client:
                try:
                    await order(client, "Freeze")
                except Busy as busy:
                    answers.append(busy.operation)
                except Disconnected:
                    answers.append("none")

    async with trio.open_nursery() as nursery:
        with stuck(spawn, tmp_path / "file") as (leader, file):
            async with await connect() as client:
                await register(client, "web", leader)
                await get_stuck(leader, file)
                scope = trio.CancelScope()
                nursery.start_soon(freeze, scope)
                await until(lambda: freezer(SCOPE) == "freezing")
                assert await shown(client) == {"freezing"}
                if how == "Thaw":
                    await order(client, "Thaw")
                    assert freezer(SCOPE) == "running"
                elif how == "Stop":
                    with pytest.raises(Timeout):
                        await client.call(f"{OURS}Stop", {"name": "web", "timeoutUSec": 500_000})
                    assert state(SCOPE) == "deactivating"
                elif how == "hang up":
                    scope.cancel()
                else:
                    pid = main_pid()
                    os.kill(pid, signal.SIGKILL)
                    await until(lambda: main_pid() not in {0, pid})
        async with await connect() as client:
            if how in {"hang up", "kill"}:  # it goes on without its caller, and without moored
                await until(lambda: freezer(SCOPE) == "frozen")
                assert await shown(client) == {"frozen"}
            if how != "Stop":
                await client.call(f"{OURS}Stop", {"name": "web"})
            await verdict(client, "web")
    assert answers == {
        "Thaw": ["it was thawed before it was frozen"],
        "Stop": ["the machine is stopping"],
        "hang up": [],
        "kill": ["none"],
    }[how]  # fmt: skip
