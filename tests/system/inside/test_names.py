"""The name of a machine is its unit's: free again at once, and never taken from somebody else."""

import os
import signal
import subprocess
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import trio
from moored import (
    KEPT_UNIT_FILES,
    MOORCTL,
    OURS,
    THEIRS,
    UNIT_FILES,
    UNTIL_SECONDS,
    Process,
    Processes,
    connect,
    control_group,
    describe,
    for_us,
    kill,
    listed,
    living_records,
    nothing_listed,
    register,
    run,
    scopes,
    show,
    state,
    until,
    verdict,
)

from moorage.api.systemd_machine import errors as systemd_errors
from moorage.errors import UnitNameTaken
from moorage.wire.client import Client

pytestmark = [
    pytest.mark.usefixtures("beside"),
    pytest.mark.system_instance("rules for names, and the reuse of them; test_end has the rest", runs=True),
]

TIMES = 100


async def test_a_name_is_free_as_soon_as_a_stop_is_answered(spawn: Processes) -> None:
    invocations: set[str] = set()
    async with await connect() as client:
        for _ in range(TIMES):
            leader = spawn()
            machine = (await register(client, "web", leader))["machine"]
            assert control_group(leader) == machine["controlGroup"]
            invocations.add(machine["invocationId"])
            await client.call(f"{OURS}Stop", {"name": "web"})
    assert len(invocations) == TIMES


async def test_a_name_is_free_as_soon_as_terminate_is_answered(spawn: Processes) -> None:
    async with await connect() as client:
        for _ in range(TIMES):
            leader = spawn()
            parameters = {"name": "web", "class": "vm", "leader": leader.pid, "allocateUnit": True}
            reply = await client.call(f"{THEIRS}Register", parameters)
            assert control_group(leader) == reply["controlGroup"]
            await client.call(f"{THEIRS}Terminate", {"name": "web"})


async def test_a_name_is_free_as_soon_as_its_last_process_is_dead(spawn: Processes) -> None:
    invocations: set[str] = set()
    async with await connect() as client:
        for _ in range(TIMES):
            leader = spawn()
            machine = (await register(client, "web", leader))["machine"]
            assert control_group(leader) == machine["controlGroup"]
            invocations.add(machine["invocationId"])
            kill(leader)
    assert len(invocations) == TIMES


async def failed_scope(unit: str) -> None:
    """Leave a failed scope of a name behind, as somebody else would."""
    # The service keeps the unit of a machine that has ended until its account is closed.
    await until(lambda: show(unit, "LoadState") == {"LoadState": "not-found"})
    argv = ("systemd-run", "--scope", "--quiet", f"--unit={unit}", "--property=RuntimeMaxSec=10ms")
    await trio.run_process(for_us(*argv, "--", "sleep", "infinity"), check=False)
    await until(lambda: show(unit, "ActiveState") == {"ActiveState": "failed"})


async def test_a_failed_leftover_is_no_obstacle(spawn: Processes) -> None:
    async with await connect() as client:
        for _ in range(5):
            await failed_scope("machine-web.scope")
            assert show("machine-web.scope", "Result") == {"Result": "timeout"}
            reply = await register(client, "web", spawn(), dryRun=True)
            assert reply["machine"]["unit"] == "machine-web.scope"
            assert show("machine-web.scope", "ActiveState") == {"ActiveState": "failed"}
            leader = spawn()
            machine = (await register(client, "web", leader))["machine"]
            assert control_group(leader) == machine["controlGroup"]
            assert show("machine-web.scope", "Result") == {"Result": "success"}
            await client.call(f"{OURS}Stop", {"name": "web"})


