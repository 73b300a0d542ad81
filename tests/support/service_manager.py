"""What the service manager says of its units, for tests that look again and again.

systemctl(1) is a process for each look, and has the manager read all properties of a unit for one of them: several
times the work. Each look here is a connection of its own too, because the manager sends its signals to all that stay
connected. The messages are jeepney's, of which the service uses nothing but the lines of the authentication.
"""

import os
import socket
import time
from typing import Any

from jeepney.auth import BEGIN, make_auth_external
from jeepney.low_level import (
    Endianness,
    Header,
    HeaderFields,
    Message,
    MessageType,
    Parser,
)

NAME = "org.freedesktop.systemd1"
ROOT = "/org/freedesktop/systemd1"
PROPERTIES = "org.freedesktop.DBus.Properties"

SOCKET = f"{'/run' if os.geteuid() == 0 else os.environ['XDG_RUNTIME_DIR']}/systemd/private"

ANSWER_SECONDS = 20.0
"""For an answer: also of a manager that executes itself again meanwhile."""

TURN_SECONDS = 0.005
"""Pause before the next attempt at a manager that is not there."""

READ_BYTES = 65536


class Refused(AssertionError):
    """The manager answered with an error."""


def property_of(unit: str, interface: str, name: str) -> Any:
    """Return a property of a unit as it goes over D-Bus; a unit that is not in memory is loaded, as by systemctl show.

    Args:
        unit: its name.
        interface: the last part of its name, such as Unit or Service.
        name: of the property.

    Raises:
        Refused: the manager answered with an error.
    """
    path = f"{ROOT}/unit/{_escaped(unit)}"
    ((_, value),) = _call(path, PROPERTIES, "Get", "ss", (f"{NAME}.{interface}", name))
    return value


def loaded(*patterns: str) -> list[str]:
    """Return the names of all units in memory that match one of the patterns (glob(7)), in whatever state.

    Raises:
        Refused: the manager answered with an error.
    """
    (units,) = _call(ROOT, f"{NAME}.Manager", "ListUnitsByPatterns", "asas", ([], list(patterns)))
    return [unit[0] for unit in units]


def _escaped(unit: str) -> str:
    """Escape a name for an object path, as sd_bus_path_encode(3) does."""
    return "".join(
        chr(byte)
        if (chr(byte).isalpha() and byte < 0x80) or (position and chr(byte).isdigit() and byte < 0x80)
        else f"_{byte:02x}"
        for position, byte in enumerate(unit.encode())
    )


def _call(path: str, interface: str, member: str, signature: str, body: tuple[Any, ...]) -> tuple[Any, ...]:
    fields = {
        HeaderFields.path: path,
        HeaderFields.interface: interface,
        HeaderFields.member: member,
        HeaderFields.destination: NAME,
        HeaderFields.signature: signature,
    }
    header = Header(Endianness.little, MessageType.method_call, 0, 1, 0, 1, fields)
    data = Message(header, body).serialise(1)
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            reply = _exchange(data)
            break
        except (ConnectionError, FileNotFoundError):
            if time.monotonic() > deadline:
                raise
            time.sleep(TURN_SECONDS)
    if reply.header.message_type is MessageType.error:
        raise Refused(f"{member} of {path}: {reply.header.fields[HeaderFields.error_name]} {reply.body}")
    return reply.body


def _exchange(data: bytes) -> Message:
    """Connect, send a message whose serial is 1, and return what is sent in reply."""
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(ANSWER_SECONDS)
        connected.connect(SOCKET)
        connected.sendall(b"\0" + make_auth_external() + BEGIN)
        received = b""
        while b"\r\n" not in received:
            received += _received(connected)
        connected.sendall(data)
        parser = Parser()
        received = received.partition(b"\r\n")[2]
        while True:
            for message in parser.feed(received):
                if message.header.fields.get(HeaderFields.reply_serial) == 1:
                    return message
            received = _received(connected)


def _received(connected: socket.socket) -> bytes:
    data = connected.recv(READ_BYTES)
    if not data:
        raise ConnectionResetError("the service manager hung up")
    return data
