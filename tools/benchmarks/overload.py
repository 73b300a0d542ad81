"""tools/overload: what one caller's Register takes while others behave badly, in a sandbox of its own.

  alone          nobody else
  spinning       a process that uses a processor and leaves the service alone: what any load costs on this machine
  GetInfo        one that sends a hundred calls at a time and reads what it gets
  List           the same with io.systemd.Machine.List of all machines
  garbage        one that sends 64 KiB of what is no message, and connects again
  tangle         one that sends the longest call that there may be, full of objects, and connects again
  deaf           eight connections that ask for List and never read
  slow           one that sends a byte a second
  idle           a hundred connections that do nothing
  crowd          connections of thirty-three users that do nothing, as many as each may have
  flood          120 connections that ask for io.moorage.Machine.List without end, and read
  unread         120 connections that ask for the longest reply without end, and do not read
  unfinished     120 connections that begin a call, with as many file descriptors as the kernel takes
  linger         one that sends TCP sockets whose close(2) waits for minutes, and connects again
  all            all of them but the spinning one

All but List and deaf are other users'. Register is io.systemd.Machine.Register of real processes, one by one, until
the reply; the ratios are to `alone`. The conditions take turns in each round; values are of all rounds together.
The last column is the service's memory (PSS) after each, as a ratio to what it was after the first round of `alone`.
"""

import argparse
import contextlib
import os
import resource
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Generator, Sequence

from benchmarks.command import DOWN_SECONDS, RUN_SECONDS, SANDBOX, SUITE, UP_SECONDS
from benchmarks.machines import LIST_ALL, Leaders, register_one_by_one, register_together, terminate_together
from benchmarks.peers import MOORED, settle
from benchmarks.wire import GET_INFO, connect, encode, quantile

NOBODY = 65534
PIPELINED = 100
CALLS_OF_THE_DEAF = 400
DEAF = 8
IDLE = 100
FLOOD = 120
FLOOD_SECONDS = 0.01
FDS_OF_A_CALL = 253
SUBORDINATE, USERS, PER_USER = 300_000, 33, 128
LIST_OURS = encode("io.moorage.Machine.List", more=True)
DESCRIBE = encode("org.varlink.service.GetInterfaceDescription", {"interface": "io.moorage.Machine"})
CROWD = 64
"""Machines that exist all the time, so that List has something to return."""

CALL_BYTES = 256 * 1024
"""Size of the longest call: wire.connection.CALL_MAX."""
TANGLED_OBJECTS = 16_000

REGISTRATIONS = 200
"""Calls in each condition and round."""


def spin() -> None:
    """Use up a processor."""
    while True:
        pass


def pipeline(calls: bytes) -> None:
    """Send and read without waiting for either."""
    with connect(MOORED.socket) as sock:
        sock.setblocking(False)  # noqa: FBT003 - its only argument
        rest = b""
        while True:
            rest = rest or calls
            with contextlib.suppress(BlockingIOError):
                rest = rest[sock.send(rest) :]
            with contextlib.suppress(BlockingIOError):
                while sock.recv(1 << 18):
                    pass


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


def linger() -> None:
    """Send sockets that linger on close until their peer has read everything, which it never does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        while True:
            with socket.create_connection(server.getsockname()) as sender, server.accept()[0]:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
                sender.setblocking(False)  # noqa: FBT003 - its only argument
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sender.send(bytes(65536))
                with connect(MOORED.socket) as sock, contextlib.suppress(OSError):
                    socket.send_fds(sock, [GET_INFO], [sender.fileno()])
                    os.close(sender.detach())
                    sock.recv(4096)


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
    "linger": (NOBODY + 4, linger),
}
"""UID, and what it does until it is killed."""

CONDITIONS: dict[str, Sequence[str]] = {
    "alone": (),
    **{name: (name,) for name in OFFENDERS},
    "all": tuple(name for name in OFFENDERS if name != "spinning"),
}

MEMORY_SECONDS = 2.0
"""Pause between the end of the bad clients and measuring memory, which the service returns after one second."""

WARM_UP_SECONDS = 0.5
"""Pause between the start of the bad clients and measuring another caller."""


@contextlib.contextmanager
def misbehaving(names: Sequence[str]) -> Generator[None]:
    """Run bad clients meanwhile, each in a process of its own."""
    pids: list[int] = []
    try:
        for name in names:
            uid, act = OFFENDERS[name]
            pid = os.fork()
            if pid == 0:
                try:
                    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
                    os.setresuid(uid, uid, uid)
                    act()
                finally:
                    os._exit(1)
            pids.append(pid)
        time.sleep(WARM_UP_SECONDS if names else 0)
        yield
        for name, pid in zip(names, pids, strict=True):
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                raise RuntimeError(f"{name} has ended before it was told to")
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


def measure(rounds: int) -> None:
    """Measure inside the sandbox, and print the table."""
    MOORED.start()
    waits: dict[str, list[float]] = {name: [] for name in CONDITIONS}
    memory: dict[str, float] = {}
    first: dict[str, float] = {}
    with Leaders(CROWD) as crowd:
        register_together(MOORED.socket, crowd)
        for number in range(rounds):
            names = list(CONDITIONS)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                settle()
                with Leaders(REGISTRATIONS) as leaders:
                    with misbehaving(CONDITIONS[name]):
                        waits[name] += register_one_by_one(MOORED.socket, leaders).replies
                    terminate_together(MOORED.socket, leaders)
                time.sleep(MEMORY_SECONDS)
                memory[name] = MOORED.memory()["Pss"]
                first.setdefault("Pss", memory[name])
        terminate_together(MOORED.socket, crowd)
    print(
        f"{'Register while':16}{'p50 (ms)':>10}{'p99 (ms)':>10}{'longest':>10}{'p50 ratio':>11}{'p99 ratio':>11}"
        f"{'memory':>8}"
    )
    alone = waits["alone"]
    for name, found in waits.items():
        p50, p99 = quantile(found, 0.5), quantile(found, 0.99)
        ratios = (p50 / quantile(alone, 0.5), p99 / quantile(alone, 0.99))
        print(
            f"{name:16}{p50:10.1f}{p99:10.1f}{max(found):10.1f}{ratios[0]:11.2f}{ratios[1]:11.2f}"
            f"{memory[name] / first['Pss']:8.2f}"
        )


def main() -> int:
    """Boot a sandbox and measure in it; in a sandbox, measure. Return the exit status."""
    parser = argparse.ArgumentParser(
        prog="tools/overload", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    args = parser.parse_args()
    if "MOORAGE_SANDBOX" in os.environ:
        measure(args.rounds)
        return 0
    if os.geteuid() != 0:
        parser.error("sandboxes need root")
    name = f"overload-{secrets.token_hex(2)}"
    subprocess.run([SANDBOX, "up", SUITE, "--name", name], check=True, timeout=UP_SECONDS, stdout=sys.stderr)
    try:
        command = [SANDBOX, "exec", name, "--", "/moorage/tools/overload", f"--rounds={args.rounds}"]
        return subprocess.run(command, check=False, timeout=RUN_SECONDS).returncode
    finally:
        subprocess.run([SANDBOX, "down", name], check=True, timeout=DOWN_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
