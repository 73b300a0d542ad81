"""Alice: an ordinary user who registers machines beside root.

Whoever connects is judged by the process that does, and what she registers has to be in a unit of hers. So a process
of hers in her slice connects for the clients (python3 -m faults.alice), and her leaders are put beside it.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import trio

from faults.world import ALICE, CGROUPS, SOCKET, Process, control_group, run
from moorage.wire.client import Client

UNIT = "chaos-alice.scope"
RULE = Path("/etc/polkit-1/rules.d/10-chaos.rules")
MAY_CREATE = """\
polkit.addRule(function(action, subject) {
    if (subject.user == "alice" && action.id == "io.moorage.create-machine") return polkit.Result.YES;
});
"""

DIAL_SECONDS = 60.0
"""Deadline for a connection: systemd queues connections while moored is away."""

REFUSED = b"refused"


class Alice:
    """A session of Alice."""

    def __init__(self) -> None:
        RULE.parent.mkdir(parents=True, exist_ok=True)
        RULE.write_text(MAY_CREATE)
        run("systemctl", "restart", "polkit.service")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = ("systemd-run", "--scope", "--quiet", f"--unit={UNIT}", f"--uid={ALICE}",
                f"--slice=user-{ALICE}.slice", "--", "python3", "-m", "faults.alice")  # fmt: skip
        with theirs:
            self.process: Process = subprocess.Popen(argv, stdin=theirs.fileno())
        ours.settimeout(DIAL_SECONDS)
        self._asked = ours
        self._turn = trio.Lock()
        self._dial().close()  # the session exists
        self._group = control_group(self.process.pid)

    def _dial(self) -> socket.socket:
        self._asked.send(b"dial")
        _, fds, _, _ = socket.recv_fds(self._asked, len(REFUSED), 1)
        if not fds:
            raise ConnectionRefusedError
        return socket.socket(fileno=fds[0])

    async def connect(self) -> Client:
        """Connect to moored as Alice.

        Raises:
            OSError: it cannot be done.
        """
        async with self._turn:
            return Client(await trio.to_thread.run_sync(self._dial))

    def sleeper(self) -> Process:
        """Start a process of Alice that does nothing."""
        process = subprocess.Popen(
            ("sleep", "infinity"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, user=ALICE
        )
        (CGROUPS / self._group.lstrip("/") / "cgroup.procs").write_text(str(process.pid))
        return process


def main() -> None:
    """Connect whenever the other end asks for it."""
    asked = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    while asked.recv(len(b"dial")):
        with socket.socket(socket.AF_UNIX) as connected:
            try:
                connected.connect(SOCKET)
            except OSError:
                asked.send(REFUSED)
            else:
                socket.send_fds(asked, [b"done"], [connected.fileno()])


if __name__ == "__main__":
    main()
