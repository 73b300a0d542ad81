"""What the service touches, what it could touch, and how it behaves as a unit."""

import json
import os
import re
import signal
import stat
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from hostile import call
from moored import (
    OURS,
    RECORDS,
    SOCKET,
    THEIRS,
    UNTIL_SECONDS,
    Processes,
    connect,
    cursor,
    listed,
    logged,
    main_pid,
    register,
    run,
    show,
    until,
    verdict,
)

pytestmark = pytest.mark.system_instance("it is about the service of the system, and what its unit permits")

EXPOSURE_MAX = 20
"""Tenths, for ``systemd-analyze security``: the target of the project."""

ARGUED = {
    "CapabilityBoundingSet_CAP_KILL",
    "DeviceAllow",
    "PrivateNetwork",
    "PrivateUsers",
    "ProcSubset",
    "ProtectProc",
    "RestrictAddressFamilies_AF_NETLINK",
    "RestrictAddressFamilies_AF_UNIX",
    "RootDirectoryOrRootImage",
    "UserOrDynamicUser",
}
"""What ``systemd-analyze security`` finds; the unit's file has a reason for each."""

CAP_KILL = 1 << 5

ALICE = 1000

DROP_IN = Path("/run/systemd/system/moored.service.d/footprint.conf")


@contextmanager
def dropped_in(text: str) -> Generator[None]:
    """Run moored with a drop-in."""
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text(text)
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "moored.service")
    try:
        yield
    finally:
        DROP_IN.unlink()
        run("systemctl", "daemon-reload")
        run("systemctl", "restart", "moored.service")


# Files


@contextmanager
def traced(to: Path) -> Generator[None]:
    """Write down every system call of moored that names a file, or makes one."""
    call("io.systemd.service.Ping")
    command = ("strace", "-f", "-y", "-s", "4096", "-e", "trace=%file", "-o", str(to), "-p", str(main_pid()))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        assert "attached" in strace.stderr.readline()
        try:
            yield
        finally:
            strace.send_signal(signal.SIGINT)
            strace.communicate(timeout=UNTIL_SECONDS)


_CALL = re.compile(r"\d+ +(?P<name>\w+)\((?P<arguments>.*?)(?:\) += .*| <(?:unfinished|detached) \.\.\.>)")
_PATH = re.compile(r'(?:<(?P<directory>[^>]*)>, )?"(?P<path>[^"]*)"')
_READING = {
    "access", "faccessat", "faccessat2", "fstat", "getcwd", "getxattr", "inotify_add_watch", "lstat", "newfstatat",
    "readlink", "readlinkat", "stat", "statfs", "statx",
}  # fmt: skip


def written(trace: Path) -> tuple[set[str], set[str]]:
    """Return the paths that were written, made, renamed or removed, and those that were only looked at."""
    changed: set[str] = set()
    seen: set[str] = set()
    for line in trace.read_text().splitlines():
        if (found := _CALL.fullmatch(line)) is None:
            assert re.fullmatch(r"\d+ +(?:---|\+\+\+|<\.\.\. \w+ resumed>).*", line), line
            continue
        name, arguments = found["name"], found["arguments"]
        paths = {os.path.join(each["directory"] or "", each["path"]) for each in _PATH.finditer(arguments)}
        reads = name in _READING or (
            name in {"open", "openat", "openat2"}
            and not re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", arguments)
        )
        (seen if reads else changed).update(paths)
    return changed, seen


CONTROL = RECORDS.parent / "control"