async def taken(client: Client, spawn: Processes, *words: str) -> UnitNameTaken:
    """The name "web" is taken, by what these words describe; nothing is touched by the attempts to get it."""
    leader = spawn()
    before = control_group(leader)
    holder = show("machine-web.scope")
    for dry in (True, False):
        with pytest.raises(UnitNameTaken) as caught:
            await register(client, "web", leader, dryRun=dry)
        assert caught.value.unit == "machine-web.scope"
        for word in words:
            assert word in caught.value.holder
    parameters = {"name": "web", "class": "vm", "leader": leader.pid, "allocateUnit": True}
    with pytest.raises(systemd_errors.MachineExists):
        await client.call(f"{THEIRS}Register", parameters)
    after = show("machine-web.scope")
    changing = {"CPUUsageNSec", "TasksCurrent", "MemoryCurrent", "MemoryPeak"}
    assert {k: v for k, v in after.items() if k not in changing} == {
        k: v for k, v in holder.items() if k not in changing
    }
    assert control_group(leader) == before
    assert await listed(client) == {}
    assert living_records() == []
    return caught.value


def scope(spawn: Processes, *options: str) -> Process:
    """A scope of the name that machine "web" would have, by somebody else."""
    argv = ("systemd-run", "--scope", "--quiet", "--unit=machine-web.scope", *options)
    return spawn((*argv, "--", "sleep", "infinity"))


async def test_a_scope_of_somebody_else_is_left_alone(spawn: Processes) -> None:
    async with await connect() as client:
        other = scope(spawn, "--description=Not a machine")
        await until(lambda: "machine-web.scope" in control_group(other))
        await taken(client, spawn, "active", "Not a machine", "with processes")
        assert other.poll() is None
        kill(other)
        await until(lambda: not scopes())
        await register(client, "web", spawn())


async def test_a_failed_scope_with_processes_is_left_alone(spawn: Processes) -> None:
    async with await connect() as client:
        other = scope(
            spawn,
            "--property=SendSIGKILL=no",
            "--property=TimeoutStopSec=10ms",
            "--property=KillSignal=SIGCONT",
        )
        await until(lambda: "machine-web.scope" in control_group(other))
        run("systemctl", "stop", "machine-web.scope")
        assert show("machine-web.scope", "ActiveState") == {"ActiveState": "failed"}
        await taken(client, spawn, "failed", "with processes")
        kill(other)
        # With the last process it becomes a leftover.
        await register(client, "web", spawn())


@pytest.fixture(params=[KEPT_UNIT_FILES, UNIT_FILES], ids=["kept", "until-reboot"])
def unit_file(request: pytest.FixtureRequest) -> Generator[Path]:
    """A file for the unit on disk."""
    path = request.param / "machine-web.scope"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[Unit]\nDescription=From disk\n")
    run("systemctl", "daemon-reload")
    yield path
    assert path.read_text() == "[Unit]\nDescription=From disk\n"
    path.unlink()
    run("systemctl", "daemon-reload")


async def test_a_unit_file_on_disk_is_nothing_to_a_scope(spawn: Processes, unit_file: Path) -> None:
    """The manager reads none for scopes (`scope_load()`): it holds no name, and stays as it is."""
    async with await connect() as client:
        leader = spawn()
        machine = (await register(client, "web", leader, description="From a call"))["machine"]
        assert control_group(leader) == machine["controlGroup"]
        shown = show("machine-web.scope", "Description", "FragmentPath", "Transient")
        assert shown["Description"] == "From a call"
        assert shown["FragmentPath"] != str(unit_file)
        assert shown["Transient"] == "yes"


async def test_a_unit_whose_start_is_queued_is_left_alone(spawn: Processes) -> None:
    run("systemd-run", "--unit=gate.service", "--quiet", "--collect", "--no-block", "--property=Type=oneshot",
        "--", "sleep", "infinity")  # fmt: skip
    async with await connect() as client:
        other = scope(spawn, "--property=After=gate.service", "--description=Waits")
        await until(lambda: show("machine-web.scope", "Job") != {"Job": ""})
        await taken(client, spawn, "inactive", "Waits", "job")
        run("systemctl", "stop", "gate.service")
        await until(lambda: "machine-web.scope" in control_group(other))
        kill(other)
        await until(lambda: not scopes())


