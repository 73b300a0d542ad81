"""The clients of tools/overload that behave badly: each does one thing until it is killed.

Those of ordinary users have uids that nobody else has. `creator` is let by polkit create machines (CREATOR_RULE).
"""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from pathlib import Path

from benchmarks.machines import LIST_ALL
from benchmarks.peers import MOORED
from benchmarks.wire import GET_INFO, Unmeasurable, connect, encode, exchange

NOBODY = 65534
CREATOR = "creator"
CREATOR_UID = 2001
CREATOR_RULE = f"""polkit.addRule(function(action, subject) {{
    if (action.id == "io.moorage.create-machine" && subject.user == "{CREATOR}")
        return polkit.Result.YES;
}});
"""
RULE_FILE = Path("/etc/polkit-1/rules.d/10-overload.rules")
PIPELINED = 100
CALLS_OF_THE_DEAF = 400
DEAF = 8
IDLE = 100
FLOOD = 120
FLOOD_SECONDS = 0.01
FDS_OF_A_CALL = 253
SUBORDINATE, USERS, PER_USER = 300_000, 33, 128
LIST_OURS = encode("io.moorage.Machine.List", more=True)
SUBSCRIBE = encode("io.moorage.Machine.Subscribe", more=True)
MEASURE = encode("io.moorage.Machine.Measure", more=True)
METADATA = encode("io.systemd.Machine.List", {"acquireMetadata": "yes"}, more=True)
DESCRIBE = encode("org.varlink.service.GetInterfaceDescription", {"interface": "io.moorage.Machine"})
TARGET = "overloaded"
"""Name of a machine of root's that others try to get at."""
QUESTION = encode("io.moorage.Machine.Kill", {"name": TARGET, "signal": 15})
"""One that polkit is asked about, and says no to."""

LINGERING = 32
"""Sockets at a time whose peers do not read."""
FILL_SECONDS = 0.002
"""What an answer takes."""

CALL_BYTES = 256 * 1024
"""Size of the longest call: wire.connection.CALL_MAX."""
TANGLED_OBJECTS = 16_000


def make_creator() -> None:
    """Make the user who may create machines."""
    subprocess.run(["useradd", "--uid", str(CREATOR_UID), CREATOR], check=True, capture_output=True)
    RULE_FILE.parent.mkdir(parents=True, exist_ok=True)
    RULE_FILE.write_text(CREATOR_RULE)


def spin() -> None:
    """Use up a processor."""
    while True:
        pass


def pipeline(calls: bytes) -> None:
    """Send and read without waiting for either, and connect again when the connection is closed."""
    while True:
        with connect(MOORED.socket) as sock, contextlib.suppress(ConnectionError):
            sock.setblocking(False)  # noqa: FBT003 - its only argument
            rest = b""
            while True:
                rest = rest or calls
                with contextlib.suppress(BlockingIOError):
                    rest = rest[sock.send(rest) :]
                with contextlib.suppress(BlockingIOError):
                    while sock.recv(1 << 18):
                        pass
                    break


def again_and_again(message: bytes) -> None:
    """Send an error that ends the connection, and connect again."""
    while True:
        with connect(MOORED.socket) as sock, contextlib.suppress(OSError):
            sock.sendall(message)
            while sock.recv(4096):
                pass


def deaf() -> None:
    """Request much, and read nothing."""
    socks = [connect(MOORED.socket) for _ in range(DEAF)]
    for sock in socks:
        sock.setblocking(False)  # noqa: FBT003 - its only argument
        with contextlib.suppress(BlockingIOError):
            sock.send(LIST_ALL * CALLS_OF_THE_DEAF)
    signal.pause()


def slow() -> None:
    """Send one byte per second."""
    while True:
        with connect(MOORED.socket) as sock, contextlib.suppress(OSError):
            while True:
                for byte in GET_INFO:
                    sock.send(bytes((byte,)))
                    time.sleep(1)


def idle() -> None:
    """Connect, and do nothing."""
    socks: list[socket.socket] = [connect(MOORED.socket) for _ in range(IDLE)]
    signal.pause()
    del socks


def crowd() -> None:
    """Connect as many users, and do nothing."""
    socks: list[socket.socket] = []
    for uid in range(SUBORDINATE, SUBORDINATE + USERS):
        os.seteuid(uid)
        socks += [connect(MOORED.socket) for _ in range(PER_USER)]
        os.seteuid(0)
    signal.pause()
    del socks


