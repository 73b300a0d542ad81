"""Bytes that were received and are not yet decoded.

They are kept as they came, and copied into a bytearray only where that has to be changed: most calls arrive whole, and
thousands of connections may have nothing in their buffers.
"""

from __future__ import annotations


def appended(buffer: bytes | bytearray, data: bytes) -> bytes | bytearray:
    """Return what was received with more behind it; the buffer must not be used any more."""
    if not buffer:
        return data
    longer = buffer if isinstance(buffer, bytearray) else bytearray(buffer)
    longer += data
    return longer


def rest_of(buffer: bytes | bytearray, begin: int) -> bytes | bytearray:
    """Return what was received from a position on; the buffer must not be used any more."""
    if begin == len(buffer):
        return b""
    rest = buffer if isinstance(buffer, bytearray) else bytearray(buffer)
    del rest[:begin]
    return rest
