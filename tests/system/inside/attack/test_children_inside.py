"""The children that work inside machines, while they are there: what a guest can do with them, and what they have.

The guest is root of a user namespace that a child enters, sees all processes of the host, and serves the file system
that the child looks at. So it learns the child's PID from the kernel, and keeps it there.
"""

import contextlib
import json
import os
import select
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import fuse_file
import pytest
import trio
from hostile import ask, encode
from moored import THEIRS, UNTIL_SECONDS, run, until

UID = 100_000
"""The guest's, on the host."""

GUEST = r"""
import ctypes, errno, json, os, signal, struct, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS)
print("unshared", flush=True)
sys.stdin.readline()
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
if libc.mount(b"slow", b"/mnt", b"fuse.slow", 0, options.encode()) < 0:
    raise OSError(ctypes.get_errno(), "mount")
own = subprocess.Popen(["sleep", "infinity"])
leader = os.fork()
if leader == 0:
    os.close(device)
    os.chroot("/mnt")
    print(os.getpid(), flush=True)  # its root is this one by now, and not the host's
    signal.pause()

def outcome(function, *args):
    try:
        result = function(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done" if result != -1 else errno.errorcode[ctypes.get_errno()]

def attacks(pid):
    pidfd = os.pidfd_open(pid)
    return {
        "PTRACE_SEIZE": outcome(libc.ptrace, 0x4206, pid, None, None),
        "pidfd_getfd": outcome(libc.syscall, 438, pidfd, 0, 0),
        "mem": outcome(os.open, f"/proc/{pid}/mem", os.O_RDWR),
        "fds": outcome(os.listdir, f"/proc/{pid}/fd"),
        "exe": outcome(os.readlink, f"/proc/{pid}/exe"),
        "cwd": outcome(os.readlink, f"/proc/{pid}/cwd"),
        "root": outcome(os.readlink, f"/proc/{pid}/root"),
        "environ": outcome(lambda: open(f"/proc/{pid}/environ").read()),
        "namespace": outcome(os.open, f"/proc/{pid}/ns/mnt", os.O_RDONLY),
    }

LOOKUP, INIT, GETATTR, ACCESS = 1, 26, 3, 34
replies = {
    INIT: struct.pack("IIIIHHIIHHI7I", 7, 31, 0, 0, 16, 12, 4096, 1, 1, *[0] * 9),
    GETATTR: struct.pack("QII6Q10I", 0, 0, 0, 1, *[0] * 8, 0o40755, 1, 0, 0, 0, 4096, 0),
    ACCESS: b"",
}
while True:
    operation, unique, pid = struct.unpack_from("4xIQ16xI", os.read(device, 1 << 17))
    if operation in replies:
        reply = replies[operation]
        os.write(device, struct.pack("IiQ", 16 + len(reply), 0, unique) + reply)
    elif operation == LOOKUP:
        print(json.dumps({"pid": pid, "of": attacks(pid), "own": attacks(own.pid)}), flush=True)
        sys.stdin.readline()
        os.write(device, struct.pack("IiQ", 16, -errno.ENOENT, unique))
"""


class Guest(NamedTuple):
    """A container.

    Attributes:
        process: its root, which serves its files.
        leader: PID.
    """

    process: subprocess.Popen[str]
    leader: int

    def heard(self) -> Any:
        """Return the next thing that it says."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], UNTIL_SECONDS)
        assert ready, f"the container has said nothing for {UNTIL_SECONDS} s"
        return json.loads(self.process.stdout.readline())

    def tell(self) -> None:
        """Have it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.fixture
def guest(nothing_left: None) -> Generator[Guest]:
    fuse_file.device()
    process = subprocess.Popen(
        ["python3", "-c", GUEST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        user=UID, group=UID, extra_groups=[],
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "unshared\n"
    for kind in "ug":
        Path(f"/proc/{process.pid}/{kind}id_map").write_text(f"0 {UID} 65536")
    guest = Guest(process, 0)
    guest.tell()
    guest = Guest(process, guest.heard())
    parameters = {"name": "guest", "class": "container", "leader": guest.leader, "allocateUnit": False}
    (reply,) = ask(encode(f"{THEIRS}Register", parameters))
    assert "error" not in reply
    yield guest
    ask(encode(f"{THEIRS}Unregister", {"name": "guest"}))
    subprocess.run(["pkill", "-KILL", "-U", str(UID)], check=True)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


class Opening:
    """A terminal of the container that is asked for.

    Attributes:
        kept: the container has the child that is to open it.
        answers: what was answered.
    """

    def __init__(self) -> None:
        self.kept = False
        self.answers: list[Any] = []

    async def ask(self) -> None:
        call = encode(f"{THEIRS}Open", {"name": "guest", "mode": "tty"})
        self.answers = await trio.to_thread.run_sync(ask, call)
        assert self.kept, f"answered before the container was looked at: {self.answers}"

    async def until_kept(self, guest: Guest) -> Any:
        """Wait until the container has the child, and return what it says."""
        seen = await trio.to_thread.run_sync(guest.heard)
        self.kept = True
        return seen


async def test_a_guest_cannot_look_into_a_child(guest: Guest) -> None:
    opening = Opening()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(opening.ask)
        seen = await opening.until_kept(guest)
        assert set(seen["own"].values()) == {"done"}, seen  # or the attacks are none
        assert set(seen["of"].values()) <= {"EPERM", "EACCES"}, seen

        # What it has: its standard descriptors, its own two, the directories of its task; no right any more.
        pid = seen["pid"]
        parent = int(run("systemctl", "show", "-P", "MainPID", "moored-inside-0.service"))
        status = status_of(pid)
        assert (int(status["PPid"]), status["Uid"].split()) == (parent, [str(UID)] * 4)
        assert [int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Amb")] == [0] * 4
        theirs = set(links(parent).values())
        ours = links(pid)
        assert {ours[fd] for fd in ("0", "1", "2")} <= theirs
        shared = {fd for fd, to in ours.items() if to in theirs and int(fd) > 2 and to.startswith("socket:")}
        assert shared == {"4"}  # where it answers, and where the parent says that it took too long
        assert len(ours) <= 8, ours
        guest.tell()
    assert opening.answers[0]["parameters"]["errnoName"] == "ENOENT", opening.answers


def status_of(pid: int) -> dict[str, str]:
    return dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())


def links(pid: int) -> dict[str, str]:
    """What a process has open; it may close some of it meanwhile."""
    found: dict[str, str] = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
    return found


async def test_one_that_is_kept_keeps_nobody_else(guest: Guest) -> None:
    opening = Opening()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(opening.ask)
        await opening.until_kept(guest)
        for _ in range(3):
            reply = await trio.to_thread.run_sync(
                ask, encode(f"{THEIRS}Open", {"name": ".host", "mode": "tty"})
            )
            assert "error" not in reply[0], reply
        guest.tell()
    await until(lambda: not children(), "no child stays but the one that waits for a task")


def children() -> list[str]:
    """PIDs of the children that have other users than root."""
    group = Path("/sys/fs/cgroup/system.slice/moored-inside-0.service/cgroup.procs")
    found: list[str] = []
    for pid in group.read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if not status_of(int(pid))["Uid"].startswith("0\t"):
                found.append(pid)
    return found
