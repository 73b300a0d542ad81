"""What all that is done inside machines has in common. Only the standard library, as programs here have."""

import errno
import socket
from collections.abc import Sequence
from time import monotonic, sleep
from typing import Final

LEADER_FD: Final = 3
"""Where the pidfd of a container's leader is."""

ANSWER_FD: Final = 4
"""A socket (SOCK_SEQPACKET) on which the question is, and on which the answer goes."""

BUSY: Final = b"busy"
"""An answer: nothing was done, for there was no place."""

LATE: Final = b"late"
"""An answer: it took too long, and was ended."""

QUESTION_MAX: Final = 1024 * 1024
"""Bytes of a question: arguments and environment of a shell, which come in a call of 256 KiB at most for users."""

CROWDED_SECONDS: Final = 5.0
"""For how long the kernel may take no file descriptors, because too many of root's are on their way, s."""

_PAUSE_SECONDS: Final = 0.02


def receive_question(connected: socket.socket) -> bytes:
    """Receive a question, with no more memory than it needs."""
    size = connected.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
    return connected.recv(min(size, QUESTION_MAX))


def send_descriptors(connected: socket.socket, data: bytes, descriptors: Sequence[int]) -> int:
    """Send file descriptors, as soon as not too many are on their way.

    Returns:
        How many of the bytes were sent with them.

    Raises:
        OSError: ETOOMANYREFS if too many have been for CROWDED_SECONDS.
    """
    until = monotonic() + CROWDED_SECONDS
    while True:
        try:
            return socket.send_fds(connected, [data], list(descriptors))
        except OSError as exc:
            if exc.errno != errno.ETOOMANYREFS or monotonic() > until:
                raise
        sleep(_PAUSE_SECONDS)
