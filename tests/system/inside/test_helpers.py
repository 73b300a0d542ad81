"""Helpers of machines, on a real service manager: they come with their machine, or not at all, and go with it."""

import itertools
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from moored import (
    DIRECTORIES,
    MANAGER,
    OURS,
    UNIT_FILES,
    Process,
    Processes,
    assert_everything_gone,
    configure,
    connect,
    control_group,
    cursor,
    describe,
    directories,
    end_moored,
    kill,
    listed,
    main_pid,
    messages,
    register,
    run,
    show,
    signal_moored,
    state,
    units,
    until,
    verdict,
)

from moorage.errors import (
    Busy,
    HelperFailed,
    InvalidProperty,
    NoSuchHelper,
    NoSuchMachine,
    NoSuchProperty,
    NotSupported,
    Timeout,
    UnitNameTaken,
)
from moorage.wire.client import Client
from moorage.wire.errors import InvalidParameter

SLEEP = ["/usr/bin/sleep", "infinity"]
ALICE, BOB = 1000, 1001

TO_BE_READY = """
import os, signal, socket
listener = socket.socket(fileno=3)
print("waiting as", os.environ["LISTEN_FDNAMES"], flush=True)
peer, _ = listener.accept()
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
notify.send(b"READY=1")
signal.pause()
"""
"""A service that is ready when somebody has connected to its socket."""


def helper(name: str, command: list[str] | None = None, **fields: Any) -> dict[str, Any]:
    """A helper; without a command one that does nothing for ever."""
    return {"name": name, "execStart": command or SLEEP, **fields}


def python(text: str, *arguments: str) -> list[str]:
    return ["/usr/bin/python3", "-c", text, *arguments]


@pytest.fixture(autouse=True)
def _clean(everything_gone: None) -> None:
    """Every test here leaves nothing, of helpers neither."""


