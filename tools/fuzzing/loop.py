"""Tries inputs for a given time."""

import collections
import contextlib
import logging
import signal
import time
import traceback
import types
from collections.abc import Generator
from typing import Any, NoReturn

import hypothesis
from hypothesis import HealthCheck, Phase

from fuzzing.target import Target

BATCH = 100
"""Inputs between two checks of the clock."""

INPUT_SECONDS = 30.0
"""Deadline for one input: most take milliseconds, the slowest a second, and on a loaded host ten times as long."""


@contextlib.contextmanager
def deadline(seconds: float) -> Generator[None]:
    """Raise AssertionError if the block takes longer."""

    def expired(number: int, frame: types.FrameType | None) -> NoReturn:
        del number, frame
        raise AssertionError(f"no end after {seconds:.0f} s")

    signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class Heard(logging.Handler):
    """Collects what was logged while an input was tried."""

    def __init__(self) -> None:
        super().__init__()
        self._bugs: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep records with a traceback, which mean a bug, whatever the caller was told."""
        if record.exc_info is not None:
            self._bugs.append(logging.Formatter().format(record))

    def complain(self) -> None:
        """Raise AssertionError if there was a traceback."""
        bugs, self._bugs = self._bugs, []
        assert not bugs, "\n".join(bugs)


def fuzz(target: Target[Any], seconds: float, seed: int, *, input_seconds: float = INPUT_SECONDS) -> bool:
    """Try inputs for some time, and print how many had which outcome.

    Args:
        target: what is tried.
        seconds: for how long.
        seed: of the inputs.
        input_seconds: for one input.

    Returns:
        Whether nothing was found; what was is printed as well.
    """
    heard = Heard()
    logging.basicConfig(handlers=[heard], force=True)
    outcomes: collections.Counter[str] = collections.Counter()
    batch = 0
    good = True
    end = time.monotonic() + seconds
    while good and time.monotonic() < end:

        @hypothesis.seed(f"{seed} {target.name} {batch}")
        @hypothesis.settings(
            max_examples=BATCH,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=(
                HealthCheck.too_slow,
                HealthCheck.data_too_large,
                HealthCheck.large_base_example,
            ),
        )
        @hypothesis.given(target.inputs)
        def one(given: Any) -> None:
            with deadline(input_seconds):
                outcomes[target.examine(given)] += 1
            heard.complain()

        try:
            one()
        except Exception:  # noqa: BLE001 - whatever an input has done is what we are here for
            good = False
            print(f"{target.name}, seed {seed}, batch {batch}:")
            print(traceback.format_exc())
        batch += 1
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(f"{target.name}: {outcomes.total()} inputs: {told}", flush=True)
    return good
