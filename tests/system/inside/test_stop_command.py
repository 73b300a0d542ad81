"""A machine is asked to end by a command before it is told to by signals, whoever stops it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from authority import wait_for
from moored import (
    OURS,
    UNTIL_SECONDS,
    Process,
    Processes,
    assert_everything_gone,
    connect,
    describe,
    end_moored,
    for_us,
    main_pid,
    register,
    run,
    show,
    start_listening,
    state,
    units,
    until,
    verdict,
)
from vmm import noted, vmm

from moorage.errors import Busy, NoSuchMachine, NotSupported, Timeout
from moorage.wire.client import Client
from moorage.wire.errors import Disconnected, InvalidParameter

UNIT = "machine-web--ask.service"

GUEST = """
trap 'echo plug >>"$1"; exit 9' TERM
echo ready
while [ ! -e "$1.button" ]; do sleep 0.01; done
echo shutdown >>"$1"
exit 3
"""
"""Stands for a VMM whose guest shuts down when its power button is pressed."""

PRESS = (
    'touch "$1.button"; for i in $(seq 400); do grep -q shutdown "$1" && exit 0; sleep 0.01; done; exit 1'
)


@pytest.fixture
def story(tmp_path: Path) -> Path:
    tmp_path.chmod(0o777)
    path = tmp_path / "story"
    path.touch()
    return path


@pytest.fixture
def guest(spawn: Processes, story: Path) -> Process:
    process = spawn(["sh", "-c", GUEST, "sh", str(story)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def told(story: Path) -> str:
    """What the guest has noted."""
    return story.read_text()


def press(story: Path) -> list[str]:
    return ["/bin/sh", "-c", PRESS, "sh", str(story)]


async def registered(guest: Process, story: Path, **fields: Any) -> None:
    async with await connect() as client:
        await register(client, "web", guest, execStop=press(story), **fields)
        await until(lambda: state(UNIT) == "active")


async def stop_by_call() -> None:
    async with await connect() as client:
        await client.call(f"{OURS}Stop", {"name": "web"})


async def stop_by_systemctl() -> None:
    run("systemctl", "stop", "machine-web.scope")


async def stop_without_moored() -> None:
    await end_moored()
    run("systemctl", "stop", "machine-web.scope")
    start_listening()


STOPS = [stop_by_call, stop_by_systemctl, stop_without_moored]


@pytest.mark.usefixtures("everything_gone", "mortal")
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("helpers", [[], [{"name": "h", "execStart": ["/bin/sleep", "infinity"]}]], ids=len)
async def test_it_shuts_down_by_itself(
    guest: Process, story: Path, stop: Callable[[], Any], helpers: list[dict[str, Any]]
) -> None:
    await registered(guest, story, helpers=helpers)
    await stop()
    assert told(story) == "shutdown\n"
    assert guest.wait(UNTIL_SECONDS) == 3
    await assert_everything_gone()


@pytest.mark.usefixtures("everything_gone")
async def test_the_end_of_a_lease_asks_too(guest: Process, story: Path) -> None:
    async with await connect() as client:
        await register(client, "web", guest, execStop=press(story), lease=True)
        await until(lambda: state(UNIT) == "active")
    await until(lambda: told(story) == "shutdown\n")
    assert guest.wait(UNTIL_SECONDS) == 3


@pytest.mark.usefixtures("everything_gone")
async def test_its_time_is_bounded(guest: Process) -> None:
    async with await connect() as client:
        command = ["/bin/sleep", "infinity"]
        await register(client, "web", guest, execStop=command, execStopTimeoutUSec=200_000)
        await until(lambda: state(UNIT) == "active")
        await client.call(f"{OURS}Stop", {"name": "web"})
        assert guest.wait(UNTIL_SECONDS) == 9  # told by SIGTERM
        assert (await verdict(client, "web"))["result"] == "success"


@pytest.mark.usefixtures("everything_gone")
async def test_a_machine_that_ends_by_itself_is_not_held_up(guest: Process) -> None:
    async with await connect() as client:
        await register(client, "web", guest, execStop=["/bin/true"])
        await until(lambda: state(UNIT) == "active")
        os.kill(guest.pid, signal.SIGKILL)
        guest.wait(UNTIL_SECONDS)
        await verdict(client, "web")
        await until(lambda: not units())


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["true"], "execStop"),
        (["/usr/bin/no-such-program"], "execStop[0]"),
        (["/bin/true", "a\0b"], "execStop[1]"),
    ],
)
async def test_a_command_that_cannot_be(spawn: Processes, command: list[str], error: str) -> None:
    async with await connect() as client:
        with pytest.raises(Exception, match="InvalidParameter") as caught:
            await register(client, "web", spawn(), execStop=command)
        assert getattr(caught.value, "parameter", None) == error
        with pytest.raises(Exception, match="InvalidParameter"):
            await register(client, "web", spawn(), execStop=["/bin/true"], allocateUnit=False)
    assert units() == []


@pytest.mark.usefixtures("everything_gone")
def test_moorctl_run_asks_when_it_is_interrupted(nothing_left: None, story: Path) -> None:
    argv = for_us("moorctl", "run", "--name", "web", "--exec-stop", f"sh -c '{PRESS}' sh {story}", "--")
    process = subprocess.Popen([*argv, "sh", "-c", GUEST, "sh", str(story)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    wait_for(lambda: state(UNIT) == "active")
    process.send_signal(signal.SIGINT)
    assert process.wait(UNTIL_SECONDS) == 3
    process.stdout.close()
    assert told(story) == "shutdown\n"


@pytest.mark.usefixtures("everything_gone")
async def test_it_is_ordered_for_a_shutdown_of_the_host(guest: Process, story: Path) -> None:
    await registered(guest, story)
    found = show(UNIT, "After", "BindsTo", "Conflicts", "ExecStop")
    assert "machine-web.scope" in found["After"].split()
    assert "machine-web.scope" in found["BindsTo"].split()
    assert "shutdown.target" in show("machine-web.scope", "Conflicts")["Conflicts"].split()
    async with await connect() as client:
        assert (await describe(client, "web"))["phase"] == "running"
        await client.call(f"{OURS}Stop", {"name": "web"})


# Asking the guest


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that anybody may make sockets in."""
    for each in (*tmp_path.parents[:-2], tmp_path):
        each.chmod(0o777)
    return tmp_path


