"""The client on trio, on asyncio and without either, with a real service manager."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trio
from flavours import FLAVOURS, Flavour, done, within
from moored import (
    LOST,
    SOCKET,
    Processes,
    control_group,
    lost_lease,
    main_pid,
    messages,
    run,
    scopes,
    signal_moored,
    state,
)

from moorage import client
from moorage.client import (
    CALLER,
    Cause,
    Describe,
    Helper,
    HelperSocket,
    Register,
    Stop,
    StopRequested,
    Subscribe,
    events,
)

pytestmark = [
    pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda each: each.name),
    pytest.mark.usefixtures("everything_gone", "grace"),
    pytest.mark.system_instance("a library, which sees no more of an instance than its socket", runs=True),
]

ECHO = Helper("echo", ["/usr/bin/sleep", "infinity"], sockets=[HelperSocket("echo.sock")])

PROGRAM = ["sh", "-c", "read line; exit $line"]


def exists(path: str) -> bool:
    return Path(path).exists()


@pytest.fixture(autouse=True)
def _address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_ADDRESS", SOCKET)


def test_a_launcher(flavour: Flavour) -> None:
    """Registered before its command line is known, with a helper and a limit; it ends with status 3."""

    async def test() -> None:
        read, write = os.pipe()
        register = Register("web", class_="vm", helpers=[ECHO], properties={"TasksMax": 64})
        async with within(flavour.client.machine(register)) as web:
            assert web.machine.unit == "machine-web.scope"
            [echo] = web.machine.helpers
            assert (echo.active_state, exists(f"{web.machine.runtime_directory}/{echo.sockets[0]}")) == (
                "active",
                True,
            )
            await done(web.run(PROGRAM, fds={0: read}))
            assert control_group(web.machine.leader.pid) == web.machine.control_group
            os.write(write, b"3\n")
            verdict = await done(web.wait())
            assert (verdict.leader_status, verdict.leader_signal) == (3, None)
            assert verdict.cause == Cause.LEADER_ENDED
        os.close(read)
        os.close(write)

    flavour.run(test)


def test_a_child_is_registered(flavour: Flavour, spawn: Processes) -> None:
    async def test() -> None:
        child = spawn(["sh", "-c", "trap 'exit 3' TERM; sleep infinity & wait"])
        async with within(flavour.client.machine(Register("web", class_="vm"), leader=child)) as web:
            assert web.machine.leader.pid == child.pid
            assert control_group(child) == web.machine.control_group
            await flavour.until(lambda: bool(os.listdir(f"/proc/{child.pid}/task")))
        assert child.wait(20) in {3, -signal.SIGTERM}
        await flavour.until(lambda: not scopes())

    flavour.run(test)


def test_a_launcher_is_told_before_its_machine_is_stopped(flavour: Flavour) -> None:
    """It shuts its guest down, which is not told by anybody else."""

    async def test() -> None:
        read, write = os.pipe()
        told: list[StopRequested] = []

        def shut_down(request: StopRequested) -> None:
            told.append(request)
            os.write(write, b"5\n")

        machine = flavour.client.machine(Register("web", class_="vm"), stop_requested=shut_down)
        async with within(machine) as web:
            await done(web.run(PROGRAM, fds={0: read}))
            stop = subprocess.Popen(["moorctl", "stop", "web"])  # noqa: ASYNC220  # it is not waited for
            verdict = await done(web.wait())
            assert (verdict.leader_status, verdict.cause) == (5, Cause.STOPPED)
            await flavour.until(lambda: stop.poll() is not None)
        [request] = told
        assert not request.power_off
        assert request.deadline is not None
        assert (request.deadline.monotonic or 0) > time.monotonic() * 1e6
        os.close(read)
        os.close(write)

    flavour.run(test)


def test_a_launcher_that_does_nothing_is_not_waited_for(flavour: Flavour) -> None:
    async def test() -> None:
        told: list[StopRequested] = []
        machine = flavour.client.machine(Register("web", class_="vm"), stop_requested=told.append, grace=0.3)
        async with within(machine) as web:
            await done(web.run(["sleep", "infinity"]))
            stop = subprocess.Popen(["moorctl", "stop", "web"])  # noqa: ASYNC220  # it is not waited for
            verdict = await done(web.wait())
            assert (verdict.leader_signal, verdict.cause) == (signal.SIGTERM, Cause.STOPPED)
            await flavour.until(lambda: stop.poll() is not None)
        assert len(told) == 1

    flavour.run(test)


@pytest.mark.parametrize("how", ["killed", "restarted"])
def test_moored_ends_and_is_back(flavour: Flavour, how: str) -> None:
    async def test() -> None:
        read, write = os.pipe()
        complaints: list[Exception] = []
        machine = flavour.client.machine(Register("web", class_="vm"), complain=complaints.append)
        async with within(machine) as web:
            await done(web.run(PROGRAM, fds={0: read}))
            pid = main_pid()
            with lost_lease() as leases_lost:
                if how == "killed":
                    signal_moored(signal.SIGKILL)
                else:
                    run("systemctl", "restart", "moored.service")
                await flavour.until(lambda: main_pid() not in {0, pid})
                await flavour.until(lambda: LOST in leases_lost())
                assert leases_lost() == {LOST}
            async with within(await done(flavour.client.Client.connect())) as moored:
                found = (await done(moored.call(Describe("web")))).machine
            assert (found.phase, found.invocation_id) == ("running", web.machine.invocation_id)
            os.write(write, b"3\n")
            assert (await done(web.wait())).leader_status == 3
        assert complaints == []
        os.close(read)
        os.close(write)

    flavour.run(test)


def test_names_that_are_taken(flavour: Flavour) -> None:
    async def test() -> None:
        async with within(flavour.client.machine(Register("web", class_="vm"))) as web:
            with pytest.raises(client.MachineExists) as exists:
                async with within(flavour.client.machine(Register("web", class_="vm"))):
                    pass
            assert exists.value.name == "web"
            assert exists.value.unit == web.machine.unit
            assert exists.value.invocationId == web.machine.invocation_id
        run("systemd-run", "--quiet", "--collect", "--unit=machine-db.scope", "--scope", "--slice=other.slice",
            "sh", "-c", "sleep infinity >/dev/null 2>&1 & true")  # fmt: skip
        try:
            with pytest.raises(client.UnitNameTaken) as taken:
                async with within(flavour.client.machine(Register("db", class_="vm"))):
                    pass
            assert taken.value.unit == "machine-db.scope"
            assert taken.value.holder
        finally:
            run("systemctl", "stop", "machine-db.scope")

    flavour.run(test)


def test_a_helper_that_fails(flavour: Flavour) -> None:
    async def test() -> None:
        bad = Helper("bad", ["/usr/bin/sh", "-c", "echo no >&2; exit 1"], type="oneshot")
        with pytest.raises(client.HelperFailed) as failed:
            async with within(flavour.client.machine(Register("web", class_="vm", helpers=[bad]))):
                pass
        assert (failed.value.helper, failed.value.log) == ("bad", ["no"])

    flavour.run(test)


@pytest.mark.parametrize("how", ["exception", "cancelled", "cancelled while it is registered"])
def test_what_ends_the_body_leaves_nothing(flavour: Flavour, how: str) -> None:
    invocation: list[str] = []

    async def body() -> None:
        async with within(flavour.client.machine(Register("web", class_="vm", helpers=[ECHO]))) as web:
            await done(web.run(["sleep", "infinity"]))
            invocation.append(web.machine.invocation_id)
            if how == "exception":
                raise ZeroDivisionError
            if flavour.name == "blocking":
                threading.Timer(0.05, signal.pthread_kill, [threading.get_ident(), signal.SIGINT]).start()
            await done(web.wait())

    async def test() -> None:
        def begun() -> bool:
            return bool(invocation) if how == "cancelled" else state("machine-web.scope") == "active"

        if how == "exception":
            with pytest.raises(ZeroDivisionError):
                await body()
        elif flavour.name == "trio":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(body)
                await flavour.until(begun)
                nursery.cancel_scope.cancel()
        elif flavour.name == "asyncio":
            task = asyncio.create_task(body())
            await flavour.until(begun)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            with pytest.raises(KeyboardInterrupt):
                await body()
        async with within(await done(flavour.client.Client.connect())) as moored:
            found = (await done(moored.call(Describe("web")))).machine
            assert not invocation or (found.invocation_id, found.verdict.cause) == (
                invocation[0],
                Cause.STOPPED,
            )
        await flavour.until(lambda: not scopes())

    flavour.run(test)


SCRIPTS = {
    "trio": """