def connect_as(uid: int, path: Path) -> str:
    """Connect to a socket as another user; the name of the error, or nothing."""
    text = (
        "import socket, sys\n"
        "try: socket.socket(socket.AF_UNIX).connect(sys.argv[1])\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    argv = [sys.executable, "-c", text, str(path)]
    done = subprocess.run(
        argv, capture_output=True, text=True, user=uid, group=uid, extra_groups=[], check=True
    )
    return done.stdout.strip()


# They come


@pytest.mark.parametrize("link", ["private", "bus"])
async def test_a_machine_comes_with_its_helpers(spawn: Processes, link: str) -> None:
    configure(f"--link={link}")
    run("systemctl", "stop", "moored.service")
    try:
        async with await connect() as client:
            wanted = [
                helper("tpm", after=["fs"], type="simple", properties={"MemoryMax": 2**26}),
                helper(
                    "fs",
                    sockets=[
                        {"name": "fs.sock", "mode": 0o640},
                        {"name": "more", "type": "seqpacket", "mode": 0o640},
                    ],
                ),
            ]
            leader = spawn()
            machine = (await register(client, "web", leader, slice="machine-a.slice", helpers=wanted))[
                "machine"
            ]
            assert machine["runtimeDirectory"] == str(DIRECTORIES / "web")
            directory = os.stat(DIRECTORIES / "web")
            assert (directory.st_uid, directory.st_mode & 0o777) == (os.getuid(), 0o700)
            for name in ("fs.sock", "more"):
                found = os.stat(DIRECTORIES / "web" / name)
                assert stat.S_ISSOCK(found.st_mode)
                assert (found.st_uid, found.st_mode & 0o777) == (os.getuid(), 0o640)
            assert [each["name"] for each in machine["helpers"]] == ["tpm", "fs"]
            for each in machine["helpers"]:
                assert each["unit"] == f"machine-web-{each['name']}.service"
                shown = show(
                    each["unit"], "ActiveState", "SubState", "Result", "MainPID", "InvocationID", "Slice"
                )
                assert shown == {
                    "ActiveState": each["activeState"],
                    "SubState": each["subState"],
                    "Result": each["result"],
                    "MainPID": str(each["mainProcess"]["pid"]),
                    "InvocationID": each["invocationId"],
                    "Slice": "machine-a.slice",
                }
                assert each["activeState"] == "active"
            assert [each["sockets"] for each in machine["helpers"]] == [[], ["fs.sock", "more"]]
            assert show("machine-web-tpm.service", "MemoryMax") == {"MemoryMax": str(2**26)}
            assert await describe(client, "web") == machine
            assert (await listed(client))["web"] == machine
            found = await client.call(f"{OURS}Find", {"unit": "machine-web.scope"})
            assert found["machine"] == machine
            kill(leader)
            assert (await verdict(client, "web"))["result"] == "success"
            ended = (await describe(client, "web"))["helpers"]
            assert [(each["name"], each["activeState"]) for each in ended] == [
                ("tpm", "inactive"),
                ("fs", "inactive"),
            ]
    finally:
        configure()
        run("systemctl", "stop", "moored.service")


async def test_in_order_and_before_the_scope(spawn: Processes) -> None:
    names = ["d", "c", "b", "a"]
    wanted = [helper(name, after=names[number + 1 :]) for number, name in enumerate(names)]
    async with await connect() as client:
        await register(client, "web", spawn(), helpers=wanted)
        times = [
            show(unit, "InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic")
            for unit in (*(f"machine-web-{name}.service" for name in reversed(names)), "machine-web.scope")
        ]
        for before, after in itertools.pairwise(times):
            assert int(before["ActiveEnterTimestampMonotonic"]) <= int(
                after["InactiveExitTimestampMonotonic"]
            )


async def test_answered_when_ready(spawn: Processes) -> None:
    replies: list[dict[str, Any]] = []
    leader = spawn()
    before = control_group(leader)
    since = cursor()

    async def wait(client: Client) -> None:
        wanted = [helper("fs", python(TO_BE_READY), type="notify", sockets=[{"name": "fs.sock"}])]
        replies.append(await register(client, "web", leader, helpers=wanted))

    async with await connect() as client, trio.open_nursery() as nursery:
        nursery.start_soon(wait, client)
        path = DIRECTORIES / "web/fs.sock"
        await until(lambda: "waiting as fs" in messages("machine-web-fs.service", since))
        assert not replies
        assert control_group(leader) == before
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            await until(lambda: replies)
        assert control_group(leader) == f"{MANAGER}/machine.slice/machine-web.scope"
        assert replies[0]["machine"]["helpers"][0]["subState"] == "running"


async def test_types_that_end(spawn: Processes) -> None:
    async with await connect() as client:
        wanted = [helper("prepare", ["/usr/bin/true"], type="oneshot")]
        machine = (await register(client, "web", spawn(), helpers=wanted))["machine"]
        assert [(each["activeState"], each["subState"]) for each in machine["helpers"]] == [
            ("active", "exited")
        ]


async def test_arguments_are_taken_as_they_are(spawn: Processes) -> None:
    since = cursor()
    odd = ["%n", "$HOME", "${HOME}", "a b", "", '"', "'", "\\x41", "ü", ";", "-"]
    async with await connect() as client:
        text = "import json, sys; print(json.dumps(sys.argv[1:]))"
        await register(client, "web", spawn(), helpers=[helper("echo", python(text, *odd), type="oneshot")])
        run("systemctl", "daemon-reload")
        assert [json.loads(message) for message in messages("machine-web-echo.service", since)] == [odd]


async def test_the_same_call_again_gives_the_same_reply(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        wanted = [helper("fs", sockets=[{"name": "fs.sock"}])]
        first = await register(client, "web", leader, helpers=wanted)
        assert await register(client, "web", leader, helpers=wanted) == first


async def test_names_can_be_told_apart(spawn: Processes) -> None:
    async with await connect() as client:
        one = await register(client, "a-b", spawn(), helpers=[helper("c", sockets=[{"name": "s"}])])
        other = await register(client, "a", spawn(), helpers=[helper("b-c", sockets=[{"name": "s"}])])
        third = await register(client, "a:\\", spawn(), helpers=[helper("b", sockets=[{"name": "s"}])])
        run("systemctl", "daemon-reload")
        found = [each["machine"]["helpers"][0]["unit"] for each in (one, other, third)]
        assert found == [
            "machine-a\\x2db-c.service",
            "machine-a-b\\x2dc.service",
            "machine-a:\\x5c-b.service",
        ]
        assert directories() == ["a", "a+3a+5c", "a-b"]


async def test_a_dry_run_makes_nothing(spawn: Processes) -> None:
    async with await connect() as client:
        reply = await register(client, "web", spawn(), helpers=[helper("fs")], dryRun=True)
        assert [each["activeState"] for each in reply["machine"]["helpers"]] == ["inactive"]
        assert units() == []
        with pytest.raises(NoSuchProperty, match="NoSuch"):
            await register(
                client, "web", spawn(), helpers=[helper("fs", properties={"NoSuch": 1})], dryRun=True
            )


async def test_a_restart_of_the_service_finds_them_again(spawn: Processes) -> None:
    async with await connect() as client:
        machine = (await register(client, "web", spawn(), helpers=[helper("fs", sockets=[{"name": "s"}])]))[
            "machine"
        ]
    os.kill(main_pid(), signal.SIGKILL)
    async with await connect() as client:
        assert await describe(client, "web") == machine


# They do not come

FAILURES = {
    "oneshot": (
        helper("bad", ["/bin/sh", "-c", "echo first; echo last >&2; exit 3"], type="oneshot"),
        "exit-code",
        ["first", "last"],
    ),
    "notify": (helper("bad", ["/bin/sh", "-c", "echo never ready"], type="notify"), "protocol", ["never ready"]),
    "killed": (helper("bad", ["/bin/sh", "-c", "kill -KILL $$"], type="oneshot"), "signal", []),
    "too slow": (helper("bad", type="notify", properties={"TimeoutStartUSec": 200_000}), "timeout", []),
    "exec": (helper("bad", properties={"RootDirectory": "/var/empty/none"}), "exit-code", []),
    "restarted": (helper("bad", ["/bin/false"], type="oneshot", restart="on-failure"), "", []),
}  # fmt: skip


@pytest.mark.parametrize("policy", ["ignore", "stopMachine"])
@pytest.mark.parametrize("case", FAILURES)
async def test_one_that_fails_undoes_the_whole_machine(spawn: Processes, case: str, policy: str) -> None:
    bad, result, lines = FAILURES[case]
    wanted = [
        helper("first", sockets=[{"name": "s"}]),
        {**bad, "after": ["first"], "onFailure": policy},
        helper("last", after=["bad"]),
    ]
    async with await connect() as client:
        leader = spawn()
        before = control_group(leader)
        with pytest.raises(HelperFailed) as failure:
            await register(client, "web", leader, helpers=wanted)
        error = failure.value
        assert (error.helper, error.unit) == ("bad", "machine-web-bad.service")
        # Of a service that was started again and again the versions of systemd say one or the other.
        assert error.result in ({result} if result else {"exit-code", "start-limit-hit"})
        assert [line for line in error.log or [] if line in lines] == lines
        assert units() == []
        assert directories() == []
        assert leader.poll() is None
        assert control_group(leader) == before  # it was never moved


BAD_SETTINGS: list[Any] = [
    ({"PAMName": "login", "KillMode": "process"}, "Kill mode must be"),
    pytest.param(
        {"WorkingDirectory": "~"},
        "WorkingDirectory=~ is not allowed",
        marks=pytest.mark.system_instance("it is, without DynamicUser="),
    ),
]
"""Properties that the manager takes, to find that it cannot load a service that has them; and how it says that."""


@pytest.mark.parametrize(("properties", "reason"), BAD_SETTINGS)
async def test_one_that_cannot_be_loaded(spawn: Processes, properties: dict[str, Any], reason: str) -> None:
    bad = helper("bad", properties=properties)
    async with await connect() as client:
        # The scope only wants its helpers: it starts without them, and is stopped at the second look.
        with pytest.raises(HelperFailed) as failure:
            await register(client, "web", spawn(), helpers=[helper("first", sockets=[{"name": "s"}]), bad])
        assert (failure.value.helper, failure.value.result) == ("bad", "bad-setting")
        assert [line for line in failure.value.log or [] if reason in line]
        assert (units(), directories()) == ([], [])

        await register(client, "web", spawn(), helpers=[helper("first", sockets=[{"name": "s"}])])
        before = units()
        with pytest.raises(InvalidProperty, match="bad unit file setting") as refused:
            await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [helper("fs"), bad]})
        assert refused.value.property == ", ".join(properties)
        await until(lambda: sorted(units()) == sorted(before))


