"""Rules for texts of io.systemd.Machine, as systemd has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

PATH_MAX: Final = 4096
"""Bytes of a path, with a NUL at its end (limits.h)."""

NAME_MAX: Final = 255
"""Bytes of each of its parts."""

ENVIRONMENT_MAX: Final = 16384
"""Variables (``ENVIRONMENT_ASSIGNMENTS_MAX`` of systemd's src/basic/env-util.h)."""

_ASSIGNMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=[^\0]*")
_NO_USER: Final = re.compile(r"-?[0-9]*|\.\.?| .*|.* |.*[:/\x00-\x1f\x7f].*", re.DOTALL)


def is_sendable(text: str) -> bool:
    """Return whether a text is one that D-Bus and the kernel take: UTF-8, without NUL."""
    return "\0" not in text and _is_unicode(text)


def is_absolute(path: str) -> bool:
    """Return whether a text is an absolute path (``path_is_valid()``)."""
    if not path.startswith("/") or not is_sendable(path):
        return False
    parts = path.encode().split(b"/")
    return len(path.encode()) < PATH_MAX and all(len(part) <= NAME_MAX for part in parts)


def is_normalized(path: str) -> bool:
    """Return whether a text is an absolute path in its plainest form (``path_is_normalized()``)."""
    if not is_absolute(path):
        return False
    parts = path.split("/")[1:]
    # One slash may end it.
    return not {".", ".."} & set(parts) and "" not in parts[:-1]


def is_user(name: str) -> bool:
    """Return whether a text may be the name of a user, by the lenient rule of ``valid_user_group_name()``."""
    return _is_unicode(name) and _NO_USER.fullmatch(name) is None


def is_environment(assignments: Sequence[str]) -> bool:
    """Return whether these are assignments of variables, "NAME=VALUE", and not too many."""
    return len(assignments) <= ENVIRONMENT_MAX and all(
        _ASSIGNMENT.fullmatch(each) and _is_unicode(each) for each in assignments
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True
