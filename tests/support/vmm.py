"""What stands for a VMM: it listens at the control address of its machine."""

import subprocess
import sys
from pathlib import Path

from moored import Process, Processes

_PROGRAM = """
import json, os, socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o600)
listener.listen()
print("ready", flush=True)
replies = {"no": b'{"error":"io.systemd.MachineInstance.NotConnected"}\\0', "deaf": b""}
while True:
    connected, _ = listener.accept()
    method = json.loads(connected.recv(4096).rstrip(b"\\0"))["method"].rpartition(".")[2]
    print(method, flush=True)
    connected.sendall(replies.get(sys.argv[2], b"{}\\0"))
    while sys.argv[2] == "obeys late" and not os.path.exists(sys.argv[1] + ".now"):
        time.sleep(0.01)
    if method == "PowerOff" and sys.argv[2].startswith("obeys"):
        sys.exit(7)
    kept = connected
"""


def vmm(spawn: Processes, path: Path, how: str, user: int | None = None) -> Process:
    """Start one that listens at a path.

    Args:
        spawn: starts it.
        path: of the socket, which is of mode 0600.
        how: ``obeys``: it replies and exits with 7 when it is to power off; ``obeys late``: as soon as there is a file
            PATH.now; ``ignores``: it only replies; ``no``: it
            replies with an error; ``deaf``: it does not reply.
        user: that it runs as.
    """
    process = spawn([sys.executable, "-c", _PROGRAM, str(path), how], stdout=subprocess.PIPE, user=user)
    assert noted(process) == "ready"
    return process


def noted(process: Process) -> str:
    """Return the next method that was called there."""
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()
