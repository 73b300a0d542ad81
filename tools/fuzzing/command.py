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
  boundary    the service itself again: several users at once, with and without rights, in login sessions; see below

For all of them the same holds: an answer, an error that has a type, or the end of the connection, within a deadline.
What does not hold is told as the smallest input that hypothesis can make of it, and the exit status is 1.

What is damaged are the files of tests/corpus. An input that does harm is put there, where a test tries it for good.
The same seed makes the same inputs; only how many of them depends on the time.

A round of the boundary is a few conversations at the same time: of root, of one who has the rights of root, and of
users who may create machines, register them, or do neither. They register each other's processes, bring properties
and texts along that are to become lines of unit files, hang up before the answer; the service manager reads its files
again meanwhile or afterwards. What may come of a round is said by rules that share no word with the service's. After
each round nothing else may be there: no answer, no unit, no record, no directory, no line in a transient unit, no
process with another uid, in another group, or ended; no unit of others has changed, nobody has opened a file of
root's or was told what is another user's, and root's own Register and Stop were answered. --first=N begins with round
N of the seed.
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

LIVE, BOUNDARY = "live", "boundary"
MODULES = {LIVE: "fuzzing.inside", BOUNDARY: "fuzzing.boundary.inside"}
LIVE_PART = 0.5
"""Of the time, where others share it: these are the slowest, and the only ones with all of the service."""

SUITES = ("forky", "trixie")


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="tools/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, metavar="N", help="in all, default 60")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default 0")
    names = [*(target.name for target in TARGETS), *MODULES]
    parser.add_argument(
        "--target", action="append", choices=names, metavar="NAME", help="default: all of them"
    )
    parser.add_argument("--suite", choices=SUITES, default=SUITES[0], help="of the sandbox, default forky")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="round of the boundary, default 1")
    return parser


def main() -> int:
    """Run; return the exit status: 1 where something was found."""
    parser = arguments()
    args = parser.parse_args()
    chosen = [target for target in TARGETS if args.target is None or target.name in args.target]
    live_ones = [name for name in MODULES if args.target is None or name in args.target]
    if live_ones and os.geteuid() != 0:
        parser.error("the sandbox needs root")
    part = 0.0 if not live_ones else LIVE_PART if chosen else 1.0
    seconds = args.seconds * (1 - part) / max(len(chosen), 1)
    good = [loop.fuzz(target, seconds, args.seed) for target in chosen]
    for name in live_ones:
        options = (args.seed, args.first) if name == BOUNDARY else (args.seed,)
        good.append(live.fuzz(args.suite, MODULES[name], args.seconds * part / len(live_ones), *options))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
