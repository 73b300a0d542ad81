"""How long the service manager takes, summed up. Pure."""

from __future__ import annotations

from collections import defaultdict

import msgspec


class Sum(msgspec.Struct):
    """What was waited for.

    Attributes:
        count: how often.
        seconds: in all.
    """

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.count += 1
        self.seconds += seconds


class Latency:
    """How long the manager takes, by the D-Bus methods that are called: a dozen, whose names are in the code.

    Attributes:
        replies: from a call to its reply.
        jobs: from a call that is answered with a job to the end of that job.
    """

    def __init__(self) -> None:
        self.replies: defaultdict[str, Sum] = defaultdict(Sum)
        self.jobs: defaultdict[str, Sum] = defaultdict(Sum)
