"""Sandboxes with a kernel of their own, user-mode Linux."""

import os
import subprocess
import sys

from sandboxing import agent
from sandboxing.host import PATH
from sandboxing.preparing import PREPARE, Boot, read_ready

TO_BOOT = {"unshare": "util-linux"}
"""Commands that boot a kernel, and their packages."""

UML_MEMORY = "2048M"
"""Memory that the kernel believes it has. The host provides what of it is used."""

AGENT_UNIT = "sandbox-agent.service"

AGENT = f"""
[Unit]
Description=Runs the commands of tools/sandbox exec
[Service]
Type=exec
ExecStartPre=ip address add {agent.INSIDE}/{agent.PREFIX} dev vec0
ExecStartPre=ip link set vec0 up
ExecStart=python3 /moorage/tools/sandboxing/agent.py serve /dev/ttyS0
Environment=PYTHONDONTWRITEBYTECODE=1
KillMode=process
"""

# The kernel needs of the host /proc/self/exe, a device for its network, and a file for its memory.
BOOT_UML = rf"""
mount --bind -o ro "$checkout" "$root/moorage"
mount --bind /proc "$root/proc"
mount --bind /dev "$root/dev"
mount -t tmpfs -o size=100%,mode=0700 memory "$root/tmp"
chroot "$root" ip tuntap add dev uml mode tap
chroot "$root" ip address add {agent.OUTSIDE}/{agent.PREFIX} dev uml
chroot "$root" ip link set dev uml up
exec env -i PATH=/usr/sbin:/usr/bin HOME=/tmp TMPDIR=/tmp chroot "$root" linux.uml "$@"
"""


def start(boot: Boot) -> int:
    """Start a kernel and wait until commands can be run in it.

    Returns:
        The PID of the process that is the kernel.

    Raises:
        SandboxError: the kernel, or the system on it, did not come up.
    """
    units = boot.sandbox.directory / "etc/systemd/system"
    (units / AGENT_UNIT).write_text(AGENT)
    (units / "multi-user.target.wants").mkdir()
    (units / "multi-user.target.wants" / AGENT_UNIT).symlink_to(f"../{AGENT_UNIT}")
    ready, serial_line = os.pipe()
    try:
        kernel = [
            *(
                "root=/dev/root",
                "rootfstype=hostfs",
                "rootflags=/",
                "ro",
                "init=/moorage/tools/sandboxing/init",
            ),
            *(f"mem={UML_MEMORY}", "seccomp=auto", "noreboot", "quiet"),
            *("con=null", "con0=null,fd:1", "ssl=null", f"ssl0=null,fd:{serial_line}"),
            "vec0:transport=tap,ifname=uml,gro=1",  # without gro it drops large packets of the host
            *("systemd.show_status=yes", f"systemd.hostname={boot.sandbox.name}", "TERM=dumb"),
        ]
        process = subprocess.Popen(
            [*boot.prefix, "--net", "--", "sh", "-c", PREPARE + BOOT_UML, "boot", *boot.arguments, *kernel],
            stdin=subprocess.DEVNULL,
            stdout=boot.console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[serial_line],
            env={"PATH": PATH},
        )
        read_ready(boot, process.pid, ready)
        return process.pid
    finally:
        os.close(serial_line)
        os.close(ready)


def enter(leader: int) -> list[str]:
    """Return the command line that runs another one inside a system with a kernel of its own."""
    return [sys.executable, "-I", agent.__file__, "run", str(leader)]
