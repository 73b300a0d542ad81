"""Beside machined: what is registered here is seen by whoever asks machined, and by nobody twice.

Of machined 257 and 262 alike, but for the socket that starts the latter.
"""

import json
import signal
import subprocess
from collections.abc import Generator
from typing import Any

import pytest
from hostile import ask, call, encode
from moored import (
    ALONE,
    OURS,
    THEIRS,
    Processes,
    connect,
    describe,
    process_of,
    register,
    run,
    show,
    signal_moored,
    until,
    verdict,
)

from moorage.wire.client import Client

MACHINED = "/run/systemd/machine/io.systemd.Machine"
SERVICE = "systemd-machined.service"
UNITS = (SERVICE, "systemd-machined.socket")


@pytest.fixture(scope="module", autouse=True)
def beside(moored: None) -> None:
    """Have moored as it is installed."""
    ALONE.unlink()
    run("systemctl", "stop", "moored.service")


@pytest.fixture(autouse=True)
def machined(moored: None) -> Generator[None]:
    run("systemctl", "start", SERVICE)
    yield
    subprocess.run(["systemctl", "kill", "-s", "CONT", SERVICE], check=False, capture_output=True)
    run("systemctl", "unmask", "--runtime", *UNITS)
    subprocess.run(["systemctl", "reset-failed", *UNITS], check=False, capture_output=True)
    run("systemctl", "start", SERVICE)


def there() -> dict[str, dict[str, Any]]:
    """The machines that machined has, by name."""
    replies = [
        reply["parameters"] for reply in ask(encode(f"{THEIRS}List", {}, more=True), path=MACHINED) if reply
    ]
    return {reply["name"]: reply for reply in replies if reply["name"] != ".host"}


async def published(client: Client, name: str = "web") -> bool:
    return (await describe(client, name))["published"]


def kinds(invocation_id: str) -> list[str]:
    """What has happened to a machine."""
    events = [json.loads(line) for line in run("moorctl", "events", "--json").splitlines()]
    return [event["event"] for event in events if event.get("invocationId") == invocation_id]


async def test_machinectl_sees_a_machine_for_as_long_as_it_is_here(spawn: Processes) -> None:
    leader = spawn()
    async with await connect() as client:
        await register(client, "web", leader, service="tests", **{"class": "container"})
        await until(lambda: published(client))
        listed = json.loads(run("machinectl", "list", "--output=json"))
        assert [(each["machine"], each["class"], each["service"]) for each in listed] == [
            ("web", "container", "tests")
        ]
        assert run("machinectl", "show", "web", "-P", "Leader").strip() == str(leader.pid)
        assert run("machinectl", "show", "web", "-P", "Unit").strip() == "machine-web.scope"
        assert there()["web"]["leader"] == process_of(leader)
        assert (
            run("ps", "-o", "machine=", str(leader.pid)).strip() == "web"
        )  # libsystemd, by machined's files
        run("machinectl", "terminate", "web")
        assert (await verdict(client, "web"))["cause"] == "unitStopped"
        await until(lambda: not there())


async def test_it_is_taken_back_when_it_is_forgotten(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
        await until(lambda: published(client))
        await client.call(f"{OURS}Forget", {"name": "web"})
        await until(lambda: not there())
    run("systemctl", "stop", "machine-web.scope")


async def test_what_machined_could_do_harm_with_it_does_not_get(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web_1", spawn())  # no host name
        await register(client, "web", spawn())
        await until(lambda: published(client))
        assert not await published(client, "web_1")
        for name in ("web", "web_1"):
            await client.call(f"{OURS}Stop", {"name": name})


async def test_neither_restart_makes_it_twice(spawn: Processes) -> None:
    async with await connect() as client:
        told = await register(client, "web", spawn())
        await until(lambda: published(client))
    before = there()
    signal_moored(signal.SIGKILL)
    async with await connect() as client:
        await until(lambda: published(client))
        assert there() == before
        run("systemctl", "restart", SERVICE)
        assert there().keys() == before.keys()
        assert await published(client)
        await client.call(f"{OURS}Stop", {"name": "web"})
        await verdict(client, "web")
    found = kinds(told["machine"]["invocationId"])
    assert found.count("published") == 1
    assert "unpublished" not in found


async def test_a_machined_that_is_masked_or_hangs_delays_nobody(spawn: Processes) -> None:
    run("systemctl", "mask", "--runtime", "--now", *UNITS)
    async with await connect() as client:
        await register(client, "web", spawn())
        assert not await published(client)
        run("systemctl", "unmask", "--runtime", *UNITS)
        run("systemctl", "start", SERVICE)
        await until(lambda: published(client))
        run("systemctl", "kill", "-s", "STOP", SERVICE)
        await register(client, "two", spawn())
        await client.call(f"{OURS}Stop", {"name": "web"})
        run("systemctl", "kill", "-s", "CONT", SERVICE)
        await until(lambda: published(client, "two"))
        await until(lambda: there().keys() == {"two"})
        await client.call(f"{OURS}Stop", {"name": "two"})


async def test_of_two_with_one_name_each_stays_where_it_is(spawn: Processes) -> None:
    run("systemd-run", "--quiet", "--unit=other", "sleep", "infinity")
    theirs, ours = int(show("other.service", "MainPID")["MainPID"]), spawn()
    there_first = {"name": "web", "class": "container", "leader": theirs}
    assert call(f"{THEIRS}Register", there_first, path=MACHINED) in ({}, {"parameters": {}})
    async with await connect() as client:
        await register(client, "web", ours)
        await until(lambda: there()["web"]["leader"] == process_of(theirs))
        assert not await published(client)
        run("systemctl", "stop", "other.service")
        await until(lambda: published(client))
        assert there()["web"]["leader"] == process_of(ours)
        await client.call(f"{OURS}Stop", {"name": "web"})
