"""Implementations to measure, started and stopped as services of the sandbox's own PID 1."""

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.wire import GET_INFO, Unmeasurable, connect, exchange

COMMAND_SECONDS = 120.0
"""Deadline for one systemctl command; stopping a service with thousands of machines takes a few seconds."""

START_SECONDS = 20.0
"""Deadline for a started service to reply."""

QUIET_SECONDS = 20.0
"""Deadline for PID 1 and the broker to become idle after a measurement."""

QUIET_INTERVAL_SECONDS = 0.1
QUIET_PART = 0.02
"""A process is idle if it used less than this share of the interval."""

CGROUPS = Path("/sys/fs/cgroup")
UNITS = Path("/run/systemd/system")


@dataclass(frozen=True)
class Peer:
    """One implementation.

    Attributes:
        name: in the table.
        socket: where it listens.
        service: its unit; empty for a program that is no service.
        activation: the unit of its socket; None where the service binds it itself.
        library: what `benchmarks.servers` shall serve with, for a service that is none of the sandbox's own.
    """

    name: str
    socket: str
    service: str
    activation: str | None = None
    library: str | None = None

    def install(self) -> None:
        """Prepare it, once for all rounds.

        Raises:
            Unmeasurable: it is not in this sandbox.
        """
        if self.library is not None:
            (UNITS / self.service).write_text(
                f"[Service]\nType=exec\nEnvironment=PYTHONPATH={os.environ['PYTHONPATH']}\n"
                f"ExecStartPre=-/usr/bin/rm {self.socket}\n"
                f"ExecStart={sys.executable} -m benchmarks.servers {self.library} {self.socket}\n"
            )
            systemctl("daemon-reload")
        elif self.activation is not None and not _is_loaded(self.activation):
            raise Unmeasurable(f"{self.name} is not installed in the sandbox")

    def start(self) -> None:
        """Start it, and wait until it replies.

        Raises:
            Unmeasurable: it does not.
        """
        systemctl("start", self.activation or self.service)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with connect(self.socket) as sock:
                    exchange(sock.fileno(), GET_INFO)
                return
            except Unmeasurable:
                if self.activation is not None or time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the service; a socket that activates it stays."""
        if not self.service:
            return
        systemctl("stop", self.service)
        # This also resets the start counter: we start it more often than the manager permits.
        with contextlib.suppress(Unmeasurable):
            systemctl("reset-failed", self.service)

    def pid(self) -> int:
        """Return the PID of its main process."""
        return int(systemctl("show", "--property=MainPID", "--value", self.service))

    def cpu(self) -> float:
        """Return the CPU time of its control group, in ms."""
        return cpu_of(f"system.slice/{self.service}")

    def open_fds(self) -> int:
        """Return the number of open file descriptors of its main process."""
        return len(os.listdir(f"/proc/{self.pid()}/fd"))

    def memory(self) -> dict[str, float]:
        """Return the memory of its main process in KiB, by the names of proc_pid_smaps_rollup(5)."""
        lines = Path(f"/proc/{self.pid()}/smaps_rollup").read_text().splitlines()[1:]
        return {key: float(value.split()[0]) for key, _, value in (line.partition(":") for line in lines)}


MOORED = Peer("moored", "/run/moorage/io.moorage.Machine", "moored.service", "moored.socket")
MACHINED = Peer(
    "machined",
    "/run/systemd/machine/io.systemd.Machine",
    "systemd-machined.service",
    "systemd-machined.socket",
)
ASYNCVARLINK = Peer(
    "asyncvarlink", "/run/bench-asyncvarlink", "bench-asyncvarlink.service", library="asyncvarlink"
)
VARLINK = Peer("varlink package", "/run/bench-varlink", "bench-varlink.service", library="varlink")


def keep_apart() -> None:
    """Have moored and machined not have each other's machines, which would be measured with their own."""
    dropin = Path("/etc/moorage/moored.conf.d/bench.conf")
    dropin.parent.mkdir(parents=True, exist_ok=True)
    dropin.write_text("publish = false\nadopt = false\n")


def raise_limit_of_machined(*, high: bool) -> None:
    """Give machined the limit for open files of moored's unit, or that of its own unit."""
    dropin = UNITS / f"{MACHINED.service}.d" / "bench.conf"
    dropin.parent.mkdir(parents=True, exist_ok=True)
    dropin.write_text("[Service]\nLimitNOFILE=65536\n" if high else "")
    MACHINED.stop()
    systemctl("daemon-reload")


def cpu_of(group: str) -> float:
    """Return the CPU time of a control group, in ms (cgroup v2, cpu.stat)."""
    for line in (CGROUPS / group / "cpu.stat").read_text().splitlines():
        key, value = line.split()
        if key == "usage_usec":
            return int(value) / 1000
    raise Unmeasurable(f"{group}: no usage_usec in cpu.stat")


def cpu_of_pid1() -> float:
    """Return the CPU time of PID 1, in ms."""
    return cpu_of("init.scope")


def cpu_of_broker() -> float:
    """Return the CPU time of the system bus, in ms."""
    return cpu_of("system.slice/dbus.service")


def settle() -> None:
    """Wait until PID 1 and the broker are idle, so that earlier work is not charged to the next measurement."""
    deadline = time.monotonic() + QUIET_SECONDS
    used = cpu_of_pid1() + cpu_of_broker()
    while time.monotonic() < deadline:
        time.sleep(QUIET_INTERVAL_SECONDS)
        before, used = used, cpu_of_pid1() + cpu_of_broker()
        if used - before < QUIET_PART * QUIET_INTERVAL_SECONDS * 1000:
            return
    raise Unmeasurable(f"PID 1 did not come to rest within {QUIET_SECONDS:.0f} s")


def systemctl(*argv: str) -> str:
    """Run systemctl, and return its output.

    Raises:
        Unmeasurable: it failed; says what it printed.
    """
    try:
        done = subprocess.run(
            ["systemctl", "--quiet", *argv],
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unmeasurable(f"systemctl {' '.join(argv)}: not done within {COMMAND_SECONDS:.0f} s") from None
    if done.returncode != 0:
        raise Unmeasurable(f"systemctl {' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout.strip()


def _is_loaded(unit: str) -> bool:
    return systemctl("show", "--property=LoadState", "--value", unit) == "loaded"
