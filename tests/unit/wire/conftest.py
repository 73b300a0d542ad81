"""A service with a handler of each kind, a server for it, and sockets that speak to it byte by byte."""

import os
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from descriptors import open_descriptors

from moorage.wire.call import Call
from moorage.wire.errors import ExpectedMore, PermissionDenied
from moorage.wire.message import prepared_reply
from moorage.wire.method import method
from moorage.wire.server import Limits, Server
from moorage.wire.service import Interface, Service
from moorage.wire.types import Empty, Feed, Int, Last, Parameters, Prepared, Reply, WithFds

CLOSED_SECONDS = 60.0

DESCRIPTION = """\
# For the tests.
interface org.example.test
method Echo(text: string, number: ?int) -> (text: string)
method Count(to: int, size: ?int) -> (number: int, padding: string)
method CountOne() -> (number: int)
method Nothing() -> (number: int)
method Hold() -> ()
method Watch() -> (number: int, padding: string)
method Batches(to: int, size: ?int) -> (number: int, padding: string)
method Follow() -> (number: int, padding: string)
method Look() -> (number: int, padding: string)
method WatchBadly() -> (number: int)
method Open() -> (index: int)
method Keep(index: int) -> ()
method Who() -> (uid: int)
method Fail(how: string) -> ()
method FailLater(how: string) -> ()
# method Hidden() -> ()
method Later() -> ()
error Nope ()
"""


class EchoIn(Parameters):
    text: str
    number: Int | None = None


class EchoOut(Reply):
    text: str


class CountIn(Parameters):
    to: Int
    size: Int = 0


class Number(Reply):
    number: int
    padding: str = ""


class Index(Reply):
    index: Int


class KeepIn(Parameters):
    index: Int


class Uid(Reply):
    uid: Int


class How(Parameters):
    how: str


def fail(how: str) -> None:
    match how:
        case "denied":
            raise PermissionDenied
        case "errno":
            raise FileNotFoundError(2, "a secret path")
        case "bug":
            raise RuntimeError("a secret")
        case _:
            raise ExpectedMore


