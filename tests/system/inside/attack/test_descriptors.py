"""File descriptors of others: what a close(2) of theirs waits for, or fails with, is not the service's concern.

What a user sends before the connection is accepted is in its queue whatever the kernel can do; afterwards Linux 6.16
refuses it to whoever sends it.
"""

import contextlib
import errno
import os
import socket
from array import array
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import hostile
import pytest
from fuse_file import FuseFile
from hostile import call, dial, encode
from moored import OURS, main_pid
from sessions import Session

PING = encode("io.systemd.service.Ping")
PONG = {"parameters": {}}
INVALID = "org.varlink.service.InvalidParameter"

Dial = Callable[[], socket.socket]


@pytest.fixture(autouse=True)
def clean(nothing_left: None) -> None:
    """No file descriptor is left, and the service has not ended."""


@pytest.fixture
def moored_pid(clean: None) -> Generator[int]:
    """The process, which must outlive the test."""
    call("io.systemd.service.Ping")
    pid = main_pid()
    yield pid
    assert call("io.systemd.service.Ping") == PONG
    assert main_pid() == pid


@pytest.fixture
def lingering() -> Generator[int]:
    """A TCP socket whose last close(2) waits."""
    with hostile.lingering() as fd:
        yield fd


def send_and_let_go(connected: socket.socket, data: bytes, fd: int, flags: int = 0) -> None:
    """Send a file descriptor; what is sent is the last reference."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, PermissionError):
        connected.sendmsg([data], rights, flags)
    os.close(fd)


WAYS: dict[str, Sequence[tuple[bytes, int]]] = {
    "with a call": [(PING, 0)],
    "with a call that takes one": [
        (encode(f"{OURS}Register", {"name": "x", "class": "vm", "leaderFileDescriptor": 0}), 0)
    ],
    "with a call that nobody waits for": [(encode("io.systemd.service.Ping", oneway=True), 0)],
    "with a call that is never finished": [(PING[:10], 0)],
    "with what is no call": [(b"no call\0", 0)],
    "behind what is no call": [(b"no call\0", -1), (PING, 0)],
    "in the middle of a call": [(PING[:10], -1), (PING[10:], 0)],
    "out of band": [(b"{", socket.MSG_OOB)],
}
"""What is sent, and with which flags; -1: without the file descriptor."""


@pytest.mark.parametrize("way", WAYS)
def test_a_socket_that_lingers(stranger: Session, moored_pid: int, lingering: int, way: str) -> None:
    with stranger.dial() as before:
        with hostile.busy(moored_pid):
            attacker = stranger.dial()
            for data, flags in WAYS[way]:
                if flags < 0:
                    attacker.sendall(data)
                else:
                    send_and_let_go(attacker, data, lingering, flags)
        assert call("io.systemd.service.Ping") == PONG
        hostile.send(before, PING)
        assert before.recv(65536)
        attacker.close()
        assert call("io.systemd.service.Ping") == PONG


def test_a_socket_that_lingers_on_a_connection_that_is_refused(
    stranger: Session, moored_pid: int, lingering: int
) -> None:
    with contextlib.ExitStack() as stack:
        # As many as one user may have, and as many as may wait to be refused.
        for _ in range(128 + 64):
            stack.enter_context(stranger.dial())
        assert call("io.systemd.service.Ping") == PONG
        with hostile.busy(moored_pid):
            attacker = stack.enter_context(stranger.dial())
            send_and_let_go(attacker, PING, lingering)
        assert call("io.systemd.service.Ping") == PONG


def test_a_call_with_what_it_may_not_have_is_answered(stranger: Session, moored_pid: int) -> None:
    with hostile.busy(moored_pid):
        connected = stranger.dial()
        pidfd = os.pidfd_open(os.getpid())
        hostile.send(connected, encode(f"{OURS}Find", {"processFileDescriptor": 0}), [pidfd])
        os.close(pidfd)
    with connected:
        reply = hostile.receive(connected)
    assert reply == b'{"error":"%b","parameters":{"parameter":"processFileDescriptor"}}\0' % INVALID.encode()


def test_who_may_not_send_any_is_told_so_by_the_kernel(stranger: Session, moored_pid: int) -> None:
    with stranger.dial() as connected:
        hostile.send(connected, PING)
        assert connected.recv(65536)
        with Path("/dev/null").open() as file, pytest.raises(PermissionError):
            socket.send_fds(connected, [PING], [file.fileno()])
        hostile.send(connected, PING)
        assert connected.recv(65536)


@pytest.fixture(params=[0, errno.EIO], ids=["never answered", "EIO"])
def fuse(request: pytest.FixtureRequest, tmp_path: Path, moored_pid: int) -> Generator[FuseFile]:
    """A file whose close(2) waits for ever, or fails, in the service."""
    file = FuseFile(tmp_path / "file", moored_pid, request.param)
    yield file
    file.end()


def test_a_file_that_somebody_else_serves(stranger: Session, moored_pid: int, fuse: FuseFile) -> None:
    with contextlib.ExitStack() as stack:
        with hostile.busy(moored_pid):
            for way in WAYS.values():
                attacker = stack.enter_context(stranger.dial())
                for data, flags in way:
                    if flags < 0:
                        attacker.sendall(data)
                    else:
                        send_and_let_go(attacker, data, fuse.open(), flags)
        assert call("io.systemd.service.Ping") == PONG
    assert call("io.systemd.service.Ping") == PONG
    assert moored_pid not in fuse.flushed


def test_root_sends_a_file_that_somebody_else_serves(moored_pid: int, fuse: FuseFile) -> None:
    for message in (
        PING,
        encode(f"{OURS}Stop", {"name": "nobody"}),
        encode(f"{OURS}Find", {"processFileDescriptor": 0}),
        b"no call\0",
    ):
        with dial() as connected:
            send_and_let_go(connected, message, fuse.open())
            assert connected.recv(65536) or message == b"no call\0"
        assert call("io.systemd.service.Ping") == PONG
