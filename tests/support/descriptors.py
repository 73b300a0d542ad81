"""The file descriptors of this process."""

import gc
import os


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
