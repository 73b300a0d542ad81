"""Calls to the service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final, Literal, TypeVar

import msgspec
import trio

from moorage.cli.address import Address
from moorage.cli.failures import Exit, Failure, explain
from moorage.cli.properties.assignments import Signatures
from moorage.cli.replies import PropertiesReply
from moorage.wire.client import CALL_SECONDS, Client
from moorage.wire.errors import VarlinkError

INTERFACE: Final = "io.moorage.Machine"

Reply = msgspec.Raw
"""The parameters of a reply, as received."""

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
        fds: file descriptors to send along.
        timeout: seconds to wait for the reply.
        helpers: those among the parameters, so that an error can name one.

    Raises:
        Failure: the call failed.
    """
    given = {name: value for name, value in parameters.items() if value is not None}

    async def talk(client: Client) -> Reply:
        return await client.call(f"{INTERFACE}.{method}", given, reply_type=Reply, fds=fds, timeout=timeout)

    return _run(address, talk, timeout, helpers)


def list_machines(address: Address, *, timeout: float = CALL_SECONDS) -> list[Reply]:
    """Call List of io.moorage.Machine, and return a reply for each machine.

    Args:
        address: where the service listens.
        timeout: seconds to wait for each reply.

    Raises:
        Failure: the call failed.
    """

    async def talk(client: Client) -> list[Reply]:
        try:
            async with client.call_more(f"{INTERFACE}.List", reply_type=Reply, timeout=timeout) as replies:
                return [reply async for reply in replies]
        except VarlinkError as error:
            if error.error == f"{INTERFACE}.NoSuchMachine":
                return []  # varlink has no empty stream of replies
            raise

    return _run(address, talk, timeout)


class Information(msgspec.Struct):
    """What GetInfo of org.varlink.service says of a service."""

    product: str
    version: str
    interfaces: list[str]


def information(address: Address, *, timeout: float) -> Information:
    """Ask the service what it is.

    Args:
        address: where the service listens.
        timeout: seconds until the reply must be there.

    Raises:
        Failure: it could not be asked.
    """

    async def talk(client: Client) -> Information:
        return await client.call("org.varlink.service.GetInfo", reply_type=Information, timeout=timeout)

    return _run(address, talk, timeout)


@cache
def signatures(address: Address, unit_type: Literal["scope", "service", "slice"]) -> Signatures:
    """Return the properties that the service manager has for a type of unit. The service is called once for each.

    Raises:
        Failure: the call failed.
    """
    reply = call(address, "DescribeProperties", {"type": unit_type})
    try:
        return msgspec.json.decode(reply, type=PropertiesReply).properties
    except msgspec.DecodeError as error:
        raise Failure(Exit.NO_SERVICE, f"The reply of the service makes no sense: {error}") from None


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
    except Exception as error:  # noqa: BLE001 - explain() raises again what it does not expect
        raise explain(error, address, helpers) from None