async def test_a_start_that_takes_too_long_is_taken_back(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        before = control_group(leader)
        wanted = [helper("fs"), helper("never", type="notify", after=["fs"])]
        with pytest.raises(Timeout):
            await register(client, "web", leader, helpers=wanted, timeoutUSec=1_000_000)
        await until(lambda: not units())
        assert leader.poll() is None
        assert control_group(leader) == before
        # The name is free.
        await register(client, "web", leader, helpers=[helper("fs")])


async def test_a_leader_that_dies_before_its_helpers_are_ready(spawn: Processes) -> None:
    failures: list[Exception] = []
    leader = spawn()

    async def wait(client: Client) -> None:
        wanted = [helper("fs", python(TO_BE_READY), type="notify", sockets=[{"name": "s"}])]
        try:
            await register(client, "web", leader, helpers=wanted)
        except Exception as error:  # noqa: BLE001 - looked at below
            failures.append(error)

    async with await connect() as client, trio.open_nursery() as nursery:
        nursery.start_soon(wait, client)
        await until(
            lambda: "machine-web-fs.socket" in units() and state("machine-web-fs.socket") == "active"
        )
        kill(leader)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(DIRECTORIES / "web/s"))
            await until(lambda: failures)
    assert type(failures[0]).__name__ == "ProcessGone"


async def test_the_end_of_the_service_during_the_start_leaves_no_half(
    spawn: Processes, mortal: None
) -> None:
    leader = spawn()
    before = control_group(leader)
    since = cursor()

    async def wait(client: Client) -> None:
        wanted = [
            helper("fs", sockets=[{"name": "s"}]),
            helper("slow", python(TO_BE_READY.replace('notify.send(b"READY=1")', "raise SystemExit(1)")),
                   type="notify", sockets=[{"name": "slow"}], after=["fs"]),
        ]  # fmt: skip
        with pytest.raises(Exception):  # noqa: B017, PT011 - the connection ends
            await register(client, "web", leader, helpers=wanted)

    async with await connect() as client, trio.open_nursery() as nursery:
        nursery.start_soon(wait, client)
        await until(lambda: "waiting as slow" in messages("machine-web-slow.service", since))
        await end_moored()
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(DIRECTORIES / "web/slow"))
        await assert_everything_gone()
    assert control_group(leader) == before


# They go


async def killed(leader: Process) -> float:
    """Kill a leader; return the time, s, until no unit of any machine is there."""
    began = time.monotonic()
    kill(leader)
    await assert_everything_gone()
    return time.monotonic() - began


async def test_they_go_with_the_leader(spawn: Processes) -> None:
    wanted = [helper(f"h{number}", sockets=[{"name": f"s{number}"}]) for number in range(5)]
    async with await connect() as client:
        leader = spawn()
        await register(client, "web", leader, helpers=wanted)
        print(f"from SIGKILL of the leader until 5 helpers are gone: {(await killed(leader)) * 1e3:.0f} ms")


async def test_they_go_with_the_leader_when_the_service_is_dead(spawn: Processes, mortal: None) -> None:
    wanted = [helper(f"h{number}", sockets=[{"name": f"s{number}"}]) for number in range(5)]
    async with await connect() as client:
        leader = spawn()
        await register(client, "web", leader, helpers=wanted)
    await end_moored()
    print(f"the same with moored dead: {(await killed(leader)) * 1e3:.0f} ms")


@pytest.mark.parametrize("how", ["Stop", "systemctl"])
async def test_the_machine_stops_before_its_helpers(spawn: Processes, how: str) -> None:
    """A VMM that is told to stop needs its disk until it has stopped."""
    goodbye = (
        "import signal, socket, sys\n"
        "def stop(*_):\n"
        "    peer = socket.socket(socket.AF_UNIX); peer.connect(sys.argv[1])\n"
        "    print(peer.recv(9).decode(), flush=True); sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop); print('up', flush=True)\n"
        "while True: signal.pause()\n"
    )
    serve = "import socket\nwhile True: socket.socket(fileno=3).accept()[0].send(b'saved')\n".replace(
        "while True: socket.socket(fileno=3)", "s = socket.socket(fileno=3)\nwhile True: s"
    )
    async with await connect() as client:
        leader = spawn(
            [sys.executable, "-c", goodbye, str(DIRECTORIES / "web/disk")], stdout=subprocess.PIPE
        )
        assert leader.stdout is not None
        assert leader.stdout.readline() == b"up\n"
        await register(
            client, "web", leader, helpers=[helper("disk", python(serve), sockets=[{"name": "disk"}])]
        )
        if how == "Stop":
            await client.call(f"{OURS}Stop", {"name": "web"})
        else:
            run("systemctl", "stop", "machine-web.scope")
        assert await trio.to_thread.run_sync(leader.stdout.read) == b"saved\n"
        assert leader.wait() == 0


