"""A value that changes: whoever reads slowly misses what came in between, but never the last."""

import trio
import trio.testing

from moorage.machines.latest import Latest


async def test_each_value_is_read_by_a_reader_that_keeps_up() -> None:
    latest = Latest[int]()
    seen: list[int] = []

    async def read() -> None:
        seen.extend([value async for value in latest])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for value in (1, 2, 2, 3):
            await trio.testing.wait_all_tasks_blocked()
            latest.set(value)
        await trio.testing.wait_all_tasks_blocked()
        latest.close()
    assert seen == [1, 2, 3]


async def test_a_slow_reader_gets_the_last_value() -> None:
    latest = Latest[int]()
    for value in range(1000):
        latest.set(value)
    latest.close()
    assert [value async for value in latest] == [999]


async def test_without_a_value() -> None:
    latest = Latest[int]()
    latest.close()
    assert [value async for value in latest] == []
