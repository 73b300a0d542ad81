"""The service comes and goes, and so does the manager's own state: the machines stay what they are."""

import json
import os
import signal
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from moored import (
    OURS,
    RECORDS,
    RUNTIME,
    THEIRS,
    USER,
    Processes,
    configure,
    connect,
    control_group,
    controlled,
    cursor,
    describe,
    for_us,
    kill,
    listed,
    logged,
    main_pid,
    move,
    process_of,
    register,
    run,
    show,
    start_listening,
    until,
    verdict,
)

from moorage.errors import ManagerUnavailable, NoSuchMachine, ProcessGone, UnitNameTaken

IDENTITY: dict[str, Any] = {
    "class": "container",
    "id": "0123456789abcdef0123456789abcdef",
    "service": "a-launcher",
    "rootDirectory": "/var/lib/machines/web",
    "vSockCid": 4711,
    "sshAddress": "vsock/4711",
    "sshPrivateKeyPath": "/run/keys/web",
    "controlAddress": "/run/web/control",
    "ifIndices": [1],
}


def record(name: str) -> dict[str, Any]:
    return json.loads((RECORDS / name).read_bytes())


def write_record(name: str, content: dict[str, Any]) -> None:
    (RECORDS / name).write_text(json.dumps(content))


async def everything() -> list[dict[str, dict[str, Any]]]:
    """All that the service says of its machines, by name."""
    async with await connect() as client:
        async with client.call_more(f"{THEIRS}List") as replies:
            theirs = {reply["name"]: reply async for reply in replies}
        if not USER:  # whose instance has no host
            theirs[".host"].pop(
                "timestamp"
            )  # computed from two clocks, whose distance is never quite the same
        return [await listed(client), theirs]


def restart() -> None:
    run("systemctl", "restart", "moored.service")


def murder() -> None:
    """Kill the service; the manager starts it again."""
    before = main_pid()
    os.kill(before, signal.SIGKILL)


def stopped() -> None:
    """Stop the service; the next call starts it."""
    run("systemctl", "stop", "moored.service")


def reload() -> None:
    run("systemctl", "daemon-reload")


def reexecute() -> None:
    run("systemctl", "daemon-reexec")


@pytest.mark.parametrize("happen", [restart, murder, stopped, reload, reexecute])
async def test_machines_survive(spawn: Processes, happen: Callable[[], None]) -> None:
    leaders = [spawn() for _ in range(10)]
    async with await connect() as client:
        await register(client, "web", leaders[0], **IDENTITY, slice="moorage-test.slice")
        for number, leader in enumerate(leaders[1:]):
            await register(client, f"m{number}", leader)
        kill(leaders.pop())
        gone = await verdict(client, "m8")
    await controlled("m7")  # the last, and with it the others
    before = await everything()
    assert len(before[0]) == 9
    groups = [control_group(leader) for leader in leaders]
    pid = main_pid()
    happen()
    if happen in (restart, murder, stopped):
        await until(lambda: main_pid() != pid)
    assert await everything() == before
    assert [control_group(leader) for leader in leaders] == groups
    assert [leader.poll() for leader in leaders] == [None] * 9
    async with await connect() as client:
        assert (await describe(client, "m8"))["verdict"] == gone
        # They are watched, found and stopped as before.
        kill(leaders[1])
        assert (await verdict(client, "m0"))["result"] == "success"
        found = await client.call(f"{OURS}Find", {"process": process_of(leaders[0])})
        assert found["machine"]["name"] == "web"
        await client.call(f"{OURS}Stop", {"name": "web"})
        assert leaders[0].wait() == -signal.SIGTERM
        # The same call gets the same reply as before.
        again = await register(client, "m1", leaders[2])
        assert again["machine"] == before[0]["m1"]


async def test_the_manager_may_do_both_again_and_again(spawn: Processes) -> None:
    async with await connect() as client:
        machine = (await register(client, "web", spawn()))["machine"]
        for number in range(3):
            reload()
            reexecute()
            assert await listed(client) == {"web": machine}
            leader = spawn()
            await register(client, f"m{number}", leader)
            reexecute()
            kill(leader)
            await verdict(client, f"m{number}")
        assert await listed(client) == {"web": machine}


