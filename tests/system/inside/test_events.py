"""Events: what happens to machines on a real system, told in order and over restarts, to whoever reads or not."""

import itertools
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from authority import ALICE, acting_as
from hostile import dial, encode, receive, send
from moored import (
    OURS,
    SOCKET,
    Processes,
    connect,
    control_group,
    main_pid,
    process_of,
    register,
    run,
    signal_moored,
    thaw,
    until,
)
from subscriber import SUBSCRIBE, Reader, is_in_order, kinds, subscribed

from moorage.errors import CursorExpired, HelperFailed
from moorage.wire.client import Client
from moorage.wire.errors import InvalidParameter
from moorage.wire.server import Limits

pytestmark = pytest.mark.usefixtures("beside")

QUIET_SECONDS, QUIET_DEADLINE_SECONDS = 12.0, 120.0
"""For how long nothing is to happen: twice the longest pause of what is done from time to time; and by when."""

FAILS = ["/bin/sh", "-c", "echo secret; exit 3"]


async def test_the_life_of_a_machine(spawn: Processes) -> None:
    leader = spawn()
    async with subscribed() as reader, await connect() as client:
        await reader.snapshot()
        await register(client, "web", leader)
        new = await reader.until("machineNew", name="web")
        invocation = run("systemctl", "show", "-P", "InvocationID", "machine-web.scope").strip()
        assert new["invocationId"] == new["data"]["invocationId"] == invocation
        assert new["data"]["leader"]["pid"] == leader.pid
        leader.kill()
        leader.wait()
        exited = await reader.until("exited", name="web")
        assert exited["invocationId"] == invocation
        assert exited["data"]["leaderSignal"] == signal.SIGKILL
        assert exited["data"]["cause"] == "leaderEnded"
        told = reader.of("web")
        assert kinds(told)[0] == "machineNew"
        assert sorted(kinds(told)) == ["empty", "exited", "leaderExited", "machineNew"]
        by_kind = {event["event"]: event for event in told}
        assert by_kind["leaderExited"]["data"] == {"signal": signal.SIGKILL}
        times = [event["timestamp"]["monotonic"] for event in told]
        assert times == sorted(times)
        assert is_in_order(reader.told)


@pytest.mark.system_instance("it counts turns of a loop, and takes long", runs=True)
async def test_who_only_watches_has_nobody_woken(spawn: Processes) -> None:
    async with subscribed() as reader, await connect() as client:
        await reader.snapshot()
        await register(client, "web", spawn())
        await reader.until("machineNew", name="web")
        pid = main_pid()
        # What the registration has left to do is done after some seconds; the watchdog is fed every 90 s.
        with trio.fail_after(QUIET_DEADLINE_SECONDS):
            before, after = -1, wakings(pid)
            while before != after:
                await trio.sleep(QUIET_SECONDS)
                before, after = after, wakings(pid)


def wakings(pid: int) -> int:
    """How often a thread of a process has gone to sleep so far (proc_pid_status(5))."""
    statuses = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(each.split("\nvoluntary_ctxt_switches:")[1].split()[0]) for each in statuses)


async def test_the_end_of_a_machine_that_is_stopped(spawn: Processes) -> None:
    """By its caller, by the end of its lease, by somebody with systemctl: each is told as what it is."""
    async with subscribed() as reader, await connect() as client:
        await reader.snapshot()
        for name in ("caller", "manager", "lease"):
            if name == "lease":
                async with await connect() as holder:
                    await register(holder, name, spawn(), lease=True)
            else:
                await register(client, name, spawn())
                if name == "caller":
                    await client.call(f"{OURS}Stop", {"name": name})
                else:
                    await trio.to_thread.run_sync(run, "systemctl", "stop", "machine-manager.scope")
            await reader.until("exited", name=name)
            told = reader.of(name)
            assert kinds(told)[0] == "machineNew"
            assert kinds(told)[-1] == "exited"
            assert kinds(told).count("empty") == 1
            stopping = [event["data"] for event in told if event["event"] == "stopping"]
            assert stopping == ([{"by": name}] if name != "manager" else stopping[:1])
            assert ("leaseLost" in kinds(told)) is (name == "lease")
        assert is_in_order(reader.told)


