"""tools/chaos: moored against a real systemd while everything around it goes wrong.

In a sandbox of its own, clients register machines (with helpers, leases, in slices, as containers), register them
again, add helpers and remove them, stop and forget machines, list and describe them; leaders die. Some are root's,
some an ordinary user's, who also tries what she may not. Many hang up before they have an answer; leases are held as
launchers do it, over restarts. Meanwhile, one step after the other, a fault is injected. Then the clients finish,
whatever that takes, and it is looked whether

  - every machine whose Register was answered is there with the same identity, or has its verdict;
  - those with a lease have ended only where it was dropped on purpose;
  - every helper that was asked for runs and is on record, and no other does, whoever was cut off meanwhile;
  - List, the records, the service manager's units, the control groups and the runtime directories agree about that;
  - nothing else is there: no ghost, no second one, nothing half-made;
  - nothing that is not moored's was stopped: scopes and services of others beside it run as they did, also those whose
    names helpers were to have;
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
"""Where tools/sandbox keeps what it knows of each."""

UP_SECONDS = 1200.0
"""With an image that has to be made first."""
DOWN_SECONDS = 60.0

RECORDS_SIZE = "1m"
"""Of what moored may write to /run/moorage: a file fills it at once, and a thousand records fit."""


def arguments() -> argparse.ArgumentParser:
    """The command line."""
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
    """PID of a sandbox's PID 1, in the host's numbers."""
    return json.loads((STATE / name / "record.json").read_text())["leader"]


def hold(pid: int, seconds: float) -> None:
    """Have a process do nothing for a while."""
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
    """Run what runs inside, and do for it what only the host can do. Returns its exit status."""
    leader = leader_of(name)
    command = [SANDBOX, "exec", "--env=PYTHONPATH=/moorage/tools", name, "--"]
    inside = ["python3", "-u", "-m", "faults.inside", json.dumps(options)]
    with subprocess.Popen(
        [*command, *inside], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        for line in client.stdout:
            if line.startswith("\0"):  # a request, not for people
                hold(leader, float(line[1:]))
                client.stdin.write("\n")
                client.stdin.flush()
            else:
                sys.stdout.write(line)
                sys.stdout.flush()
    return client.returncode


def main() -> int:
    """Do it. Returns 1 where something was found."""
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