async def test_the_same_machine_again_at_once(spawn: Processes) -> None:
    wanted = [helper("fs", sockets=[{"name": "s"}]), helper("tpm", after=["fs"])]
    async with await connect() as client:
        for _ in range(20):
            leader = spawn()
            machine = (await register(client, "web", leader, helpers=wanted))["machine"]
            assert [each["activeState"] for each in machine["helpers"]] == ["active", "active"]
            kill(leader)


async def test_a_helper_that_is_added_to_a_machine_that_ends_does_not_keep_the_name(
    spawn: Processes,
) -> None:
    """Its start pulls in the scope, which has ended just before, and with it the helpers that came with that.

    Where the helper comes so late that it is added to the next machine of the name, that one's end is its end, or that
    one is being stopped by then.
    """
    slow = helper("slow", type="oneshot")  # never ready
    async with await connect() as client:
        for _ in range(5):
            leader = spawn()
            await register(client, "web", leader, helpers=[helper("fs")])
            async with await connect() as other, trio.open_nursery() as nursery:

                async def add(other: Client = other) -> None:
                    with pytest.raises((Busy, HelperFailed, NoSuchMachine, UnitNameTaken)) as caught:
                        await other.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [slow]})
                    if isinstance(caught.value, Busy):
                        assert caught.value.operation == "the machine is stopping"

                signal_moored(signal.SIGSTOP)
                try:
                    kill(leader)
                    nursery.start_soon(add)
                    await until(
                        lambda: show("machine-web.scope", "ActiveState")["ActiveState"] == "inactive"
                    )
                finally:
                    signal_moored(signal.SIGCONT)
                await register(client, "web", spawn())
                assert "machine-web-fs.service" not in units()
                await client.call(f"{OURS}Stop", {"name": "web"})
            await until(lambda: units() == [])


async def test_a_name_held_by_something_else(spawn: Processes) -> None:
    run("systemd-run", "--unit=machine-web-fs.service", "sleep", "infinity")
    try:
        async with await connect() as client:
            leader = spawn()
            with pytest.raises(UnitNameTaken) as failure:
                await register(client, "web", leader, helpers=[helper("fs")])
            assert failure.value.unit == "machine-web-fs.service"
            assert leader.poll() is None
            assert units() == ["machine-web-fs.service"]
    finally:
        run("systemctl", "stop", "machine-web-fs.service")


@contextmanager
def held_by_others(holder: str, unit: str) -> Generator[None]:
    """Have a unit of somebody else run that has the name of one of a machine's."""
    path = UNIT_FILES / unit
    if holder == "a unit file":
        path.write_text("[Service]\nExecStart=/usr/bin/sleep infinity\n")
        run("systemctl", "daemon-reload")
        run("systemctl", "start", unit)
    else:
        run("systemd-run", f"--unit={unit}", "sleep", "infinity")
    before = show(unit, "InvocationID", "ActiveState")
    assert before["ActiveState"] == "active"
    try:
        yield
        assert show(unit, "InvocationID", "ActiveState") == before
    finally:
        path.unlink(missing_ok=True)
        run("systemctl", "stop", unit)
        run("systemctl", "daemon-reload")


@pytest.mark.parametrize("holder", ["a transient unit", "a unit file"])
@pytest.mark.parametrize(
    "unit", ["machine-web-fs.service", "machine-web.service", "machine-web--add.service"]
)
async def test_units_of_others_run_on(spawn: Processes, holder: str, unit: str) -> None:
    """What a call did not start, it does not stop when it fails."""
    with held_by_others(holder, unit):
        async with await connect() as client:
            await register(client, "web", spawn())
            wanted = {"name": "web", "helpers": [helper("fs", sockets=[{"name": "s"}])]}
            with pytest.raises(UnitNameTaken) as failure:
                await client.call(f"{OURS}AddHelpers", wanted)
            assert failure.value.unit == unit
            assert {*units()} == {"machine-web.scope", unit}
            assert (await describe(client, "web"))["helpers"] == []
            await client.call(f"{OURS}Stop", {"name": "web"})


async def test_helpers_of_a_machine_that_was_forgotten_run_on(spawn: Processes) -> None:
    leader = spawn()
    async with await connect() as client:
        await register(client, "web", leader)
        wanted = {"name": "web", "helpers": [helper("fs", sockets=[{"name": "s"}])]}
        await client.call(f"{OURS}AddHelpers", wanted)
        before = {unit: show(unit, "InvocationID") for unit in units()}
        await client.call(f"{OURS}Forget", {"name": "web"})
        await register(client, "web", leader, allocateUnit=False)
        with pytest.raises(UnitNameTaken):
            await client.call(f"{OURS}AddHelpers", wanted)
        assert {unit: show(unit, "InvocationID") for unit in units()} == before
        await client.call(f"{OURS}Stop", {"name": "web"})


async def test_a_successor_of_a_helper_that_is_none_runs_on(spawn: Processes) -> None:
    """The helper ended by itself, and somebody else has taken its name."""
    async with await connect() as client:
        await register(client, "web", spawn())
        await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [helper("fs")]})
        run("systemctl", "stop", "machine-web-fs.service")
        with held_by_others("a transient unit", "machine-web-fs.service"):
            await client.call(f"{OURS}RemoveHelper", {"name": "web", "helper": "fs"})
            assert (await describe(client, "web"))["helpers"] == []
        await client.call(f"{OURS}Stop", {"name": "web"})


# They fail


