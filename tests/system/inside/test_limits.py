"""At its limits the service says so, and is itself again as soon as there is room."""

import errno
import json
import os
import socket
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hostile
import pytest
from hostile import call, dial, encode
from moored import (
    OURS,
    Processes,
    assert_nothing_left,
    connect,
    control_group,
    descriptors,
    listed,
    main_pid,
    register,
    run,
    until,
)

from moorage.wire.errors import System
from moorage.wire.server import Limits

pytestmark = pytest.mark.system_instance("it configures the unit of the host, and becomes other users")

ALICE = 1000
FEW = 64
"""File descriptors that moored gets: a few dozen more than it has with nothing to do."""

DROP_IN = Path("/run/systemd/system/moored.service.d/few.conf")
PING = encode("io.systemd.service.Ping")


@pytest.fixture
def few(moored: None) -> Generator[None]:
    """Run moored with few file descriptors; its own attempt to raise the limit cannot help it."""
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    # With CAP_SYS_ADMIN, descriptors on their way do not count (unix(7), ETOOMANYREFS): those of all processes of root
    # on this machine would, also of those beside this sandbox.
    DROP_IN.write_text(f"[Service]\nLimitNOFILE={FEW}\nCapabilityBoundingSet=CAP_SYS_ADMIN\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "moored.service")
    yield
    DROP_IN.unlink()
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "moored.service")


def pong(connected: socket.socket) -> str:
    """Return what a connection gets for a Ping: "pong", the errno of a refusal, or "closed"."""
    hostile.send(connected, PING)
    try:
        received = connected.recv(4096)
    except ConnectionResetError:
        received = b""
    if not received:
        return "closed"
    if received == b'{"parameters":{}}\0':
        return "pong"
    for number in (errno.EMFILE, errno.EUSERS, errno.EBUSY):
        if received == b'{"error":"io.systemd.System","parameters":%b}\0' % _parameters(number):
            return errno.errorcode[number]
    return repr(received)


def _parameters(number: int) -> bytes:
    name = errno.errorcode[number].encode()
    return b'{"origin":"linux","errnoName":"%b","errno":%d}' % (name, number)


async def test_at_the_limit_of_descriptors_callers_are_told_and_then_served(
    few: None, spawn: Processes
) -> None:
    leader = spawn()
    with ExitStack() as stack:
        served: list[socket.socket] = []
        others: list[str] = []
        for _ in range(FEW + 16):
            connected = stack.enter_context(dial())
            said = pong(connected)
            if said == "pong":
                served.append(connected)
            else:
                others.append(said)
        assert len(served) > FEW // 2
        assert len(others) >= 16
        assert set(others) <= {"EMFILE", "closed"}
        assert "EMFILE" in others, "they are told why"
        assert {pong(connected) for connected in served} == {"pong"}, "those that are in stay in"

        before = control_group(leader)
        message = encode(f"{OURS}Register", {"name": "web", "class": "vm", "leader": {"pid": leader.pid}})
        hostile.send(served[0], message)
        assert _error(served[0]) == {
            "error": System.error,
            "parameters": {"origin": "linux", "errnoName": "EMFILE", "errno": errno.EMFILE},
        }
        assert control_group(leader) == before
        assert pong(served[0]) == "pong"

        # Room for one: no restart, and nobody has to knock twice who comes later.
        served.pop().close()
        await until(lambda: _is_served(stack), "one more is served")

    await until(_is_served_now, "all is as before")
    async with await connect() as client:
        machine = (await register(client, "web", leader))["machine"]
        assert control_group(leader) == machine["controlGroup"]
        await client.call(f"{OURS}Stop", {"name": "web"})
    await assert_nothing_left()


def _error(connected: socket.socket) -> Any:
    return json.loads(connected.recv(4096).rstrip(b"\0"))


def _is_served(stack: ExitStack) -> bool:
    return pong(stack.enter_context(dial())) == "pong"


def _is_served_now() -> bool:
    with dial() as connected:
        return pong(connected) == "pong"


async def test_machines_up_to_the_limit_of_descriptors(few: None, spawn: Processes) -> None:
    pid = main_pid()
    async with await connect() as client:
        names: list[str] = []

        async def fill() -> None:
            while len(names) < FEW:
                await register(client, f"m{len(names)}", spawn())
                names.append(f"m{len(names)}")

        with pytest.raises(System) as full:
            await fill()
        assert full.value.errnoName == "EMFILE"
        assert len(names) > FEW // 2, "one descriptor for each machine"
        assert sorted(await listed(client)) == sorted(names), (
            "the others live, and the one too many is not there"
        )
        assert descriptors() <= FEW
        await client.call(f"{OURS}Stop", {"name": names[0]})
        leader = spawn()

        async def fits() -> bool:
            try:
                await register(client, "again", leader)
            except System:
                return False
            return True

        await until(fits, "room for one more, once the account of the first is closed")
        for name in (*names[1:], "again"):
            await client.call(f"{OURS}Stop", {"name": name})
    await assert_nothing_left()
    assert main_pid() == pid


async def test_two_hundred_connections_of_one_user(moored: None) -> None:
    most = Limits().connections_per_uid
    call("io.systemd.service.Ping")
    idle = descriptors()
    with ExitStack() as stack:
        os.seteuid(ALICE)
        try:
            hers = [stack.enter_context(dial()) for _ in range(200)]
        finally:
            os.seteuid(0)
        said = [pong(connected) for connected in hers]
        assert said[:most] == ["pong"] * most
        assert set(said[most:]) <= {"EUSERS", "closed"}
        assert "EUSERS" in said[most:], "those too many are told why"
        for _ in range(3):
            assert call("io.systemd.service.Ping") == {"parameters": {}}, "another user does not notice"
        # As soon as one of hers has gone another may come.
        hers[0].close()
        await until(_another_of_hers, "there is room for one more")
        assert {pong(connected) for connected in hers[1:most]} == {"pong"}
    await until(lambda: descriptors() <= idle, "every connection is closed")


def _another_of_hers() -> bool:
    os.seteuid(ALICE)
    try:
        connected = dial()
    finally:
        os.seteuid(0)
    with connected:
        return pong(connected) == "pong"
