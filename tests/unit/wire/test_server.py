"""The server over real sockets: what it answers, in which order, and what it survives."""

from __future__ import annotations

import array
import contextlib
import errno
import gc
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moorage.wire import conversation, fairness, link
from moorage.wire.answering import REPLIES_PER_TURN
from moorage.wire.conversation import MESSAGES_PER_TURN
from moorage.wire.link import OUTPUT_HIGH_WATER, Link
from moorage.wire.server import Limits, Server
from moorage.wire.service import Service

if TYPE_CHECKING:
    from unit.wire.conftest import ReadMessages, ReadUntilEnd, Serve

GET_INFO = b'{"method":"org.varlink.service.GetInfo","parameters":{}}\0'
GET_INFO_REPLY = {
    "parameters": {
        "vendor": "Moorage",
        "product": "Tests",
        "version": "1",
        "url": "https://example.org",
        "interfaces": ["org.example.test", "org.varlink.service"],
    }
}


def call(name: str, parameters: object = None, **flags: bool) -> bytes:
    message = {"method": f"org.example.test.{name}", "parameters": parameters, **flags}
    return json.dumps(message).encode() + b"\0"


def system(number: int) -> dict[str, object]:
    parameters = {"origin": "linux", "errnoName": errno.errorcode[number], "errno": number}
    return {"error": "io.systemd.System", "parameters": parameters}


async def test_whole_and_byte_by_byte(serve: Serve, read_messages: ReadMessages) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(GET_INFO)
            (reply,) = await read_messages(raw, 1)
            assert json.loads(reply) == GET_INFO_REPLY
        with running.connect() as raw:
            for byte in GET_INFO:
                raw.send(bytes((byte,)))
                await trio.testing.wait_all_tasks_blocked()
            (reply,) = await read_messages(raw, 1)
            assert json.loads(reply) == GET_INFO_REPLY


async def test_a_slow_sender_keeps_nobody_waiting(serve: Serve, read_messages: ReadMessages) -> None:
    async with serve() as running:
        slow = [running.connect() for _ in range(20)]
        for one in slow:
            one.send(GET_INFO[:10])
        with running.connect() as raw:
            raw.send(GET_INFO)
            await read_messages(raw, 1)
        for one in slow:
            one.send(GET_INFO[10:])
        for one in slow:
            await read_messages(one, 1)
            one.close()
        await running.settled()


@pytest.mark.parametrize(
    ("message", "error", "parameters"),
    [
        (call("Nope"), "org.varlink.service.MethodNotFound", {"method": "org.example.test.Nope"}),
        (call("Later"), "org.varlink.service.MethodNotImplemented", {"method": "org.example.test.Later"}),
        (b'{"method":"org.nope.X"}\0', "org.varlink.service.InterfaceNotFound", {"interface": "org.nope"}),
        (call("Echo"), "org.varlink.service.InvalidParameter", {"parameter": "text"}),
        (call("Echo", {"text": "a", "x": 1}), "org.varlink.service.InvalidParameter", {"parameter": "x"}),
        (call("Watch"), "org.varlink.service.ExpectedMore", {}),
        (call("Fail", {"how": "denied"}), "org.varlink.service.PermissionDenied", {}),
        (call("FailLater", {"how": "denied"}), "org.varlink.service.PermissionDenied", {}),
        (call("Keep", {"index": 0}), "org.varlink.service.InvalidParameter", {"parameter": "index"}),
        (call("Keep", {"index": -1}), "org.varlink.service.InvalidParameter", {"parameter": "index"}),
        (
            b'{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"x"}}\0',
            "org.varlink.service.InterfaceNotFound",
            {"interface": "x"},
        ),
    ],
    ids=lambda value: value[:60] if isinstance(value, bytes) else None,
)
async def test_errors_are_answers(
    serve: Serve, read_messages: ReadMessages, message: bytes, error: str, parameters: object
) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(message)
            raw.send(GET_INFO)
            first, second = await read_messages(raw, 2)
            assert json.loads(first) == {"error": error, "parameters": parameters}
            assert json.loads(second) == GET_INFO_REPLY


