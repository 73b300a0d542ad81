"""What is seen of a container is what machined sees of it, and what it may show is bounded.

The containers are processes in namespaces and a root of their own, with no binary in it: their leader is an
interpreter that is already loaded.
"""

import fcntl
import ipaddress
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from made import record
from msgspec.structs import replace

from moorage.kernel.process import process_id
from moorage.machines import metadata
from moorage.machines.metadata import (
    Address,
    Metadata,
    MetadataError,
    NoOSRelease,
    NoPrivateNetworking,
    NotAvailable,
    NoUIDShift,
    Unreadable,
    acquire,
    parse_os_release,
)
from moorage.machines.model import MachineClass, Record
from moorage.pid1 import oneshot as probe
from moorage.pid1.manager import ServiceSpec
from moorage.pid1.over_dbus.calls import DBusManager
from moorage.pid1.over_dbus.session import Endpoints, LinkKind
from moorage.probes.namespaces import OS_RELEASE_MAX

pytestmark = pytest.mark.system_instance("only root makes containers with users of their own")

MACHINED = "/run/systemd/machine/io.systemd.Machine"

SHIFT = 100_000
WHOLE = f"0 {SHIFT} 65536"

LEADER = r"""
import ctypes, json, os, subprocess, sys
arguments = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *args):
    if function(*args) < 0:
        raise OSError(ctypes.get_errno(), function.__name__)
root = os.fsencode(arguments["root"])
os.unshare(sum({"user": os.CLONE_NEWUSER, "net": os.CLONE_NEWNET, "mnt": os.CLONE_NEWNS}[name]
               for name in arguments["namespaces"]))
print("unshared", flush=True)
sys.stdin.readline()
if arguments["become_root"]:
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
for command in arguments["network"]:
    subprocess.run(["ip", *command.split()], check=True)
if "mnt" in arguments["namespaces"]:
    call(libc.mount, b"none", b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
    call(libc.mount, root, root, None, 0x5000, None)  # MS_BIND | MS_REC
    call(libc.mount, b"/proc", root + b"/proc", None, 0x5000, None)  # machined does not do without
    os.chdir(root)
    call(libc.pivot_root, b".", b".")
    call(libc.umount2, b".", 2)  # MNT_DETACH
elif arguments["chroot"]:
    os.chroot(root)
print("ready", flush=True)
sys.stdin.readline()
"""

SUPPORT = Path(__file__).resolve().parents[2] / "support"

NETWORK = (
    "link set lo up",
    "address add 2001:db8::7/64 dev lo",
    "address add 198.51.100.9/24 dev lo scope link",
    "address add 192.0.2.7/24 dev lo",
    "address add 192.0.2.3/32 dev lo",
    "address add 203.0.113.1/32 dev lo scope host",
    "address add 2001:db8::bad/64 dev lo preferred_lft 0",
)
ADDRESSES = tuple(
    Address(1, socket.AF_INET6 if ":" in text else socket.AF_INET, ipaddress.ip_address(text).packed)
    for text in ("192.0.2.3", "192.0.2.7", "198.51.100.9", "2001:db8::7")
)

# What os-release files are made of, and what could upset who reads them.
GRAINS = (
    b"A", b"B", b"=", b"A=", b"\nB=", b"x", b" ", b"\t", b"\v", b"\n", b"\r", b"\\", b"'", b'"', b"#", b";", b"$",
    b"`", b"\xc3\xa9", b"\xe2\x82\xac", b"\xe9", b"\0",
)  # fmt: skip

RELEASE = b"""# a comment that goes on \\
ID=testos
NAME="Test \\"OS\\" \\$1 \\x"
PRETTY_NAME='Test' OS
VERSION = 1 two  \nEMPTY=
ID=again
LONG=one\\
two
"""
PARSED = [
    "ID=again", 'NAME=Test "OS" $1 \\x', "PRETTY_NAME=TestOS", "VERSION=1 two", "EMPTY=", "LONG=onetwo",
]  # fmt: skip


