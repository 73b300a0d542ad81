"""Whether the programs of helpers are there, as far as this service can see."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Final

import trio

from moorage.machines.errors import InvalidHelper
from moorage.machines.model import HelperSpec

_HIDING: Final = frozenset(
    {"RootDirectory", "RootImage", "RootMStack", "PrivateTmp", "PrivateTmpEx", "ProtectHome", "BindPaths",
     "BindReadOnlyPaths", "MountImages", "ExtensionImages", "ExtensionDirectories"}
)  # fmt: skip
"""With these a helper's root may have programs that are not in ours."""


async def check_programs(specs: Sequence[HelperSpec]) -> None:
    """Check that the programs of helpers are there, as far as we can see.

    Raises:
        InvalidHelper: one is not.
    """
    visible = [
        (number, spec.exec_start[0])
        for number, spec in enumerate(specs)
        if not _HIDING & spec.properties.keys()
    ]
    # In a thread: a program may lie on a file system that does not answer.
    missing = await trio.to_thread.run_sync(_missing, visible, abandon_on_cancel=True)
    if missing is not None:
        raise InvalidHelper(f"[{missing}].execStart[0]")


async def is_program(path: str) -> bool:
    """Whether a program is there, as far as we can see."""
    # In a thread: it may lie on a file system that does not answer.
    return await trio.to_thread.run_sync(_missing, [(0, path)], abandon_on_cancel=True) is None


def _missing(programs: Sequence[tuple[int, str]]) -> int | None:
    for number, path in programs:
        try:
            status = os.stat(path)
        except PermissionError:
            continue  # the manager sees more than we do
        except (OSError, ValueError):
            return number
        if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
            return number
    return None
