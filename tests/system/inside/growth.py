"""What the service has after many machines and callers is what it had after a few.

tests/system/test_growth.py runs this. With more cycles it is run by hand, in a sandbox, with MOORAGE_CYCLES=100000.
"""

import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Generator
from dataclasses import astuple, dataclass
from pathlib import Path

import hostile
import pytest
import trio
from hostile import dial, encode
from moored import (
    DROP_IN,
    OURS,
    connect,
    describe,
    descriptors,
    main_pid,
    nothing_listed,
    register,
    run,
    scopes,
    until,
)

from moorage.wire.client import Client

FEW = 100
CYCLES = int(os.environ.get("MOORAGE_CYCLES", "10000"))
"""Register and Stop."""
CONNECTIONS = 1000
LEASES = 200
HELPED = 48

WORKERS = 16

BLOCKS_MAX = 8000
"""Growth of Python's own blocks of memory (sys.getallocatedblocks()), after a full collection. Caches of fixed size
fill up: for each of the names used here its last verdict, the digests of its call, and the last states of its helpers,
some hundred blocks each; it does not go on with further cycles. A leak of a single object for each cycle of the first
kind would be larger."""

PSS_KIB_MAX = 8192
"""Growth of memory that the allocator keeps: as much as was used at once at the busiest moment, of which each of the
workers may have half a MiB under way, with a reader of the journal. A leak of 1 KiB for each cycle would be larger."""

SECONDS = 800.0
"""For all of it; a loaded machine is slow."""

EVENTS = 64
"""Events kept here: a log that is full before anything is counted, as the usual one is after some 16,000 machines."""

CONFIGURATION = Path("/etc/moorage/moored.conf")
COUNTED = Path(__file__).with_name("counted_moored.py")
COUNTS = Path("/run/moorage/counts")


@dataclass(frozen=True)
class Counts:
    """What must be the same."""

    descriptors: int
    watched: int
    watches: int
    tasks: int


def infos(line: str) -> int:
    """Count lines of /proc/PID/fdinfo that start so (proc_pid_fdinfo(5))."""
    number = 0
    for path in Path(f"/proc/{main_pid()}/fdinfo").iterdir():
        try:
            number += sum(each.startswith(line) for each in path.read_text().splitlines())
        except FileNotFoundError:
            continue
    return number


def forget_counts() -> None:
    """Remove what was written down before."""
    COUNTS.unlink(missing_ok=True)


def counts() -> dict[str, int] | None:
    """What was written down; None where it has not been yet."""
    return json.loads(COUNTS.read_bytes()) if COUNTS.exists() else None


async def asked() -> dict[str, int]:
    """What only the service itself knows."""
    forget_counts()
    os.kill(main_pid(), signal.SIGUSR1)
    found = await until(counts, "it has counted")
    assert found is not None
    return found


async def counted() -> Counts:
    """Count now."""
    tasks = (await asked())["tasks"]
    return Counts(descriptors(), infos("tfd:"), infos("inotify wd:"), tasks)


async def settled() -> Counts | None:
    """Count twice; None where that is not the same."""
    once = await counted()
    return once if await counted() == once else None