async def test_calls_during_a_reexecution_are_answered(spawn: Processes) -> None:
    """The link to the manager is lost and found again; what was begun is finished or undone."""
    done: list[str] = []
    ours = control_group(os.getpid())

    async def one(first: int) -> None:
        async with await connect() as client:
            for number in range(first, first + 10):
                leader = spawn()
                try:
                    machine = (await register(client, f"m{number}", leader))["machine"]
                except ManagerUnavailable:
                    # The manager went before it looked at the call: nothing was done, and the call may be repeated.
                    assert control_group(leader) == ours
                    machine = (await register(client, f"m{number}", leader))["machine"]
                assert control_group(leader) == machine["controlGroup"]
                await client.call(f"{OURS}Stop", {"name": f"m{number}"})
                done.append(f"m{number}")

    async def reexecute_often() -> None:
        for _ in range(3):
            await trio.run_process(for_us("systemctl", "daemon-reexec"))

    async with trio.open_nursery() as nursery:
        for first in range(0, 40, 10):
            nursery.start_soon(one, first)
        nursery.start_soon(reexecute_often)
    assert len(done) == 40


async def test_what_ended_while_nobody_looked(spawn: Processes) -> None:
    names = ["killed", "stopped", "timed-out", "other-start", "alive"]
    leaders = {name: spawn() for name in names}
    async with await connect() as client:
        for name, leader in leaders.items():
            properties = {"RuntimeMaxUSec": 1_000_000} if name == "timed-out" else {}
            await register(client, name, leader, properties=properties)
    stop_listening()
    kill(leaders["killed"])
    run("systemctl", "stop", "machine-stopped.scope", "machine-other\\x2dstart.scope")
    argv = (
        "systemd-run",
        "--scope",
        "--quiet",
        "--unit=machine-other\\x2dstart.scope",
        "--",
        "sleep",
        "infinity",
    )
    other = spawn(argv)
    await until(lambda: "machine-other" in control_group(other))
    await until(lambda: leaders["timed-out"].poll() is not None)
    await until(lambda: show("machine-timed\\x2dout.scope", "ActiveState") == {"ActiveState": "failed"})
    start_listening()
    async with await connect() as client:
        assert list(await listed(client)) == ["alive"]
        results = {name: (await describe(client, name)).get("verdict", {}).get("result") for name in names}
        assert results == {
            "killed": "success",
            "stopped": "success",
            "timed-out": "timeout",
            "other-start": "success",  # the manager has forgotten that; the journal has not
            "alive": None,
        }
    assert run("systemctl", "list-units", "--failed", "--plain", "--no-legend") == ""
    # What has the name now is none of ours.
    assert other.poll() is None
    kill(other)


def stop_listening() -> None:
    run("systemctl", "stop", "moored.socket", "moored.service")


@pytest.mark.system_instance("only root may choose a PID")
async def test_a_leader_of_another_life_is_none(spawn: Processes) -> None:
    """The PID in a record is somebody else's by now: the machine goes on without a leader that could be killed."""
    leader, second = spawn(), spawn()
    async with await connect() as client:
        machine = (await register(client, "web", leader, **{"class": "container"}))["machine"]
    move(second, machine["controlGroup"])
    stop_listening()
    kill(leader)
    innocent = spawn.at(leader.pid)
    start_listening()
    async with await connect() as client:
        assert (await listed(client))["web"]["phase"] == "running"
        with pytest.raises(ProcessGone):
            await client.call(f"{OURS}Kill", {"name": "web", "signal": 9, "whom": "leader"})
        for given in ({"pid": innocent}, process_of(innocent)):
            with pytest.raises(NoSuchMachine):
                await client.call(f"{OURS}Find", {"process": given})
        os.kill(innocent, 0)
        kill(second)
        await verdict(client, "web")
        os.kill(innocent, 0)


async def test_a_record_with_another_pidfd_id_is_not_believed(spawn: Processes) -> None:
    leader = spawn()
    async with await connect() as client:
        await register(client, "web", leader)
    stop_listening()
    content = record("web")
    content["leader"]["pidfd_id"] += 1
    write_record("web", content)
    start_listening()
    async with await connect() as client:
        assert (await listed(client))["web"]["phase"] == "running"
        with pytest.raises(ProcessGone):
            await client.call(f"{OURS}Kill", {"name": "web", "signal": 9, "whom": "leader"})
        assert leader.poll() is None
        await client.call(f"{OURS}Stop", {"name": "web"})


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 10)


def nested(path: Path) -> None:
    path.write_bytes(b'{"name":' + b"[" * 100_000)


def huge(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" " * 1_000_000)


def newer(path: Path) -> None:
    write_record(path.name, {**record(path.name), "version": 99})


def of_another_boot(path: Path) -> None:
    write_record(path.name, {**record(path.name), "boot_id": "0" * 31 + "1"})


def of_another_machine(path: Path) -> None:
    write_record(path.name, {**record(path.name), "name": "other"})


def of_a_wrong_type(path: Path) -> None:
    write_record(path.name, {**record(path.name), "uid": "root"})


def of_somebody_else(path: Path) -> None:
    os.chown(path, 1000, 1000)


LINKED = RUNTIME / "moorage-test-record"


