"""From a call to a scope: the reply is the truth, and what cannot be done leaves nothing."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from moored import (
    MANAGER,
    OURS,
    RECORDS,
    SERVICES,
    SOCKET,
    THEIRS,
    UNTIL_SECONDS,
    Process,
    Processes,
    connect,
    control_group,
    describe,
    kill,
    listed,
    living_records,
    members,
    move,
    nothing_listed,
    process_of,
    register,
    run,
    scopes,
    show,
    state,
    sync_journal,
    told,
    until,
    verdict,
)

from moorage import errors as machine_errors
from moorage.api.systemd_machine import errors as systemd_errors
from moorage.errors import (
    JobFailed,
    MachineExists,
    NoSuchMachine,
    NotSupported,
    ProcessGone,
    Timeout,
)
from moorage.wire.client import Client
from moorage.wire.errors import ExpectedMore, InvalidParameter, System, VarlinkError

pytestmark = pytest.mark.usefixtures("beside")

NAMES = [
    "web", "web-1", "a--b", "a-", "a.b", "a..b", "a.", "user@host", "@", "back\\slash", "\\x2d", "9lives", "_x", "a:b",
    "x" * 64, "-".join("x" * 32), "\\" * 59,
]  # fmt: skip

NO_NAMES = [
    "", ".", "..", ".a", "-", "-a", "a/b", "/", "a b", "a\0b", "a\n", "ä", "a\u200bb", "a*", "x" * 65, "\\" * 64,
    "%n", "$(x)", "a;b", "~", "{}",
]  # fmt: skip

NO_SLICES = [
    "", "x", ".slice", "-.slice", "a-.slice", "-a.slice", "a--b.slice", "a.service", "a.slice/", "/a.slice",
    "a b.slice", "a@b.slice", "../a.slice", "a\0.slice", "ä.slice", "a/b.slice", "x" * 250 + ".slice", "A.SLICE",
]  # fmt: skip

IDENTITY: dict[str, Any] = {
    "id": "0123456789ABCDEF0123456789abcdef",
    "service": "a-launcher 1.0 “ü”",
    "rootDirectory": "/var/lib/machines/web",
    "vSockCid": 4711,
    "sshAddress": "vsock/4711",
    "sshPrivateKeyPath": "/run/keys/web",
    "controlAddress": "/run/web/control",
}


def facts(unit: str) -> dict[str, Any]:
    """What the service manager says of a unit, in the words of a reply."""
    shown = show(
        unit, "Id", "Slice", "ControlGroup", "ControlGroupId", "InvocationID", "ActiveState", "SubState"
    )
    assert (shown["ActiveState"], shown["SubState"]) in {("active", "running"), ("active", "exited")}
    return {
        "unit": shown["Id"],
        "slice": shown["Slice"],
        "controlGroup": shown["ControlGroup"],
        "controlGroupId": int(shown["ControlGroupId"]),
        "invocationId": shown["InvocationID"],
    }


async def refused(
    client: Client, error: type[VarlinkError], name: str, process: Process | None, /, **fields: Any
) -> Any:
    """Return the error of a registration; nothing was made."""
    with pytest.raises(error) as caught:
        await register(client, name, process, **fields)
    assert await listed(client) == {}
    return caught.value


async def theirs(client: Client, method: str, **parameters: Any) -> dict[str, Any]:
    return await client.call(THEIRS + method, parameters)


async def all_theirs(client: Client, **parameters: Any) -> dict[str, dict[str, Any]]:
    async with client.call_more(f"{THEIRS}List", parameters) as replies:
        return {reply["name"]: reply async for reply in replies}


# The reply


async def test_the_reply_is_what_the_manager_and_the_kernel_say(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        machine = (await register(client, "web", leader, **IDENTITY, ifIndices=[1]))["machine"]
        assert control_group(leader) == machine["controlGroup"]
        assert facts("machine-web.scope").items() <= machine.items()
        assert os.stat("/sys/fs/cgroup" + machine["controlGroup"]).st_ino == machine["controlGroupId"]
        timestamp = machine.pop("timestamp")
        assert machine == {
            **facts("machine-web.scope"),
            **IDENTITY,
            "id": IDENTITY["id"].lower(),
            "name": "web",
            "class": "vm",
            "phase": "running",
            "freezer": "running",
            "uid": os.getuid(),
            "slice": "machine.slice",
            "leader": process_of(leader),
            "supervisor": process_of(os.getpid()),
            "ifIndices": [1],
            "helpers": [],
            "origin": "registered",
        }
        shown = show("machine-web.scope", "ActiveEnterTimestampMonotonic")
        assert timestamp["monotonic"] >= int(shown["ActiveEnterTimestampMonotonic"])
        described = await describe(client, "web")
        assert described == {**machine, "timestamp": timestamp}
        assert await listed(client) == {"web": described}


async def test_the_leader_is_in_the_scope_at_each_of_many_replies(spawn: Processes) -> None:
    seen: dict[str, str] = {}

    async def one(number: int) -> None:
        async with await connect() as client:
            for turn in range(5):
                leader = spawn()
                machine = (await register(client, f"m{number}-{turn}", leader))["machine"]
                seen[machine["controlGroup"]] = control_group(leader)

    async with trio.open_nursery() as nursery:
        for number in range(16):
            nursery.start_soon(one, number)
    assert len(seen) == 80
    assert all(group == actual for group, actual in seen.items())


async def test_their_interface_tells_where_the_machine_is_as_well(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        reply = await theirs(
            client, "Register", name="web", **{"class": "container"}, leader=leader.pid, allocateUnit=True
        )
        assert control_group(leader) == reply["controlGroup"]
        wanted = facts("machine-web.scope")
        del wanted["controlGroupId"]
        assert reply == wanted
        assert show("machine-web.scope", "Delegate") == {"Delegate": "yes"}


async def test_every_field_of_their_interface_comes_back(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        given = process_of(leader)
        await theirs(
            client, "Register", name="web", **{"class": "vm"}, leaderProcessId=given, leader=leader.pid,
            allocateUnit=True, ifIndices=[1], supervisor=1, **IDENTITY,
        )  # fmt: skip
        found = await theirs(client, "List", name="web")
        machine = await describe(client, "web")
        assert found == {
            **IDENTITY,
            "id": IDENTITY["id"].lower(),
            "name": "web",
            "class": "vm",
            "leader": given,
            "supervisor": process_of(os.getpid()),  # whoever calls, whatever is said
            "unit": "machine-web.scope",
            "timestamp": machine["timestamp"],
            "UID": os.getuid(),
        }
        assert machine["ifIndices"] == [1]
        assert show("machine-web.scope", "Delegate") == {"Delegate": "no"}


# Names and slices


async def test_a_name_makes_one_unit_and_comes_back(spawn: Processes) -> None:
    async with await connect() as client:
        for name in NAMES:
            leader = spawn()
            machine = (await register(client, name, leader))["machine"]
            escaped = run("systemd-escape", "--", name).strip()
            assert machine["unit"] == f"machine-{escaped}.scope"
            assert control_group(leader) == f"{MANAGER}/machine.slice/{machine['unit']}"
            assert run("systemd-escape", "--unescape", "--", escaped).rstrip("\n") == name
            found = await client.call(f"{OURS}Find", {"unit": machine["unit"]})
            assert found["machine"]["name"] == name
        assert set(await listed(client)) == set(NAMES)
        assert len(scopes()) == len(NAMES)


async def test_names_that_are_none_are_refused(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        for name in NO_NAMES:
            assert (await refused(client, InvalidParameter, name, leader)).parameter == "name"
        for name in (*NO_NAMES, "under_score", "user@host", "a:b", "a\\b", "a..b", ".host"):
            with pytest.raises(InvalidParameter) as caught:
                await theirs(client, "Register", name=name, **{"class": "vm"}, leader=leader.pid)
            assert caught.value.parameter == "name"
        await register(client, "web", leader)


async def test_a_slice_is_made_with_those_above_it(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        machine = (await register(client, "web", leader, slice="moorage-test-nested.slice"))["machine"]
        assert machine["slice"] == "moorage-test-nested.slice"
        path = f"{MANAGER}/moorage.slice/moorage-test.slice/moorage-test-nested.slice/machine-web.scope"
        assert machine["controlGroup"] == control_group(leader) == path
        assert show("moorage-test-nested.slice", "ActiveState") == {"ActiveState": "active"}


async def test_slices_that_are_none_are_refused_before_there_is_a_unit(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        for name in NO_SLICES:
            assert (
                await refused(client, InvalidParameter, "web", leader, slice=name)
            ).parameter == "slice", name
        assert scopes() == []


# The leader


async def test_a_leader_by_pidfd(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        parameters = {"name": "web", "class": "vm", "leaderFileDescriptor": 0}
        pidfd = os.pidfd_open(leader.pid)
        reply = await client.call(f"{OURS}Register", parameters, fds=[pidfd])
        os.close(pidfd)
        assert reply["machine"]["leader"] == process_of(leader)
        assert control_group(leader) == reply["machine"]["controlGroup"]


async def test_a_leader_by_the_number_that_no_other_has(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        given = process_of(leader)
        wrong = [
            {**given, "pidfdId": given["pidfdId"] + 1},
            {**given, "bootId": "0" * 31 + "1"},
            {"pid": given["pid"], "bootId": "f" * 32},
        ]
        for other in wrong:
            error = await refused(client, ProcessGone, "web", None, leader=other)
            assert error.pid == leader.pid
            with pytest.raises(InvalidParameter) as caught:
                await theirs(client, "Register", name="web", **{"class": "vm"}, leaderProcessId=other)
            assert caught.value.parameter == "leaderProcessId"
        machine = (await register(client, "web", None, leader=given))["machine"]
        assert machine["leader"] == given


@pytest.mark.system_instance("only root may choose a PID")
async def test_a_recycled_pid_is_not_taken_for_the_process_before(spawn: Processes) -> None:
    async with await connect() as client:
        before = spawn()
        given = process_of(before)
        kill(before)
        await refused(client, ProcessGone, "web", None, leader=given)
        assert spawn.at(before.pid) == given["pid"]
        await refused(client, ProcessGone, "web", None, leader=given)
        now = process_of(before.pid)
        assert now["pidfdId"] != given["pidfdId"]
        assert (await register(client, "web", None, leader=now))["machine"]["leader"] == now


async def test_two_ways_to_name_the_leader_have_to_agree(spawn: Processes) -> None:
    async with await connect() as client:
        leader, other = spawn(), spawn()
        pidfd = os.pidfd_open(leader.pid)
        parameters = {"name": "web", "class": "vm", "leaderFileDescriptor": 0, "leader": {"pid": other.pid}}
        with pytest.raises(InvalidParameter, match="leaderFileDescriptor"):
            await client.call(f"{OURS}Register", parameters, fds=[pidfd])
        os.close(pidfd)
        with pytest.raises(InvalidParameter, match="'leader'"):
            await theirs(
                client,
                "Register",
                name="web",
                **{"class": "vm"},
                leader=leader.pid,
                leaderProcessId={"pid": other.pid},
            )
        assert await listed(client) == {}


async def test_what_can_be_no_leader_is_refused(spawn: Processes) -> None:
    gone = spawn()
    kill(gone)
    zombie = spawn(("true",))
    await until(lambda: "State:\tZ" in Path(f"/proc/{zombie.pid}/status").read_text())
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait, daemon=True)
    thread.start()
    main = int(show("moored.service", "MainPID")["MainPID"])
    async with await connect() as client:
        for pid in (0, -1, 1, 2**22 + 1, 2**31, 2**63 - 1, thread.native_id, main):
            assert (
                await refused(client, InvalidParameter, "web", None, leader={"pid": pid})
            ).parameter == "leader"
            with pytest.raises(InvalidParameter, match="'leader'"):
                await theirs(
                    client, "Register", name="web", **{"class": "vm"}, leader=pid, allocateUnit=True
                )
        for pid in (gone.pid, zombie.pid):
            assert (await refused(client, ProcessGone, "web", None, leader={"pid": pid})).pid == pid
            with pytest.raises(InvalidParameter, match="'leader'"):
                await theirs(
                    client, "Register", name="web", **{"class": "vm"}, leader=pid, allocateUnit=True
                )
    ended.set()
    thread.join()


async def test_file_descriptors_that_are_no_pidfd_are_refused(spawn: Processes) -> None:
    gone = spawn()
    of_gone = os.pidfd_open(gone.pid)
    kill(gone)
    read, write = os.pipe()
    parameters = {"name": "web", "class": "vm", "leaderFileDescriptor": 0}
    async with await connect() as client:
        for fds in ([], [read], [write]):
            with pytest.raises(InvalidParameter, match="leaderFileDescriptor"):
                await client.call(f"{OURS}Register", parameters, fds=fds)
        with pytest.raises(ProcessGone):
            await client.call(f"{OURS}Register", parameters, fds=[of_gone])
        assert await listed(client) == {}
    for fd in (of_gone, read, write):
        os.close(fd)


async def test_only_the_leader_moves(spawn: Processes) -> None:
    # A tree of processes: the leader's parent and its child stay where they are.
    tree = spawn(("sh", "-c", "sh -c 'sleep infinity & echo $$ $!; wait' & wait"), stdout=subprocess.PIPE)
    assert tree.stdout is not None
    leader, child = map(int, tree.stdout.readline().split())
    before = control_group(tree)
    async with await connect() as client:
        machine = (await register(client, "web", leader))["machine"]
        assert control_group(leader) == machine["controlGroup"]
        assert control_group(tree) == control_group(child) == control_group(os.getpid()) == before
        found = Path(f"/sys/fs/cgroup{machine['controlGroup']}/cgroup.procs").read_text
        assert found().split() == [str(leader)]
        os.kill(leader, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
        await verdict(client, "web")


async def test_the_caller_is_the_leader_where_none_is_named(nothing_left: None) -> None:
    for method in (OURS, THEIRS):
        parameters = json.dumps({"name": "self", "class": "vm", "allocateUnit": True})
        argv = ["varlinkctl", "call", "--json=short", SOCKET, f"{method}Register", parameters]
        caller = await trio.lowlevel.open_process(argv, stdout=subprocess.PIPE)
        assert caller.stdout is not None
        reply = json.loads(await caller.stdout.receive_some())
        assert await caller.wait() == 0
        machine = reply.get("machine", reply)
        assert machine["unit"] == "machine-self.scope"
        assert machine.get("leader", {"pid": caller.pid})["pid"] == caller.pid
        assert "supervisor" not in machine
        async with await connect() as client:
            assert (await verdict(client, "self"))["result"] == "success"


# Once more


async def test_the_same_call_again_gets_the_same_reply(spawn: Processes) -> None:
    leader = spawn()
    replies: list[dict[str, Any]] = []

    async def one() -> None:
        async with await connect() as client:
            replies.append(await register(client, "web", leader, service="first"))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(one)
    await one()
    assert len(replies) == 9
    assert all(reply == replies[0] for reply in replies)


async def test_a_control_group_whose_name_is_the_kernels_mark_of_removed_ones(spawn: Processes) -> None:
    leader = spawn(
        ("systemd-run", "--scope", "--quiet", "--property=Delegate=yes", "--unit=odd", "sleep", "infinity")
    )
    await until(lambda: control_group(leader).endswith("/odd.scope"))
    group = f"{control_group(leader)}/x (deleted)"
    move(leader, group)
    async with await connect() as client:
        machine = (await register(client, "web", leader, allocateUnit=False))["machine"]
        assert machine["subgroup"] == "/x (deleted)"
        assert machine["controlGroup"] == group
        assert (await listed(client)) == {"web": machine}
        kill(leader)
        await until(lambda: nothing_listed(client), "the machine has ended with its last process")


async def test_a_control_group_whose_name_is_not_unicode(spawn: Processes) -> None:
    """Who may make control groups gives them any name: neither interface can tell it."""
    leader = spawn(
        ("systemd-run", "--scope", "--quiet", "--property=Delegate=yes", "--unit=odd", "sleep", "infinity")
    )
    await until(lambda: control_group(leader).endswith("/odd.scope"))
    move(leader, f"{control_group(leader)}/{os.fsdecode(b'bad' + bytes([255, 254]))}")
    async with await connect() as client:
        with pytest.raises(NotSupported, match="not UTF-8"):
            await register(client, "web", leader, allocateUnit=False)
        fields = {"name": "web", "class": "vm", "leader": leader.pid, "allocateUnit": False}
        with pytest.raises(System) as caught:
            await client.call(f"{THEIRS}Register", fields)
        assert caught.value.errno == errno.EILSEQ
        assert await listed(client) == {}
        # It can be moved to where it has a name.
        await register(client, "web", leader)


ASKED: dict[str, Any] = {
    "slice": "moorage-test.slice",
    "description": "A machine",
    "properties": {"MemoryMax": 2**30, "CPUWeight": 200},
    "helpers": [{"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"]}],
    "service": "first",
    "lease": True,
}
OTHERS: dict[str, Any] = {
    "slice": "machine.slice",
    "description": "Another one",
    "properties": {"MemoryMax": 2**31, "CPUWeight": 200},
    "helpers": [{"name": "fs", "execStart": ["/usr/bin/sleep", "1000"]}],
    "service": "second",
    "lease": False,
}


async def test_another_call_for_the_same_leader_is_no_repetition(spawn: Processes) -> None:
    """Nothing of it would be applied: it is told what differs, also after a restart."""
    leader = spawn()
    async with await connect() as holder:
        reply = await register(holder, "web", leader, **ASKED)
        for restarted in (False, True):
            async with await connect() as client:
                for parameter, value in [
                    *OTHERS.items(),
                    ("class", "container"),
                    ("helpers", []),
                    ("slice", None),
                ]:
                    for dry in (False, True):
                        with pytest.raises(MachineExists) as caught:
                            await register(client, "web", leader, **{**ASKED, parameter: value}, dryRun=dry)
                        assert caught.value.differs == [parameter]
                        assert caught.value.invocationId == reply["machine"]["invocationId"]
                with pytest.raises(MachineExists) as caught:
                    await register(client, "web", leader)
                assert sorted(caught.value.differs or []) == sorted(ASKED)
            if not restarted:
                run("systemctl", "restart", "moored.service")
                holder.close()
                holder = await connect()
                assert await register(holder, "web", leader, **ASKED) == reply
        with pytest.raises(MachineExists) as caught:
            await register(holder, "web", spawn(), **ASKED)
        assert caught.value.differs is None
        holder.close()


async def test_a_name_or_a_leader_that_is_taken(spawn: Processes) -> None:
    async with await connect() as client:
        leader, other = spawn(), spawn()
        machine = (await register(client, "web", leader))["machine"]
        calls: list[tuple[str, Process, dict[str, Any]]] = [
            ("web", other, {}),  # another leader
            ("web", leader, {"class": "container"}),  # another class
            ("web", leader, {"allocateUnit": False}),
            ("two", leader, {}),  # one leader of two machines
            ("two", leader, {"allocateUnit": False}),
        ]
        for name, process, fields in calls:
            for dry in (False, True):
                with pytest.raises(MachineExists) as caught:
                    await register(client, name, process, **fields, dryRun=dry)
                error = caught.value
                assert (error.name, error.unit, error.invocationId) == (
                    "web",
                    "machine-web.scope",
                    machine["invocationId"],
                )
            parameters = {"class": "vm", "allocateUnit": True, **fields}
            with pytest.raises(systemd_errors.MachineExists):
                await theirs(client, "Register", name=name, leader=process.pid, **parameters)
        assert await listed(client) == {"web": machine}
        assert control_group(other) == control_group(os.getpid())


async def test_a_process_of_a_machine_cannot_lead_another(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn(("sh", "-c", "read line; sleep infinity & echo $!; wait"), stdin=-1, stdout=-1)
        await register(client, "web", leader)
        assert leader.stdin is not None
        assert leader.stdout is not None
        leader.stdin.write(b"\n")
        leader.stdin.flush()
        inside = int(leader.stdout.readline())
        with pytest.raises(MachineExists) as caught:
            await register(client, "two", inside)
        assert caught.value.name == "web"
        await client.call(f"{OURS}Stop", {"name": "web"})


async def test_eight_at_once_for_one_name_make_one_machine(spawn: Processes) -> None:
    made: list[dict[str, Any]] = []
    exists: list[MachineExists] = []

    async def one(leader: Process) -> None:
        async with await connect() as client:
            try:
                made.append((await register(client, "web", leader))["machine"])
            except MachineExists as error:
                exists.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(one, spawn())
    assert (len(made), len(exists)) == (1, 7)
    async with await connect() as client:
        assert await listed(client) == {"web": made[0]}


# Without a scope


OWN_GROUP = f"{SERVICES}/own.service"
"""The control group of a service that is itself a machine, or has machines."""

DEAF = "trap 'echo asked too' TERM; while :; do sleep 0.1; done"
"""Tells of SIGTERM, and does not end."""

OWN = r"""
import json, os, signal, socket, subprocess, sys, threading
def call(method, **parameters):
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(sys.argv[1])
        one.sendall(json.dumps({"method": "io.moorage.Machine." + method, "parameters": parameters}).encode() + b"\0")
        reply = b""
        while not reply.endswith(b"\0"):
            reply += one.recv(65536)
    print(reply[:-1].decode(), flush=True)