def pss() -> int:
    """Memory of the service, KiB (proc_pid_smaps(5))."""
    for line in Path(f"/proc/{main_pid()}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError("no Pss")


@pytest.fixture
def counting(moored: None) -> Generator[None]:
    """Run it so that it can be asked."""
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text(
        f"[Service]\nExecStart=\nExecStart={sys.executable} {COUNTED} --idle-timeout=0\nWatchdogSec=0\n"
    )
    CONFIGURATION.parent.mkdir(exist_ok=True)
    CONFIGURATION.write_text(f"eventsMax = {EVENTS}\npublish = false\nadopt = false\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "moored.service")
    yield
    DROP_IN.unlink()
    CONFIGURATION.unlink()
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "moored.service")


def leader() -> int:
    """Start a process."""
    return os.posix_spawn("/usr/bin/sleep", ["sleep", "infinity"], os.environ)


async def bury(pid: int) -> None:
    """Bury a process that is about to end."""
    await trio.to_thread.run_sync(os.waitpid, pid, 0)


async def share(number: int, cycle: Callable[[Client, str], Awaitable[None]]) -> None:
    """Do something so many times, from some connections, each with a machine's name of its own."""
    left = number

    async def work(worker: int) -> None:
        nonlocal left
        async with await connect() as client:
            while left > 0:
                left -= 1
                await cycle(client, f"cycle-{worker}")

    async with trio.open_nursery() as nursery:
        for worker in range(WORKERS):
            nursery.start_soon(work, worker)


async def register_and_stop(client: Client, name: str) -> None:
    pid = leader()
    await register(client, name, pid)
    await client.call(f"{OURS}Stop", {"name": name})
    await bury(pid)


async def hang_up(client: Client, name: str) -> None:
    """Send a part of a call, or all of it, and leave."""
    pid = leader()
    message = encode(f"{OURS}Register", {"name": name, "class": "vm", "leader": {"pid": pid}})
    for length in (0, 1, len(message) // 2, len(message) - 1, len(message)):
        with dial() as leaving:
            hostile.send(leaving, message[:length])
    for method in ("Describe", "Stop"):
        with dial() as leaving:
            hostile.send(leaving, encode(f"{OURS}{method}", {"name": "cycle-0"}))
    # Dropped, or completed and gone with its leader.
    os.kill(pid, signal.SIGKILL)
    await bury(pid)
    await client.call("io.systemd.service.Ping")


CALLS_OF_HANG_UP = 7


async def lease(client: Client, name: str) -> None:
    pid = leader()
    async with await connect() as holder:
        await register(holder, name, pid, lease=True)
    await bury(pid)
    await until(lambda: gone(client, name), "it is gone with its lease")


async def gone(client: Client, name: str) -> bool:
    """Whether a machine has ended."""
    return "verdict" in await describe(client, name)


HELPER = {
    "name": "helper",
    "execStart": ["/usr/bin/sleep", "infinity"],
    "sockets": [{"name": "socket"}],
    # What costs the manager most of its time is nothing to the service.
    "properties": {"DynamicUser": False, "PrivateTmp": False, "PrivateNetwork": False},
}


async def with_helpers(client: Client, name: str) -> None:
    pid = leader()
    await register(client, name, pid, helpers=[HELPER])
    await client.call(
        f"{OURS}AddHelpers", {"name": name, "helpers": [{**HELPER, "name": "more", "sockets": []}]}
    )
    await client.call(f"{OURS}RemoveHelper", {"name": name, "helper": "more"})
    await client.call(f"{OURS}Stop", {"name": name})
    await bury(pid)


async def some_of_all() -> None:
    """Do everything a few times, so that everything is there that stays."""
    await share(FEW, register_and_stop)
    await share(WORKERS, hang_up)
    await share(WORKERS, lease)
    await share(4 * WORKERS, with_helpers)


async def at_rest() -> None:
    """Wait until nothing is left of any machine."""
    async with await connect() as client:
        await until(lambda: nothing_listed(client), "no machine is listed")
    await until(lambda: not scopes(), "no scope is loaded")


async def grown() -> None:
    await some_of_all()
    await at_rest()
    before = await until(settled, "it has come to rest")
    assert before is not None
    blocks, memory = (await asked())["blocks"], pss()

    found = before

    async def no_more() -> bool:
        # It may be less: a task that was about to end when it seemed to be at rest.
        nonlocal found
        found = await counted()
        return all(one <= other for one, other in zip(astuple(found), astuple(before), strict=True))

    for number, cycle in (
        (CYCLES, register_and_stop),
        (CONNECTIONS // CALLS_OF_HANG_UP + 1, hang_up),
        (LEASES, lease),
        (HELPED, with_helpers),
    ):
        await share(number, cycle)
        await at_rest()
        try:
            await until(no_more)
        except AssertionError:
            raise AssertionError(f"{found} instead of {before} after {cycle.__name__}") from None
        more = (await asked())["blocks"] - blocks
        assert more <= BLOCKS_MAX, cycle.__name__
        print(f"{cycle.__name__}: {number}, blocks {more:+}, PSS {pss() - memory:+} KiB, {before}")
    assert pss() - memory <= PSS_KIB_MAX


def test_nothing_grows(counting: None) -> None:
    # Longer than any other test: the deadline of those is not for this one.
    async def bounded() -> None:
        with trio.fail_after(SECONDS):
            await grown()

    trio.run(bounded)
