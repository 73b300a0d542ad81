"""A lease lasts as long as its launcher, not as long as the service: whatever happens to that one meanwhile."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from cli_battery import RUN_SECONDS, Moorctl
from moored import (
    LOST,
    MOORCTL,
    RECORDS,
    SOCKET,
    Processes,
    connect,
    for_us,
    listed,
    lost_lease,
    main_pid,
    register,
    run,
    scopes,
    signal_moored,
    until,
)

from moorage.wire.errors import Disconnected

pytestmark = [
    pytest.mark.usefixtures("beside", "grace"),
    pytest.mark.system_instance(
        "a lease is a connection, whoever holds it; test_run and test_verdict have the rest", runs=True
    ),
]

moorctl = Moorctl(MOORCTL)
LAUNCHERS = 8
"""Of each kind: moorctl, and a program that uses the library."""

SLOW = {
    "name": "slow", "type": "notify", "execStart": ["/usr/bin/sleep", "infinity"],
    "properties": {"NotifyAccess": "all", "TimeoutStartUSec": 12_000_000},
}  # fmt: skip
"""A helper that is not ready within its 12 s: longer than the service takes for its end."""

NEVER_READS = """
import socket, sys, time
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
method = b'"org.varlink.service.GetInterfaceDescription"'
call = b'{"method":' + method + b',"parameters":{"interface":"io.moorage.Machine"}}' + bytes(1)
peer.setblocking(False)
try:
    while True:
        peer.send(call * 64)
except BlockingIOError:
    print("full", flush=True)
time.sleep(1000)
"""
"""A stranger's connection: what it asks for fills the socket, and it never reads an answer."""

Running = subprocess.Popen[str]


@pytest.fixture
def launchers(nothing_left: None) -> Generator[Callable[..., Running]]:
    """Start ``moorctl run``, and leave it running until the test ends."""
    started: list[Running] = []

    def one(name: str) -> Running:
        command = ("sh", "-c", "echo ready; exec sleep infinity")
        process = subprocess.Popen(
            [moorctl.program, *moorctl.options, "run", "--name", name, "--", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield one
    for process in started:
        process.kill()
        process.communicate(timeout=RUN_SECONDS)


@asynccontextmanager
async def holding(leaders: dict[str, subprocess.Popen[bytes]]) -> AsyncGenerator[dict[str, int]]:
    """Be a launcher that holds the leases of machines, and takes them again when its connections end.

    Yields:
        How often each lease has been taken.
    """
    taken = dict.fromkeys(leaders, 0)

    async def hold(name: str, leader: subprocess.Popen[bytes]) -> None:
        while True:
            try:
                async with await connect() as client:
                    await register(client, name, leader, lease=True)
                    taken[name] += 1
                    await client.wait_closed()
            except Disconnected:
                pass

    async with trio.open_nursery() as nursery:
        for name, leader in leaders.items():
            nursery.start_soon(hold, name, leader)
        await until(lambda: all(taken.values()), "all leases are held")
        yield taken
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def slow_register(spawn: Processes, name: str) -> AsyncGenerator[None]:
    """Have a Register under way for as long as the block lasts, or the service does not end it."""

    async def slow() -> None:
        with pytest.raises((Disconnected, trio.Cancelled)):
            async with await connect() as client:
                await register(client, name, spawn(), helpers=[SLOW], timeoutUSec=60_000_000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow)
        await until((RECORDS / f".start-{name}").exists, "it is under way")
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def stranger(_: Processes, __: str) -> AsyncGenerator[None]:
    """Have a connection of a stranger that asks and never reads."""
    with subprocess.Popen(  # noqa: ASYNC220  # nobody waits here
        [sys.executable, "-c", NEVER_READS, SOCKET], user=1000, stdout=subprocess.PIPE, text=True
    ) as peer:
        assert peer.stdout is not None
        assert await trio.to_thread.run_sync(peer.stdout.readline) == "full\n"
        yield
        peer.kill()


@pytest.mark.parametrize("under_way", [slow_register, stranger])
async def test_the_order_to_end_ends_no_lease(
    spawn: Processes, launchers: Callable[..., Running], under_way: Callable[..., Any]
) -> None:
    """An upgrade while calls are under way: their connections end later than the idle ones of the launchers."""
    theirs = [launchers(f"run{number}") for number in range(LAUNCHERS)]
    for process in theirs:
        assert process.stdout is not None
        assert await trio.to_thread.run_sync(process.stdout.readline) == "ready\n"
    leaders = {f"m{number}": spawn() for number in range(LAUNCHERS)}
    async with holding(leaders) as taken:
        async with await connect() as client:
            before = {name: machine["invocationId"] for name, machine in (await listed(client)).items()}
        assert len(before) == 2 * LAUNCHERS
        with lost_lease() as leases_lost:
            async with under_way(spawn, "slow"):
                pid = main_pid()
                await trio.run_process(for_us("systemctl", "restart", "moored.service"))
                assert main_pid() != pid
            await until(lambda: min(taken.values()) > 1, "the leases are taken again")
            await until(lambda: LOST in leases_lost(), "the grace is over")
            assert leases_lost() == {LOST}
        async with await connect() as client:
            found = await listed(client)
            assert {name: found[name]["invocationId"] for name in before} == before
        assert [process.poll() for process in (*theirs, *leaders.values())] == [None] * 2 * LAUNCHERS
        for process in theirs:
            process.kill()
    # And they end with their launchers, as ever.
    await until(lambda: not [unit for unit in scopes() if "slow" not in unit], "nobody holds them any more")


async def test_a_lease_that_ended_before_the_order_to_end_has_ended(spawn: Processes) -> None:
    """In whatever order the service learns of both: neither is forgotten."""
    leaders = [spawn() for _ in range(4)]
    async with await connect() as client:
        for number, leader in enumerate(leaders):
            await register(client, f"m{number}", leader, lease=True)
        pid = main_pid()
        os.kill(pid, signal.SIGSTOP)
    run("systemctl", "restart", "--no-block", "moored.service")  # which lets it go on (SendSIGCONT=)
    for leader in leaders:
        assert await trio.to_thread.run_sync(leader.wait, abandon_on_cancel=True) == -signal.SIGTERM
    await until(lambda: main_pid() not in {0, pid}, "the next one is there")


async def test_launchers_are_given_time_in_which_they_are_listened_to(
    spawn: Processes, grace: float
) -> None:
    """A service that stands still as soon as it has been started again hears nobody: that is no time to come back."""
    leaders = {f"m{number}": spawn() for number in range(LAUNCHERS)}
    clients = [await connect() for _ in leaders]
    try:
        for client, (name, leader) in zip(clients, leaders.items(), strict=True):
            await register(client, name, leader, lease=True)
        with lost_lease() as leases_lost:
            run("systemctl", "restart", "moored.service")
            signal_moored(signal.SIGSTOP)
            for client in clients:
                client.close()
            clients = [await connect() for _ in leaders]
            async with trio.open_nursery() as nursery:
                for client, (name, leader) in zip(clients, leaders.items(), strict=True):
                    nursery.start_soon(partial(register, client, name, leader, lease=True))
                await trio.sleep(grace + 1.5)  # to stand still for so long is what it is about
                signal_moored(signal.SIGCONT)
            await until(lambda: LOST in leases_lost(), "the grace is over")
            assert leases_lost() == {LOST}
        assert [leader.poll() for leader in leaders.values()] == [None] * LAUNCHERS
    finally:
        for client in clients:
            client.close()
