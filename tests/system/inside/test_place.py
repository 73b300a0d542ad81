"""moored in the place of machined: the clients that were written for that one are served by this one."""

import json
import os
import stat
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import trio
from hostile import as_user, call
from moored import (
    OURS,
    THEIRS,
    UNTIL_SECONDS,
    Process,
    Processes,
    assert_nothing_left,
    connect,
    control_group,
    listed,
    main_pid,
    register,
    run,
    show,
    until,
)

from moorage.wire.client import Client
from moorage.wire.errors import RemoteError

pytestmark = pytest.mark.system_instance("the instance of a user does not take machined's place")

PLACE = "/run/systemd/machine/io.systemd.Machine"
MACHINED = ("systemd-machined.service", "systemd-machined.socket")
SYSTEMD = int(run("systemctl", "--version").split()[1])


def product() -> str:
    """Say who answers in the place."""
    reply = call("org.varlink.service.GetInfo", path=PLACE)
    assert reply is not None
    return reply["parameters"]["product"]


def active(*units: str) -> list[bool]:
    return [show(unit, "ActiveState")["ActiveState"] == "active" for unit in units]


@pytest.fixture
def in_place(moored: None) -> Generator[None]:
    """Put moored in the place, and see to it that nobody starts machined."""
    run("systemctl", "mask", "--runtime", "--now", *MACHINED)
    take_place()
    yield
    run("systemctl", "stop", "moored-machined.socket")
    run("systemctl", "unmask", "--runtime", *MACHINED)
    trio.run(assert_nothing_left)


def take_place() -> None:
    """Listen in the place. The manager adds no socket to a service that runs; machines outlive its stop."""
    run("systemctl", "stop", "moored.service")
    run("systemctl", "start", "moored-machined.socket")


async def test_one_of_them_has_the_place(nothing_left: None, spawn: Processes) -> None:
    run("systemctl", "start", "systemd-machined.service")
    assert product().startswith("systemd")
    async with await connect() as client:
        await register(client, "web", spawn())
    pid = main_pid()
    take_place()
    async with await connect() as client:
        assert active(*MACHINED, "moored-machined.socket", "moored.socket") == [False, False, True, True]
        assert product() == "moored"
        assert os.readlink("/run/varlink/registry/io.systemd.Machine") == PLACE
        # One service behind both sockets.
        assert main_pid() not in {0, pid}
        found = call(f"{THEIRS}List", {"name": "web"}, path=PLACE)
        assert found == call(f"{THEIRS}List", {"name": "web"})

        # Whoever starts machined takes the place away again; what moored keeps is still there.
        run("systemctl", "start", "systemd-machined.service")
        assert active("systemd-machined.service", "moored-machined.socket", "moored.socket") == [
            True,
            False,
            True,
        ]
        assert product().startswith("systemd")
    run("systemctl", "restart", "moored.service")
    async with await connect() as client:
        assert list(await listed(client)) == ["web"]
        await client.call(f"{OURS}Stop", {"name": "web"})


IMAGES = [
    Path(PLACE).with_name("io.systemd.MachineImage"),
    Path("/run/varlink/registry/io.systemd.MachineImage"),
]


def test_no_door_to_images_is_left_that_leads_to_us(in_place: None) -> None:
    assert [path for path in IMAGES if path.is_symlink()] == []
    if SYSTEMD < 258:  # there machined has no socket unit
        return
    run("systemctl", "stop", "moored-machined.socket")
    run("systemctl", "unmask", "--runtime", *MACHINED)
    run("systemctl", "start", "systemd-machined.socket")
    assert IMAGES[0].is_symlink()  # machined has it back
    run("systemctl", "mask", "--runtime", "--now", *MACHINED)
    take_place()


def test_what_the_bus_starts_takes_the_place_unless_it_is_masked(in_place: None) -> None:
    # As machinectl does, and systemd-nspawn at the end of a container.
    command = ("busctl", "call", "org.freedesktop.machine1", "/org/freedesktop/machine1",
               "org.freedesktop.machine1.Manager", "ListMachines")  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=UNTIL_SECONDS)
    assert done.returncode == 1
    assert product() == "moored"
    assert active("moored-machined.socket") == [True]


def test_varlinkctl_finds_its_way(in_place: None, spawn: Processes) -> None:
    leader = spawn()
    info = run("varlinkctl", "info", PLACE)
    assert "Product: moored" in info
    assert THEIRS.rstrip(".") in run("varlinkctl", "list-interfaces", PLACE).split()
    run("varlinkctl", "introspect", PLACE, "io.systemd.Machine")
    named = f'{{"name":"web","class":"vm","leader":{leader.pid},"allocateUnit":true}}'
    run("varlinkctl", "call", PLACE, f"{THEIRS}Register", named)
    text = run("varlinkctl", "call", "--json=short", "--more", PLACE, f"{THEIRS}List", "{}")
    assert [json.loads(line)["name"] for line in text.replace("\x1e", "").splitlines()] == [".host", "web"]
    run("varlinkctl", "call", PLACE, f"{THEIRS}Terminate", '{"name":"web"}')
    assert leader.wait(UNTIL_SECONDS) == -15