async def test_dependants_hold_a_name_only_once_it_was_used(
    spawn: Processes,
) -> None:
    waiting = (
        "--quiet",
        "--collect",
        "--property=Wants=machine-web.scope",
        "--property=After=machine-web.scope",
    )
    run("systemd-run", "--unit=waiting.service", *waiting, "--", "sleep", "infinity")
    try:
        async with await connect() as client:
            machine = (await register(client, "web", spawn()))["machine"]
            assert show(machine["unit"], "WantedBy") == {"WantedBy": "waiting.service"}
            other = scope(spawn)  # in vain
            assert other.wait() == 1
            await client.call(f"{OURS}Stop", {"name": "web"})
            # The manager keeps a unit that another one needs.
            await taken(client, spawn, "a unit that is inactive", "needed by waiting.service")
            assert show("waiting.service", "ActiveState") == {"ActiveState": "active"}
    finally:
        run("systemctl", "stop", "waiting.service")
    async with await connect() as client:
        await register(client, "web", spawn())


HELPER_UNIT = "machine-web-fs.service"


@contextmanager
def file_on_disk() -> Generator[str]:
    """A file for a helper's unit, which is how the manager knows it."""
    path = KEPT_UNIT_FILES / HELPER_UNIT
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[Service]\nExecStart=sleep infinity\n")
    run("systemctl", "daemon-reload")
    yield f"a unit file on disk: {path}"
    path.unlink()
    run("systemctl", "daemon-reload")


@contextmanager
def file_on_disk_that_runs() -> Generator[str]:
    with file_on_disk() as words:
        run("systemctl", "start", HELPER_UNIT)
        yield f"{words}, and the unit is active"
        assert show(HELPER_UNIT, "ActiveState") == {"ActiveState": "active"}
        run("systemctl", "stop", HELPER_UNIT)


@contextmanager
def masked() -> Generator[str]:
    run("systemctl", "mask", "--runtime", HELPER_UNIT)
    yield f"a unit that is masked, by {UNIT_FILES}/{HELPER_UNIT}"
    run("systemctl", "unmask", "--runtime", HELPER_UNIT)


@contextmanager
def foreign_service() -> Generator[str]:
    argv = ("--quiet", "--collect", f"--unit={HELPER_UNIT}", "--description=Not a helper")
    run("systemd-run", *argv, "--", "sleep", "infinity")
    yield "a unit that is active, “Not a helper”, with processes"
    assert show(HELPER_UNIT, "ActiveState") == {"ActiveState": "active"}
    run("systemctl", "stop", HELPER_UNIT)


@pytest.mark.parametrize("holder", [file_on_disk, file_on_disk_that_runs, masked, foreign_service])
async def test_the_name_of_a_helpers_unit_is_taken(
    spawn: Processes, holder: Callable[[], AbstractContextManager[str]]
) -> None:
    helpers = [{"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"]}]
    leader = spawn()
    before = control_group(leader)
    async with await connect() as client:
        with holder() as words:
            with pytest.raises(UnitNameTaken) as caught:
                await register(client, "web", leader, helpers=helpers)
            assert (caught.value.unit, caught.value.holder) == (HELPER_UNIT, words)
            assert control_group(leader) == before
            assert await listed(client) == {}
        assert scopes() == []
        machine = (await register(client, "web", leader, helpers=helpers))["machine"]
        assert [helper["activeState"] for helper in machine["helpers"]] == ["active"]
        await client.call(f"{OURS}Stop", {"name": "web"})


async def test_moorctl_tells_a_person_what_has_the_name(spawn: Processes) -> None:
    other = scope(spawn, "--description=Not a machine")
    await until(lambda: "machine-web.scope" in control_group(other))
    argv = for_us("moorctl", "register", "web", "--leader", str(spawn().pid))
    done = await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "Error: The unit name machine-web.scope is taken: a unit that is active, “Not a machine”, with processes.\n"
        "Inspect it, then stop it or choose another name: "
        f"{' '.join(for_us('systemctl', 'status', 'machine-web.scope'))}\n"
    )
    kill(other)
    await until(lambda: not scopes())


STUBBORN = ("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")


