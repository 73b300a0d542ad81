"""What can go wrong with a payload."""

from __future__ import annotations

import signal


class BadCommand(ValueError):
    """An argument of :func:`hold` or :meth:`Payload.run` is wrong. Nothing was done; a payload still waits.

    Attributes:
        field: name of the argument.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


class StartFailed(OSError):
    """The payload could not become the program, and has ended.

    The error of the system call that failed, with its errno and, in `filename`, the path if there is one.

    Attributes:
        field: name of the argument of :func:`hold` or :meth:`Payload.run` that the call was about.
    """

    field: str = ""


class HolderGone(Exception):
    """The payload ended before it became the program.

    Attributes:
        status: as from :meth:`Payload.wait`; -SIGALRM if it had waited too long.
    """

    def __init__(self, status: int) -> None:
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        waited = " (it had waited too long)" if status == -signal.SIGALRM else ""
        super().__init__(f"the payload ended {how} before it was started{waited}")
        self.status = status


class TooSlow(Exception):
    """A step of the payload took too long: the payload has been killed, or (of a wait) has not ended yet."""
