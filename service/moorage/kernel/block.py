"""Block devices."""

from __future__ import annotations

import os


def name_of(numbers: str) -> str | None:
    """Return the name of a block device ("sda") by its numbers ("8:0"); None if there is no such device."""
    try:
        return os.path.basename(os.readlink(f"/sys/dev/block/{numbers}"))
    except OSError:
        return None
