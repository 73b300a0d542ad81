"""Many file descriptors, one task."""

import os
import select
import socket

import pytest
import trio
import trio.testing

from moorage.kernel.poller import EVENTS_PER_POLL, IDLE_TURNS, Readiness


def test_calls_back_with_the_events() -> None:
    readiness = Readiness()
    seen: list[int] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        readiness.add(ours.fileno(), select.EPOLLIN, seen.append)
        assert readiness.poll() == 0
        theirs.send(b"x")
        assert readiness.poll() == 1
        readiness.modify(ours.fileno(), select.EPOLLOUT)
        readiness.poll()
        theirs.close()
        readiness.modify(ours.fileno(), 0)
        readiness.poll()
        readiness.remove(ours.fileno())
        assert readiness.poll() == 0
    assert seen == [select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP]
    readiness.close()


def test_what_was_seen_of_a_closed_file_is_not_for_the_next_one_of_that_number() -> None:
    readiness = Readiness()
    pairs = [socket.socketpair() for _ in range(2)]
    seen: list[str] = []
    replaced: list[socket.socket] = []

    def first(events: int) -> None:
        # Whichever is called first closes the other one, and takes its number for a socket with nothing to read.
        seen.append("first")
        for ours, _ in pairs:
            readiness.remove(ours.fileno())
        number = pairs[1][0].fileno()
        fresh, other = socket.socketpair()
        os.dup2(fresh.fileno(), number)
        replaced.extend((fresh, other))
        readiness.add(number, select.EPOLLIN, lambda _: seen.append("misfired"))

    for ours, theirs in pairs:
        readiness.add(ours.fileno(), select.EPOLLIN, first)
        theirs.send(b"x")
    assert readiness.poll() == 2
    assert seen == ["first"]
    assert readiness.poll() == 0
    replaced[1].send(b"x")
    readiness.poll()
    assert seen == ["first", "misfired"]
    readiness.close()
    for one in (*replaced, *(end for pair in pairs for end in pair)):
        one.close()


def test_a_batch_is_bounded_and_the_rest_is_not_forgotten() -> None:
    readiness = Readiness()
    seen: set[int] = set()
    fds = [os.eventfd(1) for _ in range(EVENTS_PER_POLL + 10)]
    for fd in fds:
        readiness.add(fd, select.EPOLLIN, lambda _, fd=fd: (seen.add(fd), os.eventfd_read(fd))[0])
    assert readiness.poll() == EVENTS_PER_POLL
    readiness.poll()
    assert seen == set(fds)
    readiness.close()
    for fd in fds:
        os.close(fd)


async def test_other_tasks_get_their_turn_though_something_is_always_ready() -> None:
    readiness = Readiness()
    calls = 0

    def ready(_: int) -> None:
        nonlocal calls
        calls += 1

    fd = os.eventfd(1)
    readiness.add(fd, select.EPOLLIN, ready)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert 10 < calls <= 100
        nursery.cancel_scope.cancel()
    readiness.close()
    os.close(fd)


async def test_wakes_when_something_becomes_ready() -> None:
    readiness = Readiness()
    woken = trio.Event()
    fd = os.eventfd(0)
    readiness.add(fd, select.EPOLLIN, lambda _: (os.eventfd_read(fd), woken.set())[1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        await trio.testing.wait_all_tasks_blocked()
        os.eventfd_write(fd, 1)
        await woken.wait()
        nursery.cancel_scope.cancel()
    readiness.close()
    os.close(fd)


@pytest.mark.parametrize(("expects", "polls"), [(False, 1), (True, 1 + IDLE_TURNS)])
async def test_stays_awake_for_what_is_expected(expects: bool, polls: int) -> None:
    made = 0

    class Counted(Readiness):
        def poll(self) -> int:
            nonlocal made
            made += 1
            return super().poll()

    def ready(_: int) -> None:
        os.eventfd_read(fd)
        if expects:
            readiness.expect()

    readiness = Counted()
    fd = os.eventfd(1)
    readiness.add(fd, select.EPOLLIN, ready)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        await trio.testing.wait_all_tasks_blocked()
        assert made == polls
        nursery.cancel_scope.cancel()
    readiness.close()
    os.close(fd)


def test_what_cannot_be_polled_is_refused(tmp_path: os.PathLike[str]) -> None:
    readiness = Readiness()
    with open(os.path.join(tmp_path, "file"), "wb") as file, pytest.raises(PermissionError):
        readiness.add(file.fileno(), select.EPOLLIN, lambda _: None)
    readiness.close()


async def test_a_callback_that_fails_is_called_again_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moorage.kernel.poller.RETRY_SECONDS", 0.01)
    readiness = Readiness()
    ours, theirs = socket.socketpair()
    others, away = socket.socketpair()
    failures = iter([OSError(24, "no file descriptor"), MemoryError()])
    done = trio.Event()

    def fails(events: int) -> None:
        for failure in failures:
            raise failure
        ours.recv(1)
        done.set()

    def goes_on(events: int) -> None:
        others.recv(1)

    with ours, theirs, others, away:
        readiness.add(ours.fileno(), select.EPOLLIN, fails)
        readiness.add(others.fileno(), select.EPOLLIN, goes_on)
        theirs.send(b"x")
        away.send(b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(readiness.run)
            with trio.fail_after(10):
                await done.wait()
            nursery.cancel_scope.cancel()
    readiness.close()
    assert len(caplog.records) == 2
