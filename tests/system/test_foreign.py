"""The modules in inside/foreign/: programs that nobody here has written, beside machined and in its place.

Those of a suite share a sandbox, and an image with these programs: each of them has to leave the system as it was.
"""

from collections.abc import Callable
from pathlib import Path

from sandboxes import Sandbox, start, stop

PACKAGES = ",".join((
    # managers of machines
    "podman", "crun", "libvirt-daemon-system", "libvirt-daemon-driver-qemu", "libvirt-clients",
    # what systemd has for machines, and how it is tested there
    "libnss-mymachines", "openssh-client", "openssh-server", "systemd-tests",
    # for guests
    "busybox-static", "cpio", "linux-image-cloud-amd64", "ovmf", "zstd",
))  # fmt: skip
"""In one image."""

INSIDE = Path(__file__).parent / "inside"


ON_NEWEST = ("test_vmspawn", "test_nspawn")
"""Modules for programs that before 262 reach machined by the message bus only, or need firmware."""


def test_foreign(boot: Callable[..., Sandbox], suite: str) -> None:
    modules = sorted((INSIDE / "foreign").glob("test_*.py"))
    if suite != "forky":
        modules = [path for path in modules if path.stem not in ON_NEWEST]
    boot("--packages", PACKAGES).pytest(*modules)


def test_libvirt() -> None:
    """It registers domains only where control groups have controllers."""
    sandbox = start("forky", ["--kind=uml", "--packages", PACKAGES])
    try:
        sandbox.pytest(INSIDE / "libvirt")
    finally:
        stop(sandbox)