@pytest.mark.parametrize("name", ["Fail", "FailLater"])
async def test_a_bug_is_logged_once_and_not_told(
    serve: Serve, read_messages: ReadMessages, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(call(name, {"how": "bug"}))
            (reply,) = await read_messages(raw, 1)
            assert json.loads(reply) == system(errno.EIO)
            raw.send(call(name, {"how": "errno"}))
            (reply,) = await read_messages(raw, 1)
            assert json.loads(reply) == system(errno.ENOENT)
    assert b"secret" not in reply
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.exc_info is not None
    assert name in record.getMessage()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0",
        b"{}\0",
        b"[]\0",
        b"x" * 100 + b"\0",
        b'{"method":"org.varlink.service.GetInfo","method":"x"}\0',
        b'{"method":"org.varlink.service.GetInfo","parameters":[]}\0',
        b'{"method":"org.example.test.Echo","parameters":{"text":"\xff"}}\0',
        b'{"method":"org.example.test.Echo","parameters":{"text":'
        + b"[" * 100_000
        + b"]" * 100_000
        + b"}}\0",
    ],
    ids=lambda text: text[:60],
)
async def test_garbage_ends_the_connection_after_what_was_right(
    serve: Serve,
    read_until_end: ReadUntilEnd,
    caplog: pytest.LogCaptureFixture,
    open_fds: Callable[[], int],
    garbage: bytes,
) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.setblocking(True)
            raw.sendall(GET_INFO)
            raw.sendall(garbage)
            raw.setblocking(False)
            received = await read_until_end(raw)
            assert received == json.dumps(GET_INFO_REPLY, separators=(",", ":")).encode() + b"\0"
        await running.settled()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chunks=st.lists(st.binary(min_size=1, max_size=200) | st.sampled_from([GET_INFO, b"\0", b'{"method"']))
)
def test_whatever_is_sent_the_service_goes_on(
    serve: Serve, read_messages: ReadMessages, read_until_end: ReadUntilEnd, chunks: list[bytes]
) -> None:
    async def main() -> None:
        async with serve() as running:
            with running.connect() as raw:
                for chunk in chunks:
                    try:
                        raw.send(chunk)
                    except BrokenPipeError:
                        break
                raw.shutdown(socket.SHUT_WR)
                await read_until_end(raw)
            with running.connect() as raw:
                raw.send(GET_INFO)
                await read_messages(raw, 1)
            await running.settled()
        os.unlink(running.path)

    async def bounded() -> None:
        with trio.fail_after(20):
            await main()

    trio.run(bounded)


async def test_each_listener_has_a_service_of_its_own(
    serve: Serve, read_messages: ReadMessages, tmp_path: Path
) -> None:
    other = Service(vendor="", product="other", version="", url="")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "other"))
        listener.listen()
        async with serve() as running:
            running.server.listen(listener, other)
            with running.connect() as first, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as second:
                second.connect(str(tmp_path / "other"))
                second.setblocking(False)
                for raw in (first, second):
                    raw.send(GET_INFO + call("Echo", {"text": "a"}))
                replies = [
                    [json.loads(reply) for reply in await read_messages(raw, 2)] for raw in (first, second)
                ]
    assert replies[0] == [GET_INFO_REPLY, {"parameters": {"text": "a"}}]
    assert replies[1][0]["parameters"]["product"] == "other"
    assert replies[1][1]["error"] == "org.varlink.service.InterfaceNotFound"


async def test_who_only_looks_on_is_no_activity(
    serve: Serve, read_messages: ReadMessages, tmp_path: Path
) -> None:
    other = Service(vendor="", product="other", version="", url="")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "other"))
        listener.listen()
        async with serve() as running:
            running.server.listen(listener, other, aside=True)
            before = running.server.last_activity
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
                raw.connect(str(tmp_path / "other"))
                raw.setblocking(False)
                raw.send(GET_INFO)
                await read_messages(raw, 1)
                assert (running.server.connections, running.server.last_activity) == (0, before)
                with running.connect() as counts:
                    counts.send(GET_INFO)
                    await read_messages(counts, 1)
                    assert running.server.connections == 1
                # It has ended, and the other one has not.
                await running.server.unconnected()
                after = running.server.last_activity
                assert after > before
            await trio.testing.wait_all_tasks_blocked()
            assert running.server.last_activity == after


async def test_calls_and_errors_are_counted_by_names_of_ours(
    serve: Serve, read_messages: ReadMessages, tmp_path: Path
) -> None:
    other = Service(vendor="", product="other", version="", url="")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "other"))
        listener.listen()
        async with serve() as running:
            running.server.listen(listener, other)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
                raw.connect(str(tmp_path / "other"))
                raw.setblocking(False)
                strange = b'{"method":"org.varlink.service.Strange"}\0{"method":"org.example.Strange"}\0'
                raw.send(GET_INFO * 2 + strange)
                await read_messages(raw, 4)
    assert other.tally.calls == {"org.varlink.service.GetInfo": 2}
    assert other.tally.errors == {
        "org.varlink.service.MethodNotFound": 1,
        "org.varlink.service.InterfaceNotFound": 1,
    }


