"""The process that talks to the service: python3 -m fuzzing.hand SOCKET, in a unit of its own.

What it says may well be that it is itself the leader of a machine, which is then stopped: so it is another process
that looks at what came of it, and starts a new one.

Reads one JSON object a line (see `Order`), writes one (see `Report`).
"""

import array
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SERVICE = "/run/moorage/io.moorage.Machine"

PID, PIDFD_ID, BOOT_ID = b"4000001", b"4000002", b"0" * 31 + b"1"
"""In the corpus: a process that was started for the conversation. They come as three, so that what is left of one of
them when it is damaged names no other process."""

PROMPT_SECONDS = 20.0
"""Longest wait for a reply that should come at once."""

PATIENT_SECONDS = 1.0
"""When a caller gives up on a call that may take minutes."""


@dataclass(frozen=True)
class Order:
    """What to send on one connection. Bytes are text in latin-1.

    Attributes:
        pieces: sent one by one.
        fds: names in OPEN, of what goes with the first piece.
        end: "reads", "hangs up" or "resets".
        patient: whether what is asked for may take long.
    """

    pieces: Sequence[str]
    fds: Sequence[str]
    end: str
    patient: bool


@dataclass(frozen=True)
class Report:
    """What became of it.

    Attributes:
        received: bytes as text in latin-1.
        closed: whether the service closed the connection, or had no more to say.
        sent: what was sent, with the process in it.
    """

    received: str
    closed: bool
    sent: str


OPEN: Mapping[str, Callable[[int], int]] = {
    "leader": os.pidfd_open,
    "own": lambda _: os.pidfd_open(os.getpid()),
    "init": lambda _: os.pidfd_open(1),
    "null": lambda _: os.open("/dev/null", os.O_RDONLY),
    "directory": lambda _: os.open("/proc/self", os.O_RDONLY),
    "path": lambda _: os.open("/", os.O_PATH),
    "memory": lambda _: os.memfd_create("fuzz"),
}
"""Kinds of file descriptors, which are made from the PID of the leader."""


def _names(leader: int) -> list[tuple[bytes, bytes]]:
    pidfd = os.pidfd_open(leader)
    try:
        number = os.fstat(pidfd).st_ino
    finally:
        os.close(pidfd)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", "")
    return [(PID, b"%d" % leader), (PIDFD_ID, b"%d" % number), (BOOT_ID, boot.encode())]


def carry_out(order: Order) -> Report:
    """Hold one conversation."""
    leader = subprocess.Popen(["sleep", "infinity"])
    fds = [OPEN[name](leader.pid) for name in order.fds]
    names = _names(leader.pid)
    sent: list[bytes] = []
    try:
        with socket.socket(socket.AF_UNIX) as connected:
            connected.settimeout(PROMPT_SECONDS)
            connected.connect(SERVICE)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for number, text in enumerate(order.pieces):
                    piece = text.encode("latin-1")
                    for placeholder, name in names:
                        piece = piece.replace(placeholder, name)
                    sent.append(piece)
                    rights = (
                        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                        if fds and not number
                        else []
                    )
                    connected.sendall(piece[connected.sendmsg([piece], rights) :])
            received, closed = _received(connected, order)
    finally:
        for fd in fds:
            os.close(fd)
        leader.kill()
        leader.wait()
    return Report(received.decode("latin-1"), closed, b"".join(sent).decode("latin-1"))


def _received(connected: socket.socket, order: Order) -> tuple[bytes, bool]:
    if order.end == "resets":  # with replies unread
        return b"", True
    with contextlib.suppress(OSError):  # hung up already
        connected.shutdown(socket.SHUT_WR if order.end == "reads" else socket.SHUT_RDWR)
    received = bytearray()
    end = time.monotonic() + (PATIENT_SECONDS if order.patient else PROMPT_SECONDS)
    while (left := end - time.monotonic()) > 0:
        if not select.select([connected], [], [], left)[0]:
            break
        try:
            data = connected.recv(65536)
        except ConnectionResetError:
            return bytes(received), True
        if not data:
            return bytes(received), True
        received += data
    return bytes(received), False


def main() -> None:
    """Carry out orders until there are no more."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect(sys.argv[1])
        with connected.makefile("rw", encoding="ascii") as lines:
            for line in lines:
                report = carry_out(Order(**json.loads(line)))
                print(json.dumps(asdict(report)), file=lines, flush=True)


if __name__ == "__main__":
    main()
