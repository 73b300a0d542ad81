"""Guests for virtual machines: a kernel of Debian's, and a userland of busybox that does what its command line says.

It needs no KVM: a boot takes five seconds of processor time under TCG.
"""

import os
import shutil
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moored import until

UP_SECONDS = 45.0
"""For a guest, under TCG on a loaded machine."""

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
word() { sed -n "s/.*guest.$1=\\([^ ]*\\).*/\\1/p" /proc/cmdline; }
echo "guest: up"
share=$(word share)
if [ "$share" ] && mount -t virtiofs "$share" /mnt; then
    echo "guest: read $(cat /mnt/question)"
    echo "the guest was here" >/mnt/answer
    umount /mnt
    echo "guest: wrote"
fi
[ -z "$(word off)" ] || poweroff -f
sleep 1000000
"""
"""guest.share=TAG has it mount a virtiofs of that tag, read the file question there and write the file answer;
guest.off=1 has it power off at the end. What it says begins with "guest:"."""


def kernel() -> str:
    """Return the path of the kernel, in which virtiofs and PCI devices are built in."""
    (found,) = Path("/boot").glob("vmlinuz-*")
    return str(found)


def make_initrd(directory: Path) -> str:
    """Make the userland; return the path of its archive."""
    root = directory / "guest"
    for name in ("bin", "proc", "sys", "dev", "mnt"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    archive = directory / "guest.cpio"
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with archive.open("wb") as file:
        cpio = ["cpio", "--quiet", "-o", "-H", "newc"]
        subprocess.run(cpio, cwd=root, input=names.encode(), stdout=file, check=True)
    os.chmod(archive, 0o644)
    return str(archive)


@dataclass
class Console:
    """A program that shows the console of its guest, read by a thread."""

    process: subprocess.Popen[str]
    said: list[str]

    def has(self, words: str) -> bool:
        return any(words in line for line in self.said)


@contextmanager
def console(*argv: str) -> Generator[Console]:
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        found = Console(process, [])
        assert process.stdout is not None
        reader = threading.Thread(target=found.said.extend, args=(iter(process.stdout.readline, ""),))
        reader.start()
        try:
            yield found
        finally:
            process.kill()
            reader.join()


async def up(guest: Console, words: str) -> None:
    await until(lambda: guest.has(words), f"{words}, but {guest.said[-9:]}", seconds=UP_SECONDS)
