"""Deadlines of calls, and what becomes of the errors of a connection."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import trio

from moorage.dbus.bus import BadCall, BadReply, BusClosed, CallFailed, CallTimeout
from moorage.pid1.blame import Sent
from moorage.pid1.errors import ManagerRefused, ManagerTimeout, ManagerUnavailable
from moorage.pid1.over_dbus.translate import translated


@contextmanager
def errors(operation: str, deadline: float, unit: str, sent: Sequence[Sent] = ()) -> Generator[None]:
    """Hold the deadline, and turn the errors of a connection into those of a manager."""
    try:
        with trio.move_on_at(deadline) as waiting:
            yield
        if waiting.cancelled_caught:
            raise ManagerTimeout(operation)
    except CallTimeout:
        raise ManagerTimeout(operation) from None
    except CallFailed as exc:
        raise translated(exc, unit, sent) from exc
    except BusClosed as exc:
        raise ManagerUnavailable(exc.reason) from exc
    except (BadCall, BadReply) as exc:
        raise ManagerRefused(str(exc), type(exc).__name__) from exc
