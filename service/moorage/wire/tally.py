"""What was called of a service, and what it replied, counted. Pure."""

from __future__ import annotations

from collections import Counter


class Tally:
    """Counts the calls of one service. What is counted has names of the service's own, however it is called.

    Attributes:
        calls: by the full name of the method.
        errors: by the full name of the error, those of calls of what the service does not have included.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