def flood(calls: bytes, *, read: bool) -> None:
    """Call on many connections, without end."""
    socks = [connect(MOORED.socket) for _ in range(FLOOD)]
    for sock in socks:
        sock.setblocking(False)  # noqa: FBT003 - its only argument
    while True:
        for number, sock in enumerate(socks):
            try:
                with contextlib.suppress(BlockingIOError):
                    sock.send(calls)
                with contextlib.suppress(BlockingIOError):
                    while read and sock.recv(1 << 18):
                        pass
            except OSError:  # dropped: connect again
                sock.close()
                socks[number] = connect(MOORED.socket)
                socks[number].setblocking(False)  # noqa: FBT003 - its only argument
        time.sleep(FLOOD_SECONDS)


def unfinished() -> None:
    """Begin calls with file descriptors, and connect again once they are dropped."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [0] * FDS_OF_A_CALL))]
    while True:
        with contextlib.ExitStack() as stack:
            for _ in range(FLOOD):
                sock = stack.enter_context(connect(MOORED.socket))
                with contextlib.suppress(OSError):
                    sock.sendmsg([b"{"], rights)
            time.sleep(1)


def linger(*, sends: bool) -> None:
    """Send sockets that linger on close until their peer has read everything, which it never does.

    Args:
        sends: if not, fill them only, which takes as much of the processors.
    """
    receivers: deque[socket.socket] = deque(maxlen=LINGERING)
    with socket.create_server(("127.0.0.1", 0)) as server:
        while True:
            sender = socket.create_connection(server.getsockname())
            if len(receivers) == LINGERING:
                receivers.popleft().close()
            receivers.append(server.accept()[0])
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
            sender.setblocking(False)  # noqa: FBT003 - its only argument
            with contextlib.suppress(BlockingIOError):
                while True:
                    sender.send(bytes(65536))
            if not sends:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
                sender.close()
                time.sleep(FILL_SECONDS)
                continue
            with connect(MOORED.socket) as sock, contextlib.suppress(OSError):
                try:
                    socket.send_fds(sock, [GET_INFO], [sender.fileno()])
                finally:
                    # In a thread: should this be the last reference after all, it waits here.
                    threading.Thread(target=os.close, args=(sender.detach(),), daemon=True).start()
                sock.recv(4096)


def create_and_forget() -> None:
    """Register a process of one's own, and have it forgotten, again and again."""
    number = 0
    while True:
        with subprocess.Popen(["sleep", "infinity"]) as leader, contextlib.suppress(OSError):
            number += 1
            name = f"forgotten{number}"
            with connect(MOORED.socket) as sock, contextlib.suppress(Unmeasurable):
                leading = {"name": name, "class": "container", "leader": {"pid": leader.pid}}
                exchange(sock.fileno(), encode("io.moorage.Machine.Register", leading))
                exchange(sock.fileno(), encode("io.moorage.Machine.Forget", {"name": name}))
            leader.kill()


def tangle() -> bytes:
    """Return the longest call that is decoded before it is refused."""
    objects = b",".join([b'{"a":1}'] * TANGLED_OBJECTS)
    head, tail = (
        b'{"method":"io.moorage.Machine.Register","parameters":{"name":"x","properties":{"a":[',
        b"]}}}\0",
    )
    numbers = b",1" * ((CALL_BYTES - len(head) - len(objects) - len(tail)) // 2)
    return head + objects + numbers + tail


OFFENDERS: dict[str, tuple[int, Callable[[], None]]] = {
    "spinning": (NOBODY, spin),
    "GetInfo": (NOBODY, lambda: pipeline(GET_INFO * PIPELINED)),
    "List": (0, lambda: pipeline(LIST_ALL * PIPELINED)),
    "garbage": (NOBODY, lambda: again_and_again(b"x" * 65536)),
    "tangle": (NOBODY, lambda: again_and_again(tangle() + b"x\0")),
    "deaf": (0, deaf),
    "slow": (NOBODY, slow),
    "idle": (NOBODY, idle),
    "crowd": (0, crowd),
    "flood": (NOBODY + 1, lambda: flood(LIST_OURS, read=True)),
    "unread": (NOBODY + 2, lambda: flood(DESCRIBE * PIPELINED, read=False)),
    "unfinished": (NOBODY + 3, unfinished),
    "filling": (NOBODY, lambda: linger(sends=False)),
    "linger": (NOBODY + 4, lambda: linger(sends=True)),
    "metadata": (NOBODY + 5, lambda: flood(METADATA, read=True)),
    "measure": (NOBODY + 6, lambda: flood(MEASURE, read=True)),
    "subscribers": (NOBODY + 7, lambda: flood(SUBSCRIBE, read=False)),
    "questions": (NOBODY + 8, lambda: flood(QUESTION, read=True)),
    "creator": (CREATOR_UID, create_and_forget),
}
"""UID, and what it does until it is killed."""
