"""What sandboxes of both kinds have in common while they boot."""

import os
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from sandboxing.host import SandboxError
from sandboxing.state import Sandbox

BOOT_SECONDS = 60.0
"""A boot takes two to six seconds; a loaded host with two cores may need ten times as long."""

PREPARE = r"""
set -eu
state=$1 image=$2 layer=$3 cgroup=$4 checkout=$5 size=$6
shift 6
root=$state/root
mount -t tmpfs -o "size=$size,mode=0755" sandbox "$state/rw"
mkdir "$state/rw/upper" "$state/rw/work"
mount -t overlay -o "lowerdir=$layer:$image,upperdir=$state/rw/upper,workdir=$state/rw/work" sandbox "$root" || {
    echo 'No overlay here, copying the image instead.'
    mount -t tmpfs -o "size=$size,mode=0755" sandbox "$root"
    cp -a "$image/." "$layer/." "$root/"
}
mkdir "$root/moorage"
cp -r "$state/etc/." "$root/etc/"
"""
"""Script that runs in the private mount namespace and the control group of the sandbox; each kind appends its own.

Its arguments are $1 to $6 as named, then those of the program that boots the sandbox.
"""


@dataclass(frozen=True)
class Boot:
    """A sandbox that is to be started.

    Attributes:
        sandbox: its name, and all that follows from it.
        prefix: command line that puts another one into the control group and the mount namespace of the sandbox.
        arguments: the first ones of the script :data:`PREPARE`.
        console: where the sandbox writes to.
        deadline: when it must be up, of time.monotonic().
    """

    sandbox: Sandbox
    prefix: Sequence[str]
    arguments: Sequence[str]
    console: IO[bytes]
    deadline: float


def read_ready(boot: Boot, process: int, notifications: int) -> list[str]:
    """Return the lines of the next notification from a sandbox that boots.

    Args:
        boot: the sandbox.
        process: one of its processes, without which it cannot come up.
        notifications: file descriptor to read from.

    Raises:
        SandboxError: that process ended, or the deadline passed.
    """
    pidfd = os.pidfd_open(process)
    try:
        poll = select.poll()
        poll.register(notifications, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(max(0.0, boot.deadline - time.monotonic()) * 1000)}
    finally:
        os.close(pidfd)
    if notifications in ready:
        return os.read(notifications, 4096).decode(errors="replace").splitlines()
    what = "went down while it booted" if ready else f"was not up after {BOOT_SECONDS:.0f} s"
    raise SandboxError(f"{boot.sandbox.name} {what}. Its console:\n{boot.sandbox.console()}")