# -- pipelining and order


async def test_pipelined_calls_are_answered_in_order(serve: Serve, read_messages: ReadMessages) -> None:
    count = MESSAGES_PER_TURN * 3
    async with serve() as running:
        with running.connect() as raw:
            raw.send(
                b"".join(call("Echo", {"text": str(number)}) for number in range(count)) + GET_INFO[:-1]
            )
            replies = await read_messages(raw, count)
            assert [json.loads(reply)["parameters"]["text"] for reply in replies] == [
                str(n) for n in range(count)
            ]
            raw.send(b"\0")
            await read_messages(raw, 1)


async def test_one_call_at_a_time_and_the_others_go_on(serve: Serve, read_messages: ReadMessages) -> None:
    async with serve() as running:
        with running.connect() as raw, running.connect() as other:
            raw.send(call("Hold") + call("Echo", {"text": "later"}))
            await running.interface.held.wait()
            raw.send(call("Echo", {"text": "last"}))
            for _ in range(3):
                other.send(call("Echo", {"text": "other"}))
                await read_messages(other, 1)
            assert running.interface.echoed == ["other"] * 3
            assert running.interface.holding == 1
            running.interface.go_on.set()
            replies = await read_messages(raw, 3)
            assert [json.loads(reply)["parameters"].get("text") for reply in replies] == [
                None,
                "later",
                "last",
            ]
            assert running.interface.finished == 1


async def test_tasks_that_go_on_at_once_let_others_in_between(
    serve: Serve, read_messages: ReadMessages
) -> None:
    async with serve() as running:
        interface = running.interface
        with contextlib.ExitStack() as raws:
            other, *holders = [raws.enter_context(running.connect()) for _ in range(16)]
            for _ in range(10):  # in any order
                interface.go_on, interface.holding, interface.finished = trio.Event(), 0, 0
                for raw in holders:
                    raw.send(call("Hold"))
                while interface.holding < len(holders):
                    await trio.lowlevel.checkpoint()
                await trio.testing.wait_all_tasks_blocked()
                other.send(call("Echo", {"text": "a"}))
                interface.go_on.set()
                await read_messages(other, 1)
                assert interface.finished_by_echo <= 1
                for raw in holders:
                    await read_messages(raw, 1)


async def test_oneway_is_never_answered(serve: Serve, read_messages: ReadMessages) -> None:
    async with serve() as running:
        with running.connect() as raw:
            for message in (
                call("Echo", {"text": "a"}, oneway=True),
                call("Echo", {"wrong": 1}, oneway=True),
                call("Nope", oneway=True),
                call("Watch", oneway=True),
                call("Fail", {"how": "denied"}, oneway=True),
                call("FailLater", {"how": "denied"}, oneway=True),
                call("Count", {"to": 3}, oneway=True),
                call("Open", oneway=True),
                GET_INFO,
            ):
                raw.send(message)
            (reply,) = await read_messages(raw, 1)
            assert json.loads(reply) == GET_INFO_REPLY
            assert running.interface.echoed == ["a"]
            assert running.interface.made == 3


async def test_oneway_is_done_though_the_caller_has_hung_up(
    serve: Serve, open_fds: Callable[[], int]
) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(call("Hold", oneway=True) + call("Echo", {"text": "too"}, oneway=True))
        with running.connect() as raw:
            raw.send(call("Echo", {"text": "at once"}, oneway=True))
        await running.interface.held.wait()
        await trio.testing.wait_all_tasks_blocked()
        running.interface.go_on.set()
        await running.settled()
        assert running.interface.finished == 1
        assert sorted(running.interface.echoed) == ["at once", "too"]


async def test_a_caller_that_is_done_sending_gets_its_replies(
    serve: Serve, read_until_end: ReadUntilEnd
) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(call("Hold") + call("Echo", {"text": "a"}) + b'{"half')
            raw.shutdown(socket.SHUT_WR)
            await running.interface.held.wait()
            await trio.testing.wait_all_tasks_blocked()
            running.interface.go_on.set()
            assert await read_until_end(raw) == b'{"parameters":{}}\0{"parameters":{"text":"a"}}\0'
        assert running.interface.cancelled == 0


# -- several replies