@pytest.fixture
def root() -> Generator[Path]:
    # Not pytest's own directory: it is closed to those who are not root, as a container's user is not.
    path = Path(tempfile.mkdtemp(dir="/run"))
    path.chmod(0o755)
    for name in ("etc", "proc"):
        (path / name).mkdir()
    (path / "etc/os-release").write_bytes(RELEASE)
    yield path
    shutil.rmtree(path)


Start = Callable[..., Record]


@pytest.fixture
def start(root: Path) -> Generator[Start]:
    """Start a container; it ends with the test."""
    running: list[subprocess.Popen[str]] = []

    def one(
        *namespaces: str,
        uids: str = WHOLE,
        gids: str | None = None,
        network: tuple[str, ...] = (),
        chroot: bool = False,
    ) -> Record:
        arguments = {
            "root": str(root),
            "namespaces": namespaces or ("user", "net", "mnt"),
            "network": network,
            "chroot": chroot,
            "become_root": bool(uids) and ("user" in namespaces or not namespaces),
        }
        process = subprocess.Popen(
            [sys.executable, "-c", LEADER, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "unshared\n"
        if uids and ("user" in namespaces or not namespaces):
            Path(f"/proc/{process.pid}/uid_map").write_text(uids)
            Path(f"/proc/{process.pid}/gid_map").write_text(uids if gids is None else gids)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        return container(process.pid)

    yield one
    for process in running:
        process.communicate()


def container(pid: int) -> Record:
    pidfd = os.pidfd_open(pid)
    leader = process_id(pidfd)
    os.close(pidfd)
    return record(f"test-{pid}", class_=MachineClass.container, leader=leader)


@asynccontextmanager
async def connected(link: LinkKind = "private") -> AsyncGenerator[DBusManager]:
    manager = DBusManager(Endpoints.of("system"), link)
    async with trio.open_nursery() as nursery:
        await nursery.start(manager.run)
        yield manager
        nursery.cancel_scope.cancel()


async def look(machine: Record, link: LinkKind = "private") -> Metadata:
    async with connected(link) as manager:
        return await acquire(machine, manager, graceful=True)


async def failure(machine: Record) -> MetadataError:
    async with connected() as manager:
        with pytest.raises(MetadataError) as caught:
            await acquire(machine, manager, graceful=False)
    return caught.value


def machined(method: str, **parameters: Any) -> dict[str, Any]:
    argv = [
        "varlinkctl",
        "call",
        "--json=short",
        MACHINED,
        f"io.systemd.Machine.{method}",
        json.dumps(parameters),
    ]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout or "{}")


def machined_fails(method: str, **parameters: Any) -> str:
    argv = [
        "varlinkctl",
        "call",
        "--json=short",
        MACHINED,
        f"io.systemd.Machine.{method}",
        json.dumps(parameters),
    ]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    return done.stderr.strip().rpartition(" ")[2]


@contextmanager
def registered_with_machined(machine: Record) -> Generator[None]:
    assert machine.leader is not None
    machined(
        "Register", name=machine.name, **{"class": "container"}, leader=machine.leader.pid, allocateUnit=True
    )
    yield
    machined("Unregister", name=machine.name)


def as_machined_says_it(found: Metadata) -> dict[str, Any]:
    return {
        "addresses": [
            {"ifindex": each.ifindex, "family": each.family, "address": list(each.address)}
            for each in found.addresses or ()
        ],
        "OSRelease": found.os_release,
        "UIDShift": found.uid_shift,
    }


@pytest.fixture(scope="module", autouse=True)
def machined_is_up() -> None:
    # Before 258 no socket activates it.
    subprocess.run(["systemctl", "start", "systemd-machined.service"], check=True)


@pytest.mark.parametrize("link", ["private", "bus"])
async def test_a_container_is_seen_from_inside(start: Start, link: LinkKind) -> None:
    assert await look(start(network=NETWORK), link) == Metadata(ADDRESSES, PARSED, SHIFT)


async def test_machined_sees_the_same_in_a_container(start: Start) -> None:
    machine = start(network=NETWORK)
    with registered_with_machined(machine):
        told = machined("List", name=machine.name, acquireMetadata="yes")

    ours = as_machined_says_it(await look(machine))
    assert ours == {name: told.get(name) for name in ours}


async def test_machined_sees_the_same_on_the_host() -> None:
    await trio.run_process(["ip", "address", "replace", "198.51.100.1/32", "dev", "lo"])
    host = replace(container(os.getpid()), name=".host", class_=MachineClass.host)

    told = machined("List", name=".host", acquireMetadata="yes")

    ours = as_machined_says_it(await look(host))
    assert ours == {name: told.get(name) for name in ours}
    assert {"ifindex": 1, "family": 2, "address": [198, 51, 100, 1]} in ours["addresses"]


@pytest.mark.parametrize(
    ("namespaces", "uids", "gids", "error"),
    [
        (("user", "mnt"), WHOLE, WHOLE, NoPrivateNetworking),
        (("net", "mnt", "user"), "0 100000 65533", "0 100000 65533", NoUIDShift),
        (("net", "mnt", "user"), "0 100000 65536", "0 200000 65536", NoUIDShift),
        (("net", "mnt", "user"), "0 100000 65536\n70000 300000 10", WHOLE, NoUIDShift),
        (("net", "mnt", "user"), "1 100000 65536\n0 300000 1", WHOLE, NoUIDShift),
    ],
)
async def test_the_first_error_is_that_of_machined(
    start: Start, namespaces: tuple[str, ...], uids: str, gids: str, error: type[MetadataError]
) -> None:
    machine = start(*namespaces, uids=uids, gids=gids)
    with registered_with_machined(machine):
        told = machined_fails("List", name=machine.name, acquireMetadata="yes")
        graceful = machined("List", name=machine.name, acquireMetadata="graceful")

    assert told == f"io.systemd.Machine.{error.__name__}"
    assert type(await failure(machine)) is error
    found = await look(machine)
    assert found.os_release == PARSED == graceful["OSRelease"]
    assert found.uid_shift == graceful.get("UIDShift")


def test_machined_reads_an_os_release_in_the_same_way(root: Path, start: Start) -> None:
    release = root / "etc/os-release"
    machine = start()

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.sampled_from(GRAINS), max_size=24).map(b"".join))
    def compare(content: bytes) -> None:
        release.write_bytes(content)
        told = machined("List", name=machine.name, acquireMetadata="graceful").get("OSRelease", [])
        try:
            ours = parse_os_release(content)
        except Unreadable:
            ours = []
        assert ours == told

    with registered_with_machined(machine):
        compare()


