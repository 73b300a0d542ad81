"""Somebody who is told what happens to machines, as tests inside a sandbox are."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import trio
from moored import OURS, SOCKET

from moorage.wire.client import Client

SUBSCRIBE = f"{OURS}Subscribe"
TOLD_SECONDS = 20.0


class Reader:
    """Somebody who is told, and takes note."""

    def __init__(self, replies: Any) -> None:
        self._replies = replies
        self.told: list[dict[str, Any]] = []

    async def next(self) -> dict[str, Any]:
        with trio.fail_after(TOLD_SECONDS):
            event = (await anext(self._replies))["event"]
        self.told.append(event)
        return event

    async def until(self, *kinds: str, name: str | None = None) -> dict[str, Any]:
        """Read on to an event of some kind."""
        while True:
            event = await self.next()
            if event["event"] in kinds and name in {None, event["name"]}:
                return event

    async def snapshot(self) -> set[str]:
        """Read the snapshot; return the names of the machines."""
        await self.until("snapshotDone")
        assert {event["event"] for event in self.told[:-1]} <= {"machine"}
        return {event["name"] for event in self.told[:-1]}

    def of(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.told if event["name"] == name]


@asynccontextmanager
async def subscribed(path: str = SOCKET, **parameters: Any) -> AsyncGenerator[Reader]:
    async with await Client.connect(path) as client, client.call_more(SUBSCRIBE, parameters) as replies:
        yield Reader(aiter(replies))


def kinds(events: Iterable[dict[str, Any]]) -> list[str]:
    """Return what has happened, in order, but not what machined did of it, which may be at any time."""
    return [event["event"] for event in events if event["event"] not in {"published", "unpublished"}]


def is_in_order(events: Iterable[dict[str, Any]]) -> bool:
    cursors = [event["cursor"] for event in events if event["event"] != "machine"]
    return cursors == sorted(set(cursors))