async def test_stream_ends_without_continues(serve: Serve, read_messages: ReadMessages) -> None:
    count = REPLIES_PER_TURN * 2 + 1
    async with serve() as running:
        with running.connect() as raw:
            raw.send(call("Count", {"to": count}, more=True))
            replies = [json.loads(reply) for reply in await read_messages(raw, count)]
            assert [reply["parameters"]["number"] for reply in replies] == list(range(count))
            assert [reply.get("continues", False) for reply in replies] == [True] * (count - 1) + [False]
            raw.send(call("Count", {"to": 1}))
            (reply,) = await read_messages(raw, 1)
            assert json.loads(reply) == {"parameters": {"number": 0}}


async def test_stream_that_ends_with_an_error(serve: Serve, read_messages: ReadMessages) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(call("CountOne", more=True))
            first, last = [json.loads(reply) for reply in await read_messages(raw, 2)]
            assert first == {"parameters": {"number": 1}, "continues": True}
            assert last["error"] == "org.varlink.service.PermissionDenied"


async def test_stream_over_time(serve: Serve, read_messages: ReadMessages) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(call("Watch", more=True) + GET_INFO)
            replies = [json.loads(reply) for reply in await read_messages(raw, 3)]
            assert replies == [{"parameters": {"number": n}, "continues": True} for n in range(3)]
            running.interface.go_on.set()
            last, info = [json.loads(reply) for reply in await read_messages(raw, 2)]
            assert last == {"parameters": {"number": -1}}
            assert info == GET_INFO_REPLY


@pytest.mark.parametrize(
    "message",
    [call("Count", {"to": 2}), call("Nothing", more=True), call("Nothing"), call("WatchBadly", more=True)],
    ids=lambda text: text[:60],
)
async def test_a_wrong_number_of_replies_is_a_bug(
    serve: Serve, read_until_end: ReadUntilEnd, caplog: pytest.LogCaptureFixture, message: bytes
) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(message)
            await read_until_end(raw)
        await running.settled()
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


# -- peers that do not read


async def test_replies_that_are_prepared_come_in_order(serve: Serve, read_messages: ReadMessages) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(call("Batches", {"to": 3}, more=True) + GET_INFO)
            replies = [json.loads(reply) for reply in await read_messages(raw, 8)]
    numbers = [(reply["parameters"]["number"], reply.get("continues", False)) for reply in replies[:7]]
    assert numbers == [*((number, True) for number in (0, 0, 1, 1, 2, 2)), (3, False)]
    assert replies[7] == GET_INFO_REPLY


async def test_stream_waits_for_a_slow_reader(serve: Serve) -> None:
    size, count = 4096, 1000
    async with serve() as running:
        with running.connect(receive_buffer=4096) as raw:
            raw.send(call("Count", {"to": count, "size": size}, more=True))
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert 0 < running.interface.made < count
            assert running.interface.made * size < 4 * OUTPUT_HIGH_WATER
            received, replies = bytearray(), 0
            while replies < count:
                await trio.lowlevel.wait_readable(raw)
                data = raw.recv(1000)
                received += data
                replies += data.count(0)
            numbers = [json.loads(reply)["parameters"]["number"] for reply in received.split(b"\0")[:-1]]
            assert numbers == list(range(count))
            assert running.interface.finished == 1


@pytest.mark.parametrize(
    "message", [call("Count", {"to": 10_000, "size": 4096}, more=True), call("Watch", more=True)]
)
async def test_who_never_reads_is_dropped(serve: Serve, open_fds: Callable[[], int], message: bytes) -> None:
    async with serve(Limits(stall_seconds=0.05)) as running:
        running.interface.watch_size = 4096
        with running.connect() as raw:
            raw.send(message)
            while not running.interface.finished:
                await running.interface.changed.wait()
            await running.settled()
            assert running.interface.made * 4096 < 4 * OUTPUT_HIGH_WATER