async def test_a_user_s_manager_looks_into_a_user_s_container() -> None:
    await trio.run_process(["loginctl", "enable-linger", "alice"])
    await trio.run_process(["systemctl", "start", "user@1000.service"])
    become = [
        "setpriv",
        "--reuid=1000",
        "--regid=1000",
        "--clear-groups",
        "env",
        "XDG_RUNTIME_DIR=/run/user/1000",
        f"PYTHONPATH={SUPPORT}",
    ]
    done = await trio.run_process([*become, sys.executable, __file__], capture_stdout=True)
    found = json.loads(done.stdout)
    # One user is mapped, which is no shift.
    assert (found["addresses"], found["UIDShift"]) == (
        [{"ifindex": 1, "family": 2, "address": [192, 0, 2, 9]}],
        None,
    )
    assert f"ID={platform.freedesktop_os_release()['ID']}" in found["OSRelease"]


async def looked_at_by_a_user() -> None:
    """What the test above runs as that user."""
    commands = "ip link set lo up && ip address add 192.0.2.9/32 dev lo && echo ready && read end"
    argv = ["unshare", "-Urnm", "sh", "-c", commands]
    process = await trio.lowlevel.open_process(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.receive_some() == b"ready\n"
    manager = DBusManager(Endpoints.of("user"), "private")
    async with trio.open_nursery() as nursery:
        await nursery.start(manager.run)
        print(json.dumps(as_machined_says_it(await acquire(container(process.pid), manager, graceful=True))))
        nursery.cancel_scope.cancel()
    process.kill()


async def test_a_container_without_users_or_root_of_its_own_is_seen_too(start: Start) -> None:
    machine = start("net", network=NETWORK, chroot=True)
    assert await look(machine) == Metadata(ADDRESSES, PARSED, 0)


async def test_who_shares_the_users_of_the_host_is_read_by_nobody(root: Path, start: Start) -> None:
    machine = start("net", network=NETWORK, chroot=True)
    (root / "etc/os-release").chmod(0o600)
    assert await look(machine) == Metadata(ADDRESSES, None, 0)
    assert type(await failure(machine)) is Unreadable


async def test_whose_root_is_that_of_the_host_is_read_by_nobody(root: Path, start: Start) -> None:
    machine = start(network=NETWORK, uids="0 0 65536")
    assert await look(machine) == Metadata(ADDRESSES, PARSED, 0)
    (root / "etc/os-release").chmod(0o600)
    assert await look(machine) == Metadata(ADDRESSES, None, 0)


async def test_users_that_are_not_mapped_yet_are_no_shift_and_nobody_reads_for_them(start: Start) -> None:
    machine = start("net", "user", "mnt", uids="")
    assert await look(machine) == Metadata((), None, None)
    assert type(await failure(machine)) is Unreadable


async def test_of_a_virtual_machine_nothing_is_seen(start: Start) -> None:
    machine = replace(start(), class_=MachineClass.vm)
    assert await look(machine) == Metadata(None, None, None)
    assert type(await failure(machine)) is NotAvailable


async def test_a_leader_that_is_gone_is_not_taken_for_its_successor(start: Start) -> None:
    machine = start()
    assert machine.leader is not None
    assert machine.leader.pidfd_id is not None
    other = replace(machine, leader=replace(machine.leader, pidfd_id=machine.leader.pidfd_id + 1))
    assert await look(other) == Metadata(None, None, None)
    assert type(await failure(other)) is Unreadable
    assert type(await failure(replace(machine, leader=None))) is Unreadable


# Whatever a container puts where its OS release should be


def no_file(release: Path) -> None:
    release.unlink()


def fifo(release: Path) -> None:
    release.unlink()
    os.mkfifo(release)


def device(release: Path) -> None:
    release.unlink()
    os.mknod(release, 0o666 | 0o020000, os.makedev(1, 5))  # /dev/zero


def directory(release: Path) -> None:
    release.unlink()
    release.mkdir()


def listener(release: Path) -> None:
    release.unlink()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(release))


