"""Runs commands in a sandbox of the kind uml for callers outside: both ends of a network of two hosts.

A network namespace of the host has one tap device, and the kernel of the sandbox is at its other end. For each command
the outer end makes a connection and sends what to run, on one line; the inner end connects back three times, and these
connections become the standard streams of the command: nothing needs to be framed, copied or buffered inside, and each
stream has flow control and an end of its own. The first connection lives as long as the command: it brings the status,
and the command is killed when it closes.

Both ends run on the standard library alone; inside, the checkout is mounted at /moorage.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, cast

OUTSIDE, INSIDE = "192.0.2.1", "192.0.2.2"
"""Addresses reserved for documentation (RFC 5737)."""
PREFIX = 30
PORT = 1

CONNECT_SECONDS = 20.0
"""To connect in both directions: it takes milliseconds, on a loaded host somewhat longer."""
LOOK_SECONDS = 1.0
"""Interval for checking whether a sandbox that owes the end of a stream still exists."""
BACKLOG = 128

REQUEST_BYTES = 4 * 1024 * 1024
"""Maximum length of a request: more than a command line and an environment may have together (execve(2))."""
PIECE_BYTES = 64 * 1024

_CLONE_NEWNET = 0x40000000


class Gone(Exception):
    """The sandbox went down, or does not answer."""


class Request(TypedDict):
    """What to run."""

    argv: list[str]
    env: dict[str, str]
    port: int
    """Port on which the outer end accepts the three streams, in the order of their numbers."""


class Status(TypedDict):
    """How a command ended."""

    status: int
    """As `subprocess.Popen.returncode`: negative if a signal ended the command."""


# -- outside --------------------------------------------------------------------------------------------------------


def run(leader: int, argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Run a command with the standard streams of this process, and return its status as Popen does.

    The process enters the network namespace of the sandbox for good.

    Args:
        leader: a process on the host that is in that namespace and ends with the sandbox.
        argv: the command.
        env: its whole environment.

    Raises:
        Gone: the sandbox went down, or does not answer.
    """
    pidfd = os.pidfd_open(leader)
    _enter_network(leader)
    try:
        with socket.create_server((OUTSIDE, 0), backlog=3) as listener:
            control = socket.create_connection((INSIDE, PORT), CONNECT_SECONDS)
            port = int(listener.getsockname()[1])
            control.sendall(json.dumps(Request(argv=[*argv], env={**env}, port=port)).encode() + b"\n")
            listener.settimeout(CONNECT_SECONDS)
            streams = [listener.accept()[0] for _ in range(3)]
    except OSError as error:
        raise Gone(f"the sandbox does not answer: {error}") from None
    for one in (control, *streams):
        one.settimeout(None)

    threading.Thread(target=_send_all, args=(0, streams[0]), daemon=True).start()
    outputs = [
        threading.Thread(target=_receive_all, args=(streams[number], number), daemon=True)
        for number in (1, 2)
    ]
    for output in outputs:
        output.start()
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    poll.poll()  # as long as the command runs; our caller has the deadline
    _must_live(pidfd)
    with control.makefile("rb") as replies:
        line = replies.readline(PIECE_BYTES)
    if not line:
        raise Gone("the agent in the sandbox has ended")
    for output in outputs:
        while output.is_alive():  # our output may be read slowly
            output.join(LOOK_SECONDS)
            if output.is_alive():
                _must_live(pidfd)
    return cast("Status", json.loads(line))["status"]


def become_status(status: int) -> None:
    """End this process as a command ended."""
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    # Not sys.exit(): a thread may be waiting for standard input.
    os._exit(status if status >= 0 else 128 - status)


def _enter_network(leader: int) -> None:
    with Path(f"/proc/{leader}/ns/net").open() as namespace:
        library = ctypes.CDLL(None, use_errno=True)  # os.setns() needs Python 3.12
        if library.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _must_live(pidfd: int) -> None:
    if select.select([pidfd], [], [], 0)[0]:
        raise Gone("the sandbox went down")


def _send_all(source: int, sink: socket.socket) -> None:
    """Copy until one side ends, and pass the end on."""
    with contextlib.suppress(OSError):
        while data := os.read(source, PIECE_BYTES):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _receive_all(source: socket.socket, sink: int) -> None:
    """Copy until one side ends, and pass the end on: a command that keeps writing gets SIGPIPE."""
    with contextlib.suppress(OSError), source:
        while data := source.recv(PIECE_BYTES):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(sink, rest) :]


# -- inside ---------------------------------------------------------------------------------------------------------


class _Handler(socketserver.StreamRequestHandler):
    """Handles one command."""

    def handle(self) -> None:
        """Run the command to its end, or until the caller hangs up."""
        request = cast("Request", json.loads(self.rfile.readline(REQUEST_BYTES)))
        streams: list[socket.socket] = []
        for _ in range(3):
            stream = socket.create_connection((OUTSIDE, request["port"]), CONNECT_SECONDS)
            stream.settimeout(None)  # for the command: O_NONBLOCK off
            streams.append(stream)
        try:
            process = subprocess.Popen(
                request["argv"], env=request["env"], cwd="/",
                stdin=streams[0].fileno(), stdout=streams[1].fileno(), stderr=streams[2].fileno(),
            )  # fmt: skip
        except OSError as error:
            streams[2].sendall(f"{request['argv'][0]}: {error.strerror}\n".encode())
            status = 127
        else:
            status = self._wait(process)
        # Processes left behind lose the streams, because the caller waits for their end.
        for stream in streams:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
            stream.close()
        with contextlib.suppress(OSError):
            self.wfile.write(json.dumps(Status(status=status)).encode() + b"\n")

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        pidfd = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.register(self.connection, select.POLLIN)
            if pidfd not in {fd for fd, _ in poll.poll()}:
                process.kill()  # readable means that the caller hung up, as it never sends a second line
            return process.wait()
        finally:
            os.close(pidfd)


class _Server(socketserver.ThreadingTCPServer):
    """Serves the outer end only, no process of the sandbox."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = BACKLOG

    def verify_request(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: tuple[str, int]
    ) -> bool:
        """Whether the caller is outside."""
        del request
        return client_address[0] == OUTSIDE


def serve(ready: Path) -> None:
    """Run commands for the outer end until killed. Writes to a file (a serial line) when ready."""
    with _Server((INSIDE, PORT), _Handler) as server:
        ready.write_text("READY=1\n")
        server.serve_forever()


def main() -> None:
    """Run one end: `run LEADER CMD…` outside, with the environment of this process; `serve FILE` inside."""
    match sys.argv[1:]:
        case ["serve", ready]:
            serve(Path(ready))
        case ["run", leader, *argv]:
            become_status(run(int(leader), argv, os.environ))
        case _:
            raise SystemExit("run LEADER CMD… | serve FILE")


if __name__ == "__main__":
    try:
        main()
    except Gone as error:
        sys.exit(f"tools/sandbox: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
