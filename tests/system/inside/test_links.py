"""The same short life of machines over each link to the service manager."""

from collections.abc import Generator

import pytest
import trio
from moored import (
    OURS,
    Processes,
    configure,
    connect,
    control_group,
    controlled,
    descriptors,
    freeze,
    kill,
    listed,
    register,
    run,
    show,
    until,
    verdict,
)

from moorage.errors import (
    InvalidProperty,
    NoSuchMachine,
    NoSuchProperty,
    Timeout,
    UnitNameTaken,
)
from moorage.wire.client import Client

pytestmark = pytest.mark.system_instance(
    "the bus of a user goes with the manager of that user; test_pid1_user has both links"
)


@pytest.fixture(params=["private", "bus"])
def link(request: pytest.FixtureRequest) -> Generator[str]:
    """A service that has this link and no other."""
    configure(f"--link={request.param}")
    run("systemctl", "restart", "moored.service")
    yield request.param
    configure()
    run("systemctl", "stop", "moored.service")


async def battery(client: Client, spawn: Processes) -> None:
    """Register, look, kill, stop, describe, and what goes wrong."""
    leader = spawn()
    machine = (await register(client, "web", leader, properties={"TimeoutStopUSec": 5_000_000}))["machine"]
    assert control_group(leader) == machine["controlGroup"]
    shown = show(machine["unit"], "ActiveState", "InvocationID", "TimeoutStopUSec")
    assert shown == {
        "ActiveState": "active",
        "InvocationID": machine["invocationId"],
        "TimeoutStopUSec": "5s",
    }
    reply = await client.call(f"{OURS}Describe", {"name": "web"})
    assert reply["machine"] == machine
    assert reply["limits"]["TimeoutStopUSec"] == 5_000_000
    await client.call(f"{OURS}Kill", {"name": "web", "signal": 9})
    assert leader.wait() == -9
    assert (await verdict(client, "web"))["result"] == "success"
    leader = spawn()
    await register(client, "web", leader, **{"class": "container"})
    stopped = await client.call(f"{OURS}Stop", {"name": "web"})
    assert stopped["machine"]["verdict"]["result"] == "success"
    leader.wait()
    await register(client, "web", spawn(), properties={"RuntimeMaxUSec": 50_000})
    assert (await verdict(client, "web"))["result"] == "timeout"
    await until(lambda: show("machine-web.scope", "LoadState") == {"LoadState": "not-found"})
    with pytest.raises(NoSuchProperty):
        await register(client, "web", spawn(), properties={"NoSuch": 1})
    with pytest.raises(InvalidProperty, match="KillMode"):
        await register(client, "web", spawn(), properties={"KillMode": "sometimes"})
    other = spawn(
        ("systemd-run", "--scope", "--quiet", "--unit=machine-web.scope", "--", "sleep", "infinity")
    )
    await until(lambda: "machine-web.scope" in control_group(other))
    with pytest.raises(UnitNameTaken):
        await register(client, "web", spawn())
    kill(other)
    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(register, client, f"m{number}", spawn())
    assert len(await listed(client)) == 30
    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(client.call, f"{OURS}Stop", {"name": f"m{number}"})
    with pytest.raises(NoSuchMachine):
        await client.call(f"{OURS}Stop", {"name": "m0"})
    assert await listed(client) == {}


def the_manager_has_its_name() -> bool:
    bus = ("busctl", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus")
    return run(*bus, "NameHasOwner", "s", "org.freedesktop.systemd1").split() == ["b", "true"]


async def test_a_life_over_each_link(link: str, spawn: Processes) -> None:
    async with await connect() as client:
        await battery(client, spawn)


async def test_a_frozen_machine_stops_over_each_link(link: str, spawn: Processes) -> None:
    async with await connect() as client:
        machine = (await register(client, "web", spawn()))["machine"]
        freeze(machine["unit"])
        await client.call(f"{OURS}Stop", {"name": "web"})
        assert await listed(client) == {}


async def test_many_leaders_die_over_each_link(link: str, spawn: Processes) -> None:
    async with await connect() as client:
        leaders = [spawn() for _ in range(100)]
        async with trio.open_nursery() as nursery:
            for number, leader in enumerate(leaders):
                nursery.start_soon(register, client, f"m{number}", leader)
        kill(*leaders)

        async def nobody() -> bool:
            return await listed(client) == {}

        await until(nobody)


async def test_the_link_survives_what_the_manager_does_to_itself(link: str, spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        await register(client, "web", leader)
        await controlled("web")
        before = descriptors()
        for verb in ("daemon-reload", "daemon-reexec"):
            run("systemctl", verb)
            assert list(await listed(client)) == ["web"]
            await register(client, f"after-{verb}", spawn())
            await client.call(f"{OURS}Stop", {"name": f"after-{verb}"})
        await until(lambda: descriptors() <= before)
        kill(leader)
        await verdict(client, "web")


async def test_the_private_socket_is_not_touched_by_the_end_of_the_broker(spawn: Processes) -> None:
    """With the bus link it is: what was there stays, and calls are answered as soon as there is a broker again."""
    broker = show("dbus.service", "Id")["Id"]
    for kind in ("private", "bus"):
        configure(f"--link={kind}")
        run("systemctl", "restart", "moored.service")
        async with await connect() as client:
            leader, second = spawn(), spawn()
            machine = (await register(client, "web", leader))["machine"]
            second_machine = (await register(client, "two", second))["machine"]
            run("systemctl", "kill", "--signal=SIGKILL", broker)
            assert (await listed(client)) == {"web": machine, "two": second_machine}
            # Through its own socket the kernel tells what ends, whoever else is there.
            kill(leader)

            async def gone(c: Client = client) -> bool:
                return list(await listed(c)) == ["two"]

            await until(gone)
            run("systemctl", "start", broker)
            if kind == "bus":
                await until(the_manager_has_its_name, "the service manager has joined the bus again")
            assert (await verdict(client, "web"))["result"] == "success"
            third = spawn()
            assert (await register(client, "web", third))["machine"]["controlGroup"] == control_group(third)
            for name in ("web", "two"):
                await client.call(f"{OURS}Stop", {"name": name})
        configure()
    run("systemctl", "restart", "moored.service")


async def test_without_a_way_to_the_manager_callers_are_told(spawn: Processes) -> None:
    configure("--link=bus")
    run("systemctl", "restart", "moored.service")
    async with await connect() as client:
        leader, second = spawn(), spawn()
        before = control_group(second)
        await register(client, "web", leader)
        run("systemctl", "stop", "dbus.service", "dbus.socket")
        try:
            with pytest.raises(Timeout):
                await register(client, "two", second, timeoutUSec=300_000)
            assert list(await listed(client)) == ["web"]
        finally:
            run("systemctl", "start", "dbus.socket")
        # The same call works when there is one again.
        assert control_group(second) == before
        machine = (await register(client, "two", second))["machine"]
        assert control_group(second) == machine["controlGroup"]
        for name in ("web", "two"):
            await client.call(f"{OURS}Stop", {"name": name})
    configure()
    run("systemctl", "restart", "moored.service")
