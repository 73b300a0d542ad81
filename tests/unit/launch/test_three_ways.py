"""Payloads on trio, on asyncio and without either; test_payload.py has all the rest, on trio."""

import asyncio
import os
import signal
import threading
from collections.abc import Generator

import pytest
import trio
from descriptors import children, open_descriptors
from flavours import FLAVOURS, Flavour, done, within

from moorage.launch import BadCommand, StartFailed, TooSlow
from moorage.launch import payload as core

pytestmark = pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda each: each.name)


@pytest.fixture(autouse=True)
def _nothing_left() -> Generator[None]:
    """No test leaves a child or a file descriptor."""
    before = children(), open_descriptors()
    yield
    assert (children(), open_descriptors()) == before


def test_what_it_becomes(flavour: Flavour) -> None:
    async def test() -> None:
        read, write = os.pipe()
        async with within(await done(flavour.launch.hold())) as payload:
            with pytest.raises(BadCommand):
                await done(payload.run([]))
            await done(payload.run(["sh", "-c", "echo $$; exit 3"], fds={1: write}))
            assert [await done(payload.wait()), await done(payload.wait())] == [3, 3]
            assert os.read(read, 20) == f"{payload.pid}\n".encode()
            with pytest.raises(RuntimeError, match="already runs"):
                await done(payload.run(["true"]))
        os.close(read)
        os.close(write)

    flavour.run(test)


def test_what_it_cannot_become(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with within(await done(flavour.launch.hold())) as payload:
            with pytest.raises(StartFailed) as failed:
                await done(payload.run(["/nowhere/program"]))
            assert (failed.value.field, failed.value.filename) == ("argv", "/nowhere/program")
        monkeypatch.setattr(core, "EXEC_SECONDS", 0.01)
        async with within(await done(flavour.launch.hold())) as payload:
            signal.pidfd_send_signal(payload.pidfd, signal.SIGSTOP)
            with pytest.raises(TooSlow):
                await done(payload.run(["true"]))
            assert await done(payload.wait()) == -signal.SIGKILL

    flavour.run(test)


def test_what_is_given_up_ends(flavour: Flavour) -> None:
    """While it becomes the program, and before."""

    async def run_it(payload: object) -> None:
        await done(payload.run(["true"]))  # type: ignore[attr-defined]

    async def test() -> None:
        async with within(await done(flavour.launch.hold())) as payload:
            signal.pidfd_send_signal(payload.pidfd, signal.SIGSTOP)
            match flavour.name:
                case "trio":
                    with trio.move_on_after(0.05):
                        await run_it(payload)
                case "asyncio":
                    with pytest.raises(asyncio.TimeoutError):
                        await asyncio.wait_for(run_it(payload), 0.05)
                case _:
                    timer = threading.Timer(
                        0.05, signal.pthread_kill, [threading.get_ident(), signal.SIGINT]
                    )
                    timer.start()
                    with pytest.raises(KeyboardInterrupt):
                        await run_it(payload)
                    timer.join()
            assert await done(payload.wait()) == -signal.SIGKILL
        async with within(await done(flavour.launch.hold())):
            pass

    flavour.run(test)


def test_two_may_wait(flavour: Flavour) -> None:
    async def test() -> None:
        seen: list[int] = []
        async with within(await done(flavour.launch.hold())) as payload:

            async def wait() -> None:
                seen.append(await done(payload.wait()))

            match flavour.name:
                case "trio":
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(wait)
                        nursery.start_soon(wait)
                        await trio.sleep(0.02)
                        signal.pidfd_send_signal(payload.pidfd, signal.SIGTERM)
                case "asyncio":
                    async with asyncio.TaskGroup() as group:
                        group.create_task(wait())
                        group.create_task(wait())
                        await asyncio.sleep(0.02)
                        signal.pidfd_send_signal(payload.pidfd, signal.SIGTERM)
                case _:
                    threads = [
                        threading.Thread(target=lambda: seen.append(payload.wait())) for _ in range(2)
                    ]
                    for thread in threads:
                        thread.start()
                    signal.pidfd_send_signal(payload.pidfd, signal.SIGTERM)
                    for thread in threads:
                        thread.join()
        assert seen == [-signal.SIGTERM] * 2

    flavour.run(test)