async def test_a_registration_that_fails(spawn: Processes) -> None:
    async with subscribed() as reader, await connect() as client:
        await reader.snapshot()
        with pytest.raises(HelperFailed) as refused:
            await register(
                client,
                "web",
                spawn(),
                helpers=[{"name": "fs", "execStart": FAILS, "type": "oneshot"}],
            )
        event = await reader.until("registrationFailed")
        assert event["name"] == "web"
        assert event["data"]["error"] == refused.value.error
        assert event["data"]["parameters"]["helper"] == "fs"
        assert event["data"]["parameters"]["log"] == ["secret"]
        await register(client, "web", spawn())
        await reader.until("machineNew", name="web")
        assert kinds(reader.of("web")) == ["registrationFailed", "machineNew"]


async def test_helpers(spawn: Processes) -> None:
    async with subscribed() as reader, await connect() as client:
        await reader.snapshot()
        await register(client, "web", spawn(), helpers=[{"name": "fs", "execStart": ["/bin/sleep", "inf"]}])
        new = await reader.until("machineNew")
        assert [helper["activeState"] for helper in new["data"]["helpers"]] == ["active"]
        added = {"name": "net", "execStart": ["/bin/sleep", "inf"], "restart": "always",
                 "properties": {"RestartUSec": 100_000}}  # fmt: skip
        await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [added]})
        assert (await reader.until("helperStarted"))["data"] == {"helper": "net"}
        await trio.to_thread.run_sync(run, "systemctl", "kill", "-s", "KILL", "machine-web-net.service")
        assert (await reader.until("helperRestarted"))["data"] == {"helper": "net"}
        await trio.to_thread.run_sync(run, "systemctl", "kill", "-s", "KILL", "machine-web-fs.service")
        assert (await reader.until("helperFailed"))["data"] == {"helper": "fs", "result": "signal"}
        await client.call(f"{OURS}RemoveHelper", {"name": "web", "helper": "net"})
        assert (await reader.until("helperRemoved"))["data"] == {"helper": "net"}
        assert kinds(reader.of("web"))[0] == "machineNew"


async def test_freezing_and_properties(spawn: Processes) -> None:
    """By a call, by systemctl, and over a restart."""
    async with subscribed() as reader, await connect() as client:
        await reader.snapshot()
        await register(client, "web", spawn())
        await client.call(f"{OURS}Freeze", {"name": "web"})
        await reader.until("frozen")
        await trio.to_thread.run_sync(thaw, "machine-web.scope")
        await reader.until("thawed")
        await client.call(f"{OURS}SetProperties", {"name": "web", "properties": {"TasksMax": 77}})
        changed = await reader.until("propertiesChanged")
        assert changed["data"]["properties"] == {"TasksMax": 77}
        assert run("systemctl", "show", "-P", "TasksMax", "machine-web.scope").strip() == "77"
        await client.call(f"{OURS}Freeze", {"name": "web"})
        cursor = (await reader.until("frozen"))["cursor"]
    await restart("restart")
    async with subscribed(cursor=cursor) as reader, await connect() as client:
        await client.call(f"{OURS}Stop", {"name": "web"})
        await reader.until("exited")
        assert kinds(reader.told).count("frozen") == 0
        assert kinds(reader.told)[-1] == "exited"


async def test_a_machine_that_is_forgotten(spawn: Processes) -> None:
    async with subscribed() as reader, await connect() as client:
        await reader.snapshot()
        await register(client, "web", leader := spawn())
        await client.call(f"{OURS}Forget", {"name": "web"})
        await reader.until("forgotten", name="web")
        assert control_group(leader).endswith("/machine-web.scope")
        leader.kill()
        await until(lambda: not Path(f"/sys/fs/cgroup{control_group_of('machine-web.scope')}").exists())
        await register(client, "next", spawn())
        await reader.until("machineNew", name="next")
        assert kinds(reader.of("web")) == ["machineNew", "forgotten"]


def control_group_of(unit: str) -> str:
    return run("systemctl", "show", "-P", "ControlGroup", unit).strip() or "/none"


