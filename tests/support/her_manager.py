"""The service manager of an ordinary user, with a moored. As a program: make them ready for tests as that user."""

from pathlib import Path

from moored import run

NAME = "alice"
UID = 1000
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


if __name__ == "__main__":
    start()
