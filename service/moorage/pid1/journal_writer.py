"""Entries for the journal, which nobody waits for (systemd's "Native Journal Protocol").

sd_journal_sendv(3), and what is built on it, waits for a journald that is stopped or slow. Here what cannot be sent at
once waits in a queue, and is sent as soon as there is room.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import trio

JOURNAL: Final = "/run/systemd/journal/socket"

QUEUE_MAX = 1024
"""Entries that wait for journald: what a host with as many machines has to say at once. Further ones are counted."""

GATHER_SECONDS = 0.02
"""For how long an entry may wait for others, s. Each wakes journald, which the kernel then prefers to us: sent before
the reply, the one about its start delayed each registration by a fifth, on two busy processors."""

GATHER_MAX = 64
"""Entries that wait for others: further ones are sent at once."""

RETRY_SECONDS = 0.1
"""Pause where there should be room and is none, s."""


def encode(fields: Mapping[str, str | Sequence[str]]) -> bytes:
    """Return an entry as it goes to the journal; a sequence is a field that is there more than once."""
    parts: list[bytes] = []
    for name, values in fields.items():
        for value in [values] if isinstance(values, str) else values:
            text = value.encode(errors="replace")
            if b"\n" in text:
                parts += [name.encode(), b"\n", struct.pack("<Q", len(text)), text, b"\n"]
            else:
                parts += [name.encode(), b"=", text, b"\n"]
    return b"".join(parts)


class JournalWriter:
    """Sends entries to the journal, if there is one.

    Args:
        path: of its socket.

    Attributes:
        lost: entries for which there was no room, and of which that has not been written yet.
    """

    def __init__(self, path: str = JOURNAL) -> None:
        self.lost = 0
        self._path = path
        self._socket: socket.socket | None = None
        self._queue: deque[bytes] = deque()
        self._late = trio.Event()
        with contextlib.suppress(OSError):  # then it is tried again with the first entry
            self._connected()

    def __len__(self) -> int:
        return len(self._queue)

    def write(self, fields: Mapping[str, str | Sequence[str]]) -> None:
        """Have an entry sent in a moment, with others. Neither waits nor raises."""
        if len(self._queue) >= QUEUE_MAX:
            self.lost += 1
            return
        self._queue.append(encode(fields))
        if len(self._queue) > GATHER_MAX:
            self._send()
        self._late.set()

    async def run(self) -> None:
        """Send what waits, for ever."""
        while True:
            await self._late.wait()
            await trio.sleep(GATHER_SECONDS)
            self._late = trio.Event()
            self._send()
            while self._queue and self._socket is not None:
                with contextlib.suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(self._socket)
                before = len(self._queue)
                self._send()
                if len(self._queue) == before:
                    await trio.sleep(RETRY_SECONDS)

    def close(self) -> None:
        """Send what can be sent at once, and nothing any more."""
        self._send()
        self._queue.clear()
        self._disconnect()

    def _send(self) -> None:
        while self._queue:
            fresh = self._socket is None
            try:
                self._connected().send(self._queue[0], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:
                self._disconnect()
                if not fresh:
                    continue  # journald may have another socket by now
                # Otherwise there is no journal, or the entry is too large for it.
            self._queue.popleft()
        if self.lost:
            lost, self.lost = self.lost, 0
            text = f"{lost} entries about machines were lost, as the journal did not take them."
            self.write({"PRIORITY": "4", "SYSLOG_IDENTIFIER": "moored", "MESSAGE": text})
            self._send()

    def _connected(self) -> socket.socket:
        if self._socket is None:
            channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                channel.connect(self._path)
            except OSError:
                channel.close()
                raise
            self._socket = channel
        return self._socket

    def _disconnect(self) -> None:
        if self._socket is not None:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._socket = None