def loop(release: Path) -> None:
    release.unlink()
    release.symlink_to("os-release")


def outside(release: Path) -> None:
    release.unlink()
    release.symlink_to("/etc/machine-id")


def upwards(release: Path) -> None:
    release.unlink()
    release.symlink_to("../../../../../../etc/machine-id")


def large(release: Path) -> None:
    release.write_bytes(b"A=" + b"a" * OS_RELEASE_MAX)


def endless(release: Path) -> None:
    os.truncate(release, 2**40)


def binary(release: Path) -> None:
    release.write_bytes(b"ID=a\0b\n")


def latin_1(release: Path) -> None:
    release.write_bytes(b"ID=caf\xe9\n")


def not_for_the_container(release: Path) -> None:
    release.chmod(0o600)


@pytest.mark.parametrize(
    ("put", "error"),
    [
        (no_file, NoOSRelease), (outside, NoOSRelease), (upwards, NoOSRelease), (fifo, Unreadable),
        (device, Unreadable), (directory, Unreadable), (listener, Unreadable), (loop, Unreadable),
        (large, Unreadable), (endless, Unreadable), (binary, Unreadable), (latin_1, Unreadable),
        (not_for_the_container, Unreadable),
    ],
)  # fmt: skip
async def test_a_bad_os_release_is_an_error_and_harms_nothing_else(
    root: Path, start: Start, put: Callable[[Path], None], error: type[MetadataError]
) -> None:
    put(root / "etc/os-release")
    machine = start(network=NETWORK)
    assert await look(machine) == Metadata(ADDRESSES, None, SHIFT)
    assert type(await failure(machine)) is error


async def test_a_lease_on_the_file_makes_nobody_wait(root: Path, start: Start) -> None:
    release = root / "etc/os-release"
    machine = start(network=NETWORK)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        with release.open("rb+") as leased:
            fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            assert await look(machine) == Metadata(ADDRESSES, None, SHIFT)
    finally:
        signal.signal(signal.SIGIO, before)


