"""Replies that come when there is something to reply: over real sockets."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from moorage.wire.answering import REPLIES_PER_TURN
from moorage.wire.errors import PermissionDenied
from moorage.wire.link import OUTPUT_HIGH_WATER, USER_HIGH_WATER
from moorage.wire.server import Limits

if TYPE_CHECKING:
    from unit.wire.conftest import Numbers, ReadMessages, ReadUntilEnd, Running, Serve

FOLLOW = b'{"method":"org.example.test.Follow","more":true}\0'
ECHO = b'{"method":"org.example.test.Echo","parameters":{"text":"a"}}\0'


async def followed(running: Running, raw: socket.socket) -> Numbers:
    """Begin to follow, and return the feed once it is asked."""
    count = len(running.interface.feeds)
    raw.send(FOLLOW)
    while len(running.interface.feeds) == count:
        await running.interface.changed.wait()
    feed = running.interface.feeds[-1]
    while not feed.rooms:
        await trio.lowlevel.checkpoint()
    return feed


def numbers(replies: list[bytes]) -> list[int]:
    found = [json.loads(reply) for reply in replies]
    assert all(reply["continues"] for reply in found)
    return [reply["parameters"]["number"] for reply in found]


async def test_what_comes_is_sent_in_order(serve: Serve, read_messages: ReadMessages) -> None:
    async with serve() as running:
        with running.connect() as raw:
            feed = await followed(running, raw)
            for each in (range(3), range(3, 3 + 2 * REPLIES_PER_TURN)):
                feed.put(*each)
                feed.woken()
                assert numbers(await read_messages(raw, len(each))) == list(each)
        await running.settled()
        assert feed.closed


async def test_what_there_is_from_the_beginning_is_sent_without_a_word(
    serve: Serve, read_messages: ReadMessages
) -> None:
    async with serve() as running:
        running.interface.fed = 2
        with running.connect() as raw:
            raw.send(FOLLOW)
            assert numbers(await read_messages(raw, 2)) == [0, 1]


async def test_a_call_for_one_reply_is_refused(serve: Serve, read_messages: ReadMessages) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(FOLLOW.replace(b',"more":true', b""))
            (reply,) = await read_messages(raw, 1)
            assert json.loads(reply)["error"] == "org.varlink.service.ExpectedMore"


async def test_a_method_may_follow_for_some_callers_only(serve: Serve, read_messages: ReadMessages) -> None:
    async with serve() as running:
        running.interface.fed = 2
        with running.connect() as raw:
            raw.send(b'{"method":"org.example.test.Look"}\0')
            (reply,) = await read_messages(raw, 1)
            assert json.loads(reply)["parameters"]["number"] == 2
            raw.send(b'{"method":"org.example.test.Look","more":true}\0')
            assert numbers(await read_messages(raw, 2)) == [0, 1]
            running.interface.feeds[-1].put(2)
            running.interface.feeds[-1].woken()
            assert numbers(await read_messages(raw, 1)) == [2]


async def test_an_error_is_the_end_and_the_next_call_is_answered(
    serve: Serve, read_messages: ReadMessages
) -> None:
    async with serve() as running:
        with running.connect() as raw:
            feed = await followed(running, raw)
            raw.send(ECHO)
            feed.put(1)
            feed.end = PermissionDenied()
            feed.woken()
            first, second, third = await read_messages(raw, 3)
            assert numbers([first]) == [1]
            assert json.loads(second)["error"] == "org.varlink.service.PermissionDenied"
            assert json.loads(third)["parameters"] == {"text": "a"}
            assert feed.closed


@pytest.mark.parametrize(("trusted", "most"), [(True, OUTPUT_HIGH_WATER), (False, USER_HIGH_WATER)])
async def test_who_does_not_read_is_sent_no_more_than_the_high_water(
    serve: Serve, trusted: bool, most: int
) -> None:
    async with serve(trusted=trusted) as running:
        with running.connect() as raw:
            feed = await followed(running, raw)
            feed.put(*range(2000), padding=10_000)
            feed.woken()
            sent = -1
            while feed.sent != sent:
                sent = feed.sent
                await trio.testing.wait_all_tasks_blocked(0.02)
            buffered = 4 * raw.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            assert 0 < feed.sent * 10_000 < most + buffered
            assert max(feed.rooms) <= most


async def test_who_does_not_read_is_closed_in_the_end(serve: Serve) -> None:
    async with serve(Limits(stall_seconds=0.1)) as running:
        with running.connect() as raw:
            feed = await followed(running, raw)
            feed.put(*range(2000), padding=10_000)
            feed.woken()
            await running.settled()
            assert feed.closed


async def test_who_reads_slowly_gets_everything(serve: Serve) -> None:
    async with serve() as running:
        with running.connect() as raw:
            feed = await followed(running, raw)
            feed.put(*range(1000), padding=1000)
            feed.woken()
            received = bytearray()
            while received.count(0) < 1000:
                await trio.lowlevel.wait_readable(raw)
                received += raw.recv(3000)
            assert numbers(bytes(received).split(b"\0")[:-1]) == list(range(1000))


async def test_who_sends_no_more_still_gets_what_comes(serve: Serve, read_messages: ReadMessages) -> None:
    async with serve() as running:
        with running.connect() as raw:
            feed = await followed(running, raw)
            raw.shutdown(socket.SHUT_WR)
            await trio.testing.wait_all_tasks_blocked(0.02)
            feed.put(1)
            feed.woken()
            assert numbers(await read_messages(raw, 1)) == [1]
        await running.settled()
        assert feed.closed


async def test_the_end_of_the_service_waits_for_no_feed(serve: Serve, read_until_end: ReadUntilEnd) -> None:
    async with serve() as running:
        with running.connect() as raw:
            feed = await followed(running, raw)
            feed.put(1)
            with trio.fail_after(5):
                running.nursery.start_soon(running.server.drain, 60)
                received = await read_until_end(raw)
            assert numbers(received.split(b"\0")[:-1]) == [1], "what it had by then is sent"
            assert feed.closed


async def test_who_is_fed_is_nobody_who_waits(serve: Serve, read_messages: ReadMessages) -> None:
    """Users get a quarter of the time only while a trusted caller waits; and its place may be taken."""
    async with serve() as running:
        with running.connect() as raw:
            await followed(running, raw)
            (link,) = running.server._links
            assert link.idle
            context = link._context
            assert context.fairness.pause(1.0) == 0
