"""Whoever lists all machines over and over costs neither memory that stays nor root's answers."""

import contextlib
import re
import socket
from pathlib import Path

from authority import wait_for
from hostile import call, encode, send
from moored import OURS, Processes, main_pid
from sessions import Session

MACHINES, HELPERS, CONNECTIONS, ASKED = 20, 5, 60, 40
"""Each connection asks so often for all machines, and reads nothing."""

MORE_KIB = 4096
"""What the allocator may keep besides a tenth."""


def pss() -> int:
    """Memory of the service, KiB."""
    text = Path(f"/proc/{main_pid()}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)
    assert found is not None
    return int(found[1])


def test_a_stranger_who_lists_and_never_reads(
    everything_gone: None, spawn: Processes, stranger: Session
) -> None:
    helpers = [
        {"name": f"h{number}", "execStart": ["/usr/bin/sleep", "infinity"]} for number in range(HELPERS)
    ]
    for number in range(MACHINES):
        asked = {"name": f"m{number}", "class": "vm", "leader": {"pid": spawn().pid}, "helpers": helpers}
        assert "error" not in (call(f"{OURS}Register", asked) or {"error": None})
    before, pid = pss(), main_pid()
    opened: list[socket.socket] = []
    for _ in range(CONNECTIONS):
        connected = stranger.dial()
        connected.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # it reads no more of it
            send(connected, encode(f"{OURS}List", more=True) * ASKED)
        opened.append(connected)
    # Root is answered meanwhile.
    leader = spawn()
    reply = call(f"{OURS}Register", {"name": "roots", "class": "vm", "leader": {"pid": leader.pid}})
    assert reply is not None
    assert "error" not in reply
    for connected in opened:
        connected.close()
    wait_for(lambda: pss() <= 1.1 * before + MORE_KIB, "its memory is what it was")
    assert main_pid() == pid
