"""Many connections, unfinished calls and unread replies: nobody but who makes them has less of the service for it."""

import contextlib
import resource
import socket
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import call, connect_as, encode, receive, send
from moored import descriptors, main_pid, until
from sessions import Session

from moorage.wire.connection import CALL_MAX, FDS_MAX
from moorage.wire.message import CALL_ARRAYS_MAX
from moorage.wire.server import Limits

LIMITS = Limits()
PONG = {"parameters": {}}

SUBORDINATE = range(300_000, 300_005)
"""Uids as newuidmap(1) gives them to one user: more than enough for all file descriptors of the service."""

DESCRIBE = encode("org.varlink.service.GetInterfaceDescription", {"interface": "io.moorage.Machine"})
"""The shortest call with the longest reply."""

HEAD, TAIL = (
    b'{"method":"io.moorage.Machine.Register","parameters":{"name":"x","properties":{"a":[',
    b"]}}}\0",
)
OBJECTS = b",".join([b'{"a":1}'] * (CALL_ARRAYS_MAX - 8))
LONGEST = HEAD + OBJECTS + b",1" * ((CALL_MAX - len(HEAD + OBJECTS + TAIL)) // 2) + TAIL
"""The longest call with the most objects."""

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
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Anonymous")


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


KEPT = 2 * 1024 * 1024
"""Bytes that the interpreter keeps once of the first crowd: arenas of 1 MiB, each with an object in it that stays."""


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


async def test_as_many_connections_as_there_may_be() -> None:
    pid, idle = main_pid(), descriptors()
    first = memory(pid)
    silent_crowd()
    await until(lambda: descriptors() <= idle, "they are closed")
    await until(lambda: memory(pid) <= first * 1.1, "the memory of the first crowd is given back")
    crowd_that_calls_once()
    await until(lambda: descriptors() <= idle, "they are closed")
    await until(lambda: memory(pid) <= first * 1.1, "that of one that calls is, too")
    second = memory(pid)
    crowd_that_calls_once()
    await until(lambda: memory(pid) <= second * 1.05, "all that another one took is given back")


def silent_crowd() -> None:
    with contextlib.ExitStack() as stack:
        crowd(stack)
        assert call("io.systemd.service.Ping") == PONG


def crowd_that_calls_once() -> None:
    ping = encode("io.systemd.service.Ping")
    with contextlib.ExitStack() as stack:
        opened = crowd(stack)
        for connected in opened:
            connected.sendall(ping)
        for connected in opened:
            assert connected.recv(99) == b'{"parameters":{}}\0'


def crowd(stack: contextlib.ExitStack) -> list[socket.socket]:
    users = range(SUBORDINATE.start, SUBORDINATE.start + LIMITS.connections // LIMITS.connections_per_uid)
    return [stack.enter_context(connect_as(uid)) for uid in users for _ in range(LIMITS.connections_per_uid)]


async def test_the_longest_calls(stranger: Session) -> None:
    pid = main_pid()
    first = memory(pid)
    longest_calls(stranger, 20)
    await until(
        lambda: memory(pid) <= first + DECODED, "no more is kept of the first than the arenas they needed"
    )
    before = memory(pid)
    longest_calls(stranger, 20)
    await until(lambda: memory(pid) <= before * 1.05, "what was needed to decode them is given back")


DECODED = 4 * 1024 * 1024
"""Bytes that the interpreter keeps once of the longest calls: arenas for its objects, none of which becomes free."""


def longest_calls(stranger: Session, count: int) -> None:
    for _ in range(count):
        with stranger.dial() as connected:
            send(connected, LONGEST + b"no call\0")
            receive(connected)


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
