"""What is expected of the machines, and how the system is queried."""

import json
import os
import random
import subprocess
import time
from collections.abc import Awaitable, Callable
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
"""An ordinary user of every sandbox; a polkit rule of chaos permits her io.moorage.create-machine."""

COMMAND_SECONDS = 90.0
"""Deadline for systemctl, as the manager may not answer for half a minute."""

NOT_LISTENING = ("Failed to connect", "Connection reset by peer", "Transport endpoint is not connected")
AGAIN_SECONDS = 0.05

Process = subprocess.Popen[bytes]


class Violation(Exception):
    """Something that must never happen."""


@dataclass(eq=False)
class Wanted:
    """A machine as a client wants it, and what became of it.

    Attributes:
        name: of the machine.
        process: its leader.
        parameters: of its Register.
        machine: from the reply; None before that, and for one that was refused.
        ended: why it is no longer expected to exist; empty while it is.
        verdict: whether a verdict is then expected.
        reserved: a client is about to do something with it.
        limping: some of its helpers may have ended, and it goes on without them.
        owner: the user who registers it.
        helpers: those that it should have, by name.
        undecided: names of helpers whose change got no reply: they run, or do not exist.
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
        """Take the helpers from the parameters of Register."""
        self.helpers = {helper["name"]: helper for helper in self.parameters.get("helpers", [])}

    def end(self, why: str, *, verdict: bool = True) -> None:
        """Expect it no longer; the first reason counts."""
        if not self.ended:
            self.ended, self.verdict = why, verdict


@dataclass
class World:
    """All expectations.

    Attributes:
        machines: by name: those that exist, and those that ended since the last check.
        unrecorded: machines whose record was damaged, or that were forgotten: they run, but the service does not know
            them.
        registered: those whose registration was replied to, and which have not ended, or since the last check only.
        calls: number of replies, by kind.
        full: there is no space for records, so calls may be refused for that.
        stopping_helpers: helpers are being killed, so calls may be refused for that.
    """

    machines: dict[str, Wanted] = field(default_factory=dict[str, Wanted])
    unrecorded: dict[str, Wanted] = field(default_factory=dict[str, Wanted])
    registered: list[Wanted] = field(default_factory=list[Wanted])
    calls: dict[str, int] = field(default_factory=dict[str, int])
    full: bool = False
    stopping_helpers: bool = False

    def living(self) -> list[Wanted]:
        """Return the machines that are expected to exist."""
        return [each for each in self.machines.values() if each.machine is not None and not each.ended]

    def count(self, what: str) -> None:
        """Count a reply."""
        self.calls[what] = self.calls.get(what, 0) + 1


def pick(world: World, chance: random.Random, user: int) -> Wanted | None:
    """Choose a machine of a user that no client is busy with; None if there is none."""
    free = [each for each in world.living() if not each.reserved and each.owner == user]
    return chance.choice(free) if free else None


async def with_reserved(wanted: Wanted | None, do: Callable[[Wanted], Awaitable[None]]) -> None:
    """Do something with a machine that no other client touches meanwhile."""
    if wanted is None:
        return
    wanted.reserved = True
    try:
        await do(wanted)
    finally:
        wanted.reserved = False


def run(*argv: str, check: bool = True) -> str:
    """Run a command, and return its output. Repeat it while the manager does not listen because it re-executes itself.

    Raises:
        Violation: the command failed.
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
    """Return properties of a unit."""
    text = run("systemctl", "show", f"--property={','.join(properties)}", "--", unit)
    return dict(line.split("=", 1) for line in text.splitlines())


def main_pid() -> int:
    """Return the PID of moored; 0 if it does not run."""
    return int(show("moored.service", "MainPID")["MainPID"])


def units(*patterns: str) -> dict[str, str]:
    """Return the units that the manager has loaded, with their states."""
    lines = run("systemctl", "list-units", "--all", "--plain", "--no-legend", *patterns).splitlines()
    return {line.split()[0]: line.split()[2] for line in lines}


def control_group(pid: int) -> str:
    """Return the control group of a process; empty if the process is gone."""
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
    """Return the control groups of scopes of machines that have processes, by the name of the scope."""
    return {path.name: path for path in CGROUPS.glob("**/machine-*.scope") if populated(path)}


def records() -> dict[str, dict[str, Any] | None]:
    """Return the content of the directory of records, without notes of anything else; None for invalid records."""
    found: dict[str, dict[str, Any] | None] = {}
    for name in os.listdir(RECORDS):
        if name.startswith((".left-", ".beside-")):
            continue
        try:
            path = RECORDS / name
            found[name] = json.loads(path.read_bytes()) if path.is_file() and not path.is_symlink() else None
        except (ValueError, OSError):
            found[name] = None
    return found
