"""A socket at which machined would listen, and where the test says what it answers."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio

Answer: TypeAlias = list[dict[str, Any]] | bytes | None
"""Replies to a call; bytes as they are; None for never."""
Answering: TypeAlias = Callable[[str, dict[str, Any]], Answer]


class Told:
    """What is said at the socket.

    Attributes:
        path: of the socket.
        calls: methods that were called, with the machine's name if one was told.
        answer: what is said to a call.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.calls: list[tuple[str, str | None]] = []
        self.answer: Answering = lambda _method, _parameters: [{"parameters": {}}]

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[None]:
        """Listen."""
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        await listener.bind(self.path)
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._serve, [trio.SocketListener(listener)])
            yield
            nursery.cancel_scope.cancel()
        os.unlink(self.path)

    async def _serve(self, stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # who called has heard enough
            await self._converse(stream)

    async def _converse(self, stream: trio.SocketStream) -> None:
        buffer = b""
        async for data in stream:
            buffer += data
            while b"\0" in buffer:
                message, _, buffer = buffer.partition(b"\0")
                call = json.loads(message)
                method, parameters = call["method"].rpartition(".")[2], call.get("parameters", {})
                self.calls.append((method, parameters.get("name")))
                answer = self.answer(method, parameters)
                if answer is None:
                    await trio.sleep_forever()
                elif isinstance(answer, bytes):
                    await stream.send_all(answer)
                else:
                    for number, reply in enumerate(answer, start=1):
                        more = {"continues": True} if number < len(answer) else {}
                        await stream.send_all(json.dumps({**reply, **more}).encode() + b"\0")


@pytest.fixture
def told(tmp_path: Path) -> Told:
    """A place where nobody listens yet."""
    return Told(str(tmp_path / "io.systemd.Machine"))
