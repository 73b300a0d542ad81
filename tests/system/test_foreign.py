"""The modules in inside/foreign/: programs that nobody here has written, beside machined and in its place.

Those of a suite share a sandbox, and an image with these programs: each of them has to leave the system as it was.
"""

from collections.abc import Callable
from pathlib import Path

from sandboxes import Sandbox

PACKAGES = ",".join((
    # managers of machines
    "podman", "crun", "libvirt-daemon-system", "libvirt-daemon-driver-qemu", "libvirt-clients",
    # what systemd has for machines, and how it is tested there
    "libnss-mymachines", "openssh-client", "openssh-server", "systemd-tests",
    # for guests
    "busybox-static", "cpio", "linux-image-cloud-amd64", "ovmf", "zstd",
))  # fmt: skip
"""In one image."""

FOREIGN = Path(__file__).parent / "inside" / "foreign"


def test_foreign(boot: Callable[..., Sandbox]) -> None:
    boot("--packages", PACKAGES).pytest(FOREIGN)
