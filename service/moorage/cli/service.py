"""Calls to the service."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import cache
from typing import Any, Literal, TypeVar

import msgspec

from moorage.cli import authentication
from moorage.cli.address import Address
from moorage.cli.connecting import connect
from moorage.cli.failures import Exit, Failure, explain
from moorage.cli.properties.assignments import Signatures
from moorage.client.dialogue import Dialogue, every_reply
from moorage.client.methods import INTERFACE, PropertyTypes
from moorage.steps.blocking import take
from moorage.steps.waits import Steps
from moorage.wire.patience import CALL_SECONDS

Reply = msgspec.Raw
"""The parameters of a reply, as received."""

T = TypeVar("T")


def call(
    address: Address,
    method: str,
    parameters: dict[str, Any],
    *,
    fds: Sequence[int] = (),
    received: list[int] | None = None,
    timeout: float = CALL_SECONDS,
) -> Reply:
    """Call a method of io.moorage.Machine, or of io.systemd.Machine.

    Args:
        address: where the service listens.
        method: without the interface; of io.systemd.Machine with it.
        parameters: those that are None are not sent.
        fds: file descriptors to send along.
        received: gets those that come with the reply.
        timeout: seconds to wait for the reply.

    Raises:
        Failure: the call failed.
    """
    given = {name: value for name, value in parameters.items() if value is not None}

    def talk(dialogue: Dialogue) -> Steps[Reply]:
        return authentication.call(
            dialogue, address, method, given, Reply, fds=fds, received=received, seconds=timeout
        )

    return _run(address, talk, timeout, given)


def list_machines(address: Address, *, timeout: float = CALL_SECONDS) -> list[Reply]:
    """Call List of io.moorage.Machine, and return a reply for each machine.

    Args:
        address: where the service listens.
        timeout: seconds to wait for each reply.

    Raises:
        Failure: the call failed.
    """

    def talk(dialogue: Dialogue) -> Steps[list[Reply]]:
        return every_reply(dialogue, f"{INTERFACE}.List", Reply, timeout)

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

    def talk(dialogue: Dialogue) -> Steps[Information]:
        return dialogue.call("org.varlink.service.GetInfo", {}, Information, seconds=timeout)

    return _run(address, talk, timeout)


@cache
def signatures(address: Address, unit_type: Literal["scope", "service", "slice"]) -> Signatures:
    """Return the properties that the service manager has for a type of unit. The service is called once for each.

    Raises:
        Failure: the call failed.
    """
    reply = call(address, "DescribeProperties", {"type": unit_type})
    try:
        return msgspec.json.decode(reply, type=PropertyTypes).properties
    except msgspec.DecodeError as error:
        raise Failure(Exit.NO_SERVICE, f"The reply of the service makes no sense: {error}") from None


def _run(
    address: Address,
    talk: Callable[[Dialogue], Steps[T]],
    timeout: float,
    given: Mapping[str, Any] | None = None,
) -> T:
    try:
        dialogue = take(connect(address, timeout))
        with closing(dialogue):
            return take(talk(dialogue))
    except Exception as error:  # noqa: BLE001 - explain() raises again what it does not expect
        raise explain(error, address, given) from None