async def made(client: Client, leader: Process, wanted: dict[str, Any], *, added: bool) -> int:
    """Make a machine with a helper; return the helper's main PID."""
    if added:
        await register(client, "web", leader)
        reply = await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [wanted]})
        return reply["helpers"][0]["mainProcess"]["pid"]
    return (await register(client, "web", leader, helpers=[wanted]))["machine"]["helpers"][0]["mainProcess"][
        "pid"
    ]


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("policy", ["ignore", "restart", "stopMachine", "stopMachine after restart"])
async def test_what_a_failure_means_is_kept_without_the_service(
    spawn: Processes, mortal: None, policy: str, added: bool
) -> None:
    fields: dict[str, Any] = {"onFailure": policy.split(maxsplit=1)[0]} if policy != "restart" else {}
    if "restart" in policy:
        fields |= {"restart": "on-failure", "properties": {"RestartUSec": 1000, "StartLimitBurst": 3}}
    leader = spawn()
    async with await connect() as client:
        pid = await made(client, leader, helper("fs", sockets=[{"name": "s"}], **fields), added=added)
    await end_moored()
    unit = "machine-web-fs.service"

    async def again(last: int) -> int:
        os.kill(last, signal.SIGKILL)

        def started() -> int:
            shown = show(unit, "MainPID", "ActiveState")
            return (
                int(shown["MainPID"])
                if shown["ActiveState"] == "active" and shown["MainPID"] != str(last)
                else 0
            )

        return await until(started)

    if "restart" in policy:
        pid = await again(pid)
        pid = await again(pid)
        assert state("machine-web.scope") == "active"
    if "stopMachine" in policy:
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        await assert_everything_gone()
        assert leader.wait() == -signal.SIGTERM
        print(
            f"{policy}, added {added}: the machine is gone after {(time.monotonic() - began) * 1e3:.0f} ms"
        )
    else:
        os.kill(pid, signal.SIGKILL)
        if policy == "ignore":
            await until(lambda: state(unit) in {"failed", "inactive"})
            await until(lambda: state("machine-web-fs.socket") == "inactive")
        assert state("machine-web.scope") == "active"
        assert leader.poll() is None


async def test_a_failure_is_seen(spawn: Processes) -> None:
    async with await connect() as client:
        machine = (await register(client, "web", spawn(), helpers=[helper("fs")]))["machine"]
        os.kill(machine["helpers"][0]["mainProcess"]["pid"], signal.SIGKILL)

        async def failed() -> bool:
            (found,) = (await describe(client, "web"))["helpers"]
            return found["activeState"] == "failed" and found["result"] == "signal"

        await until(failed)


@pytest.mark.parametrize("added", [False, True])
async def test_how_one_failed_stays_known(spawn: Processes, added: bool) -> None:
    async with await connect() as client:
        await made(client, spawn(), helper("fs"), added=added)
        run("systemctl", "kill", "--signal=KILL", "machine-web-fs.service")

        async def failed() -> bool:
            (found,) = (await describe(client, "web"))["helpers"]
            return (found["activeState"], found["result"]) == ("failed", "signal")

        await until(failed)


async def ended(client: Client, name: str) -> None:
    """Kill a helper of web, and wait until it is known to have failed."""
    run("systemctl", "kill", "--signal=KILL", f"machine-web-{name}.service")

    async def failed() -> bool:
        found = {each["name"]: each["activeState"] for each in (await describe(client, "web"))["helpers"]}
        return found[name] == "failed"

    await until(failed)


async def test_one_that_has_ended_is_replaced(spawn: Processes) -> None:
    async with await connect() as client:
        await made(client, spawn(), helper("fs", sockets=[{"name": "s"}]), added=True)
        await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [helper("gpu")]})
        again = {"name": "web", "helpers": [helper("fs", sockets=[{"name": "s"}, {"name": "t"}])]}
        with pytest.raises(InvalidParameter, match=r"helpers\[0\].name"):
            await client.call(f"{OURS}AddHelpers", again)
        await ended(client, "fs")
        other = {"name": "web", "helpers": [helper("x", sockets=[{"name": "s"}])]}
        with pytest.raises(InvalidParameter, match=r"helpers\[0\].sockets\[0\].name"):
            await client.call(f"{OURS}AddHelpers", other)
        (found,) = (await client.call(f"{OURS}AddHelpers", again))["helpers"]
        assert (found["name"], found["activeState"]) == ("fs", "active")
        assert [
            (each["name"], each["activeState"]) for each in (await describe(client, "web"))["helpers"]
        ] == [("gpu", "active"), ("fs", "active")]
        assert sorted(os.listdir(DIRECTORIES / "web")) == ["s", "t"]
        # The record is that of the new one.
        run("systemctl", "restart", "moored.service")
    async with await connect() as client:
        assert [each["activeState"] for each in (await describe(client, "web"))["helpers"]] == ["active"] * 2


async def test_one_that_came_with_the_machine_is_not_replaced(spawn: Processes) -> None:
    async with await connect() as client:
        await made(client, spawn(), helper("fs"), added=False)
        await ended(client, "fs")
        with pytest.raises(UnitNameTaken, match="came with the machine, and has ended") as taken:
            await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [helper("fs")]})
        assert taken.value.unit == "machine-web-fs.service"
        (found,) = (await describe(client, "web"))["helpers"]
        assert (found["activeState"], found["result"]) == ("failed", "signal")


async def test_none_is_active_whose_program_has_ended(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
        for number in range(20):
            wanted = {"name": "web", "helpers": [helper(f"h{number}", ["/usr/bin/false"])]}
            try:
                (found,) = (await client.call(f"{OURS}AddHelpers", wanted))["helpers"]
            except HelperFailed:
                continue
            assert found["activeState"] != "active" or "mainProcess" in found


# More of them, and less


async def test_added_as_they_change(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        await register(client, "web", leader)
        wanted = [
            helper("fs", sockets=[{"name": "s"}]),
            helper("gpu", after=["fs"], onFailure="stopMachine"),
        ]
        async with client.call_more(f"{OURS}AddHelpers", {"name": "web", "helpers": wanted}) as replies:
            seen = [[each["activeState"] for each in reply["helpers"]] async for reply in replies]
        assert seen[-1] == ["active", "active"]
        assert len(seen) > 1
        machine = await describe(client, "web")
        assert machine["runtimeDirectory"] == str(DIRECTORIES / "web")
        assert [each["name"] for each in machine["helpers"]] == ["fs", "gpu"]
        await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [helper("tpm", after=["gpu"])]})
        assert [each["name"] for each in (await describe(client, "web"))["helpers"]] == ["fs", "gpu", "tpm"]
        with pytest.raises(InvalidParameter, match=r"helpers\[0\].name"):
            await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [helper("tpm")]})
        with pytest.raises(InvalidParameter, match=r"helpers\[0\].sockets\[0\].name"):
            await client.call(
                f"{OURS}AddHelpers", {"name": "web", "helpers": [helper("x", sockets=[{"name": "s"}])]}
            )
        print(f"after AddHelpers: {(await killed(leader)) * 1e3:.0f} ms")


