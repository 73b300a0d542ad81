"""tools/chaos: moored on a real systemd while everything around it goes wrong.

In a sandbox of its own, clients register machines (with helpers, with leases, in slices, as containers), register them
again, add and remove helpers, stop and forget machines, list and describe them; leaders die. Some clients are root's,
some belong to an ordinary user, who also tries what she may not do. Many hang up before they get a reply; leases are
held across restarts, as launchers do. Meanwhile faults are injected, one after the other. Then the clients finish,
however long that takes, and these facts are checked:

  - every machine whose Register got a reply exists with the same identity, or has its verdict;
  - machines with a lease have ended only if it was dropped on purpose;
  - exactly the requested helpers run and are on record, whichever calls were cut off;
  - List, the records, the service manager's units, the control groups and the runtime directories agree about that;
  - nothing else exists: no ghost, no duplicate, nothing half-made;
  - nothing that is not moored's was stopped: scopes and services of others beside it run as they did, also those whose
    names helpers were to have;
  - ten subscribers, which go on by their cursor whenever their connection ends, were told the same story, and it is
    that of these machines: each is new once and has ended once, in this order;
  - moored has no more file descriptors and tasks than these machines need.

The seed decides who does what and which fault comes when, but not how long things take: the same seed finds the same
kind of trouble, not the same microsecond.
"""

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
SANDBOX = CHECKOUT / "tools" / "sandbox"
STATE = Path("/run/moorage-sandbox")
"""Where tools/sandbox keeps its records."""

UP_SECONDS = 1200.0
"""Includes making an image."""
DOWN_SECONDS = 60.0

RECORDS_SIZE = "1m"
"""Size of /run/moorage: one file fills it at once, and it has space for a thousand records."""


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="tools/chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120.0, metavar="N", help="how long (default: 120)")
    parser.add_argument("--seed", type=int, help="default: a random one, which is printed")
    parser.add_argument("--suite", choices=("forky", "trixie"), default="forky")
    parser.add_argument("--link", choices=("private", "bus"), default="private", help="as moored --link=")
    parser.add_argument("--only", action="append", metavar="FAULT", help="inject only these kinds")
    return parser


def leader_of(name: str) -> int:
    """Return the PID on the host of a sandbox's PID 1."""
    return json.loads((STATE / name / "record.json").read_text())["leader"]


def hold(pid: int, seconds: float) -> None:
    """Stop a process for a while."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
    finally:
        os.close(pidfd)


def converse(name: str, options: Mapping[str, object]) -> int:
    """Run the inner part, do for it what only the host can do, and return its exit status."""
    leader = leader_of(name)
    command = [SANDBOX, "exec", "--env=PYTHONPATH=/moorage/tools", name, "--"]
    inside = ["python3", "-u", "-m", "faults.inside", json.dumps(options)]
    with subprocess.Popen(
        [*command, *inside], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        for line in client.stdout:
            if line.startswith("\0"):  # a request to the host, not output
                hold(leader, float(line[1:]))
                client.stdin.write("\n")
                client.stdin.flush()
            else:
                sys.stdout.write(line)
                sys.stdout.flush()
    return client.returncode


def main() -> int:
    """Run tools/chaos. Return 1 if a violation was found."""
    parser = arguments()
    args = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("sandboxes need root")
    seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    name = f"chaos-{secrets.token_hex(3)}"
    up = [SANDBOX, "up", args.suite, "--name", name, f"--tmpfs=/run/moorage:{RECORDS_SIZE}"]
    subprocess.run(up, check=True, timeout=UP_SECONDS, stdout=sys.stderr)
    print(f"Seed {seed}, {args.seconds:g} s, {args.suite}, link {args.link}.")
    try:
        options = {"seed": seed, "seconds": args.seconds, "link": args.link, "only": args.only}
        status = converse(name, options)
    finally:
        subprocess.run([SANDBOX, "down", name], check=True, timeout=DOWN_SECONDS)
    if status:
        print(
            f"Found with: tools/chaos --seed {seed} --suite {args.suite} --link {args.link}", file=sys.stderr
        )
    return 1 if status else 0
