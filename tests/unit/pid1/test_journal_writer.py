"""Entries for the journal: as its protocol has them, and nobody waits for it."""

import os
import socket
from collections.abc import Generator
from pathlib import Path

import pytest
import trio

from moorage.pid1.journal_writer import GATHER_MAX, QUEUE_MAX, JournalWriter, encode


def listen(path: Path) -> socket.socket:
    journald = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    journald.bind(str(path))
    journald.setblocking(False)
    return journald


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def journald(path: Path) -> Generator[socket.socket]:
    with listen(path) as made:
        yield made


def received(journald: socket.socket) -> list[bytes]:
    entries: list[bytes] = []
    while True:
        try:
            entries.append(journald.recv(1 << 20))
        except BlockingIOError:
            return entries


def test_an_entry_as_the_protocol_has_it() -> None:
    assert encode({"MESSAGE": "a=b", "HELPER": ["fs", "net"]}) == b"MESSAGE=a=b\nHELPER=fs\nHELPER=net\n"
    assert encode({"MESSAGE": "a\nPRIORITY=0"}) == b"MESSAGE\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\n"


async def test_entries_arrive_in_order(path: Path, journald: socket.socket) -> None:
    writer = JournalWriter(str(path))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        for number in range(3):
            writer.write({"N": str(number)})
        assert received(journald) == []  # nobody is kept waiting for journald
        entries: list[bytes] = []
        while len(entries) < 3:
            entries += received(journald)
            await trio.sleep(0.001)
        assert entries == [b"N=0\n", b"N=1\n", b"N=2\n"]
        nursery.cancel_scope.cancel()
    writer.close()


async def test_many_entries_are_sent_at_once(path: Path, journald: socket.socket) -> None:
    writer = JournalWriter(str(path))
    for number in range(GATHER_MAX + 1):
        assert received(journald) == []
        writer.write({"N": str(number)})
    assert received(journald)
    writer.close()


async def test_a_journal_that_hangs_is_not_waited_for(path: Path, journald: socket.socket) -> None:
    """What it can take later arrives later, in order; how many entries it cannot is said after them."""
    writer = JournalWriter(str(path))
    count = 0
    while not writer.lost:
        writer.write({"N": str(count)})
        count += 1
    assert len(writer) == QUEUE_MAX
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        entries: list[bytes] = []
        while not entries or b"lost" not in entries[-1]:
            entries += received(journald)
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert entries[:-1] == [f"N={number}\n".encode() for number in range(count - 1)]
    assert b"MESSAGE=1 entries" in entries[-1]
    writer.close()


async def test_a_journal_that_is_started_again_is_found(path: Path, journald: socket.socket) -> None:
    writer = JournalWriter(str(path))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)

        async def sent(number: int) -> None:
            writer.write({"N": str(number)})
            while len(writer):  # noqa: ASYNC110 - it has none
                await trio.sleep(0.001)

        await sent(0)
        journald.close()
        os.unlink(path)
        await sent(1)
        with listen(path) as other:
            await sent(2)
            assert received(other) == [b"N=2\n"]
        nursery.cancel_scope.cancel()
    writer.close()


async def test_what_is_too_large_is_left_out(path: Path, journald: socket.socket) -> None:
    writer = JournalWriter(str(path))
    writer.write({"N": "x" * (8 << 20)})
    writer.write({"N": "1"})
    writer.close()
    assert received(journald) == [b"N=1\n"]
