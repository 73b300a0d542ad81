"""Many connections, unfinished calls and unread replies: nobody but who makes them has less of the service for it."""

import contextlib
import resource
import socket
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import call, connect_as, encode
from moored import descriptors, main_pid, until
from sessions import Session

from moorage.wire.connection import FDS_MAX
from moorage.wire.server import Limits

LIMITS = Limits()
PONG = {"parameters": {}}

SUBORDINATE = range(300_000, 300_005)
"""Uids as newuidmap(1) gives them to one user: more than enough for all file descriptors of the service."""

DESCRIBE = encode("org.varlink.service.GetInterfaceDescription", {"interface": "io.moorage.Machine"})
"""The shortest call with the longest reply."""

UNREAD = LIMITS.unread + 8 * 1024 * 1024
"""Bytes that the service may keep of replies that nobody reads, and for the connections themselves."""


@pytest.fixture(autouse=True)
def clean(nothing_left: None) -> Iterator[None]:
    """Everything is as before, and the service has not ended."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    call("io.systemd.service.Ping")
    pid = main_pid()
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert call("io.systemd.service.Ping") == PONG
    assert main_pid() == pid


def memory(pid: int) -> int:
    """Return the memory of a process that is its own, bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss")


async def test_calls_that_are_never_finished_with_file_descriptors(stranger: Session) -> None:
    before = descriptors()
    with contextlib.ExitStack() as stack, socket.socket(socket.AF_UNIX) as file:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [file.fileno()] * FDS_MAX))]
        for uid in (stranger.uid, *SUBORDINATE):
            for _ in range(LIMITS.connections_per_uid):
                connected = stack.enter_context(connect_as(uid))
                # The later ones are refused by the kernel, or are sent before the connection is accepted.
                with contextlib.suppress(PermissionError, BrokenPipeError):
                    connected.sendmsg([b"{"], rights)
            assert call("io.systemd.service.Ping") == PONG
            # None of what was sent is one of its own.
            assert descriptors() <= before + (1 + len(SUBORDINATE)) * LIMITS.connections_per_uid
    await until(lambda: descriptors() <= before, "they are closed")


KEPT = 8 * 1024 * 1024
"""Bytes that the interpreter keeps once of the first crowd: arenas with something in them that stays, and ctypes."""


async def test_replies_that_are_never_read(stranger: Session) -> None:
    pid = main_pid()
    first = memory(pid)
    crowd_without_reading(stranger, pid)
    await until(lambda: memory(pid) <= first * 1.1 + KEPT, "the memory of the first crowd is given back")
    # And nothing grows with the crowds that come later.
    second = memory(pid)
    crowd_without_reading(stranger, pid)
    await until(lambda: memory(pid) <= second * 1.1, "all that another one took is given back")


def crowd_without_reading(stranger: Session, pid: int) -> None:
    before = memory(pid)
    with contextlib.ExitStack() as stack:
        for uid in (stranger.uid, *SUBORDINATE):
            for _ in range(LIMITS.connections_per_uid):
                connected = stack.enter_context(connect_as(uid))
                connected.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    connected.send(DESCRIBE * 100)
            assert call("io.systemd.service.Ping") == PONG
            assert memory(pid) - before <= UNREAD


def test_who_has_all_connections_loses_one_to_another_user(stranger: Session) -> None:
    with contextlib.ExitStack() as stack:
        for uid in range(
            SUBORDINATE.start, SUBORDINATE.start + 1 + LIMITS.connections // LIMITS.connections_per_uid
        ):
            for _ in range(LIMITS.connections_per_uid):
                stack.enter_context(connect_as(uid))
        for _ in range(10):
            assert call("io.systemd.service.Ping") == PONG
            assert stranger.call("io.systemd.service.Ping") == PONG