async def test_a_snapshot_has_what_is_there_and_then_comes_what_changes(spawn: Processes) -> None:
    async with await connect() as client:
        for name in "abc":
            await register(client, name, spawn())
        async with subscribed() as all_of_them, subscribed(names=["b", "d"]) as some:
            assert await all_of_them.snapshot() == {"a", "b", "c"}
            assert await some.snapshot() == {"b"}
            assert {event["data"]["phase"] for event in all_of_them.told[:-1]} == {"running"}
            for name in "abd":
                if name == "d":
                    await register(client, name, spawn())
                await client.call(f"{OURS}Stop", {"name": name})
                await all_of_them.until("exited", name=name)
            await some.until("exited", name="d")
            assert {event["name"] for event in some.told} == {"b", "", "d"}
        async with subscribed(events=["exited"]) as picky:
            assert await picky.snapshot() == set()
            await client.call(f"{OURS}Stop", {"name": "c"})
            await picky.until("exited")
            assert kinds(picky.told) == ["snapshotDone", "exited"]


async def restart(how: str) -> None:
    if how == "killed":
        await trio.to_thread.run_sync(run, "systemctl", "kill", "-s", "KILL", "moored.service")
    else:
        await trio.to_thread.run_sync(run, "systemctl", "restart", "moored.service")