async def test_no_control_group_is_made_or_written(spawn: Processes, tmp_path: Path) -> None:
    with traced(tmp_path / "trace"):
        async with await connect() as client:
            for class_ in ("vm", "container"):
                reply = await register(
                    client, class_, spawn(), **{"class": class_, "properties": {"CPUWeight": 5}}
                )
                await client.call(f"{OURS}Find", {"controlGroup": reply["machine"]["controlGroup"]})
                await client.call(f"{OURS}Describe", {"name": class_})
            await listed(client)
            await client.call(f"{THEIRS}List", {"name": "vm", "acquireMetadata": "graceful"})
            await client.call(f"{OURS}Kill", {"name": "vm", "signal": 9})
            await verdict(client, "vm")
            await client.call(f"{OURS}Stop", {"name": "container"})
            await client.call(f"{OURS}Forget", {"name": "container"})
    changed, seen = written(tmp_path / "trace")
    assert any(path.startswith("/sys/fs/cgroup/machine.slice/") for path in seen), "it was looked at"
    assert [path for path in changed if path.startswith("/sys")] == []
    # The records and the machines' sockets, and nothing else in the whole system.
    assert {str(Path(path).parent) for path in changed} - {str(RECORDS.parent)} <= {
        str(RECORDS),
        str(CONTROL),
    }
    assert {path for path in changed if Path(path).parent == RECORDS.parent} <= {str(CONTROL)}


MOUNTS = {
    "nothing": "umount --lazy /sys/fs/cgroup",
    "legacy": "umount --lazy /sys/fs/cgroup; mount -t tmpfs legacy /sys/fs/cgroup",
    "hybrid": (
        "umount --lazy /sys/fs/cgroup; mount -t tmpfs hybrid /sys/fs/cgroup; mkdir /sys/fs/cgroup/unified; "
        "mount -t cgroup2 unified /sys/fs/cgroup/unified"
    ),
}


@pytest.mark.parametrize("kind", MOUNTS)
def test_another_hierarchy_is_refused_at_the_start(kind: str, tmp_path: Path) -> None:
    script = f"{MOUNTS[kind]}; exec moored --listen $0/socket --state-directory $0/machines"
    command = ("unshare", "--mount", "sh", "-euc", script, str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=UNTIL_SECONDS)
    assert done.returncode == 1
    assert done.stderr == (
        "Failed to start: /sys/fs/cgroup is not the unified control group hierarchy (cgroup2)\n"
    )
    assert os.listdir(tmp_path) == []


# Rights


def test_the_unit_is_well_sandboxed() -> None:
    run("systemd-analyze", "security", f"--threshold={EXPOSURE_MAX}", "--no-pager", "moored.service")


def test_what_is_left_open_is_argued() -> None:
    found = json.loads(run("systemd-analyze", "security", "--no-pager", "--json=short", "moored.service"))
    assert {each["json_field"] for each in found if each["exposure"] and float(each["exposure"])} == ARGUED


def test_its_one_capability_is_needed(spawn: Processes) -> None:
    leader = {"pid": spawn(user=ALICE).pid}
    wanted = {"name": "hers", "signal": signal.SIGKILL, "whom": "leader"}
    registered = call(f"{OURS}Register", {"name": "hers", "class": "vm", "leader": leader})
    assert registered is not None
    assert "error" not in registered
    with dropped_in("[Service]\nCapabilityBoundingSet=\nCapabilityBoundingSet=CAP_BPF\n"):
        refused = call(f"{OURS}Kill", wanted)
        assert refused is not None
        assert refused["parameters"]["errnoName"] == "EPERM"
    assert call(f"{OURS}Kill", wanted) == {"parameters": {}}


def test_the_process_has_no_more_rights_than_it_uses(moored: None) -> None:
    call("io.systemd.service.Ping")
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{main_pid()}/status").read_text().splitlines()
    )
    for kind in ("CapPrm", "CapEff", "CapBnd", "CapInh"):
        assert int(status[kind], 16) | CAP_KILL == CAP_KILL, kind
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_the_units_are_well_formed() -> None:
    units = ("moored.service", "moored.socket", "moored-machined.socket")
    done = subprocess.run(
        ("systemd-analyze", "verify", "--man=no", *units), capture_output=True, text=True, check=False
    )
    # The extended attributes of sockets are younger than the oldest systemd that is supported.
    lines = [line for line in done.stderr.splitlines() if "Unknown key 'XAttr" not in line]
    assert (done.returncode, done.stdout, lines) == (0, "", [])
    for unit in units:
        assert '"man:moored(8)"' in show(unit, "Documentation")["Documentation"]


# The socket


