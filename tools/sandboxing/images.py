"""Debian roots for sandboxes: made by mmdebstrap, kept in a cache."""

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sandboxing.host import CHECKOUT, INSTALL_SECONDS, PATH, install, run

CACHE = Path(os.environ.get("MOORAGE_SANDBOX_CACHE") or Path.home() / ".cache" / "moorage-sandbox")

SUITES = {"forky": 262, "trixie": 257}
"""Suites of Debian, with the version of systemd that each is used for."""

UML_SUITE = "forky"
"""The suite whose image includes user-mode Linux."""

UML_MODULES = "/usr/lib/uml/modules"
UML_DRIVERS = ("dm-mod", "loop", "overlay")
"""Modules of its kernel that are kept: for limits of block devices, mapped ones too, and for the root."""

BUILD_SECONDS = 900.0
"""An image takes half a minute with a near mirror; a slow one may need thirty times as long."""

PACKAGES = (
    # the system under test
    "systemd", "systemd-sysv", "systemd-container", "libpam-systemd", "dbus", "dbus-user-session", "polkitd",
    # what moored and moorctl run on
    "python3", "python3-click", "python3-jeepney", "python3-msgspec", "python3-rich", "python3-systemd",
    "python3-trio", "python3-varlink",
    # what installs and tests them
    "python3-hatchling", "python3-hypothesis", "python3-pip", "python3-pytest",
    # what tests look at it with
    "iproute2", "jq", "passwd", "procps", "socat", "strace", "util-linux",
    # a virtual machine monitor and its helpers
    "qemu-system-x86", "swtpm", "virtiofsd",
)  # fmt: skip

UML_PACKAGES = ("btrfs-progs", "dmsetup", "kmod", "user-mode-linux")

PEERS = ("asyncvarlink",)
"""Pure Python wheels that Debian lacks, in the versions of requirements-dev.lock."""

USERS = {"alice": 1000, "bob": 1001}
"""Ordinary users of every sandbox."""

NOT_IN_A_SANDBOX = (
    # nobody logs in at a console
    "console-getty.service", "container-getty@.service", "getty.target",
    # timers that could elapse during a measurement
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
    "systemd-tmpfiles-clean.timer",
    # first-boot work on an image that is thrown away
    "ldconfig.service", "systemd-firstboot.service", "systemd-journal-catalog-update.service",
    "systemd-sysusers.service", "systemd-update-done.service",
    # the journal is volatile
    "systemd-journal-flush.service",
    # the namespace has no such memory
    "dev-hugepages.mount",
)  # fmt: skip

FILES = {
    "etc/systemd/journald.conf.d/sandbox.conf": "[Journal]\nStorage=volatile\nRuntimeMaxUse=64M\nRateLimitBurst=0\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
}

TO_BUILD = {"mmdebstrap": "mmdebstrap", "setpriv": "util-linux", "unshare": "util-linux"}
"""Commands that make an image, and their packages."""


@dataclass(frozen=True)
class Image:
    """A Debian root in the cache, named by a digest of its recipe.

    Attributes:
        suite: of Debian.
        packages: without dependencies.
        peers: wheels, as name==version.
        drivers: modules of the kernel that is among the packages.
        further: packages on top of an image that has the others.
    """

    suite: str
    packages: tuple[str, ...]
    peers: tuple[str, ...]
    drivers: tuple[str, ...] = ()
    further: tuple[str, ...] = ()

    @property
    def base(self) -> "Image":
        """The image that this one is built on, with what every sandbox has."""
        return replace(self, further=())

    @property
    def path(self) -> Path:
        """The root directory."""
        recipe = [self.packages, self.peers, USERS, NOT_IN_A_SANDBOX, FILES, *self.drivers, self.further]
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
        return CACHE / f"{self.suite}-{digest[:12]}"


def image_of(suite: str, further: Sequence[str]) -> Image:
    """Return the image of a suite with further packages."""
    lock = (CHECKOUT / "requirements-dev.lock").read_text()
    peers = [re.search(rf"^{peer}==\S+", lock, re.MULTILINE) for peer in PEERS]
    uml = suite == UML_SUITE
    return Image(
        suite,
        tuple(sorted({*PACKAGES, *(UML_PACKAGES if uml else ())})),
        tuple(found.group() for found in peers if found is not None),
        UML_DRIVERS if uml else (),
        tuple(sorted({*further})),
    )


