"""Names and records of the domain name system (RFC 1035), as far as addresses of machines need them. Pure."""

from __future__ import annotations

import base64
import re
import socket
import struct
from collections.abc import Iterator
from typing import Final

CLASS_IN: Final = 1
TYPES: Final = {1: int(socket.AF_INET), 28: int(socket.AF_INET6)}
"""Families of addresses by the types of their records, A and AAAA."""

SUCCESS: Final = 0
NXDOMAIN: Final = 3

LABEL_MAX: Final = 63
NAME_MAX: Final = 253
"""Characters of a name, of which each label has LABEL_MAX at most."""

# A character; "\." or "\\" for itself; or "\DDD" by its number. A dot ends a label. There are no control characters.
_LABEL: Final = re.compile(r"(?:[^\\.\x00-\x1f\x7f]|\\[.\\]|\\(?:[01]\d\d|2[0-4]\d|25[0-5]))+", re.ASCII)
_ESCAPE: Final = re.compile(r"\\(?:\d{3}|.)")
_RECORD: Final = struct.Struct(">HHIH")


def is_name(name: str) -> bool:
    """Return whether a text is a name; the empty one, and a dot, are the root's."""
    if name in {"", "."}:
        return True
    size, at = 0, 0
    while at < len(name):
        label = _LABEL.match(name, at)
        if label is None:
            return False
        try:
            found = len(_ESCAPE.sub("x", label[0]).encode())
        except UnicodeEncodeError:  # a lone surrogate
            return False
        at = label.end() + 1
        size += found + 1
        if found > LABEL_MAX or size > NAME_MAX + 1 or name[at - 1 : at] not in {"", "."}:
            return False
    return True


def parents(name: str) -> Iterator[str]:
    """Return the names of which a name is a part, the nearest first."""
    at = 0
    while (label := _LABEL.match(name, at)) is not None and label.end() + 1 < len(name):
        at = label.end() + 1
        yield name[at:]


def record(name: str, type_: int, address: bytes) -> str:
    """Return a record with an address as it goes over the wire, in Base64; it is to be kept by nobody (TTL 0)."""
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    return base64.b64encode(
        labels + b"\0" + _RECORD.pack(type_, CLASS_IN, 0, len(address)) + address
    ).decode("ascii")