async def test_the_proxy_of_ssh_asks_for_machines(in_place: None, spawn: Processes) -> None:
    async with await connect(PLACE) as client:
        await register(client, "web", spawn(), **{"class": "container", "service": "a test"})

        async def proxied(name: str) -> str:
            # It asks the user's service first; here that is the same one.
            command = (
                "env",
                "XDG_RUNTIME_DIR=/run",
                "/usr/lib/systemd/systemd-ssh-proxy",
                f"machine/{name}",
                "22",
            )
            done = await trio.run_process(
                command, check=False, capture_stderr=True, stdin=subprocess.DEVNULL
            )
            assert done.returncode == 1
            return done.stderr.decode()

        # That there is no way into this one is read from what List says of it.
        found = (
            "Don't know how to SSH into 'a test' container web."
            if SYSTEMD >= 262
            else "no AF_VSOCK CID assigned"
        )
        assert found in await proxied("web")
        assert found not in await proxied("none")
        await client.call(f"{OURS}Stop", {"name": "web"})


@pytest.fixture
def container(tmp_path: Path) -> Path:
    """A root directory with the host's programs in it."""
    root = tmp_path / "root"
    for name in ("usr", "etc", "proc", "sys", "dev", "run", "tmp", "var"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "etc/os-release").write_text("ID=tiny\n")
    return root


