"""A container whose user serves its files, and never answers: whoever looks at one of them waits for that answer.

No signal ends the wait once the server has the request (``request_wait_answer()`` of the kernel).
"""

import os
import signal
from pathlib import Path

import fuse_file
from moored import Processes, connect, cursor, logged, register, run, until
from sessions import Session

from moorage.pid1.oneshot import PROBES_MAX, PROBES_PER_ACCOUNT_MAX

CONTAINER = r"""
import ctypes, os, signal, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
uid, gid = os.getuid(), os.getgid()
os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS)
open("/proc/self/setgroups", "w").write("deny")
open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
open("/proc/self/gid_map", "w").write(f"0 {gid} 1")
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
if libc.mount(b"silent", b"/mnt", b"fuse.silent", 0, options.encode()) < 0:
    raise OSError(ctypes.get_errno(), "mount")
leader = os.fork()
if leader == 0:
    os.close(device)
    told = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    os.chroot("/mnt")
    os.write(told, b"%d\n" % os.getpid())  # its root is this one by now, and not the host's
    signal.pause()
os.chdir("/")
INIT, GETATTR, ACCESS = 26, 3, 34
replies = {
    INIT: struct.pack("IIIIHHIIHHI7I", 7, 31, 0, 0, 16, 12, 4096, 1, 1, *[0] * 9),
    GETATTR: struct.pack("QII6Q10I", 0, 0, 0, 1, *[0] * 8, 0o40755, 1, 0, 0, 0, 4096, 0),
    ACCESS: b"",
}
while True:  # its root is there; nobody learns what is in it
    operation, unique = struct.unpack_from("4xIQ", os.read(device, 1 << 17))
    if operation in replies:
        reply = replies[operation]
        os.write(device, struct.pack("IiQ", 16 + len(reply), 0, unique) + reply)
"""

LOOK = r"""
import json, socket, sys, threading
def look():
    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect("/run/moorage/io.moorage.Machine")
        parameters = {"name": "silent", "acquireMetadata": "yes"}
        call = {"method": "io.systemd.Machine.List", "parameters": parameters}
        connected.sendall(json.dumps(call).encode() + b"\0")
        connected.recv(1 << 16)
threads = [threading.Thread(target=look) for _ in range(int(sys.argv[1]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
open(sys.argv[2], "w")
"""


async def test_it_keeps_nobody_but_its_user_waiting(spawn: Processes, registrant: Session) -> None:
    fuse_file.device()
    home = Path("/home/registrant")
    server = registrant.spawn("python3", "-c", CONTAINER, str(home / "leader"))
    await until(lambda: (home / "leader").exists() and (home / "leader").read_text().endswith("\n"))
    leader = int((home / "leader").read_text())
    silent = registrant.register("silent", leader, allocateUnit=False, **{"class": "container"})
    assert "error" not in silent, silent
    looking = registrant.spawn("python3", "-c", LOOK, str(2 * PROBES_MAX), str(home / "looked"))
    await until(lambda: len(looks()) >= PROBES_PER_ACCOUNT_MAX)

    # Root looks into a container, and at the host.
    begun = cursor()
    mine = spawn(("unshare", "--net", "--mount", "sleep", "infinity"))
    await until(lambda: Path(f"/proc/{mine.pid}/comm").read_text() == "sleep\n")
    async with await connect() as client:
        await register(client, "mine", mine, **{"class": "container"})
        await register(client, "other", spawn(), properties={"DeviceAllow": [["/dev/nowhere", "rw"]]})
        listed = await client.call("io.systemd.Machine.List", {"name": "mine", "acquireMetadata": "yes"})
        assert listed["OSRelease"], listed
    assert not [line for line in logged(begun) if "Failed to look" in line]

    # However many looks there were, no more units stay than the user has places.
    await until((home / "looked").exists, "all have an answer", seconds=60)
    assert len(looks()) <= PROBES_PER_ACCOUNT_MAX
    registrant.kill(looking)
    assert "error" not in registrant.call("Forget", {"name": "silent"})
    os.kill(leader, signal.SIGKILL)
    registrant.kill(server)
    await until(lambda: not looks(), "none is left once nobody serves the files any more")
    for name in ("leader", "looked"):
        (home / name).unlink()


def looks() -> list[str]:
    """Names of the units that look at something."""
    return run("systemctl", "list-units", "--all", "--plain", "--no-legend", "moored-probe-*").splitlines()