async def test_who_never_reads_is_dropped_also_where_turns_are_cut_short(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that a turn ends when all replies are written, and the socket takes a little more, but is not ready.
    monkeypatch.setattr(link, "TURN_SECONDS", 0.0)
    async with serve(Limits(stall_seconds=0.05)) as running:
        with running.connect() as raw:
            raw.send(call("Count", {"to": 10_000, "size": 4096}, more=True))
            while not running.interface.finished:
                await running.interface.changed.wait()


async def test_pipelined_calls_of_who_never_reads_wait_in_the_socket(serve: Serve) -> None:
    text = "x" * 20_000
    async with serve() as running:
        with running.connect() as raw:
            sent = 0
            with pytest.raises(BlockingIOError):  # noqa: PT012  # at some point
                while True:
                    sent += raw.send(call("Echo", {"text": text}))
                    await trio.testing.wait_all_tasks_blocked()
            handled = len(running.interface.echoed)
            assert handled * len(text) < 4 * OUTPUT_HIGH_WATER
            assert running.server.connections == 1


async def test_partial_writes_arrive_whole(serve: Serve) -> None:
    text = os.urandom(100_000).hex()
    async with serve() as running:
        with running.connect(receive_buffer=4096) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            received = bytearray()

            async def send() -> None:
                outgoing = memoryview(call("Echo", {"text": text}) * 3)
                while outgoing:
                    await trio.lowlevel.wait_writable(raw)
                    outgoing = outgoing[raw.send(outgoing) :]

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while received.count(0) < 3:
                    await trio.lowlevel.wait_readable(raw)
                    received += raw.recv(5000)
            replies = [json.loads(reply) for reply in received.split(b"\0")[:-1]]
            assert replies == [{"parameters": {"text": text}}] * 3


# -- hanging up


@pytest.mark.parametrize("cut", range(0, len(GET_INFO) + 1, 7))
async def test_hang_up_inside_a_call(serve: Serve, open_fds: Callable[[], int], cut: int) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(GET_INFO[:cut] or b"{")
        with running.connect():
            pass
        await running.settled()


@pytest.mark.parametrize("message", [call("Hold"), call("Watch", more=True), call("Hold") + call("Hold")])
async def test_hang_up_during_a_call_cancels_it(
    serve: Serve, open_fds: Callable[[], int], message: bytes
) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(message)
            await running.interface.held.wait()
        await running.settled()
        interface = running.interface
        while not (interface.cancelled or interface.finished):
            await trio.lowlevel.checkpoint()
        assert (interface.cancelled, interface.finished) in {(1, 0), (0, 1)}
        assert interface.holding <= 1


async def test_hang_up_during_a_stream_ends_it(serve: Serve, open_fds: Callable[[], int]) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(call("Count", {"to": 10_000, "size": 4096}, more=True))
            await trio.testing.wait_all_tasks_blocked(0.01)
        await running.settled()
        assert running.interface.finished == 1
        assert running.interface.made < 10_000


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    "message",
    [
        b"",
        GET_INFO[:20],
        GET_INFO * 3,
        b"no call\0",
        call("Count", {"to": 10_000, "size": 4096}, more=True),
        call("Hold"),
        call("FailLater", {"how": "denied"}),
    ],
    ids=lambda text: text[:60],
)
async def test_a_connection_that_has_ended_is_no_work_for_the_collector(
    serve: Serve,
    read_messages: ReadMessages,
    caplog: pytest.LogCaptureFixture,
    message: bytes,
    trusted: bool,
) -> None:
    caplog.set_level(logging.WARNING, "moorage")  # a line that is kept keeps the exception that it is about

    def links() -> int:
        return sum(type(each) is Link for each in gc.get_objects())

    gc.collect()
    before = links()
    gc.disable()
    try:
        async with serve(trusted=trusted) as running:
            with running.connect() as raw:
                raw.send(GET_INFO)
                await read_messages(raw, 1)
                assert links() == before + 1
                if message:
                    raw.send(message)
                await trio.testing.wait_all_tasks_blocked(0.01)
            await running.settled()
            await trio.testing.wait_all_tasks_blocked()
            assert links() == before
    finally:
        gc.enable()


async def test_stop_cancels_and_closes(
    serve: Serve, read_until_end: ReadUntilEnd, open_fds: Callable[[], int]
) -> None:
    async with serve() as running:
        raw = running.connect()
        raw.send(call("Hold"))
        await running.interface.held.wait()
    assert running.interface.cancelled == 1
    assert await read_until_end(raw) == b""
    raw.close()


async def test_drain_lets_calls_end(serve: Serve, read_until_end: ReadUntilEnd) -> None:
    async with serve() as running:
        busy, idle = running.connect(), running.connect()
        busy.send(call("Hold"))
        await running.interface.held.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.server.drain, 30)
            assert await read_until_end(idle) == b""
            late = running.connect()
            running.interface.go_on.set()
            assert await read_until_end(busy) == b'{"parameters":{}}\0'
        assert running.server.connections == 0
        for raw in (busy, idle, late):
            raw.close()


async def test_drain_gives_up_in_time(serve: Serve, read_until_end: ReadUntilEnd) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(call("Hold"))
            await running.interface.held.wait()
            await running.server.drain(0.01)
            assert await read_until_end(raw) == b""
    assert running.interface.cancelled == 1


# -- file descriptors


def with_fds(raw: socket.socket, data: bytes, fds: list[int]) -> None:
    raw.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


