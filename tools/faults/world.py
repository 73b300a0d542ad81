"""What is expected of the machines, and the words in which the system is asked."""

import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOCKET = "/run/moorage/io.moorage.Machine"
OURS = "io.moorage.Machine."
RECORDS = Path("/run/moorage/machines")
CGROUPS = Path("/sys/fs/cgroup")

DIRECTORIES = Path("/run/moorage/m")

ROOT = 0
ALICE = 1000
"""An ordinary user of every sandbox; chaos has a rule of polkit give her io.moorage.create-machine."""

COMMAND_SECONDS = 90.0
"""For systemctl, also when the manager does not answer for half a minute."""

NOT_LISTENING = ("Failed to connect", "Connection reset by peer", "Transport endpoint is not connected")
AGAIN_SECONDS = 0.05

Process = subprocess.Popen[bytes]


class Violation(Exception):
    """Something that must never be."""


@dataclass(eq=False)
class Wanted:
    """A machine as a client wants it, and what became of that.

    Attributes:
        name: of the machine.
        process: its leader.
        parameters: of its Register.
        machine: as it was answered; None before that, and of one that was refused.
        ended: why it is not expected to be there any more; empty while it is.
        verdict: whether its verdict is expected then.
        reserved: a client is about to do something with it.
        limping: some of its helpers may have ended, and it goes on without them.
        owner: the user who registers it.
        helpers: by name, as it is asked to have them.
        undecided: names of those that nobody has been told about: they are there and run, or they are not.
    """

    name: str
    process: Process
    parameters: dict[str, Any]
    machine: dict[str, Any] | None = None
    ended: str = ""
    verdict: bool = True
    reserved: bool = False
    limping: bool = False
    owner: int = ROOT
    helpers: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    undecided: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        """Have the helpers that its Register names."""
        self.helpers = {helper["name"]: helper for helper in self.parameters.get("helpers", [])}

    def end(self, why: str, *, verdict: bool = True) -> None:
        """Expect it no more; the first reason counts."""
        if not self.ended:
            self.ended, self.verdict = why, verdict


@dataclass
class World:
    """All that is expected.

    Attributes:
        machines: by name: those that are there, and those that ended since the last check.
        unrecorded: machines whose record was damaged, or that were forgotten: they run, but nobody knows them.
        calls: how many calls were answered, by what they were answered with.
    """

    machines: dict[str, Wanted] = field(default_factory=dict[str, Wanted])
    unrecorded: dict[str, Wanted] = field(default_factory=dict[str, Wanted])
    calls: dict[str, int] = field(default_factory=dict[str, int])

    def living(self) -> list[Wanted]:
        """Those that are expected to be there."""
        return [each for each in self.machines.values() if each.machine is not None and not each.ended]

    def count(self, what: str) -> None:
        """Count an answer."""
        self.calls[what] = self.calls.get(what, 0) + 1


def run(*argv: str, check: bool = True) -> str:
    """Run a command, and return what it printed. Repeated while the manager does not listen: it executes itself again.

    Raises:
        Violation: it failed.
    """
    give_up = time.monotonic() + COMMAND_SECONDS
    while True:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS)
        if not check or not done.returncode:
            return done.stdout
        if not any(word in done.stderr for word in NOT_LISTENING) or time.monotonic() > give_up:
            raise Violation(f"{' '.join(argv)}: status {done.returncode}: {done.stderr.strip()}")
        time.sleep(AGAIN_SECONDS)


def show(unit: str, *properties: str) -> dict[str, str]:
    """What the manager says of a unit."""
    text = run("systemctl", "show", f"--property={','.join(properties)}", "--", unit)
    return dict(line.split("=", 1) for line in text.splitlines())


def main_pid() -> int:
    """PID of moored, 0 when it does not run."""
    return int(show("moored.service", "MainPID")["MainPID"])


def units(*patterns: str) -> dict[str, str]:
    """Units that the manager has loaded, with their state."""
    lines = run("systemctl", "list-units", "--all", "--plain", "--no-legend", *patterns).splitlines()
    return {line.split()[0]: line.split()[2] for line in lines}


def control_group(pid: int) -> str:
    """The control group of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cgroup").read_text().rpartition("0::")[2].rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def populated(path: Path) -> bool:
    """Whether a control group has processes."""
    try:
        return "populated 1" in (path / "cgroup.events").read_text()
    except (FileNotFoundError, OSError):
        return False


def scope_groups() -> dict[str, Path]:
    """Control groups of scopes of machines, with processes, by the name of the scope."""
    return {path.name: path for path in CGROUPS.glob("**/machine-*.scope") if populated(path)}


def records() -> dict[str, dict[str, Any] | None]:
    """What lies in the directory of records, but notes of units that were left alone; None for what is no record."""
    found: dict[str, dict[str, Any] | None] = {}
    for name in os.listdir(RECORDS):
        if name.startswith(".left-"):
            continue
        try:
            path = RECORDS / name
            found[name] = json.loads(path.read_bytes()) if path.is_file() and not path.is_symlink() else None
        except (ValueError, OSError):
            found[name] = None
    return found
