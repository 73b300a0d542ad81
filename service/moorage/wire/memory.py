"""Memory that a crowd has left behind, given back to the system.

The allocator of the C library keeps what is freed below the highest block in use. After a crowd of callers that is
most of what they took, for as long as the service runs.
"""

from __future__ import annotations


def give_back() -> None:
    """Return free memory to the system (malloc_trim(3)); takes some ms. Other C libraries than glibc have no need."""
    # Imported where it is needed, which for most instances is never.
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
