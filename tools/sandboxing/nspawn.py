"""Sandboxes that are containers of systemd-nspawn."""

import shutil
import socket
import subprocess
from collections.abc import Sequence

from sandboxing.host import CHECKOUT, PATH
from sandboxing.preparing import PREPARE, Boot, read_ready

TO_BOOT = {"systemd-nspawn": "systemd-container", "nsenter": "util-linux", "unshare": "util-linux"}
"""Commands that boot and enter a container, and their packages."""

BOOT_NSPAWN = r"""
# A host with controllers of version 1 has the unified hierarchy elsewhere. nspawn looks for it in one place, and must
# not find the other hierarchies, or it creates groups in them.
[ "$cgroup" = /sys/fs/cgroup ] || mount --bind "$cgroup" /sys/fs/cgroup
mkdir -p /run/systemd/nspawn
mount -t tmpfs nspawn /run/systemd/nspawn
exec systemd-nspawn "$@"
"""


def start(boot: Boot, options: Sequence[str]) -> int:
    """Start a container and wait until its PID 1 is ready (sd_notify(3)).

    Args:
        boot: the sandbox.
        options: further ones of systemd-nspawn.

    Returns:
        The PID of its PID 1.

    Raises:
        SandboxError: the container did not come up.
    """
    directory = boot.sandbox.directory
    nspawn = [
        *("--quiet", "--register=no", "--keep-unit", "--notify-ready=yes", "--console=pipe"),
        *("--private-network", "--resolv-conf=off", "--timezone=off", "--link-journal=no"),
        *(
            f"--machine={boot.sandbox.name}",
            f"--directory={directory / 'root'}",
            f"--bind-ro={CHECKOUT}:/moorage",
        ),
        *options,
        *("--boot", "systemd.show_status=yes"),
    ]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.bind(str(directory / "notify"))
        process = subprocess.Popen(
            [*boot.prefix, "--", "sh", "-c", PREPARE + BOOT_NSPAWN, "boot", *boot.arguments, *nspawn],
            stdin=subprocess.DEVNULL,
            stdout=boot.console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                "PATH": PATH,
                "NOTIFY_SOCKET": str(directory / "notify"),
                "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
                # Its list of system calls is as old as the host, and lacks those that the sandbox's systemd makes.
                "SYSTEMD_SECCOMP": "0",
            },
        )
        leader = 0
        while True:
            lines = read_ready(boot, process.pid, notifications.fileno())
            for line in lines:
                key, _, value = line.partition("=")
                if key == "X_NSPAWN_LEADER_PID":
                    leader = int(value)
            if leader and "READY=1" in lines:
                return leader


def enter(leader: int) -> list[str]:
    """Return the command line that runs another one inside a container."""
    return [shutil.which("nsenter") or "nsenter", "--target", str(leader), "--all", "--"]
