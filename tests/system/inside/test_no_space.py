"""No space is left where the records are: who asks is told, nothing is lost, and nothing is left behind."""

from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import pytest
from moored import (
    OURS,
    RECORDS,
    Processes,
    connect,
    control_group,
    controlled,
    descriptors,
    kill,
    listed,
    living_records,
    register,
    run,
    scopes,
    start_listening,
    stay_alone,
    until,
    verdict,
)

from moorage.wire.errors import System

pytestmark = pytest.mark.system_instance("only root mounts a file system of its own")

ENOSPC = 28
PLACE = RECORDS.parent
FILLER = PLACE / "filler"


@pytest.fixture(scope="module", autouse=True)
def small(moored: None) -> Generator[None]:
    """A directory of limited size for all that the service writes."""
    run("systemctl", "stop", "moored.socket", "moored.service")
    run("mount", "-t", "tmpfs", "-o", "size=128k,mode=0755", "small", str(PLACE))
    stay_alone()  # what says so is below what was mounted
    start_listening()
    yield
    run("systemctl", "stop", "moored.socket", "moored.service")
    run("umount", str(PLACE))
    start_listening()


def fill() -> None:
    with Path(FILLER).open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))


@pytest.fixture
def roomy() -> Generator[None]:
    """Whatever happens, there is space again at the end."""
    yield
    FILLER.unlink(missing_ok=True)


async def test_a_registration_is_refused_before_anything_is_done(spawn: Processes, roomy: None) -> None:
    leader = spawn()
    before = control_group(leader)
    async with await connect() as client:
        machine = (await register(client, "there", spawn()))["machine"]
        await controlled("there")
        count = descriptors()
        fill()
        for _ in range(20):
            with pytest.raises(System) as caught:
                await register(client, "web", leader)
            assert caught.value.errno == ENOSPC
        assert control_group(leader) == before
        assert leader.poll() is None
        assert scopes() == ["machine-there.scope"]
        assert living_records() == ["there"]
        assert descriptors() == count
        assert await listed(client) == {"there": machine}
        FILLER.unlink()
        machine = (await register(client, "web", leader))["machine"]
        assert control_group(leader) == machine["controlGroup"]
        await client.call(f"{OURS}Stop", {"name": "web"})


async def test_machines_are_found_again_and_end_as_ever(spawn: Processes, roomy: None) -> None:
    leaders = [spawn() for _ in range(3)]
    async with await connect() as client:
        for number, leader in enumerate(leaders):
            await register(client, f"m{number}", leader)
        before = await listed(client)
    fill()
    run("systemctl", "restart", "moored.service")
    async with await connect() as client:
        assert await listed(client) == before
        kill(leaders[0])
        assert (await verdict(client, "m0"))["result"] == "success"
        await client.call(f"{OURS}Stop", {"name": "m1"})
        assert list(await listed(client)) == ["m2"]
        await until(lambda: living_records() == ["m2"])
        # Not even a verdict that could not be written makes a machine of what is gone.
        run("systemctl", "restart", "moored.service")
    async with await connect() as client:
        assert await listed(client) == {"m2": before["m2"]}
