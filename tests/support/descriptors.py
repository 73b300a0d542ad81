"""What this process has: its file descriptors and its children."""

import gc
import os
from pathlib import Path


def open_descriptors(*, collect: bool = True) -> list[int]:
    """Return the descriptors that are open.

    Args:
        collect: close those first that are garbage of an earlier test, so that no collection does it in between. Takes
            tens of ms; who looks thousands of times disables the collector instead.
    """
    if collect:
        gc.collect()
    directory = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return sorted({int(name) for name in os.listdir(directory)} - {directory})
    finally:
        os.close(directory)


def children() -> set[int]:
    """Return the PIDs of the children of this process, those that have ended and were not waited for among them.

    Other tests in the same process may have some of their own: a fake service for all tests of a module.
    """
    return {
        int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()
    }
