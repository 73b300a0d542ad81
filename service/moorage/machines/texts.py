"""Rules for texts of callers that are kept: free text, paths, IDs."""

from __future__ import annotations

import re

TEXT_MAX = 4096
"""Characters of a text (service, addresses, paths): PATH_MAX, since most of them are paths."""

_ID128 = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def is_text(text: str) -> bool:
    """Return whether a text is not empty, short enough, and without control characters or lone surrogates."""
    return 0 < len(text) <= TEXT_MAX and text.isprintable()


def is_path(path: str) -> bool:
    """Return whether a path is absolute and has no ".." component."""
    return is_text(path) and path.startswith("/") and ".." not in path.split("/")


def is_id128(text: str) -> bool:
    """Return whether a text is a 128-bit ID, plain or as a UUID, and not null (sd-id128(3))."""
    return bool(_ID128.fullmatch(text)) and text.strip("0-") != ""


def is_null_id128(text: str) -> bool:
    """Return whether a text is the ID of zeroes, plain or as a UUID."""
    return bool(_ID128.fullmatch(text)) and text.strip("0-") == ""
