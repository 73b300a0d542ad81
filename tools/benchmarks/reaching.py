"""What reaches into a container: one of systemd-nspawn with a systemd and a bus of its own, which both have.

Each call is made on a connection that is kept, and is over when what was asked for is there: the first output of a
shell, the descriptor of a terminal or a root directory, the reply of the others.
"""

import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from benchmarks.peers import MACHINED, MOORED, Peer
from benchmarks.wire import CALL_SECONDS, RECEIVE_BYTES, Unmeasurable, connect, encode

BOX, SHIFTED = "bench-box", "bench-shifted"
ROOT = Path("/var/bench-box")
SOURCE = Path("/var/bench-file")
COPY_MIB = 100
BOOT_SECONDS = 120.0
FIRST_UID = 100_000
"""Where the users of the second container begin on the host."""

CALLS, COPIES = 20, 3
"""Of each kind in one round."""

MARK = b"first output"
"""What the shell writes; a terminal echoes no command that it was not given."""

SHELL: dict[str, Any] = {"path": "/bin/sh", "args": ["sh", "-c", f"echo {MARK.decode()}"]}


class Caller:
    """A connection to a peer, for calls whose replies may come with a descriptor; a context manager.

    Args:
        peer: which.
    """

    def __init__(self, peer: Peer) -> None:
        self._socket = connect(peer.socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, method: str, parameters: dict[str, Any]) -> int | None:
        """Make a call; return the descriptor that came with the reply.

        Raises:
            Unmeasurable: it fails.
        """
        request = encode(f"io.systemd.Machine.{method}", parameters)
        self._socket.sendall(request)
        data, fds = b"", list[int]()
        while not data.endswith(b"\0"):
            more, got, _, _ = socket.recv_fds(self._socket, RECEIVE_BYTES, 1)
            if not more:
                raise Unmeasurable(f"{method}: hung up")
            data, fds = data + more, fds + got
        reply = json.loads(data[:-1])
        if "error" in reply:
            raise Unmeasurable(f"{method}: {reply}")
        return fds[0] if fds else None


@contextmanager
def containers() -> Generator[Path]:
    """Have both containers, registered with both peers; yields the first one's root directory.

    Raises:
        Unmeasurable: they do not come up.
    """
    with ExitStack() as stack:
        _boot(stack)
        pid = int(_output("machinectl", "show", BOX, "-P", "Leader"))
        _register(stack, MOORED, BOX, pid)
        leader = stack.enter_context(shifted())
        _register(stack, MOORED, SHIFTED, leader)
        _register(stack, MACHINED, SHIFTED, leader)
        stack.callback(SOURCE.unlink, missing_ok=True)
        with SOURCE.open("wb") as file:
            for _ in range(COPY_MIB):
                file.write(os.urandom(1 << 20))
        yield Path(f"/proc/{pid}/root")


@contextmanager
def shifted(*options: str) -> Generator[int]:
    """Have a process with users of its own, by options of unshare(1) with more than that; yields its PID."""
    process = subprocess.Popen(["unshare", "--user", *options, "sleep", "infinity"])
    try:
        until(lambda: os.readlink(f"/proc/{process.pid}/ns/user") != os.readlink("/proc/self/ns/user"))
        for kind in "ug":
            Path(f"/proc/{process.pid}/{kind}id_map").write_text(f"0 {FIRST_UID} 65536\n")
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _boot(stack: ExitStack) -> None:
    ROOT.mkdir(exist_ok=True)
    _output("mount", "--bind", "/", str(ROOT))
    stack.callback(subprocess.run, ["umount", "--lazy", str(ROOT)], check=False)
    MACHINED.start()
    _output(
        "systemd-run", "--quiet", "--collect", "--unit=bench-nspawn", "--property=KillMode=mixed",
        "--property=Delegate=yes", "--setenv=SYSTEMD_SECCOMP=0", "systemd-nspawn", "--quiet", "--register=yes",
        f"--machine={BOX}", f"--directory={ROOT}", "--volatile=overlay", "--private-users=no", "--link-journal=no",
        "--boot", "systemd.mask=systemd-machined.service", "systemd.mask=moored.socket",
    )  # fmt: skip
    stack.callback(subprocess.run, ["systemctl", "stop", "bench-nspawn.service"], check=False)
    argv = ["machinectl", "--quiet", "shell", BOX, "/bin/true"]
    until(
        lambda: (
            subprocess.run(argv, check=False, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0
        )
    )


def _register(stack: ExitStack, peer: Peer, name: str, pid: int) -> None:
    peer.start()
    with Caller(peer) as caller:
        caller.call("Register", {"name": name, "class": "container", "leader": pid, "allocateUnit": False})
    stack.callback(_unregister, peer, name)


def _unregister(peer: Peer, name: str) -> None:
    with suppress(Unmeasurable), Caller(peer) as caller:
        caller.call("Unregister", {"name": name})


def _output(*argv: str) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=CALL_SECONDS)
    if done.returncode != 0:
        raise Unmeasurable(f"{' '.join(argv)}: {done.stderr}")
    return done.stdout


def until(true: Callable[[], bool]) -> None:
    """Wait until something is true.

    Raises:
        Unmeasurable: it is not within BOOT_SECONDS.
    """
    deadline = time.monotonic() + BOOT_SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise Unmeasurable(f"a container was not there within {BOOT_SECONDS:.0f} s")
        time.sleep(0.2)


def figures(peer: Peer, root: Path) -> Iterator[tuple[str, float]]:
    """Measure one round of a peer; yield keys and ms."""
    place = f"/run/bench-{peer.name}"
    with Caller(peer) as caller:
        caller.call("MapTo", {"uid": FIRST_UID})  # it is awake
        for key, method, parameters in (
            ("map-from", "MapFrom", {"name": SHIFTED, "uid": 0}),
            ("map-to", "MapTo", {"uid": FIRST_UID}),
            ("root", "OpenRootDirectory", {"name": BOX}),
            ("tty", "Open", {"name": BOX, "mode": "tty"}),
            ("shell", "Open", {"name": BOX, "mode": "shell", **SHELL}),
            ("bind", "BindMount", {"name": BOX, "source": "/usr", "destination": place, "mkdir": True}),
        ):  # fmt: skip
            for _ in range(CALLS):
                yield key, _timed(caller, method, parameters, wait=key == "shell")
        for _ in range(COPIES):
            (root / "root/bench-file").unlink(missing_ok=True)
            parameters = {"name": BOX, "source": str(SOURCE), "destination": "/root/bench-file"}
            yield "copy", _timed(caller, "CopyTo", parameters, wait=False)


def _timed(caller: Caller, method: str, parameters: dict[str, Any], *, wait: bool) -> float:
    begin = time.perf_counter()
    fd = caller.call(method, parameters)
    if wait:
        _read_mark(fd)
    ms = (time.perf_counter() - begin) * 1000
    if fd is not None:
        os.close(fd)
    return ms


def _read_mark(fd: int | None) -> None:
    if fd is None:
        raise Unmeasurable("no terminal came")
    found = b""
    while MARK not in found:
        if not select.select([fd], [], [], CALL_SECONDS)[0]:
            raise Unmeasurable("the shell writes nothing")
        try:
            found += os.read(fd, RECEIVE_BYTES)
        except OSError as error:
            raise Unmeasurable(f"the shell has hung up: {error.strerror}, {found!r}") from None
