"""Addresses of machines, for whoever looks their names up, or asks for them over the bus.

Anybody may ask, and as often as he likes, and each look is a process: so there is one look for all who wait, and what
it has found is kept for a moment.
"""

from __future__ import annotations

import errno
import math
import time
from typing import Final

import msgspec
import trio

from moorage.machines.detached import Detached
from moorage.machines.inside import InsideFailed, Task, do
from moorage.machines.machine import Machine
from moorage.machines.metadata import (
    NOT_SUPPORTED,
    Address,
    MetadataError,
    NoPrivateNetworking,
    NotAvailable,
    Unreadable,
    addresses_of_host,
)
from moorage.machines.model import MachineClass, Record
from moorage.pid1.fork_server import ForkServer

LOOK_SECONDS: Final = 5.0
"""For a look, s, which takes some ms: systemd-resolved goes on by itself after that."""

KEPT_SECONDS: Final = 1.0
"""For how long what was found is kept, s."""

_ADDRESSES: Final = Task("addresses", LOOK_SECONDS)


class _Look:
    """A look at a machine.

    Attributes:
        found: its addresses, or why there are none.
        done: set when that is known.
        until: for how long it counts.
    """

    def __init__(self) -> None:
        self.found: tuple[Address, ...] | MetadataError = ()
        self.done = trio.Event()
        self.until = math.inf


class Networks:
    """Tells addresses of machines."""

    def __init__(self, server: ForkServer, detached: Detached) -> None:
        self._server = server
        self._detached = detached
        self._looks: dict[str, _Look] = {}  # by the invocation and the name: a successor is another machine

    async def addresses(self, machine: Machine) -> tuple[Address, ...]:
        """Return the addresses of a machine, as ``machine_get_addresses()`` of systemd has them.

        Raises:
            MetadataError: they cannot be had.
        """
        if machine.record.class_ is MachineClass.host:
            return await _of_host()
        if machine.record.class_ is not MachineClass.container:
            raise NotAvailable("a virtual machine does not tell")
        key = f"{machine.record.invocation_id}/{machine.name}"
        look = self._looks.get(key)
        if look is None or look.until <= time.monotonic():
            self._forget()
            look = self._looks[key] = _Look()
            self._detached.start(self._look, machine.record, look)
        with trio.move_on_after(LOOK_SECONDS):
            await look.done.wait()
        if not look.done.is_set():
            raise _slow()
        if isinstance(look.found, MetadataError):
            raise look.found
        return look.found

    def _forget(self) -> None:
        now = time.monotonic()
        for key in [key for key, look in self._looks.items() if look.until <= now]:
            del self._looks[key]

    async def _look(self, record: Record, look: _Look) -> None:
        try:
            with trio.fail_after(LOOK_SECONDS):
                look.found = await _ask(self._server, record)
        except trio.TooSlowError:
            look.found = _slow()
        except MetadataError as error:
            look.found = error
        except Exception as error:  # noqa: BLE001 - whoever waits is told that it went wrong
            look.found = Unreadable(repr(error), errno.EIO)
        finally:
            look.until = time.monotonic() + KEPT_SECONDS
            look.done.set()


async def _ask(server: ForkServer, record: Record) -> tuple[Address, ...]:
    try:
        answer = await do(server, record, _ADDRESSES, {})
    except InsideFailed as error:
        raise _error(error.number) from error
    answer.close()
    try:
        found = msgspec.json.decode(answer.said, type=list[tuple[int, int, str]] | int)
    except msgspec.MsgspecError as error:
        raise Unreadable(f"the answer is malformed: {error}", errno.EBADMSG) from error
    if isinstance(found, int):
        raise _error(found)
    return tuple(Address(index, family, bytes.fromhex(address)) for index, family, address in found)


async def _of_host() -> tuple[Address, ...]:
    try:
        with trio.fail_after(LOOK_SECONDS):
            return await addresses_of_host()
    except trio.TooSlowError:
        raise _slow() from None


def _slow() -> MetadataError:
    return Unreadable(f"it took longer than {LOOK_SECONDS:.0f} s", errno.ETIMEDOUT)


def _error(number: int) -> MetadataError:
    if number == errno.ENONET:
        return NoPrivateNetworking("the container has the network of the host")
    reason = f"addresses: {number}"
    return NotAvailable(reason) if number in NOT_SUPPORTED else Unreadable(reason, number)