async def test_a_guest_is_asked_at_its_control_address(spawn: Processes, place: Path) -> None:
    async with await connect() as client:
        web = vmm(spawn, place / "s", "obeys")
        await register(client, "web", web, controlAddress=f"unix:{place}/s")
        await client.call(f"{OURS}Freeze", {"name": "web"})
        assert await client.call(f"{OURS}Reboot", {"name": "web"}) == {}
        assert (await describe(client, "web"))["freezer"] == "running"
        assert await client.call(f"{OURS}PowerOff", {"name": "web"}) == {}
        assert [noted(web), noted(web)] == ["Reboot", "PowerOff"]
        assert web.wait(UNTIL_SECONDS) == 7
        assert (await verdict(client, "web"))["leaderStatus"] == 7
        with pytest.raises(NoSuchMachine):
            await client.call(f"{OURS}PowerOff", {"name": "web"})


async def test_whoever_listens_there_keeps_nobody_waiting(spawn: Processes, place: Path) -> None:
    async with await connect() as client, await connect() as other:
        await register(client, "deaf", vmm(spawn, place / "deaf", "deaf"), controlAddress=f"{place}/deaf")
        await register(client, "no", vmm(spawn, place / "no", "no"), controlAddress=f"{place}/no")
        await register(client, "none", spawn(), controlAddress=f"{place}/none")

        async def is_late() -> None:
            with pytest.raises(Timeout):
                await client.call(f"{OURS}PowerOff", {"name": "deaf"})
            late.set()

        late = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(is_late)
            for name, words in (("no", "NotConnected"), ("none", "No such file")):
                with pytest.raises(NotSupported) as refused:
                    await other.call(f"{OURS}PowerOff", {"name": name})
                assert words in refused.value.reason
            assert not late.is_set()
        for name in ("deaf", "no", "none"):
            await client.call(f"{OURS}Stop", {"name": name})


LONG_USEC = 300_000_000
"""So long that no test waits for it."""


async def stops(client: Client, name: str = "web", **parameters: Any) -> None:
    await client.call(f"{OURS}Stop", {"name": name, "powerOff": True, **parameters})


async def test_a_guest_that_powers_off_is_not_told_twice(spawn: Processes, place: Path) -> None:
    async with await connect() as client, await connect() as other:
        web = vmm(spawn, place / "s", "obeys late")
        await register(client, "web", web, controlAddress=f"{place}/s")
        async with client.call_more(f"{OURS}Stop", {"name": "web", "powerOff": True}) as replies:
            assert (await anext(replies))["machine"]["phase"] == "stopping"
            assert noted(web) == "PowerOff"
            with pytest.raises(Busy):
                await other.call(f"{OURS}Freeze", {"name": "web"})
            with pytest.raises(Timeout):  # of two, each waits as long as it likes
                await other.call(f"{OURS}Stop", {"name": "web", "timeoutUSec": 1})
            assert (await describe(other, "web"))["phase"] == "stopping"
            (place / "s.now").touch()
            assert (await anext(replies))["machine"]["phase"] == "exited"
        assert web.wait(UNTIL_SECONDS) == 7
        assert (await verdict(client, "web"))["cause"] == "stopped"