import trio
from moorage.client import Register
from moorage.client.trio import machine
async def main():
    async with machine(Register("web", class_="vm")) as web:
        await web.run(["sleep", "infinity"])
        print("ready", flush=True)
        await web.wait()
trio.run(main)
""",
    "asyncio": """
import asyncio
from moorage.client import Register
from moorage.client.asyncio import machine
async def main():
    async with machine(Register("web", class_="vm")) as web:
        await web.run(["sleep", "infinity"])
        print("ready", flush=True)
        await web.wait()
asyncio.run(main())
""",
    "blocking": """
from moorage.client import Register
from moorage.client.blocking import machine
with machine(Register("web", class_="vm")) as web:
    web.run(["sleep", "infinity"])
    print("ready", flush=True)
    web.wait()
""",
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_launcher_that_a_signal_ends_leaves_nothing(
    flavour: Flavour, spawn: Processes, number: int
) -> None:
    """Ctrl-C is a KeyboardInterrupt; the others end the program at once, and its lease with it."""

    async def test() -> None:
        launcher = spawn([sys.executable, "-c", SCRIPTS[flavour.name]], stdout=subprocess.PIPE)
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == b"ready\n"
        assert state("machine-web.scope") == "active"
        launcher.send_signal(number)
        assert launcher.wait(20) in {-number, 1}
        await flavour.until(lambda: not scopes())

    flavour.run(test)


def test_processes_that_are_left_behind_are_stopped(flavour: Flavour) -> None:
    async def test() -> None:
        async with within(flavour.client.machine(Register("web", class_="vm"))) as web:
            await done(web.run(["sh", "-c", "setsid sleep infinity >/dev/null 2>&1 & exit 3"]))
            verdict = await done(web.wait())
            assert (verdict.cause, verdict.leader_status) == (Cause.STOPPED, 3)
            await flavour.until(lambda: not scopes())

    flavour.run(test)


def test_a_machine_that_somebody_else_stops(flavour: Flavour) -> None:
    async def test() -> None:
        async with within(flavour.client.machine(Register("web", class_="vm"))) as web:
            await done(web.run(["sleep", "infinity"]))
            run("systemctl", "stop", "--no-block", "machine-web.scope")
            verdict = await done(web.wait())
            assert (verdict.cause, verdict.leader_signal) == (Cause.UNIT_STOPPED, signal.SIGTERM)

    flavour.run(test)


def test_a_machine_that_is_forgotten(flavour: Flavour) -> None:
    async def test() -> None:
        async with within(flavour.client.machine(Register("web", class_="vm"))) as web:
            await done(web.run(["true"] if flavour.name == "" else ["sleep", "infinity"]))
            async with within(await done(flavour.client.Client.connect())) as moored:
                await done(moored.call(client.Forget("web")))
            os.kill(web.machine.leader.pid, signal.SIGKILL)
            with pytest.raises(client.Forgotten):
                await done(web.wait())

    flavour.run(test)


def test_events_over_a_restart(flavour: Flavour) -> None:
    async def test() -> None:
        async with within(flavour.client.subscribe(Subscribe(names=["web"]))) as happened:
            following = happened.__next__ if flavour.name == "blocking" else happened.__anext__
            assert isinstance(await done(following()), events.SnapshotDone)
            async with within(flavour.client.machine(Register("web", class_="vm"))) as web:
                new = await done(following())
                assert isinstance(new, events.MachineNew)
                assert new.data.invocation_id == web.machine.invocation_id
                run("systemctl", "restart", "moored.service")
                await done(web.run(["sh", "-c", "exit 3"]))
                assert (await done(web.wait())).leader_status == 3
            event, kinds = await done(following()), list[type[events.Event]]()
            while not isinstance(event, events.Exited):
                kinds.append(type(event))
                event = await done(following())
            assert (event.data.leader_status, happened.cursor) == (3, event.cursor)
            # All that came after the last event, and no snapshot.
            assert events.LeaderExited in kinds
            assert not {events.SnapshotDone, events.Machine, events.MachineNew} & set(kinds)

    flavour.run(test)


CALLER_SCRIPT = """
import os
from moorage.client import CALLER, Register
from moorage.client.blocking import machine
with machine(Register("web", class_="vm"), leader=CALLER) as web:
    assert web.machine.leader.pid == os.getpid()
