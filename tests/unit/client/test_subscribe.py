"""subscribe() on trio, on asyncio and without either, with a service that a test scripts."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Generator, Sequence
from os import unlink
from pathlib import Path
from typing import Any

import pytest
import trio
from flavours import FLAVOURS, Flavour, done, within

from moorage import client
from moorage.api.descriptions import load_description
from moorage.client import Subscribe, events, subscription
from moorage.machines.events import Kind

SECONDS = 20.0
every_flavour = pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda each: each.name)

HANG_UP = None
"""Ends a connection."""

Reply = dict[str, Any] | None


def event(kind: str, number: int, name: str = "web", **data: Any) -> Reply:
    found: dict[str, Any] = {"cursor": f"c{number}", "event": kind, "name": name, "timestamp": {}}
    return {"parameters": {"event": found | ({"data": data} if data else {})}, "continues": True}


def error(name: str, **parameters: Any) -> Reply:
    return {"error": name, "parameters": parameters}


EXPIRED = error("io.moorage.Machine.CursorExpired")


class Service(threading.Thread):
    """Sends each connection its replies, and keeps it until the other end, or until it has to hang up."""

    def __init__(self, listener: socket.socket, connections: Sequence[Sequence[Reply]]) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []
        self._listener = listener
        self._connections = connections

    def run(self) -> None:
        for replies in self._connections:
            with self._listener.accept()[0] as connected:
                connected.settimeout(SECONDS)
                self.asked.append(json.loads(connected.recv(65536)[:-1])["parameters"])
                for reply in replies:
                    if reply is not HANG_UP:
                        connected.sendall(json.dumps(reply).encode() + b"\0")
                if HANG_UP not in replies:
                    connected.recv(1)


@pytest.fixture
def serve(tmp_path: Path) -> Generator[Callable[..., Service]]:
    services: list[Service] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(SECONDS)
        listening.bind(str(tmp_path / "socket"))
        listening.listen()

        def start(*connections: Sequence[Reply]) -> Service:
            service = Service(listening, connections)
            service.start()
            services.append(service)
            return service

        yield start
        for service in services:
            service.join(SECONDS)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "socket")


async def following(happened: Any) -> events.Event:
    return await done(happened.__anext__() if hasattr(happened, "__anext__") else happened.__next__())


@every_flavour
def test_events_go_on_after_the_last_one(
    flavour: Flavour, serve: Callable[..., Service], address: str
) -> None:
    service = serve(
        [event("snapshotDone", 1, ""), event("leaderExited", 2, status=3), HANG_UP],
        [event("stopping", 3, by="caller")],
    )

    async def test() -> None:
        wanted = Subscribe(names=["web"], events=["leaderExited", "stopping"])
        async with within(flavour.client.subscribe(wanted, address=address)) as happened:
            assert happened.cursor is None
            assert isinstance(await following(happened), events.SnapshotDone)
            ended = await following(happened)
            assert isinstance(ended, events.LeaderExited)
            assert (ended.name, ended.data) == ("web", events.LeaderEnd(status=3))
            stopping = await following(happened)
            assert isinstance(stopping, events.Stopping)
            assert (stopping.data.by, happened.cursor) == ("caller", "c3")

    flavour.run(test)
    both = {"names": ["web"], "events": ["leaderExited", "stopping"]}
    assert service.asked == [both, {**both, "cursor": "c2"}]


@every_flavour
def test_a_snapshot_comes_where_events_cannot_go_on(
    flavour: Flavour, serve: Callable[..., Service], address: str
) -> None:
    service = serve(
        [event("snapshotDone", 1, ""), event("empty", 2), HANG_UP],
        [EXPIRED],
        [event("snapshotDone", 9, "")],
    )

    async def test() -> None:
        async with within(flavour.client.subscribe(Subscribe(oldest=True), address=address)) as happened:
            kinds = [(await following(happened)).event for _ in range(3)]
            assert (kinds, happened.cursor) == (["snapshotDone", "empty", "snapshotDone"], "c9")

    flavour.run(test)
    # What was kept has been told: it does not come twice.
    assert service.asked == [{"oldest": True}, {"cursor": "c2"}, {}]


@every_flavour
def test_a_snapshot_that_is_cut_off_is_taken_again(
    flavour: Flavour, serve: Callable[..., Service], address: str
) -> None:
    service = serve([event("machine", 1, x=1), HANG_UP], [event("snapshotDone", 2, "")])

    async def test() -> None:
        async with within(flavour.client.subscribe(address=address)) as happened:
            first = await following(happened)
            # Its data are no machine: of a newer service, for all that is known.
            assert isinstance(first, events.PlainEvent)
            assert (first.event, first.data) == ("machine", {"x": 1})
            assert isinstance(await following(happened), events.SnapshotDone)

    flavour.run(test)
    assert service.asked == [{}, {}]


@every_flavour
@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (EXPIRED, client.CursorExpired),
        (error("org.varlink.service.InvalidParameter", parameter="cursor"), client.InvalidParameter),
        ({"parameters": {"event": 3}, "continues": True}, client.ProtocolError),
        ({"parameters": {"event": {}}, "continues": True}, client.ProtocolError),
        ({"parameters": {"event": {"event": "a", "cursor": "b"}}, "continues": True}, client.ProtocolError),
    ],
)
def test_what_is_refused_is_raised(
    flavour: Flavour, serve: Callable[..., Service], address: str, reply: Reply, kind: type[Exception]
) -> None:
    serve([reply])

    async def test() -> None:
        async with within(flavour.client.subscribe(Subscribe(cursor="x"), address=address)) as happened:
            with pytest.raises(kind):
                await following(happened)

    flavour.run(test)


@every_flavour
def test_no_service(flavour: Flavour, address: str) -> None:
    async def test() -> None:
        async with within(flavour.client.subscribe(address=address)) as happened:
            with pytest.raises(FileNotFoundError):
                await following(happened)

    flavour.run(test)


@every_flavour
def test_a_service_that_stays_away(
    flavour: Flavour, serve: Callable[..., Service], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "RETURN_SECONDS", 0.0)
    serve([event("snapshotDone", 1, ""), HANG_UP])

    async def test() -> None:
        async with within(flavour.client.subscribe(address=address)) as happened:
            await following(happened)
            unlink(address)
            with pytest.raises(FileNotFoundError):
                await following(happened)

    flavour.run(test)


@pytest.mark.parametrize("flavour", FLAVOURS[:2], ids=lambda each: each.name)
def test_a_wait_that_is_given_up_loses_nothing(
    flavour: Flavour, serve: Callable[..., Service], address: str
) -> None:
    service = serve([event("snapshotDone", 1, "")], [event("empty", 2)])

    async def test() -> None:
        async with within(flavour.client.subscribe(address=address)) as happened:
            await following(happened)
            if flavour.name == "trio":
                with trio.move_on_after(0.05):
                    await following(happened)
            else:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(following(happened), 0.05)
            assert isinstance(await following(happened), events.Empty)

    flavour.run(test)
    assert service.asked == [{}, {"cursor": "c1"}]


@every_flavour
def test_close_ends_the_iteration(flavour: Flavour, serve: Callable[..., Service], address: str) -> None:
    serve([event("snapshotDone", 1, "")])

    async def test() -> None:
        happened = flavour.client.subscribe(address=address)
        await following(happened)
        if flavour.name == "blocking":
            timer = threading.Timer(0.05, happened.close)
            timer.start()
            assert list(happened) == []
            timer.join()
        elif flavour.name == "trio":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_close_soon, flavour, happened)
                assert [each async for each in happened] == []
        else:
            closing = asyncio.create_task(_close_soon(flavour, happened))
            assert [each async for each in happened] == []
            await closing

    flavour.run(test)


async def _close_soon(flavour: Flavour, happened: Any) -> None:
    await flavour.pause(0.05)
    happened.close()


def test_each_kind_of_event_has_its_class() -> None:
    described = load_description("io.moorage.Machine")
    assert events.KINDS.keys() == {*Kind, "machine", "snapshotDone", "lost"}
    for kind, found in events.KINDS.items():
        assert kind in described
        assert getattr(events, found.__name__) is found
    assert all(getattr(events, name) for name in events.__all__)
