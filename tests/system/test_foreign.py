"""The modules in inside/foreign/: programs that nobody here has written, beside machined and in its place.

Those of a row share a sandbox, and an image with these programs: each of them has to leave the system as it was.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from sandboxes import VERSIONS, Sandbox, start, stop

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

ROWS = [
    *((suite, names) for names in (("test_podman", "test_guests"), ("test_tools",)) for suite in VERSIONS),
    # Programs that reach machined by the message bus only, or need firmware, before 262.
    ("forky", ("test_vmspawn", "test_systemds_own")),
]


@pytest.mark.parametrize(
    ("suite", "names"),
    [pytest.param(*row, id=f"{row[0]}-{'+'.join(row[1])}") for row in ROWS],
    indirect=["suite"],
)
def test_foreign(boot: Callable[..., Sandbox], names: tuple[str, ...]) -> None:
    boot("--packages", PACKAGES).pytest(*(INSIDE / "foreign" / f"{name}.py" for name in names))


def test_no_module_is_left_out() -> None:
    assert {path.stem for path in (INSIDE / "foreign").glob("test_*.py")} == {
        name for _, names in ROWS for name in names
    }


def test_libvirt() -> None:
    """It registers domains only where control groups have controllers."""
    sandbox = start("forky", ["--kind=uml", "--packages", PACKAGES])
    try:
        sandbox.pytest(INSIDE / "libvirt")
    finally:
        stop(sandbox)