def link(path: Path) -> None:
    path.rename(LINKED)
    path.symlink_to(LINKED)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def unreadable_name(path: Path) -> None:
    path.rename(path.with_name("no machine"))


@pytest.fixture
def swept() -> Generator[None]:
    """Bad records are left where they are, for who wants to know why; this removes what a test put there."""
    yield
    for path in (*RECORDS.iterdir(), LINKED):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


@pytest.mark.system_instance("how a record is read does not depend on an instance", runs=True)
@pytest.mark.parametrize(
    "spoil",
    [truncated, empty, binary, nested, huge, newer, of_another_boot, of_another_machine, of_a_wrong_type,
     link, directory, fifo, unreadable_name,
     pytest.param(of_somebody_else, marks=pytest.mark.system_instance("only root may give a file away"))],
)  # fmt: skip
async def test_a_bad_record_is_skipped_and_the_rest_loads(
    nothing_left: None, swept: None, spawn: Processes, spoil: Callable[[Path], None]
) -> None:
    leaders = {name: spawn() for name in ("a", "bad", "z")}
    async with await connect() as client:
        for name, leader in leaders.items():
            await register(client, name, leader)
        before = await listed(client)
    stop_listening()
    spoil(RECORDS / "bad")
    since = cursor()
    start_listening()
    async with await connect() as client:
        assert await listed(client) == {name: before[name] for name in ("a", "z")}
        with pytest.raises(NoSuchMachine):
            await describe(client, "bad")
        await until(lambda: any("Failed to load the record" in line for line in logged(since)))
        # Its scope was made by nobody that is known now, and is left alone.
        assert leaders["bad"].poll() is None
        with pytest.raises(UnitNameTaken):
            await register(client, "bad", spawn())


async def test_a_record_that_was_half_written_is_removed(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
    stop_listening()
    (RECORDS / ".new-web").write_bytes(b'{"version":1,')
    start_listening()
    async with await connect() as client:
        assert list(await listed(client)) == ["web"]
    assert sorted(os.listdir(RECORDS)).count(".new-web") == 0


# Coming and going


IDLE_SECONDS = 0.3


@pytest.fixture
def hurried() -> Generator[None]:
    """A service that goes as soon as it has nothing to do."""
    configure(f"--idle-timeout={IDLE_SECONDS}")
    run("systemctl", "stop", "moored.service")
    yield
    configure()
    run("systemctl", "stop", "moored.service")


async def until_idle() -> None:
    def gone() -> bool:
        return show("moored.service", "ActiveState") == {"ActiveState": "inactive"}

    await until(gone, "the service is gone")
    assert show("moored.service", "Result") == {"Result": "success"}


async def test_it_goes_when_there_is_nothing_to_do_and_comes_with_the_next_call(
    hurried: None, spawn: Processes
) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
        await client.call(f"{OURS}Stop", {"name": "web"})
        ended = await describe(client, "web")
    await until_idle()
    assert show("moored.socket", "ActiveState", "SubState") == {
        "ActiveState": "active",
        "SubState": "listening",
    }
    async with await connect() as client:
        assert await describe(client, "web") == ended
        assert await listed(client) == {}
    await until_idle()


async def test_it_stays_while_there_is_something_to_do(hurried: None, spawn: Processes) -> None:
    leader = spawn()
    async with await connect() as client:
        await register(client, "web", leader)
        pid = main_pid()
    await trio.sleep(3 * IDLE_SECONDS)  # what does not happen has no event
    assert main_pid() == pid
    kill(leader)
    async with await connect() as client:
        await verdict(client, "web")
        await trio.sleep(3 * IDLE_SECONDS)  # a connection is something to do as well
        await client.call("org.varlink.service.GetInfo")
        assert main_pid() == pid
    await until_idle()


@pytest.mark.system_instance("a race of the service with its own end, and takes long", runs=True)
async def test_callers_that_come_while_it_goes_are_served(hurried: None, nothing_left: None) -> None:
    """Whatever the moment: the socket keeps who comes too late for one instance for the next."""
    instances: set[int] = set()
    for number in range(12):
        async with await connect() as client:
            assert (await client.call("org.varlink.service.GetInfo"))["product"] == "moored"
            instances.add(main_pid())
        await trio.sleep(IDLE_SECONDS * (0.9 + 0.1 * number))
    assert len(instances) > 2
    await until_idle()


async def test_a_stop_lets_calls_under_way_end(spawn: Processes) -> None:
    done: list[str] = []

    async def one(number: int) -> None:
        async with await connect() as client:
            await register(client, f"m{number}", spawn())
            done.append(f"m{number}")

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(one, number)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(trio.run_process, for_us("systemctl", "restart", "moored.service"))
    assert len(done) == 20
    async with await connect() as client:
        assert sorted(await listed(client)) == sorted(done)
