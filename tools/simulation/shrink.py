"""Fewer steps that go wrong in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from simulation.plan import Step
from simulation.run import run

RUNS_MAX: Final = 300
"""Runs that one plan may take to be shrunk, some seconds."""


def shrink(seed: int, steps: Sequence[Step], kind: str) -> list[Step]:
    """Leave out steps, and what there is to a step, for as long as what goes wrong is of the same kind."""
    kept = list(steps)
    runs = 0

    def fails(tried: Sequence[Step]) -> bool:
        nonlocal runs
        runs += 1
        return runs <= RUNS_MAX and any(found == kind for found, _ in run(seed, tried).violations)

    size = max(1, len(kept) // 2)
    while size:
        position = 0
        while position < len(kept):
            fewer = kept[:position] + kept[position + size :]
            if fewer and fails(fewer):
                kept = fewer
            else:
                position += size
        size //= 2
    for position, step in enumerate(list(kept)):
        for name in step.values:
            plainer = Step(step.at, step.kind, step.name, {
                key: value for key, value in kept[position].values.items() if key != name
            })  # fmt: skip
            if name in OPTIONAL and fails([*kept[:position], plainer, *kept[position + 1 :]]):
                kept[position] = plainer
    return kept


OPTIONAL: Final = frozenset(
    {"hang_up", "helpers", "exec_stop", "lease", "dies", "deaf", "again", "uid", "unread", "reaped"}
)
"""Values without which a step is a step."""
