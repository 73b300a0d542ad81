"""Whether the programs of helpers are there, as far as this service can see."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from functools import partial
from typing import Final

from moorage.kernel.threads import in_thread
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
        OSError: no thread can be started.
    """
    visible = [
        (number, spec.exec_start[0])
        for number, spec in enumerate(specs)
        if not _HIDING & spec.properties.keys()
    ]
    # In a thread: a program may lie on a file system that does not answer.
    missing = await in_thread(partial(_missing, visible), abandon_on_cancel=True)
    if missing is not None:
        raise InvalidHelper(f"[{missing}].execStart[0]")


async def is_program(path: str) -> bool:
    """Whether a program is there, as far as we can see.

    Raises:
        OSError: no thread can be started.
    """
    # In a thread: it may lie on a file system that does not answer.
    return await in_thread(partial(_missing, [(0, path)]), abandon_on_cancel=True) is None


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
