"""A raw varlink client for all peers that costs as little as Python permits.

Requests are bytes made beforehand, replies are only looked at for their end and for `"error"`; no JSON is decoded
while the clock runs.
"""

import json
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

CALL_SECONDS = 30.0
"""Deadline for a single call: forty times the longest that any peer ever took."""

RECEIVE_BYTES = 4096
"""Bytes to read at once: a whole reply, except of `List`. Not more, as Python allocates this for each read."""
LIST_BYTES = 1 << 16
"""Bytes to read at once of a long `List`."""

WARM_UP = 0.15
"""Share of a throughput run, at its start, that is not counted."""


class Unmeasurable(Exception):
    """A quantity could not be measured, for a reason in words for the table."""


def encode(method: str, parameters: dict[str, Any] | None = None, *, more: bool = False) -> bytes:
    """Encode a call."""
    call = {"method": method, "parameters": parameters or {}} | ({"more": True} if more else {})
    return json.dumps(call, separators=(",", ":")).encode() + b"\0"


GET_INFO = encode("org.varlink.service.GetInfo")


def connect(path: str) -> socket.socket:
    """Connect, blocking, with a deadline on every send and receive that costs no system call of its own.

    Raises:
        Unmeasurable: nobody listens.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    limit = struct.pack("ll", int(CALL_SECONDS), 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise Unmeasurable(f"{path}: {error.strerror}") from None
    return sock


def exchange(fd: int, request: bytes) -> bytes:
    """Send a call and return the one reply to it, with its NUL.

    Raises:
        Unmeasurable: there is no reply, or it is an error.
    """
    try:
        os.write(fd, request)
        reply = os.read(fd, RECEIVE_BYTES)
        while reply and not reply.endswith(b"\0"):
            chunk = os.read(fd, RECEIVE_BYTES)
            reply = reply + chunk if chunk else b""
    except OSError as error:
        raise Unmeasurable(f"{named(request)}: {error.strerror}") from None
    if not reply:
        raise Unmeasurable(f"{named(request)}: the connection was closed")
    check(request, reply)
    return reply


def exchange_all(fd: int, request: bytes) -> bytes:
    """Send a call with `more` and return all replies to it, each with its NUL.

    Raises:
        Unmeasurable: as for `exchange`.
    """
    replies = bytearray()
    try:
        os.write(fd, request)
        while (
            not replies.endswith(b"\0") or b'"continues":true' in replies[replies.rfind(b"\0", 0, -1) + 1 :]
        ):
            chunk = os.read(fd, LIST_BYTES)
            if not chunk:
                raise Unmeasurable(f"{named(request)}: the connection was closed")
            replies += chunk
    except OSError as error:
        raise Unmeasurable(f"{named(request)}: {error.strerror}") from None
    check(request, replies)
    return bytes(replies)


def check(request: bytes, reply: bytes | bytearray) -> None:
    """Raise Unmeasurable if the reply is an error."""
    if b'"error":' in reply:
        raise Unmeasurable(f"{named(request)}: {reply[:300].decode(errors='replace')}")


def named(request: bytes) -> str:
    """The method of a request."""
    return str(json.loads(request[:-1])["method"])


def kept_latencies(path: str, calls: int) -> list[float]:
    """Durations of GetInfo on one connection, in µs."""
    with connect(path) as sock:
        fd = sock.fileno()
        for _ in range(max(50, calls // 10)):
            exchange(fd, GET_INFO)
        samples: list[float] = []
        for _ in range(calls):
            begin = time.perf_counter_ns()
            os.write(fd, GET_INFO)
            reply = os.read(fd, RECEIVE_BYTES)
            samples.append((time.perf_counter_ns() - begin) / 1e3)
            if not reply.endswith(b"\0"):
                raise Unmeasurable("GetInfo: half a reply")
    return samples


def fresh_latencies(path: str, calls: int) -> list[float]:
    """Durations of connect and GetInfo, until the reply, in µs."""
    samples: list[float] = []
    for number in range(calls + calls // 10):
        begin = time.perf_counter_ns()
        with connect(path) as sock:
            exchange(sock.fileno(), GET_INFO)
            duration = (time.perf_counter_ns() - begin) / 1e3
        if number >= calls // 10:
            samples.append(duration)
    return samples


def throughput(path: str, connections: int, seconds: float) -> tuple[int, float]:
    """Call GetInfo with one call open on each of so many connections; return how often, and the replies per second."""
    socks: list[socket.socket] = []
    with select.epoll() as epoll:
        try:
            for _ in range(connections):
                socks.append(connect(path))
                exchange(socks[-1].fileno(), GET_INFO)
            for sock in socks:
                epoll.register(sock.fileno(), select.EPOLLIN)
                os.write(sock.fileno(), GET_INFO)
            calls = connections * 2 + _rounds(epoll, seconds * WARM_UP)
            begin = time.perf_counter()
            replies = _rounds(epoll, seconds * (1 - WARM_UP))
            return calls + replies, replies / (time.perf_counter() - begin)
        finally:
            for sock in socks:
                sock.close()


def _rounds(epoll: select.epoll, seconds: float) -> int:
    """Answer every reply by the next call for so long. Returns the number of replies."""
    replies = 0
    read, write, now = os.read, os.write, time.perf_counter
    end = now() + seconds
    while now() < end:
        ready = epoll.poll(CALL_SECONDS, 256)
        if not ready:
            raise Unmeasurable(f"GetInfo: no reply within {CALL_SECONDS:.0f} s")
        for fd, _ in ready:
            data = read(fd, RECEIVE_BYTES)
            if data.endswith(b"\0"):
                replies += 1
                write(fd, GET_INFO)
            elif not data:
                raise Unmeasurable("GetInfo: the connection was closed")
    return replies


def quantile(samples: Sequence[float], part: float) -> float:
    """The sample below which that part of them lies (nearest rank)."""
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * part))]
