"""What several hosts say, at the same time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Final, Generic, TypeVar

import click

from moorage.cli.address import Address
from moorage.cli.failures import Failure

AHEAD_MAX: Final = 1000
"""Replies that are read before they are shown: whoever reads slowly makes the services wait."""

T = TypeVar("T")


class Hosts(Generic[T]):
    """Asks hosts, each in a thread of its own.

    Args:
        addresses: of the services.
        ask: calls one of them, and returns what it says, bit by bit.

    Attributes:
        status: exit status of the first host that did not answer; 0 if all did.
    """

    def __init__(self, addresses: Sequence[Address], ask: Callable[[Address], Iterable[T]]) -> None:
        self.status = 0
        self._addresses = addresses
        self._ask = ask
        self._said: queue.Queue[tuple[str, T | Exception | None]] = queue.Queue(AHEAD_MAX)

    def replies(self) -> Generator[tuple[str, T]]:
        """Return what they say as it comes, each with the name of the host; why one does not answer goes to stderr."""
        for address in self._addresses:
            # A thread that waits must not keep the process alive after Ctrl-C.
            threading.Thread(target=self._listen, args=(address,), daemon=True).start()
        left = len(self._addresses)
        while left:
            host, said = self._said.get()
            if said is None:
                left -= 1
            elif isinstance(said, Failure):
                self.status = self.status or said.status
                click.echo(f"{host}: {said}", err=True)
            elif isinstance(said, Exception):
                raise said
            else:
                yield host, said

    def _listen(self, address: Address) -> None:
        host = address.host or ""
        try:
            for said in self._ask(address):
                self._said.put((host, said))
        except Exception as error:  # noqa: BLE001  # raised where the replies are read
            self._said.put((host, error))
        finally:
            self._said.put((host, None))
