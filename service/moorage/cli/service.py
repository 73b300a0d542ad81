"""One call to the service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
import trio

from moorage.cli.address import Address
from moorage.cli.failures import explain
from moorage.wire.client import CALL_SECONDS, Client
from moorage.wire.errors import VarlinkError

INTERFACE: Final = "io.moorage.Machine"

Reply = msgspec.Raw
"""The parameters of a reply, as they came."""

T = TypeVar("T")


def call(
    address: Address,
    method: str,
    parameters: dict[str, Any],
    *,
    fds: Sequence[int] = (),
    timeout: float = CALL_SECONDS,
    helpers: Sequence[Mapping[str, Any]] = (),
) -> Reply:
    """Call a method of io.moorage.Machine.

    Args:
        address: where the service listens.
        method: without the interface.
        parameters: those that are None are not sent.
        fds: file descriptors to go along.
        timeout: seconds until the reply must be there.
        helpers: those among the parameters, to be named in an error.

    Raises:
        Failure: it did not work out.
    """
    given = {name: value for name, value in parameters.items() if value is not None}

    async def talk(client: Client) -> Reply:
        return await client.call(f"{INTERFACE}.{method}", given, reply_type=Reply, fds=fds, timeout=timeout)

    return _run(address, talk, timeout, helpers)


def list_machines(address: Address, *, timeout: float = CALL_SECONDS) -> list[Reply]:
    """Call List of io.moorage.Machine, and return a reply for each machine.

    Args:
        address: where the service listens.
        timeout: seconds until the next reply must be there.

    Raises:
        Failure: it did not work out.
    """

    async def talk(client: Client) -> list[Reply]:
        try:
            async with client.call_more(f"{INTERFACE}.List", reply_type=Reply, timeout=timeout) as replies:
                return [reply async for reply in replies]
        except VarlinkError as error:
            if error.error == f"{INTERFACE}.NoSuchMachine":
                return []  # a call has an answer, also where there is none to list
            raise

    return _run(address, talk, timeout)


def _run(
    address: Address,
    talk: Callable[[Client], Awaitable[T]],
    timeout: float,
    helpers: Sequence[Mapping[str, Any]] = (),
) -> T:
    async def session() -> T:
        async with await Client.connect(address.path, timeout=timeout) as client:
            return await talk(client)

    try:
        return trio.run(session)
    except Exception as error:  # noqa: BLE001 - what is not expected is raised again there
        raise explain(error, address, helpers) from None
