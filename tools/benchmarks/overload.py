"""tools/overload: what one caller's Register takes while others behave badly, in a sandbox of its own.

  alone          nobody else
  spinning       a process that uses a processor and leaves the service alone: what any load costs on this machine
  GetInfo        one that sends a hundred calls at a time and reads what it gets
  List           the same with io.systemd.Machine.List of all machines
  garbage        one that sends 64 KiB of what is no message, and connects again
  tangle         one that sends the longest call that there may be, full of objects, and connects again
  deaf           eight connections that ask for List and never read
  slow           one that sends a byte a second
  idle           a hundred connections that do nothing
  crowd          connections of thirty-three users that do nothing, as many as each may have
  flood          120 connections that ask for io.moorage.Machine.List without end, and read
  unread         120 connections that ask for the longest reply without end, and do not read
  unfinished     120 connections that begin a call, with as many file descriptors as the kernel takes
  filling        one that fills TCP sockets as `linger` does, and leaves the service alone: what that costs by itself
  linger         one that sends TCP sockets whose close(2) waits for minutes, and connects again
  metadata       120 connections that ask for the metadata of all machines, at which nobody but root may look
  measure        120 connections that have all machines measured without end, and read
  subscribers    120 connections that subscribe to everything, and do not read
  questions      120 connections that want to kill a machine of root's, which polkit is asked about each time
  creator        one whom polkit lets create machines, and who does so and forgets them without end
  all            all of them but those that leave the service alone

All but List and deaf are other users'. Register is io.systemd.Machine.Register of real processes, one by one, until
the reply; the ratios are to `alone`. The conditions take turns in each round; values are of all rounds together.
The last column is the service's memory (PSS) after each, as a ratio to what it was after the first round of `alone`.
"""

import argparse
import contextlib
import os
import resource
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from benchmarks.command import DOWN_SECONDS, RUN_SECONDS, SANDBOX, SUITE, UP_SECONDS
from benchmarks.machines import Leaders, register_one_by_one, register_together, terminate_together
from benchmarks.offenders import OFFENDERS, TARGET, make_creator
from benchmarks.peers import MOORED, settle
from benchmarks.wire import connect, encode, exchange, quantile

CROWD = 64
"""Machines that exist all the time, so that List has something to return."""

HELPED, HELPERS_EACH = 36, 10
"""Others with helpers, and how many each has."""

REGISTRATIONS = 200
"""Calls in each condition and round."""

CONDITIONS: dict[str, Sequence[str]] = {
    "alone": (),
    **{name: (name,) for name in OFFENDERS},
    "all": tuple(name for name in OFFENDERS if name not in {"spinning", "filling"}),
}

MEMORY_SECONDS = 6.0
"""Pause between the end of the bad clients and measuring memory, which the service returns every five seconds."""

WARM_UP_SECONDS = 0.5
"""Pause between the start of the bad clients and measuring another caller."""


@contextlib.contextmanager
def misbehaving(names: Sequence[str]) -> Generator[None]:
    """Run bad clients meanwhile, each in a process of its own."""
    pids: list[int] = []
    try:
        for name in names:
            uid, act = OFFENDERS[name]
            pid = os.fork()
            if pid == 0:
                try:
                    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
                    os.setresuid(uid, uid, uid)
                    act()
                finally:
                    os._exit(1)
            pids.append(pid)
        time.sleep(WARM_UP_SECONDS if names else 0)
        yield
        for name, pid in zip(names, pids, strict=True):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                raise RuntimeError(f"{name} has ended before it was told to")
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


@contextlib.contextmanager
def others() -> Generator[None]:
    """Have machines exist meanwhile, so that calls about all of them have something to return."""
    with Leaders(CROWD) as crowd, Leaders(HELPED) as helped:
        helped.names[0] = TARGET
        register_together(MOORED.socket, crowd)
        with connect(MOORED.socket) as sock:
            for name, pid in zip(helped.names, helped.pids, strict=True):
                helpers = [
                    {"name": f"h{number}", "execStart": ["/usr/bin/sleep", "infinity"]}
                    for number in range(HELPERS_EACH)
                ]
                machine = {"name": name, "class": "vm", "leader": {"pid": pid}, "helpers": helpers}
                exchange(sock.fileno(), encode("io.moorage.Machine.Register", machine))
        yield
        terminate_together(MOORED.socket, crowd)
        terminate_together(MOORED.socket, helped)


def limit_events() -> None:
    """Have the service keep few events: what it keeps of them by default grows for an hour of this, as it should."""
    dropin = Path("/etc/moorage/moored.conf.d/overload.conf")
    dropin.parent.mkdir(parents=True, exist_ok=True)
    dropin.write_text("eventsMax = 64\nverdictsMax = 64\n")


def measure(rounds: int, names: Sequence[str]) -> None:
    """Measure inside the sandbox, and print the table."""
    make_creator()
    limit_events()
    MOORED.start()
    waits: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, float] = {}
    first: dict[str, float] = {}
    with others():
        for number in range(rounds):
            turn = number % len(names)
            for name in [*names[turn:], *names[:turn]]:
                settle()
                with Leaders(REGISTRATIONS) as leaders:
                    with misbehaving(CONDITIONS[name]):
                        waits[name] += register_one_by_one(MOORED.socket, leaders).replies
                    terminate_together(MOORED.socket, leaders)
                time.sleep(MEMORY_SECONDS)
                memory[name] = MOORED.memory()["Pss"]
                first.setdefault("Pss", memory[name])
    print(
        f"{'Register while':16}{'p50 (ms)':>10}{'p99 (ms)':>10}{'longest':>10}{'p50 ratio':>11}{'p99 ratio':>11}"
        f"{'memory':>8}"
    )
    alone = waits["alone"]
    for name, found in waits.items():
        p50, p99 = quantile(found, 0.5), quantile(found, 0.99)
        ratios = (p50 / quantile(alone, 0.5), p99 / quantile(alone, 0.99))
        print(
            f"{name:16}{p50:10.1f}{p99:10.1f}{max(found):10.1f}{ratios[0]:11.2f}{ratios[1]:11.2f}"
            f"{memory[name] / first['Pss']:8.2f}"
        )


def main() -> int:
    """Boot a sandbox and measure in it; in a sandbox, measure. Return the exit status."""
    parser = argparse.ArgumentParser(
        prog="tools/overload", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(CONDITIONS),
        default=list(CONDITIONS),
        help="only these, beside `alone`",
    )
    args = parser.parse_args()
    if "MOORAGE_SANDBOX" in os.environ:
        measure(args.rounds, list(dict.fromkeys(("alone", *args.only))))
        return 0
    if os.geteuid() != 0:
        parser.error("sandboxes need root")
    name = f"overload-{secrets.token_hex(2)}"
    subprocess.run([SANDBOX, "up", SUITE, "--name", name], check=True, timeout=UP_SECONDS, stdout=sys.stderr)
    try:
        command = [SANDBOX, "exec", name, "--", "/moorage/tools/overload", *sys.argv[1:]]
        return subprocess.run(command, check=False, timeout=RUN_SECONDS).returncode
    finally:
        subprocess.run([SANDBOX, "down", name], check=True, timeout=DOWN_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
