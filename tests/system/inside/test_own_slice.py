"""A slice of its own for a machine, on a real service manager: it comes with it, and goes with its last unit."""

import signal
from typing import Any

import pytest
import trio
from moored import (
    MANAGER,
    OURS,
    Processes,
    assert_everything_gone,
    connect,
    control_group,
    describe,
    end_moored,
    kill,
    register,
    run,
    show,
    state,
    until,
)

from moorage.errors import HelperFailed, InvalidProperty, NoSuchProperty, UnitNameTaken
from moorage.wire.errors import Disconnected, InvalidParameter

SLEEP = ["/usr/bin/sleep", "infinity"]
FS: dict[str, Any] = {"name": "fs", "execStart": SLEEP}
SLICE = "machine-web.slice"


@pytest.fixture(autouse=True)
def _clean(everything_gone: None) -> None:
    """Every test here leaves nothing."""


async def slice_gone(unit: str = SLICE) -> None:
    await until(lambda: state(unit) == "inactive")
    assert show(unit, "FragmentPath", "Documentation") == {"FragmentPath": "", "Documentation": ""}


async def test_all_of_a_machine_is_in_it(spawn: Processes) -> None:
    leader = spawn()
    async with await connect() as client:
        reply = await register(
            client, "web", leader, sliceProperties={"TasksMax": 100, "CPUWeight": 50}, helpers=[FS]
        )
        assert reply["machine"]["slice"] == SLICE
        assert reply["machine"]["controlGroup"] == f"{MANAGER}/machine.slice/{SLICE}/machine-web.scope"
        assert control_group(reply["machine"]["helpers"][0]["mainProcess"]["pid"]).startswith(
            f"{MANAGER}/machine.slice/{SLICE}/"
        )
        await client.call(
            f"{OURS}AddHelpers", {"name": "web", "helpers": [{"name": "gpu", "execStart": SLEEP}]}
        )
        for unit in (
            "machine-web.scope",
            "machine-web-fs.service",
            "machine-web-gpu.service",
            "machine-web.service",
        ):
            assert show(unit, "Slice") == {"Slice": SLICE}
        run("systemctl", "daemon-reload")
        assert show(SLICE, "TasksMax", "CPUWeight", "StopWhenUnneeded") == {
            "TasksMax": "100", "CPUWeight": "50", "StopWhenUnneeded": "yes"
        }  # fmt: skip
        await client.call(f"{OURS}Stop", {"name": "web"})
    await assert_everything_gone()
    await slice_gone()


@pytest.mark.parametrize("helpers", [[], [FS]])
async def test_it_goes_with_the_last_unit_when_the_service_is_dead(
    spawn: Processes, mortal: None, helpers: list[dict[str, Any]]
) -> None:
    leader = spawn()
    async with await connect() as client:
        await register(client, "web", leader, sliceProperties={}, helpers=helpers)
    await end_moored()
    kill(leader)
    await assert_everything_gone()
    await slice_gone()


async def test_it_is_below_the_slice_that_was_asked_for(spawn: Processes) -> None:
    async with await connect() as client:
        reply = await register(client, "a-b", spawn(), slice="vms-prod.slice", sliceProperties={})
        assert reply["machine"]["slice"] == r"vms-prod-a\x2db.slice"
        assert reply["machine"]["controlGroup"].startswith(
            rf"{MANAGER}/vms.slice/vms-prod.slice/vms-prod-a\x2db.slice/"
        )
        await client.call(f"{OURS}Stop", {"name": "a-b"})
    await slice_gone(r"vms-prod-a\x2db.slice")


async def test_the_same_machine_again_at_once(spawn: Processes) -> None:
    slow = {"name": "fs", "execStart": ["/bin/sh", "-c", "trap 'sleep 1; exit' TERM; sleep infinity & wait"]}
    async with await connect() as client:
        for helpers in ([slow], [], [FS], []):
            leader = spawn()
            reply = await register(client, "web", leader, sliceProperties={}, helpers=helpers)
            assert reply["machine"]["slice"] == SLICE
            kill(leader)


