"""The dialogue at the beginning of a D-Bus connection; jeepney has its lines.

Specification: https://dbus.freedesktop.org/doc/dbus-specification.html#auth-protocol
"""

import socket
from typing import Final

import trio
from jeepney.auth import BEGIN, NEGOTIATE_UNIX_FD, make_auth_external

from moorage.dbus.message import Violation

AUTH_LINE_MAX: Final = 8192
"""Bytes of one line of the authentication dialogue; those of the specification have fewer than 100."""


async def authenticate(sock: socket.socket) -> None:
    """Authenticate as the effective user, and negotiate the passing of file descriptors.

    All lines are sent together, as sd-bus does, and no message before they are answered: a server made of sd-bus,
    as PID 1 is, does not look at a message that it has read together with BEGIN until it has read something else
    (bus_socket_read_auth(); seen with systemd 257 and 262).
    """
    lines = b"\0" + make_auth_external() + NEGOTIATE_UNIX_FD + BEGIN
    while lines:
        try:
            lines = lines[sock.send(lines, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
    received = b""
    for expected in (b"OK ", b"AGREE_UNIX_FD"):
        while b"\r\n" not in received:
            if len(received) > AUTH_LINE_MAX:
                raise Violation("a line of the authentication is too long")
            await trio.lowlevel.wait_readable(sock)
            try:
                data = sock.recv(AUTH_LINE_MAX)
            except BlockingIOError:
                continue
            if not data:
                raise Violation("closed by the peer during authentication")
            received += data
        line, _, received = received.partition(b"\r\n")
        if not line.startswith(expected):
            raise Violation(f"authentication failed: {line!r}")
    if received:
        raise Violation("sent more than the answers to the authentication")
