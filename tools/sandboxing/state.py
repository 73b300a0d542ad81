"""What is known of a sandbox, whatever its state."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from sandboxing.host import SandboxError, runs_systemd, unified_hierarchy

STATE = Path("/run/moorage-sandbox")


@dataclass(frozen=True)
class Sandbox:
    """A sandbox in any state. Everything about it follows from its name and its directory."""

    name: str

    @property
    def directory(self) -> Path:
        """Directory with its record, console log and mount points."""
        return STATE / self.name

    @property
    def unit(self) -> str:
        """The scope that it lives in if the host runs systemd."""
        return f"moorage-sandbox-{self.name}.scope"

    @property
    def cgroup(self) -> Path:
        """Control group of all its processes, including nspawn itself."""
        if runs_systemd():
            return unified_hierarchy() / "machine.slice" / self.unit
        return unified_hierarchy() / f"moorage-sandbox-{self.name}"

    @property
    def record(self) -> Path:
        """File with a `Record` in JSON, which exists once the sandbox is up."""
        return self.directory / "record.json"

    def console(self) -> str:
        """Return the last lines of its console log."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join((self.directory / "console.log").read_text(errors="replace").splitlines()[-60:])
        return ""


@dataclass(frozen=True)
class Record:
    """Facts about a sandbox that is up, which cannot be derived."""

    suite: str
    leader: int
    """PID on the host of its PID 1, or of the process that is its kernel."""
    nofile: str
    """Limits for file descriptors, SOFT:HARD."""
    kind: str = "nspawn"


def read_record(sandbox: Sandbox) -> Record | None:
    """Return the record of a sandbox; None if it is not up."""
    try:
        record = Record(**json.loads(sandbox.record.read_text()))
        group = Path(f"/proc/{record.leader}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # A process that got a recycled PID is in another control group.
    own = f"0::/{sandbox.cgroup.relative_to(unified_hierarchy())}/"
    return record if any(f"{line}/".startswith(own) for line in group.splitlines()) else None


def must_be_up(name: str) -> tuple[Sandbox, Record]:
    """Return the sandbox of a name, with its record.

    Raises:
        SandboxError: there is no such sandbox, or it is not up.
    """
    sandbox = Sandbox(name)
    record = read_record(sandbox)
    if record is None:
        raise SandboxError(f"There is no sandbox {name!r} that is up; see tools/sandbox list.")
    return sandbox, record
