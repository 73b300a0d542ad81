"""The checkout as an installed system has it: a layer over an image, made once for each state of the files.

Installing takes longer than all the rest of a boot, and most sandboxes boot what another one has booted before.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from sandboxing.host import CHECKOUT, PATH, run
from sandboxing.images import CACHE, Image
from sandboxing.state import STATE

INSTALLED = ("pyproject.toml", "README.md", "LICENSE", "service", "interfaces", "units")
"""What of the checkout an installed system has, or is made from."""

INSTALL_SECONDS = 60.0
"""It takes one or two; a loaded host with two cores may need ten times as long."""

KEPT_SECONDS = 3600.0
"""For how long a layer is kept that no sandbox has: the next boot is likely to want the same."""

INSTALL = r"""
set -eu
image=$1 layer=$2 checkout=$3
root=$layer.root
mkdir -p "$root" "$layer"
mount --bind -o ro "$image" "$root"
mount -t tmpfs tmp "$root/tmp"
mkdir "$root/tmp/checkout" "$root/tmp/layer"
mount --bind -o ro "$checkout" "$root/tmp/checkout"
mount --bind "$layer" "$root/tmp/layer"
env -i PATH=/usr/sbin:/usr/bin HOME=/tmp LANG=C.UTF-8 DEB_PYTHON_INSTALL_LAYOUT=deb chroot "$root" \
    python3 -m pip install --quiet --no-deps --no-index --no-build-isolation --break-system-packages \
    --root-user-action=ignore --no-cache-dir --root=/tmp/layer --prefix=/usr /tmp/checkout
for manager in system user; do
    [ ! -d "$checkout/units/$manager" ] || {
        mkdir -p "$layer/usr/lib/systemd/$manager"
        cp "$checkout/units/$manager"/* "$layer/usr/lib/systemd/$manager/"
    }
done
[ ! -d "$checkout/units/polkit" ] || {
    mkdir -p "$layer/usr/share/polkit-1/actions"
    cp "$checkout/units/polkit"/* "$layer/usr/share/polkit-1/actions/"
}
[ ! -d "$checkout/units/dbus" ] || {
    mkdir -p "$layer/usr/share/dbus-1/system.d"
    cp "$checkout/units/dbus"/* "$layer/usr/share/dbus-1/system.d/"
}
"""
"""Script that runs in a mount namespace of its own. Its arguments are $1 to $3 as named."""


def layer_of(image: Image) -> Path:
    """Return the path of the layer for the checkout as it is now."""
    return CACHE / f"layer-{image.path.name}-{_digest()[:12]}"


def install(image: Image, layer: Path) -> None:
    """Make a layer unless it exists. Processes that want any wait for each other.

    Raises:
        SandboxError: the checkout cannot be installed; the attempt leaves nothing behind.
    """
    with (CACHE / "layers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if layer.exists():
            os.utime(layer)
            return
        _remove_old()
        unfinished = Path(f"{layer}.building")
        try:
            run(
                [
                    *("unshare", "--mount", "--propagation", "private", "sh", "-c", INSTALL, "install"),
                    *(str(image.path), str(unfinished), str(CHECKOUT)),
                ],
                timeout=INSTALL_SECONDS,
                env={"PATH": PATH},
                keep=[lock.fileno()],
            )
            unfinished.rename(layer)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.rmtree(f"{unfinished}.root", ignore_errors=True)


def _digest() -> str:
    """Return a digest of what is installed."""
    digest = hashlib.sha256()
    for path in _files():
        data = path.read_bytes()
        digest.update(f"{path.relative_to(CHECKOUT)}\0{path.stat().st_mode:o}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def _files() -> Iterator[Path]:
    for name in INSTALLED:
        path = CHECKOUT / name
        below = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (each for each in below if each.is_file() and "__pycache__" not in each.parts)


def _remove_old() -> None:
    """Remove layers that no sandbox has, and that none has been booted with for a while."""
    used: set[str] = set()
    for path in STATE.glob("*/layer"):
        with contextlib.suppress(FileNotFoundError):  # it went down meanwhile
            used.add(path.read_text())
    before = time.time() - KEPT_SECONDS
    for layer in CACHE.glob("layer-*"):
        if str(layer) not in used and layer.stat().st_mtime < before:
            shutil.rmtree(layer, ignore_errors=True)
