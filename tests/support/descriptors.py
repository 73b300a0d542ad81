"""The file descriptors of this process."""

import gc
import os


def open_descriptors() -> list[int]:
    """Return the descriptors that are open, without those that are garbage of an earlier test."""
    gc.collect()
    directory = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return sorted({int(name) for name in os.listdir(directory)} - {directory})
    finally:
        os.close(directory)