class Numbers(Feed[Number]):
    """What a test has put in it; an error is its end."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.end: Exception | None = None
        self.sent = 0
        self.rooms: list[int] = []
        self.closed = False
        self.woken: Callable[[], None] = lambda: None

    def follow(self, woken: Callable[[], None]) -> None:
        self.woken = woken

    def put(self, *numbers: int, padding: int = 0) -> None:
        self.waiting += [prepared_reply(Number(number=each, padding="x" * padding)) for each in numbers]

    def take(self, room: int) -> Sequence[bytes]:
        self.rooms.append(room)
        if not self.waiting and self.end is not None:
            raise self.end
        taken, self.waiting = self.waiting[:1], self.waiting[1:]
        self.sent += len(taken)
        return taken

    def close(self) -> None:
        self.closed = True


@dataclass
class Tested(Interface):
    """What the handlers were seen to do; Hold waits until it is told to go on."""

    echoed: list[str] = field(default_factory=list[str])
    made: int = 0
    holding: int = 0
    cancelled: int = 0
    finished: int = 0
    finished_by_echo: int = 0
    kept: list[int] = field(default_factory=list[int])
    gone: int = 0
    fed: int = 0
    feeds: list[Numbers] = field(default_factory=list[Numbers])

    def __post_init__(self) -> None:
        super().__init__(DESCRIPTION)
        self.held = trio.Event()
        self.go_on = trio.Event()
        self.changed = trio.Event()
        self.watch_size = 0

    def note(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    @method("Echo")
    def echo(self, call: Call, params: EchoIn) -> EchoOut:
        self.echoed.append(params.text)
        self.finished_by_echo = self.finished
        self.note()
        return EchoOut(text=params.text)

    @method("Count")
    def count(self, call: Call, params: CountIn) -> Iterator[Number]:
        try:
            for number in range(params.to):
                self.made += 1
                yield Number(number=number, padding="x" * params.size)
        finally:
            self.finished += 1
            self.note()

    @method("CountOne")
    def count_one(self, call: Call, params: Empty) -> Iterator[Number]:
        yield Number(number=1)
        raise PermissionDenied

    @method("Nothing")
    def nothing(self, call: Call, params: Empty) -> Iterator[Number]:
        return iter(())

    @method("Hold")
    async def hold(self, call: Call, params: Empty) -> None:
        self.holding += 1
        self.held.set()
        try:
            await self.go_on.wait()
            self.finished += 1
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.note()

    @method("Batches", requires_more=True)
    async def batches(self, call: Call, params: CountIn) -> AsyncIterator[Prepared[Number] | Last[Number]]:
        for number in range(params.to):
            yield Prepared([prepared_reply(Number(number=number, padding=each)) for each in "ab"])
        yield Last(Number(number=params.to))

    @method("Watch", requires_more=True)
    async def watch(self, call: Call, params: Empty) -> AsyncIterator[Number | Last[Number]]:
        try:
            for number in range(3 if not self.watch_size else 10_000):
                self.made += 1
                yield Number(number=number, padding="x" * self.watch_size)
            self.held.set()
            await self.go_on.wait()
            yield Last(Number(number=-1))
        finally:
            self.finished += 1
            self.note()

    @method("Follow", requires_more=True)
    def follow(self, call: Call, params: Empty) -> Feed[Number]:
        feed = Numbers()
        feed.put(*range(self.fed))
        self.feeds.append(feed)
        self.note()
        return feed

    @method("Look")
    def look(self, call: Call, params: Empty) -> Iterator[Number] | Feed[Number]:
        return self.follow(call, params) if call.more else iter((Number(number=self.fed),))

    @method("WatchBadly")
    async def watch_badly(self, call: Call, params: Empty) -> AsyncIterator[Number]:
        yield Number(number=1)

    @method("Open")
    def open(self, call: Call, params: Empty) -> WithFds[Index]:
        read, write = os.pipe()
        os.write(write, b"from the service")
        os.close(write)
        return WithFds(Index(index=0), [read])

    @method("Keep")
    def keep(self, call: Call, params: KeepIn) -> None:
        self.kept.append(call.take_fd(params.index, "index"))

    @method("Who")
    def who(self, call: Call, params: Empty) -> Uid:
        return Uid(uid=call.peer.uid)

    @method("Fail")
    def fail_now(self, call: Call, params: How) -> None:
        fail(params.how)

    @method("FailLater")
    async def fail_later(self, call: Call, params: How) -> None:
        await trio.lowlevel.checkpoint()
        fail(params.how)


@dataclass
class Running:
    server: Server
    interface: Tested
    path: str
    nursery: trio.Nursery

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        """A blocking-free raw socket to the server."""
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if receive_buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.connect(self.path)
        raw.setblocking(False)
        return raw

    async def settled(self) -> None:
        """Until the server has no connection left."""
        while self.server.connections:
            await trio.lowlevel.checkpoint()


Serve = Callable[..., AbstractAsyncContextManager[Running]]
ReadMessages = Callable[[socket.socket, int], Awaitable[list[bytes]]]
ReadUntilEnd = Callable[[socket.socket], Awaitable[bytes]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    @asynccontextmanager
    async def run(
        limits: Limits | None = None, backlog: int = 512, *, trusted: bool = True
    ) -> AsyncGenerator[Running, None]:
        path = str(tmp_path / "socket")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(path)
            listener.listen(backlog)
            interface = Tested()
            service = Service(
                vendor="Moorage",
                product="Tests",
                version="1",
                url="https://example.org",
                interfaces=[interface],
            )
            server = Server(limits=limits, trusted=None if trusted else frozenset())
            server.listen(listener, service)
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve)
                yield Running(server, interface, path, nursery)
                server.stop()
        finally:
            listener.close()

    return run


async def read_until_end(raw: socket.socket) -> bytes:
    """All that the server sends until it closes."""
    received = bytearray()
    while True:
        await trio.lowlevel.wait_readable(raw)
        try:
            data = raw.recv(65536)
        except ConnectionResetError:
            return bytes(received)
        if not data:
            return bytes(received)
        received += data


async def read_messages(raw: socket.socket, count: int) -> list[bytes]:
    """So many messages, without the NUL."""
    received = bytearray()
    while received.count(0) < count:
        await trio.lowlevel.wait_readable(raw)
        data = raw.recv(65536)
        assert data, f"closed after {bytes(received)!r}"
        received += data
    assert received.count(0) == count
    return bytes(received).split(b"\0")[:-1]


@pytest.fixture(name="read_until_end")
def read_until_end_fixture() -> ReadUntilEnd:
    return read_until_end


@pytest.fixture(name="read_messages")
def read_messages_fixture() -> ReadMessages:
    return read_messages


@pytest.fixture
def open_fds() -> Iterator[Callable[[], int]]:
    """Counts this process's file descriptors; none may be left over at the end of the test."""

    def count() -> int:
        return len(open_descriptors())

    before = count()
    yield count
    end = time.monotonic() + CLOSED_SECONDS
    while count() > before:  # some are closed by a thread
        assert time.monotonic() < end
        time.sleep(0.01)