async def test_a_container_of_nspawn(in_place: None, spawn: Processes, container: Path) -> None:
    registers = (
        SYSTEMD >= 262
    )  # before that it knows machined on the bus only, and somebody else has to do it
    nspawn = spawn(
        ("systemd-nspawn", "--quiet", "--machine=tiny", f"--register={'yes' if registers else 'no'}",
         f"--directory={container}", "--bind-ro=/usr", "--as-pid2", "--console=pipe", "/bin/sleep", "infinity"),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    async with await connect(PLACE) as client:
        leader = await until(lambda: payload(nspawn), "the container's first process")
        assert leader is not None
        if not registers:
            await client.call(f"{THEIRS}Register", {"name": "tiny", "class": "container", "leader": leader})

        async def found() -> dict[str, Any] | None:
            return (await listed(client)).get("tiny")

        machine = await until(found, "the container is listed")
        assert machine is not None
        assert machine["class"] == "container"
        assert machine["leader"]["pid"] == leader
        assert control_group(leader).startswith(machine["controlGroup"])
        if registers:
            assert machine["service"] == "systemd-nspawn"
            assert machine["rootDirectory"] == str(container)
            assert machine["supervisor"]["pid"] == nspawn.pid
        seen = await client.call(f"{THEIRS}List", {"name": "tiny", "acquireMetadata": "graceful"})
        assert seen["OSRelease"] == ["ID=tiny"]
        inside = await client.call(f"{THEIRS}List", {"pid": {"pid": leader}})
        assert inside["name"] == "tiny"

        if registers:
            await client.call(
                f"{THEIRS}Terminate", {"name": "tiny"}
            )  # a word to nspawn, as it asked for itself
        else:
            await client.call(f"{THEIRS}Kill", {"name": "tiny", "signal": 9, "whom": "leader"})
        await trio.to_thread.run_sync(nspawn.wait, UNTIL_SECONDS)
        await until(lambda: _not_listed(client), "the container is not listed")
    assert product() == "moored", "its end has not brought machined back"


def payload(nspawn: Process) -> int | None:
    """The first process of a container: the child of systemd-nspawn that runs the command."""
    children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children").read_text().split()
    for child in children:
        inner = Path(f"/proc/{child}/task/{child}/children").read_text().split()
        for pid in inner:
            if Path(f"/proc/{pid}/comm").read_text() == "sleep\n":
                return int(child)
    return None


async def _not_listed(client: Any) -> bool:
    return "tiny" not in await listed(client)


INSTANCE = "io.systemd.MachineInstance."

BOX = (
    "import signal, sys, time; signal.signal(signal.SIGRTMIN + 4, lambda *_: sys.exit(7));"
    "signal.signal(signal.SIGINT, lambda *_: print('again', flush=True)); print('ready', flush=True);"
    "[time.sleep(60) for _ in range(1000)]"
)
"""Shuts down, and says that it boots again, when it is asked as systemd is."""


async def controlled(name: str) -> str:
    """The control address of a machine, which it has a moment after its registration."""

    def found() -> str | None:
        reply = call(f"{THEIRS}List", {"name": name}, path=PLACE)
        return None if reply is None else reply["parameters"].get("controlAddress")

    address = await until(found, "it can be controlled")
    assert address is not None
    return address


def frozen(group: str) -> bool:
    return "frozen 1" in Path(f"/sys/fs/cgroup{group}/cgroup.events").read_text()


def instance(address: str, name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    text = run(
        "varlinkctl", "call", "--json=short", address, f"{INSTANCE}{name}", json.dumps(parameters or {})
    )
    return json.loads(text or "{}")


async def test_a_container_is_controlled_at_a_socket_of_its_own(in_place: None, spawn: Processes) -> None:
    box = spawn(("python3", "-c", BOX), stdout=subprocess.PIPE)
    assert box.stdout is not None
    assert box.stdout.readline() == b"ready\n"
    async with await connect(PLACE) as client:
        await register(client, "box", box, **{"class": "container"})
        address = await controlled("box")
        assert address == "/run/moorage/control/box"
        run("systemctl", "restart", "moored.service")
        address = await controlled("box")
        group = control_group(box)
        assert instance(address, "Describe") == {"running": True, "status": "running"}
        if SYSTEMD >= 262:
            run("machinectl", "pause", "box")
        else:
            instance(address, "Pause")
        assert frozen(group)
        assert instance(address, "Describe") == {"running": False, "status": "paused"}
        if SYSTEMD >= 262:
            run("machinectl", "resume", "box")
        else:
            instance(address, "Resume")
        assert not frozen(group)
        storage = [("AddStorage", {"fileDescriptorIndex": 0, "name": "x"}), ("RemoveStorage", {"name": "x"}),
                   ("ReplaceStorage", {"fileDescriptorIndex": 0, "name": "x"})]  # fmt: skip
        for name, parameters in storage:
            refused = call(f"{INSTANCE}{name}", parameters, path=address)
            assert refused == {"error": f"{INSTANCE}NotSupported", "parameters": {}}
        events: list[dict[str, Any]] = []
        filtered: list[dict[str, Any]] = []

        async def follow(into: list[dict[str, Any]], parameters: dict[str, Any]) -> None:
            async with (
                await Client.connect(address) as following,
                following.call_more(f"{INSTANCE}SubscribeEvents", parameters) as replies,
            ):
                try:
                    async for reply in replies:
                        into.append(reply)  # noqa: PERF401 - somebody looks at it meanwhile
                except RemoteError as error:
                    into.append({"event": error.error})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, events, {})
            nursery.start_soon(follow, filtered, {"filter": ["exited", "SHUTDOWN"]})
            await until(lambda: events and filtered, "they follow")
            if SYSTEMD >= 262:
                run("machinectl", "reboot", "box")
            else:
                instance(address, "Reboot")
            assert box.stdout.readline() == b"again\n"
            if SYSTEMD >= 262:
                run("machinectl", "poweroff", "box")
            else:
                instance(address, "PowerOff")
            assert await trio.to_thread.run_sync(box.wait, UNTIL_SECONDS) == 7
        end = f"{INSTANCE}NotConnected"
        kinds = [each["event"] for each in events]
        assert (kinds[0], *kinds[-2:]) == ("READY", "exited", end)
        assert {"leaderExited", "empty"} <= set(kinds)
        assert next(each["data"] for each in events if each["event"] == "leaderExited") == {"status": 7}
        assert [each["event"] for each in filtered] == ["READY", "exited", end]
        await until(lambda: not os.path.exists(address), "the socket goes with it")


async def test_machinectl_terminates_and_others_may_not(in_place: None, spawn: Processes) -> None:
    async with await connect(PLACE) as client:
        box = spawn()
        await register(client, "box", box)
        address = await controlled("box")
        assert stat.S_IMODE(os.stat(address).st_mode) == 0o666
        assert stat.S_IMODE(os.stat(os.path.dirname(address)).st_mode) == 0o755
        # There is no one to ask a virtual machine without a VMM that listens.
        for name in ("PowerOff", "Reboot"):
            refused = call(f"{INSTANCE}{name}", path=address)
            assert refused == {"error": f"{INSTANCE}NotSupported", "parameters": {}}
        with as_user(65534):
            for name in ("Terminate", "PowerOff", "Reboot", "Pause", "Resume"):
                refused = call(f"{INSTANCE}{name}", path=address)
                assert refused is not None
                assert (
                    refused["error"] == "io.systemd.InteractiveAuthenticationRequired"
                )  # polkit's challenge
            shown = call(f"{INSTANCE}Describe", path=address)
            assert shown == {"parameters": {"running": True, "status": "running"}}
            with pytest.raises(PermissionError):
                Path(address).with_name("mine").touch()
        async with await Client.connect(address) as held:
            if SYSTEMD >= 262:
                run("machinectl", "terminate", "box")
            else:
                instance(address, "Terminate")
            assert await trio.to_thread.run_sync(box.wait, UNTIL_SECONDS) == -15
            await until(lambda: not os.path.exists(address), "the socket goes with it")
            with pytest.raises(RemoteError, match="NotConnected"):
                await held.call(f"{INSTANCE}Describe")
