"""QEMU with virtiofsd, swtpm and a bus of its own, none of it written here: they come together and go together.

All of it runs where an appliance would run it: the root is read-only, /run is all that can be written, there is no
network but the loopback device, and no D-Bus broker.
"""

import contextlib
import errno
import json
import os
import signal
import socket
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from moored import (
    DIRECTORIES,
    OURS,
    Processes,
    assert_everything_gone,
    connect,
    control_group,
    cursor,
    describe,
    directories,
    end_moored,
    main_pid,
    messages,
    run,
    show,
    signal_moored,
    start_listening,
    state,
    units,
    until,
    verdict,
)

from moorage.cli import helper_files
from moorage.launch.trio import Payload, hold
from moorage.wire.client import Client
from moorage.wire.errors import Disconnected

pytestmark = pytest.mark.system_instance("it is about the system of an appliance")

EXAMPLE = "/moorage/examples/helpers/qemu-microvm.toml"
SHARED = Path("/srv/web")
GUEST_ROOT = 100000
"""Who the guest's root is on the host, as the example says."""

AGAIN = 50

WAITS = """
import os, signal, socket
listener = socket.socket(fileno=3)
def wait(until):
    print("waiting to", until, flush=True)
    listener.accept()
if "NOTIFY_SOCKET" in os.environ:
    wait("start")
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.connect(os.environ["NOTIFY_SOCKET"])
    notify.send(b"READY=1")
else:
    signal.signal(signal.SIGTERM, lambda *_: (wait("stop"), os._exit(0)))
while True:
    signal.pause()
"""
"""A helper that waits for a connection to its socket before it is ready, where it has the type notify, or it ends."""


def slow(type_: str) -> dict[str, Any]:
    command = ["/usr/bin/python3", "-c", WAITS]
    return {"name": "slow", "type": type_, "execStart": command, "sockets": [{"name": "slow.sock"}]}


@pytest.fixture(scope="module", autouse=True)
def appliance() -> Generator[None]:
    """Nothing but /run can be written; what the machine shares lies there as well."""
    run("umount", "--lazy", "/tmp")  # lazily: what pytest has captured lies there
    os.makedirs(f"/run{SHARED}", exist_ok=True)
    run("mount", "--bind", "/run/srv", "/srv")
    os.chown(SHARED, GUEST_ROOT, GUEST_ROOT)
    yield
    run("umount", "/srv")
    run("mount", "-t", "tmpfs", "tmpfs", "/tmp")


@pytest.fixture(autouse=True)
def _clean(everything_gone: None) -> None:
    """Every test here leaves nothing."""


@dataclass
class Vm:
    """A machine with QEMU as its payload, which has connected to all of its helpers."""

    machine: dict[str, Any]
    payload: Payload

    def helper_pid(self, name: str) -> int:
        """The main process of a helper."""
        (found,) = [each for each in self.machine["helpers"] if each["name"] == name]
        return found["mainProcess"]["pid"]


async def qmp(*commands: str) -> list[Any]:
    """Have QEMU execute commands of its machine protocol; return what they return."""
    path = str(DIRECTORIES / "web/qmp.sock")

    async def dial() -> trio.SocketStream | None:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return await trio.open_unix_socket(path)
        return None

    stream = await until(dial, "QEMU listens")
    assert stream is not None
    received, replies = bytearray(), []
    async with stream:
        for command in ("qmp_capabilities", *commands):
            await stream.send_all(json.dumps({"execute": command}).encode())
        while len(replies) < 1 + len(commands):
            while b"\n" not in received:
                received += await stream.receive_some()
            line, _, rest = received.partition(b"\n")
            received = bytearray(rest)
            message = json.loads(line)
            assert "error" not in message, message
            if "return" in message:  # neither the greeting nor an event
                replies.append(message["return"])
    return replies[1:]


