"""The three ways to use the client, as one: a test is a coroutine, whichever of them it is about."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import sleep
from types import ModuleType
from typing import Any, TypeVar

import trio

from moorage.client import asyncio as client_asyncio
from moorage.client import blocking as client_blocking
from moorage.client import trio as client_trio
from moorage.launch import asyncio as launch_asyncio
from moorage.launch import blocking as launch_blocking
from moorage.launch import trio as launch_trio
from moorage.steps import asyncio as steps_asyncio
from moorage.steps import blocking as steps_blocking
from moorage.steps import trio as steps_trio

T = TypeVar("T")

TURN_SECONDS = 0.005
"""Pause between two looks at what tells nobody that it changed."""


def _straight(body: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine that never waits."""
    coroutine = body()
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits for something that does not block")


@dataclass(frozen=True)
class Flavour:
    """One of the three.

    Attributes:
        name: trio, asyncio or blocking.
        client: of moorage.client.
        launch: of moorage.launch.
        steps: of moorage.steps.
    """

    name: str
    client: ModuleType
    launch: ModuleType
    steps: ModuleType

    def run(self, body: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a test."""
        match self.name:
            case "trio":
                return trio.run(body)
            case "asyncio":
                return asyncio.run(body(), debug=True)
            case _:
                return _straight(body)

    async def pause(self, seconds: float = TURN_SECONDS) -> None:
        """Let time pass."""
        match self.name:
            case "trio":
                await trio.sleep(seconds)
            case "asyncio":
                await asyncio.sleep(seconds)
            case _:
                sleep(seconds)  # noqa: ASYNC251  # it is meant to

    async def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait until something is true."""
        for _ in range(round(seconds / TURN_SECONDS)):
            if condition():
                return
            await self.pause()
        raise AssertionError(inspect.getsource(condition))


FLAVOURS = (
    Flavour("trio", client_trio, launch_trio, steps_trio),
    Flavour("asyncio", client_asyncio, launch_asyncio, steps_asyncio),
    Flavour("blocking", client_blocking, launch_blocking, steps_blocking),
)


async def done(value: Any) -> Any:
    """Return the result of a function that is asynchronous in two of the three."""
    return (await value) if inspect.isawaitable(value) else value


@asynccontextmanager
async def within(manager: Any) -> AsyncGenerator[Any]:
    """Enter a context manager that is asynchronous in two of the three."""
    if hasattr(manager, "__aenter__"):
        async with manager as entered:
            yield entered
    else:
        with manager as entered:
            yield entered


async def every(replies: Any) -> list[Any]:
    """Return all values of an iterator that is asynchronous in two of the three."""
    if hasattr(replies, "__aiter__"):
        return [reply async for reply in replies]
    return list(replies)
