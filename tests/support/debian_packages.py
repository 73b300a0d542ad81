"""The Debian packages of this checkout, and systems that have them and no checkout."""

import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from sandboxes import CHECKOUT, UP_SECONDS, Sandbox, start, stop

BUILD_SUITE = "trixie"
"""The packages hold no compiled code: what the older suite builds serves both."""
SCRIPT_SECONDS = 60.0

DOCUMENTS = "/usr/share/doc/moored"
"""Where the packages have README.md, docs and examples."""

WITHOUT_CHECKOUT = """
python3 -m pip uninstall --quiet --yes --break-system-packages --root-user-action=ignore moorage
rm -f /usr/lib/systemd/*/moor* /usr/share/polkit-1/actions/io.moorage.policy /usr/share/dbus-1/system.d/io.moorage.conf
rm -f /etc/dpkg/dpkg.cfg.d/99mmdebstrap  # which leaves documents out
umount /moorage
systemctl daemon-reload
! command -v moorctl
"""

INSTALL = "DEBIAN_FRONTEND=noninteractive dpkg --install /packages/{moored,moorctl,python3-moorage}_*.deb"


@pytest.fixture(scope="session")
def packages() -> Path:
    """The directory of the built packages."""
    done = subprocess.run(
        [CHECKOUT / "tools" / "package", "deb", BUILD_SUITE],
        capture_output=True,
        text=True,
        timeout=UP_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert "the same bytes" in done.stdout
    assert "no error, no warning" in done.stdout
    return CHECKOUT / "dist" / BUILD_SUITE


@pytest.fixture(scope="session")
def packaged(suite: str, packages: Path) -> Generator[Sandbox]:
    """A sandbox with the packages, shared by all tests of a session."""
    sandbox = start(suite, ["--bind-ro", f"{packages}:/packages"])
    script(sandbox, WITHOUT_CHECKOUT + INSTALL)
    yield sandbox
    stop(sandbox)


def script(sandbox: Sandbox, text: str) -> str:
    """Run a script, of which every command must succeed, and return what it printed."""
    done = sandbox.run(["bash", "-euo", "pipefail"], input=text, check=False, timeout=SCRIPT_SECONDS)
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    return done.stdout
