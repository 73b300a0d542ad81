"""An event that happens once: it is what trio's is, and has less memory."""

import sys

import trio
import trio.testing

from moorage.machines.once import Once


async def test_everybody_who_waits_is_woken_and_nobody_waits_afterwards() -> None:
    once, woken = Once(), 0

    async def wait() -> None:
        nonlocal woken
        await once.wait()
        woken += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert (woken, once.is_set()) == (0, False)
        once.set()
        once.set()
    assert once.is_set()
    await wait()
    other = Once()
    other.set()
    await other.wait()
    assert woken == 3


def test_it_is_small_while_nobody_waits() -> None:
    assert sys.getsizeof(Once()) < sys.getsizeof(set[int]()) / 4
