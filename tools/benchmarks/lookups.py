"""What the rest of the system looks up of machines, in machined's place: users of a container, and its addresses.

Both peers have the same container, one after the other, at the same sockets. nss-systemd(8) connects for each lookup,
and systemd-resolved keeps its connection: so users are looked up both ways, and names on a connection that is kept.
"""

import json
import subprocess
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.peers import MACHINED, MOORED, Peer, systemctl
from benchmarks.reaching import FIRST_UID, shifted, until
from benchmarks.wire import Unmeasurable, connect, encode, exchange

NAME = "bench-looked-up"
ADDRESSES = ("10.1.2.3/24", "fd00::1/64")
USERS = "/run/systemd/userdb/io.systemd.Machine"
NAMES = "/run/systemd/resolve.hook/io.systemd.Machine"
PLACE_SOCKET = "moored-machined.socket"

CALLS, APART = 200, 5
"""Of each kind in one round; of those that come one by one."""

APART_SECONDS = 1.2
"""Pause before a lookup that finds nothing that is remembered, s: longer than anything is (`KEPT_SECONDS`)."""


def _user(**asked: Any) -> bytes:
    parameters = {**asked, "service": "io.systemd.Machine"}
    return encode("io.systemd.UserDatabase.GetUserRecord", parameters)


BY_UID, BY_NAME = _user(uid=FIRST_UID + 7), _user(userName=f"vu-{NAME}-7")
RESOLVE = encode(
    "io.systemd.Resolve.Hook.ResolveRecord", {"question": [{"key": {"class": 1, "type": 1, "name": NAME}}]}
)
EXPECTED = {BY_UID: f'"vu-{NAME}-7"', BY_NAME: f"{FIRST_UID + 7}", RESOLVE: "[10,1,2,3]"}
"""What each answer has in it."""


@contextmanager
def container() -> Generator[int]:
    """Have a process with users and a network of its own; yields its PID.

    Raises:
        Unmeasurable: it cannot be had.
    """
    with shifted("--net") as pid:
        inside = ["nsenter", f"--target={pid}", "--net", "ip"]
        for argv in (
            ["link", "set", "lo", "up"],
            *(["address", "add", each, "dev", "lo", *["nodad"] * (":" in each)] for each in ADDRESSES),
        ):
            done = subprocess.run([*inside, *argv], check=False, capture_output=True, text=True)
            if done.returncode != 0:
                raise Unmeasurable(f"ip {' '.join(argv)}: {done.stderr}")
        yield pid


@contextmanager
def _in_place(peer: Peer) -> Generator[None]:
    """Have a peer where machined is, and afterwards machined again."""
    MOORED.stop()
    systemctl("start", PLACE_SOCKET if peer is MOORED else str(MACHINED.activation))
    try:
        with connect(MACHINED.socket) as sock:
            exchange(sock.fileno(), encode("org.varlink.service.GetInfo"))
        until(lambda: Path(USERS).is_socket() and Path(NAMES).is_socket())
        yield
    finally:
        if peer is MOORED:
            systemctl("stop", PLACE_SOCKET)
            MOORED.stop()
            systemctl("start", str(MACHINED.activation))


def figures(peer: Peer, leader: int) -> Iterator[tuple[str, float]]:
    """Measure one round of a peer; yield keys and µs."""
    with _in_place(peer), connect(MACHINED.socket) as sock:
        identity = {"name": NAME, "class": "container", "leader": leader, "allocateUnit": False}
        exchange(sock.fileno(), encode("io.systemd.Machine.Register", identity))
        try:
            yield from _figures()
        finally:
            with suppress(Unmeasurable):
                exchange(sock.fileno(), encode("io.systemd.Machine.Unregister", {"name": NAME}))


def _figures() -> Iterator[tuple[str, float]]:
    for key, path, request in (
        ("uid", USERS, BY_UID),
        ("name", USERS, BY_NAME),
        ("resolve", NAMES, RESOLVE),
    ):
        with connect(path) as sock:
            for _ in range(CALLS // 10):
                _ask(sock.fileno(), request)
            for _ in range(CALLS):
                yield f"lookup/{key}", _ask(sock.fileno(), request)
            for _ in range(APART):
                time.sleep(APART_SECONDS)
                yield f"lookup/{key}/apart", _ask(sock.fileno(), request)
    for key, request in (("uid", BY_UID), ("name", BY_NAME)):
        for _ in range(CALLS):
            begin = time.perf_counter_ns()
            with connect(USERS) as sock:
                _ask(sock.fileno(), request)
                ended = time.perf_counter_ns()
            yield f"lookup/{key}/fresh", (ended - begin) / 1e3


def _ask(fd: int, request: bytes) -> float:
    """Ask, and return how long that took, µs."""
    begin = time.perf_counter_ns()
    reply = exchange(fd, request)
    ended = time.perf_counter_ns()
    if EXPECTED[request] not in json.dumps(json.loads(reply[:-1]), separators=(",", ":")):
        raise Unmeasurable(f"another answer: {reply!r}")
    return (ended - begin) / 1e3