print(web.machine.unit, flush=True)
input()
"""


def test_the_caller_is_the_machine(flavour: Flavour, spawn: Processes) -> None:
    assert CALLER.name == "CALLER"

    async def test() -> None:
        launcher = spawn(
            [sys.executable, "-c", CALLER_SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert launcher.stdout is not None
        assert launcher.stdin is not None
        assert launcher.stdout.readline() == b"machine-web.scope\n"
        assert control_group(launcher).endswith("/machine-web.scope")
        launcher.stdin.write(b"\n")
        launcher.stdin.flush()
        assert launcher.wait(20) == 0
        await flavour.until(lambda: not scopes())

    flavour.run(test)


def test_moored_is_away_at_the_end(flavour: Flavour) -> None:
    """The leader is killed, and the error is raised; when the service is back, there is nothing left."""

    async def body() -> None:
        async with within(flavour.client.machine(Register("web", class_="vm"))) as web:
            await done(web.run(["sleep", "infinity"]))
            run("systemctl", "stop", "moored.socket", "moored.service")

    async def test() -> None:
        try:
            with pytest.raises(OSError, match=r"No such file|refused"):
                await body()
        finally:
            run("systemctl", "start", "moored.socket")
        await flavour.until(lambda: not scopes())

    flavour.run(test)


def test_a_stop_that_is_asked_for(flavour: Flavour) -> None:
    async def test() -> None:
        async with within(flavour.client.machine(Register("web", class_="vm"))) as web:
            await done(web.run(["sleep", "infinity"]))
            verdict = await done(web.stop())
            assert (verdict.cause, verdict.leader_signal) == (Cause.STOPPED, signal.SIGTERM)
            async with within(await done(flavour.client.Client.connect())) as moored:
                with pytest.raises(client.NoSuchMachine) as gone:
                    await done(moored.call(Stop("web")))
            assert gone.value.name == "web"
        assert "Traceback" not in "\n".join(messages("moored.service"))

    flavour.run(test)