async def test_a_slice_of_others_is_left_alone(spawn: Processes) -> None:
    run("systemd-run", "--unit=other", f"--slice={SLICE}", "sleep", "infinity")
    try:
        async with await connect() as client:
            for dry_run in (True, False):
                with pytest.raises(UnitNameTaken) as taken:
                    await register(client, "web", spawn(), sliceProperties={"TasksMax": 5}, dryRun=dry_run)
                assert (taken.value.unit, "active" in taken.value.holder) == (SLICE, True)
        assert show(SLICE, "TasksMax") != {"TasksMax": "5"}
        assert state("other.service") == "active"
    finally:
        run("systemctl", "stop", "other.service", SLICE)


async def test_a_start_that_fails_takes_it_back(spawn: Processes) -> None:
    async with await connect() as client:
        failing = {"name": "bad", "execStart": ["/bin/false"], "type": "oneshot"}
        with pytest.raises(HelperFailed):
            await register(client, "web", spawn(), sliceProperties={}, helpers=[failing])
        await slice_gone()
        await register(client, "web", spawn(), sliceProperties={})
        assert state(SLICE) == "active"


async def test_the_start_that_a_killed_service_left_is_taken_back(spawn: Processes, mortal: None) -> None:
    never = {"name": "fs", "execStart": SLEEP, "type": "notify"}
    leader = spawn()
    async with await connect() as client, trio.open_nursery() as nursery:

        async def call() -> None:
            with pytest.raises(Disconnected):
                await register(
                    client, "web", leader, sliceProperties={}, helpers=[never], timeoutUSec=3_000_000
                )

        nursery.start_soon(call)
        await until(lambda: state("machine-web-fs.service") == "activating")
        await end_moored()
    kill(leader)
    run("systemctl", "start", "moored.socket", "moored.service")
    await assert_everything_gone()
    await slice_gone()


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("StopWhenUnneeded", False, InvalidProperty),
        ("Slice", "a.slice", InvalidProperty),
        ("TasksMax", "many", InvalidProperty),
        ("TasksMax", 0, InvalidProperty),
        ("RuntimeMaxUSec", 5_000_000, NoSuchProperty),
    ],
)
async def test_what_it_cannot_have(
    spawn: Processes, name: str, value: object, error: type[Exception]
) -> None:
    async with await connect() as client:
        for dry_run in (True, False):
            with pytest.raises(error, match=name):
                await register(client, "web", spawn(), sliceProperties={name: value}, dryRun=dry_run)
    assert state(SLICE) == "inactive"


async def test_only_with_a_scope(spawn: Processes) -> None:
    async with await connect() as client:
        with pytest.raises(InvalidParameter, match="sliceProperties"):
            await register(client, "web", spawn(), allocateUnit=False, sliceProperties={})
        long = "-".join(["a" * 50] * 4) + ".slice"
        with pytest.raises(InvalidParameter, match="sliceProperties"):
            await register(client, "b" * 60, spawn(), slice=long, sliceProperties={})


async def test_who_stops_it_stops_all(spawn: Processes) -> None:
    leader = spawn()
    async with await connect() as client:
        await register(client, "web", leader, sliceProperties={}, helpers=[FS])
        run("systemctl", "stop", SLICE)
        assert await trio.to_thread.run_sync(leader.wait, 30) == -signal.SIGTERM
        await assert_everything_gone()
        assert (await describe(client, "web"))["verdict"]["cause"] == "unitStopped"


async def test_a_rehearsal_makes_none(spawn: Processes) -> None:
    async with await connect() as client:
        reply = await register(
            client, "web", spawn(), sliceProperties={"TasksMax": 5}, helpers=[FS], dryRun=True
        )
        assert reply["machine"]["slice"] == SLICE
        assert SLICE not in run("systemctl", "list-units", "--all", "--plain", "machine-*")
