"""What a connection has while something is under way on it, and only then."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trio

from moorage.wire import conversation
from moorage.wire.link import Link

if TYPE_CHECKING:
    from unit.wire.conftest import ReadMessages, ReadUntilEnd, Running, Serve

GET_INFO = b'{"method":"org.varlink.service.GetInfo"}\0'


def encoded(method: str, **flags: Any) -> bytes:
    return json.dumps({"method": f"org.example.test.{method}", **flags}).encode() + b"\0"


def links(running: Running) -> list[Link]:
    """Return the connections, those that are kept first."""
    return sorted(running.server._links, key=lambda link: link._conversation is None)


def alive(running: Running) -> int:
    """Return how many connections have a conversation."""
    return sum(link._conversation is not None for link in running.server._links)


@pytest.fixture(params=[True, False], ids=["trusted", "user"])
def trusted(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def one_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than one conversation is kept with nothing under way."""
    monkeypatch.setattr(conversation, "KEPT_MAX", 1)


@pytest.fixture
def others() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def push_out(running: Running, others: ExitStack, read_messages: ReadMessages) -> None:
    """Have others call, whose conversations are kept in the place of all earlier ones."""
    for _ in range(2):
        raw: socket.socket = others.enter_context(running.connect())
        raw.send(GET_INFO)
        await read_messages(raw, 1)


async def test_who_says_nothing_has_none(trusted: bool, serve: Serve, read_until_end: ReadUntilEnd) -> None:
    async with serve(trusted=trusted) as running:
        with running.connect() as silent, running.connect() as mute:
            while running.server.connections < 2:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            assert alive(running) == 0
            mute.shutdown(socket.SHUT_WR)
            assert await read_until_end(mute) == b""
            assert running.server.connections == 1
            running.nursery.start_soon(running.server.drain, 10.0)
            assert await read_until_end(silent) == b""


async def test_as_many_are_kept_as_there_may_be(
    trusted: bool,
    serve: Serve,
    read_messages: ReadMessages,
    others: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conversation, "KEPT_MAX", 3)
    async with serve(trusted=trusted) as running:
        raws = [others.enter_context(running.connect()) for _ in range(8)]
        for _ in range(2):
            for raw in raws:
                raw.send(GET_INFO)
                await read_messages(raw, 1)
            await trio.testing.wait_all_tasks_blocked()
            assert alive(running) == 3
        (first, *_) = links(running)
        peers = {link: link.peer for link in links(running)}
        assert all(peer is link.peer for link, peer in peers.items()), "it is asked for once"
        raws[-1].close()
        while running.server.connections == 8:
            await trio.lowlevel.checkpoint()
        assert len(first._context.kept._keepers) == 2, "who has gone is forgotten"


@pytest.mark.usefixtures("one_kept")
async def test_half_a_call_is_not_forgotten(
    trusted: bool, serve: Serve, read_messages: ReadMessages, others: ExitStack
) -> None:
    async with serve(trusted=trusted) as running:
        with running.connect() as raw:
            raw.send(GET_INFO + GET_INFO[:10])
            await read_messages(raw, 1)
            await push_out(running, others, read_messages)
            assert alive(running) == 2
            raw.send(GET_INFO[10:])
            await read_messages(raw, 1)
            await trio.testing.wait_all_tasks_blocked()
            assert alive(running) == 1


@pytest.mark.usefixtures("one_kept")
async def test_a_call_that_waits_is_answered(
    trusted: bool, serve: Serve, read_messages: ReadMessages, others: ExitStack
) -> None:
    async with serve(trusted=trusted) as running:
        with running.connect() as raw:
            raw.send(GET_INFO)
            await read_messages(raw, 1)
            raw.send(encoded("Hold") + GET_INFO)
            await running.interface.held.wait()
            await push_out(running, others, read_messages)
            running.interface.go_on.set()
            assert (await read_messages(raw, 2))[0] == b'{"parameters":{}}'
            await trio.testing.wait_all_tasks_blocked()
            assert alive(running) == 1


@pytest.mark.usefixtures("one_kept")
async def test_who_does_not_read_loses_nothing(
    trusted: bool, serve: Serve, read_messages: ReadMessages, others: ExitStack
) -> None:
    count = 2000
    async with serve(trusted=trusted) as running:
        with running.connect(receive_buffer=4096) as raw:
            raw.send(encoded("Count", parameters={"to": count, "size": 1000}, more=True))
            await trio.testing.wait_all_tasks_blocked()
            await push_out(running, others, read_messages)
            numbers = [json.loads(each)["parameters"]["number"] for each in await read_messages(raw, count)]
            assert numbers == list(range(count))
            raw.send(GET_INFO)
            await read_messages(raw, 1)