def build(image: Image) -> None:
    """Make the image unless it exists. Two processes that want the same one wait for each other.

    Raises:
        SandboxError: the image could not be made; the attempt leaves nothing behind.
    """
    if image.path.exists():
        return
    if image.further:
        build(image.base)
    install(TO_BUILD, missing_files())
    CACHE.mkdir(parents=True, exist_ok=True)
    with Path(f"{image.path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if image.path.exists():
            return
        unfinished = Path(f"{image.path}.building")
        shutil.rmtree(unfinished, ignore_errors=True)
        wheels = Path(f"{image.path}.wheels")
        try:
            if image.further:
                command = mmdebstrap(image, unfinished, *on_top(image))
            else:
                download(image.peers, wheels)
                command = mmdebstrap(image, unfinished, *from_nothing(image, wheels))
            # It inherits the lock: if we are killed, nobody else begins before its last process is gone.
            run(command, timeout=BUILD_SECONDS, keep=[lock.fileno()])
            if not image.further:
                furnish(unfinished)
            unfinished.rename(image.path)
        finally:
            shutil.rmtree(wheels, ignore_errors=True)
            shutil.rmtree(unfinished, ignore_errors=True)


def download(peers: Sequence[str], directory: Path) -> None:
    """Download wheels.

    Raises:
        SandboxError: pip failed.
    """
    pip = [sys.executable, "-m", "pip", "--quiet", "download", "--no-deps", "--only-binary=:all:"]
    run([*pip, "--dest", str(directory), *peers], timeout=INSTALL_SECONDS)


def missing_files() -> Iterator[str]:
    """Yield packages that the host lacks and that have no command of their own."""
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists():
        yield "debian-archive-keyring"
    if importlib.util.find_spec("pip") is None:
        yield "python3-pip"


def mmdebstrap(image: Image, root: Path, *options: str) -> list[str]:
    """Return the command that makes the root."""
    return [
        # In namespaces of its own, so that neither mounts nor processes survive when it, or we, are killed.
        *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"),
        *("--pid", "--mount-proc", "--fork", "--kill-child", "--"),
        *("mmdebstrap", "--quiet", "--mode=root", "--format=directory"),
        f"--include={','.join(image.further or image.packages)}",
        '--aptopt=Acquire::Check-Valid-Until "false"',  # a frozen mirror is good enough
        '--aptopt=Acquire::Languages "none"',
        *options,
        *(image.suite, str(root)),
    ]


def from_nothing(image: Image, wheels: Path) -> Iterator[str]:
    """Yield the options of mmdebstrap for an image with what every sandbox has."""
    pip = (
        'chroot "$1" python3 -m pip install --quiet --no-deps --no-index --find-links=/wheels '
        "--break-system-packages --root-user-action=ignore " + " ".join(image.peers)
    )
    users = [f'chroot "$1" useradd -m -s /bin/bash -u {uid} {name}' for name, uid in USERS.items()]
    hooks = [f'cp -r "{wheels}" "$1/wheels"', f"env -i PATH={PATH} {pip}", 'rm -r "$1/wheels"', *users]
    yield "--variant=minbase"
    yield from (f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "info", "locale", "man"))
    yield from (
        f"--dpkgopt=path-{what}"
        for what in (
            f"exclude={UML_MODULES}/*",
            *(f"include={UML_MODULES}/*/{driver}.ko" for driver in image.drivers),
        )
    )
    yield from (f"--customize-hook={hook}" for hook in hooks)


def on_top(image: Image) -> Iterator[str]:
    """Yield the options of mmdebstrap for an image on top of its base, whose configuration of dpkg it keeps."""
    yield "--variant=custom"
    yield f'--setup-hook=cp -a "{image.base.path}/." "$1"'


def furnish(root: Path) -> None:
    """Configure a fresh root to boot quickly and quietly."""
    units = root / "etc/systemd/system"
    for unit in NOT_IN_A_SANDBOX:
        (units / unit).symlink_to("/dev/null")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/usr/lib/systemd/system/multi-user.target")
    for path, text in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
