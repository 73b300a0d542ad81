"""The client: against our server, and against one that does whatever the test says."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from moorage.wire.client import Client
from moorage.wire.connection import FDS_MAX, INPUT_MAX, NotSent
from moorage.wire.errors import (
    Disconnected,
    ExpectedMore,
    InvalidParameter,
    ProtocolError,
    RemoteError,
    TimedOut,
    VarlinkError,
)

if TYPE_CHECKING:
    from unit.wire.conftest import Serve

TEST = "org.example.test"


class Text(msgspec.Struct):
    text: str


class Number(msgspec.Struct):
    number: int
    padding: str = ""


@dataclass(eq=False)
class Nope(VarlinkError):
    error = "org.example.test.Nope"


async def test_call(serve: Serve) -> None:
    async with serve() as running, await Client.connect(running.path) as client:
        assert (await client.call("org.varlink.service.GetInfo"))["product"] == "Tests"
        assert await client.call(f"{TEST}.Echo", {"text": "a"}) == {"text": "a"}
        assert await client.call(f"{TEST}.Echo", Text("b"), reply_type=Text) == Text("b")
    assert client.closed


async def test_a_call_that_is_too_large_is_an_error_of_that_call_alone(
    serve: Serve, open_fds: Callable[[], int]
) -> None:
    async with serve() as running, await Client.connect(running.path) as client:
        replies = client.call_more(f"{TEST}.Watch")
        first = await anext(replies)
        before = open_fds()
        with pytest.raises(NotSent):
            await client.call(f"{TEST}.Echo", {"text": "x" * INPUT_MAX})
        with pytest.raises(NotSent):
            await anext(client.call_more(f"{TEST}.Echo", {"text": "x" * INPUT_MAX}))
        with pytest.raises(NotSent):
            await client.call_oneway(f"{TEST}.Echo", {"text": "x" * INPUT_MAX})
        assert open_fds() == before
        assert not client.closed
        assert first["number"] == 0
        running.interface.go_on.set()
        assert [reply["number"] async for reply in replies] == [1, 2, -1]
        with pytest.raises(NotSent):
            await client.call(f"{TEST}.Echo", {"text": "x"}, fds=[0] * (FDS_MAX + 1))
        assert open_fds() == before
        assert await client.call(f"{TEST}.Echo", {"text": "a"}) == {"text": "a"}


async def test_errors(serve: Serve) -> None:
    async with serve() as running, await Client.connect(running.path) as client:
        with pytest.raises(InvalidParameter) as caught:
            await client.call(f"{TEST}.Echo", {"text": 1})
        assert caught.value.parameter == "text"
        with pytest.raises(ExpectedMore):
            await client.call(f"{TEST}.Watch")
        with pytest.raises(ProtocolError, match="text"):
            await client.call(f"{TEST}.Who", reply_type=Text)
        assert not client.closed


async def test_more(serve: Serve) -> None:
    async with serve() as running, await Client.connect(running.path) as client:
        replies = client.call_more(f"{TEST}.Count", {"to": 5}, reply_type=Number)
        assert [reply.number async for reply in replies] == [0, 1, 2, 3, 4]
        assert [reply async for reply in replies] == []
        with pytest.raises(InvalidParameter):  # noqa: PT012  # the first of them
            async for _ in client.call_more(f"{TEST}.Count"):
                raise AssertionError
        assert await client.call(f"{TEST}.Echo", {"text": "a"}) == {"text": "a"}


async def test_stream_left_early_closes_the_connection(serve: Serve) -> None:
    async with serve() as running:
        for leave in ("break", "aclose", "with"):
            client = await Client.connect(running.path)
            match leave:
                case "break":
                    async for _ in client.call_more(f"{TEST}.Watch"):
                        break
                case "aclose":
                    replies = client.call_more(f"{TEST}.Watch")
                    await anext(replies)
                    await replies.aclose()
                case _:
                    async with client.call_more(f"{TEST}.Watch") as replies:
                        await anext(replies)
            assert client.closed
            with pytest.raises(Disconnected):
                await client.call(f"{TEST}.Who")
        await running.settled()


async def test_oneway(serve: Serve) -> None:
    async with serve() as running, await Client.connect(running.path) as client:
        await client.call_oneway(f"{TEST}.Echo", {"text": "a"})
        await client.call_oneway(f"{TEST}.Nope")
        assert await client.call(f"{TEST}.Who") == {"uid": os.getuid()}
        assert running.interface.echoed == ["a"]


async def test_fds(serve: Serve, open_fds: Callable[[], int]) -> None:
    async with serve() as running, await Client.connect(running.path) as client:
        read, write = os.pipe()
        await client.call(f"{TEST}.Keep", {"index": 0}, fds=[write])
        os.close(write)
        (kept,) = running.interface.kept
        os.write(kept, b"through")
        os.close(kept)
        assert os.read(read, 100) == b"through"
        os.close(read)
        reply, fds = await client.call_with_fds(f"{TEST}.Open")
        assert (reply, os.read(fds[0], 100)) == ({"index": 0}, b"from the service")
        os.close(fds[0])
        await client.call(f"{TEST}.Open")
        replies = client.call_more(f"{TEST}.Open")
        await anext(replies)
        (fd,) = replies.take_fds()
        os.close(fd)
        with pytest.raises(OSError, match="Bad file"):
            await client.call(f"{TEST}.Keep", {"index": 0}, fds=[0, 1 << 20])


async def test_many_tasks_share_a_client(serve: Serve) -> None:
    async with serve() as running, await Client.connect(running.path) as client:
        done: list[int] = []

        async def one(number: int) -> None:
            fds = [0] if number % 3 == 0 else []
            text = str(number) * 10_000
            assert await client.call(f"{TEST}.Echo", {"text": text}, fds=fds) == {"text": text}
            done.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, number)
        assert sorted(done) == list(range(50))


async def test_cancelled_call_closes_the_connection(serve: Serve, open_fds: Callable[[], int]) -> None:
    async with serve() as running, await Client.connect(running.path) as client:
        async with trio.open_nursery() as nursery:

            async def disconnected() -> None:
                with pytest.raises(Disconnected):
                    await client.call(f"{TEST}.Who")

            nursery.start_soon(client.call, f"{TEST}.Hold")
            await running.interface.held.wait()
            async with trio.open_nursery() as others:
                others.start_soon(disconnected)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
                client.close()
        assert client.closed
        await running.settled()
        assert running.interface.cancelled == 1


async def test_no_answer_in_time(serve: Serve) -> None:
    async with serve() as running, await Client.connect(running.path) as client:
        with pytest.raises(TimedOut):
            await client.call(f"{TEST}.Hold", timeout=0.01)
        assert client.closed
        await running.settled()
        async with await Client.connect(running.path) as other:
            replies = other.call_more(f"{TEST}.Watch", timeout=0.01)
            with pytest.raises(TimedOut):  # noqa: PT012  # the fourth does not come
                for _ in range(4):
                    await anext(replies)


async def test_nobody_there(tmp_path: os.PathLike[str], open_fds: Callable[[], int]) -> None:
    with pytest.raises(FileNotFoundError):
        await Client.connect(os.path.join(tmp_path, "nothing"))


async def test_service_that_does_not_accept(tmp_path: os.PathLike[str], open_fds: Callable[[], int]) -> None:
    path = os.path.join(tmp_path, "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as one:
        listener.bind(path)
        listener.listen(0)
        one.connect(path)
        with pytest.raises(TimedOut):
            await Client.connect(path, timeout=0.05)


@pytest.mark.parametrize(
    "answer",
    [
        b"\0",
        b"garbage\0",
        b'{"parameters":[]}\0',
        b'{"parameters":{},"continues":true}\0',
        b'{"parameters":{},"extra":1}\0',
        b'{"error":"a.B","continues":true}\0',
        b'{"parameters":{"x":"\xff"}}\0',
        b'{"parameters":' + b'{"x":' * 100_000 + b"\0",
    ],
    ids=lambda text: text[:60],
)
async def test_service_that_breaks_the_protocol(answer: bytes, open_fds: Callable[[], int]) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        async with Client(ours) as client, trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, theirs.sendall, answer)
            with pytest.raises(ProtocolError):
                await client.call("a.B")


@pytest.mark.parametrize("answer", [b"", b'{"parameters":{}'])
async def test_service_that_hangs_up(answer: bytes) -> None:
    ours, theirs = socket.socketpair()
    async with Client(ours) as client:
        theirs.send(answer)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(Disconnected):
            await client.call("a.B")
        with pytest.raises(Disconnected):
            await client.call("a.B")
    theirs.close()


async def test_answer_before_the_call_is_still_its_answer() -> None:
    """Nothing tells it from one that was quick; what is left over afterwards is an error."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.send(b'{"parameters":{"x":1}}\0{"parameters":{"x":2}}\0')
        async with Client(ours) as client:
            assert await client.call("a.B") == {"x": 1}
            assert await client.call("a.B") == {"x": 2}


async def test_errors_of_the_interface_come_as_their_class() -> None:
    for errors, expected in (((Nope,), Nope), ((), RemoteError)):
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.send(b'{"error":"org.example.test.Nope"}\0')
            async with Client(ours, errors=errors) as client:
                with pytest.raises(expected) as caught:
                    await client.call("a.B")
                assert caught.value.error == "org.example.test.Nope"