async def test_what_outlives_its_unit_keeps_its_machine_through_restarts(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn(STUBBORN, stdout=-1)
        assert leader.stdout is not None
        assert leader.stdout.readline() == b"ready\n"
        properties = {"TimeoutStopUSec": 100_000, "SendSIGKILL": False}
        machine = (await register(client, "web", leader, properties=properties))["machine"]
        run("systemctl", "stop", machine["unit"])
        assert show(machine["unit"], "ActiveState") == {"ActiveState": "failed"}
    for happen in (
        "restart moored.service",
        "daemon-reload",
        "daemon-reexec",
        "kill -s SIGKILL moored.service",
    ):
        run("systemctl", *happen.split())
        async with await connect() as client:

            async def lingers(client: Client = client) -> bool:
                return (await listed(client))["web"]["phase"] == "lingering"

            await until(lingers)
            found = (await listed(client))["web"]
            assert found == {**machine, "phase": "lingering"}
            with pytest.raises(Exception, match="MachineExists"):
                await register(client, "web", spawn())
    assert "lingering" in run("moorctl", "list")
    kill(leader)
    async with await connect() as client:
        # The manager forgot that when it was reloaded; the journal did not.
        assert (await verdict(client, "web"))["result"] == "timeout"
        await register(client, "web", spawn())


async def test_a_unit_that_is_going_is_waited_for(spawn: Processes) -> None:
    """One that somebody else stops, and whose process takes its time."""
    async with await connect() as client:
        argv = ("systemd-run", "--scope", "--quiet", "--unit=machine-web.scope", "--", "sh", "-c")
        other = spawn(
            (*argv, "trap 'sleep 0.3; exit 0' TERM; echo ready; while :; do sleep 0.01; done"), stdout=-1
        )
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        run("systemctl", "stop", "--no-block", "machine-web.scope")
        leader = spawn()
        machine = (await register(client, "web", leader))["machine"]
        assert other.wait() == 0
        assert control_group(leader) == machine["controlGroup"]


async def test_a_machine_that_is_going_is_waited_for(spawn: Processes) -> None:
    async with await connect() as client, await connect() as other:
        leader = spawn(("sh", "-c", "trap '' TERM; echo ready; exec sleep infinity"), stdout=-1)
        assert leader.stdout is not None
        assert leader.stdout.readline() == b"ready\n"
        await register(client, "web", leader)
        async with client.call_more(f"{OURS}Stop", {"name": "web"}) as replies:
            assert (await anext(replies))["machine"]["phase"] == "stopping"
            with pytest.raises(Exception, match="MachineExists"):
                await register(other, "web", spawn(), timeoutUSec=300_000)  # it has a process yet
            kill(leader)
            await register(other, "web", spawn())
            assert [reply["machine"]["phase"] async for reply in replies] == ["exited"]


SELF_REGISTERING = """
[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=/usr/bin/sleep infinity
ExecStartPost=/usr/bin/moorctl {options} register self --leader ${{MAINPID}} --no-allocate
Restart={restart}
RestartSec=0
"""
RESTARTS = int(os.environ.get("MOORAGE_TEST_RESTARTS", "4"))
"""How often it is restarted, in each way; hundreds of times take minutes."""

POLICIES: dict[str, signal.Signals | None] = {
    "no": None,
    "always": signal.SIGKILL,
    "on-success": signal.SIGTERM,
    "on-failure": signal.SIGKILL,
    "on-abnormal": signal.SIGKILL,
    "on-abort": signal.SIGABRT,
    "on-watchdog": None,
}
"""Values of Restart=, each with a signal after which it has the service started again."""


@pytest.mark.parametrize("restart", POLICIES)
async def test_a_service_that_registers_itself_is_registered_after_each_restart(
    spawn: Processes, restart: str
) -> None:
    number = POLICIES[restart]
    with _service(SELF_REGISTERING.format(options=" ".join(MOORCTL), restart=restart)):
        for _ in range(RESTARTS):
            await until(_self_is_registered, "it is registered again")
            run("systemctl", "restart", "self.service")
        for _ in range(RESTARTS if number is not None else 0):
            await until(_self_is_registered, "it is registered again")
            before = show("self.service", "MainPID")["MainPID"]
            run("systemctl", "kill", f"--signal={number}", "self.service")
            await until(
                lambda before=before: show("self.service", "MainPID")["MainPID"] not in {"0", before}
            )
        await until(_self_is_registered, "it is registered again")


@contextmanager
def _service(text: str) -> Generator[None]:
    path = UNIT_FILES / "self.service"
    path.write_text(text)
    run("systemctl", "daemon-reload")
    try:
        run("systemctl", "start", "self.service")
        yield
    finally:
        run("systemctl", "stop", "self.service")
        path.unlink()
        run("systemctl", "daemon-reload")


async def _self_is_registered() -> bool:
    found = show("self.service", "MainPID", "InvocationID", "ActiveState")
    async with await connect() as client:
        machine = (await listed(client)).get("self", {})
    return (
        found["ActiveState"] == "active"
        and machine.get("invocationId") == found["InvocationID"]
        and machine.get("leader", {}).get("pid") == int(found["MainPID"])
    )


async def test_a_unit_that_remains_after_its_processes_is_no_machine(spawn: Processes) -> None:
    run("systemd-run", "-q", "--unit=keep", "--property=RemainAfterExit=yes", "sleep", "infinity")
    try:
        async with await connect() as client:
            leader = int(show("keep.service", "MainPID")["MainPID"])
            await register(client, "keep", leader, allocateUnit=False)
            run("systemctl", "kill", "keep.service")
            await until(lambda: show("keep.service", "SubState")["SubState"] == "exited")
            other = spawn()
            assert (await register(client, "keep", other))["machine"]["unit"] == "machine-keep.scope"
            kill(other)
            await verdict(client, "keep")
        assert state("keep.service") == "active"
    finally:
        run("systemctl", "stop", "keep.service")


async def test_a_unit_that_remains_ends_its_machine_without_being_asked_for(spawn: Processes) -> None:
    run("systemd-run", "-q", "--unit=keep", "--property=RemainAfterExit=yes", "sleep", "infinity")
    try:
        async with await connect() as client:
            leader = int(show("keep.service", "MainPID")["MainPID"])
            await register(client, "keep", leader, allocateUnit=False)
            run("systemctl", "kill", "keep.service")
            assert await verdict(client, "keep")
    finally:
        run("systemctl", "stop", "keep.service")


@pytest.mark.parametrize("method", [f"{OURS}Forget", f"{THEIRS}Unregister"])
async def test_the_name_of_a_forgotten_machine_is_free_when_its_last_process_has_died(
    spawn: Processes, method: str
) -> None:
    async with await connect() as client:
        for _ in range(25):
            leader, other = spawn(), spawn()
            await register(client, "lost", leader)
            await client.call(method, {"name": "lost"})
            kill(leader)
            assert (await register(client, "lost", other))["machine"]["leader"]["pid"] == other.pid
            kill(other)
            await until(lambda: nothing_listed(client))


async def test_the_name_of_a_machine_that_is_being_stopped_is_waited_for(spawn: Processes) -> None:
    stubborn = spawn(
        ["sh", "-c", "trap '' TERM; echo ready; sleep infinity & wait; wait"], stdout=subprocess.PIPE
    )
    assert stubborn.stdout is not None
    assert stubborn.stdout.readline() == b"ready\n"
    async with await connect() as client, await connect() as other, trio.open_nursery() as nursery:
        await register(client, "going", stubborn, properties={"TimeoutStopUSec": 1_500_000})
        nursery.start_soon(client.call, f"{OURS}Stop", {"name": "going"})

        async def stopping() -> bool:
            return (await describe(other, "going"))["phase"] == "stopping"

        await until(stopping)
        successor = spawn()
        assert (await register(other, "going", successor))["machine"]["leader"]["pid"] == successor.pid
        assert stubborn.wait(UNTIL_SECONDS) == -signal.SIGKILL
        kill(successor)
