"""tools/fuzz: what happens to damaged input, for a given time, from a given seed.

The targets:

  calls       a server's end of a varlink connection: conversations of callers, damaged, in pieces, with file
              descriptors, as far as the parameters of each method
  replies     a client's end
  records     what lies in the directory of records when the service starts
  manager     replies, errors and signals of the service manager, as PID 1 once sent them, damaged
  helpers     files of helpers: moorctl check, and what the service says to what they say
  os-release  that of a container
  live        the service itself, in a sandbox: conversations with processes that live, helpers, properties, and file
              descriptors, damaged; before and after each one it must keep the same machines, but for those that a call
              named that was not refused, and at the end nothing may be left: no unit, no file descriptor, no record

For all of them the same holds: an answer, an error that has a type, or the end of the connection, within a deadline.
What does not hold is told as the smallest input that hypothesis can make of it, and the exit status is 1.

What is damaged are the files of tests/corpus. An input that does harm is put there, where a test tries it for good.
The same seed makes the same inputs; only how many of them depends on the time.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from fuzzing import containers, helper_files, live, loop, manager, records, wire
from fuzzing.target import Target

TARGETS: Sequence[Target[Any]] = (
    wire.SERVER,
    wire.CLIENT,
    records.TARGET,
    manager.TARGET,
    helper_files.TARGET,
    containers.TARGET,
)

LIVE = "live"
LIVE_PART = 0.5
"""Of the time, where others share it: it is the slowest, and the only one with all of the service."""

SUITE = "forky"


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="tools/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, metavar="N", help="in all, default 60")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default 0")
    names = [*(target.name for target in TARGETS), LIVE]
    parser.add_argument(
        "--target", action="append", choices=names, metavar="NAME", help="default: all of them"
    )
    return parser


def main() -> int:
    """Run; return the exit status: 1 where something was found."""
    parser = arguments()
    args = parser.parse_args()
    targets = [target for target in TARGETS if args.target is None or target.name in args.target]
    seconds = {target.name: args.seconds / len(targets) for target in targets}
    if args.target is None or LIVE in args.target:
        if os.geteuid() != 0:
            parser.error("the sandbox needs root")
        part = LIVE_PART if targets else 1.0
        seconds = {name: each * (1 - part) for name, each in seconds.items()} | {LIVE: args.seconds * part}
    good = [loop.fuzz(target, seconds[target.name], args.seed) for target in targets]
    if LIVE in seconds:
        good.append(live.fuzz(SUITE, seconds[LIVE], args.seed))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
