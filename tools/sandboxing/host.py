"""The host that the sandboxes run on."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent

INSTALL_SECONDS = 300.0
"""For apt-get on the host."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class SandboxError(Exception):
    """An error, in words for the terminal."""


def run(
    argv: Sequence[str], *, timeout: float, env: Mapping[str, str] | None = None, keep: Sequence[int] = ()
) -> None:
    """Run a command of the host with its output on stderr.

    Args:
        argv: the command.
        timeout: seconds that it may take.
        env: its environment; by default that of this process.
        keep: file descriptors that it inherits.

    Raises:
        SandboxError: it failed, or did not end in time.
    """
    try:
        subprocess.run(
            argv,
            check=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            env=env,
            pass_fds=keep,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, FileNotFoundError) as error:
        raise SandboxError(f"Failed to run {argv[0]}: {error}") from None


def install(commands: Mapping[str, str], further: Iterable[str] = ()) -> None:
    """Install what this tool runs and the host lacks.

    Args:
        commands: names of commands, and the packages that have them.
        further: packages that are missing anyway.

    Raises:
        SandboxError: something is missing and there is no apt-get, or apt-get failed.
    """
    missing = {package for command, package in commands.items() if shutil.which(command) is None} | {
        *further
    }
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise SandboxError(
            f"This host lacks {', '.join(sorted(missing))}, and has no apt-get to install it."
        )
    run(["apt-get", "-q", "update"], timeout=INSTALL_SECONDS)
    run(
        ["apt-get", "-q", "-y", "--no-install-recommends", "install", *sorted(missing)],
        timeout=INSTALL_SECONDS,
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
    )


def runs_systemd() -> bool:
    """Whether the host's PID 1 is systemd (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def unified_hierarchy() -> Path:
    """Return where the host has the unified hierarchy of control groups mounted.

    Raises:
        SandboxError: it is not mounted.
    """
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        _, _, _, root, mount_point = fields.split()[:5]
        if kind.split()[0] == "cgroup2" and root == "/":
            return Path(mount_point)
    raise SandboxError(
        "This host has not mounted the unified hierarchy of control groups (mount -t cgroup2)."
    )