@pytest.mark.parametrize("how", ["ignores", "no", "deaf", "none"])
async def test_a_guest_that_does_not_is_stopped(spawn: Processes, place: Path, how: str) -> None:
    async with await connect() as client:
        web = spawn() if how == "none" else vmm(spawn, place / "s", how)
        await register(client, "web", web, controlAddress=f"{place}/s")
        await stops(client, insistAfterUSec=500_000 if how == "ignores" else LONG_USEC)
        assert web.wait(UNTIL_SECONDS) == -signal.SIGTERM
        found = await verdict(client, "web")
        assert (found["cause"], found["leaderSignal"]) == ("stopped", signal.SIGTERM)


async def test_a_guest_that_cannot_be_asked_is_left_alone(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
        with pytest.raises(NotSupported):
            await stops(client)
        for wrong in (-1, 1.5, "long", 600_000_001):
            with pytest.raises(InvalidParameter) as refused:
                await stops(client, insistAfterUSec=wrong)
            assert refused.value.parameter == "insistAfterUSec"
        assert (await describe(client, "web"))["phase"] == "running"
        await client.call(f"{OURS}Stop", {"name": "web"})


async def test_a_stop_insists_at_once_when_it_is_told_to(spawn: Processes, place: Path) -> None:
    async with await connect() as client, await connect() as other:
        web = vmm(spawn, place / "s", "ignores")
        await register(client, "web", web, controlAddress=f"{place}/s")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(stops, client, insistAfterUSec=LONG_USEC))
            assert await trio.to_thread.run_sync(noted, web) == "PowerOff"
            await other.call(f"{OURS}Stop", {"name": "web", "insistAfterUSec": 0})
        assert web.wait(UNTIL_SECONDS) == -signal.SIGTERM


async def test_the_next_instance_insists(spawn: Processes, place: Path) -> None:
    web = vmm(spawn, place / "s", "ignores")
    async with await connect() as client:
        await register(client, "web", web, controlAddress=f"{place}/s")
        async with trio.open_nursery() as nursery:

            async def begin() -> None:
                with pytest.raises(Disconnected):
                    await stops(client, insistAfterUSec=2_000_000)

            nursery.start_soon(begin)
            assert await trio.to_thread.run_sync(noted, web) == "PowerOff"
            pid = main_pid()
            os.kill(pid, signal.SIGKILL)
    await until(lambda: main_pid() not in {0, pid})
    async with await connect() as client:
        found = await client.call(f"{OURS}Describe", {"name": "web"})
        assert found["machine"]["phase"] in {"stopping", "exited"}
        assert await trio.to_thread.run_sync(web.wait, UNTIL_SECONDS) == -signal.SIGTERM
        assert (await verdict(client, "web"))["cause"] == "stopped"


async def test_who_waits_for_a_stop_is_told_and_waited_for(spawn: Processes) -> None:
    async with await connect() as client, await connect() as other:
        web = spawn()
        await register(client, "web", web)
        for parameters in ({"ifInvocationId": "0" * 32}, {"name": "nobody"}):
            with pytest.raises(NoSuchMachine):
                await anext(other.call_more(f"{OURS}AwaitStop", {"name": "web", **parameters}))
        for usec in (0, -1, 300_000_001):
            with pytest.raises(InvalidParameter):
                await anext(other.call_more(f"{OURS}AwaitStop", {"name": "web", "graceUSec": usec}))
        for ends in ("leaves", "insists"):
            async with await connect() as waiting, trio.open_nursery() as nursery:
                replies = waiting.call_more(f"{OURS}AwaitStop", {"name": "web", "graceUSec": 300_000_000})
                assert await anext(replies) == {}
                nursery.start_soon(client.call, f"{OURS}Stop", {"name": "web"})
                told = await anext(replies)
                assert told["powerOff"] is False
                assert told["deadline"]["monotonic"] > time.monotonic() * 1e6
                assert (await describe(other, "web"))["phase"] == "stopping"
                assert web.poll() is None
                if ends == "leaves":
                    waiting.close()
                else:
                    await other.call(f"{OURS}Stop", {"name": "web", "insistAfterUSec": 0})
            assert web.wait(UNTIL_SECONDS) == -signal.SIGTERM
            web = spawn()
            await register(client, "web", web)
        async with await connect() as waiting:
            replies = waiting.call_more(f"{OURS}AwaitStop", {"name": "web"})
            assert await anext(replies) == {}
            await client.call(f"{OURS}Kill", {"name": "web", "signal": 9})
            with pytest.raises(NoSuchMachine):
                await anext(replies)
