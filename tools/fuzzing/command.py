"""tools/fuzz: feed damaged input to moored, for a given time and from a given seed.

The targets:

  calls       the server's end of a varlink connection: damaged conversations, in pieces, with file descriptors,
              up to the parameters of each method
  replies     the client's end
  records     files in the directory of records when the service starts
  manager     damaged replies, errors and signals of the service manager, recorded from PID 1
  helpers     files of helpers, as moorctl check and the service see them
  os-release  the file of a container
  live        the service itself, in a sandbox: damaged conversations with real processes, helpers, properties and
              file descriptors; each must leave the same machines, except those named by calls that were not refused,
              and at the end nothing may be left: no unit, no file descriptor, no record
  boundary    the service itself, with several users at once, with and without rights, in login sessions; see below

Every input must lead to a reply, a typed error, or the end of the connection, within a deadline. Otherwise the input
is printed, as small as hypothesis can make it, and the exit status is 1.

The inputs are damaged files of tests/corpus. An input that does harm belongs there, where a test keeps trying it. The
same seed makes the same inputs; only their number depends on the time.

A round of the boundary consists of a few simultaneous conversations: of root, of a user with the rights of root, and
of users who may create machines, register them, or do neither. They register each other's processes, send properties
and texts that are meant to become lines of unit files, and hang up before the reply; the service manager reloads its
files meanwhile or afterwards. What may come of a round is derived by rules that share no word with the service's.
After each round nothing else may exist: no reply, no unit, no record, no directory, no line in a transient unit, no
process with another uid, in another group, or ended; no unit of others has changed, no user has opened a file of
root's or learnt what belongs to another user, and root's own Register and Stop got replies. --first=N begins with
round N of the seed.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from fuzzing import configuration, containers, helper_files, live, loop, manager, records, wire
from fuzzing.target import Target

TARGETS: Sequence[Target[Any]] = (
    wire.SERVER,
    wire.CLIENT,
    records.TARGET,
    manager.TARGET,
    helper_files.TARGET,
    configuration.TARGET,
    containers.TARGET,
)

LIVE, BOUNDARY = "live", "boundary"
MODULES = {LIVE: "fuzzing.inside", BOUNDARY: "fuzzing.boundary.inside"}
LIVE_PART = 0.5
"""Share of the time if there are other targets: these are the slowest, and the only ones with the whole service."""

SUITES = ("forky", "trixie")


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
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
    """Run tools/fuzz, and return the exit status: 1 if something was found."""
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