async def test_fds_in(serve: Serve, read_messages: ReadMessages, open_fds: Callable[[], int]) -> None:
    async with serve() as running:
        with running.connect() as raw:
            read, write = os.pipe()
            with_fds(raw, call("Keep", {"index": 1}), [0, write, 0])
            assert await read_messages(raw, 1) == [b'{"parameters":{}}']
            os.close(write)
            (kept,) = running.interface.kept
            assert not os.get_inheritable(kept)
            os.write(kept, b"through")
            os.close(kept)
            assert os.read(read, 100) == b"through"
            os.close(read)
            for index in (0, 3):
                with_fds(raw, call("Keep", {"index": index}), [0] * index)
                (reply,) = await read_messages(raw, 1)
                assert json.loads(reply)["error"] == "org.varlink.service.InvalidParameter"


async def test_fds_of_calls_that_want_none_are_closed(
    serve: Serve, read_messages: ReadMessages, open_fds: Callable[[], int]
) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(GET_INFO)
            await read_messages(raw, 1)
            before = open_fds()
            for message in (GET_INFO, call("Nope"), call("Echo"), call("FailLater", {"how": "x"})):
                with_fds(raw, message, [0] * 100)
                await read_messages(raw, 1)
                with trio.fail_after(60):
                    while open_fds() > before:  # noqa: ASYNC110  # a thread closes them
                        await trio.sleep(0.01)


async def test_fds_in_the_middle_of_a_message(
    serve: Serve, read_until_end: ReadUntilEnd, open_fds: Callable[[], int]
) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(GET_INFO[:10])
            await trio.testing.wait_all_tasks_blocked()
            with_fds(raw, GET_INFO[10:], [0, 0])
            assert await read_until_end(raw) == b""
        await running.settled()


async def test_fds_out(serve: Serve, open_fds: Callable[[], int]) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(call("Open"))
            await trio.lowlevel.wait_readable(raw)
            data, fds, _, _ = socket.recv_fds(raw, 65536, 10)
            assert data == b'{"parameters":{"index":0}}\0'
            assert os.read(fds[0], 100) == b"from the service"
            os.close(fds[0])
            raw.send(call("Open"))
        await running.settled()


async def test_fds_of_users_are_not_received(
    serve: Serve, read_messages: ReadMessages, read_until_end: ReadUntilEnd, open_fds: Callable[[], int]
) -> None:
    async with serve(trusted=False) as running:
        with running.connect() as raw:
            # Before it is accepted: nothing else runs until then.
            raw.send(GET_INFO)
            with_fds(raw, call("Keep", {"index": 0}), [0])
            first, second = (await read_until_end(raw)).split(b"\0")[:-1]
            assert json.loads(first) == GET_INFO_REPLY
            assert json.loads(second)["parameters"] == {"parameter": "index"}
        with running.connect() as raw:
            raw.send(GET_INFO)
            await read_messages(raw, 1)
            with pytest.raises(PermissionError):
                with_fds(raw, GET_INFO, [0])
            raw.send(GET_INFO)
            await read_messages(raw, 1)
        await running.settled()
        assert running.interface.kept == []


# -- limits


@pytest.mark.parametrize("trusted", [False, True])
async def test_a_call_that_is_never_finished(
    trusted: bool,
    serve: Serve,
    read_messages: ReadMessages,
    read_until_end: ReadUntilEnd,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conversation, "UNFINISHED_SECONDS", 0.1)
    async with serve(trusted=trusted) as running:
        with running.connect() as never, running.connect() as once:
            for raw in (never, once):
                raw.send(GET_INFO[:10])
            await trio.testing.wait_all_tasks_blocked()
            once.send(GET_INFO[10:])
            await read_messages(once, 1)
            if trusted:
                await trio.sleep(0.2)
                never.send(GET_INFO[10:])
                await read_messages(never, 1)
            else:
                assert await read_until_end(never) == b""
            once.send(GET_INFO)
            await read_messages(once, 1)


async def test_a_call_that_came_in_pieces_may_take_its_time(
    serve: Serve, read_messages: ReadMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "UNFINISHED_SECONDS", 0.1)
    async with serve(trusted=False) as running:
        with running.connect() as never, running.connect() as pieces:
            message = call("Hold")
            pieces.send(message[:10])
            await trio.testing.wait_all_tasks_blocked()
            pieces.send(message[10:])
            await running.interface.held.wait()
            never.send(GET_INFO[:10])
            while running.server.connections == 2:  # its time, which began later, has passed
                await trio.lowlevel.checkpoint()
            running.interface.go_on.set()
            assert await read_messages(pieces, 1) == [b'{"parameters":{}}']


