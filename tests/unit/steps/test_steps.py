"""Generators that wait, on each of the three loops."""

import asyncio
import os
import signal
import socket
import threading
from time import monotonic

import pytest
import trio
import trio.testing
from flavours import FLAVOURS, Flavour, done

from moorage.steps import asyncio as on_asyncio
from moorage.steps import blocking
from moorage.steps import trio as on_trio
from moorage.steps.waits import Steps, Wait, pause, shielded

pytestmark = pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda each: each.name)

GONE = -1.0
"""A time that is over."""


def test_what_is_there_and_what_is_not(flavour: Flavour) -> None:
    ours, theirs = socket.socketpair()

    def steps() -> Steps[list[bool]]:
        seen = [
            (yield Wait(ours.fileno(), GONE)),
            (yield Wait(ours.fileno(), writable=True)),
            (yield Wait(None, GONE)),
        ]
        theirs.send(b"x")
        seen += [(yield Wait(ours.fileno())), (yield Wait(ours.fileno(), monotonic() + 20))]
        theirs.close()
        return [*seen, (yield Wait(ours.fileno()))]

    async def test() -> None:
        assert await done(flavour.steps.take(steps())) == [False, True, False, True, True, True]

    with ours, theirs:
        flavour.run(test)


def test_what_needs_no_wait(flavour: Flavour) -> None:
    def steps() -> Steps[str]:
        return "at once"
        yield

    async def test() -> None:
        assert await done(flavour.steps.take(steps())) == "at once"
        assert await done(flavour.steps.take(pause(0))) is None

    flavour.run(test)


def test_a_wait_that_goes_wrong_is_raised_where_the_steps_wait(flavour: Flavour) -> None:
    """trio: a busy resource; asyncio: a file, which epoll(7) refuses; poll(2) reports a closed descriptor as ready."""
    seen: list[str] = []

    def steps() -> Steps[str]:
        with open("/dev/null" if flavour.name == "blocking" else __file__, "rb") as file:
            try:
                yield Wait(file.fileno())
            except OSError as error:
                seen.append(type(error).__name__)
                yield Wait(None, GONE)
                return "refused"
            return "ready"

    async def test() -> str:
        return await done(flavour.steps.take(steps()))

    assert (flavour.run(test), seen) in (("refused", ["PermissionError"]), ("ready", []))


def cleaning(events: list[str], release: int) -> Steps[None]:
    """Wait for ever; then clean up, for which a byte is needed."""
    try:
        events.append("waits")
        yield Wait(None)
    finally:
        os.write(release, b"x")
        read = yield Wait(None, GONE, shielded=True)
        events.append(f"cleaned {read}")


def test_the_end_of_the_wait_is_raised_there(flavour: Flavour) -> None:
    """A cancellation; Ctrl-C; another thread."""
    events: list[str] = []
    read, write = os.pipe()

    async def in_trio() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(on_trio.take, cleaning(events, write))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught

    async def in_asyncio() -> None:
        task = asyncio.create_task(on_asyncio.take(cleaning(events, write)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    match flavour.name:
        case "trio":
            trio.run(in_trio)
        case "asyncio":
            asyncio.run(in_asyncio())
        case _:
            main = threading.main_thread().ident
            assert main is not None
            timer = threading.Timer(0.05, signal.pthread_kill, [main, signal.SIGINT])
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                blocking.take(cleaning(events, write))
            timer.join()
    assert events == ["waits", "cleaned False"]
    os.close(read)
    os.close(write)


def test_another_thread_ends_it(flavour: Flavour) -> None:
    if flavour.name != "blocking":
        return  # cancelled, above
    events: list[str] = []
    read, write = os.pipe()
    stop = os.eventfd(0)
    ended: list[blocking.Stopped] = []

    def keep() -> None:
        try:
            blocking.take(cleaning(events, write), stop)
        except blocking.Stopped as error:
            ended.append(error)

    thread = threading.Thread(target=keep)
    thread.start()
    os.eventfd_write(stop, 1)
    thread.join(20)
    assert (len(ended), events) == (1, ["waits", "cleaned False"])
    for fd in (read, write, stop):
        os.close(fd)


def test_shielded_steps(flavour: Flavour) -> None:
    seen: list[Wait] = []

    def steps() -> Steps[str]:
        try:
            yield Wait(None, GONE)
        except KeyError:
            return "was told"
        return "was not"

    for error, result in ((KeyError(), "was told"), (None, "was not")):
        wrapped = shielded(steps())
        seen.append(next(wrapped))
        with pytest.raises(StopIteration) as end:
            wrapped.send(False) if error is None else wrapped.throw(error)
        assert end.value.value == result
    assert all(wait.shielded for wait in seen)
