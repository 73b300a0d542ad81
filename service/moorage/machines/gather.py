"""Calling several functions at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

T = TypeVar("T")


async def gather(functions: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Call functions at once, and return their results in order, or raise the first error when all have ended."""
    results: dict[int, T] = {}
    errors: list[Exception] = []

    async def call(number: int, function: Callable[[], Awaitable[T]]) -> None:
        try:
            results[number] = await function()
        except Exception as error:  # noqa: BLE001 - it is raised again below
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for number, function in enumerate(functions):
            nursery.start_soon(call, number, function)
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(functions))]