group = "/sys/fs/cgroup" + open("/proc/self/cgroup").read().strip().rpartition("::")[2]
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
subgroup = sys.argv[2] != "own"
if subgroup:
    below = os.path.dirname(group) + "/payload"
    os.mkdir(below)
    def move():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        open(below + "/cgroup.procs", "w").write(str(os.getpid()))
    payload = subprocess.Popen(sys.argv[3:] or ["sleep", "infinity"], preexec_fn=move)
    call("Register", **{"name": "lower", "class": "container", "allocateUnit": False, "leader": {"pid": payload.pid}})
else:
    call("Register", **{"name": "own", "class": "container", "allocateUnit": False})
signal.sigwait([signal.SIGTERM])
print("asked to stop", flush=True)
if sys.argv[2] == "leaves":
    sys.exit()
if subgroup:
    payload.kill()
    payload.wait()
    os.rmdir(below)
    signal.sigwait([signal.SIGTERM])
"""


@pytest.fixture
def own_service(nothing_left: None) -> Generator[None]:
    """Stop ``own.service`` after a test that fails as well: what it leaves would be a machine in the next tests."""
    yield
    if state("own.service") != "inactive":
        run("systemctl", "stop", "own.service")


def start_service(unit: str, mode: str, *properties: str, payload: Sequence[str] = ()) -> None:
    options = [f"--property={each}" for each in properties]
    argv = [sys.executable, "-c", OWN, SOCKET, mode, *payload]
    run("systemd-run", f"--unit={unit}", "--collect", "--quiet", *options, "--", *argv)


def printed(unit: str, invocation: str = "") -> list[str]:
    sync_journal()
    invocation = invocation or show(unit, "InvocationID")["InvocationID"]
    return run(
        "journalctl", f"_SYSTEMD_INVOCATION_ID={invocation}", "--output=cat", "--no-pager"
    ).splitlines()


async def replied(unit: str) -> dict[str, Any]:
    """The machine in the reply that a service got."""

    def first() -> dict[str, Any] | None:
        return next((json.loads(line) for line in printed(unit) if line.startswith("{")), None)

    reply = await until(first, f"a reply in the journal of {unit}")
    assert reply is not None
    assert "error" not in reply, reply
    return reply["parameters"]["machine"]


async def test_a_service_registers_itself(own_service: None) -> None:
    start_service("own.service", "own")
    machine = await replied("own.service")
    main = int(show("own.service", "MainPID")["MainPID"])
    assert facts("own.service").items() <= machine.items()
    assert machine["leader"] == process_of(main)
    assert "subgroup" not in machine
    assert "supervisor" not in machine
    assert scopes() == []
    async with await connect() as client:
        assert (await listed(client))["own"]["unit"] == "own.service"
        assert (await theirs(client, "List", name="own"))["unit"] == "own.service"
        # It is the whole of its unit.
        await client.call(f"{OURS}Stop", {"name": "own"})
        assert show("own.service", "ActiveState") == {"ActiveState": "inactive"}
        assert (await verdict(client, "own"))["result"] == "success"


async def test_a_machine_in_a_unit_that_is_not_ours_lives_as_long_as_the_unit(own_service: None) -> None:
    # The leader ends; what it has started is left, and nobody else has ever been there.
    call = [
        "varlinkctl",
        "call",
        SOCKET,
        f"{OURS}Register",
        '{"name":"own","class":"vm","allocateUnit":false}',
    ]
    leader = f"import os; os.spawnlp(os.P_NOWAIT, 'sleep', 'sleep', 'infinity'); os.execvp('varlinkctl', {call!r})"
    run("systemd-run", "--unit=own.service", "--collect", "--quiet", "--property=ExitType=cgroup", "--",
        sys.executable, "-c", leader)  # fmt: skip
    async with await connect() as client:

        async def there() -> bool:
            return "own" in await listed(client)

        await until(there)
        main = int(show("own.service", "MainPID")["MainPID"])
        await until(lambda: main == 0 or not Path(f"/proc/{main}").exists())
        (left,) = members(OWN_GROUP)
        machine = await describe(client, "own")
        assert machine["phase"] == "running"
        assert machine["unit"] == "own.service"
        with pytest.raises(ProcessGone):
            await client.call(f"{OURS}Kill", {"name": "own", "signal": 0 + signal.SIGTERM, "whom": "leader"})
        found = await client.call(f"{OURS}Find", {"process": {"pid": left}})
        assert found["machine"]["name"] == "own"
        run("systemctl", "stop", "own.service")
        await verdict(client, "own")


async def test_a_machine_in_a_part_of_a_unit(nothing_left: None) -> None:
    start_service("outer.service", "subgroup", "Delegate=yes", "DelegateSubgroup=supervisor")
    machine = await replied("outer.service")
    outer = facts("outer.service")
    main = int(show("outer.service", "MainPID")["MainPID"])
    below = f"{outer['controlGroup']}/payload"
    assert machine["unit"] == "outer.service"
    assert machine["subgroup"] == "/payload"
    assert machine["controlGroup"] == below == control_group(machine["leader"]["pid"])
    assert machine["controlGroupId"] == os.stat("/sys/fs/cgroup" + below).st_ino
    assert machine["invocationId"] == outer["invocationId"]
    assert machine["supervisor"] == process_of(main)
    assert scopes() == []
    async with await connect() as client:
        assert (await theirs(client, "List", name="lower"))["subgroup"] == "payload"
        found = await client.call(f"{OURS}Find", {"controlGroup": below})
        assert found["machine"] == machine
        for elsewhere in ({"process": {"pid": main}}, {"unit": "outer.service"}):
            with pytest.raises(machine_errors.NoSuchMachine):
                await client.call(f"{OURS}Find", elsewhere)
        # Its supervisor is asked to stop it, and the unit goes on.
        await client.call(f"{OURS}Stop", {"name": "lower"})
        assert (await verdict(client, "lower"))["result"] == "success"
        assert facts("outer.service") == outer
        assert "asked to stop" in printed("outer.service")
        run("systemctl", "kill", "outer.service")


OUTLIVED = ("Delegate=yes", "DelegateSubgroup=supervisor", "ExitType=cgroup", "TimeoutStopSec=1")
"""Of a service that goes on without its main process."""


async def test_a_part_of_a_unit_whose_supervisor_ends_without_it(own_service: None) -> None:
    """Nobody else will end the leader: it is asked too."""
    start_service("own.service", "leaves", *OUTLIVED)
    machine = await replied("own.service")
    async with await connect() as client:
        await client.call(f"{OURS}Stop", {"name": "lower"})
        assert (await verdict(client, "lower"))["cause"] == "stopped"
        assert "asked to stop" in printed("own.service", machine["invocationId"])
    await until(lambda: not Path(f"/proc/{machine['leader']['pid']}").exists())


async def test_a_part_of_a_unit_whose_leader_does_not_listen_is_not_stopping_for_ever(
    own_service: None,
) -> None:
    start_service("own.service", "leaves", *OUTLIVED, payload=["sh", "-c", DEAF])
    leader = (await replied("own.service"))["leader"]["pid"]
    async with await connect() as client:
        async with client.call_more(f"{OURS}Stop", {"name": "lower", "timeoutUSec": 4_000_000}) as replies:
            assert (await anext(replies))["machine"]["phase"] == "stopping"
            await until(lambda: "asked to stop" in printed("own.service"), "its supervisor was asked")
            await until(lambda: "asked too" in printed("own.service"), "and then its leader")
            with pytest.raises(Timeout):
                await anext(replies)
        assert (await describe(client, "lower"))["phase"] == "running"
        assert json.loads((RECORDS / "lower").read_text()).get("asked") is None
        # It ended by itself after all.
        os.kill(leader, signal.SIGKILL)
        found = await verdict(client, "lower")
        assert (found["cause"], found.get("leaderSignal", signal.SIGKILL)) == ("leaderEnded", signal.SIGKILL)


async def test_without_a_scope_nothing_can_be_said_about_one(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        for field, value in (("slice", "a.slice"), ("description", "x"), ("properties", {"CPUWeight": 5})):
            error = await refused(
                client, InvalidParameter, "web", leader, allocateUnit=False, **{field: value}
            )
            assert error.parameter == field


async def test_two_machines_are_not_one_unit(own_service: None, spawn: Processes) -> None:
    one, two = spawn(), spawn()
    run("systemd-run", "--unit=own.service", "--collect", "--quiet", "--", "sleep", "infinity")
    main = int(show("own.service", "MainPID")["MainPID"])
    for process in (one, two):
        move(process, OWN_GROUP)
    async with await connect() as client:
        # Its main process stands for the whole service.
        machine = (await register(client, "one", main, allocateUnit=False))["machine"]
        assert machine["unit"] == "own.service"
        with pytest.raises(MachineExists) as caught:
            await register(client, "two", two, allocateUnit=False)
        assert (caught.value.name, caught.value.unit) == ("one", "own.service")
        await client.call(f"{OURS}Forget", {"name": "one"})
        assert show("own.service", "ActiveState") == {"ActiveState": "active"}


async def test_where_others_live_the_leader_alone_is_the_machine(
    own_service: None, spawn: Processes
) -> None:
    """As in the session of a user, or with a launcher that has many machines in its own unit."""
    one, two, other = spawn(), spawn(), spawn()
    run("systemd-run", "--unit=own.service", "--collect", "--quiet", "--", "sleep", "infinity")
    for process in (one, two, other):
        move(process, OWN_GROUP)
    async with await connect() as client:
        for name, leader in (("one", one), ("two", two)):
            machine = (await register(client, name, leader, allocateUnit=False))["machine"]
            assert machine["unit"] == "own.service"
        assert sorted(await listed(client)) == ["one", "two"]
        for name, leader in (("one", one), ("two", two)):
            found = await client.call(f"{OURS}Find", {"process": {"pid": leader.pid}})
            assert found["machine"]["name"] == name
        for wanted in ({"process": {"pid": other.pid}}, {"unit": "own.service"}):
            with pytest.raises(NoSuchMachine):
                await client.call(f"{OURS}Find", wanted)
        assert (await client.call(f"{OURS}Describe", {"name": "one"}))["accounting"] == {}
        # It ends with its leader, whoever is left in the unit.
        one.kill()
        one.wait()
        await verdict(client, "one")
        # And it is stopped alone.
        await client.call(f"{OURS}Stop", {"name": "two"})
        assert two.wait() == -signal.SIGTERM
        assert await listed(client) == {}
        assert other.poll() is None
        assert show("own.service", "ActiveState") == {"ActiveState": "active"}
        # Nor does a signal for all of it reach the others.
        three = spawn()
        move(three, OWN_GROUP)
        await register(client, "three", three, allocateUnit=False)
        await client.call(f"{OURS}Kill", {"name": "three", "signal": 0 + signal.SIGKILL, "whom": "all"})
        assert three.wait() == -signal.SIGKILL
        assert other.poll() is None


# Rehearsed, bounded, given up


async def test_a_failed_start_is_answered_before_all_of_it_is_gone(spawn: Processes) -> None:
    """Its leader ignores SIGTERM, and has 90 s to end; the caller has less."""
    script = "trap '' TERM; echo; exec sleep infinity"  # nothing of it is left once it is killed
    deaf = spawn(["sh", "-c", script], stdout=subprocess.PIPE)
    assert deaf.stdout is not None
    deaf.stdout.readline()
    async with await connect() as client:
        # It may have been seen active, before its time was up: then it is a machine, and ends with its leader.
        with trio.fail_after(60), suppress(JobFailed, Timeout):
            await register(client, "web", deaf, properties={"RuntimeMaxUSec": 1}, timeoutUSec=1_000_000)
        kill(deaf)
        await register(client, "web", spawn())
        await client.call(f"{OURS}Stop", {"name": "web"})


async def test_a_rehearsal_makes_nothing(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        before = control_group(leader)
        reply = await register(
            client,
            "web",
            leader,
            dryRun=True,
            slice="moorage-dry.slice",
            properties={"RuntimeMaxUSec": 5_000_000},
        )
        machine = reply["machine"]
        assert reply["differences"] == []
        assert (machine["unit"], machine["slice"]) == ("machine-web.scope", "moorage-dry.slice")
        assert (machine["phase"], machine["controlGroup"], machine["invocationId"]) == ("starting", "", "")
        assert control_group(leader) == before
        assert await listed(client) == {}
        assert scopes() == []
        assert living_records() == []
        assert show("moorage-dry.slice", "ActiveState") == {"ActiveState": "inactive"}


async def test_a_rehearsal_finds_what_would_fail(spawn: Processes) -> None:
    async with await connect() as client:
        leader, gone = spawn(), spawn()
        kill(gone)
        await refused(client, InvalidParameter, "a/b", leader, dryRun=True)
        await refused(client, InvalidParameter, "web", leader, dryRun=True, slice="x")
        await refused(client, ProcessGone, "web", gone, dryRun=True)
        await refused(client, machine_errors.NoSuchProperty, "web", leader, dryRun=True, properties={"X": 1})
        other = spawn(
            ("systemd-run", "--unit=machine-held.scope", "--scope", "--quiet", "--", "sleep", "infinity")
        )
        await until(lambda: "machine-held.scope" in control_group(other))
        error = await refused(client, machine_errors.UnitNameTaken, "held", leader, dryRun=True)
        assert error.unit == "machine-held.scope"


async def test_a_registration_that_takes_too_long_leaves_nothing(spawn: Processes) -> None:
    """Whatever the deadline cuts off: either it is done, or nothing of it is there."""
    outcomes: list[str] = []

    async def one(number: int) -> None:
        async with await connect() as client:
            leader = spawn()
            try:
                await register(client, f"m{number}", leader, timeoutUSec=round(1.3**number))
            except Timeout:
                outcomes.append("timeout")
                await until(lambda: f"machine-m{number}.scope" not in scopes())
                assert f"m{number}" not in await listed(client)
            else:
                outcomes.append("done")
                assert f"m{number}" in await listed(client)
                assert control_group(leader) == f"{MANAGER}/machine.slice/machine-m{number}.scope"

    for number in range(60):
        await one(number)
    assert set(outcomes) == {"timeout", "done"}


@pytest.mark.parametrize("usec", [0, -1, 600_000_001, 2**63 - 1])
async def test_deadlines_that_are_none_are_refused(spawn: Processes, usec: int) -> None:
    async with await connect() as client:
        error = await refused(client, InvalidParameter, "web", spawn(), timeoutUSec=usec)
        assert error.parameter == "timeoutUSec"


async def test_who_hangs_up_leaves_a_whole_machine_or_none(spawn: Processes) -> None:
    turns = 80
    leaders: dict[str, Process] = {}

    async def one(number: int) -> None:
        leaders[f"m{number}"] = leader = spawn()
        client = await connect()
        with trio.move_on_after(number * 0.0002):
            await register(client, f"m{number}", leader)
        client.close()

    for start in range(0, turns, 8):
        async with trio.open_nursery() as nursery:
            for number in range(start, start + 8):
                nursery.start_soon(one, number)
    async with await connect() as client:

        async def settled() -> dict[str, dict[str, Any]] | None:
            machines = await listed(client)
            inside = {name for name, leader in leaders.items() if "machine-" in control_group(leader)}
            units = {re.sub(r"machine-(.*)\.scope", r"\1", unit) for unit in scopes()}
            return machines if set(machines) == inside == units == set(living_records()) else None

        machines = await until(settled, "every scope has its machine, and every machine its scope")
        assert machines
        for name, machine in machines.items():
            assert machine["leader"] == process_of(leaders[name])


# Lookup


@pytest.mark.system_instance("a user's instance has no host")
async def test_all_are_listed_with_the_host_first(spawn: Processes) -> None:
    async with await connect() as client:
        with pytest.raises(ExpectedMore):
            await theirs(client, "List")
        with pytest.raises(ExpectedMore):
            await client.call(f"{OURS}List")
        assert list(await all_theirs(client)) == [".host"]
        for name in ("one", "two"):
            await register(client, name, spawn())
        assert list(await all_theirs(client)) == [".host", "one", "two"]
        host = await theirs(client, "List", name=".host")
        assert host["class"] == "host"
        assert host["leader"] == process_of(1)
        assert host["id"] == run("systemd-id128", "machine-id").strip()
        assert host["rootDirectory"] == "/"
        assert list(await listed(client)) == ["one", "two"]


async def test_who_is_not_there_is_not_found(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
        for method, more in (("List", {}), ("Unregister", {}), ("Terminate", {}), ("Kill", {"signal": 15})):
            for given in ({"name": "other"}, {"pid": {"pid": os.getpid()}}, {"pid": {"pid": 0}}):
                with pytest.raises(systemd_errors.NoSuchMachine):
                    await theirs(client, method, **given, **more)
        with pytest.raises(systemd_errors.NoSuchMachine):
            await all_theirs(client, name="other")
        with pytest.raises(InvalidParameter, match="name"):
            await theirs(client, "List", name="a/b")
        for pid in (-1, 2**31):
            with pytest.raises(InvalidParameter, match="pid"):
                await theirs(client, "List", pid={"pid": pid})


@pytest.mark.system_instance("a user's instance has no host")
async def test_the_host_cannot_be_ended(nothing_left: None) -> None:
    async with await connect() as client:
        for method in ("Unregister", "Terminate", "Kill"):
            with pytest.raises(System) as caught:
                await theirs(client, method, name=".host", **({"signal": 15} if method == "Kill" else {}))
            assert caught.value.errnoName in {"EOPNOTSUPP", "ENOTSUP"}


async def test_a_machine_is_found_by_its_processes(spawn: Processes) -> None:
    async with await connect() as client:
        one, two = spawn(), spawn()
        await register(client, "one", one)
        await register(client, "two", two)
        given = process_of(one)
        for pid in ({"pid": one.pid}, given, {"pid": one.pid, "pidfdId": given["pidfdId"]}):
            assert (await theirs(client, "List", pid=pid))["name"] == "one"
            assert (await theirs(client, "List", pid=pid, name="one"))["name"] == "one"
            assert list(await all_theirs(client, pid=pid)) == ["one"]
            with pytest.raises(systemd_errors.NoSuchMachine):
                await theirs(client, "List", pid=pid, name="two")
        for wrong in ({**given, "pidfdId": given["pidfdId"] + 1}, {**given, "bootId": "1" * 32}):
            with pytest.raises(systemd_errors.NoSuchMachine):
                await theirs(client, "List", pid=wrong)
        with pytest.raises(systemd_errors.NoSuchMachine):  # machined does not take it for the host's either
            await theirs(client, "List", pid={"pid": 1})


async def test_everything_that_belongs_to_a_machine_finds_it(spawn: Processes) -> None:
    async with await connect() as client:
        leader = spawn()
        machine = (await register(client, "web", leader))["machine"]
        await register(client, "other", spawn())
        pidfd = os.pidfd_open(leader.pid)
        find = partial(client.call, f"{OURS}Find")
        replies = [
            await find({"process": {"pid": leader.pid}}),
            await find({"process": process_of(leader)}),
            await find({"processFileDescriptor": 0}, fds=[pidfd]),
            await find({"unit": machine["unit"]}),
            await find({"controlGroup": machine["controlGroup"]}),
            await find({"controlGroup": machine["controlGroup"] + "/below/it"}),
            await find({"invocationId": machine["invocationId"]}),
            await find({"invocationId": machine["invocationId"].upper()}),
        ]
        os.close(pidfd)
        assert [told(reply["machine"]) for reply in replies] == [machine] * len(replies)
        for given in (
            {"process": {"pid": os.getpid()}},
            {"unit": "machine-none.scope"},
            {"controlGroup": "/machine.slice"},
            {"controlGroup": machine["controlGroup"][:-1]},
            {"invocationId": "1" * 32},
        ):
            with pytest.raises(machine_errors.NoSuchMachine):
                await find(given)
        for given, parameter in (
            ({}, "process"),
            ({"unit": machine["unit"], "invocationId": machine["invocationId"]}, "invocationId"),
            ({"invocationId": "x"}, "invocationId"),
            ({"controlGroup": "machine.slice"}, "controlGroup"),
            ({"controlGroup": "/a/../machine.slice"}, "controlGroup"),
            ({"process": {"pid": -5}}, "process"),
            ({"processFileDescriptor": 0}, "processFileDescriptor"),
        ):
            with pytest.raises(InvalidParameter) as caught:
                await find(given)
            assert caught.value.parameter == parameter


async def test_a_process_in_a_machine_finds_itself(spawn: Processes) -> None:
    call = f'varlinkctl call --json=short {SOCKET} {THEIRS}List \'{{"pid":{{"pid":0}}}}\''
    leader = spawn(("sh", "-c", f"read line; {call}; read line"), stdin=-1, stdout=-1)
    assert leader.stdin is not None
    assert leader.stdout is not None
    async with await connect() as client:
        await register(client, "web", leader)
        leader.stdin.write(b"\n")
        leader.stdin.flush()
        found = json.loads(await trio.to_thread.run_sync(leader.stdout.readline))
        assert found["name"] == "web"
        assert found["leader"]["pid"] == leader.pid
    leader.stdin.close()
    leader.wait(UNTIL_SECONDS)
