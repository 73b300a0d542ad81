"""The service manager of an ordinary user, with a moored. As a program: make them ready for tests as that user."""

import os
import subprocess
from pathlib import Path

from moored import UNTIL_SECONDS, run

NAME = "alice"
UID = 1000
HOME = Path("/home/alice")
RUNTIME = Path(f"/run/user/{UID}")
SYSTEMCTL = ("systemctl", "--user", f"--machine={NAME}@.host")
_PERSISTENT = Path("/etc/systemd/journald.conf.d/test.conf")


def start() -> None:
    """Have it run without a session, and moored listen."""
    # What is kept in memory only, users cannot read (systemd-journald.service(8), "Access Control").
    _PERSISTENT.parent.mkdir(parents=True, exist_ok=True)
    _PERSISTENT.write_text("[Journal]\nStorage=persistent\n")
    run("systemctl", "restart", "systemd-journald.service")
    run("journalctl", "--flush")
    run("loginctl", "enable-linger", NAME)  # or it ends some seconds after the last session
    run("systemctl", "start", f"user@{UID}.service")
    run(*SYSTEMCTL, "enable", "--now", "moored.socket")


def stop() -> None:
    """Stop it, with all that it runs."""
    run("loginctl", "disable-linger", NAME)
    run("systemctl", "stop", f"user@{UID}.service")
    _PERSISTENT.unlink()
    run("systemctl", "restart", "systemd-journald.service")


def as_her(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command as she would at her terminal."""
    return subprocess.run(
        argv, user=UID, group=UID, extra_groups=(), env=environment(), cwd="/", capture_output=True, text=True,
        input=stdin, timeout=UNTIL_SECONDS, check=False,
    )  # fmt: skip


def environment() -> dict[str, str]:
    """Return what she has at her terminal."""
    return {"PATH": os.environ["PATH"], "HOME": str(HOME), "XDG_RUNTIME_DIR": str(RUNTIME)}


def units(pattern: str) -> list[str]:
    """Return the units that her manager has loaded."""
    text = run(*SYSTEMCTL, "list-units", "--all", "--plain", "--no-legend", pattern)
    return [line.split()[0] for line in text.splitlines()]


if __name__ == "__main__":
    start()