def test_the_socket_is_open_to_all_and_the_records_are_not(moored: None) -> None:
    call("io.systemd.service.Ping")
    socket = Path(SOCKET).stat()
    assert stat.S_ISSOCK(socket.st_mode)
    assert (stat.S_IMODE(socket.st_mode), socket.st_uid) == (0o666, 0)
    assert stat.S_IMODE(Path(SOCKET).parent.stat().st_mode) == 0o755
    assert (stat.S_IMODE(RECORDS.stat().st_mode), RECORDS.stat().st_uid) == (0o700, 0)


def test_the_socket_is_in_the_registry(moored: None) -> None:
    link = Path("/run/varlink/registry/io.moorage.Machine")
    assert link.is_symlink()
    assert str(link.resolve()) == SOCKET


def test_the_socket_is_marked_as_that_of_machined(moored: None) -> None:
    run("systemctl", "start", "systemd-machined.service")
    theirs = "/run/systemd/machine/io.systemd.Machine"
    call("org.varlink.service.GetInfo", path=theirs)
    attributes = {
        path: {name: os.getxattr(path, name) for name in os.listxattr(path)} for path in (SOCKET, theirs)
    }
    assert attributes[SOCKET] == attributes[theirs]
    # What the kernel keeps of it depends on its age; what the unit asks for does not.
    wanted = (
        "XAttrEntryPoint",
        "XAttrListen",
        "XAttrAccept",
        "FileDescriptorName",
        "SocketMode",
        "DirectoryMode",
    )
    ours = show("moored.socket", *wanted)
    assert show("moored-machined.socket", *wanted) == ours
    if int(run("systemctl", "--version").split()[1]) >= 262:
        assert ours == show("systemd-machined.socket", *wanted)
        assert ours["XAttrEntryPoint"] == "user.varlink=entrypoint"


# The process


def test_started_means_ready(moored: None) -> None:
    run("systemctl", "stop", "moored.service")
    call("io.systemd.service.Ping")
    state = show("moored.service", "ActiveState", "StatusText", "Type", "NotifyAccess")
    assert state == {
        "ActiveState": "active",
        "StatusText": "Keeping 0 machines.",
        "Type": "notify-reload",
        "NotifyAccess": "main",
    }


async def test_the_watchdog_is_fed_and_bites(nothing_left: None, spawn: Processes) -> None:
    with dropped_in("[Service]\nWatchdogSec=1s\n"):
        pid = main_pid()
        async with await connect() as client:
            await register(client, "web", spawn())
        fed: set[str] = set()

        def seen() -> bool:
            fed.add(show("moored.service", "WatchdogTimestampMonotonic")["WatchdogTimestampMonotonic"])
            return len(fed) > 3

        await until(seen, "it is fed again and again")
        assert main_pid() == pid

        os.kill(pid, signal.SIGSTOP)
        await until(lambda: main_pid() not in {0, pid}, "it is killed and comes back")
        async with await connect() as client:
            assert list(await listed(client)) == ["web"]
            await client.call(f"{OURS}Stop", {"name": "web"})


async def test_a_stop_lets_calls_end(nothing_left: None, spawn: Processes) -> None:
    stubborn = spawn(("sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done"), stdout=subprocess.PIPE)
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    before = cursor()
    async with await connect() as client, await connect() as idle, trio.open_nursery() as nursery:
        await register(client, "web", stubborn, properties={"TimeoutStopUSec": 1_000_000})
        await idle.call("io.systemd.service.Ping")
        replies: list[str] = []

        async def stop() -> None:
            reply = await client.call(f"{OURS}Stop", {"name": "web"})
            replies.append(reply["machine"]["verdict"]["result"])

        nursery.start_soon(stop)
        await until(lambda: show("machine-web.scope", "SubState")["SubState"] == "stop-sigterm")
        assert replies == []
        await trio.run_process(["systemctl", "stop", "moored.service"])
    assert replies == ["timeout"]
    state = show("moored.service", "Result", "ExecMainStatus", "ActiveState")
    assert state == {"Result": "success", "ExecMainStatus": "0", "ActiveState": "inactive"}
    assert not [line for line in logged(before) if "Failed" in line or "Traceback" in line]
    # The socket is still there, and the next call starts the service again.
    assert call("io.systemd.service.Ping") == {"parameters": {}}
