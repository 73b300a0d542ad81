"""Files of others are closed by threads; whoever waits in one is interrupted."""

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
import trio

from moorage.wire.disposal import Disposal


def lingering() -> tuple[int, socket.socket]:
    """A TCP socket whose last close(2) waits for minutes, and its peer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
    sender.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sender.send(bytes(65536))
    return sender.detach(), receiver


async def drained(disposal: Disposal, uid: int) -> None:
    """Until nothing is to be closed any more."""
    with trio.fail_after(30):
        while disposal.pending(uid) != (0, 0):  # noqa: ASYNC110  # threads tell nobody
            await trio.sleep(0.01)


async def test_what_waits_is_interrupted_and_nobody_else_waits_for_it(open_fds: Callable[[], int]) -> None:
    before = open_fds()
    async with trio.open_nursery() as nursery:
        disposal = Disposal(nursery)
        (slow, receiver), (quick, other) = lingering(), os.pipe()
        disposal.close(1, [slow, quick])
        disposal.close(2, (other,))
        assert disposal.pending(1)[0] >= 2
        assert disposal.pending(3) == (0, disposal.pending(1)[0] + disposal.pending(2)[0])
        with receiver:
            await drained(disposal, 1)
        assert open_fds() == before


async def test_a_file_waits_for_a_thread(
    open_fds: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_fds()
    refused: list[object] = []
    real = trio.to_thread.run_sync

    async def refuse_twice(*args: Any, **options: Any) -> Any:
        if len(refused) < 2:
            refused.append(args)
            raise RuntimeError("can't start new thread")
        return await real(*args, **options)

    monkeypatch.setattr(trio.to_thread, "run_sync", refuse_twice)
    monkeypatch.setattr("moorage.wire.disposal.PATIENCE_SECONDS", 0.01)
    async with trio.open_nursery() as nursery:
        disposal = Disposal(nursery)
        disposal.close(1, os.pipe())
        await drained(disposal, 1)
    assert len(refused) == 2
    assert open_fds() == before


async def test_what_comes_within_a_moment_is_closed_by_one_thread(
    open_fds: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time, the interpreter's lock changes hands, and callers wait where its holder is preempted."""
    before = open_fds()
    threads: list[object] = []
    real = trio.to_thread.run_sync

    async def count(*args: Any, **options: Any) -> Any:
        threads.append(args)
        return await real(*args, **options)

    monkeypatch.setattr(trio.to_thread, "run_sync", count)
    async with trio.open_nursery() as nursery:
        disposal = Disposal(nursery)
        for _ in range(20):
            disposal.close(1, os.pipe())
            await trio.lowlevel.checkpoint()
        await drained(disposal, 1)
    assert len(threads) == 1
    assert open_fds() == before


async def test_at_the_end_nobody_waits(open_fds: Callable[[], int]) -> None:
    slow, receiver = lingering()
    with receiver:
        async with trio.open_nursery() as nursery:
            disposal = Disposal(nursery)
            disposal.close(1, [slow, os.dup(0)])
            nursery.cancel_scope.cancel()
        disposal.end()
        disposal.close(2, [os.dup(0)])
        disposal.finish()


async def test_a_number_that_is_none_does_no_harm() -> None:
    async with trio.open_nursery() as nursery:
        disposal = Disposal(nursery)
        disposal.close(1, [1 << 20])
        disposal.close(1, ())
        await drained(disposal, 1)
