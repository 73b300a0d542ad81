"""Paths of objects, as systemd-machined has them.

Pure: no I/O.
"""

from __future__ import annotations

import re
from typing import Final

from moorage.names import NAME_MAX

ROOT: Final = "/org/freedesktop/machine1"
MACHINES: Final = f"{ROOT}/machine"
IMAGES: Final = f"{ROOT}/image"
SELF: Final = f"{MACHINES}/self"
"""The machine that the caller is in."""

_PLAIN: Final = re.compile(rb"[A-Za-z][A-Za-z0-9]*")
_ESCAPED: Final = re.compile(rb"_([0-9a-fA-F]{2})")


def path_of(name: str) -> str:
    """Return the path of a machine (``bus_label_escape()``)."""
    label = name.encode()
    if not label:
        return f"{MACHINES}/_"
    if not _PLAIN.fullmatch(label):
        label = b"".join(
            bytes([byte]) if bytes([byte]).isalpha() or (at and bytes([byte]).isdigit()) else b"_%02x" % byte
            for at, byte in enumerate(label)
        )
    return f"{MACHINES}/{label.decode()}"


def name_of(path: str) -> str | None:
    """Return the name of the machine that has a path; None if no machine has it."""
    if not path.startswith(f"{MACHINES}/"):
        return None
    label = path[len(MACHINES) + 1 :]
    # A character becomes three by escaping.
    if "/" in label or len(label) > 3 * NAME_MAX:
        return None
    try:
        return _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), label.encode()).decode()
    except UnicodeDecodeError:
        return None
