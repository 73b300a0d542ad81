"""Limits hold, whoever runs into one is told so, and afterwards everything is as before."""

import errno
import resource
import select
import socket
import subprocess
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack

import hostile
import pytest
import trio
from hostile import as_user, call, connect_as, dial, encode
from moored import (
    OURS,
    THEIRS,
    UNTIL_SECONDS,
    Processes,
    connect,
    describe,
    descriptors,
    listed,
    main_pid,
    register,
    run,
    until,
    verdict,
)

from moorage.errors import Busy
from moorage.machines.machine import UNDER_WAY_MAX
from moorage.wire.client import Client
from moorage.wire.connection import CALL_MAX
from moorage.wire.conversation import UNFINISHED_SECONDS
from moorage.wire.server import Limits

pytestmark = pytest.mark.system_instance(
    "what callers may cost is decided before anything is done for them", runs=True
)

ROOT = pytest.mark.system_instance("only root may become another user")

LIMITS = Limits()

PING = encode("io.systemd.service.Ping")
PONG = b'{"parameters":{}}\0'

UIDS = range(2000, 2000 + LIMITS.connections // LIMITS.connections_per_uid)
"""As many users as it takes to have all connections."""


@pytest.fixture(autouse=True)
def clean(nothing_left: None) -> None:
    """Every test here must leave things as they were."""


@pytest.fixture(autouse=True)
def many_files() -> Generator[None]:
    """This process holds all of these connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def served(connected: socket.socket) -> bool:
    """Whether a call on this connection is answered; False if it was refused with an error."""
    hostile.send(connected, PING)
    reply = connected.recv(4096)
    assert reply.endswith(b"\0")
    return reply == PONG


def refusal(number: int) -> bytes:
    """The answer to whoever has too much."""
    return b'{"error":"io.systemd.System","parameters":{"origin":"linux","errnoName":"%b","errno":%d}}\0' % (
        errno.errorcode[number].encode(),
        number,
    )


def assert_served_soon(uid: int) -> None:
    """Wait until the service has noticed that others are gone."""
    end = time.monotonic() + UNTIL_SECONDS
    while True:
        with connect_as(uid) as connected:
            if served(connected):
                return
        assert time.monotonic() < end


@ROOT
def test_connections_of_one_user() -> None:
    call("io.systemd.service.Ping")
    before = descriptors()
    with ExitStack() as stack:
        for _ in range(LIMITS.connections_per_uid):
            assert served(stack.enter_context(connect_as(UIDS[0])))
        with connect_as(UIDS[0]) as refused:
            hostile.send(refused, PING)
            assert hostile.receive(refused) == refusal(errno.EUSERS)
        # Nobody else has anything to do with it.
        with connect_as(UIDS[1]) as other, dial() as root:
            assert served(other)
            assert served(root)
    assert_served_soon(UIDS[0])
    end = time.monotonic() + UNTIL_SECONDS
    while descriptors() > before + 1:  # that one is served says nothing of the others
        assert time.monotonic() < end
        call("io.systemd.service.Ping")


@ROOT
def test_connections_in_all() -> None:
    call("io.systemd.service.Ping")
    pid = main_pid()
    with ExitStack() as stack:
        crowds: dict[int, list[socket.socket]] = {}
        for uid in UIDS:
            with as_user(uid):
                crowds[uid] = [stack.enter_context(dial()) for _ in range(LIMITS.connections_per_uid)]
            assert all(served(each) for each in crowds[uid])
        # Root's place is its own; another user gets that of one who has most, and does nothing with it.
        assert served(stack.enter_context(dial()))
        assert all(served(each) for each in (crowds[uid][0] for uid in UIDS))
        for number in range(1, 4):
            assert served(stack.enter_context(connect_as(UIDS[-1] + 1)))
            gone = [uid for uid in UIDS if ended(crowds[uid][0])]
            assert len(gone) == number
        assert all(served(each) for uid in UIDS for each in crowds[uid][1:])
    assert call("io.systemd.service.Ping") == {"parameters": {}}
    assert main_pid() == pid


def ended(connected: socket.socket) -> bool:
    """Whether the service has closed a connection on which nothing is to come."""
    poller = select.poll()
    poller.register(connected, select.POLLIN)
    return bool(poller.poll(0))


def test_connections_of_root() -> None:
    with ExitStack() as stack:
        for _ in range(8 * LIMITS.connections_per_uid):
            assert served(stack.enter_context(dial()))


@ROOT
def test_a_call_that_is_never_finished() -> None:
    call("io.systemd.service.Ping")
    with connect_as(UIDS[0]) as connected, connect_as(UIDS[0]) as other, dial() as root:
        for each in (connected, other, root):
            hostile.send(each, PING[:10])
        connected.settimeout(UNFINISHED_SECONDS + UNTIL_SECONDS)
        hostile.send(other, PING[10:])
        assert other.recv(4096) == PONG
        assert hostile.receive(connected) == b""
        assert served(other)
        hostile.send(root, PING[10:])
        assert root.recv(4096) == PONG


async def test_leases_of_one_machine(spawn: Processes) -> None:
    leader = spawn()
    async with await connect() as holder:
        await register(holder, "web", leader, lease=True)
        # The same call again is answered alike; but each would hold the machine until the connection ends.
        for _ in range(UNDER_WAY_MAX - 1):
            await register(holder, "web", leader, lease=True)
        with pytest.raises(Busy):
            await register(holder, "web", leader, lease=True)
        assert list(await listed(holder)) == ["web"]
    async with await connect() as client:
        await verdict(client, "web")
        again = spawn()
        await register(client, "web", again, lease=True)
        await client.call(f"{OURS}Stop", {"name": "web"})


TURNS = 5
"""Calls that another caller gets answered until one that has been sent is sure to wait for what it waits for."""

STUBBORN = ("sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done")


async def test_stops_that_are_left_behind(spawn: Processes) -> None:
    stubborn = spawn(STUBBORN, stdout=subprocess.PIPE)
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    async with await connect() as client:
        await register(client, "web", stubborn)
        # With 'more' each of them is two: one that says that it has begun, and one that waits for the end.
        for _ in range(UNDER_WAY_MAX // 2):
            with dial() as leaving:
                hostile.send(leaving, encode(f"{OURS}Stop", {"name": "web"}, more=True))
                assert b'"continues":true' in leaving.recv(65536)
        with pytest.raises(Busy):
            await client.call(f"{OURS}Stop", {"name": "web"})
        reply = await trio.to_thread.run_sync(call, f"{THEIRS}Terminate", {"name": "web"})
        assert reply is not None
        assert reply["parameters"]["errno"] == errno.EBUSY
        run("systemctl", "kill", "--signal=KILL", "machine-web.scope")
        await verdict(client, "web")
        await register(client, "web", spawn())
        await client.call(f"{OURS}Stop", {"name": "web"})


async def test_removals_that_are_left_behind(spawn: Processes) -> None:
    stays = {
        "name": "stays",
        "execStart": ["/bin/sh", "-c", STUBBORN[2]],
        "properties": {"TimeoutStopUSec": 90_000_000},
    }
    async with await connect() as client:
        await register(client, "web", spawn(), helpers=[stays])
        with ExitStack() as stack:
            for _ in range(UNDER_WAY_MAX):
                waiting = stack.enter_context(dial())
                hostile.send(waiting, encode(f"{OURS}RemoveHelper", {"name": "web", "helper": "stays"}))
                for _ in range(TURNS):
                    await client.call("io.systemd.service.Ping")
            with pytest.raises(Busy):
                await client.call(f"{OURS}RemoveHelper", {"name": "web", "helper": "stays"})
        # Now their callers are gone, and they are still there.
        for _ in range(TURNS):
            await client.call("io.systemd.service.Ping")
        with pytest.raises(Busy):
            await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [{**stays, "name": "more"}]})
        run("systemctl", "kill", "--signal=KILL", "machine-web-stays.service")
        await until(lambda: without_helpers(client), "it is removed")
        await client.call(f"{OURS}Stop", {"name": "web"})


async def without_helpers(client: Client) -> bool:
    """Whether the machine has no helper any more."""
    return (await describe(client, "web"))["helpers"] == []


@ROOT
def test_a_user_sends_shorter_calls_than_root() -> None:
    with connect_as(UIDS[0]) as connected:
        hostile.send(connected, PING.rjust(CALL_MAX))
        assert connected.recv(len(PONG) + 1) == PONG
        hostile.send(connected, PING.rjust(CALL_MAX + 1))
        assert hostile.receive(connected) == b""


CROWD = 4
LONG = encode(f"{OURS}Register", {"name": "x" * (CALL_MAX - 200), "class": "vm"})
"""As long a call as there may be; anybody else gets some answers while it is read."""


@ROOT
def test_who_sends_long_calls_gets_answers_and_others_do_meanwhile() -> None:
    with ExitStack() as stack:
        crowd = [stack.enter_context(connect_as(UIDS[0])) for _ in range(CROWD)]
        other = stack.enter_context(connect_as(UIDS[1]))
        replies: list[bytes] = []

        def ask(connected: socket.socket) -> None:
            hostile.send(connected, LONG)
            replies.append(connected.recv(65536))

        threads = [threading.Thread(target=ask, args=(each,)) for each in crowd]
        for thread in threads:
            thread.start()
        answers = 0
        while len(replies) < CROWD:
            answers += served(other)
        for thread in threads:
            thread.join()
        assert answers >= CROWD
        for reply in replies:
            assert b"InvalidParameter" in reply