async def test_added_all_or_none(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        await register(client, "web", leader, helpers=[helper("first", sockets=[{"name": "s"}])])
        before = units()
        wanted = [helper("fs", sockets=[{"name": "t"}]), {**FAILURES["oneshot"][0], "after": ["fs"]}]
        with pytest.raises(HelperFailed) as failure:
            await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": wanted})
        assert (failure.value.helper, failure.value.result) == ("bad", "exit-code")
        assert (failure.value.log or [])[-2:] == ["first", "last"]
        await until(lambda: sorted(units()) == sorted(before))
        assert os.listdir(DIRECTORIES / "web") == ["s"]
        assert [each["name"] for each in (await describe(client, "web"))["helpers"]] == ["first"]
        # And the name can be used.
        await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [helper("bad")]})


async def test_not_to_a_part_of_a_unit(spawn: Processes) -> None:
    async with await connect() as client:
        with pytest.raises(InvalidParameter, match="helpers"):
            await register(client, "web", spawn(), allocateUnit=False, helpers=[helper("fs")])


@pytest.mark.parametrize("added", [False, True])
async def test_removed(spawn: Processes, added: bool) -> None:
    async with await connect() as client:
        leader = spawn()
        wanted = helper("fs", sockets=[{"name": "s"}], onFailure="stopMachine")
        await made(client, leader, wanted, added=added)
        await client.call(f"{OURS}RemoveHelper", {"name": "web", "helper": "fs"})
        assert state("machine-web-fs.service") == "inactive"
        assert os.listdir(DIRECTORIES / "web") == []
        assert (await describe(client, "web"))["helpers"] == []
        assert state("machine-web.scope") == "active"
        assert leader.poll() is None
        with pytest.raises(NoSuchHelper):
            await client.call(f"{OURS}RemoveHelper", {"name": "web", "helper": "fs"})
        again = {"name": "web", "helpers": [helper("fs", sockets=[{"name": "s"}])]}
        if added:
            reply = await client.call(f"{OURS}AddHelpers", again)
            assert reply["helpers"][0]["activeState"] == "active"
        else:
            # The scope needs it for ever: the manager does not forget what it was.
            with pytest.raises(UnitNameTaken, match="was removed") as taken:
                await client.call(f"{OURS}AddHelpers", again)
            assert taken.value.unit == "machine-web-fs.service"
            other = {"name": "web", "helpers": [helper("fs2", sockets=[{"name": "s"}])]}
            await client.call(f"{OURS}AddHelpers", other)
        assert os.listdir(DIRECTORIES / "web") == ["s"]


@pytest.mark.parametrize("policy", ["ignore", "stopMachine"])
async def test_one_that_was_removed_stays_away(spawn: Processes, policy: str) -> None:
    its = ["machine-web-fs.service", "machine-web-fs-bond.service"]
    shown = ("InvocationID", "ActiveState", "InactiveEnterTimestampMonotonic")
    async with await connect() as client:
        leader = spawn()
        wanted = helper("fs", sockets=[{"name": "s"}], onFailure=policy)
        await register(client, "web", leader, helpers=[wanted])
        await client.call(f"{OURS}RemoveHelper", {"name": "web", "helper": "fs"})
        before = [show(unit, *shown) for unit in its]
        for name in ("gpu", "tpm"):  # each is bound to the scope, which still wants the first one
            added = helper(name, restart="on-failure", onFailure="stopMachine")
            await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [added]})
        invocation = show("machine-web-tpm.service", "InvocationID")
        run("systemctl", "kill", "--signal=KILL", "machine-web-tpm.service")
        await until(lambda: show("machine-web-tpm.service", "InvocationID") != invocation)
        await until(lambda: "No jobs" in run("systemctl", "list-jobs", "machine-web*"))
        assert [show(unit, *shown) for unit in its] == before
        assert os.listdir(DIRECTORIES / "web") == []
        # Those that were added have bonds that hold.
        run("systemctl", "stop", "machine-web-gpu.service")
        assert await trio.to_thread.run_sync(leader.wait, 30) == -signal.SIGTERM


async def test_reloaded(spawn: Processes) -> None:
    text = (
        "import signal\n"
        "signal.signal(signal.SIGHUP, lambda *_: print('again', flush=True))\n"
        "while True: signal.pause()\n"
    )
    reload = {"ExecReloadEx": [["/bin/sh", ["sh", "-c", "kill -HUP $MAINPID"], ["no-env-expand"]]]}
    async with await connect() as client:
        wanted = [
            helper("a", python(text), properties=reload),
            helper("b"),
            helper("c", python(text), properties=reload),
        ]
        machine = (await register(client, "web", spawn(), helpers=wanted))["machine"]
        before = messages("machine-web-a.service").count("again")
        assert len(machine["helpers"]) == 3
        reply = await client.call(f"{OURS}Reload", {"name": "web"})
        assert reply == {"reloaded": ["a", "c"], "skipped": ["b"]}
        await until(lambda: messages("machine-web-a.service").count("again") == before + 1)


# A lease


@pytest.mark.parametrize("how", ["hang up", "restart"])
async def test_a_lease_ends_with_the_connection(spawn: Processes, how: str) -> None:
    leader = spawn()
    async with await connect() as client:
        await register(client, "web", leader, lease=True, helpers=[helper("fs")])
        await register(client, "other", spawn())
        if how == "restart":
            signal_moored(signal.SIGKILL)
    async with await connect() as client:
        await until(lambda: leader.poll() is not None)
        await verdict(client, "web")
        assert list(await listed(client)) == ["other"]