async def test_a_call_that_came_with_the_end_of_another_has_its_own_time(
    serve: Serve, read_messages: ReadMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sends without a pause, and whose calls are cut anywhere, is not taken for one who never finishes."""
    monkeypatch.setattr(conversation, "UNFINISHED_SECONDS", 0.1)
    async with serve(trusted=False) as running:
        with running.connect() as steady:
            steady.send(GET_INFO[:10])
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(2):
                with running.connect() as never:  # its time begins later, and is over sooner
                    never.send(GET_INFO[:10])
                    while running.server.connections < 2:
                        await trio.lowlevel.checkpoint()
                    while running.server.connections == 2:
                        steady.send(GET_INFO[10:] + GET_INFO[:10])
                        await read_messages(steady, 1)
            steady.send(GET_INFO[10:])
            await read_messages(steady, 1)


async def test_calls_of_one_user_that_wait(
    serve: Serve, read_messages: ReadMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fairness, "CALLS_PER_USER", 2)
    monkeypatch.setattr(fairness, "SLOT_SECONDS", 0.1)
    async with serve(trusted=False) as running:
        raws = [running.connect() for _ in range(4)]
        for raw in raws[:2]:
            raw.send(call("Hold"))
        while running.interface.holding < 2:
            await trio.lowlevel.checkpoint()
        raws[2].send(call("Hold"))
        assert json.loads((await read_messages(raws[2], 1))[0]) == system(errno.EBUSY)
        assert running.interface.holding == 2
        monkeypatch.setattr(fairness, "SLOT_SECONDS", 10)
        raws[3].send(call("Hold"))
        await trio.testing.wait_all_tasks_blocked()
        assert running.interface.holding == 2
        running.interface.go_on.set()
        for raw in (raws[0], raws[1], raws[3]):
            assert await read_messages(raw, 1) == [b'{"parameters":{}}']
        assert running.interface.holding == 3
        for raw in raws:
            raw.close()
        await running.settled()


async def test_who_leaves_too_much_unread_is_dropped(serve: Serve, read_until_end: ReadUntilEnd) -> None:
    limits = Limits(unread=100 * 1024)
    async with serve(limits, trusted=False) as running:
        small, large = (running.connect() for _ in range(2))
        small.send(call("Count", {"to": 1000, "size": 1000}, more=True))
        await trio.testing.wait_all_tasks_blocked()
        large.send(call("Count", {"to": 1000, "size": 200_000}, more=True))
        assert not (await read_until_end(large)).endswith(b"\0")
        received = await read_until_end_of_stream(small)
        assert received.count(b"\0") == 1000
        small.close()
        large.close()
        await running.settled()


async def read_until_end_of_stream(raw: socket.socket) -> bytes:
    received = bytearray()
    while not received.endswith(b"}\0") or b"continues" in received.rsplit(b"\0", 2)[-2]:
        await trio.lowlevel.wait_readable(raw)
        data = raw.recv(65536)
        assert data
        received += data
    return bytes(received)


async def test_connections_of_one_user(
    serve: Serve, read_messages: ReadMessages, read_until_end: ReadUntilEnd, open_fds: Callable[[], int]
) -> None:
    async with serve(Limits(connections_per_uid=3), trusted=False) as running:
        allowed = [running.connect() for _ in range(3)]
        for raw in allowed:
            raw.send(GET_INFO)
            await read_messages(raw, 1)
        refused = [running.connect() for _ in range(5)]
        for raw in refused:
            raw.send(GET_INFO)
        for raw in refused:
            assert json.loads((await read_until_end(raw))[:-1]) == system(errno.EUSERS)
            raw.close()
        assert running.server.connections == 3
        allowed.pop().close()
        while running.server.connections == 3:
            await trio.lowlevel.checkpoint()
        with running.connect() as raw:
            raw.send(GET_INFO)
            assert json.loads((await read_messages(raw, 1))[0]) == GET_INFO_REPLY
        for raw in allowed:
            raw.close()
        await running.settled()


async def test_other_limits_hold_for_who_comes_then(
    serve: Serve, read_messages: ReadMessages, read_until_end: ReadUntilEnd
) -> None:
    async with serve(Limits(connections_per_uid=1), trusted=False) as running:
        with running.connect() as first, running.connect() as second:
            first.send(GET_INFO)
            await read_messages(first, 1)
            second.send(GET_INFO)
            assert json.loads((await read_until_end(second))[:-1]) == system(errno.EUSERS)
            running.server.limit(Limits(connections_per_uid=2))
            with running.connect() as third:
                third.send(GET_INFO)
                assert json.loads((await read_messages(third, 1))[0]) == GET_INFO_REPLY
                running.server.limit(Limits(connections=1))
                for raw in (first, third):
                    raw.send(GET_INFO)
                    assert json.loads((await read_messages(raw, 1))[0]) == GET_INFO_REPLY


async def test_connections_in_all_and_those_that_wait_to_be_refused(
    serve: Serve, read_messages: ReadMessages, read_until_end: ReadUntilEnd
) -> None:
    limits = Limits(connections=1, refusals=2, refusal_seconds=0.05)
    async with serve(limits, trusted=False) as running:
        with running.connect() as first:
            first.send(GET_INFO)
            await read_messages(first, 1)
            silent = [running.connect() for _ in range(2)]
            speaking = running.connect()
            # No room for a third one that waits, and the silent ones lose their patience with us.
            assert await read_until_end(speaking) == b""
            for raw in silent:
                assert await read_until_end(raw) == b""
            with running.connect() as raw:
                raw.send(GET_INFO)
                assert json.loads((await read_until_end(raw))[:-1]) == system(errno.EBUSY)
            assert running.server.connections == 1
            for raw in (*silent, speaking):
                raw.close()


async def test_two_hundred_connections_of_one_user(serve: Serve, read_messages: ReadMessages) -> None:
    async with serve(trusted=False) as running:
        many = [running.connect() for _ in range(200)]
        for raw in many[:128]:
            raw.send(GET_INFO)
        for raw in many[:128]:
            await read_messages(raw, 1)
        assert running.server.connections == 128
        for raw in many:
            raw.close()
        await running.settled()


async def test_at_the_fd_limit_callers_are_told_and_later_served(
    tmp_path: Path, read_messages: ReadMessages, read_until_end: ReadUntilEnd
) -> None:
    path = str(tmp_path / "socket")
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("fd_limit.py")), path]
    # In a process of its own, because the limit is a whole process's.
    with subprocess.Popen(  # noqa: ASYNC220  # nothing else runs here meanwhile
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stdout.readline() == "ready\n"

            def connect() -> socket.socket:
                raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                raw.connect(path)
                raw.setblocking(False)
                return raw

            async def usage(raw: socket.socket) -> tuple[int, float]:
                raw.send(b'{"method":"org.example.report.Report"}\0')
                reply = json.loads((await read_messages(raw, 1))[0])["parameters"]
                return reply["fds"], reply["cpu"]

            first = connect()
            fds_before, _ = await usage(first)
            many = [connect() for _ in range(60)]
            for raw in many:
                raw.send(GET_INFO)
            served = 0
            for raw in many:
                (reply,) = await read_messages(raw, 1)
                if "parameters" in json.loads(reply) and "error" not in json.loads(reply):
                    served += 1
                else:
                    assert json.loads(reply) == system(errno.EMFILE)
                    assert await read_until_end(raw) == b""
            assert 5 < served < 55
            # One that says nothing holds the only place to be refused in: the next is refused when it has lost that
            # place, and nothing is spent on waiting for it.
            _, cpu_before = await usage(first)
            begun = trio.current_time()
            silent, waiting = connect(), connect()
            waiting.send(GET_INFO)
            assert json.loads((await read_until_end(waiting))[:-1]) == system(errno.EMFILE)
            seconds = trio.current_time() - begun
            _, cpu_after = await usage(first)
            assert cpu_after - cpu_before < seconds / 2
            for raw in (silent, waiting, *many):
                raw.close()
            for _ in range(10):
                with connect() as raw:
                    raw.send(GET_INFO)
                    (reply,) = await read_messages(raw, 1)
                    assert "error" not in json.loads(reply)
            while (await usage(first))[0] != fds_before:
                pass
            first.close()
        finally:
            process.kill()
        assert process.stderr.read().count("refusing more") == 1


# -- the peer


async def test_who_calls(serve: Serve, read_messages: ReadMessages) -> None:
    async with serve() as running:
        with running.connect() as raw:
            raw.send(call("Who"))
            assert await read_messages(raw, 1) == [b'{"parameters":{"uid":%d}}' % os.getuid()]


async def test_who_was_there_first_is_answered_before_the_start_goes_on(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    server, service = Server(), Service(vendor="", product="Tests", version="", url="")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as raw:
        listener.bind(path)
        listener.listen()
        server.listen(listener, service)
        raw.connect(path)
        raw.sendall(GET_INFO)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve)
            reply = raw.recv(65536, socket.MSG_DONTWAIT)
            server.stop()
    assert json.loads(reply[:-1])["parameters"]["product"] == "Tests"