@pytest.mark.parametrize("how", ["restart", "killed"])
async def test_what_happens_over_a_restart_is_told_afterwards(spawn: Processes, how: str) -> None:
    leaders = {name: spawn() for name in ("before", "during", "after")}
    async with await connect() as client:
        for name, leader in leaders.items():
            await register(client, name, leader)
    async with subscribed() as reader:
        assert await reader.snapshot() == set(leaders)
        leaders["before"].kill()
        before = await reader.until("exited")
        cursor = before["cursor"]
    if how == "killed":
        await trio.to_thread.run_sync(run, "systemctl", "kill", "-s", "STOP", "moored.service")
        leaders["during"].kill()
        leaders["during"].wait()
        await restart(how)
    else:
        leaders["during"].kill()
        leaders["during"].wait()
        await restart(how)
    async with subscribed(cursor=cursor) as first:
        await first.until("exited", name="during")
        leaders["after"].kill()
        await first.until("exited", name="after")
        assert kinds(first.told)[-1] == "exited"
        for name in ("during", "after"):
            assert kinds(first.of(name)).count("empty") == 1
            assert kinds(first.of(name)).count("leaderExited") == 1
            assert kinds(first.of(name))[-1] == "exited"
        assert first.of("before") == []
        assert is_in_order([before, *first.told])
    await restart("restart")
    async with subscribed(cursor=cursor) as second:
        again = [await second.next() for _ in first.told]
    assert again == first.told, "word for word, from the disk"


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        *(({"cursor": cursor}, "cursor") for cursor in ("", "x", "0" * 32, "\N{SNOWMAN}", "a" * (1 << 20))),
        ({"events": ["exited", "oomKilled"]}, "events[1]"),
        ({"events": ["machineReady"]}, "events[0]"),
        ({"events": []}, "events"),
        ({"names": []}, "names"),
        ({"names": ["ok", "a/b"]}, "names[1]"),
        ({"names": ["a"] * 1025}, "names"),
        ({"nonsense": 1}, "nonsense"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
async def test_garbage_is_refused(parameters: dict[str, Any], field: str) -> None:
    async with await Client.connect(SOCKET) as client:
        with pytest.raises(InvalidParameter) as refused:
            async with client.call_more(SUBSCRIBE, parameters) as replies:
                await anext(aiter(replies))
        assert refused.value.parameter == field


async def test_a_cursor_of_another_boot_or_of_the_future_has_expired() -> None:
    async with subscribed() as reader:
        await reader.snapshot()
        cursor = reader.told[-1]["cursor"]
    boot, _, position = cursor.partition("-")
    for other in (f"{'f' * 32}-{position}", f"{boot}-{'f' * 16}", f"{boot}-{1:016x}", f"{cursor}-snapshot"):
        async with await connect() as client:
            with pytest.raises(CursorExpired):
                async with client.call_more(SUBSCRIBE, {"cursor": other}) as replies:
                    await anext(aiter(replies))


async def test_fifty_subscribers_are_told_the_same(spawn: Processes) -> None:
    async with await connect() as client, trio.open_nursery() as nursery:
        readers: list[Reader] = []
        done: list[list[dict[str, Any]]] = []
        ready = trio.Event()

        async def read() -> None:
            async with subscribed() as reader:
                await reader.snapshot()
                readers.append(reader)
                if len(readers) == 50:
                    ready.set()
                for _ in range(10):
                    await reader.until("exited")
                done.append(reader.told[1:])

        for _ in range(50):
            nursery.start_soon(read)
        await ready.wait()
        for number in range(10):
            await register(client, f"m{number}", leader := spawn())
            leader.kill()
    assert len(done) == 50
    assert all(told == done[0] for told in done)
    assert is_in_order(done[0])


@pytest.mark.system_instance("other users have no access to a user's")
async def test_a_user_subscribes_as_often_as_connections_last(spawn: Processes) -> None:
    """All of them are told, the one too many is refused, and nobody else notices."""
    with acting_as(ALICE):
        hers = [dial() for _ in range(Limits().connections_per_uid)]
    for each in hers:
        send(each, encode(SUBSCRIBE, {"events": ["exited"]}, more=True))
    async with await connect() as client, subscribed() as root:
        await root.snapshot()
        with acting_as(ALICE), dial() as one_more:
            send(one_more, encode(SUBSCRIBE, {}, more=True))
            refused = await trio.to_thread.run_sync(receive, one_more)
        assert json.loads(refused[:-1])["parameters"]["errnoName"] == "EUSERS"
        await register(client, "web", leader := spawn())
        leader.kill()
        exited = await root.until("exited", name="web")
        for each in hers:
            told = b""
            while told.count(b"\0") < 2:
                told += await trio.to_thread.run_sync(each.recv, 64 * 1024)
            last = json.loads(told.split(b"\0")[1])["parameters"]["event"]
            assert (last["event"], last["cursor"]) == ("exited", exited["cursor"])
            each.close()


@pytest.mark.system_instance(
    "what a connection may cost does not depend on an instance, and takes long", runs=True
)
async def test_who_does_not_read_costs_nobody_anything(spawn: Processes) -> None:
    """A socket that is never read, one that hangs up in the snapshot; the others are told, and moored stays small."""
    deaf = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    async with await connect() as client, subscribed() as reader:
        await reader.snapshot()
        for number, each in enumerate(deaf):
            each.connect(SOCKET)
            each.sendall(json.dumps({"method": SUBSCRIBE, "more": True}).encode() + b"\0")
            if number % 2:
                each.close()
        before = memory()
        for number in range(30):
            name = f"m{number}"
            await register(client, name, leader := spawn())
            leader.kill()
            await reader.until("exited", name=name)
        assert memory() < before + 16 * 1024 * 1024
    for each in deaf:
        each.close()


def memory() -> int:
    """Bytes that moored has."""
    pid = run("systemctl", "show", "-P", "MainPID", "moored.service").strip()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.system_instance("other users have no access to a user's")
async def test_secrets_are_left_out_for_others(spawn: Processes) -> None:
    async with await connect() as client, subscribed() as root:
        await root.snapshot()
        with acting_as(ALICE):
            others = subscribed()
            alice = await others.__aenter__()
        await alice.snapshot()
        address = {
            "sshAddress": "vsock/3",
            "sshPrivateKeyPath": "/root/key",
            "controlAddress": "unix:/run/web",
        }
        await register(client, "web", spawn(), **address)
        whole, public = await root.until("machineNew"), await alice.until("machineNew")
        assert whole["data"].items() >= address.items()
        assert public["data"] == {
            name: value
            for name, value in whole["data"].items()
            if name not in {"sshPrivateKeyPath", "controlAddress"}
        }
        await others.__aexit__(None, None, None)


async def test_the_log_is_damaged_and_everything_else_goes_on(spawn: Processes) -> None:
    async with await connect() as client, subscribed() as reader:
        await reader.snapshot()
        await register(client, "web", spawn())
        cursor = (await reader.until("machineNew"))["cursor"]
    events = Path(SOCKET).parent / "events"
    for file in events.iterdir():
        file.write_bytes(b"\0garbage\n")
    await restart("restart")
    async with await connect() as client:
        with pytest.raises(CursorExpired):
            async with client.call_more(SUBSCRIBE, {"cursor": cursor}) as replies:
                await anext(aiter(replies))
        async with subscribed() as reader:
            assert await reader.snapshot() == {"web"}
            await client.call(f"{OURS}Stop", {"name": "web"})
            await reader.until("exited", name="web")
            assert kinds(reader.of("web"))[0] == "machine"
    assert process_of(os.getpid())


async def test_the_snapshot_of_many_has_no_gap(spawn: Processes) -> None:
    """Machines come and go while snapshots are taken: each snapshot and what follows it give the same in the end."""
    names = [f"m{number}" for number in range(12)]
    async with await connect() as client, trio.open_nursery() as nursery:
        finished = trio.Event()

        async def read(pause: float) -> None:
            there: set[str] = set()
            await trio.sleep(pause)
            async with subscribed() as reader:
                there |= await reader.snapshot()
                while there or not finished.is_set():
                    event = await reader.next()
                    if event["event"] == "machineNew":
                        assert event["name"] not in there
                        there.add(event["name"])
                    elif event["event"] == "exited":
                        there.remove(event["name"])
                    if event["name"] == "last" and event["event"] == "exited":
                        break
                assert there == set()

        for number in range(10):
            nursery.start_soon(read, number * 0.03)
        for name in itertools.chain(names, ["last"]):
            await register(client, name, leader := spawn())
            await trio.sleep(0.3 if name == "last" else 0)
            if name == "last":
                finished.set()
            leader.kill()


def test_the_program_of_the_page_for_clients() -> None:
    page = Path("/moorage/docs/client.md").read_text()
    (program,) = re.findall(r"```python\n# events\.py\n(.*?)```", page, re.DOTALL)
    shown = run("env", f"MOORAGE_ADDRESS={SOCKET}", sys.executable, "-c", program)
    assert shown == "machine-web.scope\nweb leaderEnded\n"


# In the journal

MACHINE_START = "24d8d4452573402496068381a6312df2"
MACHINE_STOP = "58432bd3bace477cb514b56381b8a758"
"""SD_MESSAGE_MACHINE_START and SD_MESSAGE_MACHINE_STOP of sd-messages.h."""

JOURNAL = "/run/systemd/journal/socket"


def written(*matches: str) -> list[dict[str, Any]]:
    """Return entries of the journal."""
    text = run("journalctl", "--output=json", "--no-pager", "--quiet", *matches)
    return [json.loads(line) for line in text.splitlines()]


def fill_the_journal() -> list[socket.socket]:
    """Send to journald until its queue is full; returns what has to stay open until it goes on."""
    senders: list[socket.socket] = []
    while True:
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sender.setblocking(False)
        sender.connect(JOURNAL)
        senders.append(sender)
        sent = 0
        try:
            while True:
                sender.send(b"MESSAGE=filler\n")
                sent += 1
        except BlockingIOError:
            if not sent:
                return senders


@pytest.mark.system_instance("only root may have journald not listen")
async def test_the_journal_has_one_entry_for_each_start_and_each_end(spawn: Processes, mortal: None) -> None:
    """Also where moored is killed in between; and while journald does not listen, nobody waits for it."""
    async with await connect() as client:
        machine = (await register(client, "web", leader := spawn()))["machine"]
    about = ("MACHINE=web", f"INVOCATION_ID={machine['invocationId']}")
    await until(lambda: written(*about, f"MESSAGE_ID={MACHINE_START}"))  # it is on its way for some ms
    signal_moored(signal.SIGKILL)
    await until(lambda: "web" in run("moorctl", "list"))
    leader.kill()
    leader.wait()
    await until(lambda: written(*about, f"MESSAGE_ID={MACHINE_STOP}"))
    (start,), (stop,) = (written(*about, f"MESSAGE_ID={kind}") for kind in (MACHINE_START, MACHINE_STOP))
    for entry in (start, stop):
        assert (entry["NAME"], entry["LEADER"], entry["UNIT"]) == (
            "web",
            str(leader.pid),
            "machine-web.scope",
        )
        assert entry["_SYSTEMD_UNIT"] == "moored.service"
    assert (stop["RESULT"], int(stop["CPU_USAGE_NSEC"]) > 0) == ("success", True)
    run("systemctl", "kill", "--signal=SIGSTOP", "systemd-journald.service")
    try:
        senders = fill_the_journal()
        async with await connect() as client:
            machine = (await register(client, "late", spawn()))["machine"]
            await client.call(f"{OURS}Describe", {"name": "late"})
    finally:
        run("systemctl", "kill", "--signal=SIGCONT", "systemd-journald.service")
    late = f"INVOCATION_ID={machine['invocationId']}"
    await until(lambda: written("MACHINE=late", late, f"MESSAGE_ID={MACHINE_START}"))
    for sender in senders:
        sender.close()
