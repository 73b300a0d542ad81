"""Machines below a slice that is frozen: nothing in them reacts, and the service manager stops none of them.

A call that ends a machine says so at once, and which slice it is; what the service does of its own accord goes on.
"""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from moored import (
    OURS,
    UNTIL_SECONDS,
    Processes,
    connect,
    describe,
    freeze,
    kill,
    listed,
    register,
    run,
    state,
    thaw,
    verdict,
)

from moorage.errors import Busy
from moorage.wire.client import Client

pytestmark = pytest.mark.system_instance(
    "the user's manager does not freeze the slice of its machines either"
)

SERVICE = "machine-web-fs.service"
HELPER = {"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"]}
LONG_USEC = 300_000_000
"""So long that no test waits for it."""

DEAF = ("sh", "-c", f"trap '' {signal.SIGRTMIN + 4}; exec sleep infinity")
"""A container that does not power off when it is asked to."""

HELD = "vms.slice is frozen, and the machine with it"


@pytest.fixture(autouse=True)
def _clean(everything_gone: None) -> None:
    """Every test here leaves nothing."""


@contextmanager
def slice_frozen() -> Generator[None]:
    freeze("vms.slice")
    try:
        yield
    finally:
        thaw("vms.slice")


async def phase(client: Client) -> set[str]:
    """Its phase in all replies."""
    return {(await describe(client, "web"))["phase"], (await listed(client))["web"]["phase"]}


async def stays_stopping(client: Client) -> None:
    """It comes to be stopping, and is nothing else between two attempts."""
    with trio.fail_after(UNTIL_SECONDS):
        while True:
            if await phase(client) == {"stopping"}:
                break
            await trio.sleep(0.01)
    for _ in range(20):
        assert await phase(client) == {"stopping"}
        await trio.sleep(0.05)


@pytest.mark.parametrize("waits", [False, True])
async def test_a_stop_that_gives_time_first(spawn: Processes, waits: bool) -> None:
    """It is refused as any other is, tells nobody, and leaves nothing behind that goes on."""
    async with await connect() as client, await connect() as launcher:
        leader = spawn(DEAF)
        fields = {"slice": "vms-t.slice", "class": "container", "helpers": [HELPER]}
        await register(client, "web", leader, **fields)
        with slice_frozen():
            if waits:
                replies = launcher.call_more(f"{OURS}AwaitStop", {"name": "web", "graceUSec": LONG_USEC})
                assert await anext(replies) == {}
            orders: list[tuple[str, dict[str, Any]]] = [
                ("Stop", {}),
                ("Stop", {"powerOff": True}),
                ("Stop", {"powerOff": True, "insistAfterUSec": LONG_USEC}),
                ("PowerOff", {}),
                ("Reboot", {}),
            ]
            for method, parameters in orders:
                with pytest.raises(Busy) as caught:
                    await client.call(f"{OURS}{method}", {"name": "web", **parameters})
                assert caught.value.operation == HELD
                assert await phase(client) == {"running"}
            stop = client.call_more(f"{OURS}Stop", {"name": "web", "powerOff": True})
            assert (await anext(stop))["machine"]["phase"] == "stopping"
            with pytest.raises(Busy) as caught:
                await anext(stop)
            assert caught.value.operation == HELD
            assert await phase(client) == {"running"}
        kill(leader)
        assert (await verdict(client, "web"))["cause"] == "leaderEnded"


async def test_a_slice_that_is_frozen_while_a_machine_has_time(spawn: Processes) -> None:
    """Its callers are told when the time is over, and it is stopped as soon as that is possible."""
    async with await connect() as client, await connect() as other:
        leader = spawn(DEAF)
        await register(client, "web", leader, slice="vms-t.slice", **{"class": "container"})
        asked = {"name": "web", "powerOff": True, "insistAfterUSec": LONG_USEC}
        stop = client.call_more(f"{OURS}Stop", asked)
        assert (await anext(stop))["machine"]["phase"] == "stopping"
        with slice_frozen():
            for parameters in ({"insistAfterUSec": 0}, {}):
                with pytest.raises(Busy) as caught:
                    await other.call(f"{OURS}Stop", {"name": "web", **parameters})
                assert caught.value.operation == HELD
            with pytest.raises(Busy) as caught:
                await anext(stop)
            assert caught.value.operation == HELD
            await stays_stopping(other)
        assert (await verdict(client, "web"))["cause"] == "stopped"
        assert leader.wait(UNTIL_SECONDS) == -signal.SIGTERM


async def test_a_lease_that_ends(spawn: Processes) -> None:
    async with await connect() as client:
        async with await connect() as launcher:
            await register(launcher, "web", spawn(), slice="vms-t.slice", lease=True)
            freeze("vms.slice")
        try:
            await stays_stopping(client)
            with pytest.raises(Busy):
                await client.call(f"{OURS}Stop", {"name": "web"})
            assert await phase(client) == {"stopping"}
        finally:
            thaw("vms.slice")
        assert (await verdict(client, "web"))["cause"] == "leaseEnded"


async def test_helpers(spawn: Processes) -> None:
    """None comes and none goes, and the machine depends on them as before."""
    vital = {**HELPER, "onFailure": "stopMachine"}
    added = {"name": "web", "helpers": [{**HELPER, "name": "more"}]}
    orders = {"RemoveHelper": {"name": "web", "helper": "fs"}, "AddHelpers": added}
    async with await connect() as client:
        await register(client, "web", spawn(), slice="vms-t.slice", helpers=[vital])
        with slice_frozen():
            for method, parameters in orders.items():
                with pytest.raises(Busy) as caught:
                    await client.call(f"{OURS}{method}", parameters)
                assert caught.value.operation == HELD
            assert state(SERVICE) == "active"
        await client.call(f"{OURS}AddHelpers", added)
        await client.call(f"{OURS}RemoveHelper", {"name": "web", "helper": "more"})
        run("systemctl", "kill", "--signal=KILL", SERVICE)
        assert (await verdict(client, "web"))["cause"] == "helperEnded"
