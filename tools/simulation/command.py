"""Runs of the core of moored with everything around it in memory: each seed is a plan, an order of tasks, and delays.

Every run that goes wrong is shrunk to the steps that matter, and printed with its seed, which replays it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from simulation.plan import draw
from simulation.run import run
from simulation.shrink import shrink

RUNS: Final = 5000
"""As many as CI does."""

CHUNK: Final = 20
"""Seeds that one process takes at a time."""

SHOWN: Final = 3
"""Runs of each kind that are shrunk and shown."""


def _found(seed: int) -> tuple[int, list[tuple[str, str]]]:
    return seed, list(run(seed, draw(seed)).violations)


def search(seeds: Iterable[int], jobs: int) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Run seeds, several at a time; yield each with what went wrong."""
    if jobs == 1:
        yield from map(_found, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(_found, seeds, CHUNK)


def replay(seed: int, *, whole: bool = False) -> list[str]:
    """Describe a run, shrunk unless the whole is wanted."""
    steps = draw(seed)
    first = next(iter(run(seed, steps).violations), None)
    if first is not None and not whole:
        steps = shrink(seed, steps, first[0])
    world = run(seed, steps, verbose=True)
    lines = [f"seed {seed}:", *(f"    {step}" for step in steps), "  what happened:"]
    lines += [f"    {note}" for note in world.notes or ()]
    lines += ["  what is wrong:", *(f"    {kind}: {sentence}" for kind, sentence in world.violations)]
    return [*lines, *world.crash.splitlines()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 1 where anything went wrong."""
    parser = argparse.ArgumentParser(prog="simulate", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"how many (default: {RUNS})")
    parser.add_argument("--first", type=int, default=0, help="seed of the first (default: 0)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one each CPU)"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--seed", type=int, help="replay one, shrunk")
    parser.add_argument("--whole", action="store_true", help="with --seed: as it was drawn")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        print("\n".join(replay(options.seed, whole=options.whole)))
        return int(bool(run(options.seed, draw(options.seed)).violations))
    began = time.monotonic()
    kinds: Counter[str] = Counter()
    runs = 0
    for seed, violations in search(range(options.first, options.first + options.runs), options.jobs):
        runs += 1
        for kind in dict.fromkeys(kind for kind, _ in violations):
            kinds[kind] += 1
        if violations and kinds[violations[0][0]] <= SHOWN:
            print("\n".join(replay(seed)), flush=True)
        if time.monotonic() - began > options.seconds:
            break
    print(f"{runs} runs in {time.monotonic() - began:.0f} s")
    for kind, count in kinds.most_common():
        print(f"{count:8} {kind}")
    return int(bool(kinds))


if __name__ == "__main__":
    sys.exit(main())