async def order(client: Client, **changes: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """The helpers and the command of the example, with other fields for its file server."""
    specifiers = {"n": "web", "t": str(DIRECTORIES / "web"), "u": "0"}
    known = (await client.call(f"{OURS}DescribeProperties", {"type": "service"}))["properties"]
    found = helper_files.expand(helper_files.load(EXAMPLE), specifiers, known)
    helpers = msgspec.to_builtins(found.helpers)
    for helper in helpers:
        if helper["name"] == "fs":
            helper |= changes
    # It executes nothing: QEMU is what is looked at, not a guest.
    return helpers, [*found.command, "-S"]


async def register(client: Client, payload: Payload, helpers: list[dict[str, Any]]) -> dict[str, Any]:
    parameters = {"name": "web", "class": "vm", "leaderFileDescriptor": 0, "helpers": helpers}
    return (await client.call(f"{OURS}Register", parameters, fds=[payload.pidfd]))["machine"]


async def execute(payload: Payload, command: list[str]) -> None:
    """Let a payload become QEMU, and wait until that has set up all devices."""
    null = os.open("/dev/null", os.O_RDWR)
    try:
        await payload.run(command, fds={0: null, 1: null})
    finally:
        os.close(null)
    (status,) = await qmp("query-status")
    assert status["status"] == "prelaunch"


@asynccontextmanager
async def held() -> AsyncGenerator[Payload]:
    """Hold a payload that ends with the test, whatever becomes of that."""
    async with await hold() as payload:
        try:
            yield payload
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(payload.pidfd, signal.SIGKILL)


@asynccontextmanager
async def running(client: Client, *more: dict[str, Any], **changes: Any) -> AsyncGenerator[Vm]:
    """Run QEMU with its helpers, and more of them."""
    helpers, command = await order(client, **changes)
    async with held() as payload:
        machine = await register(client, payload, [*helpers, *more])
        await execute(payload, command)
        yield Vm(machine, payload)
        await payload.wait()


async def gone(what: str) -> None:
    began = time.monotonic()
    await assert_everything_gone()
    print(f"{what}: everything is gone after {(time.monotonic() - began) * 1e3:.0f} ms")


def connected() -> set[str]:
    """The sockets of helpers that somebody is connected to."""
    lines = run("ss", "--no-header", "--unix", "--numeric", "state", "established").splitlines()
    found = {word for line in lines for word in line.split()}
    paths = {Path(word) for word in found if word.startswith(f"{DIRECTORIES}/web/")}
    return {path.name for path in paths} - {"qmp.sock"}


# They come


def test_an_appliance() -> None:
    for directory in ("/", "/etc", "/var", "/var/lib", "/tmp"):
        with pytest.raises(OSError) as failure:  # noqa: PT011 - looked at below
            Path(directory, "x").touch()
        assert failure.value.errno == errno.EROFS
    assert os.listdir("/sys/class/net") == ["lo"]
    assert not Path("/run/dbus/system_bus_socket").exists()


async def test_they_find_each_other() -> None:
    async with await connect() as client, running(client) as vm:
        assert vm.machine["controlGroup"] == control_group(vm.payload.pid)
        assert connected() == {"fs.sock", "tpm.sock", "bus.sock"}
        bus = f"--address=unix:path={DIRECTORIES}/web/bus.sock"
        peers = json.loads(run("busctl", bus, "--json=short", "list"))
        assert vm.payload.pid in [peer["pid"] for peer in peers]
        assert {each["activeState"] for each in vm.machine["helpers"]} == {"active"}
        assert await qmp("quit") == [{}]


async def test_files_have_mapped_owners() -> None:
    for owner in (GUEST_ROOT, GUEST_ROOT + 1000, 0):
        path = SHARED / str(owner)
        path.touch()
        os.chown(path, owner, owner)
    async with await connect() as client, running(client) as vm:
        inside = f"/proc/{vm.helper_pid('fs')}/root/mnt"
        assert {name: os.stat(f"{inside}/{name}").st_uid for name in os.listdir(inside)} == {
            "100000": 0,
            "101000": 1000,
            "0": 65534,  # who is not mapped
        }
        os.close(os.open(f"{inside}/new", os.O_CREAT))  # as the helper would, being root there
        assert os.stat(SHARED / "new").st_uid == GUEST_ROOT
        # It is nobody's but the helper's.
        assert "idmapped" not in run("findmnt", "--output=TARGET,OPTIONS")
        await qmp("quit")


# They go


@pytest.mark.parametrize("dead", [False, True], ids=["", "without moored"])
@pytest.mark.parametrize("how", ["quit", "SIGKILL", "systemctl", "Stop"])
async def test_the_end(request: pytest.FixtureRequest, how: str, dead: bool) -> None:
    if dead:
        if how == "Stop":
            how = "SIGTERM"
        request.getfixturevalue("mortal")
    async with await connect() as client, running(client) as vm:
        if dead:
            await end_moored()
        match how:
            case "quit":
                await qmp("quit")
            case "systemctl":
                run("systemctl", "stop", "machine-web.scope")
            case "Stop":
                await client.call(f"{OURS}Stop", {"name": "web"})
            case _:
                signal.pidfd_send_signal(vm.payload.pidfd, signal.Signals[how])
        await gone(f"{how}, {'without' if dead else 'with'} moored")
        # QEMU ends by itself when it is told to.
        assert await vm.payload.wait() == (-signal.SIGKILL if how == "SIGKILL" else 0)
        if not dead:
            found = await verdict(client, "web")
            assert found["result"] == "success"
            if how == "quit":  # None: a helper was quicker than the rest of QEMU's end
                assert found.get("cause") in {"leaderEnded", None}, found


async def test_the_end_of_the_launcher(spawn: Processes) -> None:
    launcher = spawn(["moorctl", "run", "--name", "web", "--helpers", EXAMPLE, "--", "-S"])
    await qmp("query-status")
    assert connected() == {"fs.sock", "tpm.sock", "bus.sock"}
    launcher.kill()
    await gone("SIGKILL of moorctl run")


@pytest.mark.parametrize("policy", ["stopMachine", "restart", "ignore"])
async def test_the_end_of_the_file_server(policy: str) -> None:
    changes = (
        {"onFailure": "ignore", "restart": "on-failure"} if policy == "restart" else {"onFailure": policy}
    )
    unit = "machine-web-fs.service"
    async with await connect() as client, running(client, **changes) as vm:
        before = vm.helper_pid("fs")
        os.kill(before, signal.SIGABRT)
        if policy == "stopMachine":
            await gone("crash of virtiofsd")
            assert await vm.payload.wait() == 0  # it was told, not killed
            return
        if policy == "restart":
            await until(lambda: show(unit, "MainPID")["MainPID"] not in {"0", str(before)})
            await until(lambda: state(unit) == "active")
        else:
            await until(lambda: state(unit) == "failed")
        assert state("machine-web.scope") == "active"
        await qmp("query-status", "quit")


async def test_the_same_machine_again_at_once() -> None:
    began = time.monotonic()
    async with await connect() as client:
        for number in range(AGAIN):
            async with running(client) as vm:
                if number % 2:
                    signal.pidfd_send_signal(vm.payload.pidfd, signal.SIGKILL)
                else:
                    await qmp("quit")
    await gone(f"{AGAIN} times the same machine in {time.monotonic() - began:.1f} s")


# moored goes


def active() -> list[str]:
    """Units of machines that are neither inactive nor failed."""
    return [unit for unit in units() if state(unit) not in {"inactive", "failed"}]


@pytest.fixture(params=["stays dead", "comes back"])
def fate(request: pytest.FixtureRequest) -> str:
    """What becomes of moored once it is killed."""
    if request.param == "stays dead":
        request.getfixturevalue("mortal")
    return request.param


async def kill_moored(fate: str) -> None:
    if fate == "stays dead":
        await end_moored()
    else:
        signal_moored(signal.SIGKILL)


def let_go() -> None:
    """Let the slow helper go on."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(DIRECTORIES / "web/slow.sock"))


async def test_moored_is_killed_before_register() -> None:
    async with await connect():
        pid = main_pid()
        os.kill(pid, signal.SIGKILL)
    async with await connect() as client, running(client):
        assert main_pid() not in {0, pid}
        await qmp("quit")
    await gone("moored killed before Register")


@pytest.mark.parametrize("ready", [True, False])
async def test_moored_is_killed_while_it_registers(fate: str, ready: bool) -> None:
    wanted = {**slow("notify"), "properties": {"TimeoutStartUSec": 20_000_000 if ready else 3_000_000}}
    place = cursor()

    async def wait(client: Client) -> None:
        helpers, _ = await order(client)
        async with await hold() as payload:
            with pytest.raises(Exception):  # noqa: B017, PT011 - the connection ends
                await register(client, payload, [*helpers, wanted])

    async with await connect() as client, trio.open_nursery() as nursery:
        nursery.start_soon(wait, client)
        await until(lambda: "waiting to start" in messages("machine-web-slow.service", place))
        await kill_moored(fate)
    if ready:
        let_go()
    # What is left is at most what the service manager knows of a scope that it could not start.
    await until(lambda: not directories())
    await until(lambda: not active())
    start_listening()
    async with await connect() as client, running(client):
        await qmp("quit")
    await gone(f"moored killed in Register, {fate}, helper ready: {ready}")


async def test_moored_is_killed_before_the_release(fate: str) -> None:
    async with await connect() as client, held() as payload:
        helpers, command = await order(client)
        await register(client, payload, helpers)
        await kill_moored(fate)
        await execute(payload, command)
        assert connected() == {"fs.sock", "tpm.sock", "bus.sock"}
        await qmp("quit")
        await gone(f"moored killed before the release, {fate}")
        assert await payload.wait() == 0


async def test_moored_is_killed_while_it_runs(fate: str) -> None:
    async with await connect() as client, running(client) as vm:
        await kill_moored(fate)
        if fate == "comes back":
            async with await connect() as another:
                assert await describe(another, "web") == vm.machine
        run("systemctl", "stop", "machine-web.scope")
        await gone(f"moored killed while it runs, {fate}")
        assert await vm.payload.wait() == 0


async def test_moored_is_killed_while_it_stops(fate: str) -> None:
    place = cursor()

    async def stop(client: Client) -> None:
        # The connection ends, unless the machine had ended before: its helpers are stopped after it.
        with contextlib.suppress(Disconnected):
            await client.call(f"{OURS}Stop", {"name": "web"})

    async with (
        await connect() as client,
        running(client, slow("exec")) as vm,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(stop, client)
        await until(lambda: "waiting to stop" in messages("machine-web-slow.service", place))
        await kill_moored(fate)
        let_go()
        await gone(f"moored killed while it stops, {fate}")
        assert await vm.payload.wait() == 0
