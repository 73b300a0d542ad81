"""Return of free memory to the system.

The allocator of the C library keeps memory that is freed below the highest block in use. After a crowd of callers that
is most of the memory they needed, for as long as the service runs.
"""

from __future__ import annotations


def give_back() -> None:
    """Return free memory to the system (malloc_trim(3)); takes some ms. Does nothing without glibc."""
    # Imported here because most instances never need it.
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
