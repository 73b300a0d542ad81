"""tools/bench: moored and its peers side by side in one sandbox in one run.

What is measured, and against whom:

  wire      org.varlink.service.GetInfo from a raw client: latency on one kept connection, and with a connection for
            each call (from connect to reply); replies per second with one call open on each of 1, 8, 64 and 120
            connections, and what one call costs the server with one of them (cpu.stat). moored, systemd-machined,
            and servers of the libraries asyncvarlink and varlink.
  register  io.systemd.Machine.Register of real processes (sleep) with allocateUnit, the same bytes to moored and to
            machined: one by one on one connection, and from 16 connections with one call open on each; until the
            reply, and until /proc/PID/cgroup shows the scope, which for one by one a process of its own looks at. A
            reply is true once the scope holds the process. CPU is what the control groups of PID 1, the broker
            and the service have used (cpu.stat) until PID 1 is at rest again. Another caller is a process of its
            own that calls GetInfo every 2 ms. Stop is io.systemd.Machine.Terminate from 16 connections, until
            the control groups are gone. Deaths: SIGKILL to all, until List has none of them, asked every 5 ms.
  helpers   io.moorage.Machine.Register of a real process with helpers (sleep) as moored sandboxes them, until the
            reply, against the same units started by others, until they are active: one StartTransientUnit with what
            moored itself would send, by busctl (its own start included, its arguments made before) and by a client
            that has its link and the message ready; and systemd-run for the scope, the directory and each helper, one
            after the other. SIGKILL to the leader until the control group of the last helper is gone, with moored
            running, and without it for the units that the plain client started.
  running   1,000 machines of moored: SetProperties of three limits, and Freeze with Thaw, against the bare calls of
            the service manager by busctl (its start included); Measure, until the last reply, and systemd-cgtop
            --iterations=1 --raw --batch from its start to its end, CPU of the service against that of cgtop; moorctl
            top and systemd-cgtop on a terminal, with a refresh a second.
  events    SIGKILL of a leader, one after the other and 400 at once, until a subscriber of moored has its "exited",
            and until a client on the bus has machined's MachineRemoved. The same with 100 subscribers, and what they
            cost the service more than one does; another caller meanwhile. Register and Stop one by one, with 10
            subscribers that read and without, in turns.
  inside    Open, OpenRootDirectory, BindMount, CopyTo, MapFrom and MapTo of io.systemd.Machine, the same calls to
            moored and to machined, which both have the same container: one that systemd-nspawn has booted. A shell is
            there with its first output, the others with the reply. Then, with moored in machined's place and with
            machined, by turns: GetUserRecord of io.systemd.UserDatabase, by number and by name, and ResolveRecord of
            io.systemd.Resolve.Hook, on a connection that is kept and, as nss-systemd does, on one for each; one after
            the other, and after a pause, when nothing is remembered.
  capacity  machines until a call is refused, file descriptors of the main process and its memory (smaps_rollup; of
            its PSS the client, the same Python, bears a share, RSS counts all). machined is counted with the limit
            of open files of its own unit; everywhere else it gets as many as moored.
  cold      the service stopped and its socket listening: from connect to the reply to GetInfo. Beside it a service
            that PID 1 starts in the same way (by its socket, without sandboxing), which does nothing but import
            moored's dependencies with the same Python and answer; and the same imports forked by the client.

The peers take turns within each round, and only one of those that listen to PID 1 runs at a time: moored does not
register its machines with machined as well, nor adopt those (``publish``, ``adopt``). Values are medians
over the rounds, each throughput a mean of short slices within its round; capacity, being counted and not timed, is
measured once. Client and services are placed by the kernel, as they are in life, not pinned. Absolute figures say
little on a shared machine; the ratios of one run do.
"""

import argparse
import collections
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import metrics, rows

CHECKOUT = Path(__file__).resolve().parent.parent.parent
SANDBOX = CHECKOUT / "tools" / "sandbox"
SUITE = "forky"
"""Suite of the machined that moored is compared with."""

UP_SECONDS = 1200.0
"""Includes making an image."""
DOWN_SECONDS = 60.0
RUN_SECONDS = 3600.0
"""Ten times the duration of all groups on two idle cores."""


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="tools/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help='print {"rows": [...]} instead of a table')
    parser.add_argument("--quick", action="store_true", help="fewer processes and shorter runs")
    parser.add_argument(
        "--only", action="append", choices=rows.GROUPS, metavar="GROUP", help=f"of {', '.join(rows.GROUPS)}"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    return parser


def options_from(args: argparse.Namespace) -> rows.Options:
    """Return the options for the inner part."""
    groups = [group for group in rows.GROUPS if args.only is None or group in args.only]
    if args.quick:
        return rows.Options(groups, args.rounds, rows.QUICK_COUNTS, 0.6, 1000, 2, 2)
    return rows.Options(groups, args.rounds, rows.COUNTS, 1.8, 3000, 4, 4)


def measure(options: rows.Options) -> list[dict[str, Any]]:
    """Run the client in a sandbox of its own, and return its output.

    Raises:
        subprocess.CalledProcessError: the sandbox, or the client in it, failed; it has said why on stderr.
        subprocess.TimeoutExpired: it took too long.
    """
    name = f"bench-{secrets.token_hex(2)}"
    packages = ["--packages", metrics.PACKAGES] if "metrics" in options.groups else []
    up = [SANDBOX, "up", SUITE, "--name", name, *packages]
    subprocess.run(up, check=True, timeout=UP_SECONDS, stdout=sys.stderr)
    try:
        command = [SANDBOX, "exec", "--env=PYTHONPATH=/moorage/tools", name, "--"]
        client = ["python3", "-m", "benchmarks.inside", json.dumps(asdict(options))]
        done = subprocess.run([*command, *client], check=True, timeout=RUN_SECONDS, stdout=subprocess.PIPE)
    finally:
        subprocess.run([SANDBOX, "down", name], check=True, timeout=DOWN_SECONDS)
    return [json.loads(line) for line in done.stdout.splitlines()]


def rows_of(options: rows.Options, lines: Sequence[dict[str, Any]]) -> list[rows.Row]:
    """Make the rows of the table from the output of the client."""
    samples: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    failures: dict[tuple[str, str], str] = {}
    for line in lines:
        if "error" in line:
            failures.setdefault((line["group"], line["peer"]), line["error"])
        else:
            samples[line["key"], line["peer"]].append(line["value"])
    wanted = [row for row in rows.quantities(options.counts) if row.group in options.groups]
    return rows.compare(wanted, samples, failures)


def main() -> int:
    """Measure, print, and return the exit status: 1 if something could not be measured."""
    parser = arguments()
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds: at least 1")
    if os.geteuid() != 0:
        parser.error("sandboxes need root")
    options = options_from(args)
    found = rows_of(options, measure(options))
    if args.json:
        print(json.dumps({"rows": [row.as_json() for row in found]}, indent=1, ensure_ascii=False))
    else:
        print(rows.table(found))
        judged = [row.met for row in found if row.met is not None]
        print(f"{sum(judged)} of {len(judged)} targets met")
    if any(row.why for row in found):
        return 1
    return 1 if args.check and any(row.met is False for row in found) else 0