# A place of its own


@pytest.mark.system_instance("a user has no machines of others")
async def test_sockets_are_for_the_machine_of_its_user(spawn: Processes) -> None:
    async with await connect() as client:
        wanted = [helper("fs", sockets=[{"name": "s"}])]
        for name, uid in (("a", ALICE), ("b", BOB)):
            await register(client, name, spawn(user=uid), helpers=wanted)
            assert os.stat(DIRECTORIES / name).st_uid == uid
            # The socket is root's, and as good as theirs: who owns the directory could have a chown(2) lead elsewhere.
            found = os.stat(DIRECTORIES / name / "s")
            assert (found.st_uid, found.st_mode & 0o777) == (0, 0o606)
        assert connect_as(ALICE, DIRECTORIES / "a" / "s") == ""
        assert connect_as(BOB, DIRECTORIES / "b" / "s") == ""
        assert connect_as(ALICE, DIRECTORIES / "b" / "s") == "PermissionError"
        assert connect_as(BOB, DIRECTORIES / "a" / "s") == "PermissionError"


@pytest.mark.system_instance("a user's manager gives no sandbox that takes privileges")
async def test_a_helper_sees_its_own_place_only(spawn: Processes) -> None:
    since = cursor()
    look = helper("look", ["/usr/bin/find", "/run/moorage"], type="oneshot",
                  properties={"DynamicUser": False}, sockets=[{"name": "mine"}])  # fmt: skip
    async with await connect() as client:
        await register(client, "a", spawn(), helpers=[helper("fs", sockets=[{"name": "s"}])])
        await register(client, "b", spawn(), helpers=[look])
        assert sorted(messages("machine-b-look.service", since)) == [
            "/run/moorage", "/run/moorage/m", "/run/moorage/m/b", "/run/moorage/m/b/mine",
        ]  # fmt: skip


@pytest.mark.system_instance("a user's manager gives no sandbox that takes privileges")
@pytest.mark.parametrize(
    ("properties", "expected"), [({}, "ConnectionRefusedError"), ({"PrivateNetwork": False}, "connected")]
)
async def test_no_abstract_socket_of_the_host(
    spawn: Processes, properties: dict[str, Any], expected: str
) -> None:
    text = (
        "import socket\n"
        "try: socket.socket(socket.AF_UNIX).connect('\\0of the host'); print('connected')\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    since = cursor()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0of the host")
        listener.listen()
        async with await connect() as client:
            wanted = [helper("try", python(text), type="oneshot", properties=properties)]
            await register(client, f"web-{expected}", spawn(), helpers=wanted)
            (unit,) = [each["unit"] for each in (await describe(client, f"web-{expected}"))["helpers"]]
            assert messages(unit, since) == [expected]


@pytest.mark.system_instance("a user's manager gives no sandbox that takes privileges")
async def test_what_a_helper_may_do_by_default(spawn: Processes) -> None:
    since = cursor()
    text = (
        "import os, socket, json\n"
        "def tried(what):\n"
        "    try: what(); return 'done'\n"
        "    except OSError as error: return type(error).__name__\n"
        "print(json.dumps([os.getuid() >= 61184, tried(lambda: open('/etc/x', 'w')), os.listdir('/tmp'),\n"
        "    tried(lambda: os.listdir('/root')), tried(lambda: socket.socket(socket.AF_INET)),\n"
        "    tried(lambda: os.stat('/dev/kmsg')), tried(lambda: os.sched_setaffinity(0, {0}))]))\n"
    )
    async with await connect() as client:
        await register(client, "web", spawn(), helpers=[helper("look", python(text), type="oneshot")])
        (message,) = messages("machine-web-look.service", since)
        uid, written, temporary, home, family, device, _ = json.loads(message)
        assert (uid, temporary) == (True, [])
        assert os.listdir("/tmp") != []
        assert {written, home} <= {"PermissionError", "OSError", "FileNotFoundError"}
        assert family in {"OSError", "PermissionError"}
        assert device == "FileNotFoundError"


# Bad input

