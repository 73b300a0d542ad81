"""A container of systemd-nspawn with a systemd and a bus of its own."""

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import trio
from moored import run, until


@contextmanager
def booted(name: str = "box") -> Generator[int]:
    """Boot a container that systemd-nspawn registers with whoever is machined; yield the PID of its leader.

    Its root is the one of this system, and what it writes is in memory.
    """
    unit, root = f"nspawn-{name}.service", Path(f"/var/{name}")
    root.mkdir(exist_ok=True)
    # What is mounted on this system must not come up in there as well.
    run("mount", "--bind", "--make-private", "/", str(root))
    try:
        run(
            "systemd-run", "--quiet", "--collect", f"--unit={unit}", "--property=KillMode=mixed",
            "--property=Delegate=yes", "--setenv=SYSTEMD_SECCOMP=0", "systemd-nspawn", "--quiet", "--register=yes",
            f"--machine={name}", f"--directory={root}", "--volatile=overlay", "--private-users=no",
            "--link-journal=no", "--boot", "systemd.mask=systemd-machined.service", "systemd.mask=moored.socket",
            "systemd.mask=moored-machined.socket",
        )  # fmt: skip

        def is_up() -> bool:
            return shell(name, "/bin/true").returncode == 0

        trio.run(lambda: until(is_up, "the container has booted"))
        yield int(run("machinectl", "show", name, "-P", "Leader"))
    finally:
        subprocess.run(["machinectl", "terminate", name], check=False, capture_output=True)
        subprocess.run(["systemctl", "stop", unit], check=False, capture_output=True)
        run("umount", "--lazy", str(root))


def shell(name: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a container by machinectl, which writes what it says to standard output."""
    return subprocess.run(
        ["machinectl", "shell", name, *command],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