async def test_the_largest_os_release_and_many_addresses_arrive_whole(root: Path, start: Start) -> None:
    content = "A=" + "\x01" * (OS_RELEASE_MAX - 2)
    (root / "etc/os-release").write_text(content)
    many = tuple(f"address add 10.0.{number // 250}.{number % 250 + 1}/32 dev lo" for number in range(500))
    found = await look(start(network=("link set lo up", *many)))
    assert found.os_release == [content]
    assert found.addresses is not None
    assert len(found.addresses) == 500


async def test_the_vendor_s_os_release_is_taken_where_there_is_no_other(root: Path, start: Start) -> None:
    (root / "usr/lib").mkdir(parents=True)
    (root / "etc/os-release").rename(root / "usr/lib/os-release")
    machine = start()
    assert (await look(machine)).os_release == PARSED
    (root / "etc/os-release").symlink_to("/usr/lib/os-release")
    assert (await look(machine)).os_release == PARSED


async def test_nothing_is_left_of_many_at_once(start: Start) -> None:
    machine = start(network=NETWORK)
    found: list[Metadata] = []
    async with connected() as manager:

        async def one() -> None:
            found.append(await acquire(machine, manager, graceful=False))

        await one()
        descriptors = len(os.listdir("/proc/self/fd"))
        async with trio.open_nursery() as nursery:
            for _ in range(probe.PROBES_MAX + 4):
                nursery.start_soon(one)
        assert len(os.listdir("/proc/self/fd")) == descriptors
    assert found == [Metadata(ADDRESSES, PARSED, SHIFT)] * (probe.PROBES_MAX + 5)
    argv = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "moored-probe-*"]
    assert (await trio.run_process(argv, capture_stdout=True)).stdout == b""


async def test_who_stops_waiting_leaves_nothing(start: Start) -> None:
    machine = start()
    async with connected() as manager:
        await acquire(machine, manager, graceful=False)
        descriptors = len(os.listdir("/proc/self/fd"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(acquire, machine, manager, graceful=True))
            await trio.testing.wait_all_tasks_blocked()
            assert len(os.listdir("/proc/self/fd")) > descriptors
            nursery.cancel_scope.cancel()
        assert len(os.listdir("/proc/self/fd")) == descriptors
        await acquire(machine, manager, graceful=False)


async def test_a_probe_has_few_rights() -> None:
    show = "print(open('/proc/self/status').read())"
    with tempfile.TemporaryFile() as output:
        async with connected() as manager:
            deadline = trio.current_time() + 20
            properties = probe._properties("/none", metadata._CAPABILITIES, ("chroot", "setns"))
            properties["ExecStart"] = [[sys.executable, [sys.executable, "-c", show], False]]
            types = await manager.property_types("service", deadline=deadline)
            spec = ServiceSpec("test-rights.service", "Rights", types.convert(properties), output.fileno())
            assert (await manager.start_service(spec, deadline=deadline)).result == "done"
        status = dict(
            line.split(b":\t") for line in os.pread(output.fileno(), 65536, 0).splitlines() if line
        )
    few = f"{1 << 6 | 1 << 7 | 1 << 18 | 1 << 19 | 1 << 21:016x}".encode()
    assert {name: status[name] for name in (b"CapEff", b"CapPrm", b"CapBnd")} == dict.fromkeys(
        (b"CapEff", b"CapPrm", b"CapBnd"), few
    )
    assert status[b"CapAmb"] == b"0" * 16
    assert status[b"NoNewPrivs"] == b"1"
    assert status[b"Seccomp"] == b"2"


async def test_a_job_that_fails_says_so() -> None:
    with tempfile.TemporaryFile() as output:
        async with connected() as manager:
            deadline = trio.current_time() + 20
            properties = probe._properties("/none", metadata._CAPABILITIES, ("chroot", "setns"))
            properties["ExecStart"] = [["/bin/false", ["false"], False]]
            types = await manager.property_types("service", deadline=deadline)
            spec = ServiceSpec("test-false.service", "False", types.convert(properties), output.fileno())
            assert (await manager.start_service(spec, deadline=deadline)).result == "failed"
            assert await manager.status(spec.unit, deadline=deadline) is None


if __name__ == "__main__":
    trio.run(looked_at_by_a_user)