SOCKET_S = [{"name": "s"}]
BAD: dict[str, tuple[list[dict[str, Any]], str]] = {
    "a name twice": ([helper("a"), helper("a")], "helpers[1].name"),
    "no name": ([helper("")], "helpers[0].name"),
    "a path as name": ([helper("a/b")], "helpers[0].name"),
    "a parent as name": ([helper("..")], "helpers[0].name"),
    "a hyphen first": ([helper("-a")], "helpers[0].name"),
    "a specifier as name": ([helper("%n")], "helpers[0].name"),
    "a name with a space": ([helper("a b")], "helpers[0].name"),
    "a name of 65": ([helper("a" * 65)], "helpers[0].name"),
    "a name of 200": ([helper("a" * 200)], "helpers[0].name"),
    "64 hyphens": ([helper("a" + "-" * 63)], "helpers[0].name"),
    "too many": ([helper(f"h{number}") for number in range(100)], "helpers"),
    "itself": ([helper("a", after=["a"])], "helpers[0].after"),
    "a cycle": (
        [helper("x"), helper("a", after=["b"]), helper("b", after=["c"]), helper("c", after=["a"])],
        "helpers[1].after",
    ),
    "nobody": ([helper("a", after=["a", "b"])], "helpers[0].after[1]"),
    "no command": ([{"name": "a", "execStart": []}], "helpers[0].execStart"),
    "a relative command": ([helper("a", ["sleep", "1"])], "helpers[0].execStart"),
    "a command with a prefix": ([helper("a", ["+/usr/bin/sleep"])], "helpers[0].execStart"),
    "a command that climbs": ([helper("a", ["/usr/bin/../bin/sleep"])], "helpers[0].execStart"),
    "an empty command": ([helper("a", [""])], "helpers[0].execStart"),
    "a command that is not there": ([helper("x"), helper("a", ["/usr/bin/none"])], "helpers[1].execStart[0]"),
    "a command that is a directory": ([helper("a", ["/usr/bin"])], "helpers[0].execStart[0]"),
    "a command that is no program": ([helper("a", ["/etc/passwd"])], "helpers[0].execStart[0]"),
    "NUL": ([helper("a", ["/usr/bin/sleep", "a\0b"])], "helpers[0].execStart[1]"),
    "a command that no unit file can hold": ([helper("a", ["/usr/bin/sle*p"])], "helpers[0].execStart[0]"),
    "a type": ([helper("a", type="forking")], "helpers[0].type"),
    "a type with a bus": ([helper("a", type="dbus")], "helpers[0].type"),
    "a restart": ([helper("a", restart="often")], "helpers[0].restart"),
    "a restart of what ends": ([helper("a", type="oneshot", restart="always")], "helpers[0].restart"),
    "a policy": ([helper("a", onFailure="panic")], "helpers[0].onFailure"),
    "a socket's path": ([helper("a", sockets=[{"name": "a/b"}])], "helpers[0].sockets[0].name"),
    "a socket's parent": ([helper("a", sockets=[{"name": ".."}])], "helpers[0].sockets[0].name"),
    "a socket without a name": ([helper("a", sockets=[{"name": ""}])], "helpers[0].sockets[0].name"),
    "a socket with NUL": ([helper("a", sockets=[{"name": "a\0"}])], "helpers[0].sockets[0].name"),
    "a socket's long name": ([helper("a", sockets=[{"name": "s" * 100}])], "helpers[0].sockets[0].name"),
    "a socket twice": ([helper("a", sockets=SOCKET_S), helper("b", sockets=SOCKET_S)], "helpers[1].sockets[0].name"),
    "a sticky mode": ([helper("a", sockets=[{"name": "s", "mode": 0o1777}])], "helpers[0].sockets[0].mode"),
    "a negative mode": ([helper("a", sockets=[{"name": "s", "mode": -1}])], "helpers[0].sockets[0].mode"),
    "two modes": ([helper("a", sockets=[{"name": "s", "mode": 0o600}, {"name": "t"}])], "helpers[0].sockets[1].mode"),
    "17 sockets": ([helper("a", sockets=[{"name": f"s{number}"} for number in range(17)])], "helpers[0].sockets"),
    "a socket's type": ([helper("a", sockets=[{"name": "s", "type": "raw"}])], "helpers[0].sockets[0].type"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
async def test_bad_helpers(spawn: Processes, case: str) -> None:
    wanted, field = BAD[case]
    async with await connect() as client:
        leader = spawn()
        with pytest.raises(InvalidParameter) as failure:
            await register(client, "web", leader, helpers=wanted)
        assert failure.value.parameter == field
        assert units() == []
        await register(client, "web", leader)
        with pytest.raises(InvalidParameter) as failure:
            await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": wanted})
        assert failure.value.parameter == field
        assert units() == ["machine-web.scope"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Slice", "system.slice"), ("BindsTo", []), ("Before", ["x.service"]), ("Conflicts", ["dbus.service"]),
        ("OnFailure", ["x.service"]), ("ExecStart", []), ("ExecStartEx", []),
        ("ExecStartPreEx", [["/bin/true", ["true"], ["privileged"]]]), ("ExecCondition", []),
        ("ExecStartPre", [["+/bin/true", ["true"], False]]), ("ExecReload", [["true", ["true"], False]]),
        ("ExecReload", [["/bin/kill", ["kill", "$MAINPID"], False]]), ("ExecReload", [["/bin/true a", ["x"], False]]),
        ("Type", "forking"), ("Restart", "always"), ("RemainAfterExit", True), ("RuntimeDirectory", ["x"]),
        ("CollectMode", "inactive"), ("FailureAction", "reboot"), ("DefaultDependencies", True),
        ("Sockets", ["x.socket"]),
        ("MemoryMax", "much"), ("MemoryMax", -1), ("DynamicUser", "yes"), ("StateDirectory", ["../x"]),
    ],
)  # fmt: skip
async def test_properties_that_are_refused(spawn: Processes, name: str, value: object) -> None:
    async with await connect() as client:
        with pytest.raises(InvalidProperty) as failure:
            await register(
                client, "web", spawn(), helpers=[helper("ok"), helper("fs", properties={name: value})]
            )
        assert (failure.value.property, failure.value.helper) == (name, "fs")
        await until(lambda: not units())


@pytest.mark.parametrize("name", ["BindPaths", "BindReadOnlyPaths"])
async def test_no_version_has_id_mapped_bind_mounts(spawn: Processes, name: str) -> None:
    async with await connect() as client:
        bad = helper("fs", properties={name: [["/srv", "/mnt", False, "idmap"]]})
        with pytest.raises(NotSupported) as refused:
            await register(client, "web", spawn(), helpers=[bad])
        assert refused.value.what == f"{name}=…:idmap"
        assert units() == []


async def test_a_scope_of_a_user_is_not_stopped_by_a_helper(spawn: Processes) -> None:
    async with await connect() as client:
        with pytest.raises(InvalidProperty, match="User"):
            await register(
                client,
                "web",
                spawn(),
                properties={"User": "alice"},
                helpers=[helper("fs", onFailure="stopMachine")],
            )


async def test_as_many_as_there_may_be(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        wanted = [helper(f"h{number}", sockets=[{"name": f"s{number}"}]) for number in range(64)]
        machine = (await register(client, "web", leader, helpers=wanted))["machine"]
        assert {each["activeState"] for each in machine["helpers"]} == {"active"}
        assert await describe(client, "web") == machine
        with pytest.raises(InvalidParameter, match="helpers"):
            await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [helper("more")]})
        print(f"64 helpers with sockets: gone after {(await killed(leader)) * 1e3:.0f} ms")
