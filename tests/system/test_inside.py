"""Each module in inside/ runs in a sandbox of its own, so that none lives on what another left."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sandboxes import DESCRIPTORS, Sandbox

SANDBOXES = {
    "test_qemu": ("--read-only", "--no-broker", "--mask", "tmp.mount"),
}
"""Modules that need another one than the usual, with its options."""

SEND_DESCRIPTORS = {"test_limits", "test_bad_input", "test_bounds"}
"""Modules that send as many file descriptors as they can."""

MODULES = [
    pytest.param(
        path,
        id=path.stem,
        marks=[pytest.mark.xdist_group(DESCRIPTORS)] if path.stem in SEND_DESCRIPTORS else [],
    )
    for path in sorted((Path(__file__).parent / "inside").glob("test_*.py"))
]


@pytest.mark.parametrize("module", MODULES)
def test_inside(boot: Callable[..., Sandbox], module: Path) -> None:
    boot(*SANDBOXES.get(module.stem, ())).pytest(module)
